/* What the kernels and the plan of a call (plan.c) agree on: threads, tiles, what lies in shared and in work memory.
 * Macros where the kernels need a constant of the compiler. */
#ifndef LESSISMORE_CUDA_LAYOUT_H
#define LESSISMORE_CUDA_LAYOUT_H

#include "shared.h"

enum {
    LIM_CUDA_TILE = 16,         /* tokens of a tile */
    LIM_CUDA_WARPS = 4,         /* of an attention block */
    LIM_CUDA_SHORT_WARPS = 8,   /* of one that has a multiprocessor for itself: a short split's tiles then all run side by side */
    LIM_CUDA_MOST_STAGES = 6,   /* of a warp's pipeline */
    LIM_CUDA_MOST_CLUSTER = 8,  /* blocks of a cluster */
    LIM_CUDA_MOST_RESIDENT = 4, /* blocks on a multiprocessor, of any kernel: see LIM_CUDA_MOST_BLOCKS */
    LIM_CUDA_SELECT_THREADS = 512,
    LIM_CUDA_BUCKETS = 2048,    /* by which the selection brings candidates into order */
    LIM_CUDA_PROBE_THREADS = 256,
    LIM_CUDA_MOST_STRIDE = 1 << 24, /* from token to token, of packed types: multiplied in 32 bits */
};

/* Blocks on a multiprocessor: as many as the registers allow without spills. Whole rows of packed types (q8_0, q4_0) have more
 * to compute for the bytes that they read. */
#define LIM_CUDA_MOST_BLOCKS(packed, dim, heads) ((dim) > 128 || (heads) > 8 ? 2 : (packed) && (dim) == 128 ? 4 \
                                                                                                            : 3)

/* Bytes from row to row in shared memory. 16 more than a row, so that the eight rows of a matrix lie in different banks. Packed
 * ones, which are not read as matrices, lie at odd multiples of 16: see packed.cuh. */
#define LIM_CUDA_PITCH(row_bytes)        ((row_bytes) + 16)
#define LIM_CUDA_PACKED_PITCH(row_bytes) (((row_bytes) + 15) / 32 * 32 + 16)
#define LIM_CUDA_QUERY_PITCH(dim)        LIM_CUDA_PITCH((dim) * 2)
/* TMA's tiles, which lie behind the query, begin at multiples of 1,024 bytes. */
#define LIM_CUDA_TMA_QUERY_BYTES(dim) ((8 * LIM_CUDA_QUERY_PITCH(dim) + 1023) / 1024 * 1024)

/* A warp's part of shared memory: its stages, and in the end its values in f32, whose rows are 16 bytes further apart. */
LIM_SHARED uint32_t WarpBytesOf(uint32_t stages_bytes, uint32_t heads, uint32_t dim) {
    const uint32_t values = heads * (dim + 4) * 4;
    return stages_bytes > values ? stages_bytes : values;
}

/* A cluster's blocks finish equal numbers of its fours of elements, and store to each other what the other needs: for each
 * four float4 [cluster], values, and float2 [cluster], row_max and row_sum. */
LIM_SHARED uint32_t DsmemFours(uint32_t group, uint32_t dim, uint32_t cluster) { return (group * (dim / 4) + cluster - 1) / cluster; }
LIM_SHARED uint32_t DsmemBytes(uint32_t fours, uint32_t cluster) { return (fours * cluster * 24 + 127) / 128 * 128; }

/* Room for a row's logits in the pool that rows share (room.cuh), in so many tokens; the rooms of a row. */
enum { LIM_CUDA_ROOM = 32 };
LIM_SHARED uint32_t RoomsOf(int32_t tokens) { return ((uint32_t)tokens + LIM_CUDA_ROOM - 1) / LIM_CUDA_ROOM; }

/* The pool in tokens, for up to `rows` that see more than the budget each, and kv_tokens together: each has whole rooms. */
LIM_SHARED int64_t PoolTokens(int64_t kv_tokens, int32_t rows, int32_t budget) {
    const int64_t most = kv_tokens / budget;
    return kv_tokens + LIM_CUDA_ROOM * (most < rows ? most : rows);
}
/* A row's ranking by the rooms before it: each row before it took more of the pool than the budget, so that there are at least
 * as many budgets before it as rows; nor are there more rows than its number. Rankings of the pool. */
LIM_SHARED int64_t RankingAfter(uint32_t rooms, int32_t row, int32_t budget) {
    const int64_t budgets = (int64_t)rooms * LIM_CUDA_ROOM / budget;
    return budgets < row ? budgets : row;
}
LIM_SHARED int64_t PoolRankings(int64_t kv_tokens, int32_t rows, int32_t budget) {
    const int64_t budgets = PoolTokens(kv_tokens, rows, budget) / budget;
    return budgets < rows ? budgets : rows;
}

/* Of the rows above the budget: the rooms of those before one, and what all see together. */
typedef struct PoolUse {
    uint32_t before;
    uint64_t tokens;
} PoolUse;
LIM_SHARED void PoolAdd(PoolUse *use, int32_t tokens, int32_t budget, int before) {
    if (tokens <= budget) return;
    use->tokens += (uint64_t)tokens;
    if (before) use->before += RoomsOf(tokens);
}

/* Floats of a split's partial result: [group][dim] values, then [group] row_max, [group] row_sum. */
LIM_SHARED uint32_t PartFloats(uint32_t group, uint32_t dim) { return (group * (dim + 2) + 3) / 4 * 4; }

/* Shared memory of the selection. A ranking: items of 8 bytes; with `copy` (rooms of up to LIM_CUDA_MAX_RANKED) sorted ones
 * of 8 bytes and places of one, else positions of 4 bytes; buckets. A merging: a list and a bit for each token. */
LIM_SHARED uint32_t RankingBytes(uint32_t room, int copy) { return room * (copy ? 17 : 12) + (LIM_CUDA_BUCKETS + 4) * 4; }
LIM_SHARED uint32_t MergingList(uint32_t top_k, uint32_t heads) { return ((top_k > heads ? top_k : heads) + 3) / 4 * 4; }
LIM_SHARED uint32_t MergingBytes(uint32_t top_k, uint32_t heads, uint32_t tokens) {
    return MergingList(top_k, heads) * 4 + (tokens + 127) / 128 * 16;
}

#endif
