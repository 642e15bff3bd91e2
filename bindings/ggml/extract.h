// Reads what attention needs to know out of a host's graph.
#pragma once

#include <vector>

#include "graph.h"
#include "host.h"

namespace lim::ggml {

// Where a graph's tensors lie. What lies on a device is described, never read.
enum class Memory { kHost,
                    kDevice };

// One context's scratch. It keeps its memory from graph to graph.
struct Extract {
    std::vector<lim_ggml_node>  nodes;
    std::vector<Tensor *>       tensors; // of nodes
    std::vector<int>            places;  // of nodes: their numbers in the graph
    std::vector<lim_ggml_write> writes;
    std::vector<lim_ggml_shift> shifts;
    std::vector<uint64_t>       rewritten;
    lim_ggml_graph              graph;

    // With `hash`, the graph's weights are hashed as well.
    void read(const Host &host, Graph *from, Memory memory, bool hash);

    // Takes the prints that the plan asked for. Once the graph has been computed, and only then.
    void note() const;

  private:
    struct Operations {
        int get_rows, cpy, view, reshape, permute, transpose;
    };
    Operations ops;
    bool       ops_known = false;

    void find_operations(const Host &host);
    void read_store(const Host &host, const Tensor *t);
    void read_positions(const Host &host, const Tensor *positions);
    void read_outputs(const Host &host, const Tensor *t);
    void read_write(const Host &host, const Tensor *t);
    bool read_shift(const Host &host, const Tensor *rope, const Tensor *store);

    const Tensor *positions; // of the batch
    const Tensor *outputs;   // the input that says whose logits are wanted
    bool          several_positions, several_outputs;
};

} // namespace lim::ggml
