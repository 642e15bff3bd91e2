#include "probe.h"

/* The driver's own declarations, by hand: this file is compiled where its headers are not. */
int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **params, void **extra);

int lim_cuda_run_probe(const lim_cuda_probe_plan *plan, void *stream) {
    int result = lim_cuda_run(&plan->attend, stream);
    if (result == 0) result = lim_cuda_run(&plan->select, stream);
    if (result != 0) return result;
    const lim_cuda_launch *l = &plan->launches[2];
    void                  *params[1] = {(void *)&plan->probe};
    return cuLaunchKernel(plan->function, l->grid[0], l->grid[1], l->grid[2], l->block, 1, 1, l->shared, stream, params, 0);
}
