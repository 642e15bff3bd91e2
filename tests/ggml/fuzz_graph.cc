// The hook against graphs that no host ought to build: a grammar of what hosts build, then mutated.
//
// Bytes are a host's decisions: its model, the graphs that it computes one after another, and what is wrong with them. The
// hook reads each graph, takes of it what the bytes say, and has to leave it as it was. What it describes as fit for the
// kernels is looked at: nothing of it may lie outside the tensors that it is of.
//
// With clang's -fsanitize=fuzzer this is a target of libFuzzer; else (fuzz_seeds.cc) it is run with files and random bytes.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>

#include "abi.h"
#include "shim.h"

using lim::ggml::Tensor;

namespace {

// Numbers of operations and types, as in fake.h.
enum { kNone = 0,
       kCpy = 1,
       kAdd = 2,
       kRope = 3,
       kMulMat = 4,
       kSoftMax = 5,
       kScale = 6,
       kReshape = 7,
       kSetRows = 8,
       kCustom = 9,
       kFlash = 12 };
constexpr int kTypes[] = {lim::ggml::kF16, lim::ggml::kF16, lim::ggml::kF16, lim::ggml::kBF16, lim::ggml::kF32, lim::ggml::kQ8_0, lim::ggml::kQ4_0, 7};

void require(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fuzz_graph: %s\n", what);
    abort();
}

// Decisions, as long as there are any; then zeros.
class Bytes {
  public:
    Bytes(const uint8_t *data, size_t size) : data_(data), size_(size) {}
    uint8_t  byte() { return size_ == 0 ? 0 : (size_--, *data_++); }
    int      below(int n) { return byte() % n; }
    bool     one_in(int n) { return byte() % n == 1; }
    uint64_t word() {
        uint64_t w = 0;
        for (int i = 0; i < 8; i++) w = w << 8 | byte();
        return w;
    }
    bool empty() const { return size_ == 0; }

  private:
    const uint8_t *data_;
    size_t         size_;
};

// Memory that tensors say they lie in. What they say of its size may be wrong; so much of it can be read.
constexpr size_t kRoom = size_t{1} << 32;
char            *room() {
    static thread_local char *r = static_cast<char *>(mmap(nullptr, 2 * kRoom, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return r;
}

constexpr size_t kMostTensors = 512;
struct Host {
    Tensor                tensors[kMostTensors];
    Tensor                before[kMostTensors];
    size_t                n = 0;
    size_t                used = 0;
    std::vector<Tensor *> nodes;
    void                **buffer = nullptr; // on the GPU
    uint64_t              taken = 0; // a bit for each attention that the plan takes
    int                   offloaded = 0;

    Tensor *tensor(int type, int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1) {
        Tensor &t = tensors[n < kMostTensors ? n++ : kMostTensors - 1];
        t = {};
        t.type = type;
        const int64_t ne[4] = {a, b, c, d};
        t.nb[0] = type == lim::ggml::kI64 ? 8 : type == lim::ggml::kF32 || type == lim::ggml::kI32 ? 4
                                          : type == lim::ggml::kQ8_0                               ? 34
                                          : type == lim::ggml::kQ4_0                               ? 18
                                                                                                   : 2;
        const bool blocks = type == lim::ggml::kQ8_0 || type == lim::ggml::kQ4_0;
        for (int i = 0; i < 4; i++) {
            t.ne[i] = ne[i];
            if (i > 0) t.nb[i] = t.nb[i - 1] * static_cast<size_t>(i == 1 && blocks ? ne[0] / 32 : ne[i - 1]);
        }
        t.data = room() + used;
        t.buffer = buffer;
        used += (t.nb[3] * static_cast<size_t>(d) + 255) / 256 * 256;
        return &t;
    }
    Tensor *view(Tensor *of, int64_t a, int64_t b, int64_t c, int64_t d, size_t nb1, size_t nb2, size_t nb3, size_t offset) {
        const size_t kept = used;
        Tensor      *t = tensor(of->type, a, b, c, d);
        used = kept;
        t->nb[1] = nb1, t->nb[2] = nb2, t->nb[3] = nb3;
        t->view_src = of->view_src != nullptr ? of->view_src : of;
        t->view_offs = offset;
        t->data = of->data != nullptr ? static_cast<char *>(of->data) + offset : nullptr;
        return t;
    }
    Tensor *node(int op, Tensor *t, Tensor *a = nullptr, Tensor *b = nullptr) {
        t->op = op, t->src[0] = a, t->src[1] = b;
        nodes.push_back(t);
        return t;
    }
    static void name(Tensor *t, const char *format, int number) { snprintf(t->name, sizeof t->name, format, number); }
};
thread_local Host host; // several threads are several hosts' contexts: fuzz_seeds.cc

// ---- what hosts build ----

struct Model {
    int     layers, dim, kv_heads, group, streams, type;
    int64_t slots;
    bool    by_heads;
    Tensor *key[4], *value[4], *weight[4];
};

Model make_model(Bytes &in) {
    constexpr int dims[] = {64, 64, 128, 32, 256, 16, 40, 576};
    Model         m;
    m.layers = 1 + in.below(4), m.dim = dims[in.below(8)], m.kv_heads = 1 + in.below(3), m.group = 1 + in.below(3);
    m.streams = 1 + in.below(3), m.type = kTypes[in.below(8)], m.slots = 8 << in.below(4), m.by_heads = in.one_in(4);
    constexpr const char *names[] = {"cache_k_l%d", "cache_k_l%d", "", "k.%d", "leaf_%d", "cache_k_l0%d"};
    const char           *name = names[in.below(6)];
    const int64_t         width = m.dim * m.kv_heads;
    for (int l = 0; l < m.layers; l++) {
        Tensor *both[2];
        for (Tensor *&t : both) t = m.by_heads ? host.tensor(m.type, m.dim, m.kv_heads, m.slots, m.streams) : host.tensor(m.type, width, m.slots, m.streams);
        m.key[l] = both[0], m.value[l] = both[1];
        Host::name(m.key[l], name, l);
        m.weight[l] = host.tensor(lim::ggml::kF16, 64, 64);
        if (!in.one_in(3)) Host::name(m.weight[l], in.one_in(4) ? "output.weight" : "blk.%d.attn_q.weight", l);
    }
    return m;
}

Tensor *rows_of(const Model &m, Tensor *store) {
    const size_t row = store->nb[m.by_heads ? 2 : 1];
    return host.view(store, m.dim * m.kv_heads, m.slots * m.streams, 1, 1, row, row * static_cast<size_t>(m.slots * m.streams),
                     row * static_cast<size_t>(m.slots * m.streams), 0);
}

void make_write(const Model &m, Bytes &in, Tensor *store, Tensor *slots) {
    Tensor *rows = host.tensor(lim::ggml::kF32, m.dim * m.kv_heads, slots->ne[0]);
    rows->op = kAdd;
    if (in.one_in(6)) {
        const size_t row = store->nb[m.by_heads ? 2 : 1];
        Tensor      *to = host.view(store, rows->ne[0] * rows->ne[1], 1, 1, 1, row * static_cast<size_t>(rows->ne[1]), row, row, row);
        host.node(kCpy, to, rows, to);
        return;
    }
    Tensor *to = rows_of(m, store);
    Tensor *node = host.view(to, to->ne[0], to->ne[1], 1, 1, to->nb[1], to->nb[2], to->nb[3], 0);
    host.node(kSetRows, node, rows, slots);
}

Tensor *heads_of(const Model &m, Bytes &in, Tensor *store, int64_t n_kv, int64_t streams) {
    const size_t row = store->nb[m.by_heads ? 2 : 1], head = row / static_cast<size_t>(m.kv_heads), all = row * static_cast<size_t>(m.slots);
    return host.view(store, m.dim, n_kv, m.kv_heads, streams, row, head, all, in.one_in(8) ? all * static_cast<size_t>(in.below(3)) : in.one_in(12) ? row
                                                                                                                                                    : 0);
}

void make_shift(const Model &m, Bytes &in) {
    Tensor *delta = host.tensor(lim::ggml::kI32, m.slots * m.streams - in.one_in(8));
    for (int l = 0; l < m.layers; l++) {
        Tensor *all = rows_of(m, m.key[l]);
        if (in.one_in(3)) {
            Tensor *copy = host.tensor(lim::ggml::kF32, all->ne[0], all->ne[1]);
            host.node(kCpy, copy, all, copy);
            Tensor *turned = host.tensor(lim::ggml::kF32, all->ne[0], all->ne[1]);
            host.node(kRope, turned, copy, delta);
            Tensor *back = host.view(all, all->ne[0], all->ne[1], 1, 1, all->nb[1], all->nb[2], all->nb[3], 0);
            host.node(kCpy, back, turned, all);
        } else {
            Tensor *back = host.view(all, all->ne[0], all->ne[1], 1, 1, all->nb[1], all->nb[2], all->nb[3], 0);
            host.node(kRope, back, all, delta);
        }
    }
}

void make_batch(const Model &m, Bytes &in) {
    const int64_t streams = in.one_in(3) ? m.streams : 1, tokens = 1 + in.below(4), n = tokens * streams, n_kv = in.one_in(3) ? m.slots / 2 : m.slots;
    Tensor       *slots = host.tensor(in.one_in(4) ? lim::ggml::kI32 : lim::ggml::kI64, n), *positions = host.tensor(lim::ggml::kI32, n * (in.one_in(6) ? 4 : 1));
    Tensor       *mask = host.tensor(lim::ggml::kF16, n_kv, in.one_in(2) ? 64 : tokens, 1, streams);
    if (in.one_in(4)) { // older hosts convert it
        Tensor *source = host.tensor(lim::ggml::kF32, n_kv, mask->ne[1], 1, streams);
        host.node(kCpy, mask, source, mask);
    }
    for (int l = 0; l < m.layers; l++) {
        Tensor *x = host.tensor(lim::ggml::kF32, 64, n);
        x->op = kAdd;
        Tensor *product = host.node(kMulMat, host.tensor(lim::ggml::kF32, 64, n), m.weight[l], x);
        host.node(kRope, host.tensor(lim::ggml::kF32, 64, n), product, positions);
        if (in.one_in(6)) {
            Tensor *b = host.tensor(lim::ggml::kF32, 64, 64);
            Host::name(b, "blk.%d.attn_q.weight.lora_b", l);
            Tensor *added = host.node(kMulMat, host.tensor(lim::ggml::kF32, 64, n), b, product);
            host.node(kScale, host.tensor(lim::ggml::kF32, 64, n), added)->op_params[0] = in.byte();
        }
        if (!in.one_in(8)) make_write(m, in, m.key[l], slots), make_write(m, in, m.value[l], slots);
        Tensor *query = host.view(host.tensor(lim::ggml::kF32, m.dim * m.kv_heads * m.group, n), m.dim, tokens, m.kv_heads * m.group, streams,
                                  4 * static_cast<size_t>(m.dim * m.kv_heads * m.group), 4 * static_cast<size_t>(m.dim),
                                  4 * static_cast<size_t>(m.dim * m.kv_heads * m.group * tokens), 0);
        Tensor *key = heads_of(m, in, m.key[l], n_kv, streams), *value = heads_of(m, in, in.one_in(16) ? m.key[l] : m.value[l], n_kv, streams);
        if (in.one_in(10)) {
            Tensor *soft = host.node(kSoftMax, host.tensor(lim::ggml::kF32, n_kv, tokens, m.kv_heads * m.group), key, mask);
            (void)soft;
            continue;
        }
        Tensor *node = host.node(kFlash, host.tensor(lim::ggml::kF32, m.dim, m.kv_heads * m.group, tokens, streams), query, key);
        node->src[2] = value, node->src[3] = mask;
        if (in.one_in(5)) node->src[4] = host.tensor(lim::ggml::kF32, m.kv_heads * m.group);
        const float params[] = {0.125f, in.one_in(6) ? 8.0f : 0.0f, 0};
        memcpy(node->op_params, params, sizeof params);
        node->op_params[4] = in.one_in(12);
        if (!in.one_in(3)) {
            host.node(kReshape, host.view(node, node->ne[0] * node->ne[1], tokens * streams, 1, 1, node->nb[2], node->nb[3], node->nb[3], 0), node);
        }
    }
}

// ---- what is wrong with them ----

int64_t odd(Bytes &in, int64_t was) {
    const int64_t far[] = {0, 1, -1, was + 1, was - 1, was * 2, was / 2, INT32_MAX, int64_t{INT32_MAX} + 1, INT64_MAX, INT64_MIN, int64_t{1} << 62, 16, 64, 256, 4096};
    const int     which = in.below(18);
    return which < 16 ? far[which] : static_cast<int64_t>(in.word());
}

void mutate(Bytes &in) {
    Tensor &t = host.tensors[(in.byte() << 8 | in.byte()) % (host.n > 0 ? host.n : 1)];
    Tensor *other = in.one_in(3) ? nullptr : &host.tensors[(in.byte() << 8 | in.byte()) % (host.n > 0 ? host.n : 1)];
    switch (in.below(12)) {
    case 0: t.type = static_cast<int32_t>(odd(in, t.type)); break;
    case 1:
    case 2: {
        int64_t &ne = t.ne[in.below(4)];
        ne = odd(in, static_cast<int32_t>(ne));
        break;
    }
    case 3:
    case 4: {
        size_t &nb = t.nb[in.below(4)];
        nb = static_cast<size_t>(odd(in, static_cast<int32_t>(nb)));
        break;
    }
    case 5: t.op = in.below(14); break;
    case 6: t.op_params[in.below(16)] = static_cast<int32_t>(odd(in, 1)); break;
    case 7: t.flags = in.byte(); break;
    case 8:
    case 9: t.src[in.below(10)] = other; break;
    case 10: t.view_src = other; break; // of itself, too
    case 11:
        if (in.one_in(2)) {
            t.data = in.one_in(2) || other == nullptr || other->data == nullptr ? nullptr : static_cast<char *>(other->data) + in.below(3);
        } else {
            memset(t.name, in.byte(), sizeof t.name); // without an end
        }
        break;
    }
}

// A tensor that lies by more than can be read has no memory: of a weight's samples a reader can but believe its size.
void bound() {
    for (size_t i = 0; i < host.n; i++) {
        Tensor  &t = host.tensors[i];
        __int128 bytes = 0;
        for (int d = 0; d < 4; d++) bytes += t.nb[d] > kRoom || t.ne[d] > int64_t{1} << 40 || t.ne[d] < -(int64_t{1} << 40) ? static_cast<__int128>(2 * kRoom) : static_cast<__int128>(t.nb[d]) * t.ne[d];
        const size_t claimed = t.nb[3] * static_cast<size_t>(t.ne[3]);
        if (bytes > static_cast<__int128>(kRoom) || claimed > kRoom || static_cast<char *>(t.data) > room() + kRoom) t.data = nullptr;
    }
}

// What a host moves to a GPU and from there, mostly its inputs.
void transfer(Bytes &in, const Model &m) {
    constexpr size_t                  kMost = 1 << 20;
    thread_local std::vector<uint8_t> source(kMost), sink(kMost);
    Tensor                           *t = in.one_in(2) ? m.key[in.below(m.layers)] : &host.tensors[(in.byte() << 8 | in.byte()) % host.n];
    Tensor                           *other = in.one_in(2) ? t : m.key[in.below(m.layers)];
    const size_t                      whole = t->nb[3] * static_cast<size_t>(t->ne[3]), row = t->nb[1] < kMost / 4 ? t->nb[1] : 1;
    const size_t                      offset = in.one_in(2) ? 0 : row * static_cast<size_t>(in.below(3)) + static_cast<size_t>(in.one_in(6)), n = in.one_in(3) ? row * static_cast<size_t>(in.below(3)) : whole;
    const auto                        is_there = [](const Tensor *of) { return of->data != nullptr && static_cast<char *>(of->data) < room() + kRoom; };
    if (n > kMost || !is_there(t)) return;
    switch (in.below(8)) {
    case 0: shim_get(t, sink.data(), offset, n); break;
    case 1: shim_memset(t, 0, offset, n); break;
    case 2:
        if (is_there(other) && whole <= kMost && other->nb[3] * static_cast<size_t>(other->ne[3]) <= kMost) shim_copy(t, other);
        break;
    case 3: shim_clear(host.buffer); break;
    default: shim_set(t, source.data(), offset, n); break;
    }
}

void upload_inputs(Bytes &in) {
    for (size_t i = 0; i < host.n; i++) {
        Tensor &t = host.tensors[i];
        if (t.op != kNone || t.view_src != nullptr || t.data == nullptr || t.name[0] != 0 || in.one_in(8)) continue;
        const size_t                      n = t.nb[3] * static_cast<size_t>(t.ne[3]);
        static const std::vector<uint8_t> zeros(1 << 16);
        if (n <= zeros.size()) shim_set(&t, zeros.data(), 0, n);
    }
}

// ---- what has to hold ----

// Bytes from a tensor's first to behind its last; false: too many to count.
bool reach(const lim_cpu_tensor &t, int64_t row, int64_t tokens, int64_t heads, int64_t streams, __int128 &end) {
    end = static_cast<__int128>(tokens - 1) * t.token_stride + static_cast<__int128>(heads - 1) * t.head_stride + static_cast<__int128>(streams - 1) * t.stream_stride + row;
    return t.token_stride >= 0 && t.head_stride >= 0 && t.stream_stride >= 0 && end < static_cast<__int128>(kRoom);
}

int64_t row_bytes(int type, int64_t dim) {
    switch (type) {
    case LIM_CPU_F32: return 4 * dim;
    case LIM_CPU_Q8_0: return dim / 32 * 34;
    case LIM_CPU_Q4_0: return dim / 32 * 18;
    }
    return 2 * dim;
}

void look_at(const lim_ggml_node &n) {
    const lim_cpu_call &c = n.call;
    require(n.layer >= 0 && n.n_kv >= 1 && n.tokens >= 0 && n.streams >= 0, "numbers of an attention");
    require(c.dim_k >= 16 && c.dim_k <= 256 && c.dim_v >= 16 && c.dim_v <= 256 && c.kv_heads >= 1 && c.heads >= 1 && c.heads % c.kv_heads == 0, "shape of an attention");
    require(c.query.data != nullptr && c.key.data != nullptr && c.value.data != nullptr && c.output.data != nullptr && n.mask != nullptr, "an attention without data");
    require((reinterpret_cast<uintptr_t>(c.query.data) | reinterpret_cast<uintptr_t>(c.output.data)) % 4 == 0, "an attention's alignment");
    require((reinterpret_cast<uintptr_t>(c.key.data) | reinterpret_cast<uintptr_t>(c.value.data) | reinterpret_cast<uintptr_t>(n.mask)) % 2 == 0, "K/V's alignment");
    __int128 end;
    require(reach(c.query, 4 * c.dim_k, n.tokens, c.heads, n.streams, end), "a query of no end");
    require(reach(c.output, 4 * c.dim_v, n.tokens, c.heads, n.streams, end), "an output of no end");
    require(reach(c.value, row_bytes(c.value.type, c.dim_v), n.n_kv, c.kv_heads, n.streams, end), "a value of no end");
    require(reach(c.key, row_bytes(c.key.type, c.dim_k), n.n_kv, c.kv_heads, n.streams, end), "a key of no end");
    const auto     at = static_cast<__int128>(reinterpret_cast<uintptr_t>(c.key.data)) - static_cast<__int128>(n.store.id);
    const __int128 store = static_cast<__int128>(n.store.row) * n.store.slots * (n.store.streams > 0 ? n.store.streams : 1);
    require(at >= 0 && (n.store.stride == 0 || at + end <= store), "keys outside their store");
    require(n.store.slots >= n.n_kv && n.first_stream >= 0 && (n.store.stride == 0 || n.first_stream + n.streams <= n.store.streams), "slots outside the store");
    require(c.key.token_stride == n.store.row, "keys apart from their slots");
}

void on_plan(lim_ggml_graph *g) {
    host.offloaded = 0;
    for (int32_t i = 0; i < g->n_nodes; i++) {
        lim_ggml_node &n = g->nodes[i];
        if (n.reason != LIM_GGML_OFFLOADED) continue;
        look_at(n);
        if ((host.taken >> (i % 64) & 1) == 0) {
            n.reason = 99;
        } else {
            n.max_threads = 0;
            host.offloaded++;
            if (n.divides != LIM_GGML_WHOLE && (host.taken >> 40 & 1) != 0) { // a mixed batch: the host keeps the last rows
                require(n.tokens * n.streams > 1, "a divided attention of one row");
                n.rest_token = n.tokens > 1 ? n.tokens - 1 : 0;
                n.rest_tokens = 1;
                n.rest_stream = n.tokens > 1 ? 0 : n.streams - 1;
                n.rest_streams = n.tokens > 1 ? n.streams : 1;
            }
        }
    }
    for (int32_t i = 0; i < g->n_writes; i++) {
        const lim_ggml_write &w = g->writes[i];
        require(w.n >= 0 && w.slots != nullptr && (w.wide == 0 || w.wide == 1), "a write");
    }
    for (int32_t i = 0; i < g->n_shifts; i++) require(g->shifts[i].n >= 0 && g->shifts[i].delta != nullptr, "a shift");
    require(g->positions == nullptr || g->n_positions >= 0, "positions");
    require(g->n_outputs <= 0 || (g->outputs != nullptr && g->n_outputs <= g->n_batch), "outputs");
    g->knows_weights = static_cast<int32_t>(host.taken >> 60 & 1);
    g->later = static_cast<int32_t>(host.taken >> 61 & 1);
    g->mixes = static_cast<int32_t>(host.taken >> 58 & 1);
    g->followed = host.taken >> 62 & 1 ? reinterpret_cast<uint64_t>(host.tensors[0].data) : 0;
}

int on_attend(lim_ggml_node *) { return static_cast<int>(host.taken >> 63); }

// The host's own function: nothing but taken attentions is other than it was.
int on_compute(void **nodes, int n) {
    for (int i = 0; i < n; i++) {
        auto       *t = static_cast<Tensor *>(nodes[i]);
        const auto *was = &host.before[t - host.tensors];
        if (t->op == was->op) continue;
        require((was->op == kFlash || was->op == kReshape) && t->op == kCustom, "a node that is no attention, nor one behind it, was changed");
        lim::ggml::CustomParams params;
        memcpy(&params, t->op_params, sizeof params);
        for (int ith = 0; ith < 2; ith++) params.run(t, ith, 2, params.user);
        host.offloaded--;
    }
    return host.taken >> 59 & 1 ? 7 : 0;
}

void compute(void **backend, bool gpu) {
    host.offloaded = 0;
    memcpy(host.before, host.tensors, host.n * sizeof(Tensor));
    const int status = shim_compute(backend, reinterpret_cast<void **>(host.nodes.data()), static_cast<int>(host.nodes.size()));
    require(memcmp(host.before, host.tensors, host.n * sizeof(Tensor)) == 0, "the graph is not what it was");
    require(gpu || (host.offloaded <= 0 && status == (host.taken >> 59 & 1 ? 7 : 0)), "the host's status, or an attention that was not computed");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const int loaded = [] {
        const int failed = shim_load();
        void    **first = failed == 0 ? shim_backend(1) : nullptr; // the GPU's self-test
        if (first != nullptr) shim_free(first);
        require(shim_said()[0] == '\0' && shim_sessions() == 0, "the shim is not hooked, or keeps its self-test's session");
        shim_on_plan(on_plan);
        shim_on_attend(on_attend);
        shim_on_compute(on_compute);
        return failed;
    }();
    require(loaded == 0, "the shim is not hooked");
    Bytes in(data, size);
    host.n = host.used = 0;
    const bool gpu = in.one_in(3), flagged = in.one_in(3);
    const int  models = in.one_in(6) ? 2 : 1;
    host.buffer = gpu ? shim_buffer(4096) : nullptr;
    void **backend = shim_backend(gpu);
    for (int model = 0; model < models; model++) {
        Model        m = make_model(in);
        const size_t built = host.n, used = host.used;
        for (int graph = 1 + in.below(5); graph > 0; graph--) {
            host.nodes.clear();
            if (!in.one_in(3)) host.n = built, host.used = used; // else tensors pile up
            host.taken = in.word();
            in.one_in(5) ? make_shift(m, in) : make_batch(m, in);
            if (flagged) {
                for (Tensor *t : host.nodes) t->flags = in.one_in(8) ? 0 : lim::ggml::kFlagCompute;
            }
            if (gpu) upload_inputs(in);
            const int wrong = in.below(6) - 2;
            for (int i = 0; i < wrong; i++) mutate(in);
            bound();
            for (int i = gpu ? in.below(4) : 0; i > 0; i--) transfer(in, m);
            if (host.nodes.empty()) continue;
            if (in.one_in(6)) { // in parts
                const std::vector<Tensor *> all = host.nodes;
                const size_t                cut = all.size() / 2 + 1;
                host.nodes.assign(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(cut));
                compute(backend, gpu);
                host.nodes.assign(all.begin() + static_cast<std::ptrdiff_t>(cut), all.end());
                if (!host.nodes.empty()) compute(backend, gpu);
            } else {
                compute(backend, gpu);
            }
        }
    }
    shim_free(backend);
    if (host.buffer != nullptr) shim_free_buffer(host.buffer);
    return 0;
}
