// Which tensors of a host are K stores, and of which layers.
//
// A K store is known by what graphs do with it: nodes write into a tensor that no node computes, and an attention reads its
// keys from there. Layers are numbered in the order of their first attentions. Where a host names its stores as
// llama.cpp does ("cache_k_l12"), the name tells both at once, and the number is the model's.
#pragma once

#include <unordered_map>

#include "graph.h"
#include "host.h"

namespace lim::ggml {

// The layer that a tensor's name tells, if it is a K store's by llama.cpp's names; -1: it is none.
int named_layer(const Tensor *t);

// One context's. It keeps what it has learned from graph to graph.
class Stores {
  public:
    // A graph begins. `by_name`: what has no name of llama.cpp's is no store.
    void begin(const Host &host, bool by_name);

    // The layer whose K store a tensor is; -1: it is none, as far as graphs have shown.
    int layer_of(const Tensor *root) const;

    // A node writes into a tensor. Returns whether that may turn out to be a store.
    bool written(const Tensor *root);

    // The store that an attention reads its keys from, itself or converted; null: there is none. It is one from now on.
    const Tensor *attended(const Tensor *key);

    // What the index needs to know of a store.
    lim_ggml_store describe(const Tensor *root) const;

    // The keys that a token has there, and the bytes from stream to stream.
    int64_t width(const Tensor *root) const;
    size_t  stream_stride(const Tensor *root) const;

  private:
    // What a tensor is, at an address where another one may come to lie.
    struct Known {
        const void *data;
        int         layer  = -1; // -1: no attention has read it
        int         tokens = 1;  // the dimension that counts tokens
        uint64_t    graph  = 0; // in which an attention first read it
    };

    const Known *find(const Tensor *root) const;
    int          tokens_of(const Tensor *root) const;

    std::unordered_map<const Tensor *, Known> known_;
    int                                       none_     = 0; // the host's number of no operation
    int                                       next_     = 0; // the number of the next layer without a name
    uint64_t                                  graph_    = 0; // the number of this one
    bool                                      by_name_  = false;
    bool                                      complete_ = false; // a store was attended to in two graphs: the model's layers are numbered
    bool                                      others_   = false; // and others have come since: the numbers are another model's
};

} // namespace lim::ggml
