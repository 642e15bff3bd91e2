/* Launching a planned call: one crossing from Go per layer. */
#ifndef LESSISMORE_CUDA_LAUNCH_H
#define LESSISMORE_CUDA_LAUNCH_H

#include "join.h"
#include "kernels.h"
#include "tally.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A call that is ready to run, any number of times and under stream capture. It belongs to the device whose
 * functions and context it names. */
typedef struct lim_cuda_plan_t {
    lim_cuda_args   args;
    lim_cuda_launch launches[2];
    void           *functions[2]; /* CUfunction */
    void           *context;      /* CUcontext, made current on threads that have none */
    int32_t         count;
    int32_t         reserved;
    lim_cuda_tally  tally;
    void           *tally_function; /* CUfunction, launched after the others; 0: nothing is counted */
} lim_cuda_plan_t;

/* Queues one kernel that gets `args`. Returns a CUresult. */
int lim_cuda_start(const lim_cuda_launch *launch, void *function, void *stream, const void *args);

/* Queues the plan's kernels on the stream. Nothing is allocated, copied or waited for. `attended`: an event (CUevent) that is recorded
 * once the output is there and the query is not read any more, before a selection that is not the step's last; 0: none. Returns a CUresult. */
int lim_cuda_run(const lim_cuda_plan_t *plan, void *stream, void *attended);

/* Queues a join. Returns a CUresult. */
int lim_cuda_start_join(void *function, void *context, const lim_cuda_join *join, void *stream);

#ifdef __cplusplus
}
#endif
#endif
