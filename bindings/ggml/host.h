// The ggml host that loaded the library: its symbols, its operation numbers, and the proof that its
// structures are laid out as abi.h says.
#pragma once

#include <string>
#include <vector>

#include "abi.h"

namespace lim::ggml {

// The tensor whose memory a tensor is a view of; itself, where it is none.
inline const Tensor *root_of(const Tensor *t) { return t->view_src != nullptr ? t->view_src : t; }

// Whether no node computes a tensor: an input, a weight, a store. `none`: the host's number of no operation.
inline bool is_leaf(const Tensor *t, int none) { return t != nullptr && t->op == none && t->view_src == nullptr; }

struct Host {
    // Exported functions of the host.
    int (*graph_n_nodes)(Graph *);
    Tensor *(*graph_node)(Graph *, int);
    const char *(*op_name)(int);
    const char *(*type_name)(int);
    const char *(*version)(); // null in older hosts
    void (*tensor_get)(const Tensor *, void *, size_t, size_t);
    size_t (*nbytes)(const Tensor *); // null: not exported

    // Operation numbers; they move from release to release.
    int flash_attn, custom, set_rows, rope, soft_max, scale, none;

    // Why no attention is left to the host in part; "": it computes what it is left, as the self-test has shown.
    std::string indivisible;

    int     api_version;
    Device *device;
    InitFn  init_backend; // the host's own
};

// A GPU of the host whose backend can be hooked.
struct Gpu {
    Device *device;
    InitFn  init_backend; // the host's own
    bool    direct = false; // what the host queues there can be captured
    int     fit    = -1;     // 1: the library computes there what the host does; 0: not; -1: not tried so far
};

// What it takes to compute a GPU's graph in parts, on the host's own terms.
struct Gpus {
    void *handle; // of the host
    Part (*graph_view)(Graph *, int, int);
    Event *(*event_new)(Device *);
    void (*event_free)(Event *);
    void (*event_record)(Event *, Backend *);
    void (*event_wait)(Backend *, Event *);
    std::vector<Gpu> list;
    std::string      names; // "CUDA0, CUDA1"
};

// What ggml_backend_init answers with.
struct Registry {
    int api_version;
    const char *(*get_name)(Registry *);
    size_t (*get_device_count)(Registry *);
    void *(*get_device)(Registry *, size_t);
    void *(*get_proc_address)(Registry *, const char *);
    void *context;
};

// A handle of the host that `caller`, an address in its code, belongs to. Null: there is none.
void *find_host(const void *caller);

// The CPU device of a host. Null: it has none, or does not export the function that tells.
Device *cpu_device(void *handle);

// What prove_host answers about a host that has loaded no CPU backend so far.
inline constexpr char kNoCpuDevice[] = "this host has no CPU device so far (load the library after ggml's own backends, or again)";

// Looks everything up in the host and proves its layout. On success fills `host` and returns "";
// otherwise the reason, for the log. Not for a host that is hooked already.
std::string prove_host(void *handle, Host &host);

// Finds the CUDA devices of a host whose layout is proven. Returns "", or why they have to be left alone;
// a host without any is no problem.
std::string prove_gpus(void *handle, const Host &host, Gpus &gpus);

// Proves the layout of a backend that the host just made on its CPU device or on a GPU. Returns the word
// of its graph_compute, or -1 and what is not as it should be.
int prove_backend(const Device *device, bool gpu, Backend *backend, std::string &differs);

// Tells whether the host's views of a graph are what they are taken for. For a graph of two nodes and more.
bool prove_view(const Host &host, const Gpus &gpus, Graph *graph);

} // namespace lim::ggml
