/* What a step attended to, counted on the device: lengths are known there only, and a captured step counts
 * each time it is replayed. */
#ifndef LESSISMORE_KERNELS_CUDA_TALLY_H
#define LESSISMORE_KERNELS_CUDA_TALLY_H

#include <stdint.h>

/* uint64 each, in this order; tokens are counted per row and layer. */
enum {
    LIM_CUDA_STEPS,
    LIM_CUDA_ROWS,
    LIM_CUDA_ROWS_SPARSE, /* with more visible tokens than the budget */
    LIM_CUDA_TOKENS_VISIBLE,
    LIM_CUDA_TOKENS_ATTENDED,
    LIM_CUDA_SPARSE_TOKENS_VISIBLE, /* in the layers that should attend to a token set */
    LIM_CUDA_SPARSE_TOKENS_ATTENDED,
    LIM_CUDA_DENSE_CALLS, /* layers, by what they did */
    LIM_CUDA_SELECT_CALLS,
    LIM_CUDA_SPARSE_CALLS,
    LIM_CUDA_NO_SET_CALLS, /* of dense_calls: should have been sparse, with a row above the budget */
    LIM_CUDA_REUSED_STEPS, /* with the token sets of the step before */
    LIM_CUDA_COUNTERS,
};

/* A finished step. */
typedef struct lim_cuda_tally {
    uint64_t lengths;  /* int32 [n_rows] */
    uint64_t counters; /* uint64 [LIM_CUDA_COUNTERS], added to */
    uint64_t kept;     /* int32 [2 + n_rows]: n_rows, tokens of a set (0: there are none), lengths */
    uint64_t no_sets;  /* uint32, 1: the sparse layers were dense (lim_cuda_no_sets); 0: none */
    int32_t  n_rows, budget; /* budget: tokens of a set */
    int32_t  dense, select, sparse, no_set; /* its layers, by what they did; dense counts no_set's too */
    int32_t  reused, reserved;              /* 1: with the token sets of the step before */
} lim_cuda_tally;

#define LIM_CUDA_TALLY "lim_tally"
enum { LIM_CUDA_TALLY_THREADS = 128 };

#endif
