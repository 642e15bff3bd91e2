/* The kernels of two builds against each other: the same call by both in turn, in one process, on one thread, so that whatever
 * slows the machine down slows both.
 *
 *     compare A.so B.so [target]
 *
 * tests/kernels/compare.sh makes the libraries, of the machine's compiler and of the wheels'. Prints, for every K/V type and mode,
 * B's time over A's: the median of the pairs with its standard error, and of the fastest calls. */
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <time.h>
#include <vector>

#include "kernels.h"

namespace {

constexpr int    kKvHeads = 8, kDim = 128, kBudget = 2048;
constexpr size_t kArena = (size_t)288 << 20; /* larger than any cache */
constexpr double kPatience = 600;            /* ms for one row of the table */

double Now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

double Quantile(std::vector<double> v, double part) {
    std::sort(v.begin(), v.end());
    return v[(size_t)(part * (double)(v.size() - 1))];
}

/* One build. */
struct Build {
    void (*attend)(lim_cpu_call *, int, int);
    size_t (*work_size)(const lim_cpu_call *, int);
    const char *(*target)();
    int (*force_target)(const char *);

    explicit Build(const char *path) {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            fprintf(stderr, "%s\n", dlerror());
            exit(1);
        }
        auto find = [&](const char *name, auto *&function) { *(void **)&function = dlsym(library, name); };
        find("compare_attend", attend);
        find("compare_work_size", work_size);
        find("compare_target", target);
        find("compare_force_target", force_target);
    }
};

struct Type {
    const char *name;
    int         type;
    size_t      row; /* bytes of one head's row */
    size_t      block;
    uint16_t    scale;
};
const Type kTypes[] = {
    {"f16", LIM_CPU_F16, kDim * 2, 0, 0},
    {"bf16", LIM_CPU_BF16, kDim * 2, 0, 0},
    {"q8_0", LIM_CPU_Q8_0, kDim / 32 * 34, 34, 0x2000},
    {"q4_0", LIM_CPU_Q4_0, kDim / 32 * 18, 18, 0x3000},
};
struct Mode {
    const char *name;
    int         mode, policy;
};
const Mode kModes[] = {
    {"full", LIM_CPU_FULL, 0},
    {"list", LIM_CPU_SPARSE, 0},
    {"select", LIM_CPU_SELECT, LIM_CPU_UNION},
    {"select mass", LIM_CPU_SELECT, LIM_CPU_MASS},
};

/* Rows of the type, of modest random values. */
void Fill(uint8_t *arena, const Type &type) {
    std::mt19937_64 random(1);
    const uint64_t  keep = type.block ? ~0ull : type.type == LIM_CPU_F16 ? 0x87ff87ff87ff87ffu
                                                                         : 0x80ff80ff80ff80ffu;
    const uint64_t  set = type.block ? 0 : type.type == LIM_CPU_F16 ? 0x3800380038003800u
                                                                    : 0x3f003f003f003f00u;
    for (size_t i = 0; i < kArena / 8; i++) ((uint64_t *)arena)[i] = (random() & keep) | set;
    for (size_t i = 0; type.block != 0 && i + type.block <= kArena; i += type.block) memcpy(arena + i, &type.scale, 2);
}

void Compare(const Build (&builds)[2], uint8_t *arena, const Type &type, const Mode &mode, int heads, int context) {
    std::vector<float>              query((size_t)heads * kDim), output(query.size());
    std::vector<int32_t>            set(std::min(kBudget, context / 2));
    std::mt19937                    random(7);
    std::normal_distribution<float> normal;
    for (float &x : query) x = normal(random);
    lim_cpu_row row = {};
    row.n = context;
    row.set = set.data();
    row.set_n = (int)set.size();
    row.recent = row.set_n / 4 - 4;
    row.sink_tokens = 4;
    row.top_k = row.set_n - row.recent - row.sink_tokens;
    lim_cpu_call call = {};
    call.query = {query.data(), (int64_t)query.size() * 4, kDim * 4, 0, LIM_CPU_F32};
    call.output = {output.data(), (int64_t)output.size() * 4, kDim * 4, 0, LIM_CPU_F32};
    call.heads = heads;
    call.kv_heads = kKvHeads;
    call.dim_k = call.dim_v = kDim;
    call.scale = 0.0883883f;
    call.rows = &row;
    call.n_rows = 1;
    call.mode = mode.mode;
    call.policy = mode.policy;
    const size_t token = type.row * kKvHeads, store = 2 * token * context;
    const bool   cached = context < 1024;
    const int    stores = cached ? 1 : (int)(kArena / store), repeats = cached ? 20 : 1;
    call.key = {arena, (int64_t)token, (int64_t)type.row, 0, type.type};
    call.value = {arena + token * context, (int64_t)token, (int64_t)type.row, 0, type.type};
    const size_t size = std::max(builds[0].work_size(&call, 1), builds[1].work_size(&call, 1));
    call.work = aligned_alloc(64, (size + 63) / 64 * 64);
    memset(call.work, 0, size);

    std::vector<double> ratios, times[2];
    const double        end = Now() + kPatience;
    int                 use = 0;
    for (int i = -1; i < 2000 && (i < 20 || Now() < end); i++) {
        double ms[2];
        for (int turn = 0; turn < 2; turn++) {
            const int which = turn ^ (i & 1); /* each is first as often as the other */
            uint8_t  *base = arena + store * (use++ % stores);
            call.key.data = base;
            call.value.data = base + token * context;
            if (mode.mode == LIM_CPU_SPARSE) {
                std::mt19937 spread(i);
                const int    step = context / row.set_n;
                for (int t = 0; t < row.set_n; t++) set[t] = t * step + (int)(spread() % (unsigned)step);
            }
            const double begin = Now();
            for (int r = 0; r < repeats; r++) builds[which].attend(&call, 0, 1);
            ms[which] = (Now() - begin) / repeats;
        }
        if (i < 0) continue;
        ratios.push_back(ms[1] / ms[0]);
        for (int which : {0, 1}) times[which].push_back(ms[which]);
    }
    free(call.work);
    const double median = Quantile(ratios, 0.5), spread = Quantile(ratios, 0.75) - Quantile(ratios, 0.25);
    printf("%-5s %-12s heads %2d context %5d: %8.3f ms, %8.3f ms, %+5.1f%% (%.1f), fastest %+5.1f%%, %zu pairs\n", type.name, mode.name, heads, context,
           Quantile(times[0], 0.5), Quantile(times[1], 0.5), 100 * (median - 1), 93 * spread / sqrt((double)ratios.size()),
           100 * (Quantile(times[1], 0) / Quantile(times[0], 0) - 1), ratios.size());
    fflush(stdout);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "compare A.so B.so [target]\n");
        return 2;
    }
    const Build builds[] = {Build(argv[1]), Build(argv[2])};
    for (const Build &build : builds) {
        if (argc > 3 && !build.force_target(argv[3])) {
            fprintf(stderr, "no target %s here\n", argv[3]);
            return 1;
        }
    }
    printf("targets %s, %s\n", builds[0].target(), builds[1].target());
    uint8_t *arena = (uint8_t *)aligned_alloc(4096, kArena);
    if (arena == nullptr) return 1;
    for (const Type &type : kTypes) {
        Fill(arena, type);
        for (const Mode &mode : kModes) {
            for (int heads : {16, 32}) {
                for (int context : {512, 32768}) Compare(builds, arena, type, mode, heads, context);
            }
        }
    }
    free(arena);
    return 0;
}
