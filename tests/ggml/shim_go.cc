// The stand-in for Go of shim.h: it takes what it is asked to, and attends to everything.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "shim.h"

namespace {

std::atomic<void (*)(lim_ggml_graph *)> on_plan;
std::atomic<int (*)(lim_ggml_node *)>   on_attend;
std::atomic<int>                        sessions;
std::atomic<bool>                       refuses;
char                                    said[600];
thread_local int                        on_again, on_untried;
thread_local shim_trials                trials;

float from_half(uint16_t h) {
    const int      exponent = h >> 10 & 31;
    const float    value = exponent == 0 ? std::ldexp(static_cast<float>(h & 0x3FF), -24) : std::ldexp(static_cast<float>(0x400 | (h & 0x3FF)), exponent - 25);
    const uint32_t sign = h & 0x8000;
    return exponent == 31 ? (sign ? -INFINITY : INFINITY) : sign ? -value
                                                                 : value;
}

const uint16_t *halves(const lim_cpu_tensor &t, int64_t slot, int64_t head, int64_t stream) {
    return reinterpret_cast<const uint16_t *>(static_cast<const char *>(t.data) + slot * t.token_stride + head * t.head_stride + stream * t.stream_stride);
}

// Full attention over what the mask leaves, f16 K and V: that of the self-tests.
void attend(const lim_ggml_node *n) {
    const lim_cpu_call &c = n->call;
    std::vector<double> share(static_cast<size_t>(n->n_kv));
    for (int32_t i = 0; i < n->streams * n->tokens * c.heads; i++) {
        const int32_t head = i % c.heads, token = i / c.heads % n->tokens, stream = i / c.heads / n->tokens, group = head / (c.heads / c.kv_heads);
        const auto   *mask = reinterpret_cast<const uint16_t *>(static_cast<const char *>(n->mask) + token * n->mask_token_stride + stream * n->mask_stream_stride);
        const auto   *query = reinterpret_cast<const float *>(halves(c.query, token, head, stream));
        auto         *out = reinterpret_cast<float *>(const_cast<uint16_t *>(halves(c.output, token, head, stream)));
        double        sum = 0;
        for (int32_t s = 0; s < n->n_kv; s++) {
            double logit = 0;
            for (int32_t d = 0; d < c.dim_k; d++) logit += static_cast<double>(query[d]) * static_cast<double>(from_half(halves(c.key, s, group, stream)[d]));
            sum += share[static_cast<size_t>(s)] = std::exp(logit * static_cast<double>(c.scale) + static_cast<double>(from_half(mask[s])));
        }
        for (int32_t d = 0; d < c.dim_v; d++) {
            double value = 0;
            for (int32_t s = 0; s < n->n_kv; s++) value += share[static_cast<size_t>(s)] / sum * static_cast<double>(from_half(halves(c.value, s, group, stream)[d]));
            out[d] = static_cast<float>(value);
        }
    }
}

void take(lim_ggml_graph *graph) {
    for (int32_t i = 0; i < graph->n_nodes; i++) {
        lim_ggml_node &n = graph->nodes[i];
        if (n.reason != LIM_GGML_OFFLOADED) continue;
        n.max_threads = 1;
        if (n.tokens != 1) n.reason = 1;
    }
}

} // namespace

void        shim_on_plan(void (*plan)(lim_ggml_graph *)) { on_plan = plan; }
void        shim_on_attend(int (*attend)(lim_ggml_node *)) { on_attend = attend; }
const char *shim_said(void) { return said; }
int         shim_sessions(void) { return sessions; }
void        shim_refuse(int yes) { refuses = yes != 0; }
void        shim_on_trial(int again, int untried) { on_again = again, on_untried = untried, trials = {}; }
shim_trials shim_told(void) { return trials; }

extern "C" {

void *lim_go_ggml_init(void *caller) {
    lim_ggml_found found;
    char           text[512] = "";
    void          *registry = lim_ggml_install(caller, 1, &found, text, sizeof text);
    if (registry != nullptr) {
        lim_ggml_at_exit();
        if (lim_ggml_install_gpus(caller, 1, text, sizeof text) < 0) registry = nullptr;
    }
    if (registry == nullptr) snprintf(said, sizeof said, "%s", text);
    return registry;
}
uintptr_t lim_go_ggml_open(int) { return refuses ? 0 : static_cast<uintptr_t>(++sessions); }
void      lim_go_ggml_close(uintptr_t) { --sessions; }
void      lim_go_ggml_plan(uintptr_t, lim_ggml_graph *graph) {
    const auto plan = on_plan.load();
    (plan != nullptr ? plan : take)(graph);
}
int  lim_go_ggml_again(uintptr_t, lim_ggml_graph *) { return on_again; }
void lim_go_ggml_tried(uintptr_t, double nats, int same) { trials.tried++, trials.nats = nats, trials.same = same; }
int  lim_go_ggml_untried(uintptr_t, lim_ggml_graph *, char *) {
    trials.untried++;
    return on_untried;
}
int lim_go_ggml_attend(uintptr_t, lim_ggml_node *node, void *, void *) {
    const auto act = on_attend.load();
    if (act != nullptr) return act(node);
    attend(node);
    return 0;
}
// No step is recorded: what is replayed is the driver's, and the whole library's (fake_cuda.c).
int  lim_go_ggml_capture(uintptr_t) { return -1; }
int  lim_go_ggml_captured(uintptr_t, int, void *) { return -1; }
int  lim_go_ggml_replay(uintptr_t, int, void *, void *) { return -1; }
void lim_go_ggml_problem(char *text) { snprintf(said, sizeof said, "%s", text); }
void lim_go_ggml_left_alone(char *text) { snprintf(said, sizeof said, "%s", text); }
void lim_go_ggml_exit(void) {}

// In place of the kernels: an offloaded node of the hook's.
void __wrap_lim_cpu_attend(const lim_cpu_call *call, int ith, int) {
    if (ith == 0) attend(reinterpret_cast<const lim_ggml_node *>(call)); // a node begins with its call
}

} // extern "C"
