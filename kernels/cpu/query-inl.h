/* A query, and its products with four tokens' keys, as the keys' type wants them: in f32, or, for blocks, in integers.
 *
 * Blocks are bound by arithmetic, and integers need less of it. A head's query is rounded to 16 bits under one step. That costs about a
 * hundredth of what storing the keys in blocks costs, and outliers of the query do not change it much: a key's error is multiplied by
 * them, too. The step is a power of two, so that what a short number holds (most of an f16 or bf16 query) is not rounded at all.
 * Products are added in pairs, to 32 bits, which a block's cannot overflow: 32 * 32767 * 128 < 2^27. */
#if defined(LESSISMORE_CPU_QUERY_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LESSISMORE_CPU_QUERY_INL_H
#undef LESSISMORE_CPU_QUERY_INL_H
#else
#define LESSISMORE_CPU_QUERY_INL_H
#endif

#include <math.h>
#include <string.h>
#include <type_traits>

#include "convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lessismore {
namespace HWY_NAMESPACE {

/* Each lies in the room of [heads][dim] f32. A logit is the sum of the products times the head's step. */
struct Query32 {
    const float *numbers; /* [heads][dim] */

    Query32(const float *memory, size_t, size_t) : numbers(memory) {}
    HWY_INLINE Vec Step(size_t) const { return hn::Set(F32(), 1.0f); }
    static void    Store(float *memory, size_t, size_t dim, size_t head, const float *from, float scale) {
        const F32 df;
        for (size_t i = 0; i < dim; i += kLanes) {
            hn::StoreU(hn::Mul(hn::LoadU(df, from + i), hn::Set(df, scale)), df, memory + head * dim + i);
        }
    }
};

struct Query16 {
    const int16_t *numbers; /* [heads][dim] */
    const float   *steps;   /* [heads], times the scale */

    Query16(const float *memory, size_t heads, size_t dim) : numbers((const int16_t *)memory), steps(memory + heads * dim / 2) {}
    HWY_INLINE Vec Step(size_t head) const { return hn::Set(F32(), steps[head]); }
    static void    Store(float *memory, size_t heads, size_t dim, size_t head, const float *from, float scale) {
        const F32                      df;
        const I32                      di;
        const hn::Rebind<int16_t, F32> half;
        auto                           bits = hn::Zero(di); /* magnitudes' bits have their order; infinity and NaN come last */
        for (size_t i = 0; i < dim; i += kLanes) bits = hn::Max(bits, hn::BitCast(di, hn::Abs(hn::LoadU(df, from + i))));
        const int32_t most_bits = hn::GetLane(hn::MaxOfLanes(di, bits));
        int16_t      *to = (int16_t *)memory + head * dim;
        float        &step = memory[heads * dim / 2 + head], most;
        memcpy(&most, &most_bits, 4);
        if (!(most < INFINITY)) { /* all of the head's logits become NaN */
            memset(to, 0, dim * sizeof(int16_t));
            step = NAN;
            return;
        }
        const float lift = most < 0x1p-64f ? 0x1p64f : 1; /* lest the factor overflows */
        int         exponent;
        frexpf(most * lift / 32767.5f, &exponent);
        step = ldexpf(scale, exponent) / lift;
        const auto by = hn::Set(df, ldexpf(1, -exponent));
        for (size_t i = 0; i < dim; i += kLanes) {
            const auto number = hn::Mul(hn::Mul(hn::LoadU(df, from + i), hn::Set(df, lift)), by);
            hn::StoreU(hn::DemoteTo(half, hn::NearestInt(number)), half, to + i);
        }
    }
};

template <class Row>
using QueryOf = std::conditional_t<Row::kInteger, Query16, Query32>;

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

template <class Row, int kHeads>
HWY_INLINE void AddProducts(const uint8_t *const (&row)[4], const int16_t *query, size_t dim, Vec (&sum)[kHeads][4]) {
    const F32 df;
    const I32 di;
    const I16 d16;
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        hn::Vec<I32> even[kHeads], odd[kHeads]; /* only NEON uses the second one */
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; h++) even[h] = odd[h] = hn::Zero(di);
#pragma GCC unroll 32
        for (size_t i = 0; i < Row::kStep; i += kLanes16) {
            const auto k = Row::Integers(row[t], i);
#pragma GCC unroll 4
            for (int h = 0; h < kHeads; h++) {
                even[h] = hn::ReorderWidenMulAccumulate(di, k, hn::LoadU(d16, query + h * dim + i), even[h], odd[h]);
            }
        }
        const Vec scale = Row::ScaleAt(row[t]);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; h++) sum[h][t] = hn::MulAdd(hn::ConvertTo(df, hn::Add(even[h], odd[h])), scale, sum[h][t]);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace lessismore
HWY_AFTER_NAMESPACE();
#endif
