#include "stores.h"

#include <algorithm>
#include <cstring>

namespace lim::ggml {
namespace {

// A host without names whose attentions come from ever other tensors has no stores; it must not be remembered for ever.
constexpr size_t kMostKnown = 16384;

// Keys of an attention, and a conversion or two before them.
constexpr int kSteps = 3;

} // namespace

int named_layer(const Tensor *t) {
    constexpr char   kPrefix[] = "cache_k_l";
    constexpr size_t kLength   = sizeof kPrefix - 1;
    if (t == nullptr || t->view_src != nullptr || strncmp(t->name, kPrefix, kLength) != 0) return -1;
    const char *digit = t->name + kLength; // names of what is made of a store go on behind the digits: "cache_k_l12 (view) (copy)"
    if (*digit == '0' && digit[1] != 0) return -1;
    int layer = 0, n = 0;
    for (; n < 4 && digit[n] >= '0' && digit[n] <= '9'; n++) layer = 10 * layer + (digit[n] - '0');
    return n > 0 && digit[n] == 0 && layer <= 4095 ? layer : -1;
}

void Stores::begin(const Host &host, bool by_name) {
    none_    = host.none;
    by_name_ = by_name;
    graph_++;
    if (!others_ && known_.size() <= kMostKnown) return;
    known_.clear();
    next_     = 0;
    complete_ = others_ = false;
}

const Stores::Known *Stores::find(const Tensor *root) const {
    const auto it = known_.find(root);
    return it != known_.end() && it->second.data == root->data ? &it->second : nullptr;
}

int Stores::layer_of(const Tensor *root) const {
    const int named = named_layer(root);
    if (named >= 0 || by_name_ || !is_leaf(root, none_)) return named;
    const Known *known = find(root);
    return known != nullptr ? known->layer : -1;
}

bool Stores::written(const Tensor *root) {
    if (by_name_ || !is_leaf(root, none_) || root->data == nullptr) return false;
    if (find(root) == nullptr) known_[root] = {root->data};
    return true;
}

const Tensor *Stores::attended(const Tensor *key) {
    for (int step = 0; key != nullptr && step < kSteps; step++, key = key->src[0]) {
        const Tensor *root  = key->view_src;
        const int     named = named_layer(root);
        if (root == nullptr || (named < 0 && (by_name_ || !is_leaf(root, none_) || find(root) == nullptr))) continue;
        if (by_name_) return root;
        Known &known = known_[root];
        if (known.data != root->data) known = {root->data};
        if (known.layer >= 0) {
            complete_ = complete_ || known.graph != graph_;
        } else if (named < 0 && complete_) {
            others_ = true;
        }
        if (known.layer < 0) {
            known.layer = named >= 0 ? named : next_;
            known.graph = graph_;
            next_       = std::max(next_, known.layer + 1);
        }
        // [width, slots, streams], or [head_dim, heads, slots, streams]: the keys' stride from token to token tells.
        const bool by_heads = key->nb[1] != root->nb[1] && key->nb[1] == root->nb[2] &&
                              root->nb[2] == root->nb[1] * static_cast<size_t>(root->ne[1]);
        known.tokens        = by_heads ? 2 : 1;
        return root;
    }
    return nullptr;
}

int Stores::tokens_of(const Tensor *root) const {
    const Known *known = by_name_ ? nullptr : find(root);
    return known != nullptr ? known->tokens : 1;
}

lim_ggml_store Stores::describe(const Tensor *root) const {
    const int     tokens = tokens_of(root);
    const int64_t slots = root->ne[tokens], streams = std::min<int64_t>(root->ne[tokens + 1], INT32_MAX);
    const size_t  row  = std::min<size_t>(root->nb[tokens], INT32_MAX);
    const bool    even = root->nb[tokens + 1] == row * static_cast<size_t>(slots) && (tokens == 2 || root->ne[3] == 1);
    return {reinterpret_cast<uint64_t>(root->data), slots, even ? static_cast<int64_t>(row) : 0, static_cast<int32_t>(streams),
            static_cast<int32_t>(row)};
}

int64_t Stores::width(const Tensor *root) const {
    int64_t width = root->ne[0];
    return tokens_of(root) == 2 && __builtin_mul_overflow(root->ne[0], root->ne[1], &width) ? -1 : width;
}

size_t Stores::stream_stride(const Tensor *root) const { return root->nb[tokens_of(root) + 1]; }

} // namespace lim::ggml
