// When a graph on a GPU counts as the one that was recorded, and which may be.
#include "recording.h"

#include <cstdio>
#include <cstring>
#include <deque>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace lim::ggml {
namespace {

const char *const kOps[] = {"NONE", "ADD", "MUL_MAT", "MUL_MAT_ID", "ROPE", "FLASH_ATTN_EXT", "SET_ROWS"};

int op(const std::string &name) {
    for (size_t i = 0; i < std::size(kOps); i++) {
        if (name == kOps[i]) return static_cast<int>(i);
    }
    ADD_FAILURE() << name;
    return -1;
}

class RecordingTest : public testing::Test {
  protected:
    std::deque<Tensor>    tensors;
    std::vector<Tensor *> nodes;
    Host                  host{};

    static std::vector<Tensor *> *&now() {
        static std::vector<Tensor *> *it;
        return it;
    }

    RecordingTest() {
        now() = &nodes;
        host.graph_node = [](Graph *, int i) { return (*now())[static_cast<size_t>(i)]; };
        host.op_name = [](int number) { return number >= 0 && static_cast<size_t>(number) < std::size(kOps) ? kOps[number] : nullptr; };
        host.none = op("NONE");
    }

    Tensor *tensor(const char *operation, Tensor *a = nullptr, Tensor *b = nullptr) {
        Tensor &t = tensors.emplace_back();
        t.op = op(operation);
        t.src[0] = a, t.src[1] = b;
        snprintf(t.name, sizeof t.name, "tensor %zu", tensors.size());
        return &t;
    }
    Tensor *node(const char *operation, Tensor *a = nullptr, Tensor *b = nullptr) { return nodes.emplace_back(tensor(operation, a, b)); }

    int      n() const { return static_cast<int>(nodes.size()); }
    Likeness taken() {
        Likeness l;
        l.take(host, nullptr, n());
        return l;
    }
};

TEST_F(RecordingTest, AGraphIsLikeItself) {
    Tensor *weight = tensor("NONE"), *root = tensor("NONE");
    Tensor *first = node("ADD", weight, nullptr);
    first->view_src = root;
    node("ROPE", first, weight);
    const Likeness l = taken();
    EXPECT_TRUE(l.of(host, nullptr, n()));
    snprintf(first->name, sizeof first->name, "renamed");
    EXPECT_TRUE(l.of(host, nullptr, n())) << "a name decides nothing";
}

// Every byte of every tensor that a node is, or reads, or is a view of.
TEST_F(RecordingTest, NoFieldMayChange) {
    std::mt19937 random(std::random_device{}());
    Tensor      *weight = tensor("NONE"), *root = tensor("NONE"), *input = tensor("NONE");
    Tensor      *first = node("ADD", weight, input);
    first->view_src = root;
    node("FLASH_ATTN_EXT", first, nullptr);
    nodes.back()->src[9] = tensor("NONE");
    const Likeness l = taken();
    for (Tensor &t : tensors) {
        // Not where a pointer to a tensor lies: behind it could be anything.
        for (size_t at = 0; at < offsetof(Tensor, name); at++) {
            if (at >= offsetof(Tensor, type) + sizeof t.type && at < offsetof(Tensor, buffer)) continue; // padding may be anything
            auto               *byte = reinterpret_cast<unsigned char *>(&t) + at;
            const unsigned char was = *byte;
            *byte ^= static_cast<unsigned char>(1 + random() % 255);
            EXPECT_FALSE(l.of(host, nullptr, n())) << t.name << ", byte " << at;
            *byte = was;
        }
    }
    EXPECT_TRUE(l.of(host, nullptr, n()));
}

TEST_F(RecordingTest, NodesAreTheSameInTheSameOrder) {
    Tensor *a = node("ADD"), *b = node("ADD");
    *b = *a;
    const Likeness l = taken();
    std::swap(nodes[0], nodes[1]);
    EXPECT_FALSE(l.of(host, nullptr, n())) << "equal, but they lie elsewhere";
    std::swap(nodes[0], nodes[1]);
    EXPECT_FALSE(l.of(host, nullptr, 1)) << "one fewer";
    node("ADD");
    EXPECT_FALSE(l.of(host, nullptr, n())) << "one more";
}

TEST_F(RecordingTest, WhatMayWaitIsNotCaptured) {
    node("ROPE");
    node("SET_ROWS");
    node("FLASH_ATTN_EXT");
    EXPECT_TRUE(may_capture(host, nullptr, n()));
    node("MUL_MAT_ID");
    EXPECT_FALSE(may_capture(host, nullptr, n()));
    nodes.back() = tensor("MUL_MAT", tensor("NONE"), tensor("NONE"));
    EXPECT_FALSE(may_capture(host, nullptr, n())) << "a matrix in a buffer that is not known: it may be split over devices";
    nodes.back() = tensor("ADD");
    nodes.back()->op = 1000;
    EXPECT_FALSE(may_capture(host, nullptr, n())) << "an operation without a name";
}

TEST_F(RecordingTest, ANodeIsUnlikeAllBefore) {
    Tensor      *attention = node("FLASH_ATTN_EXT");
    const Tensor was = *attention;
    Tensor       seen[2];
    for (Tensor &s : seen) {
        const Unlike none(host, attention);
        EXPECT_EQ(attention->op, host.none);
        s = *attention;
    }
    EXPECT_NE(memcmp(seen[0].op_params, seen[1].op_params, sizeof seen[0].op_params), 0);
    EXPECT_EQ(memcmp(attention, &was, sizeof was), 0) << "it is what it was";
}

} // namespace
} // namespace lim::ggml
