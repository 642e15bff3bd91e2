/* From masks to what the kernels read: a host that hides tokens by a mask in device memory has each row's length
 * and slots made there, without a copy to the host. What a lane and a warp do is shared with the host's tests. */
#ifndef LESSISMORE_CUDA_VISIBLE_H
#define LESSISMORE_CUDA_VISIBLE_H

#include "shared.h"

enum {
    LIM_CUDA_VISIBLE_WARPS = 32, /* of a block */
    LIM_CUDA_VISIBLE_LANE = 8,  /* slots of a lane: one load of 16 bytes */
    LIM_CUDA_VISIBLE_STEP = 32 * LIM_CUDA_VISIBLE_LANE, /* of a warp */
};

#define LIM_CUDA_VISIBLE "lim_visible"

/* The masks of rows of a batch, which are the tokens of one stream after those of another. Slots are numbered through a store of
 * several streams, of which each row sees one. */
typedef struct lim_cuda_visible {
    uint64_t mask;         /* f16 [streams][tokens][n_slots]: -inf hides a slot, 0 shows it; 16-byte aligned */
    int64_t  token_stride, stream_stride; /* of the mask, in bytes, multiples of 16 */
    uint64_t lengths;      /* out: int32 [n_rows] */
    uint64_t table;        /* out: int32 [n_rows][table_stride], the slots that a row sees, ascending; 0: not wanted */
    int64_t  table_stride; /* elements, at least n_slots */
    uint64_t odd;          /* uint32, set where a mask holds anything but -inf and 0; memory of device or host */
    int32_t  n_rows;
    int32_t  n_slots;      /* a multiple of 8 */
    int32_t  slots_apart;  /* from the first slot of a stream to the next one's */
    int32_t  tokens;       /* rows of the batch to a stream */
    int32_t  first;        /* the batch's row that is the first of these */
    int32_t  reserved;
} lim_cuda_visible;

/* The mask of a row, and the first slot of its stream. */
LIM_SHARED uint64_t VisibleMask(const lim_cuda_visible *v, int32_t row) {
    const int64_t at = v->first + row;
    return v->mask + (uint64_t)(at / v->tokens * v->stream_stride + at % v->tokens * v->token_stride);
}
LIM_SHARED int32_t VisibleFirst(const lim_cuda_visible *v, int32_t row) { return (v->first + row) / v->tokens * v->slots_apart; }

/* The blocks of a row, the grid's second axis: one multiprocessor writes 128K slots in 50 us. */
LIM_SHARED int32_t VisibleParts(int32_t n_slots, int table) {
    const int32_t parts = (n_slots + 16383) / 16384;
    return !table || parts < 1 ? 1 : parts < 8 ? parts
                                               : 8;
}

/* The slots of a warp: whole steps, in order. */
LIM_SHARED int32_t VisibleChunk(int32_t n_slots, int32_t warps) {
    const int32_t steps = (n_slots + LIM_CUDA_VISIBLE_STEP - 1) / LIM_CUDA_VISIBLE_STEP;
    return (steps + warps - 1) / warps * LIM_CUDA_VISIBLE_STEP;
}

/* Which of a lane's eight slots are shown. */
LIM_SHARED uint32_t VisibleBits(const uint32_t words[4]) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) {
        bits |= (uint32_t)((words[i] & 0xffffu) != 0xfc00u) << (2 * i);
        bits |= (uint32_t)(words[i] >> 16 != 0xfc00u) << (2 * i + 1);
    }
    return bits;
}

/* Tells whether any of them is shown by something else than a zero. */
LIM_SHARED int VisibleOdd(const uint32_t words[4]) {
    int odd = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t low = words[i] & 0xffffu, high = words[i] >> 16;
        odd |= (low != 0xfc00u && (low & 0x7fffu) != 0) | (high != 0xfc00u && (high & 0x7fffu) != 0);
    }
    return odd;
}

/* Writes a lane's slots; `first` is its first one's number. */
LIM_SHARED void VisibleWrite(uint32_t bits, int32_t first, int32_t *to) {
    for (int i = 0; i < LIM_CUDA_VISIBLE_LANE; i++) {
        if (bits >> i & 1) *to++ = first + i;
    }
}

#endif
