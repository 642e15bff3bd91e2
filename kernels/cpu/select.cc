/* The token set of a row: sinks, the best of the middle, the newest.
 *
 * `union` merges the heads' rankings rank by rank; only the best `top_k` of each head can matter, so at most
 * those are found and sorted, and at first fewer: heads differ, so a merge is seldom that deep. `mass` needs no order, only the `top_k` largest sums. Every step gives the same answer
 * for any number of threads. */
#include "select.h"

#include <algorithm>
#include <cmath>
#include <string.h>

#include "dispatch.h"
#include "kernels.h"

namespace lessismore {
namespace {

/* How many candidates a threshold may let through: the wider, the fewer tries, but the more to sort. */
size_t Capacity(size_t want) { return 3 * want + 64; }

size_t Words(size_t n) { return (n + 63) / 64; }

/* Sorts ascending by the high half; equal ones keep their order. May use `spare`; returns where the result is. */
uint64_t *SortByKey(uint64_t *items, uint64_t *spare, size_t n, uint32_t key_range) {
    if (n < 48) { /* positions ascend within equal keys, so ordering by the whole number is the same */
        std::sort(items, items + n);
        return items;
    }
    for (int shift = 32; key_range != 0; shift += 8, key_range >>= 8) {
        uint32_t begin[257] = {};
        for (size_t i = 0; i < n; i++) begin[(items[i] >> shift & 255) + 1]++;
        for (int d = 0; d < 255; d++) begin[d + 1] += begin[d];
        for (size_t i = 0; i < n; i++) spare[begin[items[i] >> shift & 255]++] = items[i];
        std::swap(items, spare);
    }
    return items;
}

/* Finds the candidates for the best `want` as items (key, position). */
size_t FindItems(const RankingKernels &kernels, const float *x, size_t n, size_t want, const SelectScratch &scratch,
                 uint32_t *key_range) {
    const size_t count = kernels.candidates(x, n, want, Capacity(want), scratch.keys, scratch.positions);
    uint32_t     least = UINT32_MAX, most = 0;
    for (size_t i = 0; i < count; i++) {
        least = std::min(least, scratch.keys[i]);
        most = std::max(most, scratch.keys[i]);
    }
    for (size_t i = 0; i < count; i++) {
        scratch.items[i] = (uint64_t)(scratch.keys[i] - least) << 32 | scratch.positions[i];
    }
    *key_range = count != 0 ? most - least : 0;
    return count;
}

/* How many tokens the ranking has to choose from, and how many of them it chooses. */
size_t Candidates(const Selection &s) {
    const int64_t count = (int64_t)s.n - s.recent - s.sink_tokens;
    return count > 0 ? (size_t)count : 0;
}
size_t Chosen(const Selection &s) { return std::min((size_t)std::max(s.top_k, 0), Candidates(s)); }

}  // namespace

void Selection::Take(Arena *arena) {
    ranks = arena->Take<uint32_t>((size_t)heads * (size_t)std::max(top_k, 0));
    shallow = arena->Take<uint32_t>(1);
    row_max = arena->Take<float>((size_t)heads);
    inverse = arena->Take<float>((size_t)heads);
    mass = arena->Take<float>((size_t)n);
}

void SelectScratch::Take(Arena *arena, int32_t n, int32_t top_k) {
    const size_t capacity = Capacity((size_t)std::max(top_k, 0)) + 16;
    keys = arena->Take<uint32_t>(capacity);
    positions = arena->Take<uint32_t>(capacity);
    items = arena->Take<uint64_t>(capacity);
    spare = arena->Take<uint64_t>(capacity);
    chosen = arena->Take<uint64_t>(Words((size_t)n));
}

int32_t FirstDepth(const Selection &s) {
    /* The heads' best tokens differ, so the merge is full long before the last rank. With few heads it is not. */
    const int32_t want = (int32_t)Chosen(s);
    return s.heads < 8 ? want : std::min(want, std::max(64, want * 3 / 8));
}

void FindSoftmax(const RankingKernels &kernels, const Selection &s, int head) {
    float top, sum;
    kernels.softmax_stats(s.logits + head * s.stride, (size_t)s.n, &top, &sum);
    if (s.sinks != nullptr && s.sinks[head] > -INFINITY) {
        /* The sink joins the denominator as one more logit. */
        const float sink = s.sinks[head], larger = std::max(top, sink);
        sum = sum * (top == larger ? 1 : std::exp(top - larger)) + (sink == larger ? 1 : std::exp(sink - larger));
        top = larger;
    }
    s.row_max[head] = top;
    s.inverse[head] = top > -INFINITY && sum > 0 ? 1 / sum : 0;
}

void RankHead(const RankingKernels &kernels, const Selection &s, int head, int32_t depth, const SelectScratch &scratch) {
    const float *x = s.logits + head * s.stride;
    if (s.policy == LIM_CPU_MASS) {
        FindSoftmax(kernels, s, head);
        return;
    }
    const size_t want = std::min((size_t)depth, Chosen(s));
    if (want == 0) return;
    uint32_t        range;
    const size_t    count = FindItems(kernels, x + s.sink_tokens, Candidates(s), want, scratch, &range);
    const uint64_t *sorted = SortByKey(scratch.items, scratch.spare, count, range);
    uint32_t       *ranks = s.ranks + (size_t)head * want;
    for (size_t i = 0; i < want; i++) ranks[i] = (uint32_t)sorted[i];
}

void AddUpMass(const RankingKernels &kernels, const Selection &s, int part, int parts) {
    const size_t first = (size_t)s.sink_tokens, last = first + Candidates(s);
    const size_t blocks = (last - first + 15) / 16;
    const size_t begin = first + blocks * part / parts * 16, end = std::min(last, first + blocks * (part + 1) / parts * 16);
    if (begin < end) kernels.add_up(s.logits, s.stride, s.heads, begin, end, s.row_max, s.inverse, s.mass);
}

bool WriteSet(const RankingKernels &kernels, const Selection &s, int32_t depth, const SelectScratch &scratch) {
    const size_t candidates = Candidates(s), want = Chosen(s);
    uint64_t    *chosen = scratch.chosen;
    memset(chosen, 0, Words(candidates) * sizeof(uint64_t));
    if (want == candidates) {
        for (size_t i = 0; i < candidates; i++) chosen[i / 64] |= (uint64_t)1 << i % 64;
    } else if (s.policy == LIM_CPU_MASS) {
        uint32_t     range;
        uint64_t    *items = scratch.items;
        const size_t count = FindItems(kernels, s.mass + s.sink_tokens, candidates, want, scratch, &range);
        if (want > 0) std::nth_element(items, items + want - 1, items + count);
        for (size_t i = 0; i < want; i++) chosen[(uint32_t)items[i] / 64] |= (uint64_t)1 << (uint32_t)items[i] % 64;
    } else {
        /* Rank 0 of every head, then rank 1, until enough are in. With all `want` ranks they never run out, since
         * a single head's are that many different tokens. */
        const size_t ranks = std::min((size_t)depth, want);
        size_t       count = 0;
        for (size_t r = 0; r < ranks && count < want; r++) {
            for (int h = 0; h < s.heads && count < want; h++) {
                const uint32_t t = s.ranks[(size_t)h * ranks + r];
                const uint64_t bit = (uint64_t)1 << t % 64;
                count += (chosen[t / 64] & bit) == 0;
                chosen[t / 64] |= bit;
            }
        }
        if (count < want) return false;
    }

    int32_t *to = s.set;
    for (int32_t i = 0; i < s.sink_tokens; i++) *to++ = i;
    for (size_t w = 0; w < Words(candidates); w++) {
        for (uint64_t bits = chosen[w]; bits != 0; bits &= bits - 1) {
            *to++ = s.sink_tokens + (int32_t)(w * 64) + __builtin_ctzll(bits);
        }
    }
    for (int32_t i = s.n - s.recent; i < s.n; i++) *to++ = i;
    if (s.positions != nullptr) memcpy(s.positions, s.set, (size_t)(to - s.set) * sizeof(int32_t));
    if (s.slots != nullptr) {
        for (int32_t *p = s.set; p < to; p++) *p = s.slots[*p];
        /* Where slots were reused, position order is not address order; readers like the latter. */
        if (!std::is_sorted(s.set, to)) std::sort(s.set, to);
    }
    return true;
}

}  // namespace lessismore

using namespace lessismore;

namespace {

struct SelectWork {
    WorkHeader   *header;
    Selection     selection;
    SelectScratch scratch;

    size_t Take(void *base, int ith, int nth) {
        Arena arena(base);
        header = arena.Take<WorkHeader>(1);
        selection.Take(&arena);
        for (int i = 0; i < nth; i++) {
            SelectScratch own;
            own.Take(&arena, selection.n, selection.top_k);
            if (i == ith) scratch = own;
        }
        return arena.used();
    }
};

}  // namespace

extern "C" size_t lim_cpu_select_work_size(int32_t heads, int32_t n, int32_t top_k, int nth) {
    SelectWork work = {};
    work.selection.heads = heads;
    work.selection.n = n;
    work.selection.top_k = top_k;
    return work.Take(nullptr, 0, nth);
}

extern "C" void lim_cpu_select(const float *logits, int64_t stride, int32_t heads, int32_t n, int32_t sink_tokens, int32_t top_k,
                               int32_t recent, int32_t policy, int32_t *positions, void *memory, int ith, int nth) {
    const RankingKernels &kernels = *RankingFor(CurrentTarget());
    SelectWork            work = {};
    Selection            &s = work.selection;
    s.logits = logits;
    s.stride = stride;
    s.heads = heads;
    s.n = n;
    s.sink_tokens = sink_tokens;
    s.top_k = top_k;
    s.recent = recent;
    s.policy = policy;
    s.set = positions;
    work.Take(memory, ith, nth);
    SelectTogether(kernels, policy, &work.header->barrier, work.scratch, ith, nth, [&](auto visit) { visit(s); });
}
