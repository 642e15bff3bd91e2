/* Stored K/V rows to vectors, one small struct per element type, and the exponential.
 *
 * A row type offers: kScaled, whether its elements are whole numbers times a scale; kStep, the elements that
 * share one (a multiple of every vector length used); Bytes(n), the size of n elements; ScaleAt; and Whole, a
 * vector of elements from i on without the scale. kInteger says how its keys are multiplied (query-inl.h): as 16-bit
 * integers, which Integers loads, or in f32, which Load gives with the scale. Loads never touch bytes outside the
 * row. */
#if defined(LESSISMORE_CPU_CONVERT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LESSISMORE_CPU_CONVERT_INL_H
#undef LESSISMORE_CPU_CONVERT_INL_H
#else
#define LESSISMORE_CPU_CONVERT_INL_H
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lessismore {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;
using U16 = hn::Rebind<uint16_t, F32>;
using U8 = hn::Rebind<uint8_t, F32>;
using I8 = hn::Rebind<int8_t, F32>;
using I16 = hn::ScalableTag<int16_t>;
using Vec = hn::Vec<F32>;
using Vec16 = hn::Vec<I16>;
constexpr size_t kLanes = HWY_LANES(float), kLanes16 = HWY_LANES(int16_t);

/* Vector registers to spend on sums without spilling. */
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kSums = 16;
#else
constexpr int kSums = 8;
#endif

/* f16 bits in the low half of each lane. Highway's own conversion where the processor has one; its software
 * fallback mistreats infinities and NaN. */
HWY_INLINE Vec FloatFromHalfBits(hn::Vec<U32> bits) {
    const F32  df;
    const U32  du;
    const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000u)));
    const auto rest = hn::ShiftLeft<13>(hn::And(bits, hn::Set(du, 0x7fffu)));
    /* Exponent bias 15 to 127 by a multiplication, which also normalises subnormals. */
    const auto scaled = hn::BitCast(du, hn::Mul(hn::BitCast(df, rest), hn::Set(df, 5.192296858534828e33f)));
    const auto special = hn::Gt(hn::BitCast(I32(), rest), hn::Set(I32(), (0x7c00 << 13) - 1));
    const auto infinite = hn::Or(rest, hn::Set(du, 0x7f800000u));
    const auto magnitude = hn::IfThenElse(hn::RebindMask(du, special), infinite, scaled);
    return hn::BitCast(df, hn::Or(sign, magnitude));
}

HWY_INLINE Vec LoadHalf(const uint8_t *p) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_EMU128
    return FloatFromHalfBits(hn::PromoteTo(U32(), hn::LoadU(U16(), (const uint16_t *)p)));
#else
    return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), (const hwy::float16_t *)p));
#endif
}

HWY_INLINE Vec LoadBrain(const uint8_t *p) {
    const auto bits = hn::PromoteTo(U32(), hn::LoadU(U16(), (const uint16_t *)p));
    return hn::BitCast(F32(), hn::ShiftLeft<16>(bits));
}

/* One f16 to all lanes. Reads eight bytes. */
HWY_INLINE Vec SplatHalf(const uint8_t *p) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_EMU128
    uint16_t bits;
    memcpy(&bits, p, 2);
    return FloatFromHalfBits(hn::Set(U32(), bits));
#else
    /* Converted in the smallest vector, which costs a third of a large one. */
    const hn::Full128<float> d4;
    auto                     half = hn::LoadU(hn::Rebind<hwy::float16_t, decltype(d4)>(), (const hwy::float16_t *)p);
#if HWY_ARCH_X86
    /* Clang would load two bytes instead, into a register that keeps its other bytes and so waits for its last use. */
    __asm__("" : "+x"(half.raw));
#endif
    return hn::Set(F32(), hn::GetLane(hn::PromoteTo(d4, half)));
#endif
}

/* Rows of plain elements. Whole() is the element. */
struct NoScale {};

struct RowF32 {
    static constexpr bool   kScaled = false, kInteger = false;
    static constexpr size_t kStep = 16;
    using Scale = NoScale;
    static constexpr size_t Bytes(size_t n) { return n * 4; }
    static HWY_INLINE Scale ScaleAt(const uint8_t *) { return {}; }
    static HWY_INLINE Vec   Whole(const uint8_t *p, size_t i) { return hn::LoadU(F32(), (const float *)p + i); }
    static HWY_INLINE Vec   Load(const uint8_t *p, size_t i, Scale) { return Whole(p, i); }
};

struct RowF16 {
    static constexpr bool   kScaled = false, kInteger = false;
    static constexpr size_t kStep = 16;
    using Scale = NoScale;
    static constexpr size_t Bytes(size_t n) { return n * 2; }
    static HWY_INLINE Scale ScaleAt(const uint8_t *) { return {}; }
    static HWY_INLINE Vec   Whole(const uint8_t *p, size_t i) { return LoadHalf(p + i * 2); }
    static HWY_INLINE Vec   Load(const uint8_t *p, size_t i, Scale) { return Whole(p, i); }
};

struct RowBF16 {
    static constexpr bool   kScaled = false, kInteger = false;
    static constexpr size_t kStep = 16;
    using Scale = NoScale;
    static constexpr size_t Bytes(size_t n) { return n * 2; }
    static HWY_INLINE Scale ScaleAt(const uint8_t *) { return {}; }
    static HWY_INLINE Vec   Whole(const uint8_t *p, size_t i) { return LoadBrain(p + i * 2); }
    static HWY_INLINE Vec   Load(const uint8_t *p, size_t i, Scale) { return Whole(p, i); }
};

/* Rows of blocks: an f16 scale, then the whole numbers that it multiplies. */
struct RowQ8 {
    static constexpr bool   kScaled = true, kInteger = true;
    static constexpr size_t kStep = 32;
    static constexpr size_t Bytes(size_t n) { return n / 32 * 34; }
    static HWY_INLINE Vec   ScaleAt(const uint8_t *p) { return SplatHalf(p); }
    static HWY_INLINE Vec   Whole(const uint8_t *p, size_t i) {
        const int8_t *from = (const int8_t *)p + i / 32 * 34 + 2 + i % 32;
        return hn::ConvertTo(F32(), hn::PromoteTo(I32(), hn::LoadU(I8(), from)));
    }
    static HWY_INLINE Vec16 Integers(const uint8_t *p, size_t i) {
        return hn::PromoteTo(I16(), hn::LoadU(hn::Rebind<int8_t, I16>(), (const int8_t *)p + i / 32 * 34 + 2 + i % 32));
    }
};

struct RowQ4 {
    static constexpr bool   kScaled = true;
    static constexpr size_t kStep = 32;
    static constexpr size_t Bytes(size_t n) { return n / 32 * 18; }
#if HWY_TARGET == HWY_AVX3
    /* The sixteen numbers are looked up, by the low four bits of each lane. Scale is the table times the scale. */
    static constexpr bool kInteger = false; /* 16 bits have no such look-up: 5 to 7 % slower */
    using Scale = Vec;
    static HWY_INLINE Vec   Numbers() { return hn::Iota(F32(), -8.0f); }
    static HWY_INLINE Scale ScaleAt(const uint8_t *p) { return hn::Mul(Numbers(), SplatHalf(p)); }
    static HWY_INLINE Vec   Whole(const uint8_t *p, size_t i) { return Load(p, i, Numbers()); }
    static HWY_INLINE Vec   Load(const uint8_t *p, size_t i, Scale table) {
        const auto pair = hn::PromoteTo(I32(), hn::LoadU(U8(), p + i / 32 * 18 + 2));
        return hn::TableLookupLanes(table, hn::IndicesFromVec(F32(), i % 32 < 16 ? pair : hn::ShiftRight<4>(pair)));
    }
#else
    static constexpr bool   kInteger = true;
    static HWY_INLINE Vec   ScaleAt(const uint8_t *p) { return SplatHalf(p); }
    static HWY_INLINE Vec   Whole(const uint8_t *p, size_t i) { return hn::ConvertTo(F32(), Unpack(I32(), p, i)); }
    static HWY_INLINE Vec16 Integers(const uint8_t *p, size_t i) { return Unpack(I16(), p, i); }
    template <class D>
    static HWY_INLINE hn::Vec<D> Unpack(D d, const uint8_t *p, size_t i) {
        const auto pair = hn::PromoteTo(d, hn::LoadU(hn::Rebind<uint8_t, D>(), p + i / 32 * 18 + 2 + i % 16));
        const auto nibble = i % 32 < 16 ? hn::And(pair, hn::Set(d, 15)) : hn::ShiftRight<4>(pair);
        return hn::Sub(nibble, hn::Set(d, 8));
    }
#endif
};

/* e^x for x <= 0 to about one unit in the last place; below -87 it is 0, NaN stays NaN. */
HWY_INLINE Vec Exp(Vec x) {
    const F32  df;
    const I32  di;
    const auto lowest = hn::Set(df, -87.0f);
    const auto whole = hn::NearestInt(hn::Mul(hn::Max(x, lowest), hn::Set(df, 1.44269504f)));
    const auto n = hn::ConvertTo(df, whole);
    /* ln 2 in two parts, so that n * ln 2 is exact enough. */
    auto r = hn::NegMulAdd(n, hn::Set(df, 0.693359375f), x);
    r = hn::NegMulAdd(n, hn::Set(df, -2.12194440e-4f), r);
    auto p = hn::Set(df, 1.9875691500e-4f);
    p = hn::MulAdd(p, r, hn::Set(df, 1.3981999507e-3f));
    p = hn::MulAdd(p, r, hn::Set(df, 8.3334519073e-3f));
    p = hn::MulAdd(p, r, hn::Set(df, 4.1665795894e-2f));
    p = hn::MulAdd(p, r, hn::Set(df, 1.6666665459e-1f));
    p = hn::MulAdd(p, r, hn::Set(df, 5.0000001201e-1f));
    p = hn::MulAdd(hn::Mul(p, r), r, hn::Add(r, hn::Set(df, 1.0f)));
    const auto power = hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(whole, hn::Set(di, 127))));
    return hn::IfThenZeroElse(hn::Lt(x, lowest), hn::Mul(p, power));
}

HWY_INLINE float Sum(Vec v) { return hn::GetLane(hn::SumOfLanes(F32(), v)); }
HWY_INLINE float Max(Vec v) { return hn::GetLane(hn::MaxOfLanes(F32(), v)); }

}  // namespace HWY_NAMESPACE
}  // namespace lessismore
HWY_AFTER_NAMESPACE();
#endif
