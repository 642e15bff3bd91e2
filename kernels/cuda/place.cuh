/* Where in the line of all units (split.h) a block of attention begins and ends. */
#ifndef LESSISMORE_CUDA_PLACE_CUH
#define LESSISMORE_CUDA_PLACE_CUH

#include "kernels.h"
#include "split.h"
#include "warp.cuh"

namespace lessismore {

/* What a row attends to in this call. */
__device__ __forceinline__ int RowTokens(const lim_cuda_call &call, int row) {
    const int n = __ldg((const int32_t *)call.lengths + row);
    return call.mode == LIM_CUDA_LIST ? min(n, call.budget) : n;
}

/* A block's place in the line of units: the row, KV head and unit that it begins with. Every warp finds it
 * by itself, from one read of the lengths where there are no more than 32 rows. */
struct Place {
    uint32_t total; /* units of the whole call */
    int32_t  row, head;
    int32_t  tokens; /* of the row */
    uint32_t unit;   /* inside the pair */
    uint32_t before; /* units before the pair */
};

/* The place of the block's first unit; begin and end of its stretch. Returns false if it has no work. */
static __device__ __noinline__ bool FindPlace(const lim_cuda_args &args, int lane, Place *p, uint32_t *begin, uint32_t *end) {
    const int rows = args.call.n_rows;
    const uint32_t kv_heads = (uint32_t)args.call.kv_heads;
    int       tokens = lane < rows ? RowTokens(args.call, lane) : 0;
    uint32_t  units = lane < rows ? SplitUnits(tokens, args.unit) * kv_heads : 0;
    uint32_t  sum = WarpScan(units, lane);
    uint32_t  total = __shfl_sync(kAll, sum, 31);
    if (rows > 32) {
        uint32_t more = 0;
#pragma unroll 1
        for (int r = 32 + lane; r < rows; r += 32) more += SplitUnits(RowTokens(args.call, r), args.unit) * kv_heads;
#pragma unroll
        for (int d = 16; d > 0; d /= 2) more += __shfl_xor_sync(kAll, more, d);
        total += more;
    }
    const uint32_t blocks = SplitBlocks(total, gridDim.x);
    if (blockIdx.x >= blocks) return false;
    const uint32_t at = SplitBegin(blockIdx.x, blocks, total);
    *begin = at;
    *end = SplitBegin(blockIdx.x + 1, blocks, total);
    uint32_t before = 0; /* units of the rows passed */
    for (int base = 0;;) {
        const uint32_t found = __ballot_sync(kAll, units > 0 && at < before + sum);
        if (found != 0) {
            const int      who = __ffs((int)found) - 1;
            const uint32_t first = before + __shfl_sync(kAll, sum - units, who);
            p->total = total;
            p->row = base + who;
            p->tokens = __shfl_sync(kAll, tokens, who);
            const uint32_t per_pair = SplitUnits(p->tokens, args.unit);
            p->head = (int32_t)((at - first) / per_pair);
            p->unit = (at - first) % per_pair;
            p->before = first + (uint32_t)p->head * per_pair;
            return true;
        }
        before += __shfl_sync(kAll, sum, 31);
        base += 32;
        tokens = base + lane < rows ? RowTokens(args.call, base + lane) : 0;
        units = base + lane < rows ? SplitUnits(tokens, args.unit) * kv_heads : 0;
        sum = WarpScan(units, lane);
    }
}

/* The blocks that share a pair of so many units. */
struct Span {
    uint32_t first, count;
};
__device__ __forceinline__ Span SpanOf(const Place &place, uint32_t units, uint32_t blocks) {
    const uint32_t first = SplitBlockOf(place.before, blocks, place.total);
    return {first, SplitBlockOf(place.before + units - 1, blocks, place.total) - first + 1};
}

/* The place if every row's list is as long as the budget, which takes no reading of lengths. */
__device__ __forceinline__ void GuessPlace(const lim_cuda_args &args, Place *p, uint32_t *begin, uint32_t *end) {
    const uint32_t per_pair = SplitUnits(args.call.budget, args.unit);
    p->total = (uint32_t)(args.call.n_rows * args.call.kv_heads) * per_pair;
    const uint32_t blocks = SplitBlocks(p->total, gridDim.x);
    *begin = SplitBegin(blockIdx.x, blocks, p->total);
    *end = SplitBegin(blockIdx.x + 1, blocks, p->total);
    const uint32_t pair = *begin / per_pair;
    p->unit = *begin - pair * per_pair;
    p->before = pair * per_pair;
    p->row = (int32_t)(pair / (uint32_t)args.call.kv_heads);
    p->head = (int32_t)(pair - (uint32_t)p->row * (uint32_t)args.call.kv_heads);
    p->tokens = args.call.budget;
}

__device__ __forceinline__ bool GuessHolds(const lim_cuda_args &args, int lane) {
    bool holds = true;
#pragma unroll 1
    for (int r = lane; r < args.call.n_rows; r += 32) holds &= __ldg((const int32_t *)args.call.lengths + r) >= args.call.budget;
    return __all_sync(kAll, holds);
}

}  // namespace lessismore

#endif
