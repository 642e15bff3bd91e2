/* How a call's tokens are shared out among thread blocks (split-KV).
 *
 * A work tile is one KV head of one row; its tokens are cut into KV chunks. All chunks of all work tiles stand in one line
 * (rows, then KV heads, then tokens) and each block takes an equal share of it, so rows of any lengths fill the chip
 * evenly. What a block has of one work tile is a split. One that is not the whole work tile leaves a partial result, and
 * the last of the work tile's blocks to arrive merges them. A block has at most two such splits, its first and its last,
 * so the memory for partial results depends on the number of blocks only.
 *
 * All of it follows from lengths and grid alone: which block computes what, and in which order parts are merged, is the
 * same in every run. */
#ifndef LESSISMORE_CUDA_SPLIT_H
#define LESSISMORE_CUDA_SPLIT_H

#include "shared.h"

/* Chunks of a work tile. A row that sees nothing still has one, to get its zeros written. */
LIM_SHARED uint32_t SplitChunks(int32_t tokens, uint32_t chunk_tokens) {
    return tokens > 0 ? ((uint32_t)tokens + chunk_tokens - 1) / chunk_tokens : 1;
}

/* The blocks that have work: no more than chunks. */
LIM_SHARED uint32_t SplitBlocks(uint32_t total, uint32_t blocks) { return total < blocks ? total : blocks; }

/* The first chunk of a block. The product must fit: see SplitChunkTokens. */
LIM_SHARED uint32_t SplitBegin(uint32_t block, uint32_t blocks, uint32_t total) { return total * block / blocks; }

/* The block that computes a chunk: the last one that begins at it or before. */
LIM_SHARED uint32_t SplitBlockOf(uint32_t at, uint32_t blocks, uint32_t total) { return ((at + 1) * blocks - 1) / total; }

/* Tokens in a chunk such that (chunks + 1) * blocks fits 32 bits, whatever the lengths up to capacity. */
LIM_SHARED uint32_t SplitChunkTokens(uint32_t least, uint32_t work_tiles, uint32_t capacity, uint32_t blocks) {
    uint32_t chunk_tokens = least;
    while (((uint64_t)work_tiles * SplitChunks((int32_t)capacity, chunk_tokens) + 1) * blocks > UINT32_MAX) chunk_tokens *= 2;
    return chunk_tokens;
}

/* Where a split leaves its partial result: the first split of a work tile is the last of its block. */
LIM_SHARED uint32_t SplitPart(uint32_t block, int begins_tile) { return 2 * block + (begins_tile ? 1 : 0); }

#endif
