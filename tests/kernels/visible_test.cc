/* The mask scan against a plain loop. */
#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "reference.h"

namespace {

TEST(Visible, IsAPlainLoop) {
    Random     random(10);
    const auto targets = Targets();
    for (int i = 0; i < Cases(8000); i++) {
        const int          n = random.Chance(0.2) ? random.Int(0, 3000) : random.Int(0, 200);
        const bool         half = random.Chance(0.5);
        std::vector<float> mask(n);
        const int          kind = random.Int(0, 4), cut = random.Int(0, n);
        for (int t = 0; t < n; t++) {
            switch (kind) {
            case 0: mask[t] = t < cut ? 0 : -INFINITY; break;
            case 1: mask[t] = random.Chance(0.5) ? 0 : -INFINITY; break;
            case 2: mask[t] = random.Pick({0.0f, -0.0f, -INFINITY}); break;
            case 3: mask[t] = random.Pick({0.0f, -1.0f, -INFINITY, INFINITY, -65504.0f, 6e-8f}); break;
            default: mask[t] = random.Chance(0.01) ? NAN : 0; break;
            }
        }
        Guarded memory((size_t)n * (half ? 2 : 4));
        for (int t = 0; t < n; t++) {
            const uint16_t bits = HalfOf(mask[t]);
            if (half) memcpy(memory.bytes() + 2 * t, &bits, 2);
            else memcpy(memory.bytes() + 4 * t, &mask[t], 4);
        }
        std::vector<int32_t> expected;
        uint32_t             flags = LIM_CPU_PLAIN;
        for (int t = 0; t < n; t++) {
            if (mask[t] == -INFINITY) continue;
            expected.push_back(t);
            if (mask[t] != 0) flags &= ~(uint32_t)LIM_CPU_PLAIN;
        }
        if (expected.empty() || expected.back() + 1 == (int)expected.size()) flags |= LIM_CPU_PREFIX;

        ASSERT_TRUE(lim_cpu_force_target(targets[i % targets.size()].c_str()));
        Guarded   slots((size_t)n * 4);
        uint32_t  got = 99, counted = 99;
        const int type = half ? LIM_CPU_F16 : LIM_CPU_F32;
        const int count = lim_cpu_visible(memory.data(), type, n, (int32_t *)slots.data(), &got);
        ASSERT_EQ(std::vector<int32_t>((int32_t *)slots.data(), (int32_t *)slots.data() + count), expected) << i;
        ASSERT_EQ(got, flags) << i;
        ASSERT_EQ(lim_cpu_visible(memory.data(), type, n, nullptr, &counted), count);
        ASSERT_EQ(counted, flags);
    }
    lim_cpu_force_target(nullptr);
}

}  // namespace
