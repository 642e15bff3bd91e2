/* The token set of each row: sinks, the best of the middle, the newest; sorted by position.
 *
 * `union`: one block per head and row finds the head's best `mid` exactly: a bound guessed from a sample lets
 * through somewhat more than that (a wrong guess costs another pass, never the answer), and what passed is
 * ranked in shared memory. The rankings stand in one line as the merge takes them, rank 0 of every head, then
 * rank 1. The last block of a row to arrive walks that line until the set is full, many tokens at a time: as
 * long as a stretch does not overfill the set, the order within it does not matter.
 *
 * `mass`: all blocks add up probabilities by token, and the last block of the row takes the best `mid`.
 *
 * Atomics only count, set bits and hand out places that are sorted afterwards, so the result is the same in every
 * run. Rows that see no more than the budget take everything. Nothing is read back by the host. */
#include "kernels.h"
#include "mma.cuh"
#include "order.h"

#include <cuda_runtime.h>

namespace lessismore {
namespace selection {

constexpr int      kThreads = 512;
constexpr int      kWarps = kThreads / 32;
constexpr uint32_t kAll = 0xffffffffu;
constexpr uint32_t kBuckets = 2048;
constexpr int      kEachBucket = kBuckets / kThreads;
constexpr int      kSampled = 2048 / kThreads; /* by each thread */
constexpr uint32_t kSamples = kSampled * kThreads;
constexpr uint32_t kNone = 0xffffffffu;
constexpr int      kBatch = 4;   /* what a thread has under way at a time, among candidates */
constexpr uint32_t kCrowded = 96; /* from so many in one bucket on, sorting is faster than comparing all */

/* The dynamic shared memory, in two lives: ranking a head, then writing a row's set. */
struct Ranking {
    uint64_t *items;   /* [room] */
    uint64_t *sorted;  /* [room]; none for more than LIM_CUDA_MAX_RANKED */
    uint32_t *buckets; /* [kBuckets + 4] */
    uint32_t *found;   /* [room] positions of candidates; in the place of `sorted` */
    uint8_t  *places;  /* [room] of items in their buckets; with `sorted` only */
};
struct Merging {
    uint32_t *list;  /* [mid or heads, the larger, up to a multiple of four] */
    uint32_t *words; /* [n / 32, the same] a bit per position */
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
    const float *of_row = (const float *)args.logits + (int64_t)row * args.call.heads * args.logit_stride;
    return {of_row + LogitsOf(head, args.together, args.logit_stride), args.together};
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

static __device__ Merging MergingIn(uint8_t *shared, const lim_cuda_call &call) {
    Merging m;
    m.list = (uint32_t *)shared;
    m.words = m.list + (max(call.mid, call.heads) + 3) / 4 * 4;
    return m;
}

static __device__ __forceinline__ uint32_t WarpScan(uint32_t x) { /* inclusive */
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t other = __shfl_up_sync(kAll, x, d);
        if (lane >= d) x += other;
    }
    return x;
}

/* Block-wide sums have one barrier, after which every warp adds up what the warps left. Two rooms for that take
 * turns: a warp that is still reading one cannot meet a warp that writes it again. */
static __device__ __forceinline__ uint32_t SumOfWarps(const uint32_t *sums, int warps) {
    const int lane = threadIdx.x & 31;
    return __reduce_add_sync(kAll, lane < warps ? sums[lane] : 0);
}

/* The sum of the threads before this one. */
static __device__ __noinline__ uint32_t BlockScan(uint32_t x, uint32_t *sums) {
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

static __device__ __forceinline__ float ValueOfKey(uint32_t key) {
    return __uint_as_float(key <= 0x7fffffffu ? 0x7fffffffu - key : key);
}

static __device__ __forceinline__ bool Finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

/* The best and the worst of the block's keys; one barrier. */
struct Range {
    float high, low; /* NaN: there are none */
    float scale;     /* from the distance to `high` to [0, 1]; 0: they are equal, or there are infinite ones or NaN among them */
};
static __device__ __noinline__ Range BlockRange(uint32_t best, uint32_t worst, Common &common) {
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
    const float  nan = __uint_as_float(0x7fffffffu);
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
        const uint32_t own = __popc(passes), sum = WarpScan(own);
        uint32_t       to = 0;
        if (lane == 31 && sum != 0) to = atomicAdd(&common.count, sum);
        to = __shfl_sync(kAll, to, 31) + sum - own;
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

/* Calls visit(rank, position) for the best `want`, and maybe for more, of `count` items, of which each thread has put some
 * there, from `best` to `worst`. Buckets by value bring nearly the right order; inside a bucket each item counts those
 * before it. */
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
            const uint32_t enough = min(count, want + kCrowded);
#pragma unroll 1
            for (uint32_t i = threadIdx.x; i < enough; i += kThreads) {
                const uint64_t item = r.sorted[i];
                const uint32_t b = BucketOf(ValueOfKey((uint32_t)(item >> 32)), range), end = r.buckets[b + 1];
                uint32_t       rank = r.buckets[b];
#pragma unroll 1
                for (uint32_t j = rank; j < end; j++) rank += r.sorted[j] < item;
                visit(rank, (uint32_t)item);
            }
            return;
        }
    }
    __syncthreads();
    Sort(r.items, count);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < count; i += kThreads) visit(i, (uint32_t)r.items[i]);
}

static __device__ int32_t SlotOf(const lim_cuda_call &call, int row, uint32_t position) {
    if (call.table == 0) return (int32_t)position;
    const int32_t page = __ldg((const int32_t *)call.table + (int64_t)row * call.table_stride + (position >> call.page_shift));
    return page << call.page_shift | (int32_t)(position & ((1u << call.page_shift) - 1));
}

static __device__ __forceinline__ void PutToken(const lim_cuda_call &call, int row, uint32_t i, uint32_t position) {
    ((int32_t *)call.set)[(int64_t)row * call.set_stride + i] = SlotOf(call, row, position);
    if (call.positions != 0) ((int32_t *)call.positions)[(int64_t)row * call.set_stride + i] = (int32_t)position;
}

/* From a bit per chosen position to the middle of the set. */
static __device__ __forceinline__ void WriteMiddle(const lim_cuda_call &call, int row, uint32_t n, const Merging &m, Common &common) {
    const uint32_t words = (n + 31) / 32, each = (words + kThreads - 1) / kThreads;
    const uint32_t begin = min(words, threadIdx.x * each), end = min(words, begin + each);
    uint32_t       own = 0;
#pragma unroll 1
    for (uint32_t w = begin; w < end; w++) own += __popc(m.words[w]);
    uint32_t to = BlockScan(own, common.sums[0]);
#pragma unroll 1
    for (uint32_t w = begin; w < end; w++) {
#pragma unroll 1
        for (uint32_t bits = m.words[w]; bits != 0; bits &= bits - 1) m.list[to++] = w * 32 + __ffs((int)bits) - 1;
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < call.mid; i += kThreads) PutToken(call, row, call.first + i, m.list[i]);
}

/* The rest of the set: the sinks and the newest. */
static __device__ __noinline__ void WriteEnds(const lim_cuda_call &call, int row, uint32_t n) {
    const uint32_t first = call.first, ends = first + call.recent;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < ends; i += kThreads) {
        PutToken(call, row, i < first ? i : call.mid + i, i < first ? i : n - ends + i);
    }
}

static __device__ __forceinline__ uint32_t AddReleasingAcquiring(uint32_t *to, uint32_t x) {
    uint32_t before;
#if __CUDA_ARCH__ >= 700
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(to), "r"(x) : "memory");
#else
    before = atomicAdd(to, x);
#endif
    return before;
}

/* Counts this block in, of `expected`, and clears the bits; returns how many came before it. The last one sees what the
 * others wrote: barriers make its and their first thread's order everyone's. */
static __device__ __forceinline__ uint32_t Arrive(const lim_cuda_args &args, int row, uint32_t n, uint32_t expected, const Merging &m,
                                                  Common &common) {
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t      *gathered = (uint32_t *)args.gathered + row;
        const uint32_t before = AddReleasingAcquiring(gathered, 1);
        if (before == expected - 1) *gathered = 0;
        common.before = before;
    }
#pragma unroll 1
    for (uint32_t w = threadIdx.x; w < (n + 127) / 128; w += kThreads) ((uint4 *)m.words)[w] = uint4{0, 0, 0, 0};
    __syncthreads();
    return common.before;
}

static __device__ void TakeAll(const lim_cuda_call &call, int row, int n) {
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += kThreads) PutToken(call, row, i, i);
}

static __device__ __forceinline__ bool Mark(const Merging &m, uint32_t position) { /* true if it was not marked */
    const uint32_t bit = 1u << (position & 31);
    return (atomicOr(&m.words[position / 32], bit) & bit) == 0;
}
static __device__ __forceinline__ void Unmark(const Merging &m, uint32_t position) {
    atomicAnd(&m.words[position / 32], ~(1u << (position & 31)));
}

/* Marks those of a thread's four tokens, of ranks from `rank` on, that are of ranks in [begin, end); returns which were
 * not marked before. */
static __device__ __forceinline__ uint32_t MarkRanks(const Merging &m, const uint32_t (&token)[4], uint32_t rank, uint32_t begin, uint32_t end) {
    uint32_t fresh = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        if (token[i] != kNone && rank + i >= begin && rank + i < end && Mark(m, token[i])) fresh |= 1u << i;
    }
    return fresh;
}

/* Four ranks of a head, from `rank` on. */
static __device__ __forceinline__ void LoadRanks(uint32_t (&token)[4], const uint32_t *of_head, uint32_t rank, uint32_t want) {
    uint4 four = {kNone, kNone, kNone, kNone};
    if (rank < want) four = __ldcg((const uint4 *)(of_head + rank));
    token[0] = four.x;
    token[1] = rank + 1 < want ? four.y : kNone;
    token[2] = rank + 2 < want ? four.z : kNone;
    token[3] = rank + 3 < want ? four.w : kNone;
}

/* Walks the rankings, all heads' rank 0, then all heads' rank 1, until `mid` different tokens are marked. */
static __device__ __forceinline__ void WalkLine(const lim_cuda_args &args, int row, const Merging &m, Common &common) {
    const uint32_t  heads = args.call.heads, want = args.call.mid;
    const uint32_t  head = threadIdx.x % heads, stretch = kThreads / heads * 4; /* ranks at a time, four of a head by a thread */
    const bool      idle = threadIdx.x / heads * 4 >= stretch;
    const uint32_t *of_head = (const uint32_t *)args.ranks + ((int64_t)row * heads + head) * RankStride(want);
    uint32_t        rank = idle ? want : threadIdx.x / heads * 4, begin = 0, left = want, turn = 0, fresh, count;
    uint32_t        next[4], now[4];

    LoadRanks(next, of_head, rank, want);
    for (;;) {
#pragma unroll
        for (int i = 0; i < 4; i++) now[i] = next[i];
        LoadRanks(next, of_head, rank + stretch, want);
        fresh = MarkRanks(m, now, rank, 0, kAll);
        count = BlockSum(__popc(fresh), common.sums[turn]);
        turn ^= 1;
        if (count > left) break;
        left -= count;
        if (left == 0) return; /* a head's ranking alone fills the set: the line is long enough */
        begin += stretch;
        rank += stretch;
    }
    /* Too many by some. Of the ranks [begin, end) with `count` fresh tokens, take as many as fit: guess how many, then
     * halve what is in doubt. */
    uint32_t end = begin + stretch;
#pragma unroll 1
    for (int tries = 0;; tries++) {
        /* The last attempt took too many. */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (fresh >> i & 1) Unmark(m, now[i]);
        }
        if (end - begin == 1) break;
        __syncthreads();
        for (;;) {
            const uint32_t size = end - begin, guess = tries < 3 ? size * left / count : size / 2;
            const uint32_t cut = begin + min(max(guess, 1u), size - 1);
            fresh = MarkRanks(m, now, rank, begin, cut);
            const uint32_t part = BlockSum(__popc(fresh), common.sums[turn]);
            turn ^= 1;
            if (part > left) {
                end = cut;
                count = part;
                break;
            }
            left -= part;
            if (left == 0) return;
            count -= part;
            begin = cut;
            fresh = 0;
            tries++;
            if (end - begin == 1) break;
        }
    }
    /* Of the last rank, the first heads that bring something new. */
    if (begin - rank < 4) m.list[head] = begin == rank ? now[0] : begin == rank + 1 ? now[1] : begin == rank + 2 ? now[2] : now[3];
    __syncthreads();
    if (threadIdx.x < 32) {
        const uint32_t lane = threadIdx.x;
#pragma unroll 1
        for (uint32_t base = 0; base < heads && left > 0; base += 32) {
            const uint32_t token = base + lane < heads ? m.list[base + lane] : kNone;
            const bool     marked = token == kNone || (m.words[token / 32] >> (token & 31) & 1);
            const bool     leads = __ffs((int)__match_any_sync(kAll, token)) - 1 == (int)lane;
            const uint32_t able = __ballot_sync(kAll, !marked && leads);
            if (able >> lane & 1 && __popc(able & ((1u << lane) - 1)) < left) Mark(m, token);
            left -= min(left, (uint32_t)__popc(able));
            __syncwarp();
        }
    }
}

static __device__ void SelectUnion(const lim_cuda_args &args) {
    extern __shared__ __align__(16) uint8_t shared[];
    __shared__ Common                       common;
    const lim_cuda_call &call = args.call;
    const int            head = blockIdx.x, row = blockIdx.y;
    const int            n = __ldg((const int32_t *)call.lengths + row);
    if (n <= call.budget) {
        if (head == 0) TakeAll(call, row, n);
        return;
    }
    const uint32_t want = call.mid;
    if (want > 0) {
        const Ranking  ranking = RankingIn(shared, args.room);
        const Logits   x = LogitsIn(args, row, head);
        uint32_t      *ranks = (uint32_t *)args.ranks + ((int64_t)row * call.heads + head) * RankStride(want);
        const uint32_t count = FindCandidates(x, call.first, n - call.recent, want, args.room, ranking, common);
        uint32_t       best, worst;
        LoadItems(x, ranking, count, best, worst);
        ForRanks(ranking, count, want, best, worst, common, [&](uint32_t rank, uint32_t position) {
            if (rank < want) __stcg(ranks + rank, position);
        });
    }
    const Merging  m = MergingIn(shared, call);
    const uint32_t before = Arrive(args, row, n, gridDim.x, m, common);
    if (before == gridDim.x - 1 && want > 0) {
        WalkLine(args, row, m, common);
        __syncthreads();
        WriteMiddle(call, row, n, m, common);
    }
    if (before == 0) WriteEnds(call, row, n); /* the first to come has the time */
}

static __device__ void SelectMass(const lim_cuda_args &args) {
    extern __shared__ __align__(16) uint8_t shared[];
    __shared__ Common                       common;
    const lim_cuda_call &call = args.call;
    const int            row = blockIdx.y;
    const int            n = __ldg((const int32_t *)call.lengths + row);
    if (n <= call.budget) {
        if (blockIdx.x == 0) TakeAll(call, row, n);
        return;
    }
    float         *mass = (float *)args.mass + (int64_t)row * args.logit_stride;
    const float   *sums = (const float *)args.sums + (int64_t)row * call.heads;
    const uint32_t at = blockIdx.x * kThreads + threadIdx.x;
    if (blockIdx.x * kThreads >= (uint32_t)n && blockIdx.x != 0) return; /* not counted below */
    if (at < (uint32_t)n) {
        float sum = 0;
#pragma unroll 4
        for (int h = 0; h < call.heads; h++) {
            const float p = __expf(LogitsIn(args, row, h)[at] - __ldg(sums + h));
            if (p == p) sum += p; /* NaN adds nothing */
        }
        __stcg(mass + at, sum);
    }
    const uint32_t expected = ((uint32_t)n + kThreads - 1) / kThreads, want = call.mid;
    const Ranking  ranking = RankingIn(shared, args.room);
    const Merging  m = MergingIn(ranking.places + (ranking.sorted != nullptr ? args.room : 0), call); /* beyond the ranking */
    if (Arrive(args, row, n, expected, m, common) != expected - 1) return;
    if (want > 0) {
        const uint32_t count = FindCandidates(Logits{mass, 1}, call.first, n - call.recent, want, args.room, ranking, common);
        uint32_t       best, worst;
        LoadItems(Logits{mass, 1}, ranking, count, best, worst);
        ForRanks(ranking, count, want, best, worst, common, [&](uint32_t rank, uint32_t position) {
            if (rank < want) Mark(m, position);
        });
        __syncthreads();
        WriteMiddle(call, row, n, m, common);
    }
    WriteEnds(call, row, n);
}

}  // namespace selection
}  // namespace lessismore

extern "C" __global__ void __launch_bounds__(lessismore::selection::kThreads, 2) lim_select_union(const __grid_constant__ lim_cuda_args args) {
    lessismore::LetLaterStart();
    lessismore::selection::SelectUnion(args);
}
extern "C" __global__ void __launch_bounds__(lessismore::selection::kThreads, 1) lim_select_mass(const __grid_constant__ lim_cuda_args args) {
    lessismore::LetLaterStart();
    lessismore::selection::SelectMass(args);
}
