#include "extract.h"

#include <cstdlib>
#include <cstring>

#include "checks.h"

namespace lim::ggml {
namespace {

// "cache_k_l12" is the K store of layer 12. -1: not a K store.
int layer_of(const Tensor *store) {
    constexpr char   kPrefix[] = "cache_k_l";
    constexpr size_t kLength   = sizeof kPrefix - 1;
    if (store == nullptr || strncmp(store->name, kPrefix, kLength) != 0) return -1;
    char      *end;
    const long layer = strtol(store->name + kLength, &end, 10);
    return end != store->name + kLength && layer >= 0 && layer <= 4095 ? static_cast<int>(layer) : -1;
}

lim_ggml_store store_of(const Tensor *store) {
    return {reinterpret_cast<uint64_t>(store->data), store->ne[1], static_cast<int32_t>(store->ne[2])};
}

// Fills the call's tensor; the token, head and stream dimensions are given by their numbers.
lim_cpu_tensor tensor_of(const Tensor *t, int token, int head, int stream) {
    return {t->data, static_cast<int64_t>(t->nb[token]), static_cast<int64_t>(t->nb[head]), static_cast<int64_t>(t->nb[stream]),
            kernel_type(t->type)};
}

// Describes a FLASH_ATTN_EXT node. Returns why the host has to keep it, or LIM_GGML_TAKEN.
int describe(const Host &host, Tensor *t, lim_ggml_node &n) {
    const Tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *mask = t->src[3], *sinks = t->src[4];
    const Tensor *store = k->view_src;
    n.layer = layer_of(store);
    if (n.layer < 0) return LIM_GGML_NO_CACHE;
    n.store = store_of(store);
    if (v->view_src == store) return LIM_GGML_MLA;
    if (const int reason = check_types(host, t, n); reason != LIM_GGML_TAKEN) return reason;
    if (const int reason = check_shape(t, n); reason != LIM_GGML_TAKEN) return reason;
    const int64_t dim_k = q->ne[0], tokens = q->ne[1], heads = q->ne[2], streams = q->ne[3];
    const int64_t n_kv = k->ne[1], kv_heads = k->ne[2], dim_v = v->ne[0];
    if (t->op_params[4] > 0) return LIM_GGML_SPARSE_HINT;

    // Which stream of the store the node's first one is.
    const int64_t offset = static_cast<const char *>(k->data) - static_cast<const char *>(store->data);
    const int64_t stride = static_cast<int64_t>(store->nb[2]);
    if (store->data == nullptr || offset < 0 || (store->ne[2] > 1 ? offset % stride != 0 : offset != 0)) {
        return refuse(n, LIM_GGML_SHAPE, "offset into the K store", offset, "a whole number of streams is taken");
    }
    n.first_stream = store->ne[2] > 1 ? static_cast<int32_t>(offset / stride) : 0;

    // The plan reads the mask before the graph runs. Older hosts convert it inside the graph; its
    // source is there already.
    const Tensor *scan = mask;
    if (mask->op != host.none) {
        scan = mask->src[0];
        if (scan == nullptr || scan->type != kF32 || scan->op != host.none || scan->nb[0] != 4 || scan->ne[0] != mask->ne[0] ||
            scan->ne[1] != mask->ne[1] || scan->ne[3] != mask->ne[3]) {
            return refuse(n, LIM_GGML_SHAPE, "mask made in the graph, of tokens", mask->ne[0], "one that is there before the graph runs is taken");
        }
    }
    n.scan_type          = kernel_type(scan->type);
    n.scan               = scan->data;
    n.scan_token_stride  = static_cast<int64_t>(scan->nb[1]);
    n.scan_stream_stride = scan->ne[3] == 1 ? 0 : static_cast<int64_t>(scan->nb[3]);
    n.mask               = mask->data;
    n.mask_token_stride  = static_cast<int64_t>(mask->nb[1]);
    n.mask_stream_stride = mask->ne[3] == 1 ? 0 : static_cast<int64_t>(mask->nb[3]);
    n.tokens             = static_cast<int32_t>(tokens);
    n.streams            = static_cast<int32_t>(streams);
    n.n_kv               = static_cast<int32_t>(n_kv);

    float params[3]; // softmax scale, ALiBi's bias, logit soft-cap
    memcpy(params, t->op_params, sizeof params);
    n.max_bias      = params[1];
    n.call.query    = tensor_of(q, 1, 2, 3);
    n.call.key      = tensor_of(k, 1, 2, 3);
    n.call.value    = tensor_of(v, 1, 2, 3);
    n.call.output   = tensor_of(t, 2, 1, 3);
    n.call.heads    = static_cast<int32_t>(heads);
    n.call.kv_heads = static_cast<int32_t>(kv_heads);
    n.call.dim_k    = static_cast<int32_t>(dim_k);
    n.call.dim_v    = static_cast<int32_t>(dim_v);
    n.call.scale    = params[0];
    n.call.softcap  = params[2];
    n.call.sinks    = sinks == nullptr ? nullptr : static_cast<const float *>(sinks->data);
    return LIM_GGML_TAKEN;
}

// The K store that a tensor is made of, within a few steps: what a K-shift rotates.
const Tensor *shifted_store(const Tensor *t, int depth) {
    if (t == nullptr || depth == 0) return nullptr;
    if (t->view_src != nullptr && layer_of(t->view_src) >= 0) return t->view_src;
    const Tensor *found = shifted_store(t->src[0], depth - 1);
    return found != nullptr ? found : shifted_store(t->src[1], depth - 1);
}

// Tells one model's weights from another's of the same shape: their names and shapes, and a few bytes of
// each. What a graph on the CPU multiplies with lies where the CPU can read it.
uint64_t hash_weight(const Tensor *t) {
    constexpr size_t kSample = 64;
    uint64_t         hash    = 0xcbf29ce484222325; // FNV-1a
    auto             take    = [&hash](const void *from, size_t n) {
        for (size_t i = 0; i < n; i++) hash = (hash ^ static_cast<const uint8_t *>(from)[i]) * 0x100000001b3;
    };
    take(t->name, strnlen(t->name, sizeof t->name));
    take(&t->type, sizeof t->type);
    take(t->ne, sizeof t->ne);
    const size_t bytes = t->nb[3] * static_cast<size_t>(t->ne[3]);
    if (t->data != nullptr && bytes >= 2 * kSample) {
        take(t->data, kSample);
        take(static_cast<const char *>(t->data) + bytes / 2 / kSample * kSample, kSample);
    }
    return hash;
}

bool is_weight(const Host &host, const Tensor *t) {
    constexpr char kSuffix[] = ".weight";
    if (t == nullptr || t->op != host.none || t->view_src != nullptr) return false;
    const size_t n = strnlen(t->name, sizeof t->name), k = sizeof kSuffix - 1;
    return n > k && memcmp(t->name + n - k, kSuffix, k) == 0;
}

} // namespace

void Extract::read(const Host &host, Graph *from, Memory memory, bool hash) {
    nodes.clear();
    tensors.clear();
    places.clear();
    writes.clear();
    shifts.clear();
    graph = {};
    const int n = host.graph_n_nodes(from);
    // Hosts that know the flag set it on what is to be computed; older ones set it nowhere.
    bool flagged = false;
    for (int i = 0; i < n && !flagged; i++) flagged = (host.graph_node(from, i)->flags & kFlagCompute) != 0;

    for (int i = 0; i < n; i++) {
        Tensor *t = host.graph_node(from, i);
        if (flagged && (t->flags & kFlagCompute) == 0) continue;
        for (int s = 0; hash && s < 2; s++) {
            if (is_weight(host, t->src[s])) graph.weights += hash_weight(t->src[s]);
        }
        if (t->op == host.flash_attn) {
            lim_ggml_node node = {};
            node.reason        = describe(host, t, node);
            nodes.push_back(node);
            tensors.push_back(t);
            places.push_back(i);
        } else if (t->op == host.soft_max && t->src[1] != nullptr) {
            graph.n_soft_max++;
        } else if (memory == Memory::kDevice) {
            continue; // slots and positions are not to be had without waiting for the device
        } else if (t->op == host.set_rows) {
            const Tensor *slots = t->src[1];
            if (layer_of(t->view_src) < 0 || slots == nullptr || slots->data == nullptr || (slots->type != kI64 && slots->type != kI32)) continue;
            if ((slots->view_src != nullptr ? slots->view_src : slots)->op != host.none) continue; // computed in the graph: not there yet
            writes.push_back({store_of(t->view_src), slots->data, slots->type == kI64, static_cast<int32_t>(slots->ne[0])});
        } else if (t->op == host.rope) {
            const Tensor *positions = t->src[1];
            if (positions == nullptr || positions->type != kI32 || positions->op != host.none || positions->data == nullptr) continue;
            const Tensor *store = shifted_store(t->src[0], 5);
            const auto   *values = static_cast<const int32_t *>(positions->data);
            const auto    count  = static_cast<int32_t>(positions->ne[0]);
            if (store != nullptr && positions->ne[0] == store->ne[1] * store->ne[2]) {
                shifts.push_back({store_of(store).id, values, count});
            } else if (graph.positions == nullptr) {
                graph.positions   = values;
                graph.n_positions = count;
            }
        }
    }
    graph.nodes    = nodes.data();
    graph.writes   = writes.data();
    graph.shifts   = shifts.data();
    graph.n_nodes  = static_cast<int32_t>(nodes.size());
    graph.n_writes = static_cast<int32_t>(writes.size());
    graph.n_shifts = static_cast<int32_t>(shifts.size());
}

} // namespace lim::ggml
