#include "weights.h"

#include <cstdlib>
#include <cstring>

#include "transfers.h"

namespace lim::ggml {
namespace {

class Fnv { // FNV-1a
  public:
    void take(const void *from, size_t n) {
        for (size_t i = 0; i < n; i++) hash_ = (hash_ ^ static_cast<const uint8_t *>(from)[i]) * 0x100000001b3;
    }
    void     take_name(const Tensor *t) { take(t->name, strnlen(t->name, sizeof t->name)); }
    uint64_t hash() const { return hash_; }

  private:
    uint64_t hash_ = 0xcbf29ce484222325;
};

// A host that names nothing leaves names to ggml, which numbers what it comes by.
bool is_nameless(const Tensor *t) { return t->name[0] == '\0' || strncmp(t->name, "leaf_", 5) == 0; }

// Tells one model's weights from another's of the same shape: their names and shapes, and a few bytes of
// each. What a graph on the CPU multiplies with lies where the CPU can read it; what one on a GPU does is read once, while
// the first prompt is computed.
uint64_t hash_weight(const Host &host, const Tensor *t, Memory memory) {
    constexpr size_t kSample = 64;
    Fnv              fnv;
    if (!is_nameless(t)) fnv.take_name(t);
    fnv.take(&t->type, sizeof t->type);
    fnv.take(t->ne, sizeof t->ne);
    const size_t bytes  = t->nb[3] * static_cast<size_t>(t->ne[3]);
    const size_t middle = bytes / 2 / kSample * kSample;
    if (t->data == nullptr || bytes < 2 * kSample || t->ne[3] < 1) return fnv.hash();
    if (memory == Memory::kHost) {
        fnv.take(t->data, kSample);
        fnv.take(static_cast<const char *>(t->data) + middle, kSample);
    } else if (host.tensor_get != nullptr && is_plain(t)) {
        char sample[kSample];
        for (size_t at : {size_t{0}, middle}) {
            host.tensor_get(t, sample, at, kSample);
            fnv.take(sample, kSample);
        }
    }
    return fnv.hash();
}

bool ends_with(const Tensor *t, const char *suffix) {
    const size_t n = strnlen(t->name, sizeof t->name), k = strlen(suffix);
    return n > k && memcmp(t->name + n - k, suffix, k) == 0;
}

// "blk.12.attn_q.weight" is of block 12; -1: of none.
int block_of(const Tensor *t) { return strncmp(t->name, "blk.", 4) == 0 ? atoi(t->name + 4) : -1; }

// Whether it is the last norm's or the output's.
bool follows_blocks(const Tensor *t) {
    for (const char *prefix : {"output", "dec.output", "token_embd_norm"}) {
        if (strncmp(t->name, prefix, strlen(prefix)) == 0) return true;
    }
    return false;
}

// The second matrix of a LoRA adapter whose product a node scales; null: it does not.
const Tensor *adapter_of(const Host &host, const Tensor *t) {
    const Tensor *product = t->op == host.scale ? t->src[0] : nullptr;
    const Tensor *weight  = product != nullptr ? product->src[0] : nullptr;
    return is_leaf(weight, host.none) && ends_with(weight, ".lora_b") ? weight : nullptr;
}

} // namespace

void read_weights(const Host &host, const Tensor *node, Memory memory, bool hash, bool product, lim_ggml_graph &graph) {
    if (const Tensor *adapter = adapter_of(host, node)) {
        const struct {
            const Tensor *of;
            int64_t       scale;
        } applied = {adapter, node->op_params[0]};
        Fnv here, everywhere; // where it lies tells adapters apart while they last; what it holds does so for good
        here.take(&applied, sizeof applied);
        everywhere.take_name(adapter);
        everywhere.take(&node->op_params[0], sizeof node->op_params[0]);
        graph.adapters += here.hash();
        if (hash) graph.weights += everywhere.hash();
    }
    if (!hash) return;
    for (int s = 0; s < 2; s++) {
        const Tensor *t = node->src[s];
        if (!is_leaf(t, host.none)) continue;
        if (ends_with(t, ".lora_a") || ends_with(t, ".lora_b")) {
            graph.weights += hash_weight(host, t, memory);
        } else if (ends_with(t, ".weight")) {
            graph.weights += hash_weight(host, t, memory);
            const int block = block_of(t);
            if (block >= 0 && (graph.first_block < 0 || block < graph.first_block)) graph.first_block = block;
            if (block > graph.last_block) graph.last_block = block;
            if (follows_blocks(t)) graph.ends = 1;
        } else if (product && s == 0 && is_nameless(t)) {
            graph.weights += hash_weight(host, t, memory);
        }
    }
}

bool find_witness(const Host &host, const std::vector<Tensor *> &nodes, int mul_mat, Witness *found) {
    constexpr size_t kSoon = 16;
    for (size_t i = 0; i < nodes.size() && i < kSoon; i++) {
        const Tensor *t = nodes[i]->op == mul_mat ? nodes[i]->src[0] : nullptr;
        if (!is_leaf(t, host.none) || !ends_with(t, ".weight")) continue;
        Fnv name;
        name.take_name(t);
        *found = {name.hash(), hash_weight(host, t, Memory::kHost)};
        return true;
    }
    return false;
}

} // namespace lim::ggml
