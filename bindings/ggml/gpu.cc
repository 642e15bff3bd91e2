// A GPU's graph: in parts, by the host's own function, around the attentions that are offloaded. These run on a stream of
// the library's; the host's events order it with the host's. A step that is like the one before is captured, the host's parts with
// ours, and from then on replayed as one graph of the driver's.
#include <mutex>
#include <new>
#include <type_traits>

#include "context.h"

namespace lim::ggml {
namespace {

// Nodes [from, to) of a graph, computed by the host.
int compute_part(const Context *c, Graph *graph, int from, int to) {
    Part part = c->gpus->graph_view(graph, from, to);
    return c->compute(c->backend, reinterpret_cast<Graph *>(&part));
}

int64_t rows_of(const Tensor *attention) { return attention->src[0]->ne[1] * attention->src[0]->ne[3]; }

// Whether a node is an attention for as many rows as the first one that was taken of the last graph.
bool is_like_last(const Context *c, const Tensor *t) { return t->op == c->host->flash_attn && t->src[0] != nullptr && rows_of(t) == c->rows; }

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
    const std::lock_guard one(capturing());
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
    of->places.reserve(c->extract.nodes.size()); // a graph that is like this one has as many
    of->form = c->extract.graph.form;
    of->made = false;
    of->used = c->steps;
    c->read  = of;
}

// Queues a step as it was recorded, which is done first where it has not been.
enum class Queued { kAll,
                    kNothing, // it cannot be recorded
                    kFailed /* nor will anything be */ };
Queued replay(Context *c, Graph *graph, int n, Recording &r) {
    if (!r.made) r.made = capture(c, graph, n, r);
    if (!r.made) {
        c->direct = false;
        return Queued::kNothing;
    }
    r.used = c->steps;
    c->gpus->event_record(c->before, c->backend);
    if (lim_go_ggml_replay(c->session, static_cast<int>(&r - c->recordings), c->before[kEventHandle], c->after[kEventHandle]) != 0) {
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
    c->nodes         = n;
    begin_at_first(c);
    for (size_t i = 0; i < c->extract.nodes.size(); i++) {
        lim_ggml_node &node = c->extract.nodes[i];
        if (node.reason != LIM_GGML_OFFLOADED) continue;
        if (!c->divides) {
            if (n < 2) break; // nothing to prove it by
            if (!prove_view(*c->host, *c->gpus, graph)) {
                static char problem[] = "this host's graphs cannot be computed in parts";
                lim_go_ggml_left_alone(problem);
                c->indivisible = true;
                break;
            }
            c->divides = true;
        }
        const int place = c->extract.places[i];
        if (place < done) continue; // the graph is not like the last one, after all
        const int until = node.rest_tokens > 0 ? place + 1 : place; // the host computes all rows of a mixed batch, before ours some once more
        if (until > done) {
            const int status = compute_part(c, graph, done, until);
            if (status != 0) return status;
        }
        done = place;
        c->gpus->event_record(c->before, backend);
        if (lim_go_ggml_attend(c->session, &node, c->before[kEventHandle], c->after[kEventHandle]) != 0) break; // the host does the rest
        c->gpus->event_wait(backend, c->after);
        offloaded++;
        done = place + 1;
    }
    if (offloaded == 0) c->begun = 0; // nor will it be
    return compute_rest(c, graph, done, n);
}

} // namespace

std::mutex &capturing() {
    static std::mutex one; // takes no memory, which may be short when a host frees its backends
    static_assert(std::is_trivially_destructible_v<std::mutex>, "hosts free backends while the process ends");
    return one;
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
        if (status != 0) return c->extract.miss(), status;
        all = true;
    } else if (c->begun > 0 && n == c->nodes && is_like_last(c, c->host->graph_node(graph, c->begun))) {
        const int status = compute_part(c, graph, 0, c->begun);
        if (status != 0) return c->extract.miss(), status;
        done = c->begun;
    }
    Recording *of   = nullptr;
    bool       plan = false;
    try {
        of   = read_graph(c, graph, n);
        plan = wants_plan(c);
        if (plan) c->extract.read_changes(); // else they are told with the next graph
    } catch (const std::bad_alloc &) {
        c->read = nullptr;
        c->extract.miss();
        return all ? 0 : compute_rest(c, graph, done, n);
    }
    if (!plan) return all ? 0 : compute_rest(c, graph, done, n);
    c->extract.graph.computed = all;
    c->extract.graph.records  = c->direct;
    c->extract.graph.host     = c->host_context;
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

} // namespace lim::ggml
