// Steps on a GPU that are like the one before: what they queue is recorded once and then replayed.
//
// A recording is a graph of the driver's, captured while the host queues its parts and the library its attentions. It holds
// addresses and sizes, so it serves only graphs that are equal to the one it was made from, down to each tensor's fields.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "hook.h"
#include "host.h"

namespace lim::ggml {

// A graph, as far as it decides about what is queued for it.
class Likeness {
  public:
    void take(const Host &host, Graph *graph, int nodes);
    bool of(const Host &host, Graph *graph, int nodes) const;

  private:
    // A tensor's fields up to its name: type, shape, operation, sources, place.
    using Fields = std::array<unsigned char, offsetof(Tensor, name)>;
    struct Seen {
        const Tensor *tensor;
        Fields        fields;
    };
    std::vector<Seen> nodes_, sources_; // of the graph; and what its nodes read that is none of them
};

struct Recording {
    Likeness         graph;
    std::vector<int> places; // of the attentions that the library takes
    uint64_t         form = 0;     // of the plan that it is made for
    uint64_t         used = 0;     // when it was; 0: there is none
    bool             made = false; // else the next step like it is recorded …
    bool             may  = false; // … if it may be
};

// Tells whether a graph may be captured: it consists of operations that are queued and never waited for.
bool may_capture(const Host &host, Graph *graph, int nodes);

// Proves, with a graph that no backend has computed so far, that a host queues node by node what it computes for the first
// time or what has changed, and makes graphs of the driver's by itself only of what it computes again. Only then
// may the library capture what a host queues. `compute` has it computed and waits.
bool prove_direct(void *handle, Tensor *of, const std::function<int()> &compute);

// While it lives, a node is none, and unlike any that the host has seen: a part that begins with it is queued node by node.
class Unlike {
  public:
    Unlike(const Host &host, Tensor *node);
    ~Unlike();
    Unlike(const Unlike &) = delete;

  private:
    Tensor *node_;
    int32_t op_, params_[2];
};

} // namespace lim::ggml
