/* The probe beside a selection, against shares summed in double. */
#include <cmath>

#include "gtest/gtest.h"
#include "reference.h"

namespace {

TEST(Probe, SharesAreThoseOfTheSoftmax) {
    for (const std::string &target : Targets()) {
        ASSERT_TRUE(lim_cpu_force_target(target.c_str()));
        for (int round = 0; round < 60; round++) {
            Random               random(round);
            const int            kv_heads = random.Pick({1, 2, 4}), heads = kv_heads * random.Pick({1, 2, 5}), dim = 16 * random.Int(1, 6);
            const int            n = random.Int(20, 400), n_sets = random.Int(0, 5), n_rows = random.Int(1, 3), probed = random.Int(0, n_rows - 1);
            lim_cpu_call         call = {};
            std::vector<float>   query(n_rows * heads * dim), key(n * kv_heads * dim), output(n_rows * heads * dim), sinks;
            std::vector<int32_t> slots(n);
            for (float &x : query) x = random.Normal();
            for (float &x : key) x = random.Normal();
            for (int t = 0; t < n; t++) slots[t] = t;
            random.Shuffle(&slots);
            const int row_bytes = kv_heads * dim * 4;
            call.query = {query.data(), heads * dim * 4, dim * 4, 0, LIM_CPU_F32};
            call.key = call.value = {key.data(), row_bytes, dim * 4, 0, LIM_CPU_F32};
            call.output = {output.data(), heads * dim * 4, dim * 4, 0, LIM_CPU_F32};
            call.heads = heads;
            call.kv_heads = kv_heads;
            call.dim_k = call.dim_v = dim;
            call.scale = random.Pick({0.1f, 0.5f, 2.0f});
            call.mode = LIM_CPU_SELECT;
            call.policy = random.Int(0, 1);
            if (random.Chance(0.3)) {
                for (int h = 0; h < heads; h++) sinks.push_back(random.Normal() * 3);
                call.sinks = sinks.data();
            }
            std::vector<lim_cpu_row>          rows(n_rows);
            std::vector<std::vector<int32_t>> sets(n_rows);
            for (int r = 0; r < n_rows; r++) {
                rows[r].token = r;
                rows[r].n = n;
                rows[r].slots = random.Chance(0.5) ? slots.data() : nullptr;
                const Split split = SplitBudget(n, random.Int(1, n - 1), 0.25, 4);
                rows[r].sink_tokens = split.sink_tokens;
                rows[r].top_k = split.top_k;
                rows[r].recent = split.recent;
                rows[r].set_n = split.sink_tokens + split.top_k + split.recent;
                sets[r].resize(rows[r].set_n);
                rows[r].set = sets[r].data();
            }
            const lim_cpu_row   &row = rows[probed];
            const int            set_n = random.Int(1, n), stride = set_n + random.Int(0, 9);
            std::vector<int32_t> others(n_sets * stride + 1), own(row.set_n);
            for (int i = 0; i < n_sets; i++) {
                std::vector<int32_t> all(n);
                for (int t = 0; t < n; t++) all[t] = t;
                random.Shuffle(&all);
                std::copy(all.begin(), all.begin() + set_n, others.begin() + i * stride);
            }
            std::vector<float> kept((n_sets + 1) * heads, -1);
            lim_cpu_probe      probe = {probed, n_sets, set_n, stride, others.data(), own.data(), kept.data()};
            call.rows = rows.data();
            call.n_rows = n_rows;
            call.probe = &probe;
            const int nth = random.Int(1, 4);
            Guarded   work(lim_cpu_work_size(&call, nth) / 64 * 64 + 64);
            call.work = (void *)((uintptr_t)work.data() / 64 * 64);
            /* Twice: the first call must leave the work memory ready for the second. */
            for (int again = 0; again < 2; again++) RunAttend(call, nth);

            std::vector<int32_t> as_slots = own;
            for (int32_t &t : as_slots) t = row.slots != nullptr ? row.slots[t] : t;
            std::sort(as_slots.begin(), as_slots.end());
            ASSERT_EQ(as_slots, sets[probed]) << target << " round " << round;
            for (int h = 0; h < heads; h++) {
                const auto x = ReferenceLogits(call, row, h, row.slots, n);
                double     top = -INFINITY, sum = 0;
                for (double v : x) top = std::max(top, v);
                if (!sinks.empty()) top = std::max(top, (double)sinks[h]);
                for (double v : x) sum += std::exp(v - top);
                if (!sinks.empty()) sum += std::exp(sinks[h] - top);
                for (int i = 0; i <= n_sets; i++) {
                    double share = 0;
                    if (i < n_sets) {
                        for (int k = 0; k < set_n; k++) share += std::exp(x[others[i * stride + k]] - top) / sum;
                    } else {
                        for (int32_t t : own) share += std::exp(x[t] - top) / sum;
                    }
                    ASSERT_NEAR(kept[i * heads + h], share, 1e-4) << target << " round " << round << " set " << i << " head " << h;
                }
            }
        }
    }
    lim_cpu_force_target(nullptr);
}

}  // namespace
