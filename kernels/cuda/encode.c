#include "kernels.h"

#include "layout.h"

#include <stddef.h>
#include <string.h>

/* The driver's own declaration, by hand: this file is compiled where its headers are not. */
int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address, const uint64_t *dims, const uint64_t *strides,
                           const uint32_t *box, const uint32_t *element_strides, int interleave, int swizzle, int promotion, int fill);

enum { UINT16 = 1, SWIZZLE_128B = 3, PROMOTE_128B = 2, RANK = 5 };

_Static_assert(offsetof(lim_cuda_args, key_map) % 64 == 0 && sizeof(lim_cuda_args) % 64 == 0, "maps lie at multiples of 64 bytes");

/* No store reaches further than addresses do. */
#define MOST_BYTES ((uint64_t)1 << 47)

/* K or V as elements of half a row or less, KV heads, tokens, parts of a row, and what the tokens are of: rows of the batch, or
 * pages, of which a call does not say how many there are. A box is the 16 tokens of a tile, part after part, as TmaRows
 * reads it. By halves of rows memory is read as fast as by whole ones, and by 128 bytes of second-level cache at a time
 * faster than by 256 (4.5 to 4.2 TB/s on an H200). */
static int encode(const lim_cuda_call *c, const lim_cuda_store *s, uint64_t to[16]) {
    const int      paged = c->table != 0;
    const uint64_t row = (uint64_t)c->dim * 2, fit = paged ? MOST_BYTES / (uint64_t)s->page_stride : 0, most = (uint64_t)1 << 31;
    const uint64_t tokens = paged ? (uint64_t)1 << c->page_shift : (uint64_t)c->capacity;
    const uint64_t outer = !paged ? (uint64_t)c->n_rows : fit < most ? fit : most;
    const uint64_t dims[RANK] = {64, (uint64_t)c->kv_heads, tokens, (uint64_t)c->dim / 64, outer};
    /* A stride along an axis of one is never used, and need not be given. */
    const uint64_t strides[RANK - 1] = {c->kv_heads > 1 ? (uint64_t)s->head_stride : row, (uint64_t)s->token_stride, 128,
                                        outer > 1 ? (uint64_t)s->page_stride : row};
    const uint32_t box[RANK] = {64, 1, LIM_CUDA_TILE, (uint32_t)c->dim / 64, 1}, every[RANK] = {1, 1, 1, 1, 1};
    _Alignas(64) uint64_t map[16];
    const int result = cuTensorMapEncodeTiled(map, UINT16, RANK, (void *)(uintptr_t)s->data, dims, strides, box, every, 0, SWIZZLE_128B,
                                              PROMOTE_128B, 0);
    if (result == 0) memcpy(to, map, sizeof map);
    return result;
}

int lim_cuda_encode(lim_cuda_args *a) {
    if (!a->tma) return 0;
    const int result = encode(&a->call, &a->call.key, a->key_map);
    return result != 0 ? result : encode(&a->call, &a->call.value, a->value_map);
}
