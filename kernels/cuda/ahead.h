/* What a layer's token sets name, brought into the second-level cache while the host computes what comes before that layer: its
 * matrix products leave most of the memory's bandwidth free, and a short list is all latency. Values do not depend on it. */
#ifndef LESSISMORE_CUDA_AHEAD_H
#define LESSISMORE_CUDA_AHEAD_H

#include "kernels.h"

/* The kernel gets a lim_cuda_call in SPARSE mode, whose sets have been chosen. */
#define LIM_CUDA_AHEAD "lim_ahead"
enum {
    LIM_CUDA_AHEAD_THREADS = 256,
    LIM_CUDA_AHEAD_BLOCKS = 16, /* of a row: few, for they run beside the host's */
    LIM_CUDA_AHEAD_LINE = 128,  /* bytes of a line of the cache */
};

#endif
