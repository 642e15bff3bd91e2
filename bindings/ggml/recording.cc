#include "recording.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <pthread.h>
#include <unordered_set>

#include "symbols.h"
#include "transfers.h"

namespace lim::ggml {
namespace {

constexpr size_t kFields  = offsetof(Tensor, name);
constexpr int    kSources = sizeof(Tensor::src) / sizeof(Tensor *);

// A step's graph has some thousand tensors, and the step waits for this.
constexpr size_t kAhead = 8;
void             prefetch(const Tensor *t) {
    for (size_t at = 0; at < kFields; at += 64) __builtin_prefetch(reinterpret_cast<const char *>(t) + at);
}

// Operations that hosts' CUDA backends queue without waiting for anything. Products with experts are missing: some wait.
constexpr const char *kQueued[] = {
    "NONE", "DUP", "ADD", "ADD1", "SUB", "MUL", "DIV", "SQR", "SQRT", "SUM_ROWS", "REPEAT", "CONCAT", "NORM", "RMS_NORM", "GROUP_NORM", "L2_NORM",
    "MUL_MAT", "SCALE", "CPY", "CONT", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "GET_ROWS", "SET_ROWS", "SOFT_MAX", "ROPE", "CLAMP",
    "FLASH_ATTN_EXT", "UNARY", "GLU", "LEAKY_RELU", "SIN", "COS", "PAD"};

} // namespace

void Likeness::take(const Host &host, Graph *graph, int nodes) {
    std::unordered_set<const Tensor *> known;
    const auto                         seen = [](const Tensor *t) {
        Seen s{t, {}};
        memcpy(s.fields.data(), t, kFields);
        return s;
    };
    nodes_.clear();
    sources_.clear();
    for (int i = 0; i < nodes; i++) {
        const Tensor *t = host.graph_node(graph, i);
        nodes_.push_back(seen(t));
        known.insert(t);
    }
    for (int i = 0; i < nodes; i++) {
        const Tensor *t = nodes_[static_cast<size_t>(i)].tensor;
        for (int s = 0; s <= kSources; s++) {
            const Tensor *of = s < kSources ? t->src[s] : t->view_src;
            if (of != nullptr && known.insert(of).second) sources_.push_back(seen(of));
        }
    }
}

bool Likeness::of(const Host &host, Graph *graph, int nodes) const {
    if (nodes_.size() != static_cast<size_t>(nodes)) return false;
    for (size_t i = 0; i < nodes_.size(); i++) {
        if (i + kAhead < nodes_.size()) prefetch(nodes_[i + kAhead].tensor);
        const Tensor *t = host.graph_node(graph, static_cast<int>(i));
        if (t != nodes_[i].tensor || memcmp(t, nodes_[i].fields.data(), kFields) != 0) return false;
    }
    // Sources are read only once the nodes that name them are known to be the same.
    for (size_t i = 0; i < sources_.size(); i++) {
        if (i + kAhead < sources_.size()) prefetch(sources_[i + kAhead].tensor);
        if (memcmp(sources_[i].tensor, sources_[i].fields.data(), kFields) != 0) return false;
    }
    return true;
}

bool may_capture(const Host &host, Graph *graph, int nodes) {
    for (int i = 0; i < nodes; i++) {
        const Tensor *t    = host.graph_node(graph, i);
        const char   *name = host.op_name(t->op);
        if (name == nullptr || std::none_of(std::begin(kQueued), std::end(kQueued), [&](const char *q) { return strcmp(q, name) == 0; })) return false;
        // A matrix that is split over devices is multiplied on all of them.
        if (strcmp(name, "MUL_MAT") == 0 && (t->src[0] == nullptr || !is_plain(t->src[0]))) return false;
    }
    return true;
}

bool prove_direct(void *handle, Tensor *of, const std::function<int()> &compute) {
    // A host says when it goes over to graphs of the driver's, and when it comes back. Its words are the only sign of it. Other
    // threads may say something meanwhile, also with our function and the host's data: only what this one says is heard, and no data
    // is looked at. Devices are tried one at a time.
    static struct {
        std::atomic<pthread_t> thread;
        int                    complete, reset;
    } heard;
    using Log = void (*)(int level, const char *text, void *user);
    Log log   = [](int, const char *text, void *) {
        if (heard.thread != pthread_self()) return;
        heard.complete += strstr(text, "CUDA graph warmup complete") != nullptr;
        heard.reset += strstr(text, "CUDA graph warmup reset") != nullptr;
    };
    const Symbols symbols(handle);
    void (*get)(Log *, void **);
    void (*set)(Log, void *);
    if (!symbols.get(get, "ggml_log_get") || !symbols.get(set, "ggml_log_set")) return false;
    Log   own  = nullptr;
    void *user = nullptr;
    get(&own, &user);
    heard.thread = pthread_self();
    set(log, user);
    struct Quiet { // whatever happens, the host's log is its own again
        void (*set)(Log, void *);
        Log   own;
        void *user;
        ~Quiet() {
            set(own, user);
            heard.thread = pthread_t{};
        }
    } const quiet{set, own, user};
    bool       proven = true;
    const auto hears  = [&](int complete, int reset) {
        heard.complete = heard.reset = 0;
        proven                       = proven && compute() == 0 && heard.complete == complete && heard.reset == reset;
    };
    constexpr int kUnused = 12; // of the words of parameters that a FLASH_ATTN_EXT has
    hears(0, 0);                // the first time
    hears(1, 0);                // the second one
    hears(0, 0);
    of->op_params[kUnused] ^= 1;
    hears(0, 1); // it has changed
    of->op_params[kUnused] ^= 1;
    hears(0, 0); // once more
    of->op_params[kUnused] ^= 1;
    hears(0, 0);
    of->op_params[kUnused] ^= 1;
    return proven;
}

Unlike::Unlike(const Host &host, Tensor *node) : node_(node), op_(node->op), params_{node->op_params[12], node->op_params[13]} {
    static std::atomic<uint64_t> last{0};
    const uint64_t               serial = ++last;
    node->op                            = host.none;
    node->op_params[12]                 = static_cast<int32_t>(serial);
    node->op_params[13]                 = static_cast<int32_t>(serial >> 32) ^ 0x4c494d00;
}

Unlike::~Unlike() {
    node_->op = op_;
    memcpy(&node_->op_params[12], params_, sizeof params_);
}

} // namespace lim::ggml
