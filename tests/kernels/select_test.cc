/* Selection from given logits against the literal text. */
#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "reference.h"

namespace {

/* Logits with what selection could trip over: ties, signed zeros, infinities, NaN, constant heads. */
void Fill(Random *random, std::vector<std::vector<float>> *logits, bool special) {
    const int kind = random->Int(0, 5);
    for (auto &head : *logits) {
        const float shift = random->Normal() * 3;
        for (float &x : head) {
            switch (kind) {
            case 0: x = (float)random->Int(-3, 3); break;
            case 1: x = shift; break;
            case 2: x = random->Normal() * 1e-20f * (random->Chance(0.3) ? 0 : 1); break;
            case 3: x = (*logits)[0][&x - head.data()] + (&head == logits->data() ? random->Normal() : random->Normal() * 0.1f); break;
            default: x = shift + random->Normal() * 4; break;
            }
            if (x == 0 && random->Chance(0.5)) x = -0.0f;
        }
        if (special) {
            const double rate = random->Pick({0.0, 0.02, 0.5, 0.98});
            for (float &x : head) {
                if (random->Chance(rate)) x = random->Pick({INFINITY, -INFINITY, NAN, -NAN, 0.0f, -0.0f, FLT_MAX, -FLT_MAX, FLT_TRUE_MIN});
            }
        }
    }
}

struct Case {
    int   heads, n, budget;
    Split split;
};

Case RandomCase(Random *random) {
    Case      c;
    const int size = random->Int(0, 99);
    c.n = size < 50 ? random->Int(1, 40) : size < 95 ? random->Int(1, 400)
                                                     : random->Int(1000, 6000);
    c.heads = random->Chance(0.05) ? random->Int(33, 128) : random->Int(1, 16);
    if (c.n > 1000) c.heads = random->Int(1, 8);
    c.budget = random->Pick({random->Int(1, 20), random->Int(1, c.n), c.n, std::max(1, c.n / 8), c.n + 1});
    c.split = SplitBudget(c.n, c.budget, random->Pick({0.0, 0.1, 0.25, 0.9, 1.0}), random->Pick({0, 1, 4, 4, 9}));
    return c;
}

void CheckRandom(int policy, int cases, uint64_t salt) {
    Random     random(salt);
    const auto targets = Targets();
    for (int i = 0; i < cases; i++) {
        const Case                      c = RandomCase(&random);
        const int                       n = c.n;
        std::vector<std::vector<float>> logits(c.heads, std::vector<float>(n));
        Fill(&random, &logits, policy == LIM_CPU_UNION && random.Chance(0.4));

        /* The logits end at unreadable memory, the work memory too. */
        const int64_t stride = n + random.Int(0, 5);
        Guarded       flat(((size_t)(c.heads - 1) * stride + n) * 4);
        for (int h = 0; h < c.heads; h++) std::copy(logits[h].begin(), logits[h].end(), (float *)flat.data() + h * stride);
        Guarded work((lim_cpu_select_work_size(c.heads, n, c.split.top_k, 4) + 63) / 64 * 64);

        const std::string &target = targets[random.Int(0, (int)targets.size() - 1)];
        ASSERT_TRUE(lim_cpu_force_target(target.c_str()));
        std::vector<int32_t> first;
        for (int nth : {1, random.Int(2, 4)}) {
            const size_t size = c.split.sink_tokens + c.split.top_k + c.split.recent;
            Guarded      out(size * 4);
            RunSelect((float *)flat.data(), stride, c.heads, n, c.split.sink_tokens, c.split.top_k, c.split.recent, policy,
                      (int32_t *)out.data(), work.data(), nth);
            const std::vector<int32_t> set((int32_t *)out.data(), (int32_t *)out.data() + size);
            const std::string          where = "case " + std::to_string(i) + " " + target + " nth " + std::to_string(nth) + " heads " +
                                               std::to_string(c.heads) + " n " + std::to_string(n) + " budget " + std::to_string(c.budget);
            if (policy == LIM_CPU_UNION) {
                ASSERT_EQ(set, UnionSet(logits, n, c.split)) << where;
            } else {
                ASSERT_EQ(CheckMassSet(Mass(logits, n, {}), n, c.split, set), "") << where;
            }
            if (nth == 1) first = set;
            ASSERT_EQ(set, first) << where;
        }
    }
    lim_cpu_force_target(nullptr);
}

TEST(Select, UnionIsTheText) { CheckRandom(LIM_CPU_UNION, Cases(12000), 1); }

TEST(Select, MassIsTheText) { CheckRandom(LIM_CPU_MASS, Cases(6000), 2); }

TEST(Select, LargeUnion) {
    Random random(3);
    for (int i = 0; i < Cases(4); i++) {
        const int                       n = random.Int(20000, 40000), heads = random.Int(8, 32);
        const Split                     split = SplitBudget(n, 2048, 0.25, 4);
        std::vector<std::vector<float>> logits(heads, std::vector<float>(n));
        Fill(&random, &logits, i % 2 == 1);
        std::vector<float> flat;
        for (auto &head : logits) flat.insert(flat.end(), head.begin(), head.end());
        const auto expected = UnionSet(logits, n, split);
        Guarded    work((lim_cpu_select_work_size(heads, n, split.top_k, 2) + 63) / 64 * 64);
        for (const std::string &target : Targets()) {
            ASSERT_TRUE(lim_cpu_force_target(target.c_str()));
            std::vector<int32_t> set(expected.size());
            RunSelect(flat.data(), n, heads, n, split.sink_tokens, split.top_k, split.recent, LIM_CPU_UNION, set.data(), work.data(), 2);
            ASSERT_EQ(set, expected) << target;
        }
    }
    lim_cpu_force_target(nullptr);
}

/* NaN and infinities under `mass`: no crash, the right number of ascending positions, the same for any nth. */
TEST(Select, MassSurvivesAnything) {
    Random random(4);
    for (int i = 0; i < Cases(1500); i++) {
        const Case                      c = RandomCase(&random);
        std::vector<std::vector<float>> logits(c.heads, std::vector<float>(c.n));
        Fill(&random, &logits, true);
        std::vector<float> flat;
        for (auto &head : logits) flat.insert(flat.end(), head.begin(), head.end());
        Guarded              work((lim_cpu_select_work_size(c.heads, c.n, c.split.top_k, 3) + 63) / 64 * 64);
        std::vector<int32_t> set(std::min(c.n, c.budget)), again(set.size());
        RunSelect(flat.data(), c.n, c.heads, c.n, c.split.sink_tokens, c.split.top_k, c.split.recent, LIM_CPU_MASS, set.data(), work.data(), 1);
        RunSelect(flat.data(), c.n, c.heads, c.n, c.split.sink_tokens, c.split.top_k, c.split.recent, LIM_CPU_MASS, again.data(), work.data(), 3);
        ASSERT_EQ(set, again);
        for (size_t t = 1; t < set.size(); t++) ASSERT_LT(set[t - 1], set[t]);
        ASSERT_GE(set.front(), 0);
        ASSERT_LT(set.back(), c.n);
    }
}

}  // namespace
