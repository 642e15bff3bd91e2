/* f16 and bf16 as the device has them, on the host: the results of all operations here are exact in f32 before they are rounded. */
#ifndef LESSISMORE_SIMT_HALF_H
#define LESSISMORE_SIMT_HALF_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace simt {

inline float FromHalf(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    float     size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24) : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    if (exponent == 31) size = fraction == 0 ? INFINITY : NAN;
    return h >> 15 ? -size : size;
}
inline uint16_t ToHalf(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float    size = std::fabs(x);
    if (std::isnan(x)) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    int exponent = 0;
    std::frexp(size, &exponent); /* size = [0.5, 1) * 2^exponent */
    exponent = size == 0 ? -14 : std::max(exponent - 1, -14);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent))); /* to even */
    return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + steps));
}

inline float FromBfloat(uint16_t b) {
    const uint32_t bits = static_cast<uint32_t>(b) << 16;
    float          x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint16_t ToBfloat(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace simt

struct __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline __half        __float2half_rn(float x) { return {simt::ToHalf(x)}; }
inline float         __half2float(__half h) { return simt::FromHalf(h.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {simt::ToBfloat(x)}; }
inline float         __bfloat162float(__nv_bfloat16 b) { return simt::FromBfloat(b.bits); }

inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float2half2_rn(float x) { return __floats2half2_rn(x, x); }
inline float   __low2float(__half2 a) { return __half2float(a.x); }
inline float   __high2float(__half2 a) { return __half2float(a.y); }
inline __half2 __hsub2(__half2 a, __half2 b) { return __floats2half2_rn(__low2float(a) - __low2float(b), __high2float(a) - __high2float(b)); }
inline __half2 __hmul2(__half2 a, __half2 b) { return __floats2half2_rn(__low2float(a) * __low2float(b), __high2float(a) * __high2float(b)); }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return __floats2half2_rn(std::fma(__low2float(a), __low2float(b), __low2float(c)), std::fma(__high2float(a), __high2float(b), __high2float(c)));
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t which) {
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    uint32_t       to = 0;
    for (int i = 0; i < 4; i++) to |= static_cast<uint32_t>(both >> (which >> i * 4 & 7) * 8 & 255) << i * 8;
    return to;
}

#endif
