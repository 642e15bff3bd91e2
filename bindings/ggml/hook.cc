// Takes part in a ggml host's graphs, from inside the host's own backends.
//
// ggml_backend_init answers with a registry that has no devices, and replaces the CPU device's
// init_backend. Each CPU backend that is made afterwards gets its graph_compute wrapped: attentions that
// the plan takes become CUSTOM nodes, which the host runs on its own threads, and are restored when the
// host's function returns. So nothing is split, nothing is copied, and the host keeps its scheduling.
//
// The same is done to CUDA devices where that is asked for, but a GPU's graph is computed in parts: see gpu.cc.
#include "hook.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <strings.h>
#include <unistd.h>
#include <vector>

#include "context.h"
#include "selftest.h"
#include "symbols.h"
#include "transfers.h"

namespace lim::ggml {
namespace {

// What is said where the shim gets no memory: the host goes on by itself.
char kNoMemory[] = "no memory";

// Graphs between two looks at the process's signal handlers: a few microseconds each.
constexpr uint32_t kSignalCheck = 64;

// A host that loaded the library. A process may hold several, each with its own copy of ggml.
struct Installed {
    Host     host;
    Registry registry;
    bool     hooked;
    Gpus     gpus;
    bool     gpus_hooked;
};

// What the hook knows. Never destroyed: hosts free backends while the process ends.
struct State {
    std::mutex               mutex;
    std::mutex               rehearsing; // on a GPU: taken before the other one
    std::vector<Installed *> hosts;
    std::vector<Context *>   contexts;
    uint64_t                 made; // contexts, so far
};

// The process that loaded the library. Go's runtime, which starts with it, does not survive a fork: in a
// child the host goes on by itself.
const pid_t loaded_in = getpid();
bool        forked() { return getpid() != loaded_in; }

bool is_set(const char *variable, const char *a, const char *b) {
    const char *value = secure_getenv(variable);
    return value != nullptr && (strcasecmp(value, a) == 0 || strcasecmp(value, b) == 0);
}

// Says once in a child why the host goes on by itself there. Without Go, and without C's streams, whose locks
// another thread may have held when the child was made.
void tell_forked() {
    static std::atomic_flag said = ATOMIC_FLAG_INIT;
    if (is_set("LESSISMORE_LOG", "off", "off") || is_set("LESSISMORE", "off", "0") || said.test_and_set()) return;
    char                           text[320];
    const int                      n       = snprintf(text, sizeof text,
                                                      "lessismore: inert: process %ld was forked from process %ld after that one had loaded the library. Load it "
                                                      "in the process that makes the model (gunicorn: without --preload, or in the post_fork hook; multiprocessing: "
                                                      "\"spawn\")\n",
                                                      static_cast<long>(getpid()), static_cast<long>(loaded_in));
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, static_cast<size_t>(n));
}

State &state() {
    static State *s = new State;
    return *s;
}

// Locks the state, but not in a child: that has one thread, and its copy of the lock may be held for ever.
std::unique_lock<std::mutex> lock_state() {
    std::unique_lock lock(state().mutex, std::defer_lock);
    if (!forked()) lock.lock();
    return lock;
}

Context *find_context(Backend *backend) {
    const auto lock = lock_state();
    for (Context *c : state().contexts) {
        if (c->backend == backend) return c;
    }
    return nullptr;
}

// Something was to be copied between two backends: they are of one context of the host's, and so are all that were known to be of one with
// either.
void met(const Backend *from, const Backend *to) {
    const auto lock = lock_state();
    Context   *a = nullptr, *b = nullptr;
    for (Context *c : state().contexts) {
        if (c->backend == from) a = c;
        if (c->backend == to) b = c;
    }
    if (a == nullptr || b == nullptr || a->host_context == b->host_context) return;
    const uint64_t one = std::min<uint64_t>(a->host_context, b->host_context), other = std::max<uint64_t>(a->host_context, b->host_context);
    for (Context *c : state().contexts) {
        if (c->host_context == other) c->host_context = one;
    }
}

// A handler without SA_ONSTACK runs on the stack that it interrupts. While a thread is in Go that is a
// goroutine's, of a few kilobytes, and Go's runtime aborts. Go gives the flag to the handlers that it finds
// at its start; hosts install theirs later (llama-server after loading the model).
void give_handlers_their_stack() {
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;
        if (sigaction(number, nullptr, &action) != 0 || (action.sa_flags & SA_ONSTACK) != 0) continue;
        if ((action.sa_flags & SA_SIGINFO) == 0 && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)) continue;
        action.sa_flags |= SA_ONSTACK;
        sigaction(number, &action, nullptr);
    }
}

// One thread's part of an offloaded node; runs on the host's threads.
void run(Tensor *, int ith, int nth, void *user) {
    const auto *node = static_cast<const lim_ggml_node *>(user);
    if (ith < node->max_threads) lim_cpu_attend(&node->call, ith, nth < node->max_threads ? nth : node->max_threads);
}

bool divides(const Extract &extract) {
    for (const lim_ggml_node &n : extract.nodes) {
        if (n.divides == LIM_GGML_DIVIDED) return true;
    }
    return false;
}

// Whether a graph that the plan wants to be computed twice can be. If not, it is computed once, with everything.
bool can_repeat(Context *c) {
    const lim_ggml_graph &g = c->extract.graph;
    if (g.trial == 0) return false;
    const char *why = nullptr;
    try {
        why = c->repeat.prepare(*c->host, c->extract.graph_nodes(), g.n_outputs >= 0 ? g.n_outputs : g.rows, g.output);
    } catch (const std::bad_alloc &) {
        why = kNoMemory;
    }
    if (why == nullptr) return true;
    if (lim_go_ggml_untried(c->session, &c->extract.graph, const_cast<char *>(why)) != 0) {
        for (lim_ggml_node &n : c->extract.nodes) n.reason = LIM_GGML_NO_CACHE;
    }
    return false;
}

void restore_nodes(const Context *c) {
    for (const Saved &saved : c->saved) saved.restore();
}

// Computes a graph again, now with everything: what the host sees is the last result, and its stores hold the last one's rows.
int compute_again(Context *c, Graph *graph) {
    c->repeat.rewind();
    const bool planned = lim_go_ggml_again(c->session, &c->extract.graph) == 0;
    if (!planned) restore_nodes(c);
    const int status = c->compute(c->backend, graph);
    if (status == 0 && planned) lim_go_ggml_tried(c->session, c->repeat.nats(), c->repeat.same() ? 1 : 0);
    return status;
}

// Computes a graph on the CPU: what the plan takes by the library, on the host's threads, the rest by the host.
int take_part(Context *c, Graph *graph) {
    c->saved.clear();
    c->rests.clear();
    try {
        c->extract.read(*c->host, graph, Memory::kHost, !c->known);
        c->saved.reserve(2 * c->extract.nodes.size());
        if (divides(c->extract)) c->rests.reserve(c->extract.nodes.size());
    } catch (const std::bad_alloc &) {
        return c->compute(c->backend, graph);
    }
    if (!wants_plan(c)) return c->compute(c->backend, graph);
    c->extract.graph.host = c->host_context;
    lim_go_ggml_plan(c->session, &c->extract.graph);
    c->known         = c->extract.graph.knows_weights != 0;
    const bool twice = can_repeat(c);
    for (size_t i = 0; i < c->extract.nodes.size(); i++) {
        if (c->extract.nodes[i].reason != LIM_GGML_OFFLOADED) continue;
        Tensor *t = c->extract.tensors[i];
        c->saved.emplace_back(t);
        if (c->extract.nodes[i].rest_tokens > 0) {
            c->rests.emplace_back();
            leave_rest(t, c->extract.nodes[i], c->rests.back());
            t = c->extract.spares[i];
            c->saved.emplace_back(t);
        }
        const CustomParams params{run, -1, &c->extract.nodes[i]};
        memcpy(t->op_params, &params, sizeof params);
        t->op = c->host->custom;
    }
    int status = c->compute(c->backend, graph);
    if (status == 0 && twice) status = compute_again(c, graph);
    if (status == 0) c->extract.note();
    restore_nodes(c);
    return status;
}

// The way into a hooked backend's graph.
int enter(Backend *backend, Graph *graph, int (*take)(Context *, Graph *)) {
    Context *c = find_context(backend);
    if (c == nullptr) return 1; // unreachable: only backends in the list are hooked
    if (forked()) {
        tell_forked();
        return c->compute(backend, graph);
    }
    if (c->computed++ % kSignalCheck == 0) give_handlers_their_stack();
    return take(c, graph);
}

int compute(Backend *backend, Graph *graph) { return enter(backend, graph, take_part); }

int compute_on_gpu(Backend *backend, Graph *graph) {
    return enter(backend, graph, [](Context *c, Graph *whole) {
        int offloaded;
        return take_part_on_gpu(c, whole, offloaded);
    });
}

// gpus: null where there are none, and no events then.
void free_events(const Gpus *gpus, Event *before, Event *after) {
    for (Event *event : {before, after}) {
        if (event != nullptr) gpus->event_free(event);
    }
}

void forget_context(const Context *c) {
    const auto lock = lock_state();
    auto      &all  = state().contexts;
    for (size_t i = 0; i < all.size(); i++) {
        if (all[i] != c) continue;
        all.erase(all.begin() + static_cast<std::ptrdiff_t>(i));
        break;
    }
}

void free_backend(Backend *backend) {
    Context *c = find_context(backend);
    if (c == nullptr) return;
    const FreeFn original = c->free;
    forget_context(c);
    // What a context counted is read once its device is done, and a host gives back more than its own: neither may happen while
    // another one's step is captured.
    std::unique_lock alone(capturing(), std::defer_lock);
    if (!forked()) {
        alone.lock();
        lim_go_ggml_close(c->session);
        free_events(c->gpus, c->before, c->after);
        if (c->gpus != nullptr) forget_backend(backend);
    }
    delete c;
    original(backend);
}

// An event of the host's, which must read as declared.
Event *new_event(const Gpus &gpus, const Device *device) {
    Event *event = gpus.event_new(const_cast<Device *>(device));
    if (event == nullptr || (event[kEventDevice] == device && event[kEventHandle] != nullptr)) return event;
    gpus.event_free(event);
    return nullptr;
}

// The self-test's context on a backend of its own. Both end with it, also where there is no memory for what differs.
struct Rehearsal {
    FreeFn  free_of_host;
    Context c{};

    Rehearsal(FreeFn free, Backend *backend) : free_of_host(free) { c.backend = backend; }
    Rehearsal(const Rehearsal &) = delete;
    ~Rehearsal() {
        std::unique_lock alone(capturing(), std::defer_lock);
        if (c.gpus != nullptr) alone.lock(); // as any other backend's end: see free_backend
        if (c.session != 0) lim_go_ggml_close(c.session);
        free_events(c.gpus, c.before, c.after);
        free_of_host(c.backend);
    }
};

// Computes a small graph on a backend of its own on a GPU, by the host alone and as the hook would have it computed.
// Returns "" if nothing differs, or what does.
std::string rehearse_on(const Host &host, const Gpus &gpus, Gpu &gpu) {
    Device       *device = gpu.device;
    const Symbols symbols(gpus.handle);
    FreeFn        free_of_host;
    void (*synchronize)(Backend *);
    if (!symbols.get(free_of_host, "ggml_backend_free") || !symbols.get(synchronize, "ggml_backend_synchronize")) {
        return symbols.missing() + ", which the self-test needs";
    }
    Backend *backend = gpu.init_backend(device, nullptr);
    if (backend == nullptr) return "the device makes no backend";
    Rehearsal   rehearsal(free_of_host, backend);
    std::string problem;
    const int   word = prove_backend(device, true, backend, problem);
    if (word < 0) return "this host's CUDA backend is laid out in an unknown way: " + problem;
    Context &c = rehearsal.c;
    c.host     = &host;
    c.compute  = reinterpret_cast<ComputeFn>(backend[word]);
    c.gpus     = &gpus;
    c.known    = true; // there are no weights
    c.before   = new_event(gpus, device);
    c.after    = new_event(gpus, device);
    if (c.before == nullptr || c.after == nullptr) {
        problem = "this host's CUDA backend has no events";
    } else if ((c.session = lim_go_ggml_open(LIM_GGML_GPU_REHEARSAL)) == 0) {
        problem = "the self-test cannot begin";
    } else {
        const auto alone = [&](Graph *graph) {
            const int status = c.compute(backend, graph);
            synchronize(backend);
            return status;
        };
        const auto hooked = [&](Graph *graph, int &offloaded) {
            const int status = take_part_on_gpu(&c, graph, offloaded);
            synchronize(backend);
            return status;
        };
        problem    = self_test_gpu(gpus.handle, device, LIM_GGML_REHEARSED_BUDGET, {alone, hooked, &c.direct, &c.replays});
        gpu.direct = c.direct;
    }
    return problem;
}

// Whether a GPU can be hooked: its buffers are seen, and the library computes on it what the host does. It is found
// out once for each, when the host first makes a backend on it that there is memory for.
bool is_fit(const Host &host, Gpus &gpus, Gpu &gpu) {
    const std::lock_guard one(state().rehearsing);
    if (gpu.fit < 0) {
        std::string problem = watch_transfers(gpus.handle, gpu.device);
        if (!problem.empty()) {
            problem = "what this host moves to its GPU is not seen: " + problem;
        } else {
            problem = rehearse_on(host, gpus, gpu);
        }
        gpu.fit = problem.empty() ? 1 : 0;
        if (!problem.empty()) lim_go_ggml_left_alone(problem.data());
    }
    return gpu.fit == 1;
}

// Begins a context with a backend whose graphs its function at `word` computes. False: it cannot begin, and nothing has changed.
bool join(const Host &host, const Gpus *gpus, Backend *backend, int word, Event *before, Event *after, bool direct) {
    auto c     = std::make_unique<Context>();
    c->backend = backend;
    c->host    = &host;
    c->compute = reinterpret_cast<ComputeFn>(backend[word]);
    c->free    = reinterpret_cast<FreeFn>(backend[kBackendFree]);
    c->gpus    = gpus;
    c->before  = before;
    c->after   = after;
    c->direct  = direct;
    {
        std::lock_guard lock(state().mutex);
        state().contexts.push_back(c.get());
        c->host_context = ++state().made;
    }
    try {
        if (gpus != nullptr) watch_backend(backend, met);
        c->session = lim_go_ggml_open(gpus != nullptr ? LIM_GGML_GPU : LIM_GGML_CPU);
    } catch (const std::bad_alloc &) { // of the transfers
        lim_go_ggml_left_alone(kNoMemory);
    }
    if (c->session == 0) {
        if (gpus != nullptr) forget_backend(backend);
        forget_context(c.get());
        return false;
    }
    backend[word]         = reinterpret_cast<void *>(gpus != nullptr ? compute_on_gpu : compute);
    backend[kBackendFree] = reinterpret_cast<void *>(free_backend);
    c.release(); // free_backend's
    return true;
}

// Takes part in a backend that the host just made on the CPU (gpus: null) or on a GPU, if it looks as it should.
void attach(const Host &host, const Gpus *gpus, Device *device, Backend *backend, bool direct) {
    std::string differs;
    const int   word   = prove_backend(device, gpus != nullptr, backend, differs);
    Event      *before = nullptr, *after = nullptr;
    if (gpus != nullptr && word >= 0) before = new_event(*gpus, device), after = new_event(*gpus, device);
    if (word < 0 || (gpus != nullptr && (before == nullptr || after == nullptr))) {
        const std::string name = gpus != nullptr ? "this host's CUDA backend " : "this host's CPU backend ";
        std::string       text = name + (word < 0 ? "is laid out in an unknown way: " + differs : "has no events");
        gpus != nullptr ? lim_go_ggml_left_alone(text.data()) : lim_go_ggml_problem(text.data());
        free_events(gpus, before, after);
        return;
    }
    if (!join(host, gpus, backend, word, before, after, direct)) free_events(gpus, before, after);
}

Installed *find_installed(const Device *device) {
    const auto lock = lock_state();
    for (Installed *i : state().hosts) {
        if (i->host.device == device) return i;
    }
    return nullptr;
}

Backend *init_backend(Device *device, const char *params) {
    const Installed *installed = find_installed(device);
    if (installed == nullptr) return nullptr; // unreachable: only devices in the list are hooked
    Backend *backend = installed->host.init_backend(device, params);
    if (forked()) {
        tell_forked();
    } else if (backend != nullptr) {
        try {
            attach(installed->host, nullptr, device, backend, false);
        } catch (const std::bad_alloc &) {
            lim_go_ggml_problem(kNoMemory);
        }
    }
    return backend;
}

Backend *init_gpu_backend(Device *device, const char *params) {
    Installed *of = nullptr;
    Gpu       *on = nullptr;
    {
        const auto lock = lock_state();
        for (Installed *i : state().hosts) {
            for (Gpu &gpu : i->gpus.list) {
                if (gpu.device == device) of = i, on = &gpu;
            }
        }
    }
    if (of == nullptr) return nullptr; // unreachable: only devices in the list are hooked
    Backend *backend = on->init_backend(device, params);
    if (forked()) {
        tell_forked();
    } else if (backend != nullptr) {
        try {
            if (is_fit(of->host, of->gpus, *on)) attach(of->host, &of->gpus, device, backend, on->direct);
        } catch (const std::bad_alloc &) {
            lim_go_ggml_left_alone(kNoMemory);
        }
    }
    return backend;
}

void hook_device(Device *device, InitFn with) {
    __atomic_store_n(&device[kDeviceInitBackend], reinterpret_cast<void *>(with), __ATOMIC_RELEASE);
}

// Computes a small graph on a backend of its own, by the host alone and as the hook would have it computed.
// Returns "" if nothing differs, or what does. One thread computes: no pool of the host's is left behind. Finds out as well
// whether the host computes a part of an attention.
std::string rehearse(void *handle, Host &host) {
    const Symbols symbols(handle);
    Registry *(*registry_of)(Device *);
    void *(*get_proc_address)(Registry *, const char *);
    FreeFn free_of_host;
    if (!symbols.get(registry_of, "ggml_backend_dev_backend_reg") || !symbols.get(get_proc_address, "ggml_backend_reg_get_proc_address") ||
        !symbols.get(free_of_host, "ggml_backend_free")) {
        return symbols.missing() + ", which the self-test needs";
    }
    const auto set_threads =
        reinterpret_cast<void (*)(Backend *, int)>(get_proc_address(registry_of(host.device), "ggml_backend_set_n_threads"));
    if (set_threads == nullptr) return "this host's CPU backend has no ggml_backend_set_n_threads, which the self-test needs";
    Backend *backend = host.init_backend(host.device, nullptr);
    if (backend == nullptr) return "this host's CPU device makes no backend";
    Rehearsal   rehearsal(free_of_host, backend);
    std::string problem;
    const int   word = prove_backend(host.device, false, backend, problem);
    if (word < 0) return "this host's CPU backend is laid out in an unknown way: " + problem;
    set_threads(backend, 1);

    Context &c = rehearsal.c;
    c.host     = &host;
    c.compute  = reinterpret_cast<ComputeFn>(backend[word]);
    c.session  = lim_go_ggml_open(LIM_GGML_REHEARSAL);
    c.known    = true; // there are no weights
    if (c.session == 0) return "the self-test cannot begin";
    const auto alone  = [&](Graph *graph) { return c.compute(backend, graph); };
    const auto hooked = [&](Graph *graph, int &offloaded) {
        const int status = take_part(&c, graph);
        offloaded        = 0;
        for (const lim_ggml_node &n : c.extract.nodes) offloaded += n.reason == LIM_GGML_OFFLOADED;
        return status;
    };
    problem = self_test(handle, {alone, hooked});
    if (problem.empty()) host.indivisible = self_test_divided(handle, {alone, hooked});
    return problem;
}

const char *registry_name(Registry *) { return "LessIsMore"; }
size_t      no_devices(Registry *) { return 0; }
void       *no_device(Registry *, size_t) { return nullptr; }
void       *no_function(Registry *, const char *) { return nullptr; }

} // namespace

bool wants_plan(Context *c) {
    constexpr uint32_t kMostHashed = 4096; // as many as the plan waits for
    if (c->extract.tells()) return true;
    if (!c->known) c->known = ++c->hashed > kMostHashed;
    return false;
}

} // namespace lim::ggml

using namespace lim::ggml;

namespace {

// The registry that the host gets; null: why not is in `text`.
Registry *install(void *caller, bool hook, lim_ggml_found *found, char *text, size_t size) {
    void *handle = find_host(caller);
    if (handle == nullptr) {
        snprintf(text, size, "no ggml found in this process, or it does not export its functions");
        return nullptr;
    }
    Installed *installed = find_installed(cpu_device(handle));
    if (installed == nullptr) {
        Host        host{};
        std::string problem = prove_host(handle, host);
        if (problem == kNoCpuDevice) *found = LIM_GGML_EARLY;
        if (problem.empty() && hook) problem = rehearse(handle, host);
        if (!problem.empty()) {
            snprintf(text, size, "%s", problem.c_str());
            return nullptr;
        }
        const Registry  registry{host.api_version, registry_name, no_devices, no_device, no_function, nullptr};
        auto            made = std::make_unique<Installed>(Installed{host, registry, false, {}, false});
        std::lock_guard lock(state().mutex);
        state().hosts.push_back(made.get());
        installed = made.release(); // for as long as the process lives
    }
    const Host &host  = installed->host;
    const bool  whole = !host.indivisible.empty();
    snprintf(text, size, "ggml %s, API %d%s%s", host.version != nullptr ? host.version() : "of unknown version", host.api_version,
             whole ? ", mixed batches are left to the host: " : "", host.indivisible.c_str());
    *found = installed->hooked ? LIM_GGML_AGAIN : LIM_GGML_NEW;
    // The registry carries the host's own API version, so the host is sure to keep the library: hooks may be set.
    if (hook && !installed->hooked) {
        installed->hooked = true;
        hook_device(host.device, init_backend);
    }
    return &installed->registry;
}

int install_gpus(void *caller, bool hook, char *text, size_t size) {
    void      *handle    = find_host(caller);
    Installed *installed = handle != nullptr ? find_installed(cpu_device(handle)) : nullptr;
    if (installed == nullptr) return 0;
    if (!installed->gpus_hooked) {
        Gpus              gpus;
        const std::string problem = prove_gpus(handle, installed->host, gpus);
        if (!problem.empty()) {
            snprintf(text, size, "%s", problem.c_str());
            return -1;
        }
        std::lock_guard lock(state().mutex);
        installed->gpus = std::move(gpus);
    }
    snprintf(text, size, "%s", installed->gpus.names.c_str());
    if (hook && !installed->gpus_hooked && !installed->gpus.list.empty()) {
        installed->gpus_hooked = true;
        for (const Gpu &gpu : installed->gpus.list) hook_device(gpu.device, init_gpu_backend);
    }
    return static_cast<int>(installed->gpus.list.size());
}

} // namespace

// A later load may get the memory that this one does not.
extern "C" void *lim_ggml_install(void *caller, int hook, lim_ggml_found *found, char *text, size_t size) {
    *found = LIM_GGML_UNFIT;
    try {
        return install(caller, hook != 0, found, text, size);
    } catch (const std::bad_alloc &) {
        snprintf(text, size, "%s", kNoMemory);
        return nullptr;
    }
}

extern "C" int lim_ggml_install_gpus(void *caller, int hook, char *text, size_t size) {
    try {
        return install_gpus(caller, hook != 0, text, size);
    } catch (const std::bad_alloc &) {
        snprintf(text, size, "%s", kNoMemory);
        return -1;
    }
}

extern "C" void lim_ggml_at_exit(void) {
    static std::once_flag once;
    std::call_once(once, [] {
        atexit([] {
            if (!forked()) lim_go_ggml_exit();
        });
    });
}

// What a ggml host calls on the library that it loads. Some call it more than once.
extern "C" __attribute__((visibility("default"))) void *ggml_backend_init(void) {
    if (!forked()) return lim_go_ggml_init(__builtin_return_address(0));
    tell_forked();
    return nullptr;
}
