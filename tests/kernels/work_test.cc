/* Work memory: its size grows with the shape, and one block serves call after call. */
#include "gtest/gtest.h"
#include "reference.h"

namespace {

TEST(Work, SizeIsMonotone) {
    Random random(30);
    for (int i = 0; i < Cases(20000); i++) {
        std::vector<lim_cpu_row> rows(random.Int(1, 40));
        for (auto &row : rows) {
            row = {};
            row.n = random.Pick({random.Int(0, 300), random.Int(0, 40000), random.Int(0, 400000)});
            if (random.Chance(0.5)) {
                row.set_n = random.Int(1, 2048);
                row.top_k = row.set_n / 2;
                row.recent = row.set_n - row.top_k;
            }
        }
        lim_cpu_call call = {};
        call.heads = random.Int(1, 64);
        call.kv_heads = 1;
        call.dim_k = random.Int(1, 15) * 16;
        call.dim_v = random.Int(1, 15) * 16;
        call.rows = rows.data();
        call.n_rows = (int)rows.size() - 1;
        call.mode = random.Int(0, 2);
        const int    nth = random.Int(1, 16);
        const size_t size = lim_cpu_work_size(&call, nth);
        lim_cpu_call more = call;
        switch (random.Int(0, 5)) {
        case 0: more.heads++; break;
        case 1: more.dim_k += 16; break;
        case 2: more.dim_v += 16; break;
        case 3: more.n_rows++; break;
        case 4: rows[0].n += random.Pick({1, 100, 5000}); break;
        default:
            ASSERT_GE(lim_cpu_work_size(&call, nth + 1), size);
            break;
        }
        ASSERT_GE(lim_cpu_work_size(&more, nth), size);
    }
}

}  // namespace
