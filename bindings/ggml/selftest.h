// A tiny graph of the host's own, computed by the host alone and through the hook.
#pragma once

#include <functional>
#include <string>

#include "abi.h"

namespace lim::ggml {

// Two ways to compute a graph of the host's. `hooked` tells how many attentions the library took.
struct Ways {
    std::function<int(Graph *)>                 alone;
    std::function<int(Graph *, int &offloaded)> hooked;
    bool                                       *direct  = nullptr; // on a GPU: whether `hooked` captures steps; the test sets it
    const uint64_t                             *replays = nullptr; // and how often it has replayed one
};

// Attends over a K/V store that the graph itself writes to, for one token of one sequence and for several.
// Returns "" if both ways agree and the library took what it has to take; otherwise what differed.
std::string self_test(void *handle, const Ways &ways);

// The same on a GPU, for one token behind a prompt: the first of two layers chooses `budget` tokens, and what the second one then
// leaves out is next to nothing. Both ways wait for the device. Steps that are captured are tried, too: where that does not work, they are
// not captured.
std::string self_test_gpu(void *handle, Device *device, int budget, const Ways &ways);

} // namespace lim::ggml
