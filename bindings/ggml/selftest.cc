#include "selftest.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "symbols.h"

namespace lim::ggml {
namespace {

// The host rounds queries and weights to 16 bits; values are of the order of 1, their weighted means of 0.2.
constexpr float kTolerance = 0.01f;

constexpr int      kLayers = 2, kDim = 64, kHeads = 4, kKvHeads = 2, kSlots = 256, kVisible = 200, kPrompt = 8;
constexpr int      kWidth    = kDim * kKvHeads; // of a token's keys in all heads
constexpr int      kMaskRows = 64;              // older hosts pad them
constexpr uint16_t kHidden   = 0xFC00;        // -inf

// The host's functions that build a graph.
struct Builder {
    struct InitParams { // passed by value; stable
        size_t size;
        void  *memory;
        bool   no_alloc;
    };
    void *(*init)(InitParams);
    void (*free)(void *);
    Tensor *(*new_tensor)(void *, int, int64_t, int64_t, int64_t, int64_t);
    Tensor *(*view)(void *, Tensor *, int64_t, int64_t, int64_t, int64_t, size_t, size_t, size_t, size_t);
    Tensor *(*flash)(void *, Tensor *, Tensor *, Tensor *, Tensor *, float, float, float);
    Tensor *(*set_rows)(void *, Tensor *, Tensor *, Tensor *);
    Tensor *(*set_name)(Tensor *, const char *);
    void *(*get_data)(const Tensor *);
    size_t (*tensor_overhead)();
    size_t (*graph_overhead)();
    Graph *(*new_graph)(void *);
    void (*expand)(Graph *, Tensor *);

    bool get(const Symbols &symbols) {
        return symbols.get(init, "ggml_init") && symbols.get(free, "ggml_free") && symbols.get(new_tensor, "ggml_new_tensor_4d") &&
               symbols.get(view, "ggml_view_4d") && symbols.get(flash, "ggml_flash_attn_ext") && symbols.get(set_rows, "ggml_set_rows") &&
               symbols.get(set_name, "ggml_set_name") && symbols.get(get_data, "ggml_get_data") &&
               symbols.get(tensor_overhead, "ggml_tensor_overhead") && symbols.get(graph_overhead, "ggml_graph_overhead") &&
               symbols.get(new_graph, "ggml_new_graph") && symbols.get(expand, "ggml_build_forward_expand");
    }
};

// Reproducible values whose bits need no conversion.
class Noise {
  public:
    float single() { return static_cast<float>(static_cast<int>(next() % 4096) - 2048) / 1024; }
    // A half-precision number between 0.25 and 2, of either sign.
    uint16_t half() {
        const uint32_t bits = next();
        return static_cast<uint16_t>((bits & 0x8000) | ((13 + bits % 3) << 10) | ((bits >> 16) & 0x3FF));
    }

  private:
    uint32_t next() { return state_ = state_ * 1664525 + 1013904223, state_ >> 3; }
    uint32_t state_ = 17;
};

// A graph of two layers for `tokens` tokens of one sequence, the last ones of kVisible.
class Trial {
  public:
    Trial(const Builder &builder, int tokens) : b_(builder), tokens_(tokens) {}
    ~Trial() {
        if (context_ != nullptr) b_.free(context_);
    }
    Trial(const Trial &) = delete;

    std::string build() {
        const size_t stores = 2 * kLayers * kWidth * kSlots * 2, rest = 1 << 17;
        context_ = b_.init({stores + rest + 128 * b_.tensor_overhead() + b_.graph_overhead(), nullptr, false});
        if (context_ == nullptr) return "this host refused memory for the self-test";
        graph  = b_.new_graph(context_);
        slots_ = tensor(kI64, tokens_, 1);
        mask_  = tensor(kF16, kSlots, kMaskRows);
        if (slots_->data == nullptr || slots_->data != b_.get_data(slots_)) {
            return "this host's tensors are laid out in an unknown way: data";
        }
        fill_inputs();
        for (int l = 0; l < kLayers; l++) {
            Tensor *key = store("cache_k_l", l), *value = store("cache_v_l", l);
            // As llama.cpp has it: token by token, all heads side by side.
            Tensor *query = tensor(kF32, kDim * kHeads, tokens_);
            fill(query);
            query = b_.view(context_, query, kDim, tokens_, kHeads, 1, 4 * kDim * kHeads, 4 * kDim, 4 * kDim * kHeads * static_cast<size_t>(tokens_), 0);
            outputs.push_back(b_.flash(context_, query, heads_of(key), heads_of(value), mask_, 0.125f, 0, 0));
            b_.expand(graph, outputs.back());
        }
        return "";
    }

    // What the graph writes is not there before it runs, nor is what it computes.
    void wipe() {
        for (Tensor *s : stores_) {
            memset(static_cast<char *>(s->data) + 2 * kWidth * first(), 0, 2 * kWidth * static_cast<size_t>(tokens_));
        }
        for (Tensor *o : outputs) memset(o->data, 0xFF, values() * sizeof(float));
    }
    size_t values() const { return static_cast<size_t>(kDim * kHeads) * static_cast<size_t>(tokens_); }

    Graph                *graph = nullptr;
    std::vector<Tensor *> outputs;

  private:
    size_t first() const { return static_cast<size_t>(kVisible - tokens_); }

    Tensor *tensor(int type, int64_t a, int64_t b) { return b_.new_tensor(context_, type, a, b, 1, 1); }

    void fill(const Tensor *t) {
        auto *values = static_cast<float *>(t->data);
        for (int64_t i = 0; i < t->ne[0] * t->ne[1]; i++) values[i] = noise_.single();
    }

    void fill_inputs() {
        auto *slots = static_cast<int64_t *>(slots_->data);
        for (int i = 0; i < tokens_; i++) slots[i] = static_cast<int64_t>(first()) + i;
        auto *mask = static_cast<uint16_t *>(mask_->data);
        for (int row = 0; row < kMaskRows; row++) {
            for (int slot = 0; slot < kSlots; slot++) {
                mask[row * kSlots + slot] = row < tokens_ && slot <= static_cast<int>(first()) + row ? 0 : kHidden;
            }
        }
    }

    // A store that the graph writes its tokens' rows to.
    Tensor *store(const char *name, int layer) {
        Tensor *s = tensor(kF16, kWidth, kSlots), *rows = tensor(kF32, kWidth, tokens_);
        char    full[32];
        snprintf(full, sizeof full, "%s%d", name, layer);
        b_.set_name(s, full);
        auto *values = static_cast<uint16_t *>(s->data);
        for (int i = 0; i < kWidth * kSlots; i++) values[i] = noise_.half();
        fill(rows);
        b_.expand(graph, b_.set_rows(context_, s, rows, slots_));
        stores_.push_back(s);
        return s;
    }

    Tensor *heads_of(Tensor *s) {
        return b_.view(context_, s, kDim, kSlots, kKvHeads, 1, 2 * kWidth, 2 * kDim, 2 * kWidth * kSlots, 0);
    }

    const Builder        &b_;
    const int             tokens_;
    void                 *context_ = nullptr;
    Noise                 noise_;
    Tensor               *slots_ = nullptr, *mask_ = nullptr;
    std::vector<Tensor *> stores_;
};

std::string compare(const Trial &trial, const std::vector<std::vector<float>> &host, const char *shape) {
    for (size_t l = 0; l < host.size(); l++) {
        const auto *ours = static_cast<const float *>(trial.outputs[l]->data);
        for (size_t i = 0; i < host[l].size(); i++) {
            if (std::fabs(host[l][i] - ours[i]) <= kTolerance) continue; // false for NaN, too
            char text[160];
            snprintf(text, sizeof text, "self-test, %s: layer %zu, value %zu: the host alone computes %g, with the library %g", shape, l, i,
                     static_cast<double>(host[l][i]), static_cast<double>(ours[i]));
            return text;
        }
    }
    return "";
}

// Computes a trial both ways. The hook's first pass over the layers is the host's; what is left to it
// must be what it was, too.
std::string run(Trial &trial, const Ways &ways, int passes, int expected, const char *shape) {
    const std::string name = std::string("self-test, ") + shape + ": ";
    trial.wipe();
    if (ways.alone(trial.graph) != 0) return name + "the host cannot compute it";
    std::vector<std::vector<float>> host;
    for (const Tensor *o : trial.outputs) {
        const auto *values = static_cast<const float *>(o->data);
        host.emplace_back(values, values + trial.values());
        for (size_t i = 0; i < trial.values(); i++) {
            if (!std::isfinite(values[i])) return name + "the host computes no number for value " + std::to_string(i);
        }
    }
    int offloaded = 0;
    for (int pass = 0; pass < passes; pass++) {
        trial.wipe();
        if (ways.hooked(trial.graph, offloaded) != 0) return name + "the host cannot compute it with the library";
        std::string problem = compare(trial, host, shape);
        if (!problem.empty()) return problem;
    }
    if (offloaded != expected) return name + std::to_string(offloaded) + " attentions are offloaded instead of " + std::to_string(expected);
    return "";
}

} // namespace

std::string self_test(void *handle, const Ways &ways) {
    const Symbols symbols(handle);
    Builder       builder;
    if (!builder.get(symbols)) return symbols.missing() + ", which the self-test needs";
    Trial       decode(builder, 1), prompt(builder, kPrompt);
    std::string problem = decode.build();
    if (problem.empty()) problem = prompt.build();
    if (problem.empty()) problem = run(decode, ways, 2, kLayers, "one token");
    if (problem.empty()) problem = run(prompt, ways, 1, 0, "several tokens");
    return problem;
}

} // namespace lim::ggml
