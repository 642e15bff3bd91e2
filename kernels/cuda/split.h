/* How a call's tokens are shared out among thread blocks.
 *
 * A pair is one KV head of one row; its tokens are cut into units. All units of all pairs stand in one line
 * (rows, then KV heads, then tokens) and each block takes an equal stretch of it, so rows of any lengths
 * fill the chip evenly. A stretch may begin or end within a pair: such a piece leaves a partial result and
 * the last of the pair's blocks to arrive merges them. A stretch has at most two such pieces, its first and
 * its last, so the memory for partial results depends on the number of blocks only.
 *
 * All of it follows from lengths and grid alone: which block computes what, and in which order parts are
 * merged, is the same in every run. */
#ifndef LESSISMORE_CUDA_SPLIT_H
#define LESSISMORE_CUDA_SPLIT_H

#include "shared.h"

/* Units of a pair. A row that sees nothing still has one, to get its zeros written. */
LIM_SHARED uint32_t SplitUnits(int32_t tokens, uint32_t unit) {
    return tokens > 0 ? ((uint32_t)tokens + unit - 1) / unit : 1;
}

/* The blocks that have work: no more than units. */
LIM_SHARED uint32_t SplitBlocks(uint32_t total, uint32_t blocks) { return total < blocks ? total : blocks; }

/* The first unit of a block. The product must fit: see SplitUnit. */
LIM_SHARED uint32_t SplitBegin(uint32_t block, uint32_t blocks, uint32_t total) { return total * block / blocks; }

/* The block that computes a unit: the last one that begins at it or before. */
LIM_SHARED uint32_t SplitBlockOf(uint32_t at, uint32_t blocks, uint32_t total) { return ((at + 1) * blocks - 1) / total; }

/* Tokens in a unit such that (units + 1) * blocks fits 32 bits, whatever the lengths up to capacity. */
LIM_SHARED uint32_t SplitUnit(uint32_t least, uint32_t pairs, uint32_t capacity, uint32_t blocks) {
    uint32_t unit = least;
    while (((uint64_t)pairs * SplitUnits((int32_t)capacity, unit) + 1) * blocks > UINT32_MAX) unit *= 2;
    return unit;
}

/* Where a piece of a pair leaves its partial result: the first piece of a pair is the last of its block. */
LIM_SHARED uint32_t SplitPart(uint32_t block, int begins_pair) { return 2 * block + (begins_pair ? 1 : 0); }

#endif
