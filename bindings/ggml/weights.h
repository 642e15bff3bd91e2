// What a graph shows of a model's weights and of the adapters that are added to them.
#pragma once

#include "extract.h"

namespace lim::ggml {

// Adds what one node shows. With `hash`, its weights are hashed, by name and shape and, where they lie in
// memory, by samples. `product`: what a matrix without a name is multiplied with tells that it is one of the weights.
void read_weights(const Host &host, const Tensor *node, Memory memory, bool hash, bool product, lim_ggml_graph &graph);

// A weight of a graph that is looked at in each one.
struct Witness {
    uint64_t name, content;
};

// The first of a graph's nodes that multiplies with a weight, if it comes soon: what shows that a backend serves another model.
// False: there is none.
bool find_witness(const Host &host, const std::vector<Tensor *> &nodes, int mul_mat, Witness *found);

} // namespace lim::ggml
