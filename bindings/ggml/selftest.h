// A tiny graph of the host's own, computed by the host alone and through the hook.
#pragma once

#include <functional>
#include <string>

#include "abi.h"

namespace lim::ggml {

// Two ways to compute a graph of the host's. `hooked` tells how many attentions the library took.
struct Ways {
    std::function<int(Graph *)>             alone;
    std::function<int(Graph *, int &taken)> hooked;
};

// Attends over a K/V store that the graph itself writes to, for one token of one sequence and for several.
// Returns "" if both ways agree and the library took what it has to take; otherwise what differed.
std::string self_test(void *handle, const Ways &ways);

} // namespace lim::ggml
