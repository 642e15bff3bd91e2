/* A bridge into a host's stream: work of ours between two events of the host's. The host's stream itself need not be
 * known; its events order it with ours. */
#ifndef LESSISMORE_CUDA_STREAM_BRIDGE_H
#define LESSISMORE_CUDA_STREAM_BRIDGE_H

#include "visible.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lim_cuda_bridge {
    void            *context;  /* CUcontext, made current on threads that have none */
    void            *stream;   /* CUstream, ours */
    void            *function; /* CUfunction of lim_visible */
    lim_cuda_visible visible;
} lim_cuda_bridge;

/* Has our stream wait for the event that the host recorded, then, with `look`, turns the masks of `visible` into
 * lengths and slots. Queues only. Returns a CUresult. */
int lim_cuda_bridge_begin(const lim_cuda_bridge *bridge, void *before, int look);

/* Records the event that the host's stream will wait for. Returns a CUresult. */
int lim_cuda_bridge_end(const lim_cuda_bridge *bridge, void *after);

#ifdef __cplusplus
}
#endif
#endif
