/* Where a tile's logits go beside the softmax: nowhere, all of them to the row's logits, or through the logit filter to the
 * survivors. Only a selection layer's rows above the budget have somewhere. */
#ifndef LESSISMORE_CUDA_LOGIT_SINK_CUH
#define LESSISMORE_CUDA_LOGIT_SINK_CUH

#include "kernels.h"
#include "logit_filter.cuh"
#include "rows.cuh"
#include "work_tile.cuh"

namespace lessismore {

/* All of them, or none, as they come. */
template <int kHeadTiles>
struct LogitSink {
    float *logits; /* of the KV head's group; nullptr: none */
    int    group, lane;

    __device__ __forceinline__ void Open(const lim_cuda_args &args, const WorkTile &work) {
        const lim_cuda_call &call = args.call;
        logits = nullptr, group = args.group;
        if (call.mode == LIM_CUDA_SELECT && work.tokens > call.budget) {
            logits = (float *)args.logits + ((int64_t)work.row * call.heads + (int64_t)work.head * group) * args.room_stride;
        }
    }

    /* Eight heads, 16 tokens of a head after 16 of another: each thread gets four tokens in a row of one head, so that whole
     * lines are written at once. What is beyond the row's tokens is room of the last tile and never read. */
    __device__ __forceinline__ void Store(int token, int h, const float (&x)[4]) const {
        const int   g = lane >> 2, t = lane & 3;
        const bool  odd = g & 1, upper = g & 2;
        const float low = __shfl_xor_sync(kAll, odd ? x[0] : x[1], 4), high = __shfl_xor_sync(kAll, odd ? x[2] : x[3], 4);
        /* Now of head 2t + odd: tokens g and g + 1 (or g - 1 and g), and the same in the upper eight. */
        const float2 a = odd ? float2{low, x[1]} : float2{x[0], low}, b = odd ? float2{high, x[3]} : float2{x[2], high};
        const float  first = __shfl_xor_sync(kAll, upper ? a.x : b.x, 8), second = __shfl_xor_sync(kAll, upper ? a.y : b.y, 8);
        const int    head = h * 8 + t * 2 + (odd ? 1 : 0);
        if (head >= group) return;
        const float4 four = upper ? float4{first, second, b.x, b.y} : float4{a.x, a.y, first, second};
        float4      *to = (float4 *)(logits + (int64_t)token * group + head * kTile + (upper ? 8 : 0) + (g >> 2) * 4);
        *to = four;
    }

    __device__ __forceinline__ void Put(const float (&x)[kHeadTiles][4], int token) const {
        if (logits == nullptr) return;
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) Store(token, h, x[h]);
    }
    __device__ __forceinline__ void Leave() const {}
    __device__ __forceinline__ void Close() const {}
};

/* The same; a tile's logits leave while the next tile is waited for. kFilter: through the logit filter where the row's are
 * filtered: the first `samples` tiles are its sample. */
template <int kWarps, bool kFilter>
struct LateLogitSink : LogitSink<1> {
    float               before[4];
    int                 before_token;
    LogitFilter<kWarps> filter;
    bool                filters;
    int                 samples, sampled, step;
    uint32_t            need;

    __device__ __forceinline__ void Open(const lim_cuda_args &args, const WorkTile &work) {
        LogitSink<1>::Open(args, work);
        before_token = -1;
        samples = sampled = step = 0;
        filters = false;
    }
    /* Tokens [begin, end) of the work tile, whose row's logits are filtered. */
    __device__ __forceinline__ void Filter(const lim_cuda_args &args, const WorkTile &work, int begin, int end, int warp,
                                           typename LogitFilter<kWarps>::Survivors *survivors, float *sample) {
        filter = {survivors, sample, (uint2 *)logits, (uint32_t)group, (uint32_t)args.logit_stride, begin, end, args.call.sink_tokens,
                  min(end, work.tokens - args.call.recent), warp, lane};
        filters = true;
        need = args.need;
        filter.Open();
        if (end - begin >= (int)FilterLeast(need, (uint32_t)group, kWarps) / 2) {
            samples = (int)filter.Tiles();
            step = (end - begin) / (kWarps * kTile) / samples;
        }
    }

    __device__ __forceinline__ void Put(const float (&x)[1][4], int token) {
#pragma unroll
        for (int i = 0; i < 4; i++) before[i] = x[0][i];
        before_token = token;
    }
    __device__ __forceinline__ void Leave() {
        if (before_token < 0) return;
        if (kFilter && filters) {
            if (sampled < samples) {
                filter.Sample(before, sampled, before_token);
                if (++sampled == samples) {
                    const uint32_t split = filter.end - filter.begin, all = samples * kTile;
                    filter.SetBounds((uint32_t)((uint64_t)FilterAim(need, split) * all / split), filter.begin + filter.warp * kTile,
                                     step * kWarps * kTile);
                }
            } else {
                filter.Keep(before, before_token);
            }
        } else if (logits != nullptr) {
            Store(before_token, 0, before);
        }
    }
    __device__ __forceinline__ void Close() {
        Leave();
        if (kFilter && filters) filter.SendRest(filter.waiting[0], filter.waiting[1]);
    }
};

}  // namespace lessismore

#endif
