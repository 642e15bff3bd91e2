/* Ranking the survivors among a head's logits: the selection's side of logit_filter.h. */
#ifndef LESSISMORE_CUDA_SURVIVORS_CUH
#define LESSISMORE_CUDA_SURVIVORS_CUH

#include "elements.cuh"
#include "pages.cuh"
#include "ranking.cuh"
#include "logit_filter.h"

namespace lessismore {
namespace selection {

constexpr uint32_t kTurn = 32;       /* items of a list that a warp looks at at a time */
constexpr uint32_t kTurnShift = 26;  /* where a turn's number of items stands beside its first one */
constexpr int      kHeldTurns = 16;  /* that a warp holds in registers */

struct Survivors {
    const uint2 *items; /* of the head */
    float        bound; /* all that reach it survived */
    uint32_t     lists, count, turns;
    /* The lane's list: its first item, how many, and the turns up to its end. */
    uint32_t begin, of_list, end;
};

static __device__ __forceinline__ uint2 *RoomOf(const lim_cuda_args &args, int row, int head, int n) {
    const RowRoom room = {row, n};
    return (uint2 *)(room.Logits(args) + head * room.Stride(args));
}

static __device__ __forceinline__ Survivors SurvivorsIn(const lim_cuda_args &args, int row, int head, int n) {
    const uint4   *lists = (const uint4 *)args.survivors + ((int64_t)row * args.call.heads + head) * LIM_CUDA_FILTER_LISTS;
    const uint32_t lane = threadIdx.x & 31;
    const uint4    list = __ldcg(lists + lane); /* what is behind the last one is anything */
    Survivors      k;
    k.items = RoomOf(args, row, head, n);
    k.lists = __shfl_sync(kAll, list.w, 0);
    const bool there = lane < k.lists;
    k.begin = list.x;
    k.of_list = there ? list.y : 0;
    k.end = WarpScan((k.of_list + kTurn - 1) / kTurn);
    k.turns = __shfl_sync(kAll, k.end, 31);
    k.count = __reduce_add_sync(kAll, k.of_list);
    k.bound = ValueOfKey(__reduce_min_sync(kAll, there ? OrderKey(list.z) : kAll));
    return k;
}

/* The warp's turns from `first` on, one for each lane: its first item and how many. */
static __device__ __forceinline__ uint32_t TurnsFrom(const Survivors &k, uint32_t first) {
    const uint32_t turn = first + (threadIdx.x & 31) * kWarps;
    uint32_t       entry = 0, before = 0;
#pragma unroll 1
    for (uint32_t list = 0; list < k.lists; list++) {
        const uint32_t begin = __shfl_sync(kAll, k.begin, list), count = __shfl_sync(kAll, k.of_list, list), end = __shfl_sync(kAll, k.end, list);
        const uint32_t at = (turn - before) * kTurn;
        if (turn >= before && turn < end) entry = (begin + at) | min(kTurn, count - at) << kTurnShift;
        before = end;
    }
    return entry;
}

/* The lane's item of a turn; nullptr: none. */
static __device__ __forceinline__ const uint2 *ItemIn(const Survivors &k, uint32_t turn) {
    const uint32_t lane = threadIdx.x & 31;
    return lane < turn >> kTurnShift ? k.items + (turn & ((1u << kTurnShift) - 1)) + lane : nullptr;
}

/* Adds the items that are not above the bound to r.items; the best and the worst key of the thread's. */
static __device__ __forceinline__ void CollectSurvivors(const Survivors &k, uint64_t bound, uint32_t room, const Ranking &r, uint32_t &best,
                                                        uint32_t &worst, Common &common) {
    constexpr int kEach = 4; /* under way at a time */
    best = kAll;
    worst = 0;
#pragma unroll 1
    for (uint32_t first = threadIdx.x / 32; first < k.turns; first += 32 * kWarps) {
        const uint32_t turns = TurnsFrom(k, first);
#pragma unroll 1
        for (int base = 0; base < 32 && first + base * kWarps < k.turns; base += kEach) {
            uint64_t item[kEach];
            uint32_t passes = 0;
#pragma unroll
            for (int j = 0; j < kEach; j++) {
                const uint2 *from = ItemIn(k, __shfl_sync(kAll, turns, base + j));
                const uint2  two = from != nullptr ? __ldcg(from) : uint2{ORDER_NONE, kAll};
                item[j] = OrderItem(two.x, two.y);
            }
#pragma unroll
            for (int j = 0; j < kEach; j++) passes |= (uint32_t)(item[j] <= bound && item[j] != UINT64_MAX) << j;
            uint32_t to = TakeRoom(common.count, __popc(passes), threadIdx.x & 31);
#pragma unroll
            for (int j = 0; j < kEach; j++) {
                if (!(passes >> j & 1)) continue;
                if (to < room) r.items[to] = item[j];
                to++;
                best = min(best, (uint32_t)(item[j] >> 32));
                worst = max(worst, (uint32_t)(item[j] >> 32));
            }
        }
    }
}

/* A superset of the best `want`, or all that are sure to be the best if those are fewer, in r.items. */
struct Found {
    uint32_t count;
    uint32_t best, worst; /* keys of the thread's */
};
static __device__ __noinline__ Found FindSurvivors(const Survivors k, uint32_t want, uint32_t room, uint8_t *shared, Common &common) {
    const Ranking  r = RankingIn(shared, room);
    const uint64_t least = OrderItem(__float_as_uint(k.bound), kAll);
    Found          found = {0, kAll, 0};
    uint64_t       bound = least;
    BoundSearch    search;
    BoundBegin(&search);
    const uint32_t list_end = WarpScan(k.of_list); /* items up to the lane's list's end */
#pragma unroll 1
    for (bool guess = k.count > room;; guess = false) {
        float sample[kSampled];
        if (guess) {
#pragma unroll
            for (int i = 0; i < kSampled; i++) {
                const uint32_t at = SampleAt(threadIdx.x + i * kThreads, kSamples, k.count);
                uint32_t       from = 0, before = 0;
#pragma unroll 1
                for (uint32_t list = 0; list < k.lists; list++) {
                    const uint32_t begin = __shfl_sync(kAll, k.begin, list), end = __shfl_sync(kAll, list_end, list);
                    if (at >= before && at < end) from = begin + at - before;
                    before = end;
                }
                sample[i] = __uint_as_float(__ldcg(&k.items[from].x));
            }
        }
        if (threadIdx.x == 0) common.count = 0;
        if (guess) {
            bound = min(GuessBound(sample, k.count, want, room, r.buckets, common), least);
        } else {
            __syncthreads();
        }
        CollectSurvivors(k, bound, room, r, found.best, found.worst, common);
        __syncthreads();
        found.count = common.count;
        if (bound == least && found.count <= room) return found;
        const uint64_t next = BoundNext(&search, bound, found.count, want, room);
        if (next == bound) return found;
        bound = min(next, least);
        __syncthreads();
    }
}

/* A head's logits, which were not stored, once more, one after another in the head's room. Slow, and hardly ever needed. The
 * sums are in another order than the attention's, so the last bits may differ. */
static __device__ __noinline__ Logits Recompute(const lim_cuda_args &args, int row, int head, int n, float *query) {
    const lim_cuda_call &call = args.call;
    const bool           bf16 = call.kv_type == LIM_CUDA_BF16;
    const int            kv_head = head / args.group;
    __syncthreads();
    for (int d = threadIdx.x; d < call.dim; d += kThreads) {
        const float v = __ldcg((const float *)args.queries + ((int64_t)row * call.heads + head) * call.dim + d);
        query[d] = bf16 ? __bfloat162float(__float2bfloat16_rn(v)) : __half2float(__float2half_rn(v));
    }
    __syncthreads();
    float      *to = (float *)RoomOf(args, row, head, n);
    const Store key = StoreOf(call, call.key, row, kv_head);
#pragma unroll 1
    for (int token = threadIdx.x; token < n; token += kThreads) {
        const uint4 *from = (const uint4 *)SlotAddress(call, key, SlotOf(call, row, token));
        float        sum = 0;
#pragma unroll 4
        for (int i = 0; i < call.dim / 8; i++) {
            const uint4    eight = __ldg(from + i);
            const uint32_t two[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float2 k = bf16 ? __bfloat1622float2(*(const __nv_bfloat162 *)&two[j]) : __half22float2(*(const __half2 *)&two[j]);
                sum = fmaf(k.x, query[i * 8 + j * 2], sum);
                sum = fmaf(k.y, query[i * 8 + j * 2 + 1], sum);
            }
        }
        float x = sum * call.scale;
        if (call.softcap > 0) x = SoftCap(x, call.softcap);
        __stcg(to + token, x);
    }
    __syncthreads();
    return {to, 1};
}

/* Ranks the survivors, if they fit the registers and are not crowded, at once: buckets by value, in which only those that
 * may be of the best `want` are sorted. Calls visit(rank, position); returns how many of the ranks are known, kNone if
 * this is not possible. */
template <class Visit>
static __device__ __forceinline__ uint32_t RankSurvivors(const Survivors &k, const Ranking &r, uint32_t want, Common &common, Visit visit) {
    if (k.turns > kHeldTurns * kWarps || r.sorted == nullptr) return kNone;
    const uint32_t turns = TurnsFrom(k, threadIdx.x / 32);
    float          value[kHeldTurns];
    uint32_t       place[kHeldTurns / 4], best = kAll, worst = 0;
    ClearBuckets(r.buckets);
#pragma unroll
    for (int j = 0; j < kHeldTurns; j++) {
        const uint2 *from = ItemIn(k, __shfl_sync(kAll, turns, j));
        value[j] = from != nullptr ? __uint_as_float(__ldcg(&from->x)) : __uint_as_float(ORDER_NONE);
    }
#pragma unroll
    for (int j = 0; j < kHeldTurns; j++) {
        if (!(value[j] >= k.bound)) continue;
        best = min(best, OrderKey(__float_as_uint(value[j])));
        worst = max(worst, OrderKey(__float_as_uint(value[j])));
    }
    const Range range = BlockRange(best, worst, common);
    if (range.scale == 0) return kNone;
#pragma unroll
    for (int j = 0; j < kHeldTurns; j++) {
        if (j % 4 == 0) place[j / 4] = 0;
        if (value[j] >= k.bound) place[j / 4] |= min(atomicAdd(&r.buckets[BucketOf(value[j], range)], 1), 255u) << j % 4 * 8;
    }
    __syncthreads();
    uint32_t mine[kEachBucket], sum = 0;
    LoadBuckets(mine, r.buckets);
#pragma unroll
    for (int i = 0; i < kEachBucket; i++) sum += mine[i];
    uint32_t before = BlockScan(sum, common.sums[1]);
    bool     crowded = false;
#pragma unroll
    for (int i = 0; i < kEachBucket; i++) {
        crowded |= before < want && mine[i] > kCrowded;
        if (before < want && before + mine[i] >= want) common.count = before + mine[i];
        r.buckets[threadIdx.x * kEachBucket + i] = before;
        before += mine[i];
    }
    if (threadIdx.x == kThreads - 1) r.buckets[kBuckets] = before;
    if (__syncthreads_or(crowded)) return kNone;
    /* Read again, with their tokens: registers hold either. */
#pragma unroll
    for (int base = 0; base < kHeldTurns; base += kBatch) {
        uint2 item[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; j++) {
            const uint2 *from = ItemIn(k, __shfl_sync(kAll, turns, base + j));
            item[j] = from != nullptr ? __ldcg(from) : uint2{ORDER_NONE, 0};
        }
#pragma unroll
        for (int j = 0; j < kBatch; j++) {
            if (!(__uint_as_float(item[j].x) >= k.bound)) continue;
            const uint32_t begin = r.buckets[BucketOf(__uint_as_float(item[j].x), range)];
            if (begin < want) r.sorted[begin + (place[base / 4] >> j * 8 & 255u)] = OrderItem(item[j].x, item[j].y);
        }
    }
    __syncthreads();
    const uint32_t all = r.buckets[kBuckets];
    ForSorted(r, range, all < want ? all : common.count, visit);
    return min(want, all);
}

}  // namespace selection
}  // namespace lessismore

#endif
