#include "host.h"

#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <new>
#include <unistd.h>

#include "symbols.h"

namespace lim::ggml {
namespace {

constexpr int kDeviceTypeCpu = 0, kDeviceTypeGpu = 1;

const void *module_of(const void *address) {
    Dl_info info;
    return address != nullptr && dladdr(address, &info) != 0 ? info.dli_fbase : nullptr;
}

bool has_ggml(void *handle) {
    return handle != nullptr && dlsym(handle, "ggml_backend_dev_by_type") != nullptr && dlsym(handle, "ggml_graph_node") != nullptr;
}

// Operation numbers by name. The host's table has no length, so a name outside the host's module ends it.
std::string find_operations(Host &host) {
    struct Wanted {
        const char *name;
        int        *number;
    } wanted[] = {
        {"FLASH_ATTN_EXT", &host.flash_attn},
        {"CUSTOM", &host.custom},
        {"SET_ROWS", &host.set_rows},
        {"ROPE", &host.rope},
        {"SOFT_MAX", &host.soft_max},
        {"SCALE", &host.scale},
        {"NONE", &host.none},
    };
    for (auto &w : wanted) *w.number = -1;
    const void *module = module_of(reinterpret_cast<const void *>(host.op_name));
    for (int op = 0, left = sizeof wanted / sizeof *wanted; op < 200 && left > 0; op++) {
        const char *name = host.op_name(op);
        if (module_of(name) != module) break;
        for (auto &w : wanted) {
            if (*w.number < 0 && strcmp(name, w.name) == 0) {
                *w.number = op;
                left--;
            }
        }
    }
    for (auto &w : wanted) {
        if (*w.number < 0) return std::string("this host's ggml has no operation ") + w.name;
    }
    return "";
}

// Tells whether the host numbers element types as we do; "": yes.
std::string prove_types(const Symbols &symbols) {
    const char *(*type_name)(int);
    if (!symbols.get(type_name, "ggml_type_name")) return symbols.missing();
    const struct {
        int         type;
        const char *name;
    } types[] = {{kF32, "f32"}, {kF16, "f16"}, {kBF16, "bf16"}, {kQ8_0, "q8_0"}, {kQ4_0, "q4_0"}, {kI32, "i32"}, {kI64, "i64"}};
    for (const auto &t : types) {
        const char *name = type_name(t.type);
        if (name == nullptr || strcmp(name, t.name) != 0) return std::string("this host numbers the element type ") + t.name + " otherwise";
    }
    return "";
}

// Builds a few tensors with the host's own functions and looks whether they read as abi.h declares.
std::string prove_tensors(const Symbols &symbols, const Host &host) {
    struct InitParams { // passed by value; stable
        size_t size;
        void  *memory;
        bool   no_alloc;
    };
    void *(*init)(InitParams);
    void (*free_context)(void *);
    Tensor *(*new_tensor)(void *, int, int64_t, int64_t, int64_t, int64_t);
    Tensor *(*view)(void *, Tensor *, int64_t, int64_t, int64_t, int64_t, size_t, size_t, size_t, size_t);
    Tensor *(*flash)(void *, Tensor *, Tensor *, Tensor *, Tensor *, float, float, float);
    void (*add_sinks)(Tensor *, Tensor *);
    Tensor *(*set_rows)(void *, Tensor *, Tensor *, Tensor *);
    Tensor *(*set_name)(Tensor *, const char *);
    size_t (*overhead)();
    if (!symbols.get(init, "ggml_init") || !symbols.get(free_context, "ggml_free") || !symbols.get(new_tensor, "ggml_new_tensor_4d") ||
        !symbols.get(view, "ggml_view_4d") || !symbols.get(flash, "ggml_flash_attn_ext") ||
        !symbols.get(add_sinks, "ggml_flash_attn_ext_add_sinks") || !symbols.get(set_rows, "ggml_set_rows") ||
        !symbols.get(set_name, "ggml_set_name") || !symbols.get(overhead, "ggml_tensor_overhead")) {
        return symbols.missing();
    }
    Tensor *(*custom)(void *, int, int64_t, int64_t, int64_t, int64_t, Tensor **, int, void (*)(Tensor *, int, int, void *), int, void *);
    if (!Symbols(symbols).get(custom, "ggml_custom_4d")) custom = nullptr; // of older hosts the self-test tells
    if (overhead() < sizeof(Tensor)) return "this host's tensors are smaller than expected";

    std::string problem;
    void       *context = init({64 * overhead(), nullptr, true});
    if (context == nullptr) return "this host refused memory for a layout check";
    Tensor *store = set_name(new_tensor(context, kF16, 128, 512, 1, 1), "cache_k_l7");
    Tensor *key   = view(context, store, 64, 256, 2, 1, 256, 128, 512 * 256, 256);
    Tensor *query = new_tensor(context, kF32, 64, 1, 4, 1);
    Tensor *mask  = new_tensor(context, kF16, 256, 64, 1, 1);
    Tensor *sinks = new_tensor(context, kF32, 4, 1, 1, 1);
    Tensor *node  = flash(context, query, key, key, mask, 0.125f, 8.0f, 30.0f);
    add_sinks(node, sinks);
    Tensor *slots = new_tensor(context, kI64, 3, 1, 1, 1);
    Tensor *write = set_rows(context, store, new_tensor(context, kF32, 128, 3, 1, 1), slots);

    CustomParams run{[](Tensor *, int, int, void *) {}, -1, &problem}, kept = run;
    Tensor      *own = custom != nullptr ? custom(context, kF32, 4, 1, 1, 1, &query, 1, run.run, run.n_tasks, run.user) : nullptr;
    if (own != nullptr) memcpy(&kept, own->op_params, sizeof kept);

    float params[3];
    memcpy(params, node->op_params, sizeof params);
    const struct {
        bool        holds;
        const char *what;
    } fields[] = {
        {store->type == kF16 && slots->type == kI64, "type"},
        {store->ne[0] == 128 && store->ne[1] == 512 && key->ne[1] == 256 && key->ne[2] == 2 && slots->ne[0] == 3, "ne"},
        {store->nb[0] == 2 && store->nb[1] == 256 && key->nb[2] == 128, "nb"},
        {store->op == host.none && node->op == host.flash_attn && write->op == host.set_rows && (own == nullptr || own->op == host.custom), "op"},
        {kept.run == run.run && kept.n_tasks == run.n_tasks && kept.user == run.user, "op_params of CUSTOM (function, tasks, user's data)"},
        {params[0] == 0.125f && params[1] == 8.0f && params[2] == 30.0f, "op_params of FLASH_ATTN_EXT (scale, max_bias, logit_softcap)"},
        {node->src[0] == query && node->src[1] == key && node->src[2] == key && node->src[3] == mask && node->src[4] == sinks &&
             node->src[5] == nullptr,
         "src of FLASH_ATTN_EXT (query, key, value, mask, sinks)"},
        {node->type == kF32 && node->ne[0] == 64 && node->ne[1] == 4 && node->ne[2] == 1, "the result of FLASH_ATTN_EXT"},
        {write->view_src == store && write->src[1] == slots, "src of SET_ROWS"},
        {store->view_src == nullptr && key->view_src == store && key->view_offs == 256, "view_src or view_offs"},
        {store->data == nullptr, "data"},
        {strcmp(store->name, "cache_k_l7") == 0, "name"},
    };
    for (const auto &field : fields) {
        if (!field.holds && problem.empty()) problem = std::string("this host's tensors are laid out in an unknown way: ") + field.what;
    }
    free_context(context);
    return problem;
}

// True if the word at an address may be written. The kernel is asked to write there what stands there: unlike
// /proc, it can be asked everywhere.
bool writable(void *const *word) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    void *const value = *word;
    const bool  yes   = write(ends[1], &value, sizeof value) == sizeof value &&
                        read(ends[0], const_cast<void **>(word), sizeof value) == sizeof value;
    close(ends[0]);
    close(ends[1]);
    return yes;
}

// A host's functions about devices.
struct DeviceFunctions {
    const char *(*name)(Device *);
    int (*type)(Device *);
    Registry *(*registry)(Device *);

    bool get(const Symbols &symbols) {
        return symbols.get(name, "ggml_backend_dev_name") && symbols.get(type, "ggml_backend_dev_type") &&
               symbols.get(registry, "ggml_backend_dev_backend_reg");
    }
};

// Finds the place of a device's init_backend. On success fills `init` and returns ""; otherwise what is not as it
// should be.
std::string init_of(const DeviceFunctions &functions, Device *device, int type, InitFn &init) {
    // The first six words are functions of one module, the first of which gives the device's name; the
    // registry's address follows the functions.
    static const char *const names[] = {"get_name", "get_description", "get_memory", "get_type", "get_props", "init_backend"};
    const void              *module  = module_of(device[kDeviceGetName]);
    for (int i = 0; i <= kDeviceInitBackend; i++) {
        if (module == nullptr || module_of(device[i]) != module) {
            return "word " + std::to_string(i) + ", " + names[i] + ", is no function of the device's module";
        }
    }
    if (reinterpret_cast<const char *(*)(Device *)>(device[kDeviceGetName])(device) != functions.name(device)) {
        return "word 0, get_name, does not tell the device's name";
    }
    bool follows = false;
    for (int i = kDeviceInitBackend + 1; !follows && i < 24; i++) follows = device[i] == functions.registry(device);
    if (!follows) return "its registry does not follow its functions";
    if (functions.type(device) != type) return "its type is " + std::to_string(functions.type(device)) + ", not " + std::to_string(type);
    if (!writable(&device[kDeviceInitBackend])) return "word 5, init_backend, cannot be written";
    init = reinterpret_cast<InitFn>(device[kDeviceInitBackend]);
    return "";
}

// Finds the place of the CPU device's init_backend.
std::string prove_device(const Symbols &symbols, Host &host) {
    DeviceFunctions functions;
    if (!functions.get(symbols)) return symbols.missing();
    const Registry *registry = functions.registry(host.device);
    if (registry == nullptr) return "this host's CPU device has no registry";
    host.api_version          = registry->api_version;
    const std::string problem = init_of(functions, host.device, kDeviceTypeCpu, host.init_backend);
    return problem.empty() ? "" : "this host's CPU device is laid out in an unknown way: " + problem;
}

} // namespace

// A process may hold several copies of ggml; the one that called is the one that counts. Its handle
// reaches the libraries that it needs, so functions in libggml-base are found through libggml.
void *find_host(const void *caller) {
    Dl_info   info;
    link_map *map = nullptr;
    if (caller != nullptr && dladdr1(caller, &info, reinterpret_cast<void **>(&map), RTLD_DL_LINKMAP) != 0 && map != nullptr) {
        void *handle = map->l_name[0] == '\0' ? dlopen(nullptr, RTLD_LAZY) : dlopen(map->l_name, RTLD_LAZY | RTLD_NOLOAD);
        if (has_ggml(handle)) return handle;
    }
    void *found = nullptr;
    dl_iterate_phdr(
        [](dl_phdr_info *module, size_t, void *out) {
            if (module->dlpi_name == nullptr || module->dlpi_name[0] == '\0') return 0;
            void *handle = dlopen(module->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
            if (!has_ggml(handle)) return 0;
            *static_cast<void **>(out) = handle;
            return 1;
        },
        &found);
    return found;
}

Device *cpu_device(void *handle) {
    Device *(*by_type)(int);
    return Symbols(handle).get(by_type, "ggml_backend_dev_by_type") ? by_type(kDeviceTypeCpu) : nullptr;
}

std::string prove_host(void *handle, Host &host) {
    const Symbols symbols(handle);
    if (!symbols.get(host.graph_n_nodes, "ggml_graph_n_nodes") || !symbols.get(host.graph_node, "ggml_graph_node") ||
        !symbols.get(host.op_name, "ggml_op_name") || !symbols.get(host.type_name, "ggml_type_name")) {
        return symbols.missing();
    }
    symbols.get(host.version, "ggml_version");
    symbols.get(host.tensor_get, "ggml_backend_tensor_get");
    symbols.get(host.nbytes, "ggml_nbytes");
    host.device = cpu_device(handle);
    if (host.device == nullptr) return kNoCpuDevice;
    std::string problem = find_operations(host);
    if (problem.empty()) problem = prove_types(symbols);
    if (problem.empty()) problem = prove_tensors(symbols, host);
    if (problem.empty()) problem = prove_device(symbols, host);
    return problem;
}

std::string prove_gpus(void *handle, const Host &host, Gpus &gpus) {
    const Symbols   symbols(handle);
    DeviceFunctions functions;
    size_t (*count)();
    Device *(*get)(size_t);
    const char *(*registry_name)(Registry *);
    gpus.handle = handle;
    gpus.list.clear();
    gpus.names.clear();
    if (!functions.get(symbols) || !symbols.get(count, "ggml_backend_dev_count") || !symbols.get(get, "ggml_backend_dev_get") ||
        !symbols.get(registry_name, "ggml_backend_reg_name")) {
        return symbols.missing();
    }
    std::string problem;
    for (size_t i = 0; i < count(); i++) {
        Device   *device   = get(i);
        Registry *registry = device != nullptr ? functions.registry(device) : nullptr;
        if (registry == nullptr || strcmp(registry_name(registry), "CUDA") != 0) continue;
        gpus.names += (gpus.names.empty() ? "" : ", ") + std::string(functions.name(device));
        InitFn            init    = nullptr;
        const std::string differs = registry->api_version == host.api_version ? init_of(functions, device, kDeviceTypeGpu, init)
                                                                              : "its registry is of another API version";
        if (!differs.empty()) problem = std::string("this host's device ") + functions.name(device) + " is laid out in an unknown way: " + differs;
        gpus.list.push_back({device, init});
    }
    if (gpus.list.empty() || !problem.empty()) return problem;
    if (!symbols.get(gpus.graph_view, "ggml_graph_view") || !symbols.get(gpus.event_new, "ggml_backend_event_new") ||
        !symbols.get(gpus.event_free, "ggml_backend_event_free") || !symbols.get(gpus.event_record, "ggml_backend_event_record") ||
        !symbols.get(gpus.event_wait, "ggml_backend_event_wait")) {
        return symbols.missing() + ", which it takes to compute a graph in parts";
    }
    // The host then forks a layer's branches onto streams and joins them at its attention.
    const char *forks = getenv("GGML_CUDA_GRAPH_OPT");
    if (forks != nullptr && atoi(forks) == 1) return "GGML_CUDA_GRAPH_OPT=1 lets branches of a graph run side by side, which cannot be split";
    return "";
}

namespace {

// What a backend's interface looks like: its functions as set (1), empty (0) and either (?), and which one computes graphs.
struct Face {
    const char *pattern;
    int         compute;
};

// Returns the word behind the functions, or -1 and what is not as it should be.
int match(const Face &face, const void *module, Backend *backend, std::string &differs) {
    int next = 1;
    for (; face.pattern[next - 1] != '\0'; next++) {
        const void *function = backend[next];
        const char  wanted   = face.pattern[next - 1];
        const bool  own      = module != nullptr && module_of(function) == module;
        if (wanted == '0' ? function != nullptr : wanted == '1' ? !own
                                                                : function != nullptr && !own) {
            differs = "function " + std::to_string(next - 1) + (wanted == '0' ? " is not empty" : " is none of the backend's module");
            return -1;
        }
    }
    return next;
}

} // namespace

int prove_backend(const Device *device, bool gpu, Backend *backend, std::string &differs) {
    // Name, free, asynchronous data access (of two dimensions, too, since May 2026) and synchronisation, four of graph plans,
    // graph_compute, two of events. What follows (graph optimisation, more of the CPU's empty ones) is either, then comes the
    // device. On a GPU the places of data access are taken, too: the newer face alone.
    constexpr Face newer{"1100000011011", 12}, older{"11000011011", 10}, on_gpu{"1111??110000111", 12};
    const void    *module  = module_of(backend[1]);
    int            compute = (gpu ? on_gpu : newer).compute, next = match(gpu ? on_gpu : newer, module, backend, differs);
    std::string    other;
    if (next < 0 && !gpu && (next = match(older, module, backend, other)) >= 0) compute = older.compute;
    if (next < 0) return -1;
    while (next < 24 && backend[next] != device && (backend[next] == nullptr || (gpu && module_of(backend[next]) == module))) next++;
    if (next < 24 && backend[next] == device) return 1 + compute; // word 0 is the GUID
    differs = "its device does not follow its functions";
    return -1;
}

bool prove_view(const Host &host, const Gpus &gpus, Graph *graph) {
    constexpr unsigned char kUntouched = 0xA5;
    Part                    part;
    memset(&part, kUntouched, sizeof part);
    __asm__ volatile("" : : "r"(&part) : "memory"); // or the compiler would drop what the function is said to overwrite
    const int n = host.graph_n_nodes(graph);
    new (&part) Part(gpus.graph_view(graph, 1, n));
    // A view that fills the room given is larger than it.
    for (size_t i = sizeof part.bytes - 64; i < sizeof part.bytes; i++) {
        if (part.bytes[i] != kUntouched) return false;
    }
    auto *view = reinterpret_cast<Graph *>(&part);
    return host.graph_n_nodes(view) == n - 1 && host.graph_node(view, 0) == host.graph_node(graph, 1) &&
           host.graph_node(view, n - 2) == host.graph_node(graph, n - 1);
}

} // namespace lim::ggml
