/* The attention's side of logit_filter.h: heads and lanes as in a tile's scores, heads 2t and 2t + 1, tokens g and g + 8.
 *
 * The block's warps meet once, for the bounds: each head's is the mean of those that the warps found in their samples. What
 * reaches it waits in each warp's shared memory until there are 32 of a head, and goes to memory in whole lines: single
 * ones cost as much as all logits would. */
#ifndef LESSISMORE_CUDA_LOGIT_FILTER_CUH
#define LESSISMORE_CUDA_LOGIT_FILTER_CUH

#include "mma.cuh"
#include "order.h"
#include "logit_filter.h"
#include "warp.cuh"

namespace lessismore {

template <int kWarps>
struct LogitFilter {
    static constexpr uint32_t kLine = 32;                               /* items that go to memory at once */
    static constexpr int      kMost = LIM_CUDA_FILTER_SAMPLES / kWarps / 4 / 32; /* samples of a head for each lane */

    /* Of the block: how many items are in the list that grows by lines, from the split's begin up, and in that of the
     * others, from its end down. */
    struct Survivors {
        uint32_t lines[8], others[8];
        float    found[kWarps][8]; /* by each warp in its samples */
        float    bound[kWarps][8]; /* each warp's own copy of the block's */
    };

    Survivors *survivors;
    float     *samples; /* the warp's: [group, 4 or 8][tiles][16]; then a head's items that wait */
    uint2     *items;   /* of the group's first head */
    uint32_t   group, stride; /* elements from head to head */
    int        begin, end;    /* the split */
    int        from, until;   /* the tokens that the selection chooses among */
    int        warp, lane;
    uint32_t   waiting[2]; /* of the lane's heads */

    __device__ __forceinline__ uint32_t Tiles() const { return FilterTiles(group, kWarps); }
    __device__ __forceinline__ float   *SamplesOf(uint32_t head) const { return samples + head * Tiles() * 16; }
    __device__ __forceinline__ uint2   *WaitingOf(uint32_t head) const { return (uint2 *)SamplesOf(head); }
    __device__ __forceinline__ bool     Chosen(int token) const { return token >= from && token < until; }

    /* Lists begin empty, and take everything. The block meets before the first logit. */
    __device__ __forceinline__ void Open() {
        waiting[0] = waiting[1] = 0;
        if (lane < 8) {
            survivors->bound[warp][lane] = lane < group ? -INFINITY : INFINITY;
            if (warp == 0) survivors->lines[lane] = survivors->others[lane] = 0;
        }
    }

    __device__ __forceinline__ void Sample(const float (&x)[4], uint32_t tile, int token) const {
        const int   mine = token + (lane >> 2);
        const float nan = __uint_as_float(ORDER_NONE);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const uint32_t head = (lane & 3) * 2 + c;
            if (head >= group) continue;
            float *to = SamplesOf(head) + tile * 16 + (lane >> 2);
            to[0] = Chosen(mine) ? x[c] : nan;
            to[8] = Chosen(mine + 8) ? x[c + 2] : nan;
        }
    }

    __device__ __forceinline__ uint32_t SampleKey(uint32_t head, uint32_t i) const {
        return head < group && i < Tiles() * 16 ? OrderKey(__float_as_uint(SamplesOf(head)[i])) : kAll;
    }

    /* After the last sample, by all warps: bounds that `rank` of a warp's samples of each head reach, about and on average.
     * Samples that do become items. */
    __device__ __forceinline__ void SetBounds(uint32_t rank, int first, int apart) const {
        __syncwarp();
#pragma unroll 1
        for (uint32_t head = 0; head < group; head += 2) { /* two at a time: the searches are all latency */
            uint32_t     key[2][kMost];
            FilterSearch search[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t lowest = kAll, highest = 0;
#pragma unroll
                for (int i = 0; i < kMost; i++) {
                    key[h][i] = SampleKey(head + h, lane + i * 32);
                    lowest = min(lowest, key[h][i]);
                    if (key[h][i] != kAll) highest = max(highest, key[h][i]); /* NaN is none */
                }
                lowest = __reduce_min_sync(kAll, lowest);
                highest = __reduce_max_sync(kAll, highest);
                search[h] = FilterSearchFrom(lowest, max(lowest, highest));
            }
#pragma unroll 1
            while (search[0].bit != 0 || search[1].bit != 0) {
                uint32_t less[2] = {};
#pragma unroll
                for (int i = 0; i < kMost; i++) {
                    less[0] += key[0][i] < FilterSearchTry(&search[0]);
                    less[1] += key[1][i] < FilterSearchTry(&search[1]);
                }
                less[0] = __reduce_add_sync(kAll, less[0]);
                less[1] = __reduce_add_sync(kAll, less[1]);
                FilterSearchNext(&search[0], less[0] < rank);
                FilterSearchNext(&search[1], less[1] < rank);
            }
            if (lane < 2) {
                const uint32_t last = lane == 0 ? FilterSearchEnd(&search[0]) : FilterSearchEnd(&search[1]);
                survivors->found[warp][head + lane] = last >= 0xff800000u ? -INFINITY : __uint_as_float(OrderBits(last)); /* all but NaN */
            }
        }
        MeetAt<2, kWarps * 32>();
        if (lane < group) {
            float mean = 0;
#pragma unroll
            for (int w = 0; w < kWarps; w++) mean += survivors->found[w][lane] * (1.0f / kWarps);
            if (mean != mean) mean = INFINITY; /* of infinite ones of both signs */
            survivors->bound[warp][lane] = mean;
        }
        __syncwarp();
#pragma unroll 1
        for (uint32_t head = 0; head < group; head++) {
            const uint32_t last = OrderKey(__float_as_uint(survivors->bound[warp][head]));
            uint32_t       key[kMost], own = 0;
#pragma unroll
            for (int i = 0; i < kMost; i++) {
                key[i] = SampleKey(head, lane + i * 32);
                own += key[i] <= last;
            }
            uint32_t to = TakeRoom(survivors->others[head], own, lane);
            uint2   *list = items + (size_t)head * stride + end - 1;
#pragma unroll
            for (int i = 0; i < kMost; i++) {
                if (key[i] > last) continue;
                const uint32_t at = lane + i * 32;
                list[-(int)to] = uint2{OrderBits(key[i]), (uint32_t)(first + (int)(at / 16) * apart) + at % 16};
                to++;
            }
        }
        __syncwarp();
    }

    /* What reaches the bounds of a tile from `token` on. NaN never does. */
    __device__ __forceinline__ void Keep(const float (&x)[4], int token) {
        const uint32_t own = 0x11111111u << (lane & 3), before = own & ((1u << lane) - 1);
        const int      mine = token + (lane >> 2);
        bool           full = false;
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const uint32_t head = (lane & 3) * 2 + c;
            const float    bound = survivors->bound[warp][head];
            const uint32_t low = __ballot_sync(kAll, x[c] >= bound && Chosen(mine)), high = __ballot_sync(kAll, x[c + 2] >= bound && Chosen(mine + 8));
            const uint32_t half = waiting[c] + __popc(low & own);
            uint2         *list = WaitingOf(head);
            if (low >> lane & 1) list[waiting[c] + __popc(low & before)] = uint2{__float_as_uint(x[c]), (uint32_t)mine};
            if (high >> lane & 1) list[half + __popc(high & before)] = uint2{__float_as_uint(x[c + 2]), (uint32_t)mine + 8};
            waiting[c] = half + __popc(high & own);
            full |= waiting[c] >= kLine;
        }
        if (__any_sync(kAll, full)) {
            SendLines(waiting[0], waiting[1]);
#pragma unroll
            for (int c = 0; c < 2; c++) waiting[c] %= kLine;
        }
    }

    /* Of heads that have a line or more, one goes. */
    __device__ __forceinline__ void SendLines(uint32_t even, uint32_t odd) const {
        __syncwarp();
#pragma unroll 1
        for (uint32_t head = 0; head < group; head++) {
            const uint32_t count = __shfl_sync(kAll, head & 1 ? odd : even, head >> 1);
            if (count < kLine) continue;
            uint2      *list = WaitingOf(head);
            const uint2 item = list[lane], next = kLine + lane < count ? list[kLine + lane] : uint2{0, 0};
            uint32_t    to = 0;
            if (lane == 0) to = atomicAdd(&survivors->lines[head], kLine);
            to = __shfl_sync(kAll, to, 0);
            StoreToStay(items + (size_t)head * stride + begin + to + lane, item);
            if (kLine + lane < count) list[lane] = next;
        }
        __syncwarp();
    }

    /* What still waits at the end of the split. */
    __device__ __forceinline__ void SendRest(uint32_t even, uint32_t odd) const {
        __syncwarp();
#pragma unroll 1
        for (uint32_t head = 0; head < group; head++) {
            const uint32_t count = __shfl_sync(kAll, head & 1 ? odd : even, head >> 1);
            const uint32_t to = TakeRoom(survivors->others[head], lane < count ? 1 : 0, lane);
            if (lane < count) items[(size_t)head * stride + end - 1 - to] = WaitingOf(head)[lane];
        }
    }
};

}  // namespace lessismore

#endif
