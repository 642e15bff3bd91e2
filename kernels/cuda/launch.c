#include "launch.h"

#include "context.h"
#include "driver.h"

int lim_cuda_start(const lim_cuda_launch *l, void *function, void *stream, const void *args) {
    void *params[1] = {(void *)args};
    if (l->cluster == 0 && l->pdl == 0)
        return cuLaunchKernel(function, l->grid[0], l->grid[1], l->grid[2], l->block, 1, 1, l->shared, stream, params, 0);
    CUlaunchAttribute attributes[2] = {0};
    CUlaunchConfig    config = {.gridDimX = l->grid[0], .gridDimY = l->grid[1], .gridDimZ = l->grid[2], .blockDimX = l->block, .blockDimY = 1, .blockDimZ = 1, .sharedMemBytes = l->shared, .hStream = stream, .attrs = attributes};
    if (l->cluster != 0) {
        CUlaunchAttribute *a = &attributes[config.numAttrs++];
        a->id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        a->value.clusterDim.x = l->cluster;
        a->value.clusterDim.y = a->value.clusterDim.z = 1;
    }
    if (l->pdl != 0) {
        CUlaunchAttribute *a = &attributes[config.numAttrs++];
        a->id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        a->value.programmaticStreamSerializationAllowed = 1;
    }
    return cuLaunchKernelEx(&config, function, params, 0);
}

int lim_cuda_run(const lim_cuda_plan_t *plan, void *stream, void *attended) {
    int result = lim_cuda_enter(plan->context);
    /* A selection goes on beside what follows, for as long as a later layer is sure to be waited for. */
    const int last = plan->tally_function != 0 ? plan->count - 1 : 0;
    for (int i = 0; i < plan->count && result == 0; i++) {
        result = lim_cuda_start(&plan->launches[i], plan->functions[i], stream, &plan->args);
        if (i == last && attended != 0 && result == 0) result = cuEventRecord(attended, stream);
    }
    if (result == 0 && plan->tally_function != 0) {
        void *step[1] = {(void *)&plan->tally};
        result = cuLaunchKernel(plan->tally_function, 1, 1, 1, LIM_CUDA_TALLY_THREADS, 1, 1, 0, stream, step, 0);
    }
    return result;
}

int lim_cuda_start_join(void *function, void *context, const lim_cuda_join *join, void *stream) {
    void     *params[1] = {(void *)join};
    const int result = lim_cuda_enter(context);
    return result != 0 ? result : cuLaunchKernel(function, (uint32_t)join->call.n_rows, (uint32_t)join->groups, 1, LIM_CUDA_JOIN_THREADS, 1, 1, 0, stream, params, 0);
}
