/* The thread pool: everybody runs once, and more threads than the machine will give is a clean failure. */
#include <atomic>
#include <chrono>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "gtest/gtest.h"
#include "reference.h"

namespace {

struct Counts {
    std::atomic<int> runs[8];
    std::atomic<int> wrong;
    int              nth;
};

void Count(void *arg, int ith, int nth) {
    Counts *counts = (Counts *)arg;
    if (nth != counts->nth || ith < 0 || ith >= nth) counts->wrong++;
    else counts->runs[ith]++;
}

TEST(Pool, EveryIndexRunsOnce) {
    Random random(20);
    for (int size : {1, 2, 3, 8}) {
        lim_cpu_pool *pool = lim_cpu_pool_create(size);
        ASSERT_NE(pool, nullptr);
        for (int i = 0; i < Cases(600); i++) {
            Counts counts = {};
            counts.nth = random.Int(1, size);
            /* Now and then long enough for the workers to fall asleep. */
            if (i % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));
            lim_cpu_pool_run(pool, counts.nth, Count, &counts);
            ASSERT_EQ(counts.wrong, 0);
            for (int t = 0; t < 8; t++) ASSERT_EQ(counts.runs[t], t < counts.nth ? 1 : 0);
        }
        lim_cpu_pool_free(pool);
    }
    lim_cpu_pool_free(nullptr);
}

TEST(Pool, FreeRightAfterCreate) {
    for (int i = 0; i < 50; i++) lim_cpu_pool_free(lim_cpu_pool_create(4));
}

TEST(Pool, OutOfThreads) {
    const pid_t child = fork();
    if (child == 0) {
        /* Stacks of a size that no address space holds. */
        rlimit limit = {256u << 20, 256u << 20};
        setrlimit(RLIMIT_AS, &limit);
        lim_cpu_pool *pool = lim_cpu_pool_create(4096);
        _exit(pool == nullptr ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
