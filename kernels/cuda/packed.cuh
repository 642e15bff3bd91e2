/* K and V in blocks of 32 elements with a scale (ggml's q8_0 and q4_0): from shared memory straight into matrix fragments.
 *
 * Blocks of 34 or 18 bytes cannot be read by ldmatrix. But which element of a head stands where in a product is free, as long
 * as both sides agree: each thread reads whole words, and the query and the output are brought into the order that follows.
 * Two blocks are a unit, of whole words, with words that the blocks share in one place:
 *
 *   q4_0   [d q0 q1] [q2..5] [q6..9] [q10..13] [q14 q15 D] [Q0..3] ... [Q12..15]      q: two elements, 16 apart
 *   q8_0   [d q0 q1] [q2..5] ...   [q26..29]   [q30 q31 D] [Q0..3] ... [Q28..31]
 *
 * Four threads share a block (part 0 .. 3), each has eight of its elements. In the first block the last thread's word is
 * what is left beside the two scales. Rows lie at an odd multiple of 16 bytes from each other, so that no two threads want
 * one bank (but for the scales of values).
 *
 * Keys become the integers themselves, which f16 holds exactly, and each block's part of a score is multiplied by its scale in
 * f32: the ranking sees no rounding. Values are multiplied before they are rounded to f16. */
#ifndef LESSISMORE_CUDA_PACKED_CUH
#define LESSISMORE_CUDA_PACKED_CUH

#include "layout.h"
#include "mma.cuh"

#include <stdint.h>

namespace lessismore {

constexpr uint32_t kThousand = 0x64006400; /* 1,024 twice in f16, whose last bit is 1 */

/* Two numbers in f16: the integers that were put into the low bits of 1,024 (a bias of 8 or 128 with them), as they are. */
__device__ __forceinline__ uint32_t Unbias(uint32_t two, float bias) {
    const __half2 r = __hsub2(*(const __half2 *)&two, __float2half2_rn(1024.0f + bias));
    return *(const uint32_t *)&r;
}
/* The same where they were put four bits higher. */
__device__ __forceinline__ uint32_t UnbiasHigh(uint32_t two, float bias) {
    const __half2 r = __hfma2(*(const __half2 *)&two, __float2half2_rn(1.0f / 16), __float2half2_rn(-64.0f - bias));
    return *(const uint32_t *)&r;
}
__device__ __forceinline__ uint32_t Scaled(uint32_t two, uint32_t scales) {
    const __half2 r = __hmul2(*(const __half2 *)&two, *(const __half2 *)&scales);
    return *(const uint32_t *)&r;
}
/* f16 in the lower or upper half of a word. */
__device__ __forceinline__ float LowerHalf(uint32_t word) { return __low2float(*(const __half2 *)&word); }
__device__ __forceinline__ float UpperHalf(uint32_t word) { return __high2float(*(const __half2 *)&word); }

struct Q4_0 {
    static constexpr int kBytes = 18;
    static constexpr int kWords = 1;  /* of a thread's part */
    static constexpr int kMiddle = 4; /* the unit's word with the second scale */

    /* Where in a unit a part's words begin. */
    static __device__ __forceinline__ int WordAt(int odd, int part, int) { return 1 + odd * 4 + part; }
    /* The j-th element of a part: see Pairs and Both. */
    static __device__ __forceinline__ int Element(int odd, int part, int j) {
        const int byte = j / 2;
        return (odd ? 4 * part + byte : part < 3 ? 2 + 4 * part + byte
                                    : byte < 2   ? byte
                                                 : 12 + byte) +
               j % 2 * 16;
    }
    /* The pair p of a key's part is its elements p and p + 4. */
    static constexpr __device__ int First(int p) { return p; }
    static constexpr __device__ int Second(int p) { return p + 4; }

    static __device__ __forceinline__ void Widen(uint32_t word, uint32_t (&two)[4]) {
        two[0] = Unbias(MaskedOr<0x000f000f, kThousand>(word), 8);
        two[1] = UnbiasHigh(MaskedOr<0x00f000f0, kThousand>(word), 8);
        word >>= 8;
        two[2] = Unbias(MaskedOr<0x000f000f, kThousand>(word), 8);
        two[3] = UnbiasHigh(MaskedOr<0x00f000f0, kThousand>(word), 8);
    }
    /* A token's part, in pairs. */
    static __device__ __forceinline__ void Pairs(const uint32_t (&part)[kWords], uint32_t (&two)[4]) { Widen(part[0], two); }
    /* Two tokens' parts: each element of both. */
    static __device__ __forceinline__ void Both(const uint32_t (&a)[kWords], const uint32_t (&b)[kWords], uint32_t (&two)[8]) {
        uint32_t lower[4], upper[4];
        Widen(__byte_perm(a[0], b[0], 0x5410), lower);
        Widen(__byte_perm(a[0], b[0], 0x7632), upper);
#pragma unroll
        for (int i = 0; i < 4; i++) two[i] = lower[i], two[i + 4] = upper[i];
    }
};

struct Q8_0 {
    static constexpr int kBytes = 34;
    static constexpr int kWords = 2;
    static constexpr int kMiddle = 8;

    static __device__ __forceinline__ int WordAt(int odd, int part, int word) { return 1 + odd * 8 + word * 4 + part; }
    static __device__ __forceinline__ int Element(int odd, int part, int j) {
        const int word = j / 4, byte = j % 4;
        return odd                   ? 16 * word + 4 * part + byte
             : word == 0 || part < 3 ? 2 + 16 * word + 4 * part + byte
             : byte < 2              ? byte
                                     : 28 + byte;
    }
    static constexpr __device__ int First(int p) { return 2 * p; }
    static constexpr __device__ int Second(int p) { return 2 * p + 1; }

    static __device__ __forceinline__ void Widen(uint32_t word, uint32_t *two) {
        word ^= 0x80808080u;
        two[0] = Unbias(__byte_perm(word, 0x64646464u, 0x4140), 128);
        two[1] = Unbias(__byte_perm(word, 0x64646464u, 0x4342), 128);
    }
    static __device__ __forceinline__ void Pairs(const uint32_t (&part)[kWords], uint32_t (&two)[4]) {
        Widen(part[0], two);
        Widen(part[1], two + 2);
    }
    static __device__ __forceinline__ void Both(const uint32_t (&a)[kWords], const uint32_t (&b)[kWords], uint32_t (&two)[8]) {
#pragma unroll
        for (int w = 0; w < kWords; w++) {
            Widen(__byte_perm(a[w], b[w], 0x5140), two + 4 * w);
            Widen(__byte_perm(a[w], b[w], 0x7362), two + 4 * w + 2);
        }
    }
};

/* Heads of kElements, fewer than kDim: their last unit is one block, which stands for both where it is read, and rows need not begin at
 * a multiple of four bytes. They are copied from such a multiple on, and words are put together of two. */
template <int kDim, class Block, int kElements = kDim>
struct PackedRows {
    static constexpr bool kBf16 = false;
    static constexpr bool kPacked = true;
    static constexpr bool kPadded = kElements != kDim;
    static constexpr bool kTma = false;
    static constexpr int  kHeadDim = kElements;
    static constexpr int  kRowBytes = kElements / 32 * Block::kBytes;
    static constexpr bool kShifted = kRowBytes % 4 != 0;
    static constexpr int  kCopy = kShifted ? 4 : kDim / 16; /* rows are 17 or 9 times that, if they are whole */
    static constexpr int  kChunks = kShifted ? (kRowBytes + 2) / 4 : kRowBytes / kCopy;
    static constexpr int  kPitch = LIM_CUDA_PACKED_PITCH(kDim / 32 * Block::kBytes);
    static constexpr int  kUnits = (kElements + 63) / 64;
    static constexpr int  kUnitWords = Block::kBytes / 2;
    static constexpr int  kTakeWord = 0x7654, kTakeRest = 0x5432; /* the word itself, or what the unit's first one and it have beside scales */

    static __device__ __forceinline__ uint32_t Pitch(int) { return kPitch; }
    /* How far from a multiple of four bytes a head's rows begin. */
    static __device__ __forceinline__ uint32_t        ShiftOf(const uint8_t *row) { return kShifted ? (uint32_t)(uintptr_t)row & 2 : 0; }
    static __device__ __forceinline__ const uint32_t *UnitAt(const uint8_t *tile, int token, int unit) {
        return (const uint32_t *)(tile + token * kPitch) + unit * kUnitWords;
    }
    static __device__ __forceinline__ uint32_t Word(const uint32_t *w, int i, uint32_t shift) {
        if constexpr (kShifted) return __byte_perm(w[i], w[i + 1], shift ? 0x5432 : 0x3210);
        return w[i];
    }
    static __device__ __forceinline__ bool HasSecond(int unit) { return !kPadded || unit * 64 + 32 < kElements; }

    /* Tokens g and g + 8 of a tile, a unit: four steps' fragments, of which each two are of one block, and the blocks' scales
     * of both tokens. */
    static __device__ __forceinline__ void Keys(const uint8_t *tile, uint32_t shift, int unit, int lane, uint32_t (&a)[4][4], float (&scale)[2][2]) {
        const int g = lane >> 2, t = lane & 3, take = t == 3 ? kTakeRest : kTakeWord;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint32_t *const w = UnitAt(tile, g + r * 8, unit);
            const uint32_t        start = Word(w, 0, shift);
#pragma unroll
            for (int odd = 0; odd < (HasSecond(unit) ? 2 : 1); odd++) {
                uint32_t part[Block::kWords], two[4];
#pragma unroll
                for (int i = 0; i < Block::kWords; i++) part[i] = Word(w, Block::WordAt(odd, t, i), shift);
                uint32_t &last = part[Block::kWords - 1];
                if (odd == 0) last = __byte_perm(start, last, take);
                scale[odd][r] = odd == 0 ? LowerHalf(start) : UpperHalf(Word(w, Block::kMiddle, shift));
                Block::Pairs(part, two);
#pragma unroll
                for (int p = 0; p < 4; p++) a[odd * 2 + p / 2][p % 2 * 2 + r] = two[p];
            }
        }
    }
    /* A step's half is the pair step % 2 * 2 + half of the thread's part. */
    static __device__ __forceinline__ int QueryDim(int step, int half, int t) {
        return step / 2 * 32 + Block::Element(step / 2 % 2, t, Block::First(step % 2 * 2 + half));
    }
    static __device__ __forceinline__ int QueryNext(int step, int half, int t) {
        return step / 2 * 32 + Block::Element(step / 2 % 2, t, Block::Second(step % 2 * 2 + half)) - QueryDim(step, half, t);
    }

    /* A tile's values of a unit: the thread's part is of the unit's first block where g < 4, else of its second. Where a part has
     * two words, the second block's threads read theirs the other way round, for the banks' sake. */
    static __device__ __forceinline__ int PartElement(int odd, int part, int j) {
        return Block::Element(odd, part, Block::kWords == 2 && odd ? j ^ 4 : j);
    }
    static __device__ __forceinline__ void Values(const uint8_t *tile, uint32_t shift, int unit, int lane, uint32_t (&a)[4][4]) {
        const int g = lane >> 2, t = lane & 3, odd = HasSecond(unit) ? g >> 2 : 0, part = g & 3, take = odd == 0 && part == 3 ? kTakeRest : kTakeWord;
#pragma unroll
        for (int r = 0; r < 2; r++) { /* tokens 2t and 2t + 1, the same in the upper eight */
            uint32_t word[2][Block::kWords], scale[2], two[8];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint32_t *const w = UnitAt(tile, t * 2 + i + r * 8, unit);
                scale[i] = Word(w, odd * Block::kMiddle, shift);
#pragma unroll
                for (int j = 0; j < Block::kWords; j++) word[i][j] = Word(w, Block::WordAt(odd, part, Block::kWords == 2 ? j ^ odd : 0), shift);
                uint32_t &last = word[i][Block::kWords - 1];
                last = __byte_perm(scale[i], last, take);
            }
            const uint32_t scales = __byte_perm(scale[0], scale[1], odd ? 0x7632 : 0x5410);
            Block::Both(word[0], word[1], two);
#pragma unroll
            for (int j = 0; j < 8; j++) a[j / 2][j % 2 + r * 2] = Scaled(two[j], scales);
        }
    }
    static __device__ __forceinline__ int ValueDim(int step, int upper, int g) {
        const int odd = g >> 2;
        return step / 4 * 64 + odd * 32 + PartElement(odd, g & 3, step % 4 * 2 + upper);
    }
};

/* The same as TMA leaves them: rows at the pitch, with what follows them in memory in between. */
template <int kDim, class Block>
struct TmaPackedRows : PackedRows<kDim, Block> {
    static constexpr bool kTma = true;
};

}  // namespace lessismore

#endif
