// Takes part in a ggml host's graphs, from inside the host's own backends.
//
// ggml_backend_init answers with a registry that has no devices, and replaces the CPU device's
// init_backend. Each CPU backend that is made afterwards gets its graph_compute wrapped: attentions that
// the plan takes become CUSTOM nodes, which the host runs on its own threads, and are restored when the
// host's function returns. So nothing is split, nothing is copied, and the host keeps its scheduling.
//
// The same is done to CUDA devices where that is asked for, but a GPU's graph is computed in parts, by the
// host's own function, around the attentions that are offloaded. These run on a stream of the library's; the
// host's events order it with the host's. A step that is like the one before is captured, the host's parts with
// ours, and from then on replayed as one graph of the driver's.
#include "hook.h"

#include <atomic>
#include <cstdio>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <strings.h>
#include <unistd.h>
#include <vector>

#include "extract.h"
#include "recording.h"
#include "selftest.h"
#include "symbols.h"
#include "transfers.h"

namespace lim::ggml {
namespace {

// A node's own words, while it is a CUSTOM node.
struct Saved {
    Tensor *tensor;
    int32_t params[sizeof(CustomParams) / sizeof(int32_t)];
};

// One backend of the host, that is one context of its user. One thread at a time computes on it.
struct Context {
    Backend           *backend;
    const Host        *host;
    ComputeFn          compute; // the host's own
    FreeFn             free;
    uintptr_t          session;
    Extract            extract;
    std::vector<Saved> saved;
    uint32_t           computed; // graphs
    bool               known;    // the model's weights are

    // Of a GPU's backend alone.
    const Gpus *gpus;            // null: it is the CPU's
    Event      *before, *after;  // the host's stream has come to an offloaded node; the library's is done with it
    Event      *loaded;          // the graph's inputs are there
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
    std::mutex               capturing;  // a host's backend must not be freed meanwhile
    std::vector<Installed *> hosts;
    std::vector<Context *>   contexts;
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

// Computes a graph on the CPU: what the plan takes by the library, on the host's threads, the rest by the host.
int take_part(Context *c, Graph *graph) {
    c->saved.clear();
    try {
        c->extract.read(*c->host, graph, Memory::kHost, !c->known);
        c->saved.reserve(c->extract.nodes.size());
    } catch (const std::bad_alloc &) {
        return c->compute(c->backend, graph);
    }
    lim_go_ggml_plan(c->session, &c->extract.graph);
    c->known = c->extract.graph.knows_weights != 0;
    for (size_t i = 0; i < c->extract.nodes.size(); i++) {
        if (c->extract.nodes[i].reason != LIM_GGML_OFFLOADED) continue;
        Tensor *t = c->extract.tensors[i];
        Saved   saved{t, {}};
        memcpy(saved.params, t->op_params, sizeof saved.params);
        c->saved.push_back(saved);
        const CustomParams params{run, -1, &c->extract.nodes[i]};
        memcpy(t->op_params, &params, sizeof params);
        t->op = c->host->custom;
    }
    const int status = c->compute(c->backend, graph);
    if (status == 0) c->extract.note();
    for (const Saved &saved : c->saved) {
        memcpy(saved.tensor->op_params, saved.params, sizeof saved.params);
        saved.tensor->op = c->host->flash_attn;
    }
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

// Nodes [from, to) of a graph, computed by the host.
int compute_part(const Context *c, Graph *graph, int from, int to) {
    Part part = c->gpus->graph_view(graph, from, to);
    return c->compute(c->backend, reinterpret_cast<Graph *>(&part));
}

int64_t rows_of(const Tensor *attention) { return attention->src[0]->ne[1] * attention->src[0]->ne[3]; }

// Whether a node is an attention for as many rows as the first one that was taken of the last graph.
bool is_like_last(const Context *c, const Tensor *t) { return t->op == c->host->flash_attn && rows_of(t) == c->rows; }

int compute_rest(const Context *c, Graph *graph, int done, int n) {
    if (done == 0) return c->compute(c->backend, graph);
    return done < n ? compute_part(c, graph, done, n) : 0;
}

// Reads a graph, and gives the recording for it, if there is one.
Recording *read_graph(Context *c, Graph *graph, int n) {
    Recording *of = nullptr;
    for (Recording &r : c->recordings) {
        if (of == nullptr && r.used != 0 && r.graph.of(*c->host, graph, n)) of = &r;
    }
    const bool again = of != nullptr && of == c->read && c->known && c->extract.read_inputs();
    if (!again) c->extract.read(*c->host, graph, Memory::kDevice, !c->known);
    c->read = of;
    c->extract.read_changes();
    return of;
}

// Whether the plan takes the attentions that a recording has, or is to have, and no others. Node `done` is the first one.
bool takes(const Context *c, int done, Recording &r) {
    if (!r.made) r.places.clear();
    size_t n = 0;
    for (size_t i = 0; i < c->extract.nodes.size(); i++) {
        if (c->extract.nodes[i].reason != LIM_GGML_OFFLOADED) continue;
        const int place = c->extract.places[i];
        if (!r.made) r.places.push_back(place);
        if (n >= r.places.size() || r.places[n++] != place) return false;
    }
    return n > 0 && n == r.places.size() && r.places.front() == done;
}

// Has what a step queues from its first attention on recorded instead of run. Where that fails, the host's parts are not
// captured any more.
bool capture(Context *c, Graph *graph, int n, Recording &r) {
    const std::lock_guard one(state().capturing);
    if (lim_go_ggml_capture(c->session) != 0) return false;
    bool   whole  = true;
    void  *before = nullptr;
    size_t next   = 0;
    for (size_t i = 0; i < c->extract.nodes.size() && whole; i++) {
        lim_ggml_node &node = c->extract.nodes[i];
        if (next == r.places.size() || c->extract.places[i] != r.places[next]) continue;
        const int place = r.places[next++], end = next < r.places.size() ? r.places[next] : n;
        whole = lim_go_ggml_attend(c->session, &node, before, c->after[kEventHandle]) == 0;
        if (!whole) break;
        c->gpus->event_wait(c->backend, c->after);
        if (end > place + 1) {
            const Unlike first(*c->host, c->extract.tensors[i]);
            whole = compute_part(c, graph, place, end) == 0;
        }
        c->gpus->event_record(c->before, c->backend);
        before = c->before[kEventHandle];
    }
    const int number = static_cast<int>(&r - c->recordings);
    return lim_go_ggml_captured(c->session, number, whole ? before : nullptr) == 0 && whole;
}

// Remembers a graph whose step was queued in parts: the next one that is like it is recorded.
void remember(Context *c, Graph *graph, int n, Recording *of) {
    if (of == nullptr) {
        of = c->recordings;
        for (Recording &r : c->recordings) {
            if (r.used < of->used) of = &r;
        }
        of->used = 0;
        of->graph.take(*c->host, graph, n);
        of->may = may_capture(*c->host, graph, n);
    }
    of->form = c->extract.graph.form;
    of->made = false;
    of->used = c->steps;
    c->read  = of;
}

// Queues a step as it was recorded, which is done first where it has not been.
enum class Queued { kAll,
                    kNothing, // it cannot be recorded
                    kFailed   /* nor will anything be */ };
Queued replay(Context *c, Graph *graph, int n, Recording &r) {
    if (!r.made) r.made = capture(c, graph, n, r);
    if (!r.made) {
        c->direct = false;
        return Queued::kNothing;
    }
    r.used = c->steps;
    c->gpus->event_record(c->before, c->backend);
    if (lim_go_ggml_replay(c->session, static_cast<int>(&r - c->recordings), c->loaded[kEventHandle], c->before[kEventHandle], c->after[kEventHandle]) != 0) {
        c->begun = 0;
        return Queued::kFailed;
    }
    c->gpus->event_wait(c->backend, c->after);
    c->replays++;
    return Queued::kAll;
}

// The next graph like this one is begun before it is planned: by what comes before the first attention that is taken.
void begin_at_first(Context *c) {
    c->begun = 0;
    for (size_t i = 0; i < c->extract.nodes.size() && c->begun == 0; i++) {
        if (c->extract.nodes[i].reason == LIM_GGML_OFFLOADED) c->begun = c->extract.places[i], c->rows = rows_of(c->extract.tensors[i]);
    }
}

// What the plan takes, in between parts that the host computes, from node `done` on. `offloaded`: how many attentions that were.
int compute_parts(Context *c, Graph *graph, int n, int done, int &offloaded) {
    Backend *backend = c->backend;
    c->nodes = n;
    begin_at_first(c);
    for (size_t i = 0; i < c->extract.nodes.size(); i++) {
        lim_ggml_node &node = c->extract.nodes[i];
        if (node.reason != LIM_GGML_OFFLOADED) continue;
        if (!c->divides) {
            if (n < 2 || !prove_view(*c->host, *c->gpus, graph)) {
                static char problem[] = "this host's graphs cannot be computed in parts";
                lim_go_ggml_left_alone(problem);
                c->indivisible = true;
                break;
            }
            c->divides = true;
        }
        const int place = c->extract.places[i];
        if (place < done) continue; // the graph is not like the last one, after all
        if (place > done) {
            const int status = compute_part(c, graph, done, place);
            if (status != 0) return status;
            done = place;
        }
        c->gpus->event_record(c->before, backend);
        if (lim_go_ggml_attend(c->session, &node, c->before[kEventHandle], c->after[kEventHandle]) != 0) break; // the host does the rest
        c->gpus->event_wait(backend, c->after);
        offloaded++;
        done = place + 1;
    }
    if (offloaded == 0) c->begun = 0; // nor will it be
    return compute_rest(c, graph, done, n);
}

// Computes a graph on a GPU. `offloaded`: how many attentions the library computed.
int take_part_on_gpu(Context *c, Graph *graph, int &offloaded) {
    offloaded         = 0;
    Backend  *backend = c->backend;
    const int n       = c->host->graph_n_nodes(graph);
    if (c->indivisible) return c->compute(backend, graph);
    // What the plan costs the host's thread is hidden behind work of the device's, where that can be begun: all of a graph
    // that nothing is expected to be taken of, and what comes before the first attention of one like the last.
    int  done = 0;
    bool all  = false;
    if (c->later) {
        const int status = c->compute(backend, graph);
        if (status != 0) return status;
        all = true;
    } else if (c->begun > 0 && n == c->nodes && is_like_last(c, c->host->graph_node(graph, c->begun))) {
        if (c->direct) c->gpus->event_record(c->loaded, backend);
        const int status = compute_part(c, graph, 0, c->begun);
        if (status != 0) return status;
        done = c->begun;
    }
    Recording *of = nullptr;
    try {
        of = read_graph(c, graph, n);
    } catch (const std::bad_alloc &) {
        c->read = nullptr;
        return all ? 0 : compute_rest(c, graph, done, n);
    }
    c->extract.graph.computed = all;
    c->extract.graph.records  = c->direct;
    lim_go_ggml_plan(c->session, &c->extract.graph);
    c->extract.follow();
    c->known = c->extract.graph.knows_weights != 0;
    c->later = c->extract.graph.later != 0;
    if (all) return 0;
    c->steps++;
    const uint64_t form = c->direct ? c->extract.graph.form : 0;
    if (form != 0 && done > 0 && of != nullptr && of->may && of->form == form && takes(c, done, *of)) {
        const Queued queued = replay(c, graph, n, *of);
        if (queued == Queued::kFailed) return compute_rest(c, graph, done, n);
        if (queued == Queued::kAll) {
            offloaded = static_cast<int>(of->places.size());
            return 0;
        }
    }
    const int status = compute_parts(c, graph, n, done, offloaded);
    if (status == 0 && form != 0 && offloaded > 0 && (of == nullptr || of->form != form)) {
        try {
            remember(c, graph, n, of);
        } catch (const std::bad_alloc &) {
            c->read = nullptr;
        }
    }
    return status;
}

int compute_on_gpu(Backend *backend, Graph *graph) {
    return enter(backend, graph, [](Context *c, Graph *whole) {
        int offloaded;
        return take_part_on_gpu(c, whole, offloaded);
    });
}

// gpus: null where there are none, and no events then.
void free_events(const Gpus *gpus, Event *before, Event *after, Event *loaded) {
    for (Event *event : {before, after, loaded}) {
        if (event != nullptr) gpus->event_free(event);
    }
}

void free_backend(Backend *backend) {
    Context *c = find_context(backend);
    if (c == nullptr) return;
    const FreeFn original = c->free;
    {
        const auto lock = lock_state();
        auto      &all  = state().contexts;
        for (size_t i = 0; i < all.size(); i++) {
            if (all[i] == c) {
                all.erase(all.begin() + static_cast<std::ptrdiff_t>(i));
                break;
            }
        }
    }
    if (!forked()) {
        lim_go_ggml_close(c->session);
        free_events(c->gpus, c->before, c->after, c->loaded);
        if (c->gpus != nullptr) forget_backend(backend);
    }
    delete c;
    std::unique_lock alone(state().capturing, std::defer_lock);
    if (!forked()) alone.lock();
    original(backend);
}

// An event of the host's, which must read as declared.
Event *new_event(const Gpus &gpus, const Device *device) {
    Event *event = gpus.event_new(const_cast<Device *>(device));
    if (event == nullptr || (event[kEventDevice] == device && event[kEventHandle] != nullptr)) return event;
    gpus.event_free(event);
    return nullptr;
}

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
    std::string problem;
    const int   word = prove_backend(device, true, backend, problem);
    if (word < 0) {
        free_of_host(backend);
        return "this host's CUDA backend is laid out in an unknown way: " + problem;
    }
    Context c{};
    c.backend = backend;
    c.host    = &host;
    c.compute = reinterpret_cast<ComputeFn>(backend[word]);
    c.gpus    = &gpus;
    c.known   = true; // there are no weights
    c.before  = new_event(gpus, device);
    c.after   = new_event(gpus, device);
    c.loaded  = new_event(gpus, device);
    if (c.before == nullptr || c.after == nullptr || c.loaded == nullptr) {
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
        problem = self_test_gpu(gpus.handle, device, LIM_GGML_REHEARSED_BUDGET, {alone, hooked, &c.direct, &c.replays});
        gpu.direct = c.direct;
        lim_go_ggml_close(c.session);
    }
    free_events(&gpus, c.before, c.after, c.loaded);
    free_of_host(backend);
    return problem;
}

// Whether a GPU can be hooked: its buffers are seen, and the library computes on it what the host does. It is found
// out once for each, when the host first makes a backend on it.
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

// Takes part in a backend that the host just made on the CPU (gpus: null) or on a GPU, if it looks as it should.
void attach(const Host &host, const Gpus *gpus, Device *device, Backend *backend, bool direct) {
    std::string differs;
    const int   word   = prove_backend(device, gpus != nullptr, backend, differs);
    Event      *before = nullptr, *after = nullptr, *loaded = nullptr;
    if (gpus != nullptr && word >= 0) before = new_event(*gpus, device), after = new_event(*gpus, device), loaded = new_event(*gpus, device);
    if (word < 0 || (gpus != nullptr && (before == nullptr || after == nullptr || loaded == nullptr))) {
        const std::string name = gpus != nullptr ? "this host's CUDA backend " : "this host's CPU backend ";
        std::string       text = name + (word < 0 ? "is laid out in an unknown way: " + differs : "has no events");
        gpus != nullptr ? lim_go_ggml_left_alone(text.data()) : lim_go_ggml_problem(text.data());
        free_events(gpus, before, after, loaded);
        return;
    }
    const uintptr_t session = lim_go_ggml_open(gpus != nullptr ? LIM_GGML_GPU : LIM_GGML_CPU);
    if (session == 0) {
        free_events(gpus, before, after, loaded);
        return;
    }
    auto *c    = new Context{};
    c->backend = backend;
    c->host    = &host;
    c->session = session;
    c->compute = reinterpret_cast<ComputeFn>(backend[word]);
    c->free    = reinterpret_cast<FreeFn>(backend[kBackendFree]);
    c->gpus    = gpus;
    c->before  = before;
    c->after   = after;
    c->loaded  = loaded;
    c->direct  = direct;
    {
        std::lock_guard lock(state().mutex);
        state().contexts.push_back(c);
    }
    if (gpus != nullptr) watch_backend(backend);
    backend[word]         = reinterpret_cast<void *>(gpus != nullptr ? compute_on_gpu : compute);
    backend[kBackendFree] = reinterpret_cast<void *>(free_backend);
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
        attach(installed->host, nullptr, device, backend, false);
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
    } else if (backend != nullptr && is_fit(of->host, of->gpus, *on)) {
        attach(of->host, &of->gpus, device, backend, on->direct);
    }
    return backend;
}

void hook_device(Device *device, InitFn with) {
    __atomic_store_n(&device[kDeviceInitBackend], reinterpret_cast<void *>(with), __ATOMIC_RELEASE);
}

// Computes a small graph on a backend of its own, by the host alone and as the hook would have it computed.
// Returns "" if nothing differs, or what does. One thread computes: no pool of the host's is left behind.
std::string rehearse(void *handle, const Host &host) {
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
    std::string problem;
    const int   word = prove_backend(host.device, false, backend, problem);
    if (word < 0) {
        free_of_host(backend);
        return "this host's CPU backend is laid out in an unknown way: " + problem;
    }
    set_threads(backend, 1);

    Context c{};
    c.backend = backend;
    c.host    = &host;
    c.compute = reinterpret_cast<ComputeFn>(backend[word]);
    c.session = lim_go_ggml_open(LIM_GGML_REHEARSAL);
    c.known   = true; // there are no weights
    if (c.session == 0) {
        free_of_host(backend);
        return "the self-test cannot begin";
    }
    const auto alone  = [&](Graph *graph) { return c.compute(backend, graph); };
    const auto hooked = [&](Graph *graph, int &offloaded) {
        const int status = take_part(&c, graph);
        offloaded        = static_cast<int>(c.saved.size());
        return status;
    };
    problem = self_test(handle, {alone, hooked});
    lim_go_ggml_close(c.session);
    free_of_host(backend);
    return problem;
}

const char *registry_name(Registry *) { return "LessIsMore"; }
size_t      no_devices(Registry *) { return 0; }
void       *no_device(Registry *, size_t) { return nullptr; }
void       *no_function(Registry *, const char *) { return nullptr; }

} // namespace
} // namespace lim::ggml

using namespace lim::ggml;

extern "C" void *lim_ggml_install(void *caller, int hook, lim_ggml_found *found, char *text, size_t size) {
    *found       = LIM_GGML_UNFIT;
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
        if (problem.empty() && hook != 0) problem = rehearse(handle, host);
        if (!problem.empty()) {
            snprintf(text, size, "%s", problem.c_str());
            return nullptr;
        }
        installed = new Installed{host, {host.api_version, registry_name, no_devices, no_device, no_function, nullptr}, false, {}, false};
        std::lock_guard lock(state().mutex);
        state().hosts.push_back(installed);
    }
    const Host &host = installed->host;
    snprintf(text, size, "ggml %s, API %d", host.version != nullptr ? host.version() : "of unknown version", host.api_version);
    *found = installed->hooked ? LIM_GGML_AGAIN : LIM_GGML_NEW;
    // The registry carries the host's own API version, so the host is sure to keep the library: hooks may be set.
    if (hook != 0 && !installed->hooked) {
        installed->hooked = true;
        hook_device(host.device, init_backend);
    }
    return &installed->registry;
}

extern "C" int lim_ggml_install_gpus(void *caller, int hook, char *text, size_t size) {
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
    if (hook != 0 && !installed->gpus_hooked && !installed->gpus.list.empty()) {
        installed->gpus_hooked = true;
        for (const Gpu &gpu : installed->gpus.list) hook_device(gpu.device, init_gpu_backend);
    }
    return static_cast<int>(installed->gpus.list.size());
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
