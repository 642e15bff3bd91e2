/* The best of a head's logits, in order, by one block: a bound from a sample lets through about twice as many as are wanted
 * (a wrong guess costs another pass, never the answer), buckets by value bring those nearly into order, and within a bucket
 * all are compared. */
#ifndef LESSISMORE_CUDA_RANKING_CUH
#define LESSISMORE_CUDA_RANKING_CUH

#include "kernels.h"
#include "layout.h"
#include "mma.cuh"
#include "order.h"
#include "warp.cuh"

namespace lessismore {
namespace selection {

constexpr int      kThreads = LIM_CUDA_SELECT_THREADS;
constexpr int      kWarps = kThreads / 32;
constexpr uint32_t kBuckets = LIM_CUDA_BUCKETS;
constexpr int      kEachBucket = kBuckets / kThreads;
constexpr int      kSampled = 2048 / kThreads; /* by each thread */
constexpr uint32_t kSamples = kSampled * kThreads;
constexpr uint32_t kNone = 0xffffffffu;
constexpr int      kBatch = 4;   /* what a thread has under way at a time, among candidates */
constexpr uint32_t kCrowded = 96; /* from so many in one bucket on, sorting is faster than comparing all */

/* The dynamic shared memory while a head is ranked: RankingBytes. */
struct Ranking {
    uint64_t *items;   /* [room] */
    uint64_t *sorted;  /* [room]; none for more than LIM_CUDA_MAX_RANKED */
    uint32_t *buckets; /* [kBuckets + 4] */
    uint32_t *found;   /* [room] positions of candidates; in the place of `sorted` */
    uint8_t  *places;  /* [room] of items in their buckets; with `sorted` only */
};

struct Common {
    uint32_t sums[2][kWarps];
    uint32_t best[kWarps], worst[kWarps];
    uint64_t bound;
    uint32_t count, crowded, before; /* candidates; whether a bucket has too many; blocks that came earlier */
};

/* A head's logits, or the masses; see LogitAt. */
struct Logits {
    const float *first;
    uint32_t     together;

    __device__ __forceinline__ float operator[](uint32_t token) const { return __ldcg(first + LogitAt(token, together)); }
};

static __device__ __forceinline__ Logits LogitsIn(const lim_cuda_args &args, int row, int head) {
    const float *of_row = (const float *)args.logits + (int64_t)row * args.call.heads * args.room_stride;
    return {of_row + LogitsOf(head, args.together, args.room_stride), args.together};
}

static __device__ Ranking RankingIn(uint8_t *shared, int room) {
    const bool copy = room <= LIM_CUDA_MAX_RANKED;
    Ranking    r;
    r.items = (uint64_t *)shared;
    r.sorted = copy ? r.items + room : nullptr;
    r.found = (uint32_t *)(r.items + room);
    r.buckets = r.found + (copy ? 2 : 1) * room;
    r.places = (uint8_t *)(r.buckets + kBuckets + 4);
    return r;
}

static __device__ __forceinline__ uint32_t WarpScan(uint32_t x) { return lessismore::WarpScan(x, threadIdx.x & 31); }

/* Block-wide sums have one barrier, after which every warp adds up what the warps left. Two rooms for that take
 * turns: a warp that is still reading one cannot meet a warp that writes it again. */
static __device__ __forceinline__ uint32_t SumOfWarps(const uint32_t *sums, int warps) {
    const int lane = threadIdx.x & 31;
    return __reduce_add_sync(kAll, lane < warps ? sums[lane] : 0);
}

/* The sum of the threads before this one. */
static __device__ __forceinline__ uint32_t BlockScan(uint32_t x, uint32_t *sums) {
    const uint32_t inside = WarpScan(x);
    if ((threadIdx.x & 31) == 31) sums[threadIdx.x >> 5] = inside;
    __syncthreads();
    return SumOfWarps(sums, threadIdx.x >> 5) + inside - x;
}

static __device__ __forceinline__ uint32_t BlockSum(uint32_t x, uint32_t *sums) {
    x = __reduce_add_sync(kAll, x);
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = x;
    __syncthreads();
    return SumOfWarps(sums, kWarps);
}

static __device__ __forceinline__ float ValueOfKey(uint32_t key) { return __uint_as_float(OrderBits(key)); }

static __device__ __forceinline__ bool Finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

/* The best and the worst of the block's keys; one barrier. */
struct Range {
    float high, low; /* NaN: there are none */
    float scale;     /* from the distance to `high` to [0, 1]; 0: they are equal, or there are infinite ones or NaN among them */
};
static __device__ __forceinline__ Range BlockRange(uint32_t best, uint32_t worst, Common &common) {
    const int lane = threadIdx.x & 31;
    best = __reduce_min_sync(kAll, best);
    worst = __reduce_max_sync(kAll, worst);
    if (lane == 0) {
        common.best[threadIdx.x >> 5] = best;
        common.worst[threadIdx.x >> 5] = worst;
    }
    __syncthreads();
    best = __reduce_min_sync(kAll, lane < kWarps ? common.best[lane] : kAll);
    worst = __reduce_max_sync(kAll, lane < kWarps ? common.worst[lane] : 0);
    Range range;
    range.high = ValueOfKey(best);
    range.low = ValueOfKey(worst);
    range.scale = 1.0f / (range.high - range.low);
    if (!(range.high > range.low) || !Finite(range.high - range.low) || !Finite(range.scale)) range.scale = 0;
    return range;
}

static __device__ __forceinline__ void ClearBuckets(uint32_t *buckets) {
    if (kBuckets / 4 >= kThreads || threadIdx.x < kBuckets / 4) ((uint4 *)buckets)[threadIdx.x] = uint4{0, 0, 0, 0};
}

static __device__ __forceinline__ void LoadBuckets(uint32_t (&mine)[kEachBucket], const uint32_t *buckets) {
    if constexpr (kEachBucket == 4) {
        const uint4 four = ((const uint4 *)buckets)[threadIdx.x];
        mine[0] = four.x, mine[1] = four.y, mine[2] = four.z, mine[3] = four.w;
    } else {
        const uint2 two = ((const uint2 *)buckets)[threadIdx.x];
        mine[0] = two.x, mine[1] = two.y;
    }
}

/* Where a sample falls among kBuckets of equal width. */
static __device__ __forceinline__ uint32_t SampleBucket(float value, const Range &range) {
    if (value >= range.high) return 0;
    if (!(value > range.low)) return kBuckets - 1;
    return min((uint32_t)((range.high - value) * range.scale * (float)kBuckets), kBuckets - 1);
}

/* A bound that should let through somewhat more than `want` of `count`, from a sample's histogram. */
static __device__ __forceinline__ uint64_t GuessBound(const float (&value)[kSampled], uint32_t count, uint32_t want, uint32_t room,
                                                      uint32_t *buckets, Common &common) {
    uint32_t best = kAll, worst = 0;
    ClearBuckets(buckets);
#pragma unroll
    for (int i = 0; i < kSampled; i++) {
        if (Finite(value[i])) {
            best = min(best, OrderKey(__float_as_uint(value[i])));
            worst = max(worst, OrderKey(__float_as_uint(value[i])));
        }
    }
    const Range range = BlockRange(best, worst, common);
    if (!(range.high >= range.low)) return OrderItem(0xff800000u, 0); /* no finite sample */
#pragma unroll
    for (int i = 0; i < kSampled; i++) atomicAdd(&buckets[SampleBucket(value[i], range)], 1);
    __syncthreads();
    uint32_t mine[kEachBucket], sum = 0;
    LoadBuckets(mine, buckets);
#pragma unroll
    for (int i = 0; i < kEachBucket; i++) sum += mine[i];
    uint32_t       before = BlockScan(sum, common.sums[0]);
    const uint32_t aim = SampleRank(kSamples, count, want, room);
    if (before <= aim && aim < before + sum) {
        uint32_t cut = threadIdx.x * kEachBucket;
#pragma unroll
        for (int i = 0; i < kEachBucket - 1; i++) {
            before += mine[i];
            cut += before <= aim;
        }
        const float bound = range.high - (float)(cut + 1) * (1.0f / kBuckets) * (range.high - range.low);
        common.bound = OrderItem(__float_as_uint(range.scale > 0 ? bound : range.high), kAll);
    }
    __syncthreads();
    return common.bound;
}

/* The fours that a thread looks at at a time, all loads under way together. */
constexpr int      kFours = 8;
constexpr uint32_t kSweep = 4 * kFours * kThreads; /* what the block looks at */

static __device__ __forceinline__ void LoadFours(float4 (&v)[kFours], const Logits &x, uint32_t at, uint32_t end) {
    const float  nan = __uint_as_float(ORDER_NONE);
    const float *from = x.first + LogitAt(at, x.together);
#pragma unroll
    for (int j = 0; j < kFours; j++) {
        v[j] = float4{nan, nan, nan, nan};
        if (at + j * 4 * kThreads < end) v[j] = __ldcg((const float4 *)(from + j * 4 * kThreads * x.together));
    }
}

/* Adds the positions of x[begin, end) that are at least `least` to found; NaN never is. Of the first sweep v is loaded. */
static __device__ __forceinline__ void CollectAbove(const Logits &x, float4 (&v)[kFours], uint32_t begin, uint32_t end, float least,
                                                    uint32_t room, uint32_t *found, Common &common) {
    const int lane = threadIdx.x & 31;
#pragma unroll 1
    for (uint32_t at = begin / 4 * 4 + 4 * threadIdx.x, ahead = end - begin / 4 * 4;; at += kSweep) {
        uint32_t passes = 0;
#pragma unroll
        for (int j = 0; j < kFours; j++) {
            passes |= (uint32_t)(v[j].x >= least) << (4 * j) | (uint32_t)(v[j].y >= least) << (4 * j + 1) |
                      (uint32_t)(v[j].z >= least) << (4 * j + 2) | (uint32_t)(v[j].w >= least) << (4 * j + 3);
        }
        LoadFours(v, x, at + kSweep, end);
        /* The fours that reach over an end of the candidates: those of the first and the last. */
        if (at < begin) passes &= ~((1u << (begin - at)) - 1);
        const uint32_t over = end / 4 * 4 - at; /* wraps where the end is before */
        if (over < kSweep && over % (4 * kThreads) == 0) {
            const uint32_t bit = over / kThreads;
            passes &= ~(15u << bit) | ((1u << end % 4) - 1) << bit;
        }
        uint32_t to = TakeRoom(common.count, __popc(passes), lane);
#pragma unroll 1
        for (; passes != 0; passes &= passes - 1, to++) {
            const uint32_t bit = __ffs((int)passes) - 1;
            if (to < room) found[to] = at + bit / 4 * 4 * kThreads + bit % 4;
        }
        __syncwarp();
        if (ahead <= kSweep) break;
        ahead -= kSweep;
    }
}

/* The same for any bound, also one that parts equal logits by position. */
static __device__ __noinline__ void CollectWithin(const Logits &x, uint32_t begin, uint32_t end, uint64_t bound, uint32_t room,
                                                  uint32_t *found, Common &common) {
    const int lane = threadIdx.x & 31;
#pragma unroll 4
    for (uint32_t base = begin; base < end; base += kThreads) {
        const uint32_t at = base + threadIdx.x;
        const bool     pass = at < end && OrderItem(__float_as_uint(x[at]), at) <= bound;
        const uint32_t bits = __ballot_sync(kAll, pass);
        uint32_t       to = 0;
        if (lane == 0 && bits != 0) to = atomicAdd(&common.count, __popc(bits));
        to = __shfl_sync(kAll, to, 0) + __popc(bits & ((1u << lane) - 1));
        if (pass && to < room) found[to] = at;
    }
}

/* Puts the positions of candidates of x[begin, end), a superset of the best `want`, into found, in any order; returns how
 * many. x is 16-byte aligned and readable up to the next multiple of four. */
static __device__ uint32_t FindCandidates(const Logits &x, uint32_t begin, uint32_t end, uint32_t want, uint32_t room, const Ranking &r,
                                          Common &common) {
    uint64_t    bound = UINT64_MAX;
    BoundSearch search;
    BoundBegin(&search);
#pragma unroll 1
    for (bool guess = end - begin > room;; guess = false) {
        float  sample[kSampled];
        float4 v[kFours];
        if (guess) {
#pragma unroll
            for (int i = 0; i < kSampled; i++) sample[i] = x[begin + SampleAt(threadIdx.x + i * kThreads, kSamples, end - begin)];
        }
        /* What will be looked at first is under way while a bound is guessed. */
        LoadFours(v, x, begin / 4 * 4 + 4 * threadIdx.x, end);
        if (threadIdx.x == 0) common.count = 0;
        if (guess) {
            bound = GuessBound(sample, end - begin, want, room, r.buckets, common);
        } else {
            __syncthreads();
        }
        if ((uint32_t)bound == kAll && (uint32_t)(bound >> 32) != kAll) {
            CollectAbove(x, v, begin, end, ValueOfKey((uint32_t)(bound >> 32)), room, r.found, common);
        } else {
            CollectWithin(x, begin, end, bound, room, r.found, common);
        }
        __syncthreads();
        const uint32_t count = common.count;
        const uint64_t next = BoundNext(&search, bound, count, want, room);
        if (next == bound) return count;
        bound = next;
        __syncthreads();
    }
}

/* Sorts [0, count) ascending; room for a power of two. Slow but for any values. */
static __device__ __noinline__ void Sort(uint64_t *items, uint32_t count) {
    uint32_t size = 64;
    while (size < count) size *= 2;
    for (uint32_t i = count + threadIdx.x; i < size; i += kThreads) items[i] = UINT64_MAX;
    __syncthreads();
    for (uint32_t run = 2; run <= size; run *= 2) {
        for (uint32_t stride = run / 2; stride > 0; stride /= 2) {
            for (uint32_t p = threadIdx.x; p < size / 2; p += kThreads) {
                const uint32_t i = 2 * p - (p & (stride - 1)), j = i + stride;
                const uint64_t a = items[i], b = items[j];
                if ((a > b) == ((i & run) == 0)) {
                    items[i] = b;
                    items[j] = a;
                }
            }
            __syncthreads();
        }
    }
}

/* Where a candidate falls among kBuckets. Most are near the worst one: there buckets are a third as wide as on
 * average, near the best one four times as wide. Rounds the same way wherever it is inlined, and upwards only for what
 * is worse. */
static __device__ __forceinline__ uint32_t BucketOf(float value, const Range &range) {
    const float at = __fmul_rn(__fsub_rn(range.high, value), range.scale), square = __fmul_rn(at, at);
    const float bent = __fmaf_rn(__fmul_rn(square, square), 0.75f * kBuckets, __fmul_rn(at, 0.25f * kBuckets));
    return min((uint32_t)bent, kBuckets - 1);
}

/* The candidates found as items, and the best and the worst key of a thread's. */
static __device__ __forceinline__ void LoadItems(const Logits &x, const Ranking &r, uint32_t count, uint32_t &best, uint32_t &worst) {
    best = kAll;
    worst = 0;
    /* Each thread looks at kEach at a time, all loads under way together. */
    constexpr int kEach = 4096 / kThreads;
#pragma unroll 1
    for (uint32_t base = threadIdx.x; base < count; base += kEach * kThreads) {
        uint32_t position[kEach];
        float    value[kEach];
#pragma unroll
        for (int j = 0; j < kEach; j++) {
            if (base + j * kThreads < count) value[j] = x[position[j] = r.found[base + j * kThreads]];
        }
#pragma unroll
        for (int j = 0; j < kEach; j++) {
            if (base + j * kThreads >= count) break;
            const uint64_t item = OrderItem(__float_as_uint(value[j]), position[j]);
            r.items[base + j * kThreads] = item;
            best = min(best, (uint32_t)(item >> 32));
            worst = max(worst, (uint32_t)(item >> 32));
        }
    }
}

/* Calls visit(rank, position) for the first `count` of r.sorted, which are in the order of buckets: inside a bucket each
 * item counts those before it. */
template <class Visit>
static __device__ __forceinline__ void ForSorted(const Ranking &r, const Range &range, uint32_t count, Visit visit) {
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
        const uint64_t item = r.sorted[i];
        const uint32_t b = BucketOf(ValueOfKey((uint32_t)(item >> 32)), range), end = r.buckets[b + 1];
        uint32_t       rank = r.buckets[b];
#pragma unroll 1
        for (uint32_t j = rank; j < end; j++) rank += r.sorted[j] < item;
        visit(rank, (uint32_t)item);
    }
}

/* Calls visit(rank, position) for the best `want`, and maybe for more, of `count` items, of which each thread has put some
 * there, from `best` to `worst`. Buckets by value bring nearly the right order. */
template <class Visit>
static __device__ __forceinline__ void ForRanks(const Ranking &r, uint32_t count, uint32_t want, uint32_t best, uint32_t worst, Common &common,
                                                Visit visit) {
    ClearBuckets(r.buckets);
    if (threadIdx.x == 0) common.crowded = 0;
    const Range range = BlockRange(best, worst, common);
    bool        sort = range.scale == 0 || r.sorted == nullptr;
    if (!sort) {
#pragma unroll 1
        for (uint32_t base = threadIdx.x; base < count; base += kBatch * kThreads) {
            uint32_t place[kBatch];
#pragma unroll
            for (int j = 0; j < kBatch; j++) {
                const uint32_t i = min(base + j * kThreads, count - 1);
                place[j] = BucketOf(ValueOfKey((uint32_t)(r.items[i] >> 32)), range);
            }
#pragma unroll
            for (int j = 0; j < kBatch; j++) {
                if (base + j * kThreads < count) place[j] = atomicAdd(&r.buckets[place[j]], 1);
            }
#pragma unroll
            for (int j = 0; j < kBatch; j++) { /* more than fits is too many for this anyway */
                if (base + j * kThreads < count) r.places[base + j * kThreads] = (uint8_t)place[j];
            }
        }
        __syncthreads();
        uint32_t mine[kEachBucket], sum = 0, most = 0;
        LoadBuckets(mine, r.buckets);
#pragma unroll
        for (int i = 0; i < kEachBucket; i++) {
            most = max(most, mine[i]);
            sum += mine[i];
        }
        if (most > kCrowded) common.crowded = 1;
        uint32_t before = BlockScan(sum, common.sums[1]);
        sort = common.crowded != 0;
        if (!sort) {
#pragma unroll
            for (int i = 0; i < kEachBucket; i++) {
                r.buckets[threadIdx.x * kEachBucket + i] = before;
                before += mine[i];
            }
            if (threadIdx.x == 0) r.buckets[kBuckets] = count;
            __syncthreads();
#pragma unroll 1
            for (uint32_t base = threadIdx.x; base < count; base += kBatch * kThreads) {
                uint32_t place[kBatch];
                uint64_t item[kBatch];
#pragma unroll
                for (int j = 0; j < kBatch; j++) {
                    const uint32_t i = min(base + j * kThreads, count - 1);
                    place[j] = r.places[i];
                    item[j] = r.items[i];
                }
#pragma unroll
                for (int j = 0; j < kBatch; j++) place[j] += r.buckets[BucketOf(ValueOfKey((uint32_t)(item[j] >> 32)), range)];
                /* Those beyond the end write the last one once more. */
#pragma unroll
                for (int j = 0; j < kBatch; j++) r.sorted[place[j]] = item[j];
            }
            __syncthreads();
            /* What is behind the best `want` and a bucket more cannot be of them. */
            ForSorted(r, range, min(count, want + kCrowded), visit);
            return;
        }
    }
    __syncthreads();
    Sort(r.items, count);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < count; i += kThreads) visit(i, (uint32_t)r.items[i]);
}

}  // namespace selection
}  // namespace lessismore

#endif
