/* The logit filter: which logits a selection layer's attention keeps.
 *
 * Writing all of them costs a seventh of the attention's time, and only the best of each head matter. So where a block has
 * a long split of a row, it looks at a sample of the split's tiles first, sets each head a bound, and from then on keeps
 * the logits that reach it, with their tokens, in a list for each head and block. All that are at least the highest
 * bound of a head's lists are then known. If they are too few, which takes both a misleading sample and nearly all of the
 * head's best in one block's split, the selection computes that head's logits once more. */
#ifndef LESSISMORE_CUDA_LOGIT_FILTER_H
#define LESSISMORE_CUDA_LOGIT_FILTER_H

#include "shared.h"

enum {
    LIM_CUDA_FILTER_LISTS = 32,     /* lists of a head: each block leaves two */
    LIM_CUDA_FILTER_SAMPLES = 3072, /* logits that a block samples, of all heads of the group */
};

/* A list of survivors that a block leaves of a head: uint2 (the logit's bits, the token) from element `begin` of the head's
 * room on. */
typedef struct lim_cuda_survivors {
    uint32_t begin;
    uint32_t count;
    float    bound; /* all logits of the block's split that reach it are in its lists */
    uint32_t lists; /* of the row and head; 0: all logits are stored */
} lim_cuda_survivors;

/* Tiles of 16 tokens that each of the block's warps samples. */
LIM_SHARED uint32_t FilterTiles(uint32_t group, uint32_t warps) { return LIM_CUDA_FILTER_SAMPLES / (group <= 4 ? 4 : 8) / 16 / warps; }

/* How many a block should keep: twice the ranks that are needed, in case it has all of a head's best. In a long split
 * more, so that many samples are above the bound. */
LIM_SHARED uint32_t FilterAim(uint32_t need, uint32_t split) { return 2 * need > split / 8 ? 2 * need : split / 8; }

/* A search for a bound among keys (order.h), by halves of their range, 16 times: wherever that lies, it is found to the same
 * small part of it. */
typedef struct FilterSearch {
    uint32_t lowest, range; /* of the keys */
    uint32_t at;            /* above the lowest: the most that is known to have fewer than the rank's keys below it */
    uint32_t bit, last;     /* the next to be tried, 0: none; the last one */
} FilterSearch;

LIM_SHARED FilterSearch FilterSearchFrom(uint32_t lowest, uint32_t highest) {
    FilterSearch s = {lowest, highest - lowest, 0, 0, 1};
    uint32_t     rest = s.range;
    if (rest != 0) s.bit = 1;
    while (rest >>= 1) s.bit <<= 1;
    if (s.bit >> 15 > 0) s.last = s.bit >> 15;
    return s;
}

/* What to count the keys below of. */
LIM_SHARED uint32_t FilterSearchTry(const FilterSearch *s) {
    const uint32_t at = s->at | s->bit;
    return at <= s->range ? s->lowest + at : UINT32_MAX;
}

LIM_SHARED void FilterSearchNext(FilterSearch *s, int fewer_than_rank) {
    if (fewer_than_rank) s->at |= s->bit;
    s->bit = s->bit > s->last ? s->bit >> 1 : 0;
}

/* The highest key that the search does not tell from the rank's own. */
LIM_SHARED uint32_t FilterSearchEnd(const FilterSearch *s) {
    const uint32_t at = s->at | (s->last - 1);
    return s->lowest + (at < s->range ? at : s->range);
}

/* The shortest split that is worth it. */
LIM_SHARED uint32_t FilterLeast(uint32_t need, uint32_t group, uint32_t warps) {
    const uint32_t sampled = 4 * FilterTiles(group, warps) * warps * 16;
    return 8 * need > sampled ? 8 * need : sampled;
}

/* The order of a warp's tiles: every step-th first, `tiles` of them, then the others; all in turn where that is none. */
typedef struct TileOrder {
    int32_t token; /* the next tile's first */
    int32_t left;  /* sampled tiles to come; then those to pass over */
    int32_t until; /* tiles until the next that is passed over */
    int32_t rest;  /* whether the sample is behind */
} TileOrder;

LIM_SHARED TileOrder TileOrderFrom(int32_t first, int32_t tiles) {
    TileOrder o = {first, tiles, 0, tiles == 0};
    return o;
}

/* `turn` tokens lie between a tile and the warp's next; step is at least 2, and tiles * step no more than the warp has. */
LIM_SHARED void TileOrderNext(TileOrder *o, int32_t first, int32_t turn, int32_t step, int32_t tiles) {
    if (o->rest) {
        o->token += turn;
        if (o->left > 0 && --o->until == 0) {
            o->token += turn;
            o->left--;
            o->until = step - 1;
        }
    } else if (--o->left > 0) {
        o->token += step * turn;
    } else { /* the first tile is behind already */
        o->rest = 1;
        o->left = tiles - 1;
        o->until = step - 1;
        o->token = first + turn;
    }
}

/* Which of the warp's tiles comes as the i-th. */
LIM_SHARED int32_t TileOrderAt(int32_t i, int32_t step, int32_t tiles) {
    const int32_t rest = i - tiles;
    if (tiles == 0) return i;
    if (rest < 0) return i * step;
    return rest < tiles * (step - 1) ? rest / (step - 1) * step + 1 + rest % (step - 1) : rest + tiles;
}

#endif
