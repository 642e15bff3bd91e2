/* The query of a work tile: all query heads of a KV head, in shared memory in the order of the matrix fragments, and from there
 * in registers where they have the room. */
#ifndef LESSISMORE_CUDA_QUERY_CUH
#define LESSISMORE_CUDA_QUERY_CUH

#include "elements.cuh"
#include "kernels.h"
#include "rows.cuh"

namespace lessismore {

template <class Rows, int kDim, int kHeadTiles, int kThreads, bool kShort>
struct Query {
    static constexpr int kFragments = kDim / 16;
    /* With 16 heads of 256 elements it does not fit the registers beside the values. */
    static constexpr bool kInRegisters = kFragments * kHeadTiles <= 16;
    static constexpr int  kHeld = kInRegisters ? kFragments : 1;
    static constexpr int  kPitch = LIM_CUDA_QUERY_PITCH(kDim);
    /* Brought when it is needed, after the first tiles have been asked for: where copies do not do it, they would wait for it. */
    static constexpr bool kLate = Rows::kTma || (Rows::kPacked && kShort);
    static constexpr int  kBytes = Rows::kTma ? LIM_CUDA_TMA_QUERY_BYTES(kDim) : kHeadTiles * 8 * kPitch;

    uint8_t *shared;
    uint32_t q[kHeadTiles][kHeld][2];

    static constexpr int kTurns = kHeadTiles * 8 * (kDim / 2) / kThreads;

    /* A pair of elements to where its fragment is; heads that are not there are zero. */
    template <int kUnroll, class Load>
    __device__ __forceinline__ void StagePairs(const lim_cuda_args &args, const uint8_t *query, Load load) const {
#pragma unroll kUnroll
        for (int i = threadIdx.x; i < kHeadTiles * 8 * (kDim / 2); i += kThreads) {
            const int head = i / (kDim / 2), pair = i % (kDim / 2); /* of a step's eight: half * 4 + t */
            const int d = Rows::QueryDim(pair / 8, pair / 4 % 2, pair % 4), next = Rows::QueryNext(pair / 8, pair / 4 % 2, pair % 4);
            uint8_t  *to = shared + head * kPitch + pair * 4;
            if (head < args.group && (!Rows::kPadded || d < args.call.dim)) {
                load(to, query + head * args.call.query.head_stride, d, d + next);
            } else {
                *(uint32_t *)to = 0;
            }
        }
    }

    /* The block brings the group's query, as the store's type. */
    __device__ __forceinline__ void Stage(const lim_cuda_args &args, const uint8_t *query) const {
        const int     type = args.call.query.type;
        constexpr int kAtOnce = kShort ? kTurns : 1; /* under way together, where the registers are free */
        if (!Rows::kPacked && type == (Rows::kBf16 ? LIM_CUDA_BF16 : LIM_CUDA_F16)) { /* the usual case needs no conversion */
            StagePairs<Rows::kTma ? kTurns : 1>(args, query, [](uint8_t *to, const uint8_t *from, int d, int) {
                if constexpr (kShort) { /* ahead of the copies of K and V, which then need not wait for it */
                    CopyAsyncPair(SharedAddress(to), from + d * 2);
                } else {
                    *(uint32_t *)to = __ldg((const uint32_t *)from + d / 2);
                }
            });
        } else if (type == LIM_CUDA_F32) {
            StagePairs<kAtOnce>(args, query, [](uint8_t *to, const uint8_t *from, int d, int other) {
                *(uint32_t *)to = PackPair<Rows::kBf16>(__ldg((const float *)from + d), __ldg((const float *)from + other));
            });
        } else {
            StagePairs<1>(args, query, [type](uint8_t *to, const uint8_t *from, int d, int other) {
                *(uint32_t *)to = PackPair<Rows::kBf16>(LoadElement(from, type, d), LoadElement(from, type, other));
            });
        }
        if constexpr (kShort && !kLate) CopyCommit();
    }

    /* The block's warps meet here once for each split. */
    static __device__ __forceinline__ void Meet() {
        MeetAt<1, kThreads>();
        if (kShort) ClusterWait(); /* long since over: all its blocks have begun, and may be sent to */
    }

    /* Two steps' fragments of eight heads. */
    __device__ __forceinline__ void Fragments(int tile, int step, uint32_t (&b)[4]) const {
        LoadMatrices(b, SharedAddress(shared) + (tile * 8 + (threadIdx.x & 7)) * kPitch + step * 32 + ((threadIdx.x & 31) >> 3) * 16);
    }

    /* A step's operand: held, or, for each two steps, brought again by Pair. */
    __device__ __forceinline__ void Pair(int tile, int step, uint32_t (&again)[4]) const {
        if constexpr (!kInRegisters) {
            if (step % 2 == 0) Fragments(tile, step, again);
        }
    }
    __device__ __forceinline__ uint32_t Low(int tile, int step, const uint32_t (&again)[4]) const {
        if constexpr (kInRegisters) return q[tile][step][0];
        return again[step % 2 * 2];
    }
    __device__ __forceinline__ uint32_t High(int tile, int step, const uint32_t (&again)[4]) const {
        if constexpr (kInRegisters) return q[tile][step][1];
        return again[step % 2 * 2 + 1];
    }

    __device__ __forceinline__ void Hold() {
        if constexpr (kInRegisters) {
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
                for (int f = 0; f < kHeld; f += 2) {
                    uint32_t b[4];
                    Fragments(h, f, b);
                    q[h][f][0] = b[0], q[h][f][1] = b[1], q[h][f + 1][0] = b[2], q[h][f + 1][1] = b[3];
                }
            }
        }
    }
};

}  // namespace lessismore

#endif
