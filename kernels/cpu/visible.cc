/* Which slots a mask row shows: one pass over the mask, 64 slots to a word.
 *
 * Masks are long runs of one kind (a visible past, a hidden rest), so words of all or none are the fast case. */
#include "targets.h"

#include <string.h>

#include "dispatch.h"
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "visible.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef LESSISMORE_CPU_VISIBLE_ONCE
#define LESSISMORE_CPU_VISIBLE_ONCE
namespace lessismore {
struct VisibleKernels {
    int32_t (*f16)(const void *mask, int32_t n, int32_t *slots, uint32_t *flags);
    int32_t (*f32)(const void *mask, int32_t n, int32_t *slots, uint32_t *flags);
};
const VisibleKernels *VisibleFor(int64_t target);
}  // namespace lessismore
#endif

HWY_BEFORE_NAMESPACE();
namespace lessismore {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

/* T holds the bits of one mask value; kHidden are those of -inf. */
template <class T, T kHidden>
int32_t Scan(const void *from, int32_t n, int32_t *slots, uint32_t *flags) {
    constexpr T                    kMinusZero = (T)1 << (sizeof(T) * 8 - 1);
    const hn::ScalableTag<T>       d;
    const hn::ScalableTag<int32_t> di;
    constexpr int                  kStep = HWY_LANES(T), kInts = HWY_LANES(int32_t);
    const uint8_t                 *mask = (const uint8_t *)from;
    int32_t                        count = 0, last = -1;
    uint64_t                       odd = 0; /* visible, but not zero */
    for (int32_t begin = 0; begin < n; begin += 64) {
        T              rest[64];
        const uint8_t *p = mask + (size_t)begin * sizeof(T);
        if (n - begin < 64) {
            for (T &value : rest) value = kHidden;
            memcpy(rest, p, (size_t)(n - begin) * sizeof(T));
            p = (const uint8_t *)rest;
        }
        uint64_t visible = 0;
        for (int i = 0; i < 64; i += kStep) {
            const auto value = hn::LoadU(d, (const T *)p + i);
            const auto shown = hn::Ne(value, hn::Set(d, kHidden));
            const auto zero = hn::Eq(hn::AndNot(hn::Set(d, kMinusZero), value), hn::Zero(d));
            uint8_t    bits[8] = {}, zeros[8] = {};
            hn::StoreMaskBits(d, shown, bits);
            hn::StoreMaskBits(d, zero, zeros);
            uint64_t part, zero_part;
            memcpy(&part, bits, 8);
            memcpy(&zero_part, zeros, 8);
            visible |= part << i;
            odd |= part & ~zero_part;
        }
        if (visible == 0) continue;
        last = begin + 63 - __builtin_clzll(visible);
        if (slots == nullptr) {
            count += __builtin_popcountll(visible);
        } else if (visible == ~(uint64_t)0) {
            for (int i = 0; i < 64; i += kInts) hn::StoreU(hn::Iota(di, begin + i), di, slots + count + i);
            count += 64;
        } else {
            for (; visible != 0; visible &= visible - 1) slots[count++] = begin + __builtin_ctzll(visible);
        }
    }
    *flags = 0;
    if (last + 1 == count) *flags |= LIM_CPU_PREFIX;
    if (odd == 0) *flags |= LIM_CPU_PLAIN;
    return count;
}

}  // namespace

const VisibleKernels kTable = {Scan<uint16_t, 0xfc00>, Scan<uint32_t, 0xff800000>};

}  // namespace HWY_NAMESPACE
}  // namespace lessismore
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lessismore {
LIM_CPU_TABLES(VisibleKernels, VisibleFor)
}  // namespace lessismore

extern "C" int32_t lim_cpu_visible(const void *mask, int32_t type, int32_t n_kv, int32_t *slots, uint32_t *flags) {
    const lessismore::VisibleKernels *kernels = lessismore::VisibleFor(lessismore::CurrentTarget());
    return (type == LIM_CPU_F32 ? kernels->f32 : kernels->f16)(mask, n_kv, slots, flags);
}
#endif
