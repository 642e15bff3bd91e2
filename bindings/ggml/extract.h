// Reads what attention needs to know out of a host's graph.
#pragma once

#include <vector>

#include "graph.h"
#include "host.h"

namespace lim::ggml {

// Where a graph's tensors lie. What lies on a device is described, never read.
enum class Memory { kHost, kDevice };

// One context's scratch. It keeps its memory from graph to graph.
struct Extract {
    std::vector<lim_ggml_node>  nodes;
    std::vector<Tensor *>       tensors; // of nodes
    std::vector<int>            places;  // of nodes: their numbers in the graph
    std::vector<lim_ggml_write> writes;
    std::vector<lim_ggml_shift> shifts;
    lim_ggml_graph              graph;

    // With `hash`, the graph's weights are hashed as well.
    void read(const Host &host, Graph *from, Memory memory, bool hash);
};

} // namespace lim::ggml
