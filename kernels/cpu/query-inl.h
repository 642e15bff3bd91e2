/* A query, and its products with four tokens' keys. */
#if defined(LESSISMORE_CPU_QUERY_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LESSISMORE_CPU_QUERY_INL_H
#undef LESSISMORE_CPU_QUERY_INL_H
#else
#define LESSISMORE_CPU_QUERY_INL_H
#endif

#include <string.h>

#include "convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lessismore {
namespace HWY_NAMESPACE {

/* Lies in the room of [heads][dim] f32. A logit is the sum of the products times the head's step. */
struct Query32 {
    const float *numbers; /* [heads][dim] */

    Query32(const float *memory, size_t, size_t) : numbers(memory) {}
    HWY_INLINE Vec Step(size_t) const { return hn::Set(F32(), 1.0f); }
    static void    Store(float *memory, size_t, size_t dim, size_t head, const float *from) {
        memcpy(memory + head * dim, from, dim * sizeof(float));
    }
};

template <class Row>
using QueryOf = Query32;

/* sum[head][token] += products of a step of elements, summed across the vector later on. `query`: the first head's. */
template <class Row, int kHeads>
HWY_INLINE void AddProducts(const uint8_t *const (&row)[4], const float *query, size_t dim, Vec (&sum)[kHeads][4]) {
    typename Row::Scale scale[4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) scale[t] = Row::ScaleAt(row[t]);
#pragma GCC unroll 8
    for (size_t i = 0; i < Row::kStep; i += kLanes) {
        Vec q[kHeads];
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; h++) q[h] = hn::LoadU(F32(), query + h * dim + i);
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
            const Vec k = Row::Load(row[t], i, scale[t]);
#pragma GCC unroll 4
            for (int h = 0; h < kHeads; h++) sum[h][t] = hn::MulAdd(q[h], k, sum[h][t]);
        }
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace lessismore
HWY_AFTER_NAMESPACE();
#endif
