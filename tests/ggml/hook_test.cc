// The hook where Go has no session to give, and where contexts come and go: what is not taken part in is the host's own.
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "abi.h"
#include "shim.h"
#include "transfers.h"

using lim::ggml::Tensor;

extern "C" void *ggml_backend_init(void);

namespace {

constexpr int kCpu = 0, kGpu = 1;

// Whether a backend's graphs are computed by the host alone: a session is what the hook's are given.
bool is_hosts_own(int device) {
    const int    before = shim_sessions();
    void **const b = shim_backend(device);
    EXPECT_NE(b, nullptr);
    const bool own = shim_sessions() == before;
    shim_free(b);
    EXPECT_EQ(shim_sessions(), before);
    return own;
}

// The self-test on a device is tried once: in a process of its own.
TEST(HookDeathTest, ASelfTestOnAGpuThatCannotBegin) {
    GTEST_FLAG_SET(death_test_style, "threadsafe"); // one that is forked from this one is left alone
    EXPECT_EXIT(
        {
            if (shim_load() != 0) _exit(1);
            shim_refuse(1);
            shim_free(shim_backend(kGpu));
            shim_refuse(0);
            _exit(strstr(shim_said(), "the self-test cannot begin") != nullptr && is_hosts_own(kGpu) ? 0 : 2);
        },
        testing::ExitedWithCode(0), "");
}

TEST(Hook, SessionsThatAreRefused) {
    shim_refuse(1);
    EXPECT_NE(shim_load(), 0);
    EXPECT_STREQ(shim_said(), "the self-test cannot begin");
    shim_refuse(0);
    ASSERT_EQ(shim_load(), 0) << "a later load is another attempt: " << shim_said();
    for (const int device : {kCpu, kGpu}) {
        EXPECT_FALSE(is_hosts_own(device));
        shim_refuse(1);
        EXPECT_TRUE(is_hosts_own(device));
        shim_refuse(0);
        EXPECT_FALSE(is_hosts_own(device));
    }
}

TEST(Hook, LoadedAgain) {
    void *const registry = ggml_backend_init();
    ASSERT_NE(registry, nullptr) << shim_said();
    EXPECT_EQ(ggml_backend_init(), registry);
    EXPECT_FALSE(is_hosts_own(kGpu));
}

TEST(Hook, ContextsInAnyOrder) {
    void **all[6];
    for (int i = 0; i < 6; i++) all[i] = shim_backend(i % 2 ? kGpu : kCpu);
    EXPECT_EQ(shim_sessions(), 6);
    for (const int i : {4, 0, 5, 3, 1, 2}) shim_free(all[i]);
    EXPECT_EQ(shim_sessions(), 0);
}

// A graph of an attention over a store and a product with weights, whose result are logits.
constexpr int kRope = 3, kMulMat = 4, kFlash = 12; // as fake.h numbers them
constexpr int kWords = 32, kDim = 64, kSlots = 8;

struct Decode {
    std::vector<std::vector<float>> memory;
    Tensor                          query, key_store, value_store, keys, values, mask, attention, weights, logits;
    void                           *nodes[2] = {&attention, &logits};

    Decode() {
        make(key_store, lim::ggml::kF16, kDim, kSlots), make(value_store, lim::ggml::kF16, kDim, kSlots);
        make(query, lim::ggml::kF32, kDim, 1), make(mask, lim::ggml::kF16, kSlots, 1);
        make(attention, lim::ggml::kF32, kDim, 1), make(weights, lim::ggml::kF32, kDim, kWords), make(logits, lim::ggml::kF32, kWords, 1);
        snprintf(key_store.name, sizeof key_store.name, "cache_k_l0");
        keys = key_store, keys.view_src = &key_store, values = value_store, values.view_src = &value_store;
        attention.op = kFlash, attention.src[0] = &query, attention.src[1] = &keys, attention.src[2] = &values, attention.src[3] = &mask;
        logits.op = kMulMat, logits.src[0] = &weights, logits.src[1] = &attention;
    }

    void make(Tensor &t, int type, int64_t a, int64_t b) {
        t = {};
        t.type = type;
        t.nb[0] = type == lim::ggml::kF32 ? 4 : 2;
        const int64_t ne[4] = {a, b, 1, 1};
        for (int i = 0; i < 4; i++) {
            t.ne[i] = ne[i];
            if (i > 0) t.nb[i] = t.nb[i - 1] * static_cast<size_t>(ne[i - 1]);
        }
        t.data = memory.emplace_back(static_cast<size_t>(a * b)).data();
    }
};

// What a test says of the graph that is computed, and sees of it.
thread_local struct {
    int32_t outputs, rows;             // of the plan
    int     computed, fails, attended; // times; the time that fails; times that the attention was ours
    bool    differs;                   // the second result from the first
} step;

int status_of(int outputs, int rows, int fails, bool differs) {
    static thread_local Decode decode;
    step = {outputs, rows, 0, fails, 0, differs};
    shim_on_plan([](lim_ggml_graph *graph) {
        graph->trial = 1, graph->n_outputs = step.outputs, graph->rows = step.rows, graph->output = 0;
        for (int32_t i = 0; i < graph->n_nodes; i++) graph->nodes[i].max_threads = 1;
    });
    shim_on_compute([](void **nodes, int) {
        step.attended += static_cast<Tensor *>(nodes[0])->op != kFlash;
        auto *to = static_cast<float *>(static_cast<Tensor *>(nodes[1])->data);
        for (int i = 0; i < kWords; i++) to[i] = static_cast<float>(i == 3) * static_cast<float>(step.differs ? step.computed : 1);
        return ++step.computed == step.fails ? -1 : 0;
    });
    void **const b = shim_backend(kCpu);
    const int    status = shim_compute(b, decode.nodes, 2);
    EXPECT_EQ(decode.attention.op, kFlash) << "the host's graph is as it was";
    shim_free(b);
    shim_on_compute(nullptr);
    shim_on_plan(nullptr);
    return status;
}

TEST(Hook, ComputesTwice) {
    ASSERT_NE(ggml_backend_init(), nullptr) << shim_said();
    for (const int outputs : {-1, 1}) { // not known: of all rows
        for (const bool differs : {false, true}) {
            shim_on_trial(0, 0);
            EXPECT_EQ(status_of(outputs, 1, 0, differs), 0);
            EXPECT_EQ(step.computed, 2);
            EXPECT_EQ(step.attended, 2);
            EXPECT_EQ(shim_told().tried, 1);
            EXPECT_EQ(shim_told().same, !differs);
            EXPECT_EQ(shim_told().nats > 0, differs);
        }
    }
}

TEST(Hook, ComputesTwiceWithoutMemoryForTheSecond) {
    ASSERT_NE(ggml_backend_init(), nullptr) << shim_said();
    shim_on_trial(-1, 0);
    EXPECT_EQ(status_of(1, 1, 0, false), 0);
    EXPECT_EQ(step.computed, 2);
    EXPECT_EQ(step.attended, 1) << "the second time is the host's";
    EXPECT_EQ(shim_told().tried, 0);
}

TEST(Hook, ComputesTwiceAndFails) {
    ASSERT_NE(ggml_backend_init(), nullptr) << shim_said();
    for (const int fails : {1, 2}) {
        shim_on_trial(0, 0);
        EXPECT_EQ(status_of(1, 1, fails, false), -1);
        EXPECT_EQ(step.computed, fails);
        EXPECT_EQ(shim_told().tried, 0);
    }
}

TEST(Hook, CannotComputeTwice) {
    ASSERT_NE(ggml_backend_init(), nullptr) << shim_said();
    for (const int untried : {0, -1}) {
        shim_on_trial(0, untried);
        EXPECT_EQ(status_of(2, 2, 0, false), 0) << "logits of one row, and two are wanted";
        EXPECT_EQ(step.computed, 1);
        EXPECT_EQ(step.attended, untried == 0 ? 1 : 0);
        EXPECT_EQ(shim_told().untried, 1);
    }
}

// What happens to graphs, in order: 'p' planned, 'c' computed.
thread_local std::string happened;

// A step of a host that computes the attention on one device, and before and behind it what has none: only the first is planned. Where the
// plan has said that it takes nothing of the next one either, the host computes that one first, whatever lies between the two.
TEST(Hook, OnlyWhatThePlanDecidesAboutIsPlanned) {
    ASSERT_NE(ggml_backend_init(), nullptr) << shim_said();
    shim_on_plan([](lim_ggml_graph *graph) {
        happened += 'p';
        for (int32_t i = 0; i < graph->n_nodes; i++) graph->nodes[i].reason = LIM_GGML_SHAPE;
        graph->later = 1;
    });
    shim_on_compute([](void **, int) {
        happened += 'c';
        return 0;
    });
    Decode decode;
    for (const int device : {kCpu, kGpu}) {
        void **const b = shim_backend(device);
        const auto   among = [&](int from, int n) {
            happened.clear();
            EXPECT_EQ(shim_compute(b, decode.nodes + from, n), 0);
            return happened;
        };
        EXPECT_EQ(among(1, 1), "c");
        EXPECT_EQ(among(0, 2), "pc");
        EXPECT_EQ(among(1, 1), "c");
        EXPECT_EQ(among(0, 2), device == kGpu ? "cp" : "pc");
        decode.logits.op = kRope; // positions are the plan's business
        EXPECT_EQ(among(1, 1), device == kGpu ? "cp" : "pc");
        decode.logits.op = kMulMat;
        shim_free(b);
    }
    shim_on_compute(nullptr);
    shim_on_plan(nullptr);
}

// What was put into a buffer is known as long as that is surely there: not where another one lies in the place of what it held, nor once
// a thousand others have come, as a host whose contexts come and go has them. Put there again, it is known again.
TEST(Hook, WhatWasPutIntoBuffersThatEnd) {
    ASSERT_NE(ggml_backend_init(), nullptr) << shim_said();
    constexpr size_t kSize = 4096;
    const int32_t    positions[4] = {7, 8, 9, 10};
    const auto       in = [](void **buffer) {
        Tensor t = {};
        t.type = lim::ggml::kI32, t.buffer = buffer, t.data = shim_base(buffer);
        t.ne[0] = 4, t.ne[1] = t.ne[2] = t.ne[3] = 1;
        t.nb[0] = 4, t.nb[1] = t.nb[2] = t.nb[3] = sizeof positions;
        return t;
    };
    const auto   is_known = [](const Tensor &t) { return lim::ggml::uploaded(&t).data != nullptr; };
    void **const lasting = shim_buffer(kSize);
    Tensor       there = in(lasting);
    shim_set(&there, positions, 0, sizeof positions);
    EXPECT_TRUE(is_known(there));
    const lim::ggml::Uploaded read = lim::ggml::uploaded(&there); // as by a thread whose step is planned meanwhile
    int                       again = 0;                          // in the same place
    for (int i = 0; i < 2000; i++) {
        void **const first = shim_buffer(kSize);
        Tensor       t = in(first);
        shim_set(&t, positions, 0, sizeof positions);
        EXPECT_TRUE(is_known(t));
        shim_free_buffer(first);
        void **const second = shim_buffer(kSize);
        const Tensor other = in(second);
        again += other.data == t.data;
        EXPECT_FALSE(is_known(other));
        shim_free_buffer(second);
    }
    EXPECT_GT(again, 0);
    EXPECT_FALSE(is_known(there));
    EXPECT_EQ(memcmp(read.data, positions, sizeof positions), 0);
    shim_set(&there, positions, 0, sizeof positions);
    EXPECT_TRUE(is_known(there));
    shim_free_buffer(lasting);
}

// Weights that a host copies for layers of another device are no inputs: they take no input's place, however many they are, but where they
// lie in it.
TEST(Hook, WhatIsCopiedOfWeights) {
    ASSERT_NE(ggml_backend_init(), nullptr) << shim_said();
    constexpr int kWeights = 200;
    void **const  buffer = shim_buffer(256 * (kWeights + 1));
    const float   values[4] = {1, 2, 3, 4};
    const auto    at = [&](int place, int type, const char *name) {
        Tensor t = {};
        t.type = type, t.buffer = buffer, t.data = static_cast<char *>(shim_base(buffer)) + 256 * place;
        t.ne[0] = 4, t.ne[1] = t.ne[2] = t.ne[3] = 1;
        t.nb[0] = 4, t.nb[1] = t.nb[2] = t.nb[3] = sizeof values;
        snprintf(t.name, sizeof t.name, "%s", name);
        return t;
    };
    const auto is_known = [](const Tensor &t) { return lim::ggml::uploaded(&t).data != nullptr; };
    Tensor     positions = at(0, lim::ggml::kI32, "CUDA0#inp_pos#0");
    shim_set(&positions, values, 0, sizeof values);
    for (int i = 1; i <= kWeights; i++) {
        char                  name[64];
        constexpr const char *of[] = {"norm.weight", "q.bias", "q.weight.lora_a"};
        snprintf(name, sizeof name, "CUDA0#blk.%d.attn_%s#0", i, of[i % 3]);
        Tensor weights = at(i, lim::ggml::kF32, name);
        shim_set(&weights, values, 0, sizeof values);
        EXPECT_FALSE(is_known(weights));
    }
    EXPECT_TRUE(is_known(positions));
    Tensor over = at(0, lim::ggml::kF32, "CUDA0#blk.0.attn_norm.weight#0");
    shim_set(&over, values, 0, sizeof values);
    EXPECT_FALSE(is_known(positions));
    shim_free_buffer(buffer);
}

// What came before an upload has that one's number: the last time that as much was put there under the same name, if nothing else was since.
TEST(Hook, WhatWasPutThereBefore) {
    ASSERT_NE(ggml_backend_init(), nullptr) << shim_said();
    void **const buffer = shim_buffer(4096);
    int32_t      values[4] = {0, 1, 2, 3};
    uint64_t     last = 0;
    const auto   put = [&](const char *name, int n, bool follows) {
        Tensor t = {};
        t.type = lim::ggml::kI32, t.buffer = buffer, t.data = shim_base(buffer);
        t.ne[0] = n, t.ne[1] = t.ne[2] = t.ne[3] = 1;
        t.nb[0] = 4, t.nb[1] = t.nb[2] = t.nb[3] = 4 * static_cast<size_t>(n);
        snprintf(t.name, sizeof t.name, "%s", name);
        const int was = values[0]++;
        shim_set(&t, values, 0, t.nb[1]);
        const lim::ggml::Uploaded is = lim::ggml::uploaded(&t);
        ASSERT_NE(is.data, nullptr);
        EXPECT_EQ(*static_cast<const int32_t *>(is.data), was + 1);
        EXPECT_GT(is.serial, last);
        EXPECT_EQ(is.before != nullptr, follows);
        EXPECT_EQ(is.serial_before, follows ? last : 0);
        if (is.before != nullptr) { EXPECT_EQ(*static_cast<const int32_t *>(is.before), was); }
        last = is.serial;
    };
    put("mask", 4, false);
    put("mask", 4, true);
    put("mask", 4, true);
    put("mask", 2, false);
    put("mask", 4, false);
    put("mask", 4, true);
    put("other", 4, false);
    put("mask", 4, false);
    put("mask", 4, true);
    shim_free_buffer(buffer);
}

} // namespace
