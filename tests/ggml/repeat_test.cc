// A graph that is computed twice: that the second result is that of a graph that is computed once, and which graphs are not.
#include "repeat.h"

#include <cmath>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace lim::ggml {
namespace {

const char *const kOps[] = {"NONE", "VIEW", "RESHAPE", "MUL_MAT", "ADD", "SCALE", "SET_ROWS", "CPY", "SSM_SCAN", "CUSTOM"};
constexpr int     kWidth = 8, kWords = 64, kSlots = 16;

int op(const std::string &name) {
    for (size_t i = 0; i < std::size(kOps); i++) {
        if (name == kOps[i]) return static_cast<int>(i);
    }
    ADD_FAILURE() << name;
    return 0;
}

// A host that computes one layer: an input, a store of rows, what is read from it, logits. Its allocator gives the input's memory to the
// first node behind its last reader, as ggml's does.
class RepeatTest : public testing::Test {
  protected:
    std::deque<Tensor>             tensors;
    std::deque<std::vector<float>> memory;
    std::vector<Tensor *>          nodes;
    std::mt19937                   random;
    Repeat                         repeat;
    Host                           host{};
    float                          weight = 1; // of what is read from the store: the two computations differ by it

    Tensor *input, *slots, *store, *output, *mixed, *logits;

    RepeatTest() {
        const unsigned seed = std::random_device()();
        RecordProperty("seed", std::to_string(seed));
        printf("seed %u\n", seed);
        random.seed(seed);
        host.op_name = [](int number) -> const char * { return number < static_cast<int>(std::size(kOps)) ? kOps[number] : nullptr; };
        host.nbytes = [](const Tensor *t) { return static_cast<size_t>(t->ne[3]) * t->nb[3]; };
        host.set_rows = op("SET_ROWS"), host.none = op("NONE");
        build();
    }

    Tensor *tensor(int64_t a, int64_t b, const char *what = "NONE", Tensor *x = nullptr, Tensor *y = nullptr, void *data = nullptr) {
        Tensor &t = tensors.emplace_back();
        t.op = op(what), t.src[0] = x, t.src[1] = y;
        const int64_t ne[4] = {a, b, 1, 1};
        t.nb[0] = 4;
        for (int i = 0; i < 4; i++) {
            t.ne[i] = ne[i];
            if (i > 0) t.nb[i] = t.nb[i - 1] * static_cast<size_t>(ne[i - 1]);
        }
        if (data == nullptr) {
            memory.emplace_back(static_cast<size_t>(a * b));
            for (float &f : memory.back()) f = std::uniform_real_distribution<float>(-1, 1)(random);
            data = memory.back().data();
        }
        t.data = data;
        if (t.op != host.none) nodes.push_back(&t);
        return &t;
    }

    void build() {
        input = tensor(kWidth, 1), slots = tensor(1, 1), store = tensor(kWidth, kSlots), output = tensor(kWidth, kWords);
        slots->type = kI32;
        *static_cast<int32_t *>(slots->data) = static_cast<int32_t>(random() % kSlots);
        Tensor *written = tensor(kWidth, kSlots, "SET_ROWS", input, slots, store->data);
        written->view_src = store, written->src[2] = store;
        Tensor *read = tensor(kWidth, 1, "SCALE", tensor(kWidth, kSlots, "VIEW", written, nullptr, store->data));
        tensors[tensors.size() - 2].view_src = store;
        mixed = tensor(kWidth, 1, "ADD", read, input);
        Tensor *again = tensor(kWidth, 1, "ADD", mixed, mixed, input->data); // the input's memory, and it is not read any more
        logits = tensor(kWords, 1, "SCALE", tensor(kWords, 1, "MUL_MAT", output, again));
    }

    static float *values(const Tensor *t) { return static_cast<float *>(t->data); }

    void compute() {
        for (const Tensor *t : nodes) {
            const std::string what = kOps[t->op];
            const float      *a = values(t->src[0]);
            float            *to = values(t);
            if (what == "SET_ROWS") memcpy(to + kWidth * *static_cast<int32_t *>(t->src[1]->data), a, kWidth * sizeof(float));
            if (what == "ADD") {
                for (int i = 0; i < kWidth; i++) to[i] = a[i] + values(t->src[1])[i];
            }
            if (what == "SCALE" && t == logits) memcpy(to, a, kWords * sizeof(float));
            if (what == "SCALE" && t != logits) { // in the place of an attention
                for (int i = 0; i < kWidth; i++) {
                    to[i] = 0;
                    for (int s = 0; s < kSlots; s++) to[i] += weight * a[s * kWidth + i];
                }
            }
            if (what == "MUL_MAT") {
                for (int r = 0; r < kWords; r++) {
                    to[r] = 0;
                    for (int i = 0; i < kWidth; i++) to[r] += a[r * kWidth + i] * values(t->src[1])[i];
                }
            }
        }
    }

    std::vector<float> all() const {
        std::vector<float> out;
        for (const Tensor *t : {store, logits}) out.insert(out.end(), values(t), values(t) + t->ne[0] * t->ne[1]);
        return out;
    }

    std::string refused(int32_t outputs = 1, int32_t output = 0) {
        const char *why = repeat.prepare(host, nodes, outputs, output);
        return why != nullptr ? why : "";
    }
};

double reference(const std::vector<double> &p, const std::vector<double> &q) {
    double sp = 0, sq = 0, out = 0;
    for (size_t i = 0; i < p.size(); i++) sp += std::exp(p[i]), sq += std::exp(q[i]);
    for (size_t i = 0; i < p.size(); i++) out += std::exp(p[i]) / sp * (p[i] - std::log(sp) - q[i] + std::log(sq));
    return out;
}

TEST_F(RepeatTest, TheSecondResultIsThatOfOnce) {
    const std::vector<float> given(values(input), values(input) + kWidth), kept(values(store), values(store) + kWidth * kSlots);
    compute();
    const std::vector<float>  once = all();
    const std::vector<double> dense(values(logits), values(logits) + kWords);
    memcpy(input->data, given.data(), kWidth * sizeof(float));
    memcpy(store->data, kept.data(), kWidth * kSlots * sizeof(float));

    ASSERT_EQ(refused(), "");
    weight = 0.5;
    compute();
    const std::vector<double> other(values(logits), values(logits) + kWords);
    EXPECT_NE(0, memcmp(input->data, given.data(), kWidth * sizeof(float))) << "the input is not overwritten: the test shows nothing";
    repeat.rewind();
    EXPECT_EQ(0, memcmp(input->data, given.data(), kWidth * sizeof(float)));
    weight = 1;
    compute();
    EXPECT_EQ(all(), once);
    EXPECT_FALSE(repeat.same());
    EXPECT_GT(repeat.nats(), 0);
    EXPECT_NEAR(repeat.nats(), reference(dense, other), 1e-9);

    memcpy(input->data, given.data(), kWidth * sizeof(float));
    ASSERT_EQ(refused(), "");
    compute();
    repeat.rewind();
    compute();
    EXPECT_TRUE(repeat.same());
    EXPECT_EQ(repeat.nats(), 0);
}

TEST_F(RepeatTest, LogitsThatAreNoNumbers) {
    for (const float bad : {NAN, INFINITY}) {
        ASSERT_EQ(refused(), "");
        compute();
        repeat.rewind();
        compute();
        values(logits)[random() % kWords] = bad;
        EXPECT_FALSE(std::isfinite(repeat.nats()));
    }
    values(logits)[0] = -INFINITY; // a token that cannot be: it has no weight
    for (int i = 1; i < kWords; i++) values(logits)[i] = 1;
    repeat.rewind();
    EXPECT_EQ(repeat.nats(), 0);
}

TEST_F(RepeatTest, WhatMayKeepAState) {
    for (const char *what : {"SSM_SCAN", "CUSTOM"}) {
        const int was = mixed->op;
        mixed->op = op(what);
        EXPECT_NE(refused().find("keep a state"), std::string::npos) << what;
        mixed->op = was;
    }
    EXPECT_EQ(refused(), "");
    Tensor *copy = tensor(kWidth, 1, "CPY", mixed, nullptr, store->data);
    copy->view_src = store;
    nodes.pop_back(), nodes.insert(nodes.end() - 2, copy);
    EXPECT_NE(refused().find("outlives it"), std::string::npos);
}

TEST_F(RepeatTest, OperationsThatAreNotKnown) {
    for (const int number : {-1, static_cast<int>(std::size(kOps)), 256}) {
        mixed->op = number;
        EXPECT_NE(refused().find("keep a state"), std::string::npos) << number;
    }
}

TEST_F(RepeatTest, NodesWithinOthers) {
    Tensor *in_place = tensor(kWidth, 1, "ADD", mixed, mixed, mixed->data);
    in_place->view_src = mixed;
    nodes.pop_back(), nodes.insert(nodes.end() - 3, in_place);
    EXPECT_EQ(refused(), "") << "in the memory of another node";
    in_place->op = op("SET_ROWS");
    EXPECT_NE(refused().find("into what it computes"), std::string::npos);
}

TEST_F(RepeatTest, NodesAndInputsWithoutMemory) {
    void *const was = mixed->data;
    mixed->data = nullptr;
    EXPECT_NE(refused().find("no memory"), std::string::npos);
    mixed->ne[3] = 0;
    EXPECT_EQ(refused(), "") << "a node of nothing needs none";
    mixed->data = was, mixed->ne[3] = 1;

    Tensor *leaf = tensor(kWidth, 1);
    mixed->src[1] = leaf;
    // Below and above all that the graph writes, nowhere, and nothing: none of it is touched.
    for (void *const at : {reinterpret_cast<void *>(64), reinterpret_cast<void *>(UINTPTR_MAX - 4096), static_cast<void *>(nullptr)}) {
        leaf->data = at;
        EXPECT_EQ(refused(), "");
    }
    leaf->data = input->data, leaf->ne[3] = 0;
    EXPECT_EQ(refused(), "");
}

TEST_F(RepeatTest, InputsThatAreTooLarge) {
    constexpr size_t kMost = size_t{1} << 28; // as Repeat has it
    input->nb[3] = kMost + 1; // it begins where a node is written
    EXPECT_NE(refused().find("too large"), std::string::npos);
    Tensor *other = tensor(kWidth, 1);
    other->data = input->data, mixed->src[1] = other;
    input->nb[3] = other->nb[3] = kMost / 2 + 1;
    EXPECT_NE(refused().find("too large"), std::string::npos) << "both of them";
}

TEST_F(RepeatTest, SlotsThatTheGraphMakes) {
    slots->op = op("SCALE");
    EXPECT_NE(refused().find("outlives it"), std::string::npos);
}

TEST_F(RepeatTest, StoreThatIsReadFirst) {
    Tensor *early = tensor(kWidth, 1, "SCALE", store);
    nodes.pop_back(), nodes.insert(nodes.begin(), early);
    EXPECT_NE(refused().find("before it writes"), std::string::npos);
}

TEST_F(RepeatTest, StoreWhoseMemoryIsUsed) {
    tensor(kWidth, 1, "ADD", mixed, mixed, values(store) + kWidth);
    std::swap(nodes.back(), nodes[nodes.size() - 2]);
    EXPECT_NE(refused().find("memory of a store"), std::string::npos);
}

TEST_F(RepeatTest, GraphsWithoutLogits) {
    const std::string none = "its graph does not end with logits";
    EXPECT_EQ(refused(2), none);
    EXPECT_EQ(refused(1, 1), none);
    EXPECT_EQ(refused(1, -1), none);
    nodes.pop_back();
    EXPECT_EQ(refused(), "") << "the product itself";
    nodes.pop_back();
    EXPECT_EQ(refused(), none) << "a part of the model";
    nodes.clear();
    EXPECT_EQ(refused(), none);
}

TEST_F(RepeatTest, LogitsOfAnotherForm) {
    const std::string none = "its graph does not end with logits";
    const Tensor      was = *logits;
    const auto        differs = [&](auto change) {
        *logits = was;
        change();
        EXPECT_EQ(refused(), none);
        *logits = was;
    };
    differs([&] { logits->type = kF16; });
    differs([&] { logits->data = nullptr, logits->ne[3] = 0; });
    differs([&] { logits->ne[0] = 1; });
    differs([&] { logits->ne[2] = 2; });
    differs([&] { logits->ne[3] = 2; });
    differs([&] { logits->nb[0] = 8; });
    differs([&] { logits->src[0] = nullptr; });

    Tensor *product = logits->src[0];
    Tensor  unknown = *product, far[9];
    unknown.op = static_cast<int>(std::size(kOps));
    differs([&] { logits->src[0] = &unknown; });
    for (Tensor &t : far) t = was, t.src[0] = &t == far ? product : &t - 1;
    differs([&] { logits->src[0] = &far[8]; });
    differs([&] { product->ne[0] = kWords / 2; });
    product->ne[0] = kWords;
    EXPECT_EQ(refused(), "");
    product->src[0] = mixed;
    EXPECT_EQ(refused(), none) << "a product with what the graph computed";
}

TEST_F(RepeatTest, LogitsThatTheHostPassesOver) {
    for (Tensor *t : nodes) t->flags = kFlagCompute;
    EXPECT_EQ(refused(), "");
    logits->flags = 0;
    EXPECT_EQ(refused(), "its graph does not end with logits");
}

TEST_F(RepeatTest, HostWithoutSizes) {
    host.nbytes = nullptr;
    EXPECT_NE(refused(), "");
}

} // namespace
} // namespace lim::ggml
