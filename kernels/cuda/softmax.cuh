/* Softmax as it is computed tile by tile: row_max, row_sum, and the accumulator, sums of values by weights that are relative to
 * row_max. In base 2. Weights become f16 or bf16 for the product with the values; for f16 they are shifted up by 2^kShift so
 * that those of a diffuse head do not fall below its smallest numbers. */
#ifndef LESSISMORE_CUDA_SOFTMAX_CUH
#define LESSISMORE_CUDA_SOFTMAX_CUH

#include "mma.cuh"
#include "warp.cuh"

#include <math.h>

namespace lessismore {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLowest = -3.0e38f; /* row_max of no logits: the difference of two must be a number */

/* Four elements of one head, of some of its tokens. */
struct Partial {
    float4 values;
    float  row_max, row_sum;
};
static __device__ __forceinline__ Partial NoPartial() { return {float4{0, 0, 0, 0}, kLowest, 0}; }

/* All of them together, added up in their order. */
template <int kCount>
static __device__ __forceinline__ Partial Merge(const Partial (&part)[kCount]) {
    Partial all = {float4{0, 0, 0, 0}, part[0].row_max, 0};
#pragma unroll
    for (int p = 1; p < kCount; p++) all.row_max = fmaxf(all.row_max, part[p].row_max);
#pragma unroll
    for (int p = 0; p < kCount; p++) {
        const float   weight = Exp2(part[p].row_max - all.row_max);
        const float4 &v = part[p].values;
        all.values.x += v.x * weight, all.values.y += v.y * weight, all.values.z += v.z * weight, all.values.w += v.w * weight;
        all.row_sum += part[p].row_sum * weight;
    }
    return all;
}

/* A warp's, of all heads of the group. Each thread has tokens g and g + 8 of a tile and heads 2t and 2t + 1, and in the
 * accumulator elements g and g + 8 of each 16 for the same heads. */
template <class Rows, int kDim, int kHeadTiles>
struct Softmax {
    static constexpr int   kFragments = kDim / 16;
    static constexpr float kShift = Rows::kBf16 ? 0.0f : 12.0f;

    float o[kHeadTiles][kFragments][4];
    float row_max[kHeadTiles][2], row_sum[kHeadTiles][2];

    __device__ __forceinline__ void Begin() {
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
            row_max[h][0] = row_max[h][1] = kLowest;
            row_sum[h][0] = row_sum[h][1] = 0;
#pragma unroll
            for (int f = 0; f < kFragments; f++) o[h][f][0] = o[h][f][1] = o[h][f][2] = o[h][f][3] = 0;
        }
    }

    /* Raises row_max to a tile's logits, and makes what was added up before relative to it. */
    __device__ __forceinline__ void Raise(const float (&x)[kHeadTiles][4]) {
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                /* fmaxf leaves NaN out; it reaches the sums by itself. */
                float now = fmaxf(fmaxf(x[h][c], x[h][c + 2]), row_max[h][c]);
                now = fmaxf(now, __shfl_xor_sync(kAll, now, 4));
                now = fmaxf(now, __shfl_xor_sync(kAll, now, 8));
                now = fmaxf(now, __shfl_xor_sync(kAll, now, 16));
                const float shrink = Exp2(row_max[h][c] - now);
                row_max[h][c] = now;
                row_sum[h][c] *= shrink;
#pragma unroll
                for (int f = 0; f < kFragments; f++) {
                    o[h][f][c] *= shrink;
                    o[h][f][c + 2] *= shrink;
                }
            }
        }
    }

    /* A tile's logits, of which those of `left` tokens count (16 or more: all), become weights: the second operand of the
     * product with the values. */
    __device__ __forceinline__ void Weigh(float (&x)[kHeadTiles][4], int g, int left, uint32_t (&weights)[kHeadTiles][2]) {
        bool higher = false;
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[h][i] = g + (i >> 1) * 8 < left ? x[h][i] * kLog2e : -INFINITY;
                higher |= x[h][i] > row_max[h][i & 1];
            }
        }
        if (__any_sync(kAll, higher)) Raise(x);
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[h][i] = Exp2(x[h][i] - row_max[h][i & 1] + kShift);
                row_sum[h][i & 1] += x[h][i];
            }
            /* Tokens to the rows' side: what was the result's layout becomes the second operand's. */
            weights[h][0] = TransposeMatrix(PackPair<Rows::kBf16>(x[h][0], x[h][1]));
            weights[h][1] = TransposeMatrix(PackPair<Rows::kBf16>(x[h][2], x[h][3]));
        }
    }

    /* Each thread has had the sums of its own tokens. */
    __device__ __forceinline__ void AddUpLanes() {
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
#pragma unroll
                for (int d = 4; d < 32; d *= 2) row_sum[h][c] += __shfl_xor_sync(kAll, row_sum[h][c], d);
            }
        }
    }
};

}  // namespace lessismore

#endif
