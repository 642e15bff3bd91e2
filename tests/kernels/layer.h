/* What the kernels' benchmarks measure: one layer of a model at a context length. */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <time.h>
#include <vector>

#include "kernels.h"

namespace lim_bench {

constexpr int    kKvHeads = 8, kDim = 128, kBudget = 2048;
constexpr size_t kArena = (size_t)1 << 30; /* larger than any cache */

inline double Now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

inline double Quantile(std::vector<double> v, double part) {
    const auto at = v.begin() + (ptrdiff_t)(part * (double)(v.size() - 1));
    std::nth_element(v.begin(), at, v.end());
    return *at;
}

struct Type {
    const char *name;
    int         type;
    size_t      row;   /* bytes of one head's row */
    size_t      block; /* bytes of a quantised block; 0: half floats */
    uint16_t    scale; /* of every block */
};
constexpr Type kTypes[] = {
    {"f16", LIM_CPU_F16, kDim * 2, 0, 0},
    {"bf16", LIM_CPU_BF16, kDim * 2, 0, 0},
    {"q8_0", LIM_CPU_Q8_0, kDim / 32 * 34, 34, 0x2000},
    {"q4_0", LIM_CPU_Q4_0, kDim / 32 * 18, 18, 0x3000},
};

/* Fills the arena with rows of the type, of modest random values: half floats have sign and fraction at random and exponents around
 * one, quantised blocks random codes under one scale. */
inline void Fill(uint8_t *arena, const Type &type) {
    std::mt19937_64 random(1);
    const uint64_t  keep = type.block ? ~0ull : type.type == LIM_CPU_F16 ? 0x87ff87ff87ff87ffu
                                                                         : 0x80ff80ff80ff80ffu;
    const uint64_t  set = type.block ? 0 : type.type == LIM_CPU_F16 ? 0x3800380038003800u
                                                                    : 0x3f003f003f003f00u;
    for (size_t i = 0; i < kArena / 8; i++) ((uint64_t *)arena)[i] = (random() & keep) | set;
    for (size_t i = 0; type.block != 0 && i + type.block <= kArena; i += type.block) memcpy(arena + i, &type.scale, 2);
}

/* A decode row's call of one layer, over as many K/V stores as fit into the arena. */
struct Layer {
    Type                 type;
    int                  heads, context, stores;
    size_t               token; /* bytes of K, and of V, per token */
    std::vector<float>   query, output;
    std::vector<int32_t> set, table;
    lim_cpu_row          row = {};
    lim_cpu_call         call = {};

    Layer(uint8_t *arena, const Type &t, int h, int n)
        : type(t), heads(h), context(n), token(t.row * kKvHeads), arena_(arena) {
        stores = (int)(kArena / (2 * token * context));
        query.resize((size_t)heads * kDim);
        output.resize((size_t)heads * kDim);
        std::mt19937                    random(7);
        std::normal_distribution<float> normal;
        for (float &x : query) x = normal(random);
        set.resize(std::min(kBudget, context / 2));
        row.n = context;
        row.set = set.data();
        row.set_n = (int)set.size();
        row.recent = row.set_n / 4 - 4;
        row.sink_tokens = 4;
        row.top_k = row.set_n - row.recent - row.sink_tokens;
        call.query = {query.data(), (int64_t)query.size() * 4, kDim * 4, 0, LIM_CPU_F32};
        call.output = {output.data(), (int64_t)output.size() * 4, kDim * 4, 0, LIM_CPU_F32};
        call.heads = heads;
        call.kv_heads = kKvHeads;
        call.dim_k = call.dim_v = kDim;
        call.scale = 0.0883883f;
        call.rows = &row;
        call.n_rows = 1;
        Use(0);
    }
    ~Layer() { free(call.work); }
    Layer(const Layer &) = delete;

    void MakeWork(size_t size) {
        call.work = aligned_alloc(64, (size + 63) / 64 * 64);
        memset(call.work, 0, size);
    }
    void Use(int store) {
        uint8_t *key = arena_ + (size_t)(store % stores) * 2 * token * context;
        call.key = {key, (int64_t)token, (int64_t)type.row, 0, type.type};
        call.value = {key + token * context, (int64_t)token, (int64_t)type.row, 0, type.type};
    }
    /* The i-th of the disjoint spread-out lists: one token at random from each span of the context. */
    void UseList(int i) {
        const int    step = context / row.set_n;
        std::mt19937 random(i / step);
        for (int t = 0; t < row.set_n; t++) set[t] = t * step + (int)((random() + (unsigned)i) % (unsigned)step);
        Use(i / step);
    }
    /* The stores in pages of so many tokens, one after the other or, as a server leaves them, anywhere; 0: in one piece. */
    void Page(int tokens, bool scattered) {
        call.table = nullptr;
        if (tokens == 0) return;
        table.resize((size_t)(context / tokens));
        for (size_t i = 0; i < table.size(); i++) table[i] = (int32_t)i;
        if (scattered) std::shuffle(table.begin(), table.end(), std::mt19937(11));
        call.table = table.data();
        call.table_stride = (int64_t)table.size();
        call.page_shift = __builtin_ctz((unsigned)tokens);
        call.key.stream_stride = call.value.stream_stride = (int64_t)token * tokens;
    }

  private:
    uint8_t *arena_;
};

}  // namespace lim_bench
