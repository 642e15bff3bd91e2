/* What is planned of a probe (probe.h): the row as a call of its own, inside the batch's memory. */
#include <cstring>
#include <string>

#include "gtest/gtest.h"
#include "probe.h"

namespace {

const lim_cuda_device kDevice = {132, 233472, 232448, 0};

lim_cuda_call Batch() {
    lim_cuda_call c = {};
    c.query = {0x10000, 32 * 256, 256, LIM_CUDA_F16, 0};
    c.output = {0x20000, 32 * 256, 256, LIM_CUDA_F16, 0};
    c.key = c.value = {0x100000, 8 * 256, 256, 16 * 8 * 256};
    c.lengths = 0x30000, c.table = 0x40000, c.table_stride = 512, c.page_shift = 4;
    c.set = 0x50000, c.positions = 0x60000, c.set_stride = 256, c.work = 0x1000000;
    c.n_rows = 4, c.heads = 32, c.kv_heads = 8, c.dim = 128, c.kv_type = LIM_CUDA_F16, c.capacity = 8192;
    c.scale = c.value_scale = 1, c.mode = LIM_CUDA_SELECT;
    c.budget = 256, c.sink_tokens = 4, c.top_k = 192, c.recent = 60;
    return c;
}

lim_cuda_probe Probe() {
    lim_cuda_probe p = {};
    p.own = 0x70000, p.sets = 0x80000, p.set_stride = 256, p.set_budget = 256, p.kept = 0x90000;
    p.row = 3, p.n_sets = 6;
    return p;
}

TEST(Probe, ChoosesForOneRowInsideTheBatchsMemory) {
    const lim_cuda_call  call = Batch();
    const lim_cuda_probe probe = Probe();
    char                 text[256] = "";
    ASSERT_EQ(lim_cuda_check(&kDevice, &call, text, sizeof text), 0) << text;
    ASSERT_EQ(lim_cuda_check_probe(&call, &probe, text, sizeof text), 0) << text;
    lim_cuda_args       whole, attend, select;
    lim_cuda_probe_args measure;
    lim_cuda_launch     expect[2], launches[3];
    ASSERT_EQ(lim_cuda_plan(&kDevice, &call, &whole, expect), 2);
    lim_cuda_plan_probe(&kDevice, &call, &probe, &attend, &select, &measure, launches);

    EXPECT_EQ(memcmp(&whole, &attend, sizeof whole), 0) << "attention is the whole batch's";
    EXPECT_EQ(memcmp(&expect[0], &launches[0], sizeof expect[0]), 0);
    EXPECT_STREQ(launches[1].name, expect[1].name);
    EXPECT_EQ(launches[1].shared, expect[1].shared);
    EXPECT_EQ(launches[1].grid[0], expect[1].grid[0]);
    EXPECT_EQ(launches[1].grid[1], 1u);
    EXPECT_EQ(select.call.set, probe.own);
    EXPECT_EQ(select.call.positions, 0u);
    EXPECT_EQ(select.call.table, 0u) << "the set is wanted as positions";
    EXPECT_EQ(select.call.lengths, call.lengths + 3 * 4);
    EXPECT_EQ(select.logits, whole.logits + 3 * 32 * 4 * (uint64_t)whole.room_stride);
    EXPECT_EQ(select.sums, whole.sums + 3 * 32 * 4);
    EXPECT_EQ(select.gathered, whole.gathered + 3 * 4);
    const uint64_t end = call.work + lim_cuda_work_size(&kDevice, &call);
    EXPECT_LE(select.logits + 32 * 4 * (uint64_t)whole.room_stride, end);

    EXPECT_STREQ(launches[2].name, "lim_probe");
    EXPECT_EQ(launches[2].grid[0], 32u);
    EXPECT_EQ(launches[2].grid[1], 7u) << "a set more than the others: its own";
    EXPECT_EQ(measure.logits, select.logits);
    EXPECT_EQ(measure.sums, select.sums);
    EXPECT_EQ(measure.length, select.call.lengths);
    EXPECT_EQ(measure.own_budget, 256);
}

TEST(Probe, NamesWhatItCannotTake) {
    const lim_cuda_call call = Batch();
    struct {
        void (*spoil)(lim_cuda_probe &);
        const char *text;
    } const bad[] = {
        {[](lim_cuda_probe &p) { p.row = 4; }, "row = 4"},
        {[](lim_cuda_probe &p) { p.row = -1; }, "row = -1"},
        {[](lim_cuda_probe &p) { p.n_sets = -1; }, "n_sets = -1"},
        {[](lim_cuda_probe &p) { p.n_sets = 1 << 20; }, "n_sets = 1048576"},
        {[](lim_cuda_probe &p) { p.own = 0; }, "own = NULL"},
        {[](lim_cuda_probe &p) { p.sets += 2; }, "sets = 0x80002"},
        {[](lim_cuda_probe &p) { p.kept = 2; }, "kept = 0x2"},
        {[](lim_cuda_probe &p) { p.count = 4; }, "sum = NULL"},
        {[](lim_cuda_probe &p) { p.set_budget = 0; }, "set_budget = 0"},
        {[](lim_cuda_probe &p) { p.set_stride = 255; }, "set_stride = 255"},
    };
    for (const auto &b : bad) {
        lim_cuda_probe p = Probe();
        char           text[256] = "";
        b.spoil(p);
        EXPECT_EQ(lim_cuda_check_probe(&call, &p, text, sizeof text), 1) << b.text;
        EXPECT_NE(std::string(text).find(b.text), std::string::npos) << text;
    }
    lim_cuda_call dense = call;
    dense.mode = LIM_CUDA_FULL;
    lim_cuda_probe p = Probe();
    char           text[256];
    EXPECT_EQ(lim_cuda_check_probe(&dense, &p, text, sizeof text), 1);
}

}  // namespace
