/* Going on with the token sets of the step before: each row's new token joins its sets.
 *
 * The host knows how many steps the sets have served, but not what the rows see now, nor whether a captured step was replayed
 * in between. So the device looks: where a row does not see just one token more than in the last finished step, or that step's
 * sets are not the ones that the host goes on with, no row has a set, and the sparse layers attend to everything until sets are
 * chosen again. Slots are looked up by position once more: the host may have moved its pages. */
#ifndef LESSISMORE_CUDA_JOIN_H
#define LESSISMORE_CUDA_JOIN_H

#include "kernels.h"

typedef struct lim_cuda_join {
    lim_cuda_call call;    /* rows, lengths and table; the first group's sets and positions; budget: tokens of a set, the new one included */
    uint64_t      kept;         /* lim_cuda_tally's, of the last finished step */
    uint64_t      no_sets;      /* lim_cuda_no_sets */
    int64_t       group_stride; /* elements from a group of sets to the next one's: each selection layer's are a group */
    int32_t       groups, reserved;
} lim_cuda_join;

#define LIM_CUDA_JOIN "lim_join"
enum { LIM_CUDA_JOIN_THREADS = 256 };

#endif
