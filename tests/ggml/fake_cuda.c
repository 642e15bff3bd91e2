/* A ggml host with a CUDA device, without a GPU: what is device memory to the library lies on the heap, and a stand-in
 * driver (tests/gpu/standin) writes down what it is asked for, in the same file as this host what it does.
 *
 *     fake_cuda LIBRARY VARIANT
 *
 * loads the library as a host does and decodes a few steps of a model of four layers. The file is the test's
 * answer. Exit status 0: the host got back what it should.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>

#include "fake.h"

enum { LAYERS = 4,
       DIM = 64,
       HEADS = 4,
       KV_HEADS = 2,
       SLOTS = 1024 };

static void note(const char *format, ...) {
    FILE *f = fopen(getenv("LIM_STANDIN_LOG"), "a");
    if (f == NULL) exit(2);
    va_list args;
    va_start(args, format);
    vfprintf(f, format, args);
    va_end(args);
    fputc('\n', f);
    fclose(f);
}

struct graph ggml_graph_view(struct graph *g, int from, int to) {
    struct graph view = {to - from, g->nodes + from, {0}};
    if (is("view-wrong")) view.nodes = g->nodes;
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

static int         gpus(void) { return is("no-gpu") ? 0 : is("heads-spread") || is("layers-spread") ? 2
                                                                                                    : 1; }
static int         number_of(void *d) { return d == gpu_words[0] ? 0 : d == gpu_words[1] ? 1
                                                                                         : -1; }
static const char *device_name(void *d) { return number_of(d) < 0 ? "CPU" : number_of(d) == 0 ? "CUDA0"
                                                                                              : "CUDA1"; }
static int         device_type(void *d) { return number_of(d) >= 0; }

struct event *ggml_backend_event_new(void *device) {
    static uintptr_t next = 0xe1;
    if (is("no-events")) return NULL;
    struct event *e = malloc(sizeof *e);
    *e = (struct event){device, (void *)next++};
    return e;
}
void ggml_backend_event_free(struct event *e) {
    note("host frees event %p", e->handle);
    free(e);
}
void ggml_backend_event_record(struct event *e, void **backend) { (void)backend, note("host records %p", e->handle); }
void ggml_backend_event_wait(void **backend, struct event *e) { (void)backend, note("host waits for %p", e->handle); }

static const char *backend_name(void *b) { return (void)b, "fake"; }
static void        backend_free(void *b) { note("host frees its backend"), free(b); }
static int         graph_compute(void **b, struct graph *g) {
    (void)b;
    note("host computes %s to %s", g->nodes[0]->name, g->nodes[g->n - 1]->name);
    return is("host-fails") && strcmp(g->nodes[0]->name, "mlp1") == 0 ? -1 : 0;
}

static void **init_gpu(void *device, const char *params) {
    (void)params;
    void **b = calloc(24, sizeof *b);
    b[1] = (void *)backend_name, b[2] = (void *)backend_free;
    for (int i = 3; i <= 8; i++) b[i] = (void *)nothing;
    b[13] = (void *)graph_compute, b[14] = (void *)nothing, b[15] = is("no-event-functions") ? NULL : (void *)nothing;
    b[16] = (void *)nothing; /* graph optimisation */
    b[17] = device;
    return b;
}

void       *ggml_backend_dev_by_type(int type) { return type == 0 ? (void *)cpu_words : NULL; }
size_t      ggml_backend_dev_count(void) { return (size_t)gpus() + 1; }
void       *ggml_backend_dev_get(size_t i) { return i < (size_t)gpus() ? (void *)gpu_words[i] : cpu_words; }
const char *ggml_backend_dev_name(void *d) { return device_name(d); }
int         ggml_backend_dev_type(void *d) { return device_type(d); }
void       *ggml_backend_dev_backend_reg(void *d) { return number_of(d) >= 0 ? &gpu_registry : &cpu_registry; }
const char *ggml_backend_reg_name(void *r) { return r == &gpu_registry ? "CUDA" : "CPU"; }

/* ---- a model ---- */

static void *memory(size_t n) { return aligned_alloc(256, (n + 255) / 256 * 256); }

struct model {
    struct tensor *key[LAYERS], *value[LAYERS];
    int            streams, dim, type, first;
};

static void make_model(struct model *m, int streams) {
    *m = (struct model){.streams = streams, .dim = is("dim-96") ? 96 : DIM, .type = is("q4_0") ? 2 : is("bf16") ? 30
                                                                                                                : 1,
                        .first = is("spread") || is("hybrid") ? 5 : 0};
    for (int l = 0; l < LAYERS; l++) {
        m->key[l] = ggml_new_tensor_4d(NULL, m->type, m->dim * KV_HEADS, SLOTS, streams, 1);
        m->value[l] = ggml_new_tensor_4d(NULL, m->type, m->dim * KV_HEADS, SLOTS, streams, 1);
        snprintf(m->key[l]->name, 64, "cache_k_l%d", m->first + l);
        snprintf(m->value[l]->name, 64, "cache_v_l%d", m->first + l);
        m->key[l]->data = memory(m->key[l]->nb[3]), m->value[l]->data = memory(m->value[l]->nb[3]);
    }
}

/* A node that multiplies with a weight of block `block`, or behind the last one. */
static struct tensor *named(const char *name, int l, int block) {
    struct tensor *t = ggml_new_tensor_4d(NULL, 0, DIM, 1, 1, 1);
    snprintf(t->name, 64, "%s%d", name, l);
    t->op = 2;
    t->src[0] = ggml_new_tensor_4d(NULL, 0, DIM, DIM, 1, 1);
    if (block >= 0) snprintf(t->src[0]->name, 64, "blk.%d.%s.weight", block, name);
    if (block < 0 && !is("first-part")) snprintf(t->src[0]->name, 64, "output.weight");
    return t;
}

/* One token (or several) per stream; `visible` slots of each stream's first n_kv. */
static struct graph make_graph(struct model *m, int tokens, int n_kv, int visible) {
    struct graph   g = {0, calloc(4 * LAYERS + 1, sizeof(void *)), {0}};
    struct tensor *mask = ggml_new_tensor_4d(NULL, 1, n_kv, tokens, 1, m->streams);
    uint16_t      *values = mask->data = memory(mask->nb[3] * (size_t)m->streams);
    for (int64_t i = 0; i < (int64_t)n_kv * tokens * m->streams; i++) values[i] = i % n_kv < visible ? 0 : 0xfc00;
    if (is("biased") && tokens == 1) values[0] = 0xbc00;
    for (int l = 0; l < LAYERS; l++) {
        struct tensor *q = ggml_new_tensor_4d(NULL, 0, m->dim, tokens, HEADS, m->streams);
        q->data = memory(q->nb[3] * (size_t)m->streams);
        const struct tensor *k = m->key[l];
        struct tensor       *key = ggml_view_4d(NULL, m->key[l], m->dim, n_kv, KV_HEADS, m->streams, k->nb[1], k->nb[1] / KV_HEADS, k->nb[2], 0);
        struct tensor       *value = ggml_view_4d(NULL, m->value[l], m->dim, n_kv, KV_HEADS, m->streams, k->nb[1], k->nb[1] / KV_HEADS, k->nb[2], 0);
        if (m->type == 2) key->nb[0] = value->nb[0] = 18;
        key->data = m->key[l]->data, value->data = m->value[l]->data;
        struct tensor *node = ggml_flash_attn_ext(NULL, q, key, value, mask, 0.125f, is("alibi") ? 8.0f : 0.0f, 0.0f);
        snprintf(node->name, 64, "attention%d", l);
        node->data = memory(node->nb[3] * (size_t)m->streams);
        g.nodes[g.n++] = named("qkv", l, is("hybrid") && l == 0 ? 0 : m->first + l);
        g.nodes[g.n++] = node;
        g.nodes[g.n++] = named("mlp", l, m->first + l);
    }
    g.nodes[g.n++] = named("logits", 0, -1);
    return g;
}

/* Two devices: each computes its heads of a layer before any goes on, or its layers after the other one has. */
static int spread(void ***backends, int (*compute)(void **, struct graph *)) {
    struct model m[GPUS];
    struct graph decode[GPUS];
    for (int d = 0; d < GPUS; d++) {
        make_model(&m[d], 1);
        decode[d] = make_graph(&m[d], 1, 256, 200);
    }
    for (int step = 0; step < 3; step++) {
        note("step");
        for (int l = 0; l < LAYERS; l++) {
            for (int d = 0; d < GPUS; d++) {
                if (is("layers-spread") && l / (LAYERS / GPUS) != d) continue;
                struct graph part = {3, decode[d].nodes + 3 * l, {0}};
                CHECK(compute(backends[d], &part) == 0);
            }
        }
    }
    note("end");
    for (int d = 0; d < GPUS; d++) ggml_backend_free(backends[d]);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    variant = argv[2];
    static void *words[24];
    cpu_words = words;
    make_device(cpu_words, (void *)cpu_name, (void *)cpu_type, (void *)cpu_init, &cpu_registry);
    for (int d = 0; d < GPUS; d++) {
        make_device(gpu_words[d], (void *)device_name, (void *)device_type, is("device-foreign") ? (void *)strlen : (void *)init_gpu, &gpu_registry);
    }
    cpu_registry.api_version = gpu_registry.api_version = 2;
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    void *(*init)(void);
    *(void **)&init = dlsym(library, "ggml_backend_init");
    CHECK(init != NULL);
    init();
    init(); /* twice is harmless */

    void **(*make)(void *, const char *);
    memcpy(&make, &gpu_words[0][5], sizeof make);
    if (gpu_words[0][5] != (void *)init_gpu) note("hooked");
    if (is("device-foreign") || is("no-gpu")) return 0;
    void **backends[GPUS] = {NULL, NULL};
    for (int d = 0; d < gpus(); d++) backends[d] = make(gpu_words[d], NULL);
    void **backend = backends[0];
    int (*compute)(void **, struct graph *);
    memcpy(&compute, &backend[13], sizeof compute);
    if (gpus() > 1) return spread(backends, compute);

    struct model m;
    make_model(&m, is("streams") ? 2 : 1);
    struct graph prompt = make_graph(&m, 8, 256, 8), decode = make_graph(&m, 1, 256, 200), later = make_graph(&m, 1, 512, 300);
    note("prompt");
    CHECK(compute(backend, &prompt) == 0);
    note("first step");
    CHECK(compute(backend, &decode) == (is("host-fails") ? -1 : 0));
    note("second step");
    CHECK(compute(backend, &decode) == (is("host-fails") ? -1 : 0));
    note("longer step");
    CHECK(compute(backend, &later) == (is("host-fails") ? -1 : 0));
    note("another prompt");
    CHECK(compute(backend, &prompt) == 0);
    if (is("other-model")) {
        make_model(&m, 1);
        struct graph other = make_graph(&m, 1, 256, 150);
        for (int i = 0; i < 3; i++) {
            note("other model");
            CHECK(compute(backend, &other) == 0);
        }
    }
    if (is("parts")) { /* a host that calls back between layers */
        struct graph part = decode;
        note("parts");
        for (int l = 0; l < LAYERS; l++) {
            part.nodes = decode.nodes + 3 * l, part.n = 3;
            CHECK(compute(backend, &part) == 0);
        }
    }
    note("end");
    if (is("not-freed")) return 0;
    ggml_backend_free(backend);
    return 0;
}
