/* What becomes of a split's result. The block's warps merge into one; then
 *
 *   final     the split is the whole work tile: the output is written
 *   partial   it is one of several, of blocks that come when they come: it goes to work memory, and the last of the work
 *             tile's blocks to arrive merges them, in the order of the splits
 *   cluster   it is one of several, of blocks that run together: each gets its share of all elements from the others through
 *             distributed shared memory (DSMEM), and finishes that */
#ifndef LESSISMORE_CUDA_EPILOGUE_CUH
#define LESSISMORE_CUDA_EPILOGUE_CUH

#include "elements.cuh"
#include "kernels.h"
#include "layout.h"
#include "softmax.cuh"
#include "split.h"
#include "work_tile.cuh"

namespace lessismore {

/* The sink, the quotient, the output: four elements of one head. Weights are 2^shift too large. */
__device__ __forceinline__ void FinishHead(const lim_cuda_args &args, float shift, int row, int head, int d, Partial p) {
    const lim_cuda_call &call = args.call;
    float4              &v = p.values;
    if (call.sinks != 0) {
        const float sink = __ldg((const float *)call.sinks + head) * kLog2e, larger = fmaxf(p.row_max, sink);
        const float shrink = Exp2(p.row_max - larger);
        v.x *= shrink, v.y *= shrink, v.z *= shrink, v.w *= shrink;
        p.row_sum = p.row_sum * shrink + Exp2(sink - larger + shift);
        p.row_max = larger;
    }
    if (call.mode == LIM_CUDA_SELECT && d == 0) {
        ((float *)args.sums)[(int64_t)row * call.heads + head] = (p.row_max - shift) * kLn2 + logf(p.row_sum);
    }
    const float inverse = p.row_sum == 0 ? 0.0f : call.value_scale / p.row_sum; /* no visible token: zeros */
    v.x *= inverse, v.y *= inverse, v.z *= inverse, v.w *= inverse;
    uint8_t *to = (uint8_t *)call.output.data + row * call.output.row_stride + (int64_t)head * call.output.head_stride;
    StoreFour(to, call.output.type, d, v);
}
static __device__ __noinline__ void FinishHeadOutOfLine(const lim_cuda_args &args, float shift, int row, int head, int d, float4 values,
                                                        float row_max, float row_sum) {
    FinishHead(args, shift, row, head, d, Partial{values, row_max, row_sum});
}

/* A block's warps into one: each leaves its values where its tiles were. */
template <class Rows, int kDim, int kHeadTiles, int kWarps>
struct WarpMerge {
    static constexpr int kPitch = kDim + 4;

    float row_max[kWarps][kHeadTiles * 8], row_sum[kWarps][kHeadTiles * 8];

    __device__ __forceinline__ void Leave(Softmax<Rows, kDim, kHeadTiles> &softmax, int group, int warp, int lane, uint8_t *mine) {
        const int g = lane >> 2, t = lane & 3;
        softmax.AddUpLanes();
        __syncwarp();
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const int head = h * 8 + t * 2 + c;
                if (head >= group) continue;
                if (g == 0) {
                    row_max[warp][head] = softmax.row_max[h][c];
                    row_sum[warp][head] = softmax.row_sum[h][c];
                }
                float *to = (float *)mine + head * kPitch;
#pragma unroll
                for (int f = 0; f < kDim / 16; f++) {
                    to[Rows::ValueDim(f, 0, g)] = softmax.o[h][f][c];
                    to[Rows::ValueDim(f, 1, g)] = softmax.o[h][f][c + 2];
                }
            }
        }
        __syncthreads();
    }
    /* `tiles` is the first warp's. */
    __device__ __forceinline__ Partial Four(int head, int d, const uint8_t *tiles, uint32_t warp_bytes) const {
        Partial part[kWarps];
#pragma unroll
        for (int w = 0; w < kWarps; w++) {
            part[w] = {*(const float4 *)(tiles + w * warp_bytes + (head * kPitch + d) * 4), row_max[w][head], row_sum[w][head]};
        }
        return Merge(part);
    }
};

/* Final and partial. */
template <class Rows, int kDim, int kHeadTiles, int kWarps>
struct SplitEpilogue {
    static constexpr int   kThreads = kWarps * 32;
    static constexpr int   kAtOnce = 8; /* parts that the merge reads at once */
    static constexpr float kShift = Softmax<Rows, kDim, kHeadTiles>::kShift;

    const lim_cuda_args &args;

    __device__ __forceinline__ void Finish(const WorkTile &work, int in_group, int d, const Partial &p) const {
        FinishHeadOutOfLine(args, kShift, work.row, work.head * args.group + in_group, d, p.values, p.row_max, p.row_sum);
    }

    __device__ __forceinline__ void Put(const WorkTile &work, const WarpMerge<Rows, kDim, kHeadTiles, kWarps> &warps, const uint8_t *tiles,
                                        uint32_t warp_bytes, bool whole, uint32_t which) const {
        const int group = args.group;
        float    *part = (float *)args.parts + which * (size_t)PartFloats(group, kDim);
#pragma unroll 1
        for (int i = threadIdx.x; i < group * (kDim / 4); i += kThreads) {
            const int head = i / (kDim / 4), d = i % (kDim / 4) * 4;
            if (Rows::kPadded && d >= args.call.dim) continue;
            const Partial p = warps.Four(head, d, tiles, warp_bytes);
            if (whole) {
                Finish(work, head, d, p);
            } else {
                __stcg((float4 *)(part + head * kDim + d), p.values);
                if (d == 0) {
                    __stcg(part + group * kDim + head, p.row_max);
                    __stcg(part + group * (kDim + 1) + head, p.row_sum);
                }
            }
        }
    }

    /* Counts this block in; returns whether it is the last one of the work tile. */
    __device__ __forceinline__ bool Arrive(const WorkTile &work, uint32_t count) const {
        uint32_t *arrivals = (uint32_t *)args.arrivals + (int64_t)work.row * args.call.kv_heads + work.head;

        __shared__ bool is_last;
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence(); /* for the whole block: the barrier before it makes it cumulative */
            is_last = atomicAdd(arrivals, 1) == count - 1;
            if (is_last) *arrivals = 0; /* ready for the next call */
            __threadfence();
        }
        __syncthreads();
        return is_last;
    }

    /* After a partial result: the last block merges all of the work tile. */
    __device__ __forceinline__ void MergeParts(const WorkTile &work, uint32_t chunks, uint32_t blocks) const {
        const int      group = args.group;
        const Span     span = SpanOf(work, chunks, blocks);
        const uint32_t first = span.first;
        const int      count = (int)span.count;
        if (!Arrive(work, span.count)) return;
        const float *parts = (const float *)args.parts;
        const size_t size = PartFloats(group, kDim);
#pragma unroll 1
        for (int i = threadIdx.x; i < group * (kDim / 4); i += kThreads) {
            const int head = i / (kDim / 4), d = i % (kDim / 4) * 4;
            if (Rows::kPadded && d >= args.call.dim) continue;
            Partial all = NoPartial();
            /* Several parts under way at once: the time is all latency. */
#pragma unroll 1
            for (int base = 0; base < count; base += kAtOnce) {
                Partial part[kAtOnce + 1];
                part[0] = all;
#pragma unroll
                for (int p = 0; p < kAtOnce; p++) {
                    const int    which = min(base + p, count - 1);
                    const float *from = parts + SplitPart(first + which, which == 0) * size;
                    part[p + 1].row_max = base + p < count ? __ldcg(from + group * kDim + head) : kLowest;
                    part[p + 1].row_sum = base + p < count ? __ldcg(from + group * (kDim + 1) + head) : 0.0f;
                    part[p + 1].values = base + p < count ? __ldcg((const float4 *)(from + head * kDim + d)) : float4{0, 0, 0, 0};
                }
                all = Merge(part);
            }
            Finish(work, head, d, all);
        }
    }
};

/* Cluster. Each block's share is an equal number of the work tile's fours of elements: see DsmemFours in layout.h. */
template <class Rows, int kDim, int kHeadTiles, int kWarps>
struct ClusterEpilogue {
    static constexpr float kShift = Softmax<Rows, kDim, kHeadTiles>::kShift;
    static_assert(kHeadTiles * 8 * (kDim / 4) <= kWarps * 32, "a thread sends one four");

    const lim_cuda_args &args;
    uint8_t             *dsmem; /* where the other blocks store to */
    uint64_t            *full;  /* counts what has come there */

    uint32_t fours, finish_first, finish_count;  /* of a share; this block's own */
    uint32_t send_values, send_sums, send_full;  /* where this thread's four goes */

    /* Before anything is sent to this block. Each thread finds out where its own four will go, too: the divisions would take
     * their time when everything waits for them. */
    __device__ __forceinline__ void Open() {
        const uint32_t all = (uint32_t)args.group * (kDim / 4);
        fours = DsmemFours(args.group, kDim, args.cluster);
        const uint32_t to = min(threadIdx.x / fours, args.cluster - 1);
        finish_first = ClusterRank() * fours;
        finish_count = finish_first < all ? min(fours, all - finish_first) : 0;
        if (threadIdx.x == 0) {
            MbarrierInit(full);
            MbarrierFenceCluster();
        }
        const uint32_t at = finish_first + threadIdx.x % fours;
        send_values = InBlock(SharedAddress(dsmem), to) + at * 16;
        send_sums = InBlock(SharedAddress(dsmem), to) + args.cluster * fours * 16 + at * 8;
        send_full = InBlock(SharedAddress(full), to);
    }

    __device__ __forceinline__ void Put(const WorkTile &, const WarpMerge<Rows, kDim, kHeadTiles, kWarps> &warps, const uint8_t *tiles,
                                        uint32_t warp_bytes, bool, uint32_t) const {
        const int i = threadIdx.x;
        if (i >= args.group * (kDim / 4)) return;
        const Partial p = warps.Four(i / (kDim / 4), i % (kDim / 4) * 4, tiles, warp_bytes);
        StoreInBlock(send_values, p.values, send_full);
        StoreInBlock(send_sums, float2{p.row_max, p.row_sum}, send_full);
    }

    /* Waits for the other blocks' parts of the own share. */
    __device__ __forceinline__ void Finish(const WorkTile &work) const {
        if (threadIdx.x == 0) MbarrierExpect(SharedAddress(full), args.cluster * 24 * finish_count);
        MbarrierWaitCluster(full);
        const int four = (int)(finish_first + threadIdx.x), d = four % (kDim / 4) * 4;
        if (threadIdx.x >= finish_count || (Rows::kPadded && d >= args.call.dim)) return;
        const float4 *values = (const float4 *)dsmem + threadIdx.x;
        const float2 *sums = (const float2 *)((const float4 *)dsmem + args.cluster * fours) + threadIdx.x;
        Partial       part[LIM_CUDA_MOST_CLUSTER];
#pragma unroll
        for (uint32_t p = 0; p < LIM_CUDA_MOST_CLUSTER; p++) {
            const float2 sum = p < args.cluster ? sums[p * fours] : float2{kLowest, 0};
            part[p] = {p < args.cluster ? values[p * fours] : float4{0, 0, 0, 0}, sum.x, sum.y};
        }
        FinishHead(args, kShift, work.row, work.head * args.group + four / (kDim / 4), d, Merge(part));
    }
};

}  // namespace lessismore

#endif
