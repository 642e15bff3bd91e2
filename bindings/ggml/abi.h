// The few parts of ggml's private structures that the hook reads, in our own words.
//
// No header of ggml is used: hosts carry different versions. What is declared here has been stable
// where it matters, and host.cc proves at load, in the running host, that it still holds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lim::ggml {

struct Tensor {
    int32_t type;
    void   *buffer;
    int64_t ne[4]; // elements per dimension, the contiguous one first
    size_t  nb[4]; // strides in bytes
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
    Tensor *src[10];
    Tensor *view_src; // the tensor at the root of a view
    size_t  view_offs;
    void   *data;
    char    name[64];
    void   *extra;
    char    padding[8];
};
static_assert(sizeof(Tensor) == 336, "ggml's tensor on 64-bit systems");

// ggml's numbers of element types; part of its file format.
enum : int32_t { kF32  = 0,
                 kF16  = 1,
                 kQ4_0 = 2,
                 kQ8_0 = 8,
                 kI32  = 26,
                 kI64  = 27,
                 kBF16 = 30 };

// A node without this flag is skipped, in hosts that know the flag.
constexpr int32_t kFlagCompute = 16;

// Parameters of a CUSTOM node. -1 tasks: as many as there are threads.
struct CustomParams {
    void (*run)(Tensor *dst, int ith, int nth, void *user);
    int   n_tasks;
    void *user;
};

using Graph   = struct OpaqueGraph;
using Device  = void *; // pointers in words: see the indices below
using Backend = void *;

using ComputeFn = int (*)(Backend *backend, Graph *graph);
using FreeFn    = void (*)(Backend *backend);
using InitFn    = Backend *(*)(Device *device, const char *params);

// Words of a device: the functions of its interface come first.
constexpr int kDeviceGetName     = 0;
constexpr int kDeviceInitBackend = 5;

// Words of a backend: its GUID, the functions of its interface, its device.
constexpr int kBackendFree = 2;

// An event of a device: the device, then the driver's own event.
using Event                = void *;
constexpr int kEventDevice = 0;
constexpr int kEventHandle = 1;

// A part of a graph, as the host's function returns it: by value, of a size that only the host knows. The
// call's convention is that of any large structure.
struct Part {
    alignas(16) unsigned char bytes[512];
};

} // namespace lim::ggml
