// An attention whose rows the library and the host share.
#pragma once

#include "abi.h"
#include "graph.h"

namespace lim::ggml {

// A tensor's own words, while it is another one.
struct Saved {
    Tensor *tensor;
    Tensor  was;

    explicit Saved(Tensor *t)
        : tensor(t), was(*t) {}
    void restore() const;
};

// What a divided attention reads. It has to stay where it is until the graph is computed.
struct Rest {
    Tensor sources[4]; // query, key, value, mask
};

// Has an attention compute those of its rows only that the plan leaves to the host.
void leave_rest(Tensor *attention, const lim_ggml_node &node, Rest &rest);

} // namespace lim::ggml
