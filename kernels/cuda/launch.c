#include "launch.h"

/* The driver's own declarations, by hand: this file is compiled where its headers are not. */
int cuCtxGetCurrent(void **context);
int cuCtxSetCurrent(void *context);
int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **params, void **extra);

enum { CLUSTER_DIMENSION = 4, PROGRAMMATIC_STREAM_SERIALIZATION = 6 };
typedef struct launch_attribute {
    int id, pad;
    union {
        unsigned value[16];
        void    *aligned;
    };
} launch_attribute;
typedef struct launch_config {
    unsigned          grid[3], block[3], shared;
    void             *stream;
    launch_attribute *attributes;
    unsigned          count;
} launch_config;
int cuLaunchKernelEx(const launch_config *config, void *function, void **params, void **extra);

int lim_cuda_enter(void *context) {
    void *current = 0;
    int   result = cuCtxGetCurrent(&current);
    return result == 0 && current == 0 ? cuCtxSetCurrent(context) : result;
}

int lim_cuda_start(const lim_cuda_launch *l, void *function, void *stream, const void *args) {
    void *params[1] = {(void *)args};
    if (l->cluster == 0 && l->pdl == 0)
        return cuLaunchKernel(function, l->grid[0], l->grid[1], l->grid[2], l->block, 1, 1, l->shared, stream, params, 0);
    launch_attribute attributes[2] = {0};
    launch_config    config = {{l->grid[0], l->grid[1], l->grid[2]}, {l->block, 1, 1}, l->shared, stream, attributes, 0};
    if (l->cluster != 0) {
        launch_attribute *a = &attributes[config.count++];
        a->id = CLUSTER_DIMENSION;
        a->value[0] = l->cluster;
        a->value[1] = a->value[2] = 1;
    }
    if (l->pdl != 0) {
        launch_attribute *a = &attributes[config.count++];
        a->id = PROGRAMMATIC_STREAM_SERIALIZATION;
        a->value[0] = 1;
    }
    return cuLaunchKernelEx(&config, function, params, 0);
}

int lim_cuda_run(const lim_cuda_plan_t *plan, void *stream) {
    int result = lim_cuda_enter(plan->context);
    for (int i = 0; i < plan->count && result == 0; i++)
        result = lim_cuda_start(&plan->launches[i], plan->functions[i], stream, &plan->args);
    if (result == 0 && plan->tally_function != 0) {
        void *step[1] = {(void *)&plan->tally};
        result = cuLaunchKernel(plan->tally_function, 1, 1, 1, LIM_CUDA_TALLY_THREADS, 1, 1, 0, stream, step, 0);
    }
    return result;
}
