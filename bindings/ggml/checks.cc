#include "checks.h"

namespace lim::ggml {

static_assert(LIM_CPU_MAX_DIM == 256 && LIM_CPU_MAX_HEADS == 512, "the texts below say so");

int kernel_type(int type) {
    switch (type) {
    case kF32: return LIM_CPU_F32;
    case kF16: return LIM_CPU_F16;
    case kBF16: return LIM_CPU_BF16;
    case kQ8_0: return LIM_CPU_Q8_0;
    case kQ4_0: return LIM_CPU_Q4_0;
    }
    return -1;
}

int refuse(lim_ggml_node &n, int reason, const char *what, int64_t value, const char *remedy) {
    n.what   = what;
    n.value  = value;
    n.remedy = remedy;
    return reason;
}

namespace {

// Bytes of an element, or of a block of quantised ones: the stride of a dense first dimension.
size_t element_size(int type) {
    switch (type) {
    case kF32: return 4;
    case kQ8_0: return 34;
    case kQ4_0: return 18;
    }
    return 2;
}

// Whether elements come in blocks of 32.
bool in_blocks(int type) { return type == kQ8_0 || type == kQ4_0; }

// Bytes from a tensor's first to behind its last. False: its strides and sizes are none, or too large to be true.
bool reach(const Tensor *t, uint64_t &end) {
    constexpr uint64_t kMost = uint64_t{1} << 48; // of an address
    if (t->ne[0] < 1 || t->ne[0] > INT32_MAX) return false;
    end = static_cast<uint64_t>(t->ne[0] / (in_blocks(t->type) ? 32 : 1)) * element_size(t->type);
    for (int i = 1; i < 4; i++) {
        uint64_t bytes;
        if (t->ne[i] < 1 || t->nb[i] > kMost || __builtin_mul_overflow(static_cast<uint64_t>(t->ne[i] - 1), t->nb[i], &bytes) || bytes > kMost) return false;
        end += bytes;
    }
    return true;
}

// Whether a tensor has memory, lies within the one that it is a view of, and its numbers lie where the kernels can read them.
bool is_there(const Tensor *t) {
    const Tensor   *root = root_of(t);
    const uintptr_t at = reinterpret_cast<uintptr_t>(t->data), from = reinterpret_cast<uintptr_t>(root->data);
    const size_t    align = t->type == kF32 ? 4 : 2;
    uint64_t        end, whole;
    if (at == 0 || from == 0 || at < from || !reach(t, end) || root->type != t->type || !reach(root, whole) || at - from > whole || end > whole - (at - from)) return false;
    return (at | t->nb[1] | t->nb[2] | t->nb[3]) % align == 0;
}

// Whether keys that are there lie in the slots of their store.
bool is_in_slots(const Tensor *k, const lim_ggml_store &store) {
    uint64_t       end  = 0, slots;
    const uint64_t from = reinterpret_cast<uintptr_t>(k->data) - store.id;
    if (store.stride == 0) return true;
    return reach(k, end) && store.streams >= 1 && !__builtin_mul_overflow(static_cast<uint64_t>(store.row) * static_cast<uint32_t>(store.streams), store.slots, &slots) &&
           from + end <= slots;
}

bool dim_ok(int64_t dim, int type) {
    return dim >= 16 && dim <= LIM_CPU_MAX_DIM && dim % (in_blocks(type) ? 32 : 16) == 0;
}

// The same of a tensor's type.
int refuse_type(const Host &host, lim_ggml_node &n, const char *what, const Tensor *t, const char *remedy) {
    n.type = host.type_name(t->type);
    return refuse(n, LIM_GGML_TYPE, what, t->type, remedy);
}

constexpr char kCacheTypes[] =
    "f16, bf16, q8_0 and q4_0 are supported (llama-server --cache-type-k and --cache-type-v, llama-cpp-python type_k and type_v)";
constexpr char kDims[] = "16 to 256 in steps of 16 are supported, in steps of 32 with a q8_0 or q4_0 cache";
constexpr char kOdd[]  = "this host lays it out in a way that is not known";

} // namespace

int check_types(const Host &host, const Tensor *t, lim_ggml_node &n) {
    const Tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *mask = t->src[3];
    const bool    k_ok = kernel_type(k->type) >= 0, v_ok = kernel_type(v->type) >= 0;
    if (!k_ok && !v_ok && k->type == v->type) return refuse_type(host, n, "K/V type", k, kCacheTypes);
    if (!k_ok) return refuse_type(host, n, "K type", k, kCacheTypes);
    if (!v_ok) return refuse_type(host, n, "V type", v, kCacheTypes);
    if (q->type != kF32) return refuse_type(host, n, "query type", q, "f32 is supported");
    if (t->type != kF32) return refuse_type(host, n, "output type", t, "f32 is supported");
    if (mask == nullptr) return refuse(n, LIM_GGML_TYPE, "masks", 0, "attention without a mask is no decoding of text");
    if (mask->type != kF16) return refuse_type(host, n, "mask type", mask, "f16 is supported");
    return LIM_GGML_OFFLOADED;
}

int check_shape(const Tensor *t, lim_ggml_node &n) {
    const Tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *mask = t->src[3], *sinks = t->src[4];
    const int64_t dim_k = q->ne[0], tokens = q->ne[1], heads = q->ne[2], streams = q->ne[3];
    const int64_t n_kv = k->ne[1], kv_heads = k->ne[2], dim_v = v->ne[0];
    const struct {
        bool        wrong;
        const char *what;
        int64_t     value;
        const char *remedy;
    } checks[] = {
        {!dim_ok(dim_k, k->type), "head_dim", dim_k, kDims},
        {!dim_ok(dim_v, v->type), "head_dim of V", dim_v, kDims},
        {heads > LIM_CPU_MAX_HEADS, "query heads", heads, "up to 512 are supported"},
        {kv_heads < 1 || heads % kv_heads != 0, "KV heads", kv_heads, "a divisor of the query heads is supported"},
        {k->ne[0] != dim_k, "head_dim of K, unlike the query's,", k->ne[0], kOdd},
        {v->ne[1] != n_kv || v->ne[2] != kv_heads, "tokens or heads of V, unlike K's,", v->ne[1], kOdd},
        {k->ne[3] != streams || v->ne[3] != streams, "streams of K/V, unlike the query's,", k->ne[3], kOdd},
        {n_kv < 1 || n_kv > INT32_MAX || n.store.slots < n_kv, "tokens of K", n_kv, kOdd},
        {tokens < 1 || streams < 1 || tokens > INT32_MAX / streams, "query tokens", tokens, kOdd},
        {t->ne[0] != dim_v || t->ne[1] != heads || t->ne[2] != tokens || t->ne[3] != streams, "output, unlike the query, of", t->ne[0], kOdd},
        {q->nb[0] != 4 || t->nb[0] != 4, "stride of query or output", static_cast<int64_t>(q->nb[0]), kOdd},
        {k->nb[0] != element_size(k->type), "stride of K", static_cast<int64_t>(k->nb[0]), kOdd},
        {k->nb[1] != static_cast<size_t>(n.store.row), "stride of K from token to token", static_cast<int64_t>(k->nb[1]), kOdd},
        {v->nb[0] != element_size(v->type), "stride of V", static_cast<int64_t>(v->nb[0]), kOdd},
        {mask->nb[0] != 2 || mask->ne[0] != n_kv || mask->ne[1] < tokens || (mask->ne[3] != streams && mask->ne[3] != 1), "tokens of the mask",
         mask->ne[0], kOdd},
        {mask->ne[2] != 1, "masks, one for each head,", mask->ne[2], "one for all heads is supported"},
        {!is_there(q), "bytes of the query, which are not all there,", static_cast<int64_t>(q->nb[3]), kOdd},
        {!is_there(k) || !is_in_slots(k, n.store), "bytes of K, which are not all in its store,", static_cast<int64_t>(k->nb[3]), kOdd},
        {!is_there(v), "bytes of V, which are not all in its store,", static_cast<int64_t>(v->nb[3]), kOdd},
        {!is_there(t), "bytes of the output, which are not all there,", static_cast<int64_t>(t->nb[3]), kOdd},
        {!is_there(mask), "bytes of the mask, which are not all there,", static_cast<int64_t>(mask->nb[3]), kOdd},
        {sinks != nullptr && (sinks->type != kF32 || sinks->ne[0] != heads || !is_there(sinks)), "attention sinks", sinks != nullptr ? sinks->ne[0] : 0, kOdd},
    };
    for (const auto &check : checks) {
        if (check.wrong) return refuse(n, LIM_GGML_SHAPE, check.what, check.value, check.remedy);
    }
    for (int i = 5; i < 10; i++) {
        if (t->src[i] != nullptr) return refuse(n, LIM_GGML_SHAPE, "inputs of attention", i + 1, kOdd);
    }
    return LIM_GGML_OFFLOADED;
}

} // namespace lim::ggml
