// What is read out of a host's graph: by what its nodes do to a K store, and by names to the letter.
#include "divide.h"
#include "extract.h"
#include "transfers.h"

#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace lim::ggml {
namespace {

const char *const kOps[] = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "MUL_MAT", "CPY", "ADD", "GET_ROWS", "SET_ROWS", "ROPE", "SOFT_MAX",
                            "CUSTOM", "SCALE", "MUL_MAT_ID", "FLASH_ATTN_EXT"};

int op(const std::string &name) {
    for (size_t i = 0; i < std::size(kOps); i++) {
        if (name == kOps[i]) return static_cast<int>(i);
    }
    ADD_FAILURE() << name;
    return -1;
}

// A host whose graph is a list of tensors.
class ExtractTest : public testing::Test {
  protected:
    static constexpr int64_t kWidth = 64, kSlots = 8;

    void (*tensor_get)(const Tensor *, void *, size_t, size_t) = nullptr;
    std::deque<Tensor>               tensors;
    std::deque<std::vector<int64_t>> memory;
    std::vector<Tensor *>            nodes;
    Extract                          extract;

    static ExtractTest *&self() {
        static ExtractTest *it;
        return it;
    }

    ExtractTest() { self() = this; }

    Tensor *tensor(const char *name, int type, int64_t a, int64_t b, int64_t c = 1) {
        Tensor &t = tensors.emplace_back();
        t.type = type;
        const int64_t ne[4] = {a, b, c, 1};
        t.nb[0] = type == kI64 ? 8 : type == kI32 || type == kF32 ? 4
                                                                  : 2;
        for (int i = 0; i < 4; i++) {
            t.ne[i] = ne[i];
            if (i > 0) t.nb[i] = t.nb[i - 1] * static_cast<size_t>(ne[i - 1]);
        }
        memory.emplace_back(static_cast<size_t>(a * b * c) + 1);
        t.data = memory.back().data();
        snprintf(t.name, sizeof t.name, "%s", name);
        return &t;
    }
    Tensor *store(const char *name = "cache_k_l0", int64_t streams = 1) { return tensor(name, kF16, kWidth, kSlots, streams); }
    Tensor *input(int type, int64_t n) { return tensor("input", type, n, 1); }
    Tensor *computed(const char *what, Tensor *a, Tensor *b = nullptr, int64_t rows = kSlots) {
        Tensor *t = tensor("", kF32, kWidth, rows);
        t->op = op(what), t->src[0] = a, t->src[1] = b;
        return node(t);
    }
    // A node whose result lies in another tensor.
    Tensor *within(const char *what, Tensor *root, Tensor *a, Tensor *b = nullptr) {
        Tensor *t = computed(what, a, b);
        memcpy(t->ne, root->ne, sizeof t->ne);
        t->view_src = root->view_src != nullptr ? root->view_src : root;
        snprintf(t->name, sizeof t->name, "%.40s (view)", root->name);
        return t;
    }
    Tensor *node(Tensor *t) {
        nodes.push_back(t);
        return t;
    }

    // An attention that can be taken, over a store of its own or `k`.
    Tensor *attention(int64_t tokens, int64_t streams, Tensor *k = nullptr) {
        constexpr int64_t kHeads = 2;
        if (k == nullptr) k = store("cache_k_l0", streams);
        Tensor    *v = store("cache_v_l0", streams);
        const auto heads_of = [&](Tensor *s) {
            Tensor *t = tensor("", kF16, kWidth / kHeads, kSlots, kHeads);
            t->nb[1] = s->nb[1], t->nb[2] = 2 * kWidth / kHeads, t->nb[3] = s->nb[2], t->ne[3] = streams;
            t->view_src = s, t->data = s->data;
            return t;
        };
        Tensor *q = tensor("", kF32, kWidth / kHeads, tokens, kHeads), *mask = tensor("mask", kF16, kSlots, tokens);
        q->ne[3] = mask->ne[3] = streams;
        Tensor *t = tensor("", kF32, kWidth / kHeads, kHeads, tokens);
        t->ne[3] = streams, t->op = op("FLASH_ATTN_EXT");
        t->src[0] = q, t->src[1] = heads_of(k), t->src[2] = heads_of(v), t->src[3] = mask;
        return node(t);
    }

    const lim_ggml_graph &read(Memory memory = Memory::kHost, bool hash = false) {
        Host host{};
        host.graph_n_nodes = [](Graph *) { return static_cast<int>(self()->nodes.size()); };
        host.graph_node = [](Graph *, int i) { return self()->nodes[static_cast<size_t>(i)]; };
        host.op_name = [](int number) -> const char * { return number == op("ADD") ? nullptr : kOps[number]; };
        host.flash_attn = op("FLASH_ATTN_EXT"), host.custom = op("CUSTOM"), host.set_rows = op("SET_ROWS");
        host.rope = op("ROPE"), host.soft_max = op("SOFT_MAX"), host.none = op("NONE");
        host.scale = op("SCALE"), host.tensor_get = tensor_get;
        extract.read(host, nullptr, memory, hash);
        return extract.graph;
    }
    static uint64_t id(const Tensor *t) { return reinterpret_cast<uint64_t>(t->data); }
};

TEST_F(ExtractTest, ShiftInPlace) {
    Tensor *k = store("cache_k_l12", 2), *delta = input(kI32, 2 * kSlots);
    within("ROPE", k, within("VIEW", k, k), delta);
    const lim_ggml_graph &g = read();
    ASSERT_EQ(g.n_shifts, 1);
    EXPECT_EQ(g.shifts[0].store, id(k));
    EXPECT_EQ(g.shifts[0].n, 2 * kSlots);
    EXPECT_EQ(g.shifts[0].delta, delta->data);
    EXPECT_EQ(g.n_rewritten, 0);
    EXPECT_EQ(g.n_rotations, 0) << "a K-shift is no rotation of the batch's";
}

// Quantised keys: converted, rotated back, shifted, rotated again, put back. The temporaries bear the store's name.
TEST_F(ExtractTest, ShiftThroughTemporaries) {
    for (bool rotated : {false, true}) {
        nodes.clear();
        Tensor *k = store(), *delta = input(kI32, kSlots), *rotation = tensor("rotation", kF32, kWidth, kWidth);
        Tensor *view = within("VIEW", k, k), *t = computed("CPY", view);
        t->src[1] = t; // as casts do
        snprintf(t->name, sizeof t->name, "cache_k_l0 (view) (copy)");
        auto rotate = [&](Tensor *from) {
            Tensor *a = within("RESHAPE", from, from);
            return computed("RESHAPE", computed("MUL_MAT", rotation, a));
        };
        if (rotated) t = rotate(t);
        t = computed("ROPE", t, delta);
        if (rotated) t = rotate(t);
        within("CPY", view, t, view);
        const lim_ggml_graph &g = read();
        ASSERT_EQ(g.n_shifts, 1) << rotated;
        EXPECT_EQ(g.shifts[0].store, id(k));
        EXPECT_EQ(g.n_rewritten, 0);
        EXPECT_EQ(g.n_rotations, 0);
        EXPECT_EQ(g.positions, nullptr);
    }
}

TEST_F(ExtractTest, OtherChangesOfAStoreAreNotUnderstood) {
    Tensor                                  *k = store(), *other = store("cache_k_l1");
    Tensor *const                            delta = input(kI32, kSlots);
    const std::vector<std::function<void()>> changes = {
        [&] { within("ROPE", k, within("VIEW", k, k), input(kI32, kSlots - 1)); },
        [&] { within("ROPE", k, within("VIEW", k, k), computed("ADD", delta)); },
        [&] { within("ADD", k, within("VIEW", k, k), delta); },
        [&] { within("CPY", k, computed("MUL_MAT", k)); },
        [&] { within("CPY", k, computed("ROPE", within("VIEW", other, other), delta)); },
        [&] { within("SET_ROWS", k, computed("ADD", delta, nullptr, 3), computed("ADD", delta)); }, // slots are not there yet
        [&] { within("SET_ROWS", k, computed("ADD", delta, nullptr, 3), input(kI64, 4)); },
        [&] { within("SET_ROWS", k, computed("ADD", delta, nullptr, 3), input(kI64, 3))->ne[0] = kWidth / 2; }, // rows are parts of slots
    };
    for (size_t i = 0; i < changes.size(); i++) {
        nodes.clear();
        changes[i]();
        const lim_ggml_graph &g = read();
        EXPECT_EQ(g.n_shifts + g.n_writes, 0) << i;
        ASSERT_EQ(g.n_rewritten, 1) << i;
        EXPECT_EQ(g.rewritten[0], id(k)) << i;
    }
}

// A scheduler that computes attention elsewhere than its K/V cache lies copies the cache there, and names the copies so.
TEST_F(ExtractTest, CopiesOfACache) {
    Tensor *t = attention(1, 1);
    Tensor *copy = tensor("CPU#cache_k_l3 (view) (permuted)#0", kF16, kWidth / 2, kSlots, 2);
    t->src[1] = copy;
    read();
    ASSERT_EQ(extract.nodes.size(), 1u);
    EXPECT_EQ(extract.nodes[0].reason, LIM_GGML_NO_CACHE);
    ASSERT_NE(extract.nodes[0].what, nullptr);
    EXPECT_NE(strstr(extract.nodes[0].what, "another device than its K/V cache"), nullptr);
    EXPECT_EQ(extract.nodes[0].value, kSlots);
    for (const char *name : {"", "key", "CPU#key#0"}) { // an encoder's, or one that is not known
        snprintf(copy->name, sizeof copy->name, "%s", name);
        read();
        EXPECT_EQ(extract.nodes[0].reason, LIM_GGML_NO_CACHE);
        EXPECT_EQ(extract.nodes[0].what, nullptr) << name;
    }
}

TEST_F(ExtractTest, WritesAndTheirStores) {
    for (const char *name : {"cache_k_l0", "cache_k_l7", "cache_k_l4095"}) {
        nodes.clear();
        Tensor *k = store(name, 2), *slots = input(kI64, 3), *rows = computed("ADD", slots, nullptr, 3);
        within("SET_ROWS", within("RESHAPE", k, k), rows, slots);
        const lim_ggml_graph &g = read();
        ASSERT_EQ(g.n_writes, 1) << name;
        EXPECT_EQ(g.writes[0].store.id, id(k));
        EXPECT_EQ(g.writes[0].store.slots, kSlots);
        EXPECT_EQ(g.writes[0].store.streams, 2);
        EXPECT_EQ(g.writes[0].store.stride, 2 * kWidth);
        EXPECT_EQ(g.writes[0].n, 3);
        EXPECT_EQ(g.n_rewritten, 0);
    }
    for (const char *name : {"cache_k_l", "cache_k_l0 (view)", "cache_k_l0 (view) (copy)", "cache_k_l 1", "cache_k_l+1", "cache_k_l-1", "cache_k_l01",
                             "cache_k_l4096", "cache_k_l12345", "cache_k_l1x", "cache_v_l1", "Cache_k_l1"}) {
        nodes.clear();
        Tensor *k = store(name), *slots = input(kI64, 3);
        within("SET_ROWS", k, computed("ADD", slots, nullptr, 3), slots);
        const lim_ggml_graph &g = read();
        EXPECT_EQ(g.n_writes + g.n_rewritten, 0) << name;
    }
    nodes.clear();
    Tensor *apart = store(), *slots = input(kI64, 3);
    apart->nb[2] += 64;
    within("SET_ROWS", apart, computed("ADD", slots, nullptr, 3), slots);
    EXPECT_EQ(read().writes[0].store.stride, 0) << "slots that do not lie at equal distances";
}

// Stores without llama.cpp's names: known from their first attention on, numbered as attentions come.
TEST_F(ExtractTest, StoresByWhatGraphsDo) {
    Tensor *slots = input(kI64, 3), *rows = computed("ADD", slots, nullptr, 3);
    nodes.clear();
    Tensor    *first = store("k", 1), *second = store("", 1), *values = store("v", 1);
    const auto attends = [&](Tensor *k) {
        Tensor *key = tensor("", kF16, kWidth / 2, kSlots, 2);
        key->nb[1] = k->nb[1], key->nb[2] = k->nb[1] / 2, key->view_src = k, key->data = k->data;
        Tensor *query = tensor("", kF32, kWidth / 2, 3, 2), *mask = tensor("", kF16, kSlots, 3);
        Tensor *t = computed("FLASH_ATTN_EXT", query, key);
        t->src[2] = key, t->src[3] = mask;
        return t;
    };
    const auto writes = [&](Tensor *k) { within("SET_ROWS", k, rows, slots); };
    attends(values);
    EXPECT_EQ(read().nodes[0].layer, -1) << "nothing has written there";
    nodes.clear();
    for (Tensor *t : {first, values, second}) writes(t);
    EXPECT_EQ(read().n_writes, 0) << "nothing has read there";
    attends(first), attends(second);
    for (int graph = 0; graph < 2; graph++) {
        const lim_ggml_graph &g = read();
        ASSERT_EQ(g.n_writes, 2) << "not those of the values";
        EXPECT_EQ(g.writes[0].store.id, id(first));
        EXPECT_EQ(g.writes[1].store.id, id(second));
        ASSERT_EQ(g.n_nodes, 2);
        EXPECT_EQ(g.nodes[0].layer, 0);
        EXPECT_EQ(g.nodes[1].layer, 1);
    }
    nodes.clear();
    Tensor *others[] = {store("", 1), store("", 1), store("cache_k_l7", 1)}; // another model's, in the same context
    for (Tensor *t : others) writes(t), attends(t);
    EXPECT_EQ(read().nodes[0].layer, 2);
    for (int i = 0; i < 3; i++) EXPECT_EQ(read().nodes[i].layer, i < 2 ? i : 7) << "numbered anew";
    const void *data = others[0]->data;
    others[0]->data = memory.emplace_back(1 << 10).data(); // another tensor at the same address
    EXPECT_EQ(read().nodes[0].layer, 8);
    others[0]->data = const_cast<void *>(data);
}

TEST_F(ExtractTest, PositionsAreThoseThatAllRotationsShare) {
    Tensor *positions = input(kI32, 5), *x = computed("ADD", positions, nullptr, 5);
    computed("ROPE", x, positions);
    computed("ROPE", x, positions);
    EXPECT_EQ(read().positions, positions->data);
    EXPECT_EQ(extract.graph.n_positions, 5);
    EXPECT_EQ(extract.graph.n_rotations, 2);
    computed("ROPE", x, input(kI32, 5));
    EXPECT_EQ(read().positions, nullptr);
    EXPECT_EQ(extract.graph.n_rotations, 3);
    nodes.clear();
    computed("ROPE", x, within("VIEW", positions, positions));
    EXPECT_EQ(read().positions, nullptr);
}

TEST_F(ExtractTest, OutputsAreRowsThatAnInputPicks) {
    Tensor *ids = input(kI32, 2), *tokens = input(kI32, 5), *embedding = tensor("token_embd.weight", kF16, kWidth, 100);
    Tensor *x = computed("GET_ROWS", embedding, tokens, 5);
    EXPECT_EQ(read().n_outputs, -1) << "rows of weights";
    Tensor *states = tensor("cache_r_l0", kF32, kWidth, 5);
    computed("GET_ROWS", within("RESHAPE", states, states), input(kI32, 1));
    EXPECT_EQ(read().n_outputs, -1) << "rows of a store";
    x = computed("ADD", x, nullptr, 5);
    computed("GET_ROWS", x, computed("ADD", tokens, nullptr, 5));
    EXPECT_EQ(read().n_outputs, -1) << "rows that the graph chooses: experts";
    computed("GET_ROWS", x, ids, 2);
    computed("GET_ROWS", x, ids, 2);
    EXPECT_EQ(read().n_outputs, 2);
    EXPECT_EQ(extract.graph.n_batch, 5);
    EXPECT_EQ(extract.graph.outputs, ids->data);
    computed("GET_ROWS", x, input(kI32, 3), 3);
    EXPECT_EQ(read().n_outputs, -1) << "two lists";

    nodes.resize(1);
    Tensor *none = input(kI32, 0);
    none->data = nullptr;
    computed("GET_ROWS", x, none, 0);
    EXPECT_EQ(read().n_outputs, 0) << "a prompt";
    EXPECT_EQ(extract.graph.n_batch, 5);
}

// Of several rows a part can be left to the host, if what follows computes nothing.
TEST_F(ExtractTest, NodesThatComputeNothing) {
    constexpr int64_t kTokens = 3;
    for (const char *what : {"RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"}) {
        nodes.clear();
        Tensor *next = computed(what, attention(kTokens, 1));
        read();
        ASSERT_EQ(extract.nodes.size(), 1U);
        ASSERT_EQ(extract.nodes[0].reason, LIM_GGML_OFFLOADED) << extract.nodes[0].what;
        EXPECT_EQ(extract.nodes[0].divides, 1) << what;
        EXPECT_EQ(extract.spares[0], next) << what;
        for (Tensor *t : nodes) t->flags = kFlagCompute;
        read();
        EXPECT_EQ(extract.spares[0], next) << what << ", both to be computed";
    }
    const std::vector<std::function<void()>> not_so = {
        [&] { attention(kTokens, 1); },                                       // it is the last one
        [&] { computed("ADD", attention(kTokens, 1)); },                      // what follows computes
        [&] { computed("RESHAPE", attention(1, 1)); },                        // one row
        [&] { computed("RESHAPE", attention(kTokens, 1))->ne[0] = 0; },       // the host passes over what is empty …
        [&] { computed("RESHAPE", attention(kTokens, 1))->ne[1] = 0; },
        [&] { computed("RESHAPE", attention(kTokens, 1))->ne[2] = 0; },
        [&] { computed("RESHAPE", attention(kTokens, 1))->ne[3] = 0; },
        [&] { attention(kTokens, 1)->flags = kFlagCompute, computed("RESHAPE", nodes.back()); }, // … and over what is not to be computed
    };
    for (size_t i = 0; i < not_so.size(); i++) {
        nodes.clear();
        not_so[i]();
        read();
        ASSERT_EQ(extract.nodes[0].reason, LIM_GGML_OFFLOADED) << i;
        EXPECT_EQ(extract.nodes[0].divides, 0) << i;
        EXPECT_EQ(extract.spares[0], nullptr) << i;
    }
}

// The host's part of the rows: everything that its attention reads and writes is narrowed, and comes back as it was.
TEST_F(ExtractTest, TheHostsPart) {
    for (const int64_t streams : {1, 3}) {
        Tensor *sources[4], *t = tensor("", kF32, 32, 2, 5);
        for (int i = 0; i < 4; i++) {
            sources[i] = i == 0 ? tensor("", kF32, 32, 5, 2) : i == 3 ? tensor("", kF16, kSlots, 64)
                                                                      : tensor("", kF16, 32, kSlots, 2);
            t->src[i] = sources[i];
        }
        for (Tensor *x : {t, sources[0], sources[1], sources[2], sources[3]}) {
            x->ne[3] = streams;
            x->nb[3] = x->nb[2] * static_cast<size_t>(x->ne[2]);
        }
        lim_ggml_node n = {};
        n.rest_token = streams > 1 ? 0 : 2, n.rest_tokens = streams > 1 ? 5 : 3;
        n.rest_stream = streams > 1 ? 1 : 0, n.rest_streams = streams > 1 ? 2 : 1;
        const Tensor before = *t;
        const Saved  saved(t);
        Rest         rest;
        leave_rest(t, n, rest);
        const auto at = [&](const Tensor *of, int tokens) {
            return static_cast<char *>(of->data) + static_cast<size_t>(n.rest_token) * (tokens >= 0 ? of->nb[tokens] : 0) +
                   static_cast<size_t>(n.rest_stream) * of->nb[3];
        };
        EXPECT_EQ(t->data, at(&before, 2));
        EXPECT_EQ(t->ne[2], n.rest_tokens);
        EXPECT_EQ(t->ne[3], n.rest_streams);
        for (int i = 0; i < 4; i++) {
            const bool by_token = i == 0 || i == 3;
            ASSERT_EQ(t->src[i], &rest.sources[i]);
            EXPECT_EQ(t->src[i]->data, at(sources[i], by_token ? 1 : -1)) << i;
            EXPECT_EQ(t->src[i]->ne[1], by_token ? n.rest_tokens : sources[i]->ne[1]) << i;
            EXPECT_EQ(t->src[i]->ne[3], n.rest_streams) << i;
            EXPECT_EQ(0, memcmp(t->src[i]->nb, sources[i]->nb, sizeof t->nb)) << i;
        }
        saved.restore();
        EXPECT_EQ(0, memcmp(t, &before, sizeof before));
    }
}

// What no host ought to say is nothing that is known.
TEST_F(ExtractTest, NumbersThatCannotBe) {
    for (const int64_t n : {int64_t{-1}, int64_t{INT32_MAX} + 1}) {
        nodes.clear();
        Tensor *k = store(), *slots = input(kI64, 3), *rows = computed("ADD", slots, nullptr, 3);
        within("SET_ROWS", k, rows, slots);
        slots->ne[0] = rows->ne[1] = n;
        EXPECT_EQ(read().n_writes, 0) << n;
        EXPECT_EQ(extract.graph.n_rewritten, 1) << n;

        nodes.clear();
        Tensor *delta = input(kI32, kSlots);
        within("ROPE", k, within("VIEW", k, k), delta);
        delta->ne[0] = n;
        EXPECT_EQ(read().n_shifts, 0) << n;
        EXPECT_EQ(extract.graph.n_rewritten, 1) << n;

        nodes.clear();
        Tensor *positions = input(kI32, 5), *x = computed("ADD", positions, nullptr, 5);
        computed("ROPE", x, positions);
        positions->ne[0] = n;
        EXPECT_EQ(read().positions, nullptr) << n;
        EXPECT_EQ(extract.graph.n_rotations, 1) << n;

        nodes.clear();
        x = computed("ADD", positions, nullptr, 5);
        Tensor *ids = input(kI32, 2);
        computed("GET_ROWS", x, ids, 2);
        (n < 0 ? ids->ne[0] : x->ne[1]) = n;
        EXPECT_EQ(read().n_outputs, -1) << n;
    }
    const std::vector<std::function<void(Tensor *, Tensor *)>> not_so = {
        [&](Tensor *, Tensor *ids) { computed("GET_ROWS", nullptr, ids, 2); },
        [&](Tensor *x, Tensor *) { computed("GET_ROWS", x, nullptr, 2); },
        [&](Tensor *x, Tensor *ids) { ids->ne[0] = 6, computed("GET_ROWS", x, ids, 2); },                    // more than there are
        [&](Tensor *x, Tensor *ids) { ids->data = nullptr, computed("GET_ROWS", x, ids, 2); },               // not there
        [&](Tensor *x, Tensor *ids) { computed("GET_ROWS", x, within("VIEW", ids, ids), 2)->src[1]->type = kI32; },               // a part of an input
        [&](Tensor *x, Tensor *ids) {                                                                        // of two batches
            computed("GET_ROWS", x, ids, 2);
            computed("GET_ROWS", computed("ADD", x, nullptr, 4), ids, 2);
        },
    };
    for (size_t i = 0; i < not_so.size(); i++) {
        nodes.clear();
        Tensor *ids = input(kI32, 2), *x = computed("ADD", ids, nullptr, 5);
        not_so[i](x, ids);
        EXPECT_EQ(read().n_outputs, -1) << i;
    }
    nodes.clear();
    Tensor *k = store(), *x = k;
    for (int i = 0; i < 8; i++) x = computed("ADD", x);
    within("CPY", k, x);
    EXPECT_EQ(read().n_rewritten, 1) << "no rotation within a few steps";
    nodes.clear();
    computed("ADD", k)->op = -1, computed("ADD", k)->op = 300, computed("MUL_MAT_ID", k), attention(1, 1);
    EXPECT_EQ(read().n_nodes, 1) << "operations that the host's table has not";
    nodes.clear();
    Tensor *t = attention(1, 2, store("cache_k_l0", 1)); // its streams are the same keys
    t->src[1]->nb[3] = 0;
    read();
    EXPECT_EQ(extract.nodes[0].reason, LIM_GGML_SHAPE);
    EXPECT_STREQ(extract.nodes[0].what, "offset into the K store");
}

// Sizes that no memory has: refused, whatever else is wrong.
TEST_F(ExtractTest, SizesThatCannotBe) {
    const std::vector<std::function<void(Tensor *)>> odd = {
        [](Tensor *q) { q->ne[0] = int64_t{1} << 33; },
        [](Tensor *q) { q->nb[3] = size_t{1} << 50; },
        [](Tensor *q) { q->ne[1] = INT64_MAX, q->nb[1] = size_t{1} << 40; },
        [](Tensor *q) { q->ne[1] = int64_t{1} << 20, q->nb[1] = size_t{1} << 40; },
    };
    for (size_t i = 0; i < odd.size(); i++) {
        nodes.clear();
        odd[i](attention(1, 1)->src[0]);
        read();
        EXPECT_EQ(extract.nodes[0].reason, LIM_GGML_SHAPE) << i;
    }
    nodes.clear(); // a store by heads, whose rows are wider than a number
    Tensor *slots = input(kI64, 3), *k = tensor("k", kF16, kWidth, 2, kSlots), *rows = computed("ADD", slots, nullptr, 3);
    within("SET_ROWS", k, rows, slots);
    Tensor *key = attention(1, 1, k)->src[1];
    k->nb[2] = k->nb[1] * static_cast<size_t>(k->ne[1]), key->nb[1] = k->nb[2];
    read(), read();
    k->ne[0] = INT64_MAX, k->ne[1] = 4, k->nb[2] = 4 * k->nb[1], key->nb[1] = k->nb[2];
    EXPECT_EQ(read().n_writes, 0);
}

// A weight's hash is of its name, its shape and what it holds, where that can be read; an adapter's parts count as well.
TEST_F(ExtractTest, Weights) {
    const auto weights = [&](Memory memory, const std::function<void()> &graph) {
        nodes.clear();
        graph();
        return read(memory, true).weights;
    };
    Tensor    *first = tensor("blk.2.attn_q.weight", kF16, kWidth, kWidth), *second = tensor("blk.5.attn_q.weight", kF16, kWidth, kWidth);
    const auto both = [&](Tensor *a, Tensor *b) { return [&, a, b] { computed("MUL_MAT", a), computed("MUL_MAT_ID", b); }; };
    EXPECT_EQ(weights(Memory::kHost, both(first, second)), weights(Memory::kHost, both(second, first)));
    EXPECT_EQ(extract.graph.first_block, 2);
    EXPECT_EQ(extract.graph.last_block, 5);
    const uint64_t before = extract.graph.weights;
    static_cast<char *>(first->data)[0] ^= 1;
    EXPECT_NE(weights(Memory::kHost, both(first, second)), before);
    const uint64_t named = weights(Memory::kDevice, both(first, second)); // what a device holds cannot be read here
    tensor_get = [](const Tensor *, void *, size_t, size_t) { ADD_FAILURE() << "of a buffer that is not known"; };
    EXPECT_EQ(weights(Memory::kDevice, both(first, second)), named);
    for (const int64_t n : {0, -1, 1}) {
        first->ne[3] = n;
        EXPECT_NE(weights(Memory::kHost, both(first, second)), 0U);
    }
    Tensor *nameless = tensor("leaf_12", kF16, kWidth, kWidth), *adapter = tensor("blk.2.attn_q.weight.lora_a", kF16, kWidth, kWidth);
    EXPECT_NE(weights(Memory::kHost, both(nameless, second)), weights(Memory::kHost, both(adapter, second)));
    EXPECT_EQ(extract.graph.first_block, 5) << "an adapter's are of none";
    snprintf(nameless->name, sizeof nameless->name, "leaf_13");
    const uint64_t other = weights(Memory::kHost, both(nameless, second));
    snprintf(nameless->name, sizeof nameless->name, "leaf_12");
    EXPECT_EQ(weights(Memory::kHost, both(nameless, second)), other) << "numbers that ggml gives are no names";
}

// More models than are remembered: the ninth weight is not, and nothing is taken for another model.
TEST_F(ExtractTest, ManyModels) {
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 12; i++) {
            nodes.clear();
            char name[32];
            snprintf(name, sizeof name, "blk.%d.attn_q.weight", i);
            computed("MUL_MAT", tensor(name, kF16, kWidth, kWidth));
            attention(1, 1);
            EXPECT_EQ(read().adapters, 0U) << round << ", " << i;
        }
    }
}

// A graph on a device is read anew unless all that it holds is an input that is known.
TEST_F(ExtractTest, InputsOfADeviceThatAreNotKnown) {
    const std::vector<std::function<void()>> unknown = {
        [&] {
            Tensor *slots = input(kI64, 3);
            within("SET_ROWS", store(), computed("ADD", slots, nullptr, 3), slots);
        },
        [&] {
            Tensor *positions = input(kI32, 5);
            computed("ROPE", computed("ADD", positions, nullptr, 5), positions);
        },
        [&] {
            Tensor *ids = input(kI32, 2);
            computed("GET_ROWS", computed("ADD", ids, nullptr, 5), ids, 2);
        },
    };
    for (size_t i = 0; i < unknown.size(); i++) {
        nodes.clear();
        unknown[i]();
        read(Memory::kDevice);
        EXPECT_FALSE(extract.read_inputs()) << i;
    }
    nodes.clear();
    attention(1, 1)->src[3] = nullptr;
    read(Memory::kDevice);
    EXPECT_EQ(extract.nodes[0].store.stride, 0) << "of which what is moved there is not seen";
    EXPECT_TRUE(extract.read_inputs()) << "there are none";
    read();
    EXPECT_FALSE(extract.read_inputs()) << "on the host all is read";
}

// Of a graph that could not be read nothing is known, least of all what it wrote: the next plan is told.
TEST(Extract, AGraphThatIsMissedIsTold) {
    Extract extract;
    for (const int lost : {0, 1, 0}) {
        if (lost != 0) extract.miss();
        extract.read_changes();
        EXPECT_EQ(extract.graph.lost, lost);
    }
    leave_transfers(&extract);
}

} // namespace
} // namespace lim::ggml
