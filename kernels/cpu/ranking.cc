/* Passes over a layer's logits: the best tokens of a head, softmax sums, probability mass.
 *
 * Ranking is done on integers that sort as the floats do, so that -0, infinities and NaN have their place
 * without a second thought. The best `want` of n are found by a threshold: guessed from a sample, then
 * checked and bisected until it lets through at least `want` and at most `capacity`. Each try is one pass at
 * vector speed; only what passes is sorted (by the caller). */
#include "targets.h"

#include <algorithm>
#include <math.h>
#include <string.h>

#include "dispatch.h"
#include "ranking.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ranking.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "convert-inl.h"

#ifndef LESSISMORE_CPU_RANKING_ONCE
#define LESSISMORE_CPU_RANKING_ONCE
namespace lessismore {
namespace {

/* The order of floats as the order of unsigned integers, turned round: 0 is the best. */
inline uint32_t KeyOf(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    if (bits == INT32_MIN) bits = 0; /* -0 */
    if ((bits & INT32_MAX) > 0x7f800000) return UINT32_MAX;
    const int32_t order = bits < 0 ? bits ^ INT32_MAX : bits;
    return (uint32_t)INT32_MAX - (uint32_t)order;
}

/* Orders beyond those of the infinities. */
inline bool IsNan(int32_t order) { return order > 0x7f800000 || order < (int32_t)0x807fffff; }

/* The float of an order. */
inline float FloatOf(int32_t order) {
    const int32_t bits = order < 0 ? order ^ INT32_MAX : order;
    float         x;
    memcpy(&x, &bits, 4);
    return x;
}

inline int32_t OrderOfKey(uint32_t key) { return (int32_t)((uint32_t)INT32_MAX - key); }

/* Those with an order in [least, most], in position order, until `room` are written. */
inline size_t Collect(const float *x, size_t n, int32_t least, int32_t most, size_t room, uint32_t *keys, uint32_t *positions) {
    size_t count = 0;
    for (size_t i = 0; i < n && count < room; i++) {
        const uint32_t key = KeyOf(x[i]);
        keys[count] = key;
        positions[count] = (uint32_t)i;
        count += OrderOfKey(key) >= least && OrderOfKey(key) <= most;
    }
    return count;
}

}  // namespace
}  // namespace lessismore
#endif

HWY_BEFORE_NAMESPACE();
namespace lessismore {
namespace HWY_NAMESPACE {
namespace {

/* As KeyOf, but as the signed order, which vectors compare best: larger is better, NaN is INT32_MIN. */
HWY_INLINE hn::Vec<I32> OrderOf(Vec x) {
    const I32  di;
    const auto none = hn::Set(di, INT32_MIN), rest = hn::Set(di, INT32_MAX);
    auto       bits = hn::BitCast(di, x);
    bits = hn::IfThenZeroElse(hn::Eq(bits, none), bits);
    const auto order = hn::Xor(bits, hn::And(hn::ShiftRight<31>(bits), rest));
    return hn::IfThenElse(hn::Gt(hn::And(bits, rest), hn::Set(di, 0x7f800000)), none, order);
}

/* How many of x[0, n) have at least this order. */
size_t Count(const float *x, size_t n, int32_t least) {
    const I32 di;
    size_t    count = 0, i = 0;
    auto      sums = hn::Zero(di);
    for (; i + kLanes <= n; i += kLanes) {
        const auto fail = hn::Gt(hn::Set(di, least), OrderOf(hn::LoadU(F32(), x + i)));
        sums = hn::Sub(sums, hn::VecFromMask(di, fail));
    }
    count = i - (size_t)hn::GetLane(hn::SumOfLanes(di, sums));
    for (; i < n; i++) count += OrderOfKey(KeyOf(x[i])) >= least;
    return count;
}

/* Those not below `least`, in position order. Gives up, with a count above `room`, when there are more. The few
 * that pass are picked out of a bit mask one by one: cheaper than compressing whole vectors. */
size_t CollectFrom(const float *x, size_t n, float least, size_t room, uint32_t *keys, uint32_t *positions) {
    const F32  df;
    const auto low = hn::Set(df, least);
    size_t     count = 0, i = 0;
    for (; i + 64 <= n; i += 64) {
        uint64_t passes = 0;
        for (size_t j = 0; j < 64; j += kLanes) {
            uint8_t  bytes[8] = {};
            uint64_t part;
            hn::StoreMaskBits(df, hn::Ge(hn::LoadU(df, x + i + j), low), bytes);
            memcpy(&part, bytes, 8);
            passes |= part << j;
        }
        if (count + 64 > room && count + (size_t)__builtin_popcountll(passes) > room) return room + 1;
        for (; passes != 0; passes &= passes - 1) {
            const size_t t = i + (size_t)__builtin_ctzll(passes);
            keys[count] = KeyOf(x[t]);
            positions[count] = (uint32_t)t;
            count++;
        }
    }
    for (; i < n; i++) {
        if (!(x[i] >= least)) continue;
        if (count == room) return room + 1;
        keys[count] = KeyOf(x[i]);
        positions[count] = (uint32_t)i;
        count++;
    }
    return count;
}

size_t Candidates(const float *x, size_t n, size_t want, size_t capacity, uint32_t *keys, uint32_t *positions) {
    if (n <= capacity) return Collect(x, n, INT32_MIN, INT32_MAX, n, keys, positions);

    /* Guesses from a sample: first the order that about 1.75 * want reach. */
    constexpr size_t kSample = 512;
    int32_t          sample[kSample];
    const size_t     samples = HWY_MIN(n, kSample);
    for (size_t i = 0; i < samples; i++) sample[i] = OrderOfKey(KeyOf(x[(i * n + n / 2) / samples]));
    size_t  at = want * 7 / 4 * samples / n;
    int64_t guess = 0;
    for (int tries = 0; tries < 3; tries++) {
        at = HWY_MIN(at, samples - 1);
        std::nth_element(sample, sample + at, sample + samples, [](int32_t a, int32_t b) { return a > b; });
        guess = sample[at];
        if (IsNan((int32_t)guess)) break;
        const size_t found = CollectFrom(x, n, FloatOf((int32_t)guess), capacity, keys, positions);
        if (found >= want && found <= capacity) return found;
        at = found < want ? at + at / 2 + 1 : at * 2 / 3;
    }

    /* Not so (many ties, mostly). The order `low` lets too many through, `high` too few. */
    int64_t low = INT32_MIN, high = (int64_t)INT32_MAX + 1, step = 1 << 18;
    for (;;) {
        const size_t count = Count(x, n, (int32_t)guess);
        if (count >= want && count <= capacity) {
            return Collect(x, n, (int32_t)guess, INT32_MAX, capacity, keys, positions);
        }
        if (count > capacity) {
            low = guess;
        } else {
            high = guess;
        }
        if (high - low <= 1) break;
        /* Walk away from the guess in growing steps until it is bracketed, then halve the bracket. */
        if (low == INT32_MIN && guess == high) {
            guess = std::max(low + 1, high - step);
            step *= 2;
        } else if (high > INT32_MAX && guess == low) {
            guess = std::min(high - 1, low + step);
            step *= 2;
        } else {
            guess = low + (high - low) / 2;
        }
    }
    /* So many equal values that the cut goes through them: all above, then the first of the equal ones. */
    size_t count = high > INT32_MAX ? 0 : Collect(x, n, (int32_t)high, INT32_MAX, want, keys, positions);
    count += Collect(x, n, (int32_t)low, (int32_t)low, want - count, keys + count, positions + count);
    return count;
}

void SoftmaxStats(const float *x, size_t n, float *row_max, float *row_sum) {
    const F32 df;
    auto      most = hn::Set(df, -INFINITY);
    size_t    i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const auto v = hn::LoadU(df, x + i);
        most = hn::IfThenElse(hn::Gt(v, most), v, most);
    }
    float top = Max(most);
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    const auto tops = hn::Set(df, top);
    auto       sums = hn::Zero(df);
    for (i = 0; i + kLanes <= n; i += kLanes) {
        const auto v = hn::LoadU(df, x + i);
        /* The largest itself counts 1, also if it is infinite; NaN counts nothing. */
        const auto weight = hn::IfThenElse(hn::Eq(v, tops), hn::Set(df, 1.0f), Exp(hn::Sub(v, tops)));
        sums = hn::Add(sums, hn::IfThenElseZero(hn::Eq(v, v), weight));
    }
    float total = Sum(sums);
    for (; i < n; i++) {
        if (x[i] == x[i]) total += x[i] == top ? 1.0f : hn::GetLane(Exp(hn::Set(df, x[i] - top)));
    }
    *row_max = top;
    *row_sum = total;
}

void AddUp(const float *x, int64_t stride, int heads, size_t begin, size_t end, const float *row_max,
           const float *inverse, float *mass) {
    const F32 df;
    for (size_t i = begin; i < end; i += kLanes) {
        auto sum = hn::Zero(df);
        for (int h = 0; h < heads; h++) {
            const float *from = x + h * stride + i;
            Vec          v;
            if (i + kLanes <= end) {
                v = hn::LoadU(df, from);
            } else { /* the logits may end where the host's memory does */
                alignas(64) float rest[kLanes] = {};
                memcpy(rest, from, (end - i) * sizeof(float));
                v = hn::Load(df, rest);
            }
            const auto top = hn::Set(df, row_max[h]);
            const auto weight = hn::IfThenElse(hn::Eq(v, top), hn::Set(df, 1.0f), Exp(hn::Sub(v, top)));
            sum = hn::MulAdd(hn::IfThenElseZero(hn::Eq(v, v), weight), hn::Set(df, inverse[h]), sum);
        }
        hn::StoreU(sum, df, mass + i);
    }
}

}  // namespace

const RankingKernels kTable = {Candidates, SoftmaxStats, AddUp};

}  // namespace HWY_NAMESPACE
}  // namespace lessismore
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lessismore {
LIM_CPU_TABLES(RankingKernels, RankingFor)
}  // namespace lessismore
#endif
