/* A turn in a host's stream: work of ours between two events of the host's. The host's stream itself need not be
 * known; its events order it with ours. */
#ifndef LESSISMORE_CUDA_TURN_H
#define LESSISMORE_CUDA_TURN_H

#include "visible.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lim_cuda_turn {
    void            *context;  /* CUcontext, made current on threads that have none */
    void            *stream;   /* CUstream, ours */
    void            *function; /* CUfunction of lim_visible */
    lim_cuda_visible sight;
} lim_cuda_turn;

/* Has our stream wait for the event that the host recorded, then, with `look`, turns the masks of `sight` into
 * lengths and slots. Queues only. Returns a CUresult. */
int lim_cuda_turn_begin(const lim_cuda_turn *turn, void *before, int look);

/* Records the event that the host's stream will wait for. Returns a CUresult. */
int lim_cuda_turn_end(const lim_cuda_turn *turn, void *after);

#ifdef __cplusplus
}
#endif
#endif
