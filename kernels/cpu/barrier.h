/* Where the nth threads of one call meet between its phases. It lives in the caller's zeroed work memory.
 *
 * Spins, because the threads arrive within microseconds of each other; after a while it yields, so that a host
 * with more threads than processors does not burn whole time slices waiting. It counts generations instead
 * of resetting a flag, so it is ready for the next call, with any nth, as soon as everybody has left. */
#ifndef LESSISMORE_CPU_BARRIER_H
#define LESSISMORE_CPU_BARRIER_H

#include <atomic>
#include <sched.h>
#include <stdint.h>

namespace lessismore {

inline void Pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

struct Barrier {
    std::atomic<uint32_t> arrived;
    std::atomic<uint32_t> generation;

    void Wait(int nth) {
        if (nth == 1) return;
        const uint32_t now = generation.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == (uint32_t)nth) {
            arrived.store(0, std::memory_order_relaxed);
            generation.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; generation.load(std::memory_order_acquire) == now; spins++) {
            if (spins < 2000) {
                Pause();
            } else {
                sched_yield();
            }
        }
    }
};

}  // namespace lessismore

#endif
