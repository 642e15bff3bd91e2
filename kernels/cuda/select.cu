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
constexpr int      kSampled = 4; /* by each thread */
constexpr uint32_t kSamples = kSampled * kThreads;
constexpr uint32_t kNone = 0xffffffffu;
constexpr uint32_t kCrowded = 96; /* from so many in one bucket on, sorting is faster than comparing all */

/* The dynamic shared memory, in two lives: ranking a head, then writing a row's set. */
struct Ranking {
    uint64_t *items;   /* [room] */
    uint64_t *sorted;  /* [room]; none for more than LIM_CUDA_MAX_RANKED */
    uint32_t *found;   /* [room] positions of candidates; in the place of `sorted` */
    uint32_t *buckets; /* [kBuckets] */
};
struct Merging {
    uint32_t *list;  /* [mid] */
    uint32_t *words; /* [n / 32] a bit per position */
};

struct Common {
    uint32_t warp_sums[kWarps];
    uint32_t tally[3];
    uint32_t count, best, worst, crowd, cut;
    bool     last;
};

/* A head's logits, or the masses; see LogitAt. */
struct Logits {
    const float *first;
    uint32_t     together;

    __device__ __forceinline__ float operator[](uint32_t token) const { return __ldcg(first + LogitAt(token, together)); }
    __device__ __forceinline__ float4 Four(uint32_t token) const { return __ldcg((const float4 *)(first + LogitAt(token, together))); }
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
    return r;
}

static __device__ Merging MergingIn(uint8_t *shared, const lim_cuda_args &args) {
    Merging m;
    m.list = (uint32_t *)shared;
    m.words = m.list + args.call.mid;
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

/* The sum of the threads before this one. All threads must call it; it begins and ends with a barrier. */
static __device__ __noinline__ uint32_t BlockScan(uint32_t x, Common &common) {
    const int      warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const uint32_t inside = WarpScan(x);
    __syncthreads();
    if (lane == 31) common.warp_sums[warp] = inside;
    __syncthreads();
    if (warp == 0) {
        const uint32_t own = lane < kWarps ? common.warp_sums[lane] : 0, sum = WarpScan(own);
        if (lane < kWarps) common.warp_sums[lane] = sum - own;
    }
    __syncthreads();
    return common.warp_sums[warp] + inside - x;
}

/* Where values (smaller is better) from `best` on fall among kBuckets; the order of buckets is theirs. */
static __device__ __forceinline__ uint32_t BucketOf(float v, float best, float scale) {
    const float at = (best - v) * scale;
    return at < (float)kBuckets ? (uint32_t)at : kBuckets - 1;
}

static __device__ __forceinline__ float ValueOfKey(uint32_t key) {
    return __uint_as_float(key <= 0x7fffffffu ? 0x7fffffffu - key : key);
}

static __device__ __forceinline__ bool Finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

/* A bound that should let through somewhat more than `want` of x[begin, end), from a sample's histogram. */
static __device__ uint64_t GuessBound(const Logits &x, uint32_t begin, uint32_t end, uint32_t want, uint32_t room, const Ranking &r,
                               Common &common) {
    const uint32_t count = end - begin;
    uint32_t       key[kSampled], best = kAll, worst = 0;
#pragma unroll
    for (int i = 0; i < kSampled; i++) {
        const float v = x[begin + SampleAt(threadIdx.x + i * kThreads, kSamples, count)];
        key[i] = OrderKey(__float_as_uint(v));
        if (Finite(v)) {
            best = min(best, key[i]);
            worst = max(worst, key[i]);
        }
    }
    if (threadIdx.x == 0) {
        common.best = kAll;
        common.worst = 0;
        common.cut = kBuckets - 1;
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < kBuckets; i += kThreads) r.buckets[i] = 0;
    best = __reduce_min_sync(kAll, best);
    worst = __reduce_max_sync(kAll, worst);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) {
        atomicMin(&common.best, best);
        atomicMax(&common.worst, worst);
    }
    __syncthreads();
    if (common.best > common.worst) return OrderItem(0xff800000u, 0); /* no finite sample */
    const float high = ValueOfKey(common.best), low = ValueOfKey(common.worst);
    const float scale = high > low && Finite(high - low) ? (float)kBuckets / (high - low) : 0.0f;
#pragma unroll
    for (int i = 0; i < kSampled; i++) {
        const uint32_t b = key[i] < common.best ? 0 : key[i] > common.worst ? kBuckets - 1 : BucketOf(ValueOfKey(key[i]), high, scale);
        atomicAdd(&r.buckets[b], 1);
    }
    constexpr int kEach = kBuckets / kThreads;
    uint32_t      mine[kEach], sum = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; i++) sum += mine[i] = r.buckets[threadIdx.x * kEach + i];
    uint32_t       before = BlockScan(sum, common);
    const uint32_t aim = SampleRank(kSamples, count, want, room);
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        if (before <= aim && aim < before + mine[i]) common.cut = threadIdx.x * kEach + i;
        before += mine[i];
    }
    __syncthreads();
    const float bound = scale > 0 ? high - (float)(common.cut + 1) / scale : high;
    return OrderItem(__float_as_uint(bound), kAll);
}

/* Adds the positions of x[begin, end) that are at least `least` to found; NaN never is. */
static __device__ __forceinline__ void CollectAbove(const Logits &x, uint32_t begin, uint32_t end, float least, uint32_t room, uint32_t *found,
                                                    Common &common) {
    const int lane = threadIdx.x & 31;
    /* Each thread looks at kEach fours at a time, all loads under way together. */
    constexpr int kEach = 8;
    for (uint32_t base = begin / 4 * 4; base < end; base += 4 * kEach * kThreads) {
        const uint32_t at = base + 4 * threadIdx.x;
        float4         v[kEach];
#pragma unroll
        for (int j = 0; j < kEach; j++) {
            const uint32_t four = at + j * 4 * kThreads;
            v[j] = four < end ? x.Four(four) : float4{0, 0, 0, 0};
        }
        uint32_t passes = 0;
#pragma unroll
        for (int j = 0; j < kEach; j++) {
            passes |= (uint32_t)(v[j].x >= least) << (4 * j) | (uint32_t)(v[j].y >= least) << (4 * j + 1) |
                      (uint32_t)(v[j].z >= least) << (4 * j + 2) | (uint32_t)(v[j].w >= least) << (4 * j + 3);
        }
        /* Where these fours reach over an end of the candidates. */
        if (base < begin || base + 4 * kEach * kThreads > end) {
#pragma unroll 1
            for (uint32_t bits = passes; bits != 0; bits &= bits - 1) {
                const uint32_t bit = __ffs((int)bits) - 1, p = at + bit / 4 * 4 * kThreads + bit % 4;
                if (p < begin || p >= end) passes &= ~(1u << bit);
            }
            __syncwarp();
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
    if (end - begin > room) bound = GuessBound(x, begin, end, want, room, r, common);
    for (;;) {
        __syncthreads();
        if (threadIdx.x == 0) common.count = 0;
        __syncthreads();
        if ((uint32_t)bound == kAll && (uint32_t)(bound >> 32) != kAll) {
            CollectAbove(x, begin, end, ValueOfKey((uint32_t)(bound >> 32)), room, r.found, common);
        } else {
            CollectWithin(x, begin, end, bound, room, r.found, common);
        }
        __syncthreads();
        const uint32_t count = common.count;
        const uint64_t next = BoundNext(&search, bound, count, want, room);
        if (next == bound) return count;
        bound = next;
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

/* Calls visit(rank, position) for each of the `count` positions found. Buckets by value bring nearly the right order;
 * inside a bucket each item counts those before it. */
template <class Visit>
static __device__ void ForRanks(const Logits &x, const Ranking &r, uint32_t count, Common &common, Visit visit) {
    uint32_t best = kAll, worst = 0;
    /* Each thread looks at kEach at a time, all loads under way together. */
    constexpr int kEach = 8;
#pragma unroll 1
    for (uint32_t base = threadIdx.x; base < count; base += kEach * kThreads) {
        uint32_t position[kEach];
        float    value[kEach];
#pragma unroll
        for (int j = 0; j < kEach; j++) {
            position[j] = base + j * kThreads < count ? r.found[base + j * kThreads] : kNone;
            value[j] = position[j] != kNone ? x[position[j]] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < kEach; j++) {
            if (position[j] == kNone) continue;
            const uint64_t item = OrderItem(__float_as_uint(value[j]), position[j]);
            r.items[base + j * kThreads] = item;
            best = min(best, (uint32_t)(item >> 32));
            worst = max(worst, (uint32_t)(item >> 32));
        }
    }
    if (threadIdx.x == 0) {
        common.best = kAll;
        common.worst = common.crowd = 0;
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < kBuckets; i += kThreads) r.buckets[i] = 0;
    best = __reduce_min_sync(kAll, best);
    worst = __reduce_max_sync(kAll, worst);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) {
        atomicMin(&common.best, best);
        atomicMax(&common.worst, worst);
    }
    __syncthreads();
    const float high = ValueOfKey(common.best), low = ValueOfKey(common.worst), range = high - low;
    bool        sort = !(range > 0 && Finite(range)) || r.sorted == nullptr; /* all equal, infinite, NaN; too many */
    const float scale = sort ? 0 : (float)kBuckets / range;
    if (!sort && !Finite(scale)) sort = true;
    if (!sort) {
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
            atomicAdd(&r.buckets[BucketOf(ValueOfKey((uint32_t)(r.items[i] >> 32)), high, scale)], 1);
        }
        __syncthreads();
        constexpr int kEach = kBuckets / kThreads;
        uint32_t      mine[kEach], sum = 0, most = 0;
#pragma unroll
        for (int i = 0; i < kEach; i++) {
            sum += mine[i] = r.buckets[threadIdx.x * kEach + i];
            most = max(most, mine[i]);
        }
        most = __reduce_max_sync(kAll, most);
        if ((threadIdx.x & 31) == 0) atomicMax(&common.crowd, most);
        uint32_t before = BlockScan(sum, common);
        sort = common.crowd > kCrowded;
        if (!sort) {
#pragma unroll
            for (int i = 0; i < kEach; i++) {
                r.buckets[threadIdx.x * kEach + i] = before;
                before += mine[i];
            }
            __syncthreads();
#pragma unroll 1
            for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
                const uint64_t item = r.items[i];
                r.sorted[atomicAdd(&r.buckets[BucketOf(ValueOfKey((uint32_t)(item >> 32)), high, scale)], 1)] = item;
            }
            __syncthreads();
            /* A bucket's entry is now its end, and the one before it its begin. */
#pragma unroll 1
            for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
                const uint64_t item = r.sorted[i];
                const uint32_t b = BucketOf(ValueOfKey((uint32_t)(item >> 32)), high, scale);
                const uint32_t begin = b == 0 ? 0 : r.buckets[b - 1], end = r.buckets[b];
                uint32_t       rank = begin;
    #pragma unroll 2
            for (uint32_t j = begin; j < end; j++) rank += r.sorted[j] < item;
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

/* From a bit per chosen position to the set: sinks, those, the newest. */
static __device__ __noinline__ void WriteSet(const lim_cuda_args &args, int row, uint32_t n, const Merging &m, Common &common) {
    const lim_cuda_call &call = args.call;
    const uint32_t       words = (n + 31) / 32, each = (words + kThreads - 1) / kThreads;
    const uint32_t       begin = min(words, threadIdx.x * each), end = min(words, begin + each);
    uint32_t             own = 0;
#pragma unroll 1
    for (uint32_t w = begin; w < end; w++) own += __popc(m.words[w]);
    uint32_t to = BlockScan(own, common);
#pragma unroll 1
    for (uint32_t w = begin; w < end; w++) {
#pragma unroll 1
        for (uint32_t bits = m.words[w]; bits != 0; bits &= bits - 1) m.list[to++] = w * 32 + __ffs((int)bits) - 1;
    }
    __syncthreads();
    const uint32_t first = call.first, middle = first + call.mid, budget = call.budget;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < budget; i += kThreads) {
        PutToken(call, row, i, i < first ? i : i < middle ? m.list[i - first] : n - budget + i);
    }
}

/* Counts this block in; true in the last of `expected`, which then sees what the others wrote. */
static __device__ bool Arrive(const lim_cuda_args &args, int row, uint32_t expected, Common &common) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); /* for the whole block: the barrier before it makes it cumulative */
        uint32_t *gathered = (uint32_t *)args.gathered + row;
        common.last = atomicAdd(gathered, 1) == expected - 1;
        if (common.last) *gathered = 0;
        __threadfence();
    }
    __syncthreads();
    return common.last;
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

/* The block's sum. One barrier: three tallies take turns, `turn` counts the calls. */
static __device__ uint32_t BlockSum(uint32_t x, uint32_t &turn, Common &common) {
    const uint32_t now = turn % 3;
    turn++;
    x = __reduce_add_sync(kAll, x);
    if ((threadIdx.x & 31) == 0 && x != 0) atomicAdd(&common.tally[now], x);
    if (threadIdx.x == 0) common.tally[turn % 3] = 0;
    __syncthreads();
    return common.tally[now];
}

/* Walks the line of rankings until `mid` different tokens are marked. */
static __device__ void WalkLine(const lim_cuda_args &args, int row, const Merging &m, Common &common) {
    constexpr uint32_t kStretch = 4 * kThreads;
    const uint32_t     total = (uint32_t)args.call.mid * args.call.heads, lane = threadIdx.x & 31;
    const uint32_t    *line = (const uint32_t *)args.ranks + (int64_t)row * total;
    uint32_t           left = args.call.mid, at = 0, turn = 0;

    if (threadIdx.x < 3) common.tally[threadIdx.x] = 0;
    __syncthreads();
    uint32_t next[4];
#pragma unroll
    for (int i = 0; i < 4; i++) next[i] = threadIdx.x + i * kThreads < total ? __ldcg(line + threadIdx.x + i * kThreads) : kAll;
    for (;;) {
        uint32_t now[4], fresh = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t after = at + kStretch + threadIdx.x + i * kThreads;
            now[i] = next[i];
            next[i] = after < total ? __ldcg(line + after) : kAll;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (now[i] != kAll && Mark(m, now[i])) fresh |= 1u << i;
        }
        const uint32_t count = BlockSum(__popc(fresh), turn, common);
        if (count <= left) {
            left -= count;
            at += kStretch;
            if (left == 0) return; /* a head's ranking alone fills the set: the line is long enough */
            continue;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (fresh >> i & 1) Unmark(m, now[i]);
        }
        __syncthreads();
        break;
    }
    /* Too many by some: halve what is left until it is a warp's worth. */
#pragma unroll 1
    for (uint32_t size = kStretch / 2; size >= 32; size /= 2) {
        uint32_t now[2], fresh = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t in = threadIdx.x + i * kThreads;
            now[i] = in < size && at + in < total ? __ldcg(line + at + in) : kAll;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (now[i] != kAll && Mark(m, now[i])) fresh |= 1u << i;
        }
        const uint32_t count = BlockSum(__popc(fresh), turn, common);
        if (count <= left) {
            left -= count;
            at += size;
            if (left == 0) return;
        } else {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (fresh >> i & 1) Unmark(m, now[i]);
            }
            __syncthreads();
        }
    }
    if (threadIdx.x < 32) {
        const uint32_t token = at + lane < total ? __ldcg(line + at + lane) : kAll;
        const bool     marked = token == kAll || (m.words[token / 32] >> (token & 31) & 1);
        const bool     leads = __ffs((int)__match_any_sync(kAll, token)) - 1 == (int)lane;
        const uint32_t fresh = __ballot_sync(kAll, !marked && leads);
        if (fresh >> lane & 1 && __popc(fresh & ((1u << lane) - 1)) < left) Mark(m, token);
    }
    __syncthreads();
}

static __device__ void MergeUnion(const lim_cuda_args &args, int row, uint32_t n, uint8_t *shared, Common &common) {
    const Merging m = MergingIn(shared, args);
#pragma unroll 1
    for (uint32_t w = threadIdx.x; w < (n + 31) / 32; w += kThreads) m.words[w] = 0;
    __syncthreads();
    if (args.call.mid > 0) WalkLine(args, row, m, common);
    __syncthreads();
    WriteSet(args, row, n, m, common);
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
        uint32_t      *line = (uint32_t *)args.ranks + (int64_t)row * call.heads * want;
        const uint32_t count = FindCandidates(x, call.first, n - call.recent, want, args.room, ranking, common);
        ForRanks(x, ranking, count, common, [&](uint32_t rank, uint32_t position) {
            if (rank < want) __stcg(line + rank * call.heads + head, position);
        });
    }
    if (Arrive(args, row, gridDim.x, common)) MergeUnion(args, row, n, shared, common);
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
    if (!Arrive(args, row, ((uint32_t)n + kThreads - 1) / kThreads, common)) return;

    const uint32_t want = call.mid;
    uint32_t       count = 0;
    const Ranking  ranking = RankingIn(shared, args.room);
    if (want > 0) count = FindCandidates(Logits{mass, 1}, call.first, n - call.recent, want, args.room, ranking, common);
    /* The bitmap lies beyond the ranking. */
    const Merging m = MergingIn((uint8_t *)(ranking.buckets + kBuckets), args);
#pragma unroll 1
    for (uint32_t w = threadIdx.x; w < ((uint32_t)n + 31) / 32; w += kThreads) m.words[w] = 0;
    __syncthreads();
    if (want > 0) {
        ForRanks(Logits{mass, 1}, ranking, count, common, [&](uint32_t rank, uint32_t position) {
            if (rank < want) Mark(m, position);
        });
    }
    __syncthreads();
    WriteSet(args, row, n, m, common);
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
