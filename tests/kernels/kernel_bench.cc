/* How close the kernels come to what the machine's memory allows.
 *
 *     kernel_bench [result.json] [filter]
 *
 * Every measurement is a pair, taken in turns: the kernel, and what it is compared with (a read of the
 * same bytes in the same order, or full attention for the selection). Medians are reported. K/V stores are
 * larger together than any cache and used in rotation, so that everything comes from memory, as in decoding,
 * where each layer has its own. Pairs matter: on shared machines the bandwidth itself moves by the minute. */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <time.h>
#include <vector>

#include "dispatch.h"
#include "kernels.h"

namespace {

constexpr int    kKvHeads = 8, kDim = 128, kBudget = 2048;
constexpr size_t kArena = (size_t)288 << 20;

double Now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

double Median(std::vector<double> v) {
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
}

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
};
const Reader kReaders[] = {
    {"as it comes", ReadLines<1, 0>},
    {"asked for 4 KB ahead", ReadLines<1, 4096>},
    {"four runs in turn", ReadLines<4, 0>},
};
const Reader *fastest[3]; /* by threads */

struct Type {
    const char *name;
    int         type;
    size_t      row; /* bytes of one head's row */
};
const Type kTypes[] = {
    {"f16", LIM_CPU_F16, kDim * 2},
    {"bf16", LIM_CPU_BF16, kDim * 2},
    {"q8_0", LIM_CPU_Q8_0, kDim / 32 * 34},
    {"q4_0", LIM_CPU_Q4_0, kDim / 32 * 18},
};

uint8_t *arena;

/* Fills the arena with rows of the type, of modest random values. */
void Fill(const Type &type) {
    uint64_t state = 88172645463325252u;
    auto     next = [&] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    };
    if (type.type == LIM_CPU_F16 || type.type == LIM_CPU_BF16) {
        /* Sign and fraction at random, exponents around one. */
        const uint64_t keep = type.type == LIM_CPU_F16 ? 0x87ff87ff87ff87ffu : 0x80ff80ff80ff80ffu;
        const uint64_t set = type.type == LIM_CPU_F16 ? 0x3800380038003800u : 0x3f003f003f003f00u;
        for (size_t i = 0; i < kArena / 8; i++) ((uint64_t *)arena)[i] = (next() & keep) | set;
        return;
    }
    for (size_t i = 0; i < kArena / 8; i++) ((uint64_t *)arena)[i] = next();
    const size_t   block = type.type == LIM_CPU_Q8_0 ? 34 : 18;
    const uint16_t scale = type.type == LIM_CPU_Q8_0 ? 0x2000 : 0x3000;
    for (size_t i = 0; i + block <= kArena; i += block) memcpy(arena + i, &scale, 2);
}

struct Result {
    std::string name, type, baseline;
    int         heads, context, budget, threads;
    double      ms, baseline_ms, bytes, share;
};
std::vector<Result> results;

/* One layer of a model at a context length, over as many stores as fit into the arena. */
struct Layer {
    Type                 type;
    int                  heads, context, stores;
    size_t               token;  /* bytes of K, and of V, per token */
    std::vector<float>   query, output;
    std::vector<int32_t> set;
    lim_cpu_row          row = {};
    lim_cpu_call         call = {};
    void                *work = nullptr;

    Layer(const Type &t, int h, int n) : type(t), heads(h), context(n) {
        token = type.row * kKvHeads;
        stores = (int)(kArena / (2 * token * context));
        query.resize((size_t)heads * kDim);
        output.resize((size_t)heads * kDim);
        std::mt19937                    random(7);
        std::normal_distribution<float> normal;
        for (float &x : query) x = normal(random);
        row.n = context;
        row.set_n = std::min(kBudget, context / 2);
        row.recent = row.set_n / 4 - 4;
        row.sinks = 4;
        row.mid = row.set_n - row.recent - row.sinks;
        set.resize(row.set_n);
        row.set = set.data();
        call.query = {query.data(), (int64_t)query.size() * 4, kDim * 4, 0, LIM_CPU_F32};
        call.output = {output.data(), (int64_t)output.size() * 4, kDim * 4, 0, LIM_CPU_F32};
        call.heads = heads;
        call.kv_heads = kKvHeads;
        call.dim_k = call.dim_v = kDim;
        call.scale = 0.0883883f;
        call.rows = &row;
        call.n_rows = 1;
        Use(0);
        const size_t size = lim_cpu_work_size(&call, 2);
        work = aligned_alloc(64, (size + 63) / 64 * 64);
        memset(work, 0, size);
        call.work = work;
    }
    ~Layer() { free(work); }

    void Use(int store) {
        uint8_t *k = arena + (size_t)(store % stores) * 2 * token * context;
        call.key = {k, (int64_t)token, (int64_t)type.row, 0, type.type};
        call.value = {k + token * context, (int64_t)token, (int64_t)type.row, 0, type.type};
    }
    /* The i-th of the disjoint spread-out lists: one token at random from each stretch of the context. */
    void UseList(int i) {
        const int step = context / row.set_n;
        std::mt19937 random(i / step);
        for (int t = 0; t < row.set_n; t++) set[t] = t * step + (int)((random() + (unsigned)i) % (unsigned)step);
        Use(i / step);
    }
    void Attend(int mode, int threads) {
        call.mode = mode;
        OnThreads(threads, [&](int ith, int nth) { lim_cpu_attend(&call, ith, nth); });
    }
    void Read(int threads) {
        OnThreads(threads, [&](int ith, int nth) {
            const size_t half = token * context / nth / 64 * 64;
            const Reader &r = *fastest[threads];
            sink = r.read((uint8_t *)call.key.data + half * ith, half) + r.read((uint8_t *)call.value.data + half * ith, half);
        });
    }
    void ReadList(int threads) {
        OnThreads(threads, [&](int ith, int nth) {
            const int end = row.set_n * (ith + 1) / nth;
            uint64_t  sum = 0;
            for (int t = row.set_n * ith / nth; t < end; t++) {
                for (const lim_cpu_tensor *x : {&call.key, &call.value}) {
                    const uint8_t *ahead = (const uint8_t *)x->data + token * set[std::min(t + 4, end - 1)];
                    for (size_t i = 0; i < token; i += 64) __builtin_prefetch(ahead + i, 0, 2);
                    sum += ReadLines<1, 0>((const uint8_t *)x->data + token * set[t], token);
                }
            }
            sink = sum;
        });
    }
};

/* Runs the two in turns, preparing each on data that is out of the caches. */
void Pair(int rounds, std::function<void(int)> prepare, std::function<void()> a, std::function<void()> b, double *a_ms, double *b_ms) {
    std::vector<double> as, bs;
    int                 use = 0;
    for (int i = -1; i < rounds; i++) {
        for (int which = 0; which < 2; which++) {
            const bool first = (which == 0) == (i % 2 == 0);
            prepare(use++);
            const double begin = Now();
            (first ? a : b)();
            const double ms = Now() - begin;
            if (i >= 0) (first ? as : bs).push_back(ms);
        }
    }
    *a_ms = Median(as);
    *b_ms = Median(bs);
}

/* Finds the fastest reader for so many threads, over the whole arena. */
void ChooseReader(int threads) {
    double best = 0;
    for (int round = 0; round < 5; round++) {
        for (const Reader &reader : kReaders) {
            const double begin = Now();
            OnThreads(threads, [&](int ith, int nth) { sink = reader.read(arena + kArena / nth * ith, kArena / nth - 4096); });
            const double ms = Now() - begin;
            if (fastest[threads] == nullptr || ms < best) {
                fastest[threads] = &reader;
                best = ms;
            }
        }
    }
    printf("threads %d: reads %.1f GB/s, %s\n", threads, kArena / best / 1e6, fastest[threads]->name);
}

void Report(Result r) {
    results.push_back(r);
    printf("%-7s %-5s heads %2d context %5d budget %4d threads %d: %8.3f ms, %-24s %8.3f ms, ratio %.2f, %5.1f GB/s, %3.0f%% of read bandwidth\n",
           r.name.c_str(), r.type.c_str(), r.heads, r.context, r.budget, r.threads, r.ms, r.baseline.c_str(), r.baseline_ms,
           r.baseline_ms / r.ms, r.bytes / r.ms / 1e6, r.share * 100);
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
                "\"bytes\": %.0f, \"limit_share\": %.4f}%s\n",
                r.name.c_str(), lim_cpu_target(), r.type.c_str(), r.heads, kKvHeads, kDim, r.context, r.budget, r.threads, r.ms,
                r.baseline.c_str(), r.baseline_ms, r.baseline_ms / r.ms, r.bytes, r.share, i + 1 < results.size() ? "," : "");
    }
    fprintf(file, "]\n");
    fclose(file);
}

}  // namespace

int main(int argc, char **argv) {
    const char *filter = argc > 2 ? argv[2] : "";
    const char *target = getenv("LIM_BENCH_TARGET"); /* to measure another instruction set */
    if (target != nullptr && !lim_cpu_force_target(target)) {
        fprintf(stderr, "no target %s here\n", target);
        return 1;
    }
    pool = lim_cpu_pool_create(2);
    arena = (uint8_t *)aligned_alloc(4096, kArena);
    if (pool == nullptr || arena == nullptr) return 1;
    printf("target %s; ratio is the baseline's time over ours\n", lim_cpu_target());
    Fill(kTypes[0]); /* memory that was never written is not read from memory */
    for (int threads : {1, 2}) ChooseReader(threads);

    for (const Type &type : kTypes) {
        if (*filter != 0 && strstr(filter, type.name) == nullptr) continue;
        Fill(type);
        const bool f16 = type.type == LIM_CPU_F16;
        for (int context : {4096, 16384, 32768}) {
            for (int heads : {16, 32}) {
                if (heads == 32 && (!f16 || context < 32768)) continue;
                for (int threads : {1, 2}) {
                    Layer        layer(type, heads, context);
                    const double bytes = 2.0 * layer.token * context;
                    const int    rounds = context > 10000 ? 15 : 41;
                    double       ms, read_ms;
                    auto         cold = [&](int i) { layer.Use(i); };
                    Pair(rounds, cold, [&] { layer.Attend(LIM_CPU_FULL, threads); }, [&] { layer.Read(threads); }, &ms, &read_ms);
                    const double bandwidth = bytes / read_ms;
                    Report({"full", type.name, "sequential read", heads, context, context, threads, ms, read_ms, bytes, bytes / ms / bandwidth});

                    double list_ms, list_read_ms;
                    const double list_bytes = 2.0 * layer.token * layer.row.set_n;
                    Pair(61, [&](int i) { layer.UseList(i); }, [&] { layer.Attend(LIM_CPU_LIST, threads); }, [&] { layer.ReadList(threads); },
                         &list_ms, &list_read_ms);
                    Report({"list", type.name, "read of the same rows", heads, context, layer.row.set_n, threads, list_ms, list_read_ms,
                            list_bytes, list_bytes / list_ms / bandwidth});
                    if (!f16) continue;
                    for (int policy : {LIM_CPU_UNION, LIM_CPU_MASS}) {
                        double select_ms, full_ms;
                        layer.call.policy = policy;
                        Pair(rounds, cold, [&] { layer.Attend(LIM_CPU_SELECT, threads); }, [&] { layer.Attend(LIM_CPU_FULL, threads); },
                             &select_ms, &full_ms);
                        Report({policy == LIM_CPU_UNION ? "select" : "select mass", type.name, "full attention", heads, context, layer.row.set_n,
                                threads, select_ms, full_ms, bytes, bytes / select_ms / bandwidth});
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
