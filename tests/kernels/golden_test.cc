/* Token sets recorded from the LessIsMore authors' own code. */
#include <cstdio>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "reference.h"

namespace {

std::vector<uint8_t> ReadAll(const char *path) {
    std::vector<uint8_t> data;
    FILE                *file = fopen(path, "rb");
    if (file == nullptr) return data;
    uint8_t buffer[65536];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, file)) > 0;) data.insert(data.end(), buffer, buffer + n);
    fclose(file);
    return data;
}

template <class T>
T Next(const uint8_t **p) {
    T value;
    memcpy(&value, *p, sizeof value);
    *p += sizeof value;
    return value;
}

TEST(Golden, EverySetIsReproduced) {
    const std::vector<uint8_t> data = ReadAll(GOLDEN_DIR "/selection.bin");
    ASSERT_FALSE(data.empty());
    const uint8_t *p = data.data();
    const int      cases = Next<int32_t>(&p);
    ASSERT_EQ(cases, 160);
    for (int c = 0; c < cases; c++) {
        const int                       heads = Next<int32_t>(&p), n = Next<int32_t>(&p), budget = Next<int32_t>(&p), sink_tokens = Next<int32_t>(&p);
        const double                    ratio = Next<double>(&p);
        const int                       size = Next<int32_t>(&p);
        std::vector<std::vector<float>> logits(heads, std::vector<float>(n));
        std::vector<float>              flat((size_t)heads * n);
        memcpy(flat.data(), p, flat.size() * 4);
        p += flat.size() * 4;
        for (int h = 0; h < heads; h++) logits[h].assign(flat.begin() + (size_t)h * n, flat.begin() + (size_t)(h + 1) * n);
        std::vector<int32_t> expected(size);
        memcpy(expected.data(), p, (size_t)size * 4);
        p += (size_t)size * 4;

        const Split split = SplitBudget(n, budget, ratio, sink_tokens);
        ASSERT_EQ(size, split.sink_tokens + split.top_k + split.recent) << "case " << c;
        /* The tests' own reference is checked by the same sets. */
        ASSERT_EQ(UnionSet(logits, n, split), expected) << "case " << c;
        for (const std::string &target : Targets()) {
            ASSERT_TRUE(lim_cpu_force_target(target.c_str()));
            Guarded              work((lim_cpu_select_work_size(heads, n, split.top_k, 2) + 63) / 64 * 64);
            std::vector<int32_t> set(size, -1);
            RunSelect(flat.data(), n, heads, n, split.sink_tokens, split.top_k, split.recent, LIM_CPU_UNION, set.data(), work.data(), 2);
            ASSERT_EQ(set, expected) << "case " << c << " " << target;
        }
    }
    ASSERT_EQ(p, data.data() + data.size());
    lim_cpu_force_target(nullptr);
}

}  // namespace
