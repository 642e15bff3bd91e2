/* lim_cpu_attend: plans one layer's attention and runs it on nth threads.
 *
 * Each row's tokens are cut into KV chunks. Threads claim KV chunks one after another, so a thread that the
 * system delays does not hold up the rest; each KV chunk leaves a partial result, and the parts are merged in
 * order after a barrier. How a row is cut depends on the call only, never on the threads, so the output
 * and the token sets are the same bits whatever nth is. */
#include <algorithm>
#include <time.h>

#include "attention.h"
#include "dispatch.h"
#include "kernels.h"
#include "probe.h"
#include "select.h"

namespace lessismore {
namespace {

/* KV chunks: short enough to balance threads, long enough that merging them costs little. */
constexpr int32_t kLeastChunk = 128;
constexpr int32_t kMostPerRow = 64, kLeastPerRow = 8, kPerCall = 128;

int32_t MostChunks(int32_t n_rows) { return std::clamp(kPerCall / std::max(n_rows, 1), kLeastPerRow, kMostPerRow); }

int32_t ChunkTokens(int32_t n, int32_t n_rows) {
    const int32_t most = MostChunks(n_rows);
    const int32_t even = (int32_t)(((int64_t)n + most - 1) / most);
    return std::max(kLeastChunk, (even + kTile - 1) / kTile * kTile);
}

int32_t Chunks(int32_t n, int32_t n_rows) {
    const int32_t length = ChunkTokens(n, n_rows);
    return n > 0 ? (int32_t)(((int64_t)n + length - 1) / length) : 0;
}

bool Sparse(const lim_cpu_row &row) { return row.set_n > 0 && row.set_n < row.n; }

/* What the row attends to in this call. */
const int32_t *Slots(const lim_cpu_call &call, const lim_cpu_row &row) {
    return call.mode == LIM_CPU_SPARSE && Sparse(row) ? row.set : row.slots;
}
int32_t Length(const lim_cpu_call &call, const lim_cpu_row &row) {
    return call.mode == LIM_CPU_SPARSE && Sparse(row) ? row.set_n : std::max(row.n, 0);
}
bool Selects(const lim_cpu_call &call, const lim_cpu_row &row) { return call.mode == LIM_CPU_SELECT && Sparse(row); }

/* Logits of heads lie a line more than a power of two apart, lest all of them fall into the same cache set. */
int64_t LogitStride(int32_t n) { return ((int64_t)n + kTile - 1) / kTile * kTile + 16; }

/* A row's memory in SELECT mode. */
struct RowWork {
    float    *logits;
    Selection selection;

    void Take(Arena *arena, const lim_cpu_call &call, const lim_cpu_row &row) {
        const int32_t n = std::max(row.n, 0);
        logits = arena->Take<float>((size_t)call.heads * (size_t)LogitStride(n));
        selection.logits = logits;
        selection.stride = LogitStride(n);
        selection.heads = call.heads;
        selection.n = n;
        selection.sink_tokens = row.sink_tokens;
        selection.top_k = row.top_k;
        selection.recent = row.recent;
        selection.policy = call.policy;
        selection.sinks = call.sinks;
        selection.slots = row.slots;
        selection.set = row.set;
        selection.positions = OwnPositions(call, row);
        selection.Take(arena);
    }
};

/* The layout of work memory. Rows' own memory comes last and is walked row by row. */
struct Work {
    WorkHeader   *header;
    float        *query, *scratch; /* this thread's */
    SelectScratch select;          /* this thread's */
    float        *parts;
    int32_t       n_parts;
    Arena         rows{nullptr};

    size_t Take(void *base, const lim_cpu_call &call, int ith, int nth, bool bound) {
        Arena   arena(base);
        int64_t least = 0, now = 0;
        int32_t longest = 0, top_k = 0;
        for (int32_t r = 0; r < call.n_rows; r++) {
            const lim_cpu_row &row = call.rows[r];
            least += (std::max(row.n, 0) + (int64_t)kLeastChunk - 1) / kLeastChunk;
            now += Chunks(Length(call, row), call.n_rows);
            if (row.set_n > 0) {
                longest = std::max(longest, row.n);
                top_k = std::max(top_k, row.top_k);
            }
        }
        /* Not Chunks(): growing n can make fewer, and the size must never shrink with n. */
        n_parts = (int32_t)(bound ? std::min(least, (int64_t)std::max(kPerCall, kLeastPerRow * call.n_rows)) : now);
        const size_t heads = (size_t)call.heads;
        header = arena.Take<WorkHeader>(1);
        for (int i = 0; i < nth; i++) {
            float        *q = arena.Take<float>(heads * (size_t)call.dim_k);
            float        *s = arena.Take<float>(heads * kScratchPerHead + kTile);
            SelectScratch t;
            t.Take(&arena, longest, top_k);
            if (i == ith) {
                query = q;
                scratch = s;
                select = t;
            }
        }
        parts = arena.Take<float>((size_t)n_parts * Part::Floats(call.heads, call.dim_v));
        rows = arena;
        if (bound) {
            for (int32_t r = 0; r < call.n_rows; r++) {
                RowWork row;
                if (call.rows[r].set_n > 0) row.Take(&arena, call, call.rows[r]);
            }
        }
        return arena.used();
    }
};

uint64_t Now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Calls visit(selection) for each row that selects. */
template <class Visit>
void ForSelections(const lim_cpu_call &call, const Work &work, Visit visit) {
    Arena arena = work.rows;
    for (int32_t r = 0; r < call.n_rows; r++) {
        if (!Selects(call, call.rows[r])) continue;
        RowWork row;
        row.Take(&arena, call, call.rows[r]);
        visit(row.selection);
    }
}

/* Walks the KV chunks in order, from the one that a number names to a later one. */
struct Cursor {
    const lim_cpu_call &call;
    int32_t             row = 0, first = 0, count; /* `first`: the number of the row's first KV chunk */

    explicit Cursor(const lim_cpu_call &c) : call(c), count(Count(0)) {}
    int32_t Count(int32_t r) const { return r < call.n_rows ? Chunks(Length(call, call.rows[r]), call.n_rows) : 0; }
    void    MoveTo(int32_t number) {
        while (number >= first + count) {
            first += count;
            count = Count(++row);
        }
    }
    int32_t Begin(int32_t number) const { return (number - first) * ChunkTokens(Length(call, call.rows[row]), call.n_rows); }
};

void AttendAll(const lim_cpu_call &call, const Work &work, const AttentionKernels &kernels) {
    auto    claim = [&] { return (int32_t)work.header->next.fetch_add(1, std::memory_order_relaxed); };
    Cursor  cursor(call);
    Arena   arena = work.rows;
    int32_t loaded = -1, placed = -1; /* the row whose query is loaded; rows up to this one have their memory */
    float  *logits = nullptr;
    /* One KV chunk is claimed ahead, so that its first rows can be prefetched. */
    for (int32_t now = claim(), next; now < work.n_parts; now = next) {
        next = claim();
        cursor.MoveTo(now);
        const lim_cpu_row &row = call.rows[cursor.row];
        if (loaded != cursor.row) {
            loaded = cursor.row;
            kernels.load_query(&call, &row, work.query);
        }
        while (placed < cursor.row) {
            placed++;
            if (!Selects(call, call.rows[placed])) continue;
            RowWork memory;
            memory.Take(&arena, call, call.rows[placed]);
            logits = memory.logits;
        }
        KvChunk chunk;
        chunk.call = &call;
        chunk.row = &row;
        chunk.slots = Slots(call, row);
        chunk.length = Length(call, row);
        chunk.begin = cursor.Begin(now);
        chunk.end = std::min(chunk.length, cursor.Begin(now + 1));
        chunk.next = next < cursor.first + cursor.count ? cursor.Begin(next) : -1;
        chunk.logits = Selects(call, row) ? logits : nullptr;
        chunk.logit_stride = LogitStride(row.n);
        float *part = work.parts + (size_t)now * Part::Floats(call.heads, call.dim_v);
        kernels.attend(chunk, work.query, work.scratch, Part(part, call.heads));
    }
}

void MergeAll(const lim_cpu_call &call, const Work &work, const AttentionKernels &kernels, int ith, int nth) {
    float  *parts = work.parts;
    int64_t job = 0;
    for (int32_t r = 0; r < call.n_rows; r++) {
        const int32_t count = Chunks(Length(call, call.rows[r]), call.n_rows);
        for (int h = 0; h < call.heads; h++) {
            if (job++ % nth == ith) kernels.merge(&call, &call.rows[r], h, parts, count);
        }
        parts += (size_t)count * Part::Floats(call.heads, call.dim_v);
    }
}

void SelectAll(const lim_cpu_call &call, const Work &work, int ith, int nth) {
    SelectTogether(*RankingFor(CurrentTarget()), call.policy, &work.header->barrier, work.select, ith, nth,
                   [&](auto visit) { ForSelections(call, work, visit); });
    if (call.probe == nullptr || call.probe->kept == nullptr) return;
    work.header->barrier.Wait(nth); /* the probe reads the set, and turns the logits into shares */
    const RankingKernels &kernels = *RankingFor(CurrentTarget());
    ForSelections(call, work, [&](const Selection &s) {
        if (s.set == call.rows[call.probe->row].set) Probe(kernels, *call.probe, s, ith, nth);
    });
}

}  // namespace
}  // namespace lessismore

using namespace lessismore;

extern "C" size_t lim_cpu_work_size(const lim_cpu_call *call, int nth) {
    Work work;
    return work.Take(nullptr, *call, 0, nth, true);
}

extern "C" void lim_cpu_attend(const lim_cpu_call *call, int ith, int nth) {
    const uint64_t          begin = ith == 0 && call->timing != nullptr ? Now() : 0;
    const AttentionKernels &kernels = *AttentionFor(CurrentTarget());
    Work                    work;
    work.Take(call->work, *call, ith, nth, false);
    AttendAll(*call, work, kernels);
    work.header->barrier.Wait(nth);
    /* Everybody has claimed their last; ready for the next call. */
    if (ith == 0) work.header->next.store(0, std::memory_order_relaxed);
    MergeAll(*call, work, kernels, ith, nth);

    bool selects = false;
    for (int32_t r = 0; r < call->n_rows; r++) selects |= Selects(*call, call->rows[r]);
    const uint64_t middle = selects && begin != 0 ? Now() : 0;
    if (selects) SelectAll(*call, work, ith, nth);
    if (begin != 0) {
        const uint64_t end = Now();
        call->timing->attend_ns += end - begin;
        if (selects) call->timing->select_ns += end - middle;
    }
}
