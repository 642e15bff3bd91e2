/* Finds the instruction set to use. See dispatch.h. */
#include "targets.h"
#include "dispatch.h"

#include <atomic>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

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
#if defined(__x86_64__) && !defined(LIM_CPU_FEW_TARGETS)
    {HWY_AVX3, "AVX3"},
    {HWY_AVX2, "AVX2"},
    {HWY_SSE4, "SSE4"},
#elif defined(__x86_64__)
    {HWY_AVX2, "AVX2"},
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

#if defined(__x86_64__)
bool Has(unsigned flags, unsigned bits) { return (flags & bits) == bits; }

/* The registers that the operating system saves: XCR0. Not to be called without bit_OSXSAVE. */
unsigned Saved() {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}
#endif

/* What Highway's code for the target may use, and that the operating system saves those registers. Asked of the
 * processor itself: what __builtin_cpu_supports() reads is in libgcc, which not every toolchain links. */
bool Supported(int64_t bit) {
#if defined(__x86_64__)
    unsigned a, b, c, d, b7 = 0, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    __get_cpuid_count(7, 0, &a, &b7, &c7, &d7);
    const unsigned saved = Has(c, bit_OSXSAVE) ? Saved() : 0;
    const bool     sse4 = Has(c, bit_SSE4_1 | bit_SSE4_2 | bit_PCLMUL | bit_AES);
    const bool     avx2 = sse4 && Has(saved, 0x6) && Has(c, bit_AVX | bit_FMA | bit_F16C) &&
                          Has(b7, bit_AVX2 | bit_BMI | bit_BMI2);
    const bool     avx3 = avx2 && Has(saved, 0xe6) &&
                          Has(b7, bit_AVX512F | bit_AVX512VL | bit_AVX512DQ | bit_AVX512BW | bit_AVX512CD);
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

bool IsZen5OrLater() {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx || d != signature_AMD_edx || c != signature_AMD_ecx) return false;
    return __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) >= 0x1a; /* the family */
#else
    return false;
#endif
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

bool AsksFirst() {
    static std::atomic<int> known{-1};
    int                     asks = known.load(std::memory_order_relaxed);
    if (asks < 0) {
        asks = IsZen5OrLater();
        known.store(asks, std::memory_order_relaxed);
    }
    return asks != 0;
}

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
