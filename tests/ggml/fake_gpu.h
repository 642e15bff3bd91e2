/* What hosts with CUDA devices that there are not have in common: devices, events, and buffers on the heap. note() tells what the
 * host does. */
#ifndef FAKE_GPU_H
#define FAKE_GPU_H

#include <stdatomic.h>

#include "fake.h"

struct graph ggml_graph_view(struct graph *g, int from, int to) {
    struct graph view = {to - from, g->nodes + from, {0}};
    if (is("view-wrong")) view.nodes = g->nodes;
    if (is("view-short")) view.n--;
    if (is("view-others")) { /* only the last node is another */
        view.nodes = malloc((size_t)view.n * sizeof *view.nodes);
        memcpy(view.nodes, g->nodes + from, (size_t)view.n * sizeof *view.nodes);
        view.nodes[view.n - 1] = g->nodes[0];
    }
    return view;
}
const char *ggml_version(void) { return "fake"; }

/* ---- devices ---- */

struct event {
    void *device, *handle;
};
enum { GPUS = 2 };
static void           *gpu_words[GPUS][24];
static struct registry gpu_registry;

static bool        hands_over(void) { return is("handed") || is("graphs-handed"); }
static int         gpus(void) { return is("no-gpu") ? 0 : is("heads-spread") || is("layers-spread") || is("one-type") || hands_over() ? 2
                                                                                                                                      : 1; }
static int         number_of(void *d) { return d == gpu_words[0] ? 0 : d == gpu_words[1] ? 1
                                                                                         : -1; }
static const char *device_name(void *d) { return number_of(d) < 0 ? "CPU" : number_of(d) == 0 ? "CUDA0"
                                                                                              : "CUDA1"; }
static int         device_type(void *d) { return number_of(d) >= 0; }

/* While a stream of the driver's is captured: where what is queued goes. */
static void (*append)(void (*)(void *), void *);
void standin_capturing(void (*to)(void (*)(void *), void *)) { append = to; }

/* What a compute call has done with its nodes, noted behind the fields that are compared, for hosts that look. */
static bool looks;
static int  waits, replayed;
static void mark(const struct graph *g, char as) {
    for (int i = 0; looks && i < g->n; i++) g->nodes[i]->padding[0] = as;
}
static inline bool all_done(const struct graph *g) { /* an attention of the library's: the host waits for each, or for all that are replayed */
    int left = 0;
    for (int i = 0; i < g->n; i++) {
        if (g->nodes[i]->padding[0] != 0) continue;
        if (g->nodes[i]->op != OP_FLASH) return false;
        left++;
    }
    return left == waits || (replayed > 0 && waits > 0) ||
           (is("mixed") && left == 0); /* all rows by the host, some once more */
}

/* "mixed": what the host computes of attention is told by what it adds. */
enum { BY_HOST = 100 };
static void attend_as_host(const struct graph *g) {
    for (int i = 0; is("mixed") && i < g->n; i++) {
        const struct tensor *t = g->nodes[i];
        if (t->op != OP_FLASH) continue;
        compute_flash(t);
        for (int64_t k = 0; k < t->ne[0] * t->ne[1] * t->ne[2]; k++) ((float *)t->data)[k] += BY_HOST;
    }
}

struct event *ggml_backend_event_new(void *device) {
    static _Atomic uintptr_t next = 0xe1;
    static _Atomic int       n;
    if (is("no-events") || is_nth("no-event", ++n)) return NULL;
    struct event *e = malloc(sizeof *e);
    *e = (struct event){is("event-moved") ? NULL : device, is("event-empty") ? NULL : (void *)next++};
    return e;
}
void ggml_backend_event_free(struct event *e) {
    note("host frees event %p", e->handle);
    free(e);
}
void ggml_backend_event_record(struct event *e, void **backend) { (void)backend, note("host records %p", e->handle); }
void ggml_backend_event_wait(void **backend, struct event *e) {
    (void)backend;
    if (looks && append == NULL) waits++;
    note("host waits for %p", e->handle);
}

static const char *backend_name(void *b) { return (void)b, "fake"; }
static void        backend_free(void *b) { note("host frees its backend"), free(b); }

/* What a host says, to whom it was told to say it. */
typedef void (*log_function)(int, const char *, void *);
static log_function logs;
static void        *logs_to;
void                ggml_log_get(log_function *to, void **user) { *to = logs, *user = logs_to; }
void                ggml_log_set(log_function to, void *user) { logs = to, logs_to = user; }
static void         say(const char *text) {
    if (logs != NULL) logs(1, text, logs_to);
}

/* Graphs of the driver's that the host makes of what it computes again, by their first nodes, as llama.cpp has them: what is new or has
 * changed is queued node by node, what has not is captured the second time. It cannot be while a stream is captured already. */
static void warm_up(const struct graph *g) {
    enum { MOST = 64,
           FIELDS = offsetof(struct tensor, name) };
    static struct known {
        const struct tensor *first;
        int                  n;
        bool                 warm;
        unsigned char       *seen;
    } known[MOST];
    struct known *k = known;
    while (k->first != NULL && k->first != g->nodes[0]) k++;
    unsigned char *now = malloc((size_t)g->n * FIELDS);
    for (int i = 0; i < g->n; i++) memcpy(now + (size_t)i * FIELDS, g->nodes[i], FIELDS);
    const bool same = k->first != NULL && k->n == g->n && memcmp(k->seen, now, (size_t)g->n * FIELDS) == 0;
    if (same && append != NULL) {
        note("the host captures while it is captured");
        exit(3);
    }
    if (same && !k->warm) say("CUDA graph warmup complete");
    if (!same && k->warm) say("CUDA graph warmup reset");
    *k = (struct known){g->nodes[0], g->n, same, now};
}

static void run_part(void *of) {
    struct graph *g = of;
    if (looks) replayed++;
    mark(g, 1);
    attend_as_host(g);
    if (g->nodes[g->n - 1]->name[0] == 0) compute_all(g);
    else note("host's %s to %s run", g->nodes[0]->name, g->nodes[g->n - 1]->name);
}

static int graph_compute(void **b, struct graph *g) {
    static _Atomic int n;
    (void)b;
    if (is_nth("gpu-compute-fails", ++n)) return -1;
    if (strncmp(variant, "graphs", 6) == 0) warm_up(g);
    if (append != NULL) {
        struct graph *copy = malloc(sizeof *copy);
        *copy = (struct graph){0, calloc((size_t)g->n, sizeof(void *)), {0}};
        for (int i = 0; i < g->n; i++) {
            if (g->nodes[i]->op != OP_NONE) copy->nodes[copy->n++] = g->nodes[i];
        }
        append(run_part, copy);
        if (is("graphs-parts")) return -1;
        return 0;
    }
    if (g->nodes[g->n - 1]->name[0] == 0) return compute_graph(g); /* the self-test's, whose nodes have no names */
    mark(g, 1);
    attend_as_host(g);
    note("host computes %s to %s", g->nodes[0]->name, g->nodes[g->n - 1]->name);
    return is("host-fails") && strcmp(g->nodes[0]->name, "mlp1") == 0 ? -1 : 0;
}

void ggml_backend_synchronize(void **backend) { (void)backend; }

/* What moves on the backend's stream, here at once. */
static void set_async(void **b, struct tensor *t, const void *data, size_t offset, size_t n) { (void)b, memcpy((char *)t->data + offset, data, n); }
static void set_2d_async(void **b, struct tensor *t, const void *data, size_t offset, size_t n, size_t copies, size_t apart, size_t data_apart) {
    for (size_t i = 0; i < copies; i++) set_async(b, t, (const char *)data + i * data_apart, offset + i * apart, n);
}
static bool copies = true; /* else the host has to go through its own memory */
static bool is_own(const struct tensor *t);
static bool copy_async(void **from_backend, void **b, const struct tensor *from, struct tensor *to) {
    (void)from_backend, (void)b;
    if (!copies || !is_own(from) || !is_own(to)) return false;
    memmove(to->data, from->data, from->nb[3] * (size_t)from->ne[3]);
    return true;
}

static void **init_gpu(void *device, const char *params) {
    static _Atomic int n;
    (void)params;
    if (is_nth("no-gpu-backend", ++n)) return NULL;
    void **b = calloc(24, sizeof *b);
    b[1] = (void *)backend_name, b[2] = (void *)backend_free;
    for (int i = 3; i <= 8; i++) b[i] = (void *)nothing;
    b[3] = (void *)set_async, b[5] = (void *)set_2d_async, b[7] = (void *)copy_async;
    b[13] = (void *)graph_compute, b[14] = (void *)nothing, b[15] = is("no-event-functions") ? NULL : (void *)nothing;
    b[16] = (void *)nothing; /* graph optimisation */
    b[17] = device;
    if (is("no-2d-async")) b[5] = b[6] = NULL;
    if (is("async-foreign")) b[5] = (void *)strlen;
    if (is("function-foreign")) b[16] = (void *)strlen;
    if (is_nth("odd-gpu-backend", n)) b[15] = NULL;
    for (int i = 17; is("no-device") && i < 24; i++) b[i] = (void *)nothing;
    return b;
}

void       *ggml_backend_dev_by_type(int type) { return type == 0 ? (void *)cpu_words : NULL; }
size_t      ggml_backend_dev_count(void) { return (size_t)gpus() + 1; }
void       *ggml_backend_dev_get(size_t i) { return is("device-null") ? NULL : i < (size_t)gpus() ? (void *)gpu_words[i]
                                                                                                  : cpu_words; }
const char *ggml_backend_dev_name(void *d) { return device_name(d); }
int         ggml_backend_dev_type(void *d) { return device_type(d); }
void       *ggml_backend_dev_backend_reg(void *d) { return number_of(d) < 0 ? &cpu_registry : is("no-registry") ? NULL
                                                                                                                : (void *)&gpu_registry; }
const char *ggml_backend_reg_name(void *r) { return r == &gpu_registry ? "CUDA" : "CPU"; }

/* ---- buffers ---- */

/* The second GPU's memory, where the stand-in has two. */
static struct memory {
    uint64_t at, end;
} seconds[64];
int standin_device_of(uint64_t p) {
    for (int i = 0; i < 64; i++) {
        if (p >= seconds[i].at && p < seconds[i].end) return 1;
    }
    return 0;
}
static void owned(uint64_t p, size_t n) { /* 0: no more */
    int i = 0;
    while (n > 0 ? seconds[i].end != 0 : i < 63 && seconds[i].at != p) i++;
    if (n > 0 || seconds[i].at == p) seconds[i] = (struct memory){n > 0 ? p : 0, n > 0 ? p + n : 0};
}

/* A buffer: its functions, its type, its memory. Hosts before autumn 2026 lack the two-dimensional ones. */
enum { BUFFER_WORDS = 32 };
static bool   is_old(void) { return is("buffers-old"); }
static int    word_of(int number) { return is_old() && number > 7 ? number - 2 : number; }
static void **buffer_types[GPUS];

static bool   proven; /* the host has its backends */
static void  *data_of(void **b) { return b[word_of(11) + 1]; }
static void   buffer_free(void **b) { note("host frees a buffer"), owned((uint64_t)(uintptr_t)data_of(b), 0), free(data_of(b)); }
static void **buffer_of(const struct tensor *t) { return t->view_src != NULL ? t->view_src->buffer : t->buffer; }
static bool   is_own(const struct tensor *t) { return buffer_of(t) != NULL && buffer_of(t)[0] == (void *)buffer_free; } /* CUDA's backend tells its buffers so */
static void  *buffer_base(void **b) { return data_of(b); }
static int    buffer_init(void **b, struct tensor *t) { return (void)b, (void)t, 0; }
static void   buffer_memset(void **b, struct tensor *t, uint8_t value, size_t offset, size_t n) { (void)b, memset((char *)t->data + offset, value, n); }
static void   buffer_set(void **b, struct tensor *t, const void *data, size_t offset, size_t n) { (void)b, memcpy((char *)t->data + offset, data, n); }
static void   buffer_get(void **b, const struct tensor *t, void *data, size_t offset, size_t n) { (void)b, memcpy(data, (char *)t->data + offset, n); }
static void   buffer_set_2d(void **b, struct tensor *t, const void *data, size_t offset, size_t n, size_t copies, size_t apart, size_t data_apart) {
    for (size_t i = 0; i < copies; i++) buffer_set(b, t, (const char *)data + i * data_apart, offset + i * apart, n);
}
static bool buffer_copy(void **b, const struct tensor *from, struct tensor *to) {
    (void)b;
    if (!copies || !is_own(from)) return false;
    memmove(to->data, from->data, from->nb[3] * (size_t)from->ne[3]);
    return true;
}
static void buffer_clear(void **b, uint8_t value) { (void)b, (void)value; }

static void **_Atomic freed; /* a buffer, in whose place the next one lies */
static void **new_buffer(void **type, size_t size) {
    static _Atomic int n;
    if (is_nth("no-buffer", ++n)) return NULL;
    void **b = atomic_exchange(&freed, (void **)NULL);
    b = b != NULL ? memset(b, 0, BUFFER_WORDS * sizeof *b) : calloc(BUFFER_WORDS, sizeof *b);
    b[0] = (void *)buffer_free, b[1] = (void *)buffer_base, b[2] = (void *)buffer_init, b[3] = (void *)buffer_memset;
    b[is("buffers-moved") ? 5 : 4] = (void *)buffer_set, b[is("buffers-moved") ? 4 : 5] = (void *)buffer_get;
    if (!is_old()) b[6] = (void *)buffer_set_2d, b[7] = (void *)nothing;
    b[word_of(8)] = (void *)buffer_copy, b[word_of(9)] = (void *)buffer_clear, b[word_of(10)] = (void *)nothing;
    b[word_of(11)] = type, b[word_of(11) + 1] = aligned_alloc(256, (size + 255) / 256 * 256), b[word_of(11) + 2] = (void *)size;
    if (hands_over() && type == buffer_types[1]) owned((uint64_t)(uintptr_t)data_of(b), size);
    if (is("buffer-no-type")) b[word_of(11)] = NULL;
    if (is("buffer-few-functions")) b[3] = type;
    if (is("buffer-empty-word")) b[word_of(10)] = NULL;
    if (is("buffers-differ")) b[word_of(10)] = n % 2 ? (void *)nothing : (void *)cpu_name;
    return b;
}

/* What the host exports: each calls a word of the buffer. */
void **ggml_backend_dev_buffer_type(void *device) { return is("no-buffers") || number_of(device) < 0 ? NULL : buffer_types[number_of(device)]; }
void **ggml_backend_buft_alloc_buffer(void **type, size_t size) { return ((void **(*)(void **, size_t))type[1])(type, size); }
void   ggml_backend_buffer_free(void **b) {
    ((void (*)(void **))b[0])(b);
    if (proven && is("unseen-again")) freed = b;
    else free(b);
}
void         *ggml_backend_buffer_get_base(void **b) { return !proven && is("no-base") ? NULL : ((void *(*)(void **))b[1])(b); }
size_t        ggml_backend_buffer_get_size(void **b) { return (size_t)b[word_of(11) + 2]; }
static void **weights; /* the buffer for them */
int           ggml_backend_buffer_get_usage(void **b) { return b == weights; }

/* A call of a buffer's function as it is, or, until the host has a backend, "odd-FUNCTION-N", with another N-th argument, or,
 * "calls-FUNCTION-N", of another word. */
static void *arg(const char *function, int i, const void *value) {
    char name[32];
    snprintf(name, sizeof name, "odd-%s", function);
    return (void *)((uintptr_t)value + (!proven && is_nth(name, i) ? 8 : 0)); /* an offset to NULL is none of C's */
}
static void *word_for(const char *function, void **b, int word) {
    char name[32];
    snprintf(name, sizeof name, "calls-%s", function);
    for (int i = 0; i < 12; i++) {
        if (!proven && is_nth(name, i)) word = i;
    }
    return !proven && is("calls-nothing") && word > 5 ? (void *)nothing : b[word];
}

void ggml_backend_buffer_clear(void **b, uint8_t value) { ((void (*)(void **, uint8_t))word_for("clear", b, word_of(9)))(arg("clear", 0, b), value); }
int  ggml_backend_tensor_alloc(void **b, struct tensor *t, void *at) {
    static _Atomic int n;
    n++;
    t->buffer = is_nth("tensor-no-buffer", n) ? NULL : b, t->data = (char *)at + is_nth("tensor-elsewhere", n);
    return is_nth("tensor-refused", n) ? -1 : ((int (*)(void **, struct tensor *))b[2])(b, t);
}
void ggml_backend_tensor_set(struct tensor *t, const void *data, size_t offset, size_t n) {
    void **b = buffer_of(t);
    ((void (*)(void **, struct tensor *, const void *, size_t, size_t))word_for("set", b, is("buffers-moved") ? 5 : 4))(
        arg("set", 0, b), arg("set", 1, t), arg("set", 2, data), (size_t)arg("set", 3, (void *)offset), (size_t)arg("set", 4, (void *)n));
}
void ggml_backend_tensor_get(const struct tensor *t, void *data, size_t offset, size_t n) {
    void **b = buffer_of(t);
    ((void (*)(void **, const struct tensor *, void *, size_t, size_t))word_for("get", b, is("buffers-moved") ? 4 : 5))(
        arg("get", 0, b), arg("get", 1, t), arg("get", 2, data), (size_t)arg("get", 3, (void *)offset), (size_t)arg("get", 4, (void *)n));
}
void ggml_backend_tensor_memset(struct tensor *t, uint8_t value, size_t offset, size_t n) {
    void **b = buffer_of(t);
    ((void (*)(void **, struct tensor *, uint8_t, size_t, size_t))word_for("memset", b, 3))(
        arg("memset", 0, b), arg("memset", 1, t), value, (size_t)arg("memset", 3, (void *)offset), (size_t)arg("memset", 4, (void *)n));
}
void ggml_backend_tensor_copy(const struct tensor *from, struct tensor *to) {
    void     **b = buffer_of(to);
    const bool done = ((bool (*)(void **, const struct tensor *, struct tensor *))word_for("copy", b, word_of(8)))(arg("copy", 0, b), arg("copy", 1, from), arg("copy", 2, to));
    if (done) return;
    void *all = malloc(from->nb[3] * (size_t)from->ne[3]); /* through the host's memory */
    ggml_backend_tensor_get(from, all, 0, from->nb[3] * (size_t)from->ne[3]);
    ggml_backend_tensor_set(to, all, 0, from->nb[3] * (size_t)from->ne[3]);
    free(all);
}
void ggml_backend_tensor_set_2d(struct tensor *t, const void *data, size_t offset, size_t n, size_t copies, size_t apart, size_t data_apart) {
    void **b = buffer_of(t);
    if (is_old()) {
        for (size_t i = 0; i < copies; i++) ggml_backend_tensor_set(t, (const char *)data + i * data_apart, offset + i * apart, n);
        return;
    }
    ((void (*)(void **, struct tensor *, const void *, size_t, size_t, size_t, size_t, size_t))word_for("set_2d", b, 6))(
        arg("set_2d", 0, b), arg("set_2d", 1, t), arg("set_2d", 2, data), (size_t)arg("set_2d", 3, (void *)offset), (size_t)arg("set_2d", 4, (void *)n), copies, apart, data_apart);
}

#endif
