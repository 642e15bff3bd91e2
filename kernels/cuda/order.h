/* The order of logits and the search for a head's best, shared by device and host.
 *
 * An item is a logit's key and its position in one number: smaller is better, all items differ, and ties go
 * to the lower position. Larger logits come first, -0 equals +0, NaN is last. */
#ifndef LESSISMORE_CUDA_ORDER_H
#define LESSISMORE_CUDA_ORDER_H

#include "shared.h"

enum { ORDER_NONE = 0x7fffffff }; /* the bits of a logit that is not there: NaN */

LIM_SHARED uint32_t OrderKey(uint32_t bits) {
    if (bits == 0x80000000u) bits = 0;
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

/* The bits of a key's logit. */
LIM_SHARED uint32_t OrderBits(uint32_t key) { return key <= 0x7fffffffu ? 0x7fffffffu - key : key; }

LIM_SHARED uint64_t OrderItem(uint32_t bits, uint32_t position) { return (uint64_t)OrderKey(bits) << 32 | position; }

/* Where a head's logit of a token is, from the first one of its head. Attention leaves those of a KV head's query
 * heads together, 16 tokens of one after 16 of another: each block then writes one split of memory, which costs
 * much less than one for each head. Logits that are given are not interleaved: `together` is 1. */
LIM_SHARED uint32_t LogitAt(uint32_t token, uint32_t together) { return token / 16 * 16 * together + token % 16; }

/* And of the head's first one, from the row's. */
LIM_SHARED uint64_t LogitsOf(uint32_t head, uint32_t together, uint64_t stride) {
    return (uint64_t)(head / together * together) * stride + head % together * 16;
}

/* Elements from a head's ranking to the next one's: read four at a time. */
LIM_SHARED uint32_t RankStride(uint32_t top_k) { return (top_k + 3) / 4 * 4; }

/* How far each head is ranked at first. With many heads the merge, one rank of all heads after the other, fills the set before
 * half of it has come from each, unless they hardly differ. */
LIM_SHARED uint32_t RanksNeeded(uint32_t heads, uint32_t top_k) { return heads >= 16 ? (top_k + 1) / 2 : top_k; }

/* Finding a bound such that at least `want` and at most `room` items are not above it. Counting is the
 * caller's; it tells the search what a bound let through until that fits. */
typedef struct BoundSearch {
    uint64_t low, high; /* `low` lets too few through, `high` too many (once they have been tried) */
    uint64_t step;
    int32_t  has_low, has_high;
} BoundSearch;

LIM_SHARED void BoundBegin(BoundSearch *s) {
    s->low = 0;
    s->high = UINT64_MAX;
    s->step = (uint64_t)1 << 51; /* 2^19 keys: a sixteenth of a logit's value at least */
    s->has_low = s->has_high = 0;
}

/* The next bound to try after `bound` let `count` through; the same bound if it fits. */
LIM_SHARED uint64_t BoundNext(BoundSearch *s, uint64_t bound, uint32_t count, uint32_t want, uint32_t room) {
    if (count >= want && count <= room) return bound;
    if (count < want) {
        s->low = bound;
        s->has_low = 1;
    } else {
        s->high = bound;
        s->has_high = 1;
    }
    /* Walk away in growing steps until the answer is bracketed, then halve the bracket. */
    if (!s->has_high) {
        const uint64_t next = bound > UINT64_MAX - s->step ? UINT64_MAX : bound + s->step;
        s->step *= 2;
        return next;
    }
    if (!s->has_low) {
        const uint64_t next = bound < s->step ? 0 : bound - s->step;
        if (s->step < (uint64_t)1 << 62) s->step *= 2;
        return next;
    }
    const uint64_t middle = s->low + (s->high - s->low) / 2;
    /* Whole keys as long as there are several: only equal logits need a bound between positions. */
    return (s->high >> 32) - (s->low >> 32) > 1 ? middle | UINT32_MAX : middle;
}

/* The place in a sorted sample of a bound that should let through about twice `want`, or more where a sample stands for many,
 * and at the most what is far from `want` and from `room`. */
LIM_SHARED uint32_t SampleRank(uint32_t samples, uint32_t count, uint32_t want, uint32_t room) {
    const uint32_t most = want + (room - want) / 2 < room * 5 / 8 ? room * 5 / 8 : want + (room - want) / 2;
    const uint32_t aim = 2 * want + count / 256 < most ? 2 * want + count / 256 : most;
    const uint64_t at = (uint64_t)aim * samples / count;
    return at < samples ? (uint32_t)at : samples - 1;
}

/* The i-th sampled position of `count`. */
LIM_SHARED uint32_t SampleAt(uint32_t i, uint32_t samples, uint32_t count) {
    return (uint32_t)(((uint64_t)i * count + count / 2) / samples);
}

#endif
