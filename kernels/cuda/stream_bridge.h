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

/* Has our stream wait for the event that the host recorded (NULL: for nothing), then, with `look`, turns the masks of
 * `visible` into lengths and slots. Queues only. Returns a CUresult. */
int lim_cuda_bridge_begin(const lim_cuda_bridge *bridge, void *before, int look);

/* Records the event that the host's stream will wait for. Returns a CUresult. */
int lim_cuda_bridge_end(const lim_cuda_bridge *bridge, void *after);

/* From here on nothing runs that is queued on our stream, or on a stream of the host's once that waits for an event of
 * ours: all of it becomes one graph of the driver's. Calls of this thread that would be unsafe in a capture are
 * allowed: the host makes the same ones in captures of its own. Returns a CUresult. */
int lim_cuda_bridge_capture(const lim_cuda_bridge *bridge);

/* Ends that. `before` is the event that the host recorded behind its last work; NULL: what was captured is dropped.
 * *ready: the graph (CUgraphExec), else NULL. Returns a CUresult. */
int lim_cuda_bridge_captured(const lim_cuda_bridge *bridge, void *before, void **ready);

/* Queues such a graph on our stream. Returns a CUresult. */
int lim_cuda_bridge_replay(const lim_cuda_bridge *bridge, void *ready);

/* Gives it back. */
void lim_cuda_bridge_forget(const lim_cuda_bridge *bridge, void *ready);

#ifdef __cplusplus
}
#endif
#endif
