#include "probe.h"

int lim_cuda_run_probe(const lim_cuda_probe_plan *plan, void *stream, void *attended) {
    int result = lim_cuda_run(&plan->attend, stream, attended);
    if (result == 0) result = lim_cuda_run(&plan->select, stream, 0);
    return result == 0 ? lim_cuda_start(&plan->launches[2], plan->function, stream, &plan->probe) : result;
}
