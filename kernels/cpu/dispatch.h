/* Which instruction set the kernels use: found once, the best that this processor and kernel offer.
 *
 * Highway's own dispatcher lives in its shared library; a plug-in that must load into any host cannot depend
 * on it, so the choice is made here and each SIMD source hands out its table of functions by target. */
#ifndef LESSISMORE_CPU_DISPATCH_H
#define LESSISMORE_CPU_DISPATCH_H

#include <stdint.h>

namespace lessismore {

/* The target in use, as Highway's bit (HWY_AVX2, ...). */
int64_t CurrentTarget();

/* Whether rows are better asked for into the first-level cache than into the second: on AMD's cores from Zen 5 on
 * attention over f16 takes 9 % less time so with one thread, and lists 4 to 8 %; on Zen 4 it took twice as long. */
bool AsksFirst();

}  // namespace lessismore

extern "C" {
/* For tests: use the target of this name from now on; NULL: the best again. Returns 0 if this machine or
 * this build does not have it. Not while kernels run. */
int lim_cpu_force_target(const char *name);
/* For tests: name of the i-th target that can be forced here, best first; NULL after the last. */
const char *lim_cpu_target_at(int i);
}

/* In the HWY_ONCE part of a SIMD source: defines `const type *name(int64_t target)`, which returns the
 * target's own `kTable`, an object of that type. */
#if defined(__x86_64__) && defined(LIM_CPU_FEW_TARGETS)
#define LIM_CPU_TABLES(type, name) \
    const type *name(int64_t target) { return target == HWY_AVX2 ? &N_AVX2::kTable : &HWY_STATIC_NAMESPACE::kTable; }
#elif defined(__x86_64__)
#define LIM_CPU_TABLES(type, name)                     \
    const type *name(int64_t target) {                 \
        switch (target) {                              \
        case HWY_AVX3: return &N_AVX3::kTable;         \
        case HWY_AVX2: return &N_AVX2::kTable;         \
        case HWY_SSE4: return &N_SSE4::kTable;         \
        default: return &HWY_STATIC_NAMESPACE::kTable; \
        }                                              \
    }
#else
#define LIM_CPU_TABLES(type, name) \
    const type *name(int64_t) { return &HWY_STATIC_NAMESPACE::kTable; }
#endif
#define HWY_STATIC_NAMESPACE HWY_NAMESPACE /* at HWY_ONCE the static target is the current one */

#endif
