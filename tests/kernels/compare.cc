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
#include <vector>

#include "layer.h"

namespace {

using namespace lim_bench;

constexpr double kPatience = 600; /* ms for one row of the table */

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

void Compare(const Build (&builds)[2], uint8_t *arena, const Type &type, const Mode &mode, int heads, int context) {
    Layer layer(arena, type, heads, context);
    layer.call.mode = mode.mode;
    layer.call.policy = mode.policy;
    layer.MakeWork(std::max(builds[0].work_size(&layer.call, 1), builds[1].work_size(&layer.call, 1)));
    const bool cached = context < 1024; /* one store, small enough to stay in a cache, measured by many calls at once */
    const int  repeats = cached ? 20 : 1;

    std::vector<double> ratios, times[2];
    const double        end = Now() + kPatience;
    int                 use = 0;
    for (int i = -1; i < 2000 && (i < 20 || Now() < end); i++) {
        double ms[2];
        for (int turn = 0; turn < 2; turn++) {
            const int which = turn ^ (i & 1); /* each is first as often as the other */
            if (mode.mode == LIM_CPU_SPARSE) {
                layer.UseList(use++);
            } else {
                layer.Use(use++);
            }
            if (cached) layer.Use(0);
            const double begin = Now();
            for (int r = 0; r < repeats; r++) builds[which].attend(&layer.call, 0, 1);
            ms[which] = (Now() - begin) / repeats;
        }
        if (i < 0) continue;
        ratios.push_back(ms[1] / ms[0]);
        for (int which : {0, 1}) times[which].push_back(ms[which]);
    }
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
