#include "kernels.h"

#include "context.h"
#include "driver.h"
#include "layout.h"

#include <stddef.h>
#include <string.h>

enum { RANK = 5 };

_Static_assert(offsetof(lim_cuda_args, key_map) % 64 == 0 && sizeof(lim_cuda_args) % 64 == 0, "maps lie at multiples of 64 bytes");

/* No store reaches further than addresses do. */
#define MOST_BYTES ((uint64_t)1 << 47)

/* K or V as elements of half a row or less, KV heads, tokens, parts of a row, and what the tokens are of: rows of the batch, or
 * pages, of which a call does not say how many there are. A box is the 16 tokens of a tile, part after part, as TmaRows
 * reads it. By halves of rows memory is read as fast as by whole ones, and by 128 bytes of second-level cache at a time
 * faster than by 256 (4.5 to 4.2 TB/s on an H200). */
static int make_map(const lim_cuda_store *s, const uint64_t dims[RANK], const uint64_t strides[RANK - 1], const uint32_t box[RANK], CUtensorMapSwizzle swizzle, uint64_t to[16]) {
    const uint32_t every[RANK] = {1, 1, 1, 1, 1};
    CUtensorMap    map;
    const int      result = cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, RANK, (void *)(uintptr_t)s->data, dims, strides, box,
                                                   every, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) memcpy(to, &map, sizeof map);
    return result;
}

static int encode(const lim_cuda_call *c, const lim_cuda_store *s, uint64_t to[16]) {
    const int      paged = c->table != 0;
    const uint64_t row = (uint64_t)c->dim * 2, fit = paged ? MOST_BYTES / (uint64_t)s->page_stride : 0, most = (uint64_t)1 << 31;
    const uint64_t tokens = paged ? (uint64_t)1 << c->page_shift : (uint64_t)c->capacity;
    const uint64_t outer = !paged ? (uint64_t)c->n_rows : fit < most ? fit
                                                                     : most;
    const uint64_t dims[RANK] = {64, (uint64_t)c->kv_heads, tokens, (uint64_t)c->dim / 64, outer};
    /* A stride along an axis of one is never used, and need not be given. */
    const uint64_t strides[RANK - 1] = {c->kv_heads > 1 ? (uint64_t)s->head_stride : row, (uint64_t)s->token_stride, 128,
                                        outer > 1 ? (uint64_t)s->page_stride : row};
    const uint32_t box[RANK] = {64, 1, LIM_CUDA_TILE, (uint32_t)c->dim / 64, 1};
    return make_map(s, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B, to);
}

/* Packed: a token's heads, one after the other, are one axis, of which a box begins at a head's row and is as long as the rows' pitch in
 * shared memory. What is beyond the last head is zero. */
static int encode_packed(const lim_cuda_call *c, const lim_cuda_store *s, uint64_t to[16]) {
    const uint64_t row = (uint64_t)c->dim / 32 * (c->kv_type == LIM_CUDA_Q8_0 ? 34 : 18);
    const uint64_t dims[RANK] = {(uint64_t)c->kv_heads * row / 2, 1, (uint64_t)c->capacity, 1, (uint64_t)c->n_rows};
    const uint64_t token = (uint64_t)s->token_stride, strides[RANK - 1] = {token, token, token, c->n_rows > 1 ? (uint64_t)s->page_stride : token};
    const uint32_t box[RANK] = {(uint32_t)LIM_CUDA_PACKED_PITCH(row) / 2, 1, LIM_CUDA_TILE, 1, 1};
    return make_map(s, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_NONE, to);
}

int lim_cuda_encode(void *context, lim_cuda_args *a) {
    if (!a->tma) return CUDA_SUCCESS;
    void *before;
    int   result = lim_cuda_swap_context(context, &before);
    if (result != CUDA_SUCCESS) return result;
    const int packed = a->call.kv_type == LIM_CUDA_Q8_0 || a->call.kv_type == LIM_CUDA_Q4_0;
    result = (packed ? encode_packed : encode)(&a->call, &a->call.key, a->key_map);
    if (result == CUDA_SUCCESS) result = (packed ? encode_packed : encode)(&a->call, &a->call.value, a->value_map);
    lim_cuda_swap_context(before, &context);
    return result;
}
