#include "selftest.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "recording.h"
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

namespace {

// What it takes besides to build a graph in a GPU's memory.
struct DeviceBuilder : Builder {
    void **(*type_of)(Device *);
    void **(*alloc)(void **, size_t);
    void (*free_buffer)(void **);
    void *(*base)(void **);
    int (*tensor_alloc)(void **, Tensor *, void *);
    void (*set)(Tensor *, const void *, size_t, size_t);
    void (*fetch)(const Tensor *, void *, size_t, size_t);

    bool get(const Symbols &symbols) {
        return Builder::get(symbols) && symbols.get(type_of, "ggml_backend_dev_buffer_type") && symbols.get(alloc, "ggml_backend_buft_alloc_buffer") &&
               symbols.get(free_buffer, "ggml_backend_buffer_free") && symbols.get(base, "ggml_backend_buffer_get_base") &&
               symbols.get(tensor_alloc, "ggml_backend_tensor_alloc") && symbols.get(set, "ggml_backend_tensor_set") &&
               symbols.get(fetch, "ggml_backend_tensor_get");
    }
};

// Two layers in a GPU's memory, and graphs for the tokens of one sequence: a prompt's, and one token's behind it.
class DeviceTrial {
  public:
    static constexpr int kGpuDim = 128, kGpuHeads = 8, kGpuKvHeads = 2, kGpuWidth = kGpuDim * kGpuKvHeads;
    static constexpr int kIrrelevant = 8, kFirstIrrelevant = 60; // tokens that next to nothing is left for

    struct Inputs {
        Graph                *graph;
        Tensor               *slots, *mask;
        std::vector<int64_t>  at;
        std::vector<uint16_t> hides;
        std::vector<Tensor *> outputs, made; // what the graph computes, and what it is computed from
    };

    DeviceTrial(const DeviceBuilder &builder, Device *device) : b_(builder), device_(device) {}
    ~DeviceTrial() {
        if (context_ != nullptr) b_.free(context_);
        if (buffer_ != nullptr) b_.free_buffer(buffer_);
    }
    DeviceTrial(const DeviceTrial &) = delete;

    std::string build(Inputs &prompt, Inputs &decode, Inputs &another) {
        constexpr size_t kRoom = 8 << 20;
        context_               = b_.init({256 * b_.tensor_overhead() + 3 * b_.graph_overhead(), nullptr, true});
        buffer_                = b_.alloc(b_.type_of(device_), kRoom);
        if (context_ == nullptr || buffer_ == nullptr) return "this host refused memory for the self-test";
        for (int l = 0; l < kLayers; l++) {
            for (const char *name : {"cache_k_l", "cache_v_l"}) {
                char full[32];
                snprintf(full, sizeof full, "%s%d", name, l);
                Tensor *store = place(b_.new_tensor(context_, kF16, kGpuWidth, kSlots, 1, 1));
                b_.set_name(store, full);
                const std::vector<uint16_t> zeros(static_cast<size_t>(kGpuWidth) * kSlots);
                b_.set(store, zeros.data(), 0, zeros.size() * 2);
                stores_.push_back(store);
            }
        }
        make(prompt, 0, kVisible - 1);
        make(decode, kVisible - 1, 1);
        make(another, kVisible - 1, 1);
        return "";
    }

    // One token's keys, values and queries become others.
    void renew(const Inputs &in) {
        for (Tensor *t : in.made) {
            std::vector<float> values(static_cast<size_t>(t->ne[0]));
            for (float &v : values) v = t->ne[0] == kGpuWidth ? noise_.single() / 2 : 1 + noise_.single() / 4;
            b_.set(t, values.data(), 0, values.size() * sizeof values[0]);
        }
    }

    // As a host does before each graph. What it computes is not there before it runs.
    void upload(Inputs &in) {
        b_.set(in.slots, in.at.data(), 0, in.at.size() * sizeof in.at[0]);
        b_.set(in.mask, in.hides.data(), 0, in.hides.size() * sizeof in.hides[0]);
        const std::vector<float> none(kGpuDim * kGpuHeads * static_cast<size_t>(in.slots->ne[0]), NAN);
        for (Tensor *o : in.outputs) b_.set(o, none.data(), 0, none.size() * sizeof none[0]);
    }

    std::vector<float> output(const Inputs &in, size_t layer) const {
        std::vector<float> values(kGpuDim * kGpuHeads);
        b_.fetch(in.outputs[layer], values.data(), 0, values.size() * sizeof values[0]);
        return values;
    }

  private:
    Tensor *place(Tensor *t) {
        constexpr size_t kAlign = 256;
        b_.tensor_alloc(buffer_, t, static_cast<char *>(b_.base(buffer_)) + used_);
        used_ += (t->nb[3] * static_cast<size_t>(t->ne[3]) + kAlign - 1) / kAlign * kAlign;
        return t;
    }
    Tensor *view(Tensor *of, int64_t a, int64_t b, int64_t c, size_t nb1, size_t nb2, size_t nb3) {
        Tensor *t = b_.view(context_, of, a, b, c, 1, nb1, nb2, nb3, 0);
        t->buffer = of->buffer;
        t->data   = of->data;
        return t;
    }
    Tensor *filled(int64_t width, int64_t tokens, const std::function<float(int64_t token)> &value) {
        Tensor            *t = place(b_.new_tensor(context_, kF32, width, tokens, 1, 1));
        std::vector<float> values;
        for (int64_t i = 0; i < tokens; i++) {
            for (int64_t d = 0; d < width; d++) values.push_back(value(i));
        }
        b_.set(t, values.data(), 0, values.size() * sizeof values[0]);
        return t;
    }

    void make(Inputs &in, int first, int tokens) {
        in.graph            = b_.new_graph(context_);
        const int mask_rows = (tokens + kMaskRows - 1) / kMaskRows * kMaskRows;
        in.slots            = place(b_.new_tensor(context_, kI64, tokens, 1, 1, 1));
        in.mask             = place(b_.new_tensor(context_, kF16, kSlots, mask_rows, 1, 1));
        for (int i = 0; i < tokens; i++) in.at.push_back(first + i);
        for (int row = 0; row < mask_rows; row++) {
            for (int slot = 0; slot < kSlots; slot++) in.hides.push_back(row < tokens && slot <= first + row ? 0 : kHidden);
        }
        const auto irrelevant = [first](int64_t token) { return first + token >= kFirstIrrelevant && first + token < kFirstIrrelevant + kIrrelevant; };
        for (int l = 0; l < kLayers; l++) {
            Tensor *key = stores_[2 * static_cast<size_t>(l)], *value = stores_[2 * static_cast<size_t>(l) + 1];
            Tensor *keys    = filled(kGpuWidth, tokens, [&](int64_t token) { return irrelevant(token) ? -1.5f : noise_.single() / 2; });
            Tensor *values  = filled(kGpuWidth, tokens, [&](int64_t) { return noise_.single(); });
            Tensor *queries = filled(kGpuDim * kGpuHeads, tokens, [&](int64_t) { return 1 + noise_.single() / 4; });
            for (Tensor *t : {keys, values, queries}) in.made.push_back(t);
            for (Tensor *write : {b_.set_rows(context_, key, keys, in.slots), b_.set_rows(context_, value, values, in.slots)}) {
                write->buffer = buffer_;
                write->data   = write->view_src->data;
                b_.expand(in.graph, write);
            }
            constexpr size_t kRow  = 4 * kGpuDim * kGpuHeads;
            Tensor          *query = view(queries, kGpuDim, tokens, kGpuHeads, kRow, 4 * kGpuDim, kRow * static_cast<size_t>(tokens));
            const auto       heads = [&](Tensor *s) { return view(s, kGpuDim, kSlots, kGpuKvHeads, 2 * kGpuWidth, 2 * kGpuDim, 2 * kGpuWidth * kSlots); };
            in.outputs.push_back(place(b_.flash(context_, query, heads(key), heads(value), in.mask, 0.088388f, 0, 0)));
            b_.expand(in.graph, in.outputs.back());
        }
    }

    const DeviceBuilder  &b_;
    Device               *device_;
    void                 *context_ = nullptr;
    void                **buffer_  = nullptr;
    size_t                used_    = 0;
    Noise                 noise_;
    std::vector<Tensor *> stores_;
};

// One token by the host alone and with the library, each time from nothing.
std::string compare(DeviceTrial &trial, DeviceTrial::Inputs &decode, const Ways &ways) {
    trial.upload(decode);
    if (ways.alone(decode.graph) != 0) return "self-test: the host cannot compute a token";
    std::vector<std::vector<float>> host;
    for (size_t l = 0; l < kLayers; l++) host.push_back(trial.output(decode, l));
    trial.upload(decode);
    int offloaded = 0;
    if (ways.hooked(decode.graph, offloaded) != 0) return "self-test: the host cannot compute a token with the library";
    if (offloaded != kLayers) return "self-test: " + std::to_string(offloaded) + " attentions are offloaded instead of " + std::to_string(kLayers);
    for (size_t l = 0; l < kLayers; l++) {
        const std::vector<float> ours = trial.output(decode, l);
        for (size_t i = 0; i < ours.size(); i++) {
            if (std::fabs(host[l][i] - ours[i]) <= kTolerance) continue; // false for NaN, too
            char text[160];
            snprintf(text, sizeof text, "self-test: layer %zu, value %zu: the host alone computes %g, with the library %g", l, i,
                     static_cast<double>(host[l][i]), static_cast<double>(ours[i]));
            return text;
        }
    }
    return "";
}

// The same with steps that are captured and replayed.
bool replays(DeviceTrial &trial, DeviceTrial::Inputs &decode, const Ways &ways) {
    constexpr int kTimes = 4; // in parts, captured, and twice more
    for (int i = 0; i < kTimes; i++) {
        trial.renew(decode);
        if (!compare(trial, decode, ways).empty()) return false;
    }
    return *ways.replays == kTimes - 1;
}

} // namespace

std::string self_test_gpu(void *handle, Device *device, int budget, const Ways &ways) {
    static_assert(kVisible > DeviceTrial::kFirstIrrelevant + DeviceTrial::kIrrelevant, "the newest tokens are attended to");
    const Symbols symbols(handle);
    DeviceBuilder builder;
    if (!builder.get(symbols)) return symbols.missing() + ", which the self-test needs";
    if (kVisible - DeviceTrial::kIrrelevant != budget) return "the self-test is for another budget";
    DeviceTrial         trial(builder, device);
    DeviceTrial::Inputs prompt, decode, another;
    std::string         problem = trial.build(prompt, decode, another);
    if (!problem.empty()) return problem;
    int offloaded = 0;
    trial.upload(prompt);
    if (ways.hooked(prompt.graph, offloaded) != 0) return "self-test: the host cannot compute a prompt";
    problem = compare(trial, decode, ways);
    if (!problem.empty()) return problem;
    *ways.direct = prove_direct(handle, another.outputs[0], [&] {
        trial.upload(another);
        return ways.alone(another.graph);
    });
    if (*ways.direct) *ways.direct = replays(trial, decode, ways);
    return "";
}

} // namespace lim::ggml
