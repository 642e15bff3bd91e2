#include "stream_bridge.h"

#include "launch.h"

/* The driver's own declarations, by hand: this file is compiled where its headers are not. */
int cuStreamWaitEvent(void *stream, void *event, unsigned flags);
int cuEventRecord(void *event, void *stream);
int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **params, void **extra);

int lim_cuda_bridge_begin(const lim_cuda_bridge *t, void *before, int look) {
    int result = lim_cuda_enter(t->context);
    if (result == 0) result = cuStreamWaitEvent(t->stream, before, 0);
    if (result != 0 || !look) return result;
    void *params[1] = {(void *)&t->visible};
    return cuLaunchKernel(t->function, (unsigned)t->visible.n_rows, 1, 1, LIM_CUDA_VISIBLE_WARPS * 32, 1, 1, 0, t->stream, params, 0);
}

int lim_cuda_bridge_end(const lim_cuda_bridge *t, void *after) { return cuEventRecord(after, t->stream); }
