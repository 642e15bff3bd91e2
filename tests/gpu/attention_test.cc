/* Attention kernels against float64, on the host (simt/simt.h): the types that are widened on the way, the heads that are padded,
 * and f16 beside them; every mode, with and without a table. What only Hopper has (TMA, clusters) is tested on a card alone. */
#include "simt/simt.h"

#include "attention.cuh"

#include <map>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "order.h"

namespace {

using namespace lessismore;
using Kernel = void (*)(const lim_cuda_args &);

template <class Rows, int kDim, int kHeads, bool kIndexed> constexpr Kernel kAttend = Attend<Rows, kDim, kHeads / 8, kIndexed, false>;

const std::map<std::string, Kernel> kKernels = {
    {"lim_attend_f16_64_8_direct", kAttend<HalfRows<64, false>, 64, 8, false>},
    {"lim_attend_q4_0_64_8_direct", kAttend<PackedRows<64, Q4_0>, 64, 8, false>},
    {"lim_attend_q4_0_128_8_direct", kAttend<PackedRows<128, Q4_0>, 128, 8, false>},
    {"lim_attend_q4_0_128_8_indexed", kAttend<PackedRows<128, Q4_0>, 128, 8, true>},
    {"lim_attend_q4_0_256_16_indexed", kAttend<PackedRows<256, Q4_0>, 256, 16, true>},
    {"lim_attend_q8_0_64_8_indexed", kAttend<PackedRows<64, Q8_0>, 64, 8, true>},
    {"lim_attend_q8_0_128_8_direct", kAttend<PackedRows<128, Q8_0>, 128, 8, false>},
    {"lim_attend_q8_0_128_16_indexed", kAttend<PackedRows<128, Q8_0>, 128, 16, true>},
    {"lim_attend_q4_0_96_8_direct", kAttend<PackedRows<128, Q4_0, 96>, 128, 8, false>},
    {"lim_attend_q8_0_96_8_direct", kAttend<PackedRows<128, Q8_0, 96>, 128, 8, false>},
    {"lim_attend_q8_0_96_8_indexed", kAttend<PackedRows<128, Q8_0, 96>, 128, 8, true>},
    {"lim_attend_f16_upto128_8_direct", kAttend<PaddedRows<128, false>, 128, 8, false>},
    {"lim_attend_bf16_upto128_16_indexed", kAttend<PaddedRows<128, true>, 128, 16, true>},
    {"lim_attend_f16_upto256_8_indexed", kAttend<PaddedRows<256, false>, 256, 8, true>},
    {"lim_attend_bf16_upto256_16_direct", kAttend<PaddedRows<256, true>, 256, 16, false>},
};

struct Shape {
    int  type, dim, group;
    bool indexed;
};

/* A batch over one store of pages, which without a table are the rows' own. */
struct Problem {
    static constexpr int kRows = 3, kKVHeads = 2, kBudget = 70, kShift = 3;
    static constexpr int kLengths[kRows] = {300, 0, 77};
    static constexpr int kCapacity = 300, kPages = 1 + kRows * (kCapacity / 8 + 1);

    Shape                 shape;
    int                   heads, row_bytes, page, pages;
    std::vector<float>    query, output;
    std::vector<uint8_t>  store[2];
    std::vector<double>   numbers[2]; /* [page][token][kv_head][dim] */
    std::vector<int32_t>  lengths, table, set;
    std::vector<uint64_t> work;
    lim_cuda_call         call = {};

    int    Slot(int row, int token) const { return shape.indexed ? table[row * 40 + (token >> kShift)] << kShift | (token & 7) : token; }
    double Number(int which, int row, int token, int kv_head, int d) const {
        const int64_t slot = Slot(row, token) + (shape.indexed ? 0 : int64_t{row} * page);
        return numbers[which][(slot * kKVHeads + kv_head) * shape.dim + d];
    }

    Problem(const Shape &s, std::mt19937 &rng) : shape(s) {
        std::normal_distribution<float> normal;
        heads = s.group * kKVHeads;
        page = s.indexed ? 8 : kCapacity, pages = s.indexed ? kPages : kRows;
        query.resize(kRows * heads * s.dim), output.assign(query.size(), NAN);
        for (float &x : query) x = normal(rng);
        for (int which = 0; which < 2; which++) Fill(which, rng);
        lengths.assign(kLengths, kLengths + kRows);
        table.resize(kRows * 40);
        std::vector<int32_t> order(pages);
        for (int i = 0; i < pages; i++) order[i] = i;
        std::shuffle(order.begin(), order.end(), rng);
        if (s.indexed) {
            for (int i = 0; i < kRows * 38; i++) table[i / 38 * 40 + i % 38] = order[i];
        }
        const lim_cuda_store stores[2] = {Store(0), Store(1)};
        call.query = {reinterpret_cast<uint64_t>(query.data()), heads * s.dim * 4, s.dim * 4, LIM_CUDA_F32, 0};
        call.output = {reinterpret_cast<uint64_t>(output.data()), heads * s.dim * 4, s.dim * 4, LIM_CUDA_F32, 0};
        call.key = stores[0], call.value = stores[1];
        call.lengths = reinterpret_cast<uint64_t>(lengths.data());
        if (s.indexed) call.table = reinterpret_cast<uint64_t>(table.data()), call.table_stride = 40, call.page_shift = kShift;
        call.n_rows = kRows, call.heads = heads, call.kv_heads = kKVHeads, call.dim = s.dim, call.kv_type = s.type, call.capacity = kCapacity;
        call.scale = 1 / std::sqrt(static_cast<float>(s.dim)), call.value_scale = 1;
        call.budget = kBudget, call.sink_tokens = 4, call.top_k = 50, call.recent = 16;
        set.assign(kRows * kBudget, 0);
        call.set = reinterpret_cast<uint64_t>(set.data()), call.set_stride = kBudget;
    }

    lim_cuda_store Store(int which) {
        const int64_t token = row_bytes * kKVHeads;
        return {reinterpret_cast<uint64_t>(store[which].data()), token, row_bytes, token * page};
    }

    void Fill(int which, std::mt19937 &rng) {
        std::normal_distribution<float> normal;
        const int                       type = shape.type, rows = pages * page * kKVHeads;
        const int                       block = type == LIM_CUDA_Q8_0 ? 34 : 18;
        const bool                      packed = type == LIM_CUDA_Q8_0 || type == LIM_CUDA_Q4_0;
        row_bytes = packed ? shape.dim / 32 * block : shape.dim * 2;
        store[which].resize(static_cast<size_t>(rows) * row_bytes + 16);
        numbers[which].resize(static_cast<size_t>(rows) * shape.dim);
        for (int r = 0; r < rows; r++) {
            uint8_t *row = store[which].data() + static_cast<size_t>(r) * row_bytes;
            double  *to = numbers[which].data() + static_cast<size_t>(r) * shape.dim;
            for (int d = 0; d < shape.dim; d++) {
                if (!packed) {
                    const float    x = normal(rng);
                    const uint16_t bits = type == LIM_CUDA_BF16 ? simt::ToBfloat(x) : simt::ToHalf(x);
                    std::memcpy(row + d * 2, &bits, 2);
                    to[d] = type == LIM_CUDA_BF16 ? simt::FromBfloat(bits) : simt::FromHalf(bits);
                    continue;
                }
                uint8_t *b = row + d / 32 * block;
                if (d % 32 == 0) {
                    const uint16_t scale = simt::ToHalf(normal(rng) / (type == LIM_CUDA_Q8_0 ? 60 : 4));
                    std::memcpy(b, &scale, 2);
                    for (int i = 2; i < block; i++) b[i] = static_cast<uint8_t>(rng());
                }
                uint16_t scale;
                std::memcpy(&scale, b, 2);
                const int e = d % 32;
                const int q = type == LIM_CUDA_Q8_0 ? static_cast<int8_t>(b[2 + e]) : (e < 16 ? b[2 + e] & 15 : b[2 + e - 16] >> 4) - 8;
                to[d] = static_cast<double>(simt::FromHalf(scale)) * q;
            }
        }
    }

    double Logit(int row, int head, int token) const {
        double x = 0;
        for (int d = 0; d < shape.dim; d++) {
            const float  q = query[(row * heads + head) * shape.dim + d];
            const double rounded = shape.type == LIM_CUDA_BF16 ? simt::FromBfloat(simt::ToBfloat(q)) : simt::FromHalf(simt::ToHalf(q));
            x += rounded * Number(0, row, token, head / shape.group, d);
        }
        return x * call.scale;
    }

    /* What a row attends to, in order. */
    void Check(const std::vector<std::vector<int>> &seen) const {
        for (int row = 0; row < kRows; row++) {
            double off = 0, size = 0;
            for (int head = 0; head < heads; head++) {
                std::vector<double> logits, want(shape.dim);
                double              most = -1e30, sum = 0;
                for (const int token : seen[row]) logits.push_back(Logit(row, head, token)), most = std::max(most, logits.back());
                for (size_t i = 0; i < logits.size(); i++) {
                    const double p = std::exp(logits[i] - most);
                    sum += p;
                    for (int d = 0; d < shape.dim; d++) want[d] += p * Number(1, row, seen[row][i], head / shape.group, d);
                }
                for (int d = 0; d < shape.dim; d++) {
                    const double w = sum == 0 ? 0 : want[d] / sum, got = output[(row * heads + head) * shape.dim + d];
                    off += (got - w) * (got - w), size += w * w;
                }
            }
            ASSERT_LE(std::sqrt(off), (shape.type == LIM_CUDA_BF16 ? 5e-3 : 1e-3) * std::sqrt(size)) << "row " << row; /* not NaN */
        }
    }
};
constexpr int Problem::kLengths[];

void Attends(const std::string &name, const Shape &shape, int mode, std::mt19937 &rng) {
    SCOPED_TRACE(name + " mode " + std::to_string(mode) + " dim " + std::to_string(shape.dim) + " group " + std::to_string(shape.group));
    Problem                       p(shape, rng);
    std::vector<std::vector<int>> seen(Problem::kRows);
    for (int row = 0; row < Problem::kRows; row++) {
        for (int t = 0; t < p.lengths[row]; t++) seen[row].push_back(t);
        if (mode != LIM_CUDA_SPARSE) continue;
        std::shuffle(seen[row].begin(), seen[row].end(), rng);
        seen[row].resize(std::min<size_t>(seen[row].size(), Problem::kBudget));
        std::sort(seen[row].begin(), seen[row].end());
        for (size_t i = 0; i < seen[row].size(); i++) p.set[row * Problem::kBudget + i] = p.Slot(row, seen[row][i]);
    }
    const lim_cuda_device device = {3, 233472, 232448, 80};
    p.call.mode = mode;
    p.work.assign((lim_cuda_work_size(&device, &p.call) + 256) / 8 + 1, 0);
    p.call.work = (reinterpret_cast<uint64_t>(p.work.data()) + 255) / 256 * 256;
    char text[256];
    ASSERT_EQ(lim_cuda_check(&device, &p.call, text, sizeof text), 0) << text;
    lim_cuda_args   args;
    lim_cuda_launch launches[2];
    lim_cuda_plan(&device, &p.call, &args, launches);
    ASSERT_EQ(launches[0].name, name);
    for (int again = 0; again < 2; again++) { /* the work memory is as it was */
        std::fill(p.output.begin(), p.output.end(), NAN);
        simt::Launch(launches[0].grid[0], static_cast<int>(launches[0].block), [&] { kKernels.at(name)(args); });
        p.Check(seen);
    }
    if (mode != LIM_CUDA_SELECT) return;
    const float *logits = reinterpret_cast<const float *>(args.logits);
    for (int head = 0; head < p.heads; head++) { /* of row 0, which sees more than the budget */
        for (const int token : {0, 1, 15, 16, 150, 299}) {
            const float got = logits[LogitsOf(static_cast<uint32_t>(head), args.together, args.room_stride) + LogitAt(static_cast<uint32_t>(token), args.together)];
            ASSERT_NEAR(got, p.Logit(0, head, token), 2e-5 * (1 + std::fabs(got))) << "head " << head << " token " << token;
        }
    }
}

TEST(Attention, OnTheHost) {
    std::random_device seed;
    const unsigned     number = seed();
    SCOPED_TRACE(testing::Message() << "seed " << number);
    std::mt19937 rng(number);
    const struct {
        const char *name;
        Shape       shape;
    } cases[] = {
        {"lim_attend_f16_64_8_direct", {LIM_CUDA_F16, 64, 3, false}},
        {"lim_attend_q4_0_64_8_direct", {LIM_CUDA_Q4_0, 64, 4, false}},
        {"lim_attend_q4_0_128_8_direct", {LIM_CUDA_Q4_0, 128, 8, false}},
        {"lim_attend_q4_0_128_8_indexed", {LIM_CUDA_Q4_0, 128, 1, true}},
        {"lim_attend_q4_0_256_16_indexed", {LIM_CUDA_Q4_0, 256, 9, true}},
        {"lim_attend_q8_0_64_8_indexed", {LIM_CUDA_Q8_0, 64, 2, true}},
        {"lim_attend_q8_0_128_8_direct", {LIM_CUDA_Q8_0, 128, 5, false}},
        {"lim_attend_q8_0_128_16_indexed", {LIM_CUDA_Q8_0, 128, 16, true}},
        {"lim_attend_q4_0_96_8_direct", {LIM_CUDA_Q4_0, 96, 1, false}},
        {"lim_attend_q8_0_96_8_direct", {LIM_CUDA_Q8_0, 96, 8, false}},
        {"lim_attend_q8_0_96_8_indexed", {LIM_CUDA_Q8_0, 96, 3, true}},
        {"lim_attend_f16_upto128_8_direct", {LIM_CUDA_F16, 96, 1, false}},
        {"lim_attend_f16_upto128_8_direct", {LIM_CUDA_F16, 16, 4, false}},
        {"lim_attend_f16_upto128_8_direct", {LIM_CUDA_F16, 80, 4, false}},
        {"lim_attend_bf16_upto128_16_indexed", {LIM_CUDA_BF16, 112, 12, true}},
        {"lim_attend_f16_upto256_8_indexed", {LIM_CUDA_F16, 192, 3, true}},
        {"lim_attend_bf16_upto256_16_direct", {LIM_CUDA_BF16, 144, 9, false}},
    };
    for (const auto &c : cases) {
        Attends(c.name, c.shape, LIM_CUDA_FULL, rng);
        Attends(c.name, c.shape, LIM_CUDA_SELECT, rng);
        if (c.shape.indexed) Attends(c.name, c.shape, LIM_CUDA_SPARSE, rng);
    }
}

}  // namespace
