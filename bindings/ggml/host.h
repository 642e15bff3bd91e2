// The ggml host that loaded the library: its symbols, its operation numbers, and the proof that its
// structures are laid out as abi.h says.
#pragma once

#include <string>

#include "abi.h"

namespace lim::ggml {

struct Host {
    // Exported functions of the host.
    int         (*graph_n_nodes)(Graph *);
    Tensor     *(*graph_node)(Graph *, int);
    const char *(*op_name)(int);
    const char *(*version)(); // null in older hosts

    // Operation numbers; they move from release to release.
    int flash_attn, custom, set_rows, rope, soft_max, none;

    int     api_version;
    int     compute_word; // of a backend: graph_compute
    Device *device;
    InitFn  init_backend; // the host's own
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

// Looks everything up in the host and proves its layout. On success fills `host` and returns "";
// otherwise the reason, for the log. Not for a host that is hooked already.
std::string prove_host(void *handle, Host &host);

// Proves the layout of a backend that the host just made. Returns the word of its graph_compute, or -1.
int prove_backend(const Host &host, Backend *backend);

} // namespace lim::ggml
