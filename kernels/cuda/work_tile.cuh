/* Where in the line of all chunks (split.h) a block of attention begins and ends. */
#ifndef LESSISMORE_CUDA_WORK_TILE_CUH
#define LESSISMORE_CUDA_WORK_TILE_CUH

#include "kernels.h"
#include "room.cuh"
#include "split.h"
#include "warp.cuh"

namespace lessismore {

/* What a row attends to in this call. */
__device__ __forceinline__ int RowTokens(const lim_cuda_args &args, int row) {
    const int n = __ldg((const int32_t *)args.call.lengths + row);
    return HasSets(args) ? min(n, args.call.budget) : n;
}

/* A block's work tile in the line of chunks: the row and KV head, and the chunk that it begins with. Every warp finds it
 * by itself, from one read of the lengths where there are no more than 32 rows. */
struct WorkTile {
    uint32_t total; /* chunks of the whole call */
    int32_t  row, head;
    int32_t  tokens; /* of the row */
    uint32_t chunk;  /* the block's first one, inside the work tile */
    uint32_t before; /* chunks before the work tile */
};

/* The work tile of the block's first chunk; begin and end of its share. Returns false if it has no work. */
static __device__ __noinline__ bool FindWork(const lim_cuda_args &args, int lane, WorkTile *p, uint32_t *begin, uint32_t *end) {
    const int      rows = args.call.n_rows;
    const uint32_t kv_heads = (uint32_t)args.call.kv_heads;
    int            tokens = lane < rows ? RowTokens(args, lane) : 0;
    uint32_t       chunks = lane < rows ? SplitChunks(tokens, args.chunk_tokens) * kv_heads : 0;
    uint32_t       sum = WarpScan(chunks, lane);
    uint32_t       total = __shfl_sync(kAll, sum, 31);
    if (rows > 32) {
        uint32_t more = 0;
#pragma unroll 1
        for (int r = 32 + lane; r < rows; r += 32) more += SplitChunks(RowTokens(args, r), args.chunk_tokens) * kv_heads;
#pragma unroll
        for (int d = 16; d > 0; d /= 2) more += __shfl_xor_sync(kAll, more, d);
        total += more;
    }
    const uint32_t blocks = SplitBlocks(total, gridDim.x);
    if (blockIdx.x >= blocks) return false;
    const uint32_t at = SplitBegin(blockIdx.x, blocks, total);
    *begin = at;
    *end = SplitBegin(blockIdx.x + 1, blocks, total);
    uint32_t before = 0; /* chunks of the rows passed */
    for (int base = 0;;) {
        const uint32_t found = __ballot_sync(kAll, chunks > 0 && at < before + sum);
        if (found != 0) {
            const int      who = __ffs((int)found) - 1;
            const uint32_t first = before + __shfl_sync(kAll, sum - chunks, who);
            p->total = total;
            p->row = base + who;
            p->tokens = __shfl_sync(kAll, tokens, who);
            const uint32_t per_tile = SplitChunks(p->tokens, args.chunk_tokens);
            p->head = (int32_t)((at - first) / per_tile);
            p->chunk = (at - first) % per_tile;
            p->before = first + (uint32_t)p->head * per_tile;
            return true;
        }
        before += __shfl_sync(kAll, sum, 31);
        base += 32;
        tokens = base + lane < rows ? RowTokens(args, base + lane) : 0;
        chunks = base + lane < rows ? SplitChunks(tokens, args.chunk_tokens) * kv_heads : 0;
        sum = WarpScan(chunks, lane);
    }
}

/* The blocks that share a work tile of so many chunks. */
struct Span {
    uint32_t first, count;
};
__device__ __forceinline__ Span SpanOf(const WorkTile &work, uint32_t chunks, uint32_t blocks) {
    const uint32_t first = SplitBlockOf(work.before, blocks, work.total);
    return {first, SplitBlockOf(work.before + chunks - 1, blocks, work.total) - first + 1};
}

/* The work tile if every row's list is as long as the budget, which takes no reading of lengths. */
__device__ __forceinline__ void GuessWork(const lim_cuda_args &args, WorkTile *p, uint32_t *begin, uint32_t *end) {
    const uint32_t per_tile = SplitChunks(args.call.budget, args.chunk_tokens);
    p->total = (uint32_t)(args.call.n_rows * args.call.kv_heads) * per_tile;
    const uint32_t blocks = SplitBlocks(p->total, gridDim.x);
    *begin = SplitBegin(blockIdx.x, blocks, p->total);
    *end = SplitBegin(blockIdx.x + 1, blocks, p->total);
    const uint32_t tile = *begin / per_tile;
    p->chunk = *begin - tile * per_tile;
    p->before = tile * per_tile;
    p->row = (int32_t)(tile / (uint32_t)args.call.kv_heads);
    p->head = (int32_t)(tile - (uint32_t)p->row * (uint32_t)args.call.kv_heads);
    p->tokens = args.call.budget;
}

__device__ __forceinline__ bool GuessedRight(const lim_cuda_args &args, int lane) {
    bool holds = HasSets(args);
#pragma unroll 1
    for (int r = lane; r < args.call.n_rows; r += 32) holds &= __ldg((const int32_t *)args.call.lengths + r) >= args.call.budget;
    return __all_sync(kAll, holds);
}

}  // namespace lessismore

#endif
