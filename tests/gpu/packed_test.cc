/* q8_0 and q4_0 as matrix fragments (packed.cuh): every element of a tile comes to one place of a product, and there meets the
 * query's or the output's same element. The kernel's own source, compiled for the host; a warp is a loop over its lanes. */
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace {

/* f16 as the device has it, by the host's f32: the results of all operations here are exact in f32 before they are rounded. */
float FromHalf(uint16_t h) {
    const int   exponent = h >> 10 & 31, fraction = h & 1023;
    const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                     : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return h >> 15 ? -size : size;
}
uint16_t ToHalf(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float    size = std::fabs(x);
    EXPECT_LT(size, 65520.0f);
    int exponent = 0;
    std::frexp(size, &exponent); /* size = [0.5, 1) * 2^exponent */
    exponent = size == 0 ? -14 : std::max(exponent - 1, -14);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent))); /* to even */
    return sign | static_cast<uint16_t>(((exponent + 14) << 10) + steps);
}

struct __half2 {
    uint16_t x, y;
};
__half2 Each(__half2 a, __half2 b, float (*f)(float, float)) {
    return {ToHalf(f(FromHalf(a.x), FromHalf(b.x))), ToHalf(f(FromHalf(a.y), FromHalf(b.y)))};
}
__half2 __float2half2_rn(float x) { return {ToHalf(x), ToHalf(x)}; }
__half2 __hsub2(__half2 a, __half2 b) {
    return Each(a, b, [](float x, float y) { return x - y; });
}
__half2 __hmul2(__half2 a, __half2 b) {
    return Each(a, b, [](float x, float y) { return x * y; });
}
__half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    const auto one = [](uint16_t x, uint16_t y, uint16_t z) { return ToHalf(std::fma(FromHalf(x), FromHalf(y), FromHalf(z))); };
    return {one(a.x, b.x, c.x), one(a.y, b.y, c.y)};
}
float    __low2float(__half2 a) { return FromHalf(a.x); }
float    __high2float(__half2 a) { return FromHalf(a.y); }
uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t which) {
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    uint32_t       to = 0;
    for (int i = 0; i < 4; i++) to |= static_cast<uint32_t>(both >> (which >> i * 4 & 7) * 8 & 255) << i * 8;
    return to;
}

}  // namespace

#define __device__
#define __forceinline__ inline
#include "packed.cuh"

namespace {

using lessismore::PackedRows;
using lessismore::Q4_0;
using lessismore::Q8_0;

float Lower(uint32_t two) { return FromHalf(static_cast<uint16_t>(two)); }
float Upper(uint32_t two) { return FromHalf(static_cast<uint16_t>(two >> 16)); }

template <class Block> int Number(const uint8_t *block, int e);
template <> int            Number<Q8_0>(const uint8_t *block, int e) { return static_cast<int8_t>(block[2 + e]); }
template <> int            Number<Q4_0>(const uint8_t *block, int e) { return (e < 16 ? block[2 + e] & 15 : block[2 + e - 16] >> 4) - 8; }

/* A tile in shared memory, as the copies leave it. */
template <int kDim, class Block>
struct Tile {
    using Rows = PackedRows<kDim, Block>;
    std::vector<uint32_t> words = std::vector<uint32_t>(16 * Rows::kPitch / 4);
    float                 scales[16][kDim / 32];
    int                   numbers[16][kDim];

    explicit Tile(std::mt19937 &rng) {
        for (uint32_t &w : words) w = static_cast<uint32_t>(rng());
        for (int token = 0; token < 16; token++) {
            for (int b = 0; b < kDim / 32; b++) {
                uint8_t       *block = Bytes() + token * Rows::kPitch + b * Block::kBytes;
                const uint16_t scale = ToHalf(std::uniform_real_distribution<float>(-2, 2)(rng));
                std::memcpy(block, &scale, 2);
                scales[token][b] = FromHalf(scale);
                for (int e = 0; e < 32; e++) numbers[token][b * 32 + e] = Number<Block>(block, e);
            }
        }
    }
    uint8_t *Bytes() { return reinterpret_cast<uint8_t *>(words.data()); }
};

template <int kDim, class Block>
void CheckKeys(std::mt19937 &rng) {
    using Rows = PackedRows<kDim, Block>;
    Tile<kDim, Block> tile(rng);
    std::vector<int>  seen(16 * kDim);
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int unit = 0; unit < Rows::kUnits; unit++) {
            uint32_t a[4][4];
            float    scale[2][2];
            Rows::Keys(tile.Bytes(), unit, lane, a, scale);
            for (int s = 0; s < 4; s++) {
                for (int i = 0; i < 4; i++) { /* as mma has its first operand: rows g and g + 8, the second half of columns after both */
                    const int token = g + i % 2 * 8, d = Rows::QueryDim(unit * 4 + s, i / 2, t), e = d + Rows::QueryNext(unit * 4 + s, i / 2, t);
                    EXPECT_EQ(Lower(a[s][i]), tile.numbers[token][d]);
                    EXPECT_EQ(Upper(a[s][i]), tile.numbers[token][e]);
                    EXPECT_EQ(scale[s / 2][i % 2], tile.scales[token][d / 32]);
                    EXPECT_EQ(d / 32, e / 32);
                    seen[token * kDim + d]++, seen[token * kDim + e]++;
                }
            }
        }
    }
    for (const int times : seen) EXPECT_EQ(times, 1);
}

template <int kDim, class Block>
void CheckValues(std::mt19937 &rng) {
    using Rows = PackedRows<kDim, Block>;
    Tile<kDim, Block> tile(rng);
    std::vector<int>  seen(16 * kDim);
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int unit = 0; unit < Rows::kUnits; unit++) {
            uint32_t a[4][4];
            Rows::Values(tile.Bytes(), unit, lane, a);
            for (int m = 0; m < 4; m++) {
                for (int i = 0; i < 4; i++) {
                    const int d = Rows::ValueDim(unit * 4 + m, i % 2, g), token = t * 2 + i / 2 * 8;
                    for (int next = 0; next < 2; next++) {
                        const float want = FromHalf(ToHalf(static_cast<float>(tile.numbers[token + next][d]) * tile.scales[token + next][d / 32]));
                        EXPECT_EQ(next ? Upper(a[m][i]) : Lower(a[m][i]), want);
                        seen[(token + next) * kDim + d]++;
                    }
                }
            }
        }
    }
    for (const int times : seen) EXPECT_EQ(times, 1);
}

/* No two lanes want different words of one of the 32 banks: the words that a part's first load reads. */
template <int kDim, class Block>
void CheckBanks() {
    using Rows = PackedRows<kDim, Block>;
    for (const bool values : {false, true}) {
        for (int word = 0; word < Block::kWords; word++) {
            int taken[32];
            for (int &bank : taken) bank = -1;
            for (int lane = 0; lane < 32; lane++) {
                const int g = lane / 4, t = lane % 4, odd = g / 4;
                const int at = values ? t * 2 * Rows::kPitch / 4 + Block::WordAt(odd, g % 4, Block::kWords == 2 ? word ^ odd : 0)
                                      : g * Rows::kPitch / 4 + Block::WordAt(0, t, word);
                EXPECT_TRUE(taken[at % 32] == -1 || taken[at % 32] == at) << "bank " << at % 32 << " lane " << lane;
                taken[at % 32] = at;
            }
        }
    }
}

TEST(Packed, EveryElementHasItsPlace) {
    std::random_device seed;
    const unsigned     number = seed();
    SCOPED_TRACE(testing::Message() << "seed " << number);
    std::mt19937 rng(number);
    for (int i = 0; i < 20; i++) {
        CheckKeys<64, Q8_0>(rng), CheckKeys<128, Q8_0>(rng), CheckKeys<256, Q8_0>(rng);
        CheckKeys<64, Q4_0>(rng), CheckKeys<128, Q4_0>(rng), CheckKeys<256, Q4_0>(rng);
        CheckValues<64, Q8_0>(rng), CheckValues<128, Q8_0>(rng), CheckValues<256, Q8_0>(rng);
        CheckValues<64, Q4_0>(rng), CheckValues<128, Q4_0>(rng), CheckValues<256, Q4_0>(rng);
    }
}

TEST(Packed, WithoutBankConflicts) {
    CheckBanks<64, Q8_0>(), CheckBanks<128, Q8_0>(), CheckBanks<256, Q8_0>();
    CheckBanks<64, Q4_0>(), CheckBanks<128, Q4_0>(), CheckBanks<256, Q4_0>();
}

}  // namespace
