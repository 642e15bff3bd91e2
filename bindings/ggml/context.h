// One backend of the host, as the hook knows it.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "divide.h"
#include "extract.h"
#include "recording.h"
#include "repeat.h"

namespace lim::ggml {

// One backend of the host, that is one context of its user. One thread at a time computes on it.
struct Context {
    Backend           *backend;
    const Host        *host;
    ComputeFn          compute; // the host's own
    FreeFn             free;
    uintptr_t          session;
    Extract            extract;
    std::vector<Saved> saved;
    std::vector<Rest>  rests;
    uint32_t           computed; // graphs
    bool               known;    // the model's weights are
    uint32_t           hashed;   // graphs without anything for the plan, while they are not
    Repeat             repeat;

    // The number of the host's context: its backends begin with one each, and copies between them show that they are of one (see met).
    std::atomic<uint64_t> host_context;

    // Of a GPU's backend alone.
    const Gpus *gpus;            // null: it is the CPU's
    Event      *before, *after;  // the host's stream has come to an offloaded node; the library's is done with it
    bool        divides;         // the host's views of graphs are proven
    bool        later;           // the next graph is planned once the host has computed it
    int         begun, nodes;    // the first attention that was taken of the last graph, 0: none, and the graph's nodes
    int64_t     rows;            // of that attention
    bool        indivisible;     // they are not what they have to be
    bool        direct;          // the host's parts can be captured
    Recording   recordings[LIM_GGML_RECORDINGS];
    Recording  *read;  // of the graph that the extract was read from last, or null
    uint64_t    steps;   // that were not the host's whole
    uint64_t    replays; // of them
};

// Whether the plan has to see a graph that was read. Others are the host's alone, which waits for the plan before it goes on: the way
// into Go is long (10 microseconds and more) where no thread has been there for milliseconds, and a GPU's host has such graphs on
// the CPU in every step, before the GPU's: the embeddings' rows, experts.
bool wants_plan(Context *c);

// Computes a graph on a GPU. `offloaded`: how many attentions the library computed.
int take_part_on_gpu(Context *c, Graph *graph, int &offloaded);

// Held while a step is captured; no context ends meanwhile.
std::mutex &capturing();

} // namespace lim::ggml
