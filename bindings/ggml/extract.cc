#include "extract.h"

#include <cstdlib>
#include <cstring>

#include "checks.h"
#include "weights.h"

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

// Describes what a node sees of its store: the layers of a model are told apart by that, also those that the kernels do
// not take. Returns why the mask is one that they do not, or LIM_GGML_TAKEN.
int describe_mask(const Host &host, const Tensor *t, lim_ggml_node &n) {
    const Tensor *mask = t->src[3];
    const int64_t tokens = t->src[0]->ne[1], streams = t->src[0]->ne[3], n_kv = t->src[1]->ne[1];
    if (n_kv < 1 || n_kv > INT32_MAX || tokens * streams > INT32_MAX) return LIM_GGML_SHAPE;
    n.tokens  = static_cast<int32_t>(tokens);
    n.streams = static_cast<int32_t>(streams);
    n.n_kv    = static_cast<int32_t>(n_kv);
    if (mask == nullptr || mask->type != kF16) return LIM_GGML_TYPE;
    n.mask               = mask->data;
    n.mask_token_stride  = static_cast<int64_t>(mask->nb[1]);
    n.mask_stream_stride = mask->ne[3] == 1 ? 0 : static_cast<int64_t>(mask->nb[3]);
    if (mask->nb[0] != 2 || mask->ne[0] != n_kv || mask->ne[1] < tokens || mask->ne[2] != 1 || (mask->ne[3] != streams && mask->ne[3] != 1)) {
        return LIM_GGML_SHAPE;
    }
    // The plan reads the mask before the graph runs. Older hosts convert it inside the graph; its
    // source is there already.
    const Tensor *scan = mask;
    if (mask->op != host.none) {
        scan = mask->src[0];
        if (scan == nullptr || scan->type != kF32 || scan->op != host.none || scan->nb[0] != 4 || scan->ne[0] != mask->ne[0] ||
            scan->ne[1] != mask->ne[1] || scan->ne[3] != mask->ne[3]) {
            return LIM_GGML_SHAPE;
        }
    }
    n.scan_type          = kernel_type(scan->type);
    n.scan               = scan->data;
    n.scan_token_stride  = static_cast<int64_t>(scan->nb[1]);
    n.scan_stream_stride = scan->ne[3] == 1 ? 0 : static_cast<int64_t>(scan->nb[3]);
    return LIM_GGML_TAKEN;
}

// The K store whose rows the host converts for an attention; null: its keys are not those of a store.
const Tensor *converted_store(const Tensor *key) {
    for (int depth = 0; key != nullptr && depth < 3; depth++, key = key->src[0]) {
        if (key->view_src != nullptr && layer_of(key->view_src) >= 0) return key->view_src;
    }
    return nullptr;
}

// Describes a FLASH_ATTN_EXT node. Returns why the host has to keep it, or LIM_GGML_TAKEN.
int describe(const Host &host, Tensor *t, lim_ggml_node &n) {
    const Tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *sinks = t->src[4];
    const Tensor *store  = converted_store(k);
    const int     masked = describe_mask(host, t, n);
    n.layer = layer_of(store);
    if (n.layer < 0) return LIM_GGML_NO_CACHE;
    n.store = store_of(store);
    if (k->view_src != store) return LIM_GGML_NO_CACHE; // but a layer, all the same
    if (v->view_src == store) return LIM_GGML_MLA;
    if (const int reason = check_types(host, t, n); reason != LIM_GGML_TAKEN) return reason;
    if (const int reason = check_shape(t, n); reason != LIM_GGML_TAKEN) return reason;
    if (masked != LIM_GGML_TAKEN) { // by a mask that the graph makes itself: the checks above name what else it may be
        return refuse(n, masked, "mask made in the graph, of tokens", t->src[3]->ne[0], "one that is there before the graph runs is taken");
    }
    const int64_t dim_k = q->ne[0], heads = q->ne[2], dim_v = v->ne[0], kv_heads = k->ne[2];
    if (t->op_params[4] > 0) return LIM_GGML_SPARSE_HINT;

    // Which stream of the store the node's first one is.
    const int64_t offset = static_cast<const char *>(k->data) - static_cast<const char *>(store->data);
    const int64_t stride = static_cast<int64_t>(store->nb[2]);
    if (store->data == nullptr || offset < 0 || (store->ne[2] > 1 ? offset % stride != 0 : offset != 0)) {
        return refuse(n, LIM_GGML_SHAPE, "offset into the K store", offset, "a whole number of streams is taken");
    }
    n.first_stream = store->ne[2] > 1 ? static_cast<int32_t>(offset / stride) : 0;

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

} // namespace

void Extract::read(const Host &host, Graph *from, Memory memory, bool hash) {
    nodes.clear();
    tensors.clear();
    places.clear();
    writes.clear();
    shifts.clear();
    graph = {};
    graph.first_block = -1;
    const int n = host.graph_n_nodes(from);
    // Hosts that know the flag set it on what is to be computed; older ones set it nowhere.
    bool flagged = false;
    for (int i = 0; i < n && !flagged; i++) flagged = (host.graph_node(from, i)->flags & kFlagCompute) != 0;

    for (int i = 0; i < n; i++) {
        Tensor *t = host.graph_node(from, i);
        if (flagged && (t->flags & kFlagCompute) == 0) continue;
        read_weights(host, t, memory, hash, graph);
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
