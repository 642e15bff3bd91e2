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
    LIM_CUDA_SELECT_THREADS = 512,
    LIM_CUDA_BUCKETS = 2048,    /* by which the selection brings candidates into order */
    LIM_CUDA_PROBE_THREADS = 256,
};

/* Blocks on a multiprocessor: three where the registers allow it without spills, else two. */
#define LIM_CUDA_MOST_BLOCKS(converts, dim, heads) ((converts) || (dim) > 128 || (heads) > 8 ? 2 : 3)

/* Bytes from row to row in shared memory. 16 more than a row, so that the eight rows of a matrix lie in different banks; not
 * in q8_0, which is not read as matrices. */
#define LIM_CUDA_PITCH(row_bytes) ((row_bytes) + 16)
#define LIM_CUDA_QUERY_PITCH(dim) LIM_CUDA_PITCH((dim) * 2)
/* TMA's tiles, which lie behind the query, begin at multiples of 1,024 bytes. */
#define LIM_CUDA_TMA_QUERY_BYTES(dim) ((8 * LIM_CUDA_QUERY_PITCH(dim) + 1023) / 1024 * 1024)

/* A cluster's blocks finish equal numbers of its fours of elements, and store to each other what the other needs: for each
 * four float4 [cluster], values, and float2 [cluster], row_max and row_sum. */
LIM_SHARED uint32_t DsmemFours(uint32_t group, uint32_t dim, uint32_t cluster) { return (group * (dim / 4) + cluster - 1) / cluster; }
LIM_SHARED uint32_t DsmemBytes(uint32_t fours, uint32_t cluster) { return (fours * cluster * 24 + 127) / 128 * 128; }

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
