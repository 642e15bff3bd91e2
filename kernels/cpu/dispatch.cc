/* Finds the instruction set to use. See dispatch.h. */
#include "targets.h"
#include "dispatch.h"

#include <atomic>
#include <string.h>

#include "hwy/highway.h"
#include "kernels.h"

namespace lessismore {
namespace {

struct Target {
    int64_t     bit;
    const char *name;
};

/* Best first; the last one always works. */
const Target kTargets[] = {
#if defined(__x86_64__)
    {HWY_AVX3, "AVX3"},
    {HWY_AVX2, "AVX2"},
    {HWY_SSE4, "SSE4"},
#endif
#if HWY_STATIC_TARGET == HWY_NEON
    {HWY_NEON, "NEON"},
#elif HWY_STATIC_TARGET == HWY_EMU128
    {HWY_EMU128, "EMU128"},
#elif HWY_STATIC_TARGET == HWY_SCALAR
    {HWY_SCALAR, "SCALAR"},
#endif
};
const int kCount = sizeof kTargets / sizeof kTargets[0];

/* What Highway's code for the target may use, and that the operating system saves those registers. */
bool Supported(int64_t bit) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool sse4 = __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2") &&
                      __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("aes");
    const bool avx2 = sse4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                      __builtin_cpu_supports("f16c");
    const bool avx3 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd");
    if (bit == HWY_SSE4) return sse4;
    if (bit == HWY_AVX2) return avx2;
    if (bit == HWY_AVX3) return avx3;
#else
    (void)bit;
#endif
    return true;
}

int Best() {
    int i = 0;
    while (!Supported(kTargets[i].bit)) i++;
    return i;
}

std::atomic<int> chosen{-1}; /* index into kTargets */

int Chosen() {
    int i = chosen.load(std::memory_order_relaxed);
    if (i < 0) {
        i = Best();
        chosen.store(i, std::memory_order_relaxed);
    }
    return i;
}

}  // namespace

int64_t CurrentTarget() { return kTargets[Chosen()].bit; }

}  // namespace lessismore

using namespace lessismore;

extern "C" const char *lim_cpu_target(void) { return kTargets[Chosen()].name; }

extern "C" int lim_cpu_force_target(const char *name) {
    if (name == nullptr) {
        chosen.store(Best(), std::memory_order_relaxed);
        return 1;
    }
    for (int i = 0; i < kCount; i++) {
        if (strcmp(name, kTargets[i].name) == 0 && Supported(kTargets[i].bit)) {
            chosen.store(i, std::memory_order_relaxed);
            return 1;
        }
    }
    return 0;
}

extern "C" const char *lim_cpu_target_at(int i) {
    for (int k = 0; k < kCount; k++) {
        if (Supported(kTargets[k].bit) && i-- == 0) return kTargets[k].name;
    }
    return nullptr;
}
