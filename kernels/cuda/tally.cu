/* Counts a step; see tally.h. One block, once per step. */
#include "tally.h"

extern "C" __global__ void __launch_bounds__(LIM_CUDA_TALLY_THREADS) lim_tally(const __grid_constant__ lim_cuda_tally step) {
    const int32_t *lengths = (const int32_t *)step.lengths;
    int32_t       *kept = (int32_t *)step.kept;
    uint32_t       sparse = 0;
    uint64_t       visible = 0, held = 0; /* tokens of all rows; of their sets */
    for (int row = (int)threadIdx.x; row < step.n_rows; row += (int)blockDim.x) {
        const int n = lengths[row];
        kept[2 + row] = n;
        if (n <= 0) continue;
        visible += (uint64_t)n;
        held += (uint64_t)min(n, step.budget);
        sparse += n > step.budget;
    }
    for (int d = 16; d > 0; d /= 2) {
        visible += __shfl_xor_sync(0xffffffffu, visible, d);
        held += __shfl_xor_sync(0xffffffffu, held, d);
        sparse += __shfl_xor_sync(0xffffffffu, sparse, d);
    }
    __shared__ uint64_t sums[3];
    if (threadIdx.x < 3) sums[threadIdx.x] = 0;
    __syncthreads();
    if ((threadIdx.x & 31) == 0) {
        atomicAdd((unsigned long long *)&sums[0], visible);
        atomicAdd((unsigned long long *)&sums[1], held);
        atomicAdd((unsigned long long *)&sums[2], sparse);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    kept[0] = step.n_rows;
    const bool    chosen = step.select > 0 || step.reused != 0;
    const bool    without = chosen && step.no_sets != 0 && *(const uint32_t *)step.no_sets != 0;
    const int32_t sparse_layers = without ? 0 : step.sparse, no_set = step.no_set + (without ? step.sparse : 0);
    const int32_t dense = step.dense + (without ? step.sparse : 0);
    kept[1] = chosen && !without ? step.budget : 0;
    /* One step of a batch at a time: nobody else adds. */
    uint64_t *c = (uint64_t *)step.counters;
    c[LIM_CUDA_STEPS] += 1;
    c[LIM_CUDA_ROWS] += (uint64_t)step.n_rows;
    c[LIM_CUDA_ROWS_SPARSE] += sums[2];
    c[LIM_CUDA_TOKENS_VISIBLE] += sums[0] * (uint64_t)(dense + step.select + sparse_layers);
    c[LIM_CUDA_TOKENS_ATTENDED] += sums[0] * (uint64_t)(dense + step.select) + sums[1] * (uint64_t)sparse_layers;
    c[LIM_CUDA_SPARSE_TOKENS_VISIBLE] += sums[0] * (uint64_t)(sparse_layers + no_set);
    c[LIM_CUDA_SPARSE_TOKENS_ATTENDED] += sums[1] * (uint64_t)sparse_layers + sums[0] * (uint64_t)no_set;
    c[LIM_CUDA_DENSE_CALLS] += (uint64_t)dense;
    c[LIM_CUDA_SELECT_CALLS] += (uint64_t)step.select;
    c[LIM_CUDA_SPARSE_CALLS] += (uint64_t)sparse_layers;
    c[LIM_CUDA_NO_SET_CALLS] += sums[2] > 0 ? (uint64_t)no_set : 0;
    c[LIM_CUDA_REUSED_STEPS] += step.reused != 0 && !without;
}
