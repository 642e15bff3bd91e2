// A CUDA backend for llama.cpp hosts on machines without a card: what is device memory to the host lies on the heap, and ggml's own CPU code computes.
// To the host it is a GPU like any other. Its scheduler does what it does with one: layers are off-loaded, and of a long prompt the GPU computes
// the CPU's layers, too. The library's kernels run in the stand-in for the driver (tests/gpu/standin).
//
// Built against the host's headers, it lies where the host looks for its backends: libggml-cuda.so.
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <link.h>

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

namespace {

// ---- memory ----

void  free_buffer(ggml_backend_buffer_t b) { free(b->context); }
void *base_of(ggml_backend_buffer_t b) { return b->context; }
void  fill(ggml_backend_buffer_t, ggml_tensor *t, uint8_t value, size_t offset, size_t n) { memset(static_cast<char *>(t->data) + offset, value, n); }
void  set(ggml_backend_buffer_t, ggml_tensor *t, const void *data, size_t offset, size_t n) { memcpy(static_cast<char *>(t->data) + offset, data, n); }
void  get(ggml_backend_buffer_t, const ggml_tensor *t, void *data, size_t offset, size_t n) { memcpy(data, static_cast<const char *>(t->data) + offset, n); }
void  clear(ggml_backend_buffer_t b, uint8_t value) { memset(b->context, value, b->size); }

bool is_own(const ggml_tensor *t) {
    const ggml_backend_buffer_t b = t->view_src != nullptr ? t->view_src->buffer : t->buffer;
    return b != nullptr && b->iface.free_buffer == free_buffer;
}

bool copy(ggml_backend_buffer_t, const ggml_tensor *from, ggml_tensor *to) {
    if (!is_own(from)) return false;
    memcpy(to->data, from->data, ggml_nbytes(from));
    return true;
}

const char           *type_name(ggml_backend_buffer_type_t) { return "CUDA0"; }
size_t                alignment(ggml_backend_buffer_type_t) { return 128; }
ggml_backend_buffer_t alloc(ggml_backend_buffer_type_t type, size_t n) {
    void *memory = aligned_alloc(256, (n + 511) / 256 * 256);
    if (memory == nullptr) return nullptr;
    ggml_backend_buffer_i i = {};
    i.free_buffer = free_buffer, i.get_base = base_of, i.memset_tensor = fill, i.set_tensor = set, i.get_tensor = get, i.cpy_tensor = copy, i.clear = clear;
    return ggml_backend_buffer_init(type, i, memory, n);
}

// ---- a backend ----

// A function of the host's CPU backend, which is loaded behind this one and tells nobody its names.
void *of_cpu(const char *name) {
    static void *cpu;
    if (cpu == nullptr) {
        dl_iterate_phdr(
            [](dl_phdr_info *info, size_t, void *) {
                if (strstr(info->dlpi_name, "libggml-cpu") != nullptr) cpu = dlopen(info->dlpi_name, RTLD_NOW | RTLD_NOLOAD);
                return cpu != nullptr ? 1 : 0;
            },
            nullptr);
    }
    void *found = cpu != nullptr ? dlsym(cpu, name) : nullptr;
    if (found == nullptr) abort();
    return found;
}

ggml_status compute(ggml_backend_t, ggml_cgraph *graph) {
    static const auto plan_of = reinterpret_cast<decltype(&ggml_graph_plan)>(of_cpu("ggml_graph_plan"));
    static const auto run = reinterpret_cast<decltype(&ggml_graph_compute)>(of_cpu("ggml_graph_compute"));
    ggml_cplan        plan = plan_of(graph, 1, nullptr);
    plan.work_data = static_cast<uint8_t *>(malloc(plan.work_size + 1));
    const ggml_status status = run(graph, &plan);
    free(plan.work_data);
    return status;
}

const char *backend_name(ggml_backend_t) { return "CUDA0"; }
void        free_backend(ggml_backend_t b) { delete b; }
void        set_async(ggml_backend_t, ggml_tensor *t, const void *data, size_t offset, size_t n) { set(nullptr, t, data, offset, n); }
void        get_async(ggml_backend_t, const ggml_tensor *t, void *data, size_t offset, size_t n) { get(nullptr, t, data, offset, n); }
bool        copy_async(ggml_backend_t, ggml_backend_t, const ggml_tensor *from, ggml_tensor *to) { return is_own(to) && copy(nullptr, from, to); }
void        wait(ggml_backend_t) {}
void        record(ggml_backend_t, ggml_backend_event_t) {}
void        wait_for(ggml_backend_t, ggml_backend_event_t) {}
void        optimize(ggml_backend_t, ggml_cgraph *, ggml_backend_graph_optimize_params *) {}

ggml_backend_t make(ggml_backend_dev_t device, const char *) {
    static uint8_t guid[16] = {0x4c, 0x49, 0x4d};
    ggml_backend_i i = {};
    i.get_name = backend_name, i.free = free_backend, i.set_tensor_async = set_async, i.get_tensor_async = get_async;
    i.cpy_tensor_async = copy_async, i.synchronize = wait, i.graph_compute = compute, i.event_record = record, i.event_wait = wait_for;
    i.graph_optimize = optimize;
    return new ggml_backend{&guid, i, device, nullptr};
}

// ---- the device ----

extern ggml_backend_device      device;
extern ggml_backend_buffer_type type;

void memory_of(ggml_backend_dev_t, size_t *free_bytes, size_t *total) { *free_bytes = *total = size_t{8} << 30; }

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

const char *device_name(ggml_backend_dev_t) { return "CUDA0"; }

void props(ggml_backend_dev_t d, ggml_backend_dev_props *p) {
    *p = {};
    p->name = p->description = device_name(d);
    p->type = device_type(d);
    memory_of(d, &p->memory_free, &p->memory_total);
    p->caps.events = true;
}

bool computes(ggml_backend_dev_t, const ggml_tensor *) { return true; }
bool uses(ggml_backend_dev_t, ggml_backend_buffer_type_t t) { return t == &type; }

// What is taken from the CPU's layers: as llama.cpp's CUDA backend does, operations for 32 tokens and more.
bool takes(ggml_backend_dev_t, const ggml_tensor *t) {
    constexpr int64_t kTokens = 32;
    switch (t->op) {
    case GGML_OP_GET_ROWS: return false;
    case GGML_OP_MUL_MAT: return t->ne[1] >= kTokens;
    case GGML_OP_MUL_MAT_ID:
    case GGML_OP_ROPE: return t->ne[2] >= kTokens;
    default: return ggml_nrows(t) >= kTokens;
    }
}

ggml_backend_event_t event(ggml_backend_dev_t d) {
    static char next;
    return new ggml_backend_event{d, &next};
}
void free_event(ggml_backend_dev_t, ggml_backend_event_t e) { delete e; }
void finish(ggml_backend_dev_t, ggml_backend_event_t) {}

ggml_backend_buffer_type_t type_of(ggml_backend_dev_t) { return &type; }

const char        *registry_name(ggml_backend_reg_t) { return "CUDA"; }
size_t             devices(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t device_at(ggml_backend_reg_t, size_t) { return &device; }
void              *function_of(ggml_backend_reg_t, const char *) { return nullptr; }

ggml_backend_reg         registry = {GGML_BACKEND_API_VERSION, {registry_name, devices, device_at, function_of}, nullptr};
ggml_backend_device      device = {{device_name, device_name, memory_of, device_type, props, make, type_of, nullptr, nullptr, computes, uses, takes, event, free_event, finish}, &registry, nullptr};
ggml_backend_buffer_type type = {{type_name, alloc, alignment, nullptr, nullptr, nullptr}, &device, nullptr};

} // namespace

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) { return &registry; }
