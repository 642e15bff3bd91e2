/* q8_0 and q4_0 as matrix fragments (packed.cuh): every element of a tile comes to one place of a product, and there meets the
 * query's or the output's same element. The kernel's own source, compiled for the host; a warp is a loop over its lanes. */
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "simt/simt.h"

#include "packed.cuh"

#include "gtest/gtest.h"

namespace {

using lessismore::PackedRows;
using lessismore::Q4_0;
using lessismore::Q8_0;

using simt::FromHalf;
using simt::ToHalf;

float Lower(uint32_t two) { return FromHalf(static_cast<uint16_t>(two)); }
float Upper(uint32_t two) { return FromHalf(static_cast<uint16_t>(two >> 16)); }

template <class Block> int Number(const uint8_t *block, int e);
template <> int            Number<Q8_0>(const uint8_t *block, int e) { return static_cast<int8_t>(block[2 + e]); }
template <> int            Number<Q4_0>(const uint8_t *block, int e) { return (e < 16 ? block[2 + e] & 15 : block[2 + e - 16] >> 4) - 8; }

/* A tile in shared memory, as the copies leave it. */
template <int kDim, class Block>
struct Tile {
    using Rows = PackedRows<(kDim + 63) / 64 * 64, Block, kDim>;
    std::vector<uint32_t> words = std::vector<uint32_t>(16 * Rows::kPitch / 4);
    float                 scales[16][kDim / 32];
    int                   numbers[16][kDim];
    uint32_t              shift = 0; /* rows begin between two multiples of four bytes */

    explicit Tile(std::mt19937 &rng) {
        for (uint32_t &w : words) w = static_cast<uint32_t>(rng());
        if (Rows::kShifted) shift = rng() % 2 * 2;
        for (int token = 0; token < 16; token++) {
            for (int b = 0; b < kDim / 32; b++) {
                uint8_t       *block = Bytes() + shift + token * Rows::kPitch + b * Block::kBytes;
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
    using Rows = typename Tile<kDim, Block>::Rows;
    Tile<kDim, Block> tile(rng);
    std::vector<int>  seen(16 * kDim);
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int unit = 0; unit < Rows::kUnits; unit++) {
            uint32_t a[4][4];
            float    scale[2][2];
            Rows::Keys(tile.Bytes(), tile.shift, unit, lane, a, scale);
            for (int s = 0; s < (Rows::HasSecond(unit) ? 4 : 2); s++) {
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
    using Rows = typename Tile<kDim, Block>::Rows;
    Tile<kDim, Block> tile(rng);
    std::vector<int>  seen(16 * kDim);
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int unit = 0; unit < Rows::kUnits; unit++) {
            uint32_t a[4][4];
            Rows::Values(tile.Bytes(), tile.shift, unit, lane, a);
            for (int m = 0; m < 4; m++) {
                for (int i = 0; i < 4; i++) {
                    const int d = Rows::ValueDim(unit * 4 + m, i % 2, g), token = t * 2 + i / 2 * 8;
                    if (d >= kDim) continue; /* a place of the output that nobody reads */
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
        CheckKeys<96, Q8_0>(rng), CheckKeys<96, Q4_0>(rng), CheckValues<96, Q8_0>(rng), CheckValues<96, Q4_0>(rng);
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
