#include "probe.h"

/* The driver's own declarations, by hand: this file is compiled where its headers are not. */
int cuCtxGetCurrent(void **context);
int cuCtxSetCurrent(void *context);
int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **params, void **extra);

int lim_cuda_run_probe(const lim_cuda_probe_plan *plan, void *stream) {
    const void *args[3] = {&plan->attend, &plan->select, &plan->probe};
    /* A thread of the host that has a context keeps it: the stream is of that one. */
    void *context = 0;
    int   result = cuCtxGetCurrent(&context);
    if (result == 0 && context == 0) result = cuCtxSetCurrent(plan->context);
    for (int i = 0; i < 3 && result == 0; i++) {
        const lim_cuda_launch *l = &plan->launches[i];
        void                  *params[1] = {(void *)args[i]};
        result = cuLaunchKernel(plan->functions[i], l->grid[0], l->grid[1], l->grid[2], l->block, 1, 1, l->shared, stream, params, 0);
    }
    if (result == 0 && plan->tally_function != 0) {
        void *step[1] = {(void *)&plan->tally};
        result = cuLaunchKernel(plan->tally_function, 1, 1, 1, LIM_CUDA_TALLY_THREADS, 1, 1, 0, stream, step, 0);
    }
    return result;
}
