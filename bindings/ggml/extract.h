// Reads what attention needs to know out of a host's graph.
#pragma once

#include <vector>

#include "graph.h"
#include "host.h"
#include "stores.h"
#include "transfers.h"

namespace lim::ggml {

// Where a graph's tensors lie. What lies on a device is described, never read.
enum class Memory { kHost,
                    kDevice };

// One context's scratch. It keeps its memory from graph to graph.
struct Extract {
    std::vector<lim_ggml_node>  nodes;
    std::vector<Tensor *>       tensors; // of nodes
    std::vector<int>            places;  // of nodes: their numbers in the graph
    std::vector<Tensor *>       spares;  // of nodes: what follows in the graph and computes nothing; null: nothing such
    std::vector<lim_ggml_write> writes;
    std::vector<lim_ggml_shift> shifts;
    std::vector<uint64_t>       rewritten;
    lim_ggml_graph              graph;

    // With `hash`, the graph's weights are hashed as well.
    void read(const Host &host, Graph *from, Memory memory, bool hash);

    // Whether the graph has anything that the plan decides about or follows: attention, what is written to stores, positions.
    bool tells() const { return !nodes.empty() || !writes.empty() || !shifts.empty() || !rewritten.empty() || graph.n_rotations + graph.n_soft_max > 0; }

    // Of a graph on a GPU that is equal to the last one that was read: only its inputs are read anew. False: that cannot be
    // told, it has to be read.
    bool read_inputs();

    // Of a graph on a GPU: what has happened to its stores since the last one.
    void read_changes();

    // A graph was computed, or begun, of which nothing is known: nor is what it wrote.
    void miss() { missed = true; }

    // The plan's answer to that.
    void follow() const;

    // The nodes of the graph that was read last.
    const std::vector<Tensor *> &graph_nodes() const { return all; }

    // Nothing more will be read.
    ~Extract();

    // Takes the prints that the plan asked for. Once the graph has been computed, and only then.
    void note() const;

  private:
    struct Operations {
        int get_rows, cpy, view, reshape, permute, transpose, mul_mat, mul_mat_id;
    };
    static constexpr int kMostOps = 256;
    Operations           ops;
    bool                 passed_over[kMostOps] = {}; // operations that write nowhere else than to a tensor of their own, or nowhere
    bool                 ops_known             = false;

    Memory memory = Memory::kHost; // of this graph

    bool                                       missed = false; // a graph since the last one that was read
    std::vector<lim_ggml_change>               changes;
    std::vector<uint64_t>                      prints;
    std::vector<std::pair<uint64_t, uint64_t>> slots_of; // stores, and which upload's slots were written to them last

    std::vector<std::pair<uint64_t, uint64_t>> witnesses;  // weights that graphs have begun with: name, and what they hold
    uint64_t                                   models = 0; // how often another model was seen in the place of one

    void find_operations(const Host &host);
    bool is_view(const Tensor *t) const { return t->op == ops.view || t->op == ops.reshape || t->op == ops.permute || t->op == ops.transpose; }
    void tell_models(const Host &host);
    // An input of the graph that can be read before the graph is computed; null: it is none, or cannot be.
    const void *input(const Host &host, const Tensor *t);
    // The same of a graph on a GPU, looked up once.
    struct Given {
        const Tensor *of;
        Uploaded      is;
    };
    const Uploaded    &given(const Tensor *t);
    void               describe_scan(const Tensor *scan, lim_ggml_node &n);
    std::vector<Given> inputs;
    // What was read of the last graph, before the plan, and the inputs that it is to be completed by.
    std::vector<lim_ggml_node>  nodes_read;
    lim_ggml_graph              graph_read;
    const Tensor               *scanned = nullptr; // of the node that is described
    std::vector<const Tensor *> masks, slots;      // of nodes, of writes
    std::vector<Tensor *>       all; // of the graph
    Stores                      stores;
    std::vector<Tensor *>       unclear;               // nodes that write into what may turn out to be a K store
    const void                 *seen_buffer = nullptr; // the last one that a K store was seen to lie in …
    bool                        seen        = false;   // … and whether what is moved there is seen
    // A K store; one whose changes are not seen is as good as one without a layout.
    lim_ggml_store described(const Tensor *store);
    // The store that an attention reads its keys from. What the graph was seen to do with it before is read, now that it is one.
    const Tensor *store_of(const Host &host, const Tensor *key);
    // The K store that a tensor is made of, within a few steps; null: there is none.
    const Tensor *store_behind(const Tensor *t, int depth) const;
    int           find_stream(const Tensor *key, const Tensor *store, lim_ggml_node &n) const;
    int           describe(const Host &host, Tensor *t, lim_ggml_node &n);
    int           describe_mask(const Host &host, const Tensor *t, lim_ggml_node &n);
    void          read_node(const Host &host, Tensor *t, int place, bool flagged, bool hash);
    void          find_spares(const Host &host, bool flagged);
    void          read_store(const Host &host, const Tensor *t);
    void          read_positions(const Host &host, const Tensor *positions);
    void          read_outputs(const Host &host, const Tensor *t);
    void          read_write(const Host &host, const Tensor *t);
    uint64_t     *last_slots(uint64_t store);
    void          complete();
    bool          read_shift(const Host &host, const Tensor *rope, const Tensor *store);

    const Tensor *positions; // of the batch
    const Tensor *outputs;   // the input that says whose logits are wanted
    const void   *positions_data, *outputs_data;
    bool          several_positions, several_outputs;
};

} // namespace lim::ggml
