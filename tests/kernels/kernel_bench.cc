/* How close the kernels come to what the machine's memory allows.
 *
 *     kernel_bench [result.json] [filter]      LIM_BENCH_THREADS: numbers of threads, 1,2 unless it says otherwise
 *
 * Every measurement is taken in turns with what it is compared with: full attention with reads of the same
 * bytes, in sequence and in the fastest order known, a list with a read of the same rows in the same order, the
 * selection with full attention. Medians are reported. K/V stores are larger together than any cache and used in
 * rotation, so that everything comes from memory, as in decoding, where each layer has its own. Turns matter: on
 * shared machines the bandwidth itself moves by the minute. */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "barrier.h"
#include "dispatch.h"
#include "kernels.h"
#include "layer.h"

namespace {

using namespace lim_bench;

lim_cpu_pool *pool;

void OnThreads(int nth, std::function<void(int, int)> body) {
    lim_cpu_pool_run(pool, nth, [](void *arg, int ith, int n) { (*(std::function<void(int, int)> *)arg)(ith, n); }, &body);
}

volatile uint64_t sink;

/* One load from each cache line, of several runs in turn, with requests so many bytes ahead. */
template <int kRuns, size_t kAhead>
uint64_t ReadLines(const uint8_t *from, size_t bytes) {
    const size_t run = bytes / kRuns / 64 * 64;
    uint64_t     sum = 0;
    for (size_t i = 0; i < run; i += 64) {
        for (int r = 0; r < kRuns; r++) {
            if (kAhead != 0) __builtin_prefetch(from + run * r + i + kAhead, 0, 2);
            sum += *(const uint64_t *)(from + run * r + i);
        }
    }
    return sum;
}

/* Which way of reading is the fastest differs from processor to processor, and with the number of threads. */
struct Reader {
    const char *name;
    uint64_t (*read)(const uint8_t *, size_t);
    bool in_sequence;
};
const Reader kReaders[] = {
    {"as it comes", ReadLines<1, 0>, true},
    {"asked for 4 KB ahead", ReadLines<1, 4096>, true},
    {"four runs in turn", ReadLines<4, 0>, false},
};
constexpr int kMostThreads = 256;
const Reader *in_sequence[kMostThreads + 1], *in_any_order[kMostThreads + 1]; /* the fastest, by threads */

struct Result {
    std::string name, type, baseline;
    int         heads, context, budget, threads;
    double      ms, baseline_ms, bytes;
    double      share, any_share; /* of the bandwidth of a sequential read, and of the fastest in any order */
};
std::vector<Result> results;

void Attend(Layer &layer, int mode, int threads, int page = 0, bool scattered = false) {
    layer.Page(page, scattered);
    layer.call.mode = mode;
    OnThreads(threads, [&](int ith, int nth) { lim_cpu_attend(&layer.call, ith, nth); });
}

void Read(const Layer &layer, const Reader &reader, int threads) {
    OnThreads(threads, [&](int ith, int nth) {
        const size_t half = layer.token * layer.context / nth / 64 * 64;
        sink = reader.read((uint8_t *)layer.call.key.data + half * ith, half) + reader.read((uint8_t *)layer.call.value.data + half * ith, half);
    });
}

void ReadList(const Layer &layer, int threads) {
    const std::vector<int32_t> &set = layer.set;
    OnThreads(threads, [&](int ith, int nth) {
        const size_t begin = set.size() * ith / nth, end = set.size() * (ith + 1) / nth, token = layer.token;
        uint64_t     sum = 0;
        for (size_t t = begin; t < end; t++) {
            for (const lim_cpu_tensor *x : {&layer.call.key, &layer.call.value}) {
                const uint8_t *ahead = (const uint8_t *)x->data + token * set[std::min(t + 4, end - 1)];
                for (size_t i = 0; i < token; i += 64) __builtin_prefetch(ahead + i, 0, 2);
                sum += ReadLines<1, 0>((const uint8_t *)x->data + token * set[t], token);
            }
        }
        sink = sum;
    });
}

/* A plain read of scattered pages where they are. */
void ReadPages(Layer &layer, int page, int threads) {
    layer.Page(page, true);
    const std::vector<int32_t> &table = layer.table;
    OnThreads(threads, [&](int ith, int nth) {
        const size_t begin = table.size() * ith / nth, end = table.size() * (ith + 1) / nth, bytes = layer.token * (size_t)page;
        uint64_t     sum = 0;
        for (const lim_cpu_tensor *x : {&layer.call.key, &layer.call.value}) {
            for (size_t i = begin; i < end; i++) {
                const uint8_t *now = (const uint8_t *)x->data + bytes * table[i];
                const uint8_t *ahead = (const uint8_t *)x->data + bytes * table[std::min(i + 1, end - 1)];
                for (size_t b = 0; b < bytes; b += 64) {
                    __builtin_prefetch(ahead + b, 0, 2);
                    sum += *(const uint64_t *)(now + b);
                }
            }
        }
        sink = sum;
    });
}

/* Runs them in turns, preparing each on data that is out of the caches; their medians, in ms. */
std::vector<double> Turns(int rounds, std::function<void(int)> prepare, const std::vector<std::function<void()>> &all) {
    std::vector<std::vector<double>> times(all.size());
    int                              use = 0;
    for (int i = -1; i < rounds; i++) {
        for (size_t turn = 0; turn < all.size(); turn++) {
            const size_t which = (turn + (size_t)(i + 1)) % all.size(); /* each is first as often as the others */
            prepare(use++);
            const double begin = Now();
            all[which]();
            const double ms = Now() - begin;
            if (i >= 0) times[which].push_back(ms);
        }
    }
    std::vector<double> medians;
    for (const std::vector<double> &t : times) medians.push_back(Quantile(t, 0.5));
    return medians;
}

/* Finds the fastest readers for so many threads, over the whole arena. */
void ChooseReaders(const uint8_t *arena, int threads) {
    double best[2] = {};
    for (int round = 0; round < 5; round++) {
        for (const Reader &reader : kReaders) {
            const double begin = Now();
            OnThreads(threads, [&](int ith, int nth) { sink = reader.read(arena + kArena / nth * ith, kArena / nth - 4096); });
            const double ms = Now() - begin;
            for (bool any : {false, true}) {
                const Reader *&chosen = (any ? in_any_order : in_sequence)[threads];
                if ((any || reader.in_sequence) && (chosen == nullptr || ms < best[any])) {
                    chosen = &reader;
                    best[any] = ms;
                }
            }
        }
    }
    printf("threads %d: in sequence %.1f GB/s, %s; in any order %.1f GB/s, %s\n", threads, kArena / best[0] / 1e6, in_sequence[threads]->name,
           kArena / best[1] / 1e6, in_any_order[threads]->name);
}

void Report(Result r) {
    results.push_back(r);
    printf("%-7s %-5s heads %2d context %5d budget %4d threads %d: %8.3f ms, %-24s %8.3f ms, ratio %.2f, %5.1f GB/s, %3.0f%% of a sequential read's, %3.0f%% of the fastest's\n",
           r.name.c_str(), r.type.c_str(), r.heads, r.context, r.budget, r.threads, r.ms, r.baseline.c_str(), r.baseline_ms,
           r.baseline_ms / r.ms, r.bytes / r.ms / 1e6, r.share * 100, r.any_share * 100);
    fflush(stdout);
}

void WriteJson(const char *path) {
    FILE *file = fopen(path, "w");
    if (file == nullptr) {
        perror(path);
        exit(1);
    }
    fprintf(file, "[\n");
    for (size_t i = 0; i < results.size(); i++) {
        const Result &r = results[i];
        fprintf(file,
                "  {\"name\": \"%s\", \"target\": \"%s\", \"kv_type\": \"%s\", \"heads\": %d, \"kv_heads\": %d, \"head_dim\": %d, \"context\": %d, "
                "\"budget\": %d, \"threads\": %d, \"ms\": %.4f, \"baseline\": \"%s\", \"baseline_ms\": %.4f, \"ratio\": %.4f, "
                "\"bytes\": %.0f, \"limit_share\": %.4f, \"any_order_share\": %.4f}%s\n",
                r.name.c_str(), lim_cpu_target(), r.type.c_str(), r.heads, kKvHeads, kDim, r.context, r.budget, r.threads, r.ms,
                r.baseline.c_str(), r.baseline_ms, r.baseline_ms / r.ms, r.bytes, r.share, r.any_share, i + 1 < results.size() ? "," : "");
    }
    fprintf(file, "]\n");
    fclose(file);
}

using Tell = std::function<void(const std::string &, const char *, int, const std::vector<double> &, double)>;

/* What one meeting of so many threads costs; a call of the kernels has one between any two of its phases. */
void MeasureBarrier(int threads) {
    constexpr int       kMeetings = 2000;
    lessismore::Barrier barrier = {};
    std::vector<double> times;
    for (int round = 0; round < 21; round++) {
        double ms = 0;
        OnThreads(threads, [&](int ith, int nth) {
            barrier.Wait(nth); /* all have woken up */
            const double begin = Now();
            for (int i = 0; i < kMeetings; i++) barrier.Wait(nth);
            if (ith == 0) ms = Now() - begin;
        });
        times.push_back(ms / kMeetings);
    }
    results.push_back({"barrier", "", "", 0, 0, 0, threads, Quantile(times, 0.5), 0, 0, 0, 0});
    printf("threads %d: %.2f us a barrier\n", threads, results.back().ms * 1e3);
}

/* The numbers of threads in a list like "1,2". */
std::vector<int> Numbers(const char *list) {
    std::vector<int> numbers;
    while (*list != 0) {
        char      *end;
        const long n = strtol(list, &end, 10);
        if (end == list || n < 1 || n > kMostThreads || (*end != 0 && *end != ',')) {
            fprintf(stderr, "LIM_BENCH_THREADS: \"%s\" does not begin with a number from 1 to %d\n", list, kMostThreads);
            exit(1);
        }
        numbers.push_back((int)n);
        list = *end == ',' ? end + 1 : end;
    }
    return numbers;
}

/* A store in pages against the same one in one piece. */
void ComparePages(Layer &layer, int threads, const Tell &report) {
    const double bytes = 2.0 * layer.token * layer.context, list_bytes = 2.0 * layer.token * layer.row.set_n;
    const auto   cold = [&](int i) { layer.Use(i); };
    const auto   cold_list = [&](int i) { layer.UseList(i); };
    for (int page : {1, 16, 64, 256}) {
        const auto        paged = [&](int mode, bool scattered) { return [&, mode, scattered] { Attend(layer, mode, threads, page, scattered); }; };
        const auto        whole = [&](int mode) { return [&, mode] { Attend(layer, mode, threads); }; };
        const std::string pages = "pages of " + std::to_string(page);
        report("full, " + pages, "in one piece", layer.context, Turns(41, cold, {paged(LIM_CPU_FULL, false), whole(LIM_CPU_FULL)}), bytes);
        report("full, scattered " + pages, "in one piece", layer.context, Turns(41, cold, {paged(LIM_CPU_FULL, true), whole(LIM_CPU_FULL)}), bytes);
        report("full, scattered " + pages, "read of the same pages", layer.context,
               Turns(41, cold, {paged(LIM_CPU_FULL, true), [&] { ReadPages(layer, page, threads); }}), bytes);
        report("list, scattered " + pages, "in one piece", layer.row.set_n,
               Turns(61, cold_list, {paged(LIM_CPU_SPARSE, true), whole(LIM_CPU_SPARSE)}), list_bytes);
    }
    layer.Page(0, false);
}

}  // namespace

int main(int argc, char **argv) {
    const char *filter = argc > 2 ? argv[2] : "";
    const char *target = getenv("LIM_BENCH_TARGET"); /* to measure another instruction set */
    if (target != nullptr && !lim_cpu_force_target(target)) {
        fprintf(stderr, "no target %s here\n", target);
        return 1;
    }
    const char            *list = getenv("LIM_BENCH_THREADS");
    const std::vector<int> thread_counts = Numbers(list != nullptr && *list != 0 ? list : "1,2");
    const int              most_threads = *std::max_element(thread_counts.begin(), thread_counts.end());
    pool = lim_cpu_pool_create(most_threads);
    uint8_t *arena = (uint8_t *)aligned_alloc(4096, kArena);
    if (pool == nullptr || arena == nullptr) return 1;
    printf("target %s; ratio is the baseline's time over ours\n", lim_cpu_target());
    Fill(arena, kTypes[0]); /* memory that was never written is not read from memory */
    for (int threads : thread_counts) ChooseReaders(arena, threads);
    for (int threads : thread_counts) {
        if (threads > 1) MeasureBarrier(threads);
    }

    for (const Type &type : kTypes) {
        if (*filter != 0 && strstr(filter, type.name) == nullptr) continue;
        Fill(arena, type);
        const bool f16 = type.type == LIM_CPU_F16;
        for (int context : {4096, 16384, 32768}) {
            for (int heads : {16, 32}) {
                if (heads == 32 && (!f16 || context < 32768)) continue;
                for (int threads : thread_counts) {
                    Layer layer(arena, type, heads, context);
                    layer.MakeWork(lim_cpu_work_size(&layer.call, most_threads));
                    const double bytes = 2.0 * layer.token * context;
                    const int    rounds = context > 10000 ? 15 : 41;
                    auto         cold = [&](int i) { layer.Use(i); };
                    auto         attend = [&](int mode) { return [&layer, mode, threads] { Attend(layer, mode, threads); }; };
                    auto         read = [&](const Reader *r) { return [&layer, r, threads] { Read(layer, *r, threads); }; };

                    const auto   full = Turns(rounds, cold, {attend(LIM_CPU_FULL), read(in_sequence[threads]), read(in_any_order[threads])});
                    const double bandwidth = bytes / full[1], any_bandwidth = bytes / std::min(full[1], full[2]);
                    const Tell   report = [&](const std::string &name, const char *baseline, int budget, const std::vector<double> &ms, double read_bytes) {
                        Report({name, type.name, baseline, heads, context, budget, threads, ms[0], ms[1], read_bytes,
                                read_bytes / ms[0] / bandwidth, read_bytes / ms[0] / any_bandwidth});
                    };
                    report("full", "sequential read", context, full, bytes);
                    const auto list = Turns(61, [&](int i) { layer.UseList(i); }, {attend(LIM_CPU_SPARSE), [&] { ReadList(layer, threads); }});
                    report("list", "read of the same rows", layer.row.set_n, list, 2.0 * layer.token * layer.row.set_n);
                    if (context == 16384 && threads <= 2) ComparePages(layer, threads, report);
                    if (!f16) continue;
                    for (int policy : {LIM_CPU_UNION, LIM_CPU_MASS}) {
                        layer.call.policy = policy;
                        report(policy == LIM_CPU_UNION ? "select" : "select mass", "full attention", layer.row.set_n,
                               Turns(rounds, cold, {attend(LIM_CPU_SELECT), attend(LIM_CPU_FULL)}), bytes);
                    }
                }
            }
        }
    }
    if (argc > 1 && strcmp(argv[1], "-") != 0) WriteJson(argv[1]);
    lim_cpu_pool_free(pool);
    free(arena);
    return 0;
}
