/* The token set of each row: sinks, the best of the middle, the newest; sorted by position.
 *
 * `union`: one block per head and row ranks the head's best exactly (ranking.cuh, survivors.cuh). The rankings stand in one line
 * as the merge takes them, rank 0 of every head, then rank 1. The last block of a row to arrive walks that line until the
 * set is full, many tokens at a time: as long as a window does not overfill the set, the order within it does not matter.
 * With many heads half of `top_k` ranks of each are more than enough; if they are not, that block ranks all heads to the end.
 *
 * `mass`: all blocks add up probabilities by token, and the last block of the row takes the best `top_k`.
 *
 * Atomics only count, set bits and hand out places that are sorted afterwards, so the result is the same in every
 * run. Rows that see no more than the budget take everything. Nothing is read back by the host. */
#include "pages.cuh"
#include "ranking.cuh"
#include "survivors.cuh"

#include <cuda_runtime.h>

namespace lessismore {
namespace selection {

/* The dynamic shared memory in its second life, MergingBytes: writing a row's set. */
struct Merging {
    uint32_t *list;  /* [top_k or heads, the larger, up to a multiple of four] */
    uint32_t *words; /* [n / 32, the same] a bit per position */
};

static __device__ Merging MergingIn(uint8_t *shared, const lim_cuda_call &call) {
    Merging m;
    m.list = (uint32_t *)shared;
    m.words = m.list + MergingList(call.top_k, call.heads);
    return m;
}

static __device__ __forceinline__ void PutToken(const lim_cuda_call &call, int row, uint32_t i, uint32_t position) {
    ((int32_t *)call.set)[(int64_t)row * call.set_stride + i] = SlotOf(call, row, (int)position);
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
    for (uint32_t i = threadIdx.x; i < call.top_k; i += kThreads) PutToken(call, row, call.sink_tokens + i, m.list[i]);
}

/* The rest of the set: the sinks and the newest. */
static __device__ __noinline__ void WriteEnds(const lim_cuda_call &call, int row, uint32_t n) {
    const uint32_t first = call.sink_tokens, ends = first + call.recent;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < ends; i += kThreads) {
        PutToken(call, row, i < first ? i : call.top_k + i, i < first ? i : n - ends + i);
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

static __device__ __forceinline__ void ClearWords(const Merging &m, uint32_t n) {
#pragma unroll 1
    for (uint32_t w = threadIdx.x; w < (n + 127) / 128; w += kThreads) ((uint4 *)m.words)[w] = uint4{0, 0, 0, 0};
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
    ClearWords(m, n);
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

/* Walks the rankings, all heads' rank 0, then all heads' rank 1, until `top_k` different tokens are marked. False: that takes
 * more than the `known` ranks that every head has. */
static __device__ __forceinline__ bool WalkLine(const lim_cuda_args &args, int row, uint32_t known, const Merging &m, Common &common) {
    const uint32_t  heads = args.call.heads, want = args.call.top_k;
    const uint32_t  head = threadIdx.x % heads, window = kThreads / heads * 4; /* ranks at a time, four of a head by a thread */
    const bool      idle = threadIdx.x / heads * 4 >= window;
    const uint32_t *of_head = RowRoom{row, 0}.Ranks(args, (int)head);
    uint32_t        rank = idle ? known : threadIdx.x / heads * 4, begin = 0, left = want, turn = 0, fresh, count;
    uint32_t        next[4], now[4];

    LoadRanks(next, of_head, rank, known);
    for (;;) {
        if (known < want && begin >= known) return false;
#pragma unroll
        for (int i = 0; i < 4; i++) now[i] = next[i];
        LoadRanks(next, of_head, rank + window, known);
        fresh = MarkRanks(m, now, rank, 0, kAll);
        count = BlockSum(__popc(fresh), common.sums[turn]);
        turn ^= 1;
        if (count > left) break;
        left -= count;
        if (left == 0) return true; /* a head's ranking alone fills the set: the line is long enough */
        begin += window;
        rank += window;
    }
    /* Too many by some. Of the ranks [begin, end) with `count` fresh tokens, take as many as fit: guess how many, then
     * halve what is in doubt. */
    uint32_t end = begin + window;
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
            if (left == 0) return true;
            count -= part;
            begin = cut;
            fresh = 0;
            tries++;
            if (end - begin == 1) break;
        }
    }
    /* Of the last rank, the first heads that bring something new. */
    if (begin - rank < 4) m.list[head] = begin == rank ? now[0] : begin == rank + 1 ? now[1]
                                                            : begin == rank + 2     ? now[2]
                                                                                    : now[3];
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
    return true;
}

/* Ranks a head's tokens as far as the merge will hardly ever come; kToEnd: as far as it may. */
template <bool kFiltered, bool kToEnd>
static __device__ __forceinline__ void RankHead(const lim_cuda_args &args, int row, int head, int n, const Ranking &ranking, Common &common) {
    const lim_cuda_call &call = args.call;
    const uint32_t       want = kToEnd ? call.top_k : args.need;
    uint32_t            *ranks = RowRoom{row, n}.Ranks(args, head);
    Logits               x = LogitsIn(args, row, head, n);
    const auto           visit = [&](uint32_t rank, uint32_t position) {
        if (rank < want) __stcg(ranks + rank, position);
    };
    if constexpr (kFiltered) {
        uint32_t       *again = (uint32_t *)args.again + (int64_t)row * call.heads + head;
        const Survivors survivors = SurvivorsIn(args, row, head, n);
        if (kToEnd && survivors.lists != 0 && __ldcg(again) != 0) {
            x = {(const float *)survivors.items, 1};
        } else if (survivors.lists != 0) {
            uint32_t known = RankSurvivors(survivors, ranking, want, common, visit);
            if (known == kNone) {
                __syncthreads();
                const Found found = FindSurvivors(survivors, want, args.room, (uint8_t *)ranking.items, common);
                known = found.count;
                if (known >= want) ForRanks(ranking, known, want, found.best, found.worst, common, visit);
            }
            if (!kToEnd && threadIdx.x == 0) __stcg(again, known < want);
            if (known >= want) return;
            x = Recompute(args, row, head, n, (float *)ranking.buckets);
        }
    }
    uint32_t       best, worst;
    const uint32_t count = FindCandidates(x, call.sink_tokens, n - call.recent, want, args.room, ranking, common);
    LoadItems(x, ranking, count, best, worst);
    ForRanks(ranking, count, want, best, worst, common, visit);
}

/* Ranks all heads to the end and walks the line, by one block: where heads hardly differ. */
template <bool kFiltered>
static __device__ __noinline__ void RankAndWalk(const lim_cuda_args &args, int row, int n, uint8_t *shared, Common &common) {
#pragma unroll 1
    for (int head = 0; head < args.call.heads; head++) {
        __syncthreads();
        RankHead<kFiltered, true>(args, row, head, n, RankingIn(shared, args.room), common);
    }
    __syncthreads();
    const Merging m = MergingIn(shared, args.call);
    ClearWords(m, n);
    __syncthreads();
    WalkLine(args, row, args.call.top_k, m, common);
}

/* Finds the row's room. False: no row has any, which the layers up to the next selection are told. */
static __device__ __forceinline__ bool FindRoom(const lim_cuda_args &args, int row, int n) {
    const bool tells = args.no_sets != 0 && blockIdx.x == 0 && blockIdx.y == 0;
    if (n <= args.call.budget && !tells) return true; /* needs none */
    const bool found = ComeToRow(args, row);
    if (tells && threadIdx.x == 0) *(uint32_t *)args.no_sets = !found;
    return found;
}

template <bool kFiltered>
static __device__ __forceinline__ void SelectUnion(const lim_cuda_args &args) {
    extern __shared__ __align__(16) uint8_t shared[];
    __shared__ Common                       common;
    const lim_cuda_call                    &call = args.call;
    const int                               head = blockIdx.x, row = blockIdx.y;
    const int                               n = __ldg((const int32_t *)call.lengths + row);
    if (!FindRoom(args, row, n)) return;
    if (n <= call.budget) {
        if (head == 0) TakeAll(call, row, n);
        return;
    }
    const uint32_t want = call.top_k;
    if (want > 0) RankHead<kFiltered, false>(args, row, head, n, RankingIn(shared, args.room), common);
    const Merging  m = MergingIn(shared, call);
    const uint32_t before = Arrive(args, row, n, gridDim.x, m, common);
    if (before == gridDim.x - 1 && want > 0) {
        if (!WalkLine(args, row, args.need, m, common)) RankAndWalk<kFiltered>(args, row, n, shared, common);
        __syncthreads();
        WriteMiddle(call, row, n, m, common);
    }
    if (before == 0) WriteEnds(call, row, n); /* the first to come has the time */
}

static __device__ void SelectMass(const lim_cuda_args &args) {
    extern __shared__ __align__(16) uint8_t shared[];
    __shared__ Common                       common;
    const lim_cuda_call                    &call = args.call;
    const int                               row = blockIdx.y;
    const int                               n = __ldg((const int32_t *)call.lengths + row);
    if (!FindRoom(args, row, n)) return;
    if (n <= call.budget) {
        if (blockIdx.x == 0) TakeAll(call, row, n);
        return;
    }
    float         *mass = RowRoom{row, n}.Mass(args);
    const float   *sums = (const float *)args.sums + (int64_t)row * call.heads;
    const uint32_t at = blockIdx.x * kThreads + threadIdx.x;
    if (blockIdx.x * kThreads >= (uint32_t)n && blockIdx.x != 0) return; /* not counted below */
    if (at < (uint32_t)n) {
        float sum = 0;
#pragma unroll 4
        for (int h = 0; h < call.heads; h++) {
            const float p = __expf(LogitsIn(args, row, h, n)[at] - __ldg(sums + h));
            if (p == p) sum += p; /* NaN adds nothing */
        }
        __stcg(mass + at, sum);
    }
    const uint32_t expected = ((uint32_t)n + kThreads - 1) / kThreads, want = call.top_k;
    const Ranking  ranking = RankingIn(shared, args.room);
    const Merging  m = MergingIn(ranking.places + (ranking.sorted != nullptr ? args.room : 0), call); /* beyond the ranking */
    if (Arrive(args, row, n, expected, m, common) != expected - 1) return;
    if (want > 0) {
        const uint32_t count = FindCandidates(Logits{mass, 1}, call.sink_tokens, n - call.recent, want, args.room, ranking, common);
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
    lessismore::PdlLaunchDependents();
    lessismore::selection::SelectUnion<false>(args);
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900
extern "C" __global__ void __launch_bounds__(lessismore::selection::kThreads, 2) lim_select_filtered(const __grid_constant__ lim_cuda_args args) {
    lessismore::PdlLaunchDependents();
    lessismore::selection::SelectUnion<true>(args);
}
#endif
extern "C" __global__ void __launch_bounds__(lessismore::selection::kThreads, 1) lim_select_mass(const __grid_constant__ lim_cuda_args args) {
    lessismore::PdlLaunchDependents();
    lessismore::selection::SelectMass(args);
}
