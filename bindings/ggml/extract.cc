#include "extract.h"

#include <cstdlib>
#include <cstring>

#include "checks.h"
#include "transfers.h"
#include "weights.h"

namespace lim::ggml {
namespace {

bool is_empty(const Tensor *t) { return t->ne[0] == 0 || t->ne[1] == 0 || t->ne[2] == 0 || t->ne[3] == 0; }

// The ROPE that a tensor comes from, through a few temporaries.
const Tensor *rope_behind(const Host &host, const Tensor *t, int depth) {
    if (t == nullptr || depth == 0) return nullptr;
    if (t->op == host.rope) return t;
    const Tensor *found = rope_behind(host, t->src[0], depth - 1);
    return found != nullptr || t->src[1] == t ? found : rope_behind(host, t->src[1], depth - 1);
}

// Steps from a store's rewritten rows back to their rotation, and from there to the store: a copy, and a reshape, a
// product and a reshape for keys that are kept rotated.
constexpr int kSteps = 6;

// Fills the call's tensor; the token, head and stream dimensions are given by their numbers.
lim_cpu_tensor tensor_of(const Tensor *t, int token, int head, int stream) {
    return {t->data, static_cast<int64_t>(t->nb[token]), static_cast<int64_t>(t->nb[head]), static_cast<int64_t>(t->nb[stream]),
            kernel_type(t->type)};
}

} // namespace

Extract::~Extract() {
    if (memory == Memory::kDevice) leave_transfers(this);
}

lim_ggml_store Extract::described(const Tensor *store) {
    lim_ggml_store s = stores.describe(store);
    if (memory == Memory::kHost) return s;
    if (store->buffer != seen_buffer) {
        seen_buffer = store->buffer;
        seen        = is_watched(store);
    }
    if (!seen) s.stride = 0;
    return s;
}

const Tensor *Extract::store_of(const Host &host, const Tensor *key) {
    const Tensor *store = stores.attended(key);
    for (Tensor *&t : unclear) {
        if (store == nullptr || t == nullptr || t->view_src != store) continue;
        read_store(host, t);
        t = nullptr;
    }
    return store;
}

const Tensor *Extract::store_behind(const Tensor *t, int depth) const {
    if (t == nullptr || depth == 0) return nullptr;
    if (stores.layer_of(root_of(t)) >= 0) return root_of(t);
    const Tensor *found = store_behind(t->src[0], depth - 1);
    return found != nullptr || t->src[1] == t ? found : store_behind(t->src[1], depth - 1);
}

const void *Extract::input(const Host &host, const Tensor *t) {
    if (!is_leaf(t, host.none) || t->data == nullptr) return nullptr;
    return memory == Memory::kHost ? t->data : given(t).data;
}

const Uploaded &Extract::given(const Tensor *t) {
    for (const Given &g : inputs) {
        if (g.of == t) return g.is;
    }
    inputs.push_back({t, uploaded(t)});
    return inputs.back().is;
}

// A mask's values, as they were put on the device.
void Extract::describe_scan(const Tensor *scan, lim_ggml_node &n) {
    const Uploaded &is = given(scan);
    n.scan             = is.data;
    n.upload           = is.serial;
    n.before           = is.before;
    n.upload_before    = is.serial_before;
}

// Describes what a node sees of its store: the layers of a model are told apart by that, also those that the kernels do
// not take. Returns why the mask is one that they do not, or LIM_GGML_OFFLOADED.
int Extract::describe_mask(const Host &host, const Tensor *t, lim_ggml_node &n) {
    const Tensor *mask   = t->src[3];
    const int64_t tokens = t->src[0]->ne[1], streams = t->src[0]->ne[3], n_kv = t->src[1]->ne[1];
    if (n_kv < 1 || n_kv > INT32_MAX || tokens < 1 || streams < 1 || tokens > INT32_MAX / streams) return LIM_GGML_SHAPE;
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
    n.scan_type = kernel_type(scan->type);
    n.scan      = scan->data;
    scanned     = scan;
    if (memory == Memory::kDevice) describe_scan(scan, n);
    n.scan_token_stride  = static_cast<int64_t>(scan->nb[1]);
    n.scan_stream_stride = scan->ne[3] == 1 ? 0 : static_cast<int64_t>(scan->nb[3]);
    return LIM_GGML_OFFLOADED;
}

// Finds out which stream of the store a node's first one is. Returns why the host has to keep it, or LIM_GGML_OFFLOADED.
int Extract::find_stream(const Tensor *key, const Tensor *store, lim_ggml_node &n) const {
    const int64_t offset = static_cast<const char *>(key->data) - static_cast<const char *>(store->data);
    const int64_t stream = static_cast<int64_t>(stores.stream_stride(store)), streams = n.store.streams;
    if (store->data == nullptr || offset < 0 || stream <= 0 || (streams > 1 ? offset % stream != 0 || offset / stream + n.streams > streams : offset != 0 || n.streams > 1)) {
        return refuse(n, LIM_GGML_SHAPE, "offset into the K store", offset, "a whole number of streams is supported");
    }
    n.first_stream = streams > 1 ? static_cast<int32_t>(offset / stream) : 0;
    return LIM_GGML_OFFLOADED;
}

// Describes a FLASH_ATTN_EXT node. Returns why the host has to keep it, or LIM_GGML_OFFLOADED.
int Extract::describe(const Host &host, Tensor *t, lim_ggml_node &n) {
    const Tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *sinks = t->src[4];
    n.layer = -1;
    if (q == nullptr || k == nullptr || v == nullptr) return refuse(n, LIM_GGML_SHAPE, "inputs of attention", 0, "a query, keys and values are supported");
    const Tensor *store  = store_of(host, k);
    const int     masked = describe_mask(host, t, n);
    n.layer              = store != nullptr ? stores.layer_of(store) : -1;
    if (n.layer < 0 && memory == Memory::kDevice && k->view_src != nullptr && k->view_src->op == host.none) {
        return refuse(n, LIM_GGML_NO_CACHE, "on a GPU, a K store of another name than llama.cpp's (cache_k_l0), of slots", k->view_src->ne[1],
                      "on the CPU any is supported");
    }
    // The scheduler names its copies so: it moves the keys to the device that computes the attention.
    if (n.layer < 0 && is_leaf(k, host.none) && strstr(k->name, "#cache_k_l") != nullptr) {
        return refuse(n, LIM_GGML_NO_CACHE, "attention on another device than its K/V cache, which the host copies there at every step, of tokens", k->ne[1],
                      "the host does so for shapes that its GPU backend does not compute, and with --no-kv-offload");
    }
    if (n.layer < 0) return LIM_GGML_NO_CACHE;
    n.store = described(store);
    if (k->view_src != store) return LIM_GGML_NO_CACHE; // but a layer, all the same
    if (v->view_src == store) return LIM_GGML_MLA;
    if (const int reason = check_types(host, t, n); reason != LIM_GGML_OFFLOADED) return reason;
    if (const int reason = check_shape(t, n); reason != LIM_GGML_OFFLOADED) return reason;
    if (masked != LIM_GGML_OFFLOADED) { // by a mask that the graph makes itself: the checks above name what else it may be
        return refuse(n, masked, "mask made in the graph, of tokens", t->src[3]->ne[0], "one that is there before the graph runs is supported");
    }
    const int64_t dim_k = q->ne[0], heads = q->ne[2], dim_v = v->ne[0], kv_heads = k->ne[2];
    if (t->op_params[4] > 0) return LIM_GGML_SPARSE_HINT;

    if (const int reason = find_stream(k, store, n); reason != LIM_GGML_OFFLOADED) return reason;

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
    return LIM_GGML_OFFLOADED;
}

void Extract::find_operations(const Host &host) {
    ops = {-1, -1, -1, -1, -1, -1, -1, -1};
    const struct {
        const char *name;
        int        *number;
    } wanted[] = {{"GET_ROWS", &ops.get_rows}, {"CPY", &ops.cpy}, {"VIEW", &ops.view}, {"RESHAPE", &ops.reshape}, {"PERMUTE", &ops.permute}, {"TRANSPOSE", &ops.transpose}, {"MUL_MAT", &ops.mul_mat}, {"MUL_MAT_ID", &ops.mul_mat_id}};
    // The host's names end with its own count, which is not told; those of proven operations come before it.
    const int known[] = {host.flash_attn, host.custom, host.set_rows, host.rope, host.soft_max};
    int       last    = 0;
    for (int number : known) last = number > last ? number : last;
    for (int number = 0; number <= last; number++) {
        const char *name = host.op_name(number);
        for (const auto &w : wanted) {
            if (name != nullptr && strcmp(name, w.name) == 0) *w.number = number;
        }
    }
    for (int number : {host.none, ops.view, ops.reshape, ops.permute, ops.transpose, ops.mul_mat, ops.mul_mat_id}) {
        if (number >= 0 && number < kMostOps) passed_over[number] = true;
    }
    ops_known = true;
}

// Which upload's slots were written to a store last; 0: none.
uint64_t *Extract::last_slots(uint64_t store) {
    for (auto &of : slots_of) {
        if (of.first == store) return &of.second;
    }
    slots_of.emplace_back(store, 0);
    return &slots_of.back().second;
}

// A write of a batch's keys, one row to a slot.
void Extract::read_write(const Host &host, const Tensor *t) {
    const Tensor *slots = t->src[1], *rows = t->src[0], *store = t->view_src;
    const void   *data  = input(host, slots);
    bool          plain = data != nullptr && (slots->type == kI64 || slots->type == kI32) && rows != nullptr &&
                          t->ne[0] == stores.width(store) && rows->ne[0] == t->ne[0] && rows->ne[1] == slots->ne[0] &&
                          slots->ne[1] == 1 && slots->ne[2] == 1 && slots->ne[3] == 1 && rows->ne[2] == 1 && rows->ne[3] == 1 && slots->ne[0] >= 0 &&
                          slots->ne[0] <= INT32_MAX;
    if (plain && memory == Memory::kDevice) { // the same slots again would be an older batch's
        const uint64_t serial = given(slots).serial;
        uint64_t      *last   = last_slots(stores.describe(store).id);
        plain                 = *last != serial;
        *last                 = serial;
    }
    if (!plain) {
        rewritten.push_back(stores.describe(store).id);
        return;
    }
    writes.push_back({described(store), data, slots->type == kI64, static_cast<int32_t>(slots->ne[0])});
    this->slots.push_back(slots);
}

// A K-shift: what a store holds is rotated by each slot's delta and put back. False: it is not that.
bool Extract::read_shift(const Host &host, const Tensor *rope, const Tensor *store) {
    if (rope == nullptr || store_behind(rope->src[0], kSteps) != store) return false;
    const Tensor        *delta = rope->src[1];
    const void          *data  = input(host, delta);
    const lim_ggml_store s     = stores.describe(store);
    if (data == nullptr || delta->type != kI32 || delta->ne[0] < 0 || delta->ne[0] > INT32_MAX || s.streams < 1 || delta->ne[0] % s.streams != 0 ||
        delta->ne[0] / s.streams != s.slots) {
        return false;
    }
    shifts.push_back({s.id, static_cast<const int32_t *>(data), static_cast<int32_t>(delta->ne[0])});
    return true;
}

// A node whose result lies in a K store.
void Extract::read_store(const Host &host, const Tensor *t) {
    if (is_view(t)) return;
    if (t->op == host.set_rows) {
        read_write(host, t);
        return;
    }
    const Tensor *rope = t->op == host.rope ? t : t->op == ops.cpy ? rope_behind(host, t->src[0], kSteps)
                                                                   : nullptr;
    if (!read_shift(host, rope, t->view_src)) rewritten.push_back(stores.describe(t->view_src).id);
}

// What a ROPE outside a K-shift rotates by. All of a graph's must agree, or they are not the batch's positions.
void Extract::read_positions(const Host &host, const Tensor *from) {
    graph.n_rotations++;
    const void *data = positions != nullptr && positions == from ? positions_data : input(host, from);
    if (data == nullptr || from->type != kI32 || from->ne[0] < 0 || from->ne[0] > INT32_MAX || (positions != nullptr && positions != from)) {
        several_positions = true;
        return;
    }
    positions      = from;
    positions_data = data;
}

// Rows that a graph picks from what it has computed, by an input: those whose logits are wanted.
void Extract::read_outputs(const Host &host, const Tensor *t) {
    const Tensor *from = t->src[0], *numbers = t->src[1];
    if (from == nullptr || numbers == nullptr || numbers->type != kI32 || !is_leaf(numbers, host.none) ||
        root_of(from)->op == host.none) {
        return;
    }
    const void *data = numbers == outputs ? outputs_data : numbers->ne[0] > 0 ? input(host, numbers)
                                                                              : nullptr;
    if ((data == nullptr && numbers->ne[0] > 0) || numbers->ne[0] < 0 || from->ne[1] > INT32_MAX || numbers->ne[0] > from->ne[1] ||
        (outputs != nullptr && (outputs != numbers || graph.n_batch != from->ne[1]))) {
        several_outputs = true;
        return;
    }
    outputs       = numbers;
    outputs_data  = data;
    graph.n_batch = static_cast<int32_t>(from->ne[1]);
}

void Extract::read_node(const Host &host, Tensor *t, int place, bool flagged, bool hash) {
    if (!hash && t->op >= 0 && t->op < kMostOps && passed_over[t->op]) return;
    if (flagged && (t->flags & kFlagCompute) == 0) return;
    read_weights(host, t, memory, hash, t->op == ops.mul_mat || t->op == ops.mul_mat_id, graph);
    if (t->op == host.flash_attn) {
        lim_ggml_node node = {};
        scanned            = nullptr;
        node.reason        = describe(host, t, node);
        nodes.push_back(node);
        masks.push_back(scanned);
        tensors.push_back(t);
        places.push_back(place);
    } else if (t->op == host.soft_max && t->src[1] != nullptr) {
        graph.n_soft_max++;
    } else if (stores.layer_of(t->view_src) >= 0) {
        read_store(host, t);
    } else if (t->view_src != nullptr && !is_view(t) && stores.written(t->view_src)) {
        unclear.push_back(t);
    } else if (t->op == host.rope) { // a K-shift's may go through temporaries, and is not by the batch's positions
        if (t->src[1] == positions || store_behind(t->src[0], kSteps) == nullptr) read_positions(host, t->src[1]);
    } else if (t->op == ops.get_rows) {
        read_outputs(host, t);
    }
}

// An attention of several rows can be left to the host in part if a node behind it computes nothing: ours takes that one's
// place, while the host's own computes the rest. What reads the attention's rows comes later than both, or is that node.
void Extract::find_spares(const Host &host, bool flagged) {
    spares.assign(nodes.size(), nullptr);
    if (memory == Memory::kDevice) { // its graph is computed in parts anyway: ours comes behind the host's
        for (lim_ggml_node &n : nodes) {
            if (n.reason == LIM_GGML_OFFLOADED && n.tokens * n.streams > 1) n.divides = LIM_GGML_OVERLAID;
        }
        return;
    }
    if (!host.indivisible.empty()) return;
    for (size_t i = 0; i < nodes.size(); i++) {
        const size_t   next = static_cast<size_t>(places[i]) + 1;
        lim_ggml_node &n    = nodes[i];
        if (n.reason != LIM_GGML_OFFLOADED || n.tokens * n.streams < 2 || next >= all.size()) continue;
        Tensor *t = all[next];
        if (!is_view(t)) continue;
        if ((flagged && (t->flags & kFlagCompute) == 0) || is_empty(t)) continue; // the host passes over it
        spares[i] = t;
        n.divides = LIM_GGML_DIVIDED;
    }
}

// Most backends serve one model as long as they live. An RPC server's serve one client after another, whose models may have the
// same layers in the same places: a weight that is another one than it was under its name tells them apart.
void Extract::tell_models(const Host &host) {
    constexpr size_t kMost = 8;
    Witness          seen;
    if (memory != Memory::kHost || !find_witness(host, all, ops.mul_mat, &seen)) return;
    for (const auto &w : witnesses) {
        if (w.first != seen.name) continue;
        if (w.second == seen.content) return;
        witnesses.clear();
        models++;
        break;
    }
    if (witnesses.size() < kMost) witnesses.emplace_back(seen.name, seen.content);
}

void Extract::read(const Host &host, Graph *from, Memory of, bool hash) {
    memory = of;
    nodes.clear();
    tensors.clear();
    places.clear();
    masks.clear();
    slots.clear();
    writes.clear();
    shifts.clear();
    rewritten.clear();
    inputs.clear();
    unclear.clear();
    stores.begin(host, of == Memory::kDevice);
    seen_buffer       = nullptr;
    graph             = {};
    graph.first_block = -1;
    positions = outputs = nullptr;
    positions_data = outputs_data = nullptr;
    several_positions = several_outputs = false;
    if (!ops_known) find_operations(host);
    const int n = host.graph_n_nodes(from);
    // Hosts that know the flag set it on what is to be computed; older ones set it nowhere.
    bool flagged = false;
    for (int i = 0; i < n && !flagged; i++) flagged = (host.graph_node(from, i)->flags & kFlagCompute) != 0;

    // A step of a few milliseconds may have thousands of nodes, and waits for this: they are fetched some nodes ahead.
    constexpr int kAhead = 8;
    all.resize(static_cast<size_t>(n));
    for (int i = 0; i < n + kAhead; i++) {
        if (i < n) {
            all[static_cast<size_t>(i)] = host.graph_node(from, i);
            __builtin_prefetch(&all[static_cast<size_t>(i)]->op);
            __builtin_prefetch(&all[static_cast<size_t>(i)]->view_src);
        }
        if (i < kAhead) continue;
        read_node(host, all[static_cast<size_t>(i - kAhead)], i - kAhead, flagged, hash);
    }
    find_spares(host, flagged);
    if (!nodes.empty()) tell_models(host);
    graph.adapters += models * 0x9e3779b97f4a7c15;
    graph.n_outputs = -1;
    if (of == Memory::kDevice) {
        nodes_read = nodes;
        graph_read = graph;
    }
    complete();
}

// Completes the description by what may lie elsewhere the next time.
void Extract::complete() {
    graph.nodes       = nodes.data();
    graph.writes      = writes.data();
    graph.shifts      = shifts.data();
    graph.rewritten   = rewritten.data();
    graph.n_nodes     = static_cast<int32_t>(nodes.size());
    graph.n_writes    = static_cast<int32_t>(writes.size());
    graph.n_shifts    = static_cast<int32_t>(shifts.size());
    graph.n_rewritten = static_cast<int32_t>(rewritten.size());
    if (positions != nullptr && !several_positions) {
        graph.positions   = static_cast<const int32_t *>(positions_data);
        graph.n_positions = static_cast<int32_t>(positions->ne[0]);
    }
    if (outputs != nullptr && !several_outputs) {
        graph.outputs   = static_cast<const int32_t *>(outputs_data);
        graph.n_outputs = static_cast<int32_t>(outputs->ne[0]);
    }
}

bool Extract::read_inputs() {
    if (memory != Memory::kDevice || !shifts.empty() || !rewritten.empty() || several_positions || several_outputs) return false;
    inputs.clear();
    const auto is_there = [&](const Tensor *t) { return t == nullptr || t->ne[0] == 0 || given(t).data != nullptr; };
    bool       all_are  = is_there(positions) && is_there(outputs);
    for (size_t i = 0; i < writes.size() && all_are; i++) {
        all_are = is_there(slots[i]) && *last_slots(writes[i].store.id) != given(slots[i]).serial;
    }
    if (!all_are) return false;
    graph = graph_read;
    nodes = nodes_read;
    for (size_t i = 0; i < nodes.size(); i++) {
        if (masks[i] != nullptr) describe_scan(masks[i], nodes[i]);
    }
    for (size_t i = 0; i < writes.size(); i++) {
        const Uploaded &is              = given(slots[i]);
        writes[i].slots                 = is.data;
        *last_slots(writes[i].store.id) = is.serial;
    }
    if (positions != nullptr) positions_data = given(positions).data;
    if (outputs != nullptr && outputs->ne[0] > 0) outputs_data = given(outputs).data;
    complete();
    return true;
}

void Extract::read_changes() {
    graph_writes(this, writes);
    const bool all  = changes_since(this, changes, prints);
    graph.lost      = all && !missed ? 0 : 1;
    missed          = false;
    graph.changes   = changes.data();
    graph.n_changes = static_cast<int64_t>(changes.size());
}

void Extract::follow() const { tell_rows(this, graph.followed, graph.mixes != 0); }

void Extract::note() const {
    for (int64_t k = 0; k < graph.n_notes; k++) lim_cpu_prints_note(&graph.notes[k].prints, graph.notes[k].slots, graph.notes[k].n);
}

} // namespace lim::ggml
