/* K and V rows by element type: how they are copied to shared memory and how matrix fragments are read there.
 *
 * A tile is 16 tokens of one KV head. Scores are K (16 tokens x dim) times query (dim x 8 heads); values are
 * V transposed (dim x 16 tokens) times weights (16 tokens x 8 heads): with the tokens on the 16-wide side,
 * 8 query heads fill the instruction and nothing is padded at the usual group sizes.
 *
 * Each type says:
 *   kCopy      bytes of one asynchronous copy; rows and strides are multiples of it
 *   RowBytes   bytes of a row in device memory, and Chunks copies that bring them
 *   kPitch     bytes from row to row in shared memory: 16 more than the row, so that the eight rows of a
 *              matrix fall into different banks
 *   kTma       whether TMA loads whole tiles
 *   kPacked    blocks with a scale, which are no matrices in shared memory: see packed.cuh
 *   kPadded    whether heads have fewer elements than kDim
 *   KeyFragments / ValueFragments   one ldmatrix: kSteps k-steps (K) or m-tiles (V) of 16 elements
 *   QueryDim / ValueDim             which element of the head a fragment's index means; of a query's pair the first one, and
 *                                   how far from it the second is: QueryNext */
#ifndef LESSISMORE_CUDA_ROWS_CUH
#define LESSISMORE_CUDA_ROWS_CUH

#include "layout.h"
#include "mma.cuh"

namespace lessismore {

constexpr int kTile = LIM_CUDA_TILE;

/* f16 and bf16: the fragments are what ldmatrix gives. */
template <int kDim, bool kBf16Type>
struct HalfRows {
    static constexpr bool kBf16 = kBf16Type;
    static constexpr bool kPacked = false;
    static constexpr bool kPadded = false;
    static constexpr bool kTma = false;
    static constexpr int  kCopy = 16;
    static constexpr int  kRowBytes = kDim * 2;
    static constexpr int  kChunks = kRowBytes / kCopy;
    static constexpr int  kPitch = LIM_CUDA_PITCH(kRowBytes);
    static constexpr int  kSteps = 1;

    /* From a K tile's address: this lane's row address for ldmatrix, to which the step's offset is added. */
    static __device__ __forceinline__ uint32_t KeyLane(int lane, uint32_t pitch) { return (lane & 15) * pitch + (lane >> 4) * 16; }
    static __device__ __forceinline__ uint32_t ValueLane(int lane, uint32_t pitch) {
        return ((lane & 7) + (lane >> 4) * 8) * pitch + (lane >> 3 & 1) * 16;
    }
    static __device__ __forceinline__ uint32_t Pitch(int) { return kPitch; } /* of heads of so many elements */
    static __device__ __forceinline__ void     KeyFragments(uint32_t from, int step, uint32_t (&a)[kSteps][4]) {
        LoadMatrices(a[0], from + step * 32);
    }
    static __device__ __forceinline__ void ValueFragments(uint32_t from, int step, uint32_t (&a)[kSteps][4]) {
        LoadMatricesTransposed(a[0], from + step * 32);
    }
    /* The query element for register `half` of k-step `step`, lane's column pair `t`: it and the next one. */
    static __device__ __forceinline__ int QueryDim(int step, int half, int t) { return step * 16 + half * 8 + t * 2; }
    static __device__ __forceinline__ int QueryNext(int, int, int) { return 1; }
    /* The value element of accumulator row `g` (+ 8 for the upper half) of m-tile `step`. */
    static __device__ __forceinline__ int ValueDim(int step, int upper, int g) { return step * 16 + upper * 8 + g; }
};

/* The same for heads of fewer elements than kDim, a multiple of 16: only those are read, and steps beyond them are left out. */
template <int kDim, bool kBf16Type>
struct PaddedRows : HalfRows<kDim, kBf16Type> {
    static constexpr bool kPadded = true;

    static __device__ __forceinline__ uint32_t Pitch(int dim) { return LIM_CUDA_PITCH((uint32_t)dim * 2); } /* less room, deeper pipelines */
};

/* The same as TMA leaves them: tiles of 64 elements after one another, rows of 128 bytes whose 16-byte
 * chunks are permuted by the row's number, which parts the rows of a matrix among the banks. A tile begins at a multiple
 * of 1,024 bytes. */
template <int kDim, bool kBf16Type>
struct TmaRows : HalfRows<kDim, kBf16Type> {
    static constexpr bool kTma = true;
    static constexpr int  kPitch = kDim * 2; /* on average */
    static constexpr int  kBoxBytes = kTile * 128;

    static __device__ __forceinline__ uint32_t Chunk(int row, int chunk) { return row * 128 + (chunk ^ (row & 7)) * 16; }
    static __device__ __forceinline__ uint32_t KeyLane(int lane, uint32_t) { return Chunk(lane & 15, lane >> 4); }
    static __device__ __forceinline__ uint32_t ValueLane(int lane, uint32_t) { return Chunk((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1); }
    static __device__ __forceinline__ uint32_t StepFrom(uint32_t from, int step) { return (from ^ step % 4 * 32) + step / 4 * kBoxBytes; }
    static __device__ __forceinline__ void     KeyFragments(uint32_t from, int step, uint32_t (&a)[1][4]) { LoadMatrices(a[0], StepFrom(from, step)); }
    static __device__ __forceinline__ void     ValueFragments(uint32_t from, int step, uint32_t (&a)[1][4]) {
        LoadMatricesTransposed(a[0], StepFrom(from, step));
    }
};

/* e4m3: ldmatrix moves pairs of elements, which conversion to f16 parts again. Each thread then holds other
 * elements than with f16, so the query is loaded, and the values are stored, in that order. */
template <int kDim>
struct ByteRows {
    static constexpr bool kBf16 = false;
    static constexpr bool kPacked = false;
    static constexpr bool kPadded = false;
    static constexpr bool kTma = false;
    static constexpr int  kCopy = 16;
    static constexpr int  kRowBytes = kDim;
    static constexpr int  kChunks = kRowBytes / kCopy;
    static constexpr int  kPitch = LIM_CUDA_PITCH(kRowBytes);
    static constexpr int  kSteps = 2;

    static __device__ __forceinline__ uint32_t KeyLane(int lane, uint32_t pitch) { return (lane & 15) * pitch + (lane >> 4) * 16; }
    static __device__ __forceinline__ uint32_t ValueLane(int lane, uint32_t pitch) { return KeyLane(lane, pitch); }
    static __device__ __forceinline__ uint32_t Pitch(int) { return kPitch; }

    static __device__ __forceinline__ uint32_t Widen(uint32_t two) {
#if __CUDA_ARCH__ >= 890
        uint32_t r;
        asm("{.reg .b16 x; cvt.u16.u32 x, %1; cvt.rn.f16x2.e4m3x2 %0, x;}" : "=r"(r) : "r"(two));
        return r;
#else
        /* By hand: e4m3's exponent bias is 7, f16's 15. Shifted into place a value is 2^-8 of itself, and
         * subnormals stay right; NaN (all ones) is put in afterwards. */
        const uint32_t spread = (two & 0xff) | (two & 0xff00) << 8;
        uint32_t       bits = (spread & 0x00800080) << 8 | (spread & 0x007f007f) << 7;
        __half2        h = __hmul2(*(__half2 *)&bits, __float2half2_rn(256.0f));
        bits = *(uint32_t *)&h;
        if ((spread & 0x7f) == 0x7f) bits |= 0x7fff;
        if ((spread & 0x7f0000) == 0x7f0000) bits |= 0x7fff0000;
        return bits;
#endif
    }
    static __device__ __forceinline__ void KeyFragments(uint32_t from, int step, uint32_t (&a)[kSteps][4]) {
        uint32_t r[4];
        LoadMatrices(r, from + step * 32);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            a[s][0] = Widen(r[2 * s] & 0xffff);
            a[s][1] = Widen(r[2 * s + 1] & 0xffff);
            a[s][2] = Widen(r[2 * s] >> 16);
            a[s][3] = Widen(r[2 * s + 1] >> 16);
        }
    }
    static __device__ __forceinline__ void ValueFragments(uint32_t from, int step, uint32_t (&a)[kSteps][4]) {
        uint32_t r[4];
        LoadMatricesTransposed(r, from + step * 32);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            /* Tokens 2t and 2t + 1, elements 2g and 2g + 1: bring the tokens of one element together. */
            const uint32_t low = __byte_perm(r[2 * s], 0, 0x3120), high = __byte_perm(r[2 * s + 1], 0, 0x3120);
            a[s][0] = Widen(low & 0xffff);
            a[s][1] = Widen(low >> 16);
            a[s][2] = Widen(high & 0xffff);
            a[s][3] = Widen(high >> 16);
        }
    }
    static __device__ __forceinline__ int QueryDim(int step, int half, int t) { return step * 16 + t * 4 + half * 2; }
    static __device__ __forceinline__ int QueryNext(int, int, int) { return 1; }
    static __device__ __forceinline__ int ValueDim(int step, int upper, int g) { return step * 16 + g * 2 + upper; }
};

/* Shared memory of a warp: a stage is a tile of K and one of V. */
template <class Rows>
struct StageOf {
    static __device__ __forceinline__ uint32_t TileBytes(int dim) { return kTile * Rows::Pitch(dim); }
    static __device__ __forceinline__ uint32_t Bytes(int dim) { return 2 * TileBytes(dim); }
};

}  // namespace lessismore

#endif
