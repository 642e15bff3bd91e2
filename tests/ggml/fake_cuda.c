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
#include <sys/wait.h>
#include <unistd.h>

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

#include "fake_gpu.h"

/* ---- a model ---- */

enum { STREAMS = 2,
       SEQUENCES = 4 };
struct cell {
    int sequence, position; /* 0: empty; sequences count from 1 */
};
struct model {
    struct tensor *key[LAYERS], *value[LAYERS];
    int            streams, dim, type, first, device;
    void         **inputs; /* buffer */
    void         **rows;   /* buffer for queries and outputs; NULL: the heap */
    size_t         used;   /* of it */
    struct cell    cells[STREAMS][SLOTS];
};

static struct tensor *put(void **buffer, struct tensor *t, size_t at) { /* without a buffer: on the heap, for the CPU */
    if (buffer == NULL) t->data = calloc(2, t->nb[3] * (size_t)t->ne[3]); /* numbers turn out to be larger */
    else ggml_backend_tensor_alloc(buffer, t, (char *)ggml_backend_buffer_get_base(buffer) + at);
    return t;
}

/* Memory of the model's device, as long as the host lives. */
static void *room(struct model *m, size_t n) {
    n = (n + 255) / 256 * 256;
    if (m->rows == NULL) return aligned_alloc(256, n);
    m->used += n;
    return (char *)ggml_backend_buffer_get_base(m->rows) + m->used - n;
}

/* On a GPU, or, with -1, on the CPU. */
static void make_model_on(struct model *m, int streams, int device) {
    *m = (struct model){.streams = streams, .device = device, .dim = is("dim-96") ? 96 : DIM, .type = is("q4_0") ? 2 : is("bf16") ? 30
                                                                                                                                  : 1,
                        .first = is("spread") || is("hybrid") ? 5 : 0};
    const size_t size = (size_t)m->dim * KV_HEADS * SLOTS * 2 * (size_t)streams;
    void       **type = device >= 0 ? buffer_types[device] : NULL, **stores = NULL;
    if (device >= 0) stores = ggml_backend_buft_alloc_buffer(type, 2 * LAYERS * size);
    if (hands_over()) m->rows = ggml_backend_buft_alloc_buffer(type, 16 << 20);
    if (is("unseen-again")) ggml_backend_buffer_free(ggml_backend_buft_alloc_buffer(buffer_types[0], 8 << 20)); /* one that was seen lay in its place */
    if (device >= 0) m->inputs = is("unseen") || is("unseen-again") ? new_buffer(type, 8 << 20) : ggml_backend_buft_alloc_buffer(type, 8 << 20);
    for (int l = 0; l < LAYERS; l++) {
        m->key[l] = put(stores, ggml_new_tensor_4d(NULL, m->type, m->dim * KV_HEADS, SLOTS, streams, 1), 2 * (size_t)l * size);
        m->value[l] = put(stores, ggml_new_tensor_4d(NULL, m->type, m->dim * KV_HEADS, SLOTS, streams, 1), (2 * (size_t)l + 1) * size);
        snprintf(m->key[l]->name, 64, is("other-names") ? "k_cache.%d" : "cache_k_l%d", m->first + l);
        snprintf(m->value[l]->name, 64, "cache_v_l%d", m->first + l);
    }
}

static void make_model(struct model *m, int streams) { make_model_on(m, streams, 0); }

static struct tensor *put(void **buffer, struct tensor *t, size_t at);

/* A node that multiplies with a weight of block `block`, or behind the last one. */
static struct tensor *named(const char *name, int l, int block) {
    struct tensor *t = ggml_new_tensor_4d(NULL, 0, DIM, 1, 1, 1);
    snprintf(t->name, 64, "%s%d", name, l);
    t->op = is("graphs-sum") ? 10 : 2; /* one that may wait for the device, for all that is known */
    t->src[0] = ggml_new_tensor_4d(NULL, 0, DIM, DIM, 1, 1);
    if (block >= 0) snprintf(t->src[0]->name, 64, "blk.%d.%s.weight", block, name);
    if (strncmp(variant, "weights-", 8) == 0) { /* in a buffer that was made before the library came, or in one of another kind */
        static void **buffer;
        if (buffer == NULL) buffer = new_buffer(buffer_types[0], 1 << 16);
        if (is("weights-split")) buffer[2] = (void *)nothing;
        put(buffer, t->src[0], 0);
    }
    if (block < 0 && !is("first-part")) snprintf(t->src[0]->name, 64, "output.weight");
    return t;
}

struct token {
    int stream, cell, sequence, position;
};
enum { PER_LAYER = 5 };

/* A batch and its graph, with inputs that are put on the device before each compute call. */
enum { INPUTS = 4 };
struct batch {
    struct graph   graph;
    struct tensor *inputs[INPUTS]; /* mask, slots, positions; and whose logits are wanted, where graphs tell */
    void          *values[INPUTS];
};
static const int32_t *wanted; /* rows of the next batch */
static int            n_wanted = -1;

static struct batch make_batch(struct model *m, const struct token *tokens, int n, int n_kv) {
    struct batch   b = {.graph = {0, calloc(PER_LAYER * LAYERS + 2, sizeof(void *)), {0}}};
    const int      per = n / m->streams;
    struct tensor *mask = put(m->inputs, ggml_new_tensor_4d(NULL, 1, n_kv, per, 1, m->streams), 0);
    struct tensor *slots = put(m->inputs, ggml_new_tensor_4d(NULL, 27, n, 1, 1, 1), 6 << 20);
    struct tensor *positions = put(m->inputs, ggml_new_tensor_4d(NULL, 26, n, 1, 1, 1), 7 << 20);
    positions->nb[0] = 4, positions->nb[1] = positions->nb[2] = positions->nb[3] = 4 * (size_t)n;
    uint16_t *values = malloc((size_t)n * (size_t)n_kv * 2);
    int64_t  *at = malloc((size_t)n * 8);
    int32_t  *where = malloc((size_t)n * 4);
    for (int i = 0; i < n; i++) {
        const struct token *t = &tokens[i];
        m->cells[t->stream][t->cell] = (struct cell){t->sequence, t->position};
        at[i] = t->stream * SLOTS + t->cell, where[i] = t->position;
    }
    for (int i = 0; i < n; i++) {
        for (int c = 0; c < n_kv; c++) {
            const struct cell *cell = &m->cells[tokens[i].stream][c];
            values[i * n_kv + c] = cell->sequence == tokens[i].sequence && cell->position <= tokens[i].position ? 0 : 0xfc00;
        }
    }
    if (is("biased") && n == 1) values[0] = 0xbc00;
    b.inputs[0] = mask, b.inputs[1] = slots, b.inputs[2] = positions;
    b.values[0] = values, b.values[1] = at, b.values[2] = where;
    for (int l = 0; l < LAYERS; l++) {
        struct tensor *q = ggml_new_tensor_4d(NULL, 0, m->dim, per, HEADS, m->streams);
        q->data = room(m, q->nb[3] * (size_t)m->streams);
        const struct tensor *k = m->key[l];
        struct tensor       *key = ggml_view_4d(NULL, m->key[l], m->dim, n_kv, KV_HEADS, m->streams, k->nb[1], k->nb[1] / KV_HEADS, k->nb[2], 0);
        struct tensor       *value = ggml_view_4d(NULL, m->value[l], m->dim, n_kv, KV_HEADS, m->streams, k->nb[1], k->nb[1] / KV_HEADS, k->nb[2], 0);
        if (m->type == 2) key->nb[0] = value->nb[0] = 18;
        struct tensor *node = ggml_flash_attn_ext(NULL, q, key, value, mask, 0.125f, is("alibi") ? 8.0f : 0.0f, 0.0f);
        snprintf(node->name, 64, "attention%d", l);
        node->data = room(m, node->nb[3] * (size_t)m->streams);
        struct tensor *rope = named("rope", l, m->first + l);
        rope->op = OP_ROPE, rope->src[1] = positions;
        struct tensor *write = ggml_set_rows(NULL, m->key[l], ggml_new_tensor_4d(NULL, 0, m->dim * KV_HEADS, n, 1, 1), slots);
        snprintf(write->name, 64, "write%d", l);
        b.graph.nodes[b.graph.n++] = named("qkv", l, is("hybrid") && l == 0 ? 0 : m->first + l);
        b.graph.nodes[b.graph.n++] = rope;
        b.graph.nodes[b.graph.n++] = write;
        b.graph.nodes[b.graph.n++] = node;
        b.graph.nodes[b.graph.n++] = named("mlp", l, m->first + l);
    }
    if (n_wanted >= 0) {
        struct tensor *rows = named("wanted", 0, m->first + LAYERS - 1), *all = ggml_new_tensor_4d(NULL, 0, DIM, n, 1, 1);
        b.inputs[3] = put(m->inputs, ggml_new_tensor_4d(NULL, 26, n_wanted, 1, 1, 1), (7 << 20) + (1 << 19));
        b.inputs[3]->nb[0] = 4, b.inputs[3]->nb[1] = b.inputs[3]->nb[2] = b.inputs[3]->nb[3] = 4 * (size_t)n_wanted;
        b.values[3] = memcpy(malloc((size_t)n_wanted * 4 + 1), wanted, (size_t)n_wanted * 4);
        all->op = 2, rows->op = OP_GET_ROWS, rows->src[0] = all, rows->src[1] = b.inputs[3];
        b.graph.nodes[b.graph.n++] = rows;
    }
    b.graph.nodes[b.graph.n++] = named("logits", 0, -1);
    return b;
}

/* Tokens [from, to) of the text of each stream, in cells of the same numbers. */
static struct batch make_text(struct model *m, int from, int to, int n_kv) {
    struct token *tokens = calloc((size_t)((to - from) * m->streams), sizeof *tokens);
    int           n = 0;
    for (int s = 0; s < m->streams; s++) {
        for (int i = from; i < to; i++) tokens[n++] = (struct token){s, i, s + 1, i};
    }
    return make_batch(m, tokens, n, n_kv);
}

static void upload(const struct batch *b) {
    for (int i = 0; i < INPUTS && b->inputs[i] != NULL; i++) {
        const size_t n = b->inputs[i]->nb[3] * (size_t)b->inputs[i]->ne[3];
        if (b->inputs[i]->buffer == NULL) memcpy(b->inputs[i]->data, b->values[i], n);
        else ggml_backend_tensor_set(b->inputs[i], b->values[i], 0, n);
    }
}

/* Two devices: each computes its heads of a layer before any goes on, or its layers after the other one has. */
static int spread(void ***backends, int (*compute)(void **, struct graph *)) {
    struct model m[GPUS];
    struct batch decode[GPUS];
    for (int d = 0; d < GPUS; d++) make_model(&m[d], 1);
    for (int step = 0; step < 3; step++) {
        note("step");
        for (int d = 0; d < GPUS; d++) {
            decode[d] = make_text(&m[d], step == 0 ? 0 : 198 + step, 199 + step, 256);
            upload(&decode[d]);
        }
        for (int l = 0; l < LAYERS; l++) {
            for (int d = 0; d < GPUS; d++) {
                if (is("layers-spread") && l / (LAYERS / GPUS) != d) continue;
                struct graph part = {PER_LAYER, decode[d].graph.nodes + PER_LAYER * l, {0}};
                CHECK(compute(backends[d], &part) == 0);
            }
        }
    }
    note("end");
    for (int d = 0; d < GPUS; d++) ggml_backend_free(backends[d]);
    return 0;
}

/* Two devices, each with its layers in one graph, which is kept from step to step; what the first one computes last is copied to the other one. */
static int handed(void ***backends, int (*compute)(void **, struct graph *)) {
    const int    FIRST = PER_LAYER * LAYERS / GPUS;
    struct model m[GPUS];
    struct batch b[GPUS];
    static void *foreign[24]; /* a backend that is not hooked */
    bool (*copy)(void **, void **, const struct tensor *, struct tensor *);
    memcpy(&copy, &backends[1][7], sizeof copy);
    for (int d = 0; d < GPUS; d++) make_model_on(&m[d], 1, d);
    struct tensor *from = put(m[0].rows, ggml_new_tensor_4d(NULL, 0, DIM, 1, 1, 1), (16 << 20) - 4096);
    struct tensor *to = put(m[1].rows, ggml_new_tensor_4d(NULL, 0, DIM, 1, 1, 1), (16 << 20) - 4096);
    for (int step = 0; step < 10; step++) {
        note(step == 0 ? "prompt" : "step %d", step);
        for (int d = 0; d < GPUS; d++) {
            if (step < 2) b[d] = make_text(&m[d], step == 0 ? 0 : 199, 199 + step, 256);
            if (step > 1) ((uint16_t *)b[d].values[0])[198 + step] = 0, *(int64_t *)b[d].values[1] = *(int32_t *)b[d].values[2] = 198 + step;
            upload(&b[d]);
        }
        for (int d = 0; d < GPUS; d++) {
            struct graph part = {d == 0 ? FIRST : b[d].graph.n - FIRST, b[d].graph.nodes + d * FIRST, {0}};
            if (d == 1) copy(backends[0], backends[1], from, to);
            if (d == 1 && step == 3) copy(foreign, backends[1], from, to);
            CHECK(compute(backends[d], &part) == 0);
        }
    }
    note("end");
    for (int d = 0; d < GPUS; d++) ggml_backend_free(backends[d]);
    return 0;
}

/* What is computed on the CPU has values: different ones for each. */
static void fill(struct graph *g) {
    static uint32_t state = 17;
    for (int i = 0; i < g->n; i++) {
        for (int k = 0; k < 3; k++) {
            struct tensor *t = g->nodes[i]->src[k];
            if (t == NULL || t->view_src != NULL || t->type != 0) continue;
            if (t->data == NULL) t->data = aligned_alloc(256, (t->nb[3] + 255) / 256 * 256);
            for (size_t j = 0; j < t->nb[3] / 4; j++) ((float *)t->data)[j] = (float)((int)((state = state * 1664525 + 1013904223) >> 20) - 2048) / 1024;
        }
    }
}

/* The first layers are the CPU's. Their part of a prompt the host computes on a GPU, all but what lies in the CPU's stores: rotated keys are
 * copied there, and attention reads a copy of the store. "elsewhere-unseen": on a device that the library does not know. */
static int elsewhere(void **gpu, int (*on_gpu)(void **, struct graph *)) {
    enum { HALF = LAYERS / 2,
           N_KV = 512 };
    void **(*make)(void *, const char *);
    memcpy(&make, &cpu_words[5], sizeof make);
    void **cpu = make(cpu_words, NULL);
    int (*on_cpu)(void **, struct graph *);
    memcpy(&on_cpu, &cpu[13], sizeof on_cpu);
    bool (*copy)(void **, void **, const struct tensor *, struct tensor *);
    memcpy(&copy, &gpu[7], sizeof copy);
    struct model m[2]; /* the GPU's, and the CPU's */
    make_model_on(&m[0], 1, 0);
    make_model_on(&m[1], 1, -1);
    struct tensor *from = put(NULL, ggml_new_tensor_4d(NULL, 0, DIM, 1, 1, 1), 0), *to = put(m[0].inputs, ggml_new_tensor_4d(NULL, 0, DIM, 1, 1, 1), 5 << 20);
    const int      ends[] = {150, 199, 200, 201, 202, 203, 280, 281, 282}; /* prompts of more than one token, and steps */
    for (int i = 0, begin = 0; i < (int)(sizeof ends / sizeof *ends); begin = ends[i++]) {
        const int n = ends[i] - begin;
        note(n > 1 ? "prompt" : "step %d", begin);
        struct batch b[2] = {make_text(&m[0], begin, ends[i], N_KV), make_text(&m[1], begin, ends[i], N_KV)};
        fill(&b[1].graph);
        upload(&b[0]), upload(&b[1]);
        copy(cpu, gpu, from, to);
        for (int l = 0; n > 1 && l < HALF; l++) {
            struct tensor **nodes = b[0].graph.nodes + PER_LAYER * l, *attention = nodes[3];
            struct graph    rotates = {2, nodes, {0}}, keeps = {1, b[1].graph.nodes + PER_LAYER * l + 2, {0}}, attends = {2, nodes + 3, {0}};
            attention->src[1] = put(m[0].inputs, ggml_new_tensor_4d(NULL, 1, DIM, N_KV, KV_HEADS, 1), 4 << 20);
            snprintf(attention->src[1]->name, 64, "CUDA0#cache_k_l%d (view)#0", l);
            if (is("elsewhere")) CHECK(on_gpu(gpu, &rotates) == 0);
            CHECK(on_cpu(cpu, &keeps) == 0);
            CHECK(on_gpu(gpu, &attends) == 0);
        }
        struct graph first = {PER_LAYER * HALF, b[1].graph.nodes, {0}}, rest = {b[0].graph.n - PER_LAYER * HALF, b[0].graph.nodes + PER_LAYER * HALF, {0}};
        if (n == 1) CHECK(on_cpu(cpu, &first) == 0);
        CHECK(on_gpu(gpu, &rest) == 0);
    }
    note("end");
    ggml_backend_free(gpu);
    ggml_backend_free(cpu);
    return 0;
}

static int (*compute)(void **, struct graph *);
static void **backend;

/* Every node is computed, by the host or the library. */
static int compute_whole(struct graph *g) {
    looks = true, waits = replayed = 0;
    mark(g, 0);
    int status = 0;
    for (int i = 0; is("by-node") && i < g->n && status == 0; i++) {
        struct graph one = {1, g->nodes + i, {0}};
        status = compute(backend, &one);
    }
    if (!is("by-node")) status = compute(backend, g);
    return status == 0 && !all_done(g) ? -100 : status;
}

static int run(const char *what, struct batch b) {
    note("%s", what);
    upload(&b);
    return compute_whole(&b.graph);
}

/* Sequences that share a stream: their cells lie between each other's, one is longer than the others. */
static int slots(struct model *m) {
    struct token tokens[800];
    int          n = 0, cell = 0, length[SEQUENCES] = {180, 150, 120, 90};
    for (int i = 0; i < 180; i++) {
        for (int s = 0; s < SEQUENCES; s++) {
            if (i < length[s] - 1) tokens[n++] = (struct token){0, cell++, s + 1, i};
        }
    }
    for (int i = 0; i < n; i += 128) CHECK(run("prompts", make_batch(m, tokens + i, n - i < 128 ? n - i : 128, 768)) == 0);
    for (int step = 0; step < 3; step++) {
        for (int s = 0; s < SEQUENCES; s++) tokens[s] = (struct token){0, cell++, s + 1, length[s]++ - 1};
        CHECK(run(step < 2 ? "slots" : "last slots", make_batch(m, tokens, SEQUENCES, 768)) == 0);
    }
    note("one ends");
    for (int c = 0; c < SLOTS; c++) {
        if (m->cells[0][c].sequence == 2) m->cells[0][c].sequence = 0;
    }
    for (int step = 0; step < 24; step++) { /* the others go on in its cells */
        for (int s = 0, c = 0; s < 3; s++) {
            while (m->cells[0][c].sequence != 0) c++;
            const int sequence = s == 0 ? 1 : s + 2;
            tokens[s] = (struct token){0, c++, sequence, length[sequence - 1]++ - 1};
        }
        CHECK(run(step < 23 ? "holes" : "last holes", make_batch(m, tokens, 3, 768)) == 0);
    }
    note("prompts and steps");
    for (int i = 0; i < 3; i++) tokens[i] = (struct token){0, 1000 + i, i == 2 ? 2 : 1, i == 2 ? 0 : length[0] - 1 + i};
    CHECK(run("mixed", make_batch(m, tokens, 3, 1024)) == 0);
    note("end");
    ggml_backend_free(backend);
    return 0;
}

/* Whether a row of an attention is what the library computes, or what the host does. */
static bool is_by(const struct tensor *alone, const float *got, int64_t row, bool library) {
    const int64_t n = alone->ne[0] * alone->ne[1];
    for (int64_t k = row * n; k < (row + 1) * n; k++) {
        const float of = ((const float *)alone->data)[k];
        if (library ? fabsf(got[k] - of) > 1e-4f : got[k] != of + BY_HOST) return false;
    }
    return true;
}

/* A batch whose rows' attention is what the host computes, or in layers from `from_layer` on for so many rows what the library does. Where something
 * fails, any of these may be the host's: of a row whose tokens are not known any more it is. */
static int run_mixed(const char *what, struct batch b, int from_layer, int first, int rows) {
    static unsigned state = 17;
    const bool      fails = getenv("LIM_STANDIN_FAIL") != NULL || getenv("LIM_FAULT") != NULL;
    for (int i = 0; i < b.graph.n; i++) {
        const struct tensor *t = b.graph.nodes[i];
        if (t->op != OP_FLASH) continue;
        for (int64_t k = 0; k < t->ne[0] * t->ne[1] * t->ne[2]; k++) ((float *)t->src[0]->data)[k] = (float)((state = state * 1664525 + 1013904223) >> 8) / (1 << 23) - 1;
    }
    CHECK(run(what, b) == 0);
    for (int i = 0, layer = 0; i < b.graph.n; i++) {
        const struct tensor *t = b.graph.nodes[i];
        if (t->op != OP_FLASH) continue;
        float *got = memcpy(malloc(t->nb[3]), t->data, t->nb[3]);
        compute_flash(t);
        for (int64_t row = 0; row < t->ne[2]; row++) {
            const bool ours = layer >= from_layer && row >= first && row < first + rows;
            if (is_by(t, got, row, ours) || (fails && ours && is_by(t, got, row, false))) continue;
            note("%s: layer %d, row %d is by neither", what, layer, (int)row);
            return -1;
        }
        free(got);
        layer++;
    }
    return 0;
}

/* Rows of sequences in cells from `cell` on, each from where it is: so many tokens of it; and the host wants the logits of `want` of them. */
struct more {
    int sequence, tokens, want;
};
static struct batch make_more(struct model *m, const struct more *more, int n, int *cell, int length[], int n_kv) {
    static struct token tokens[512];
    static int32_t      rows[512];
    int                 all = 0;
    n_wanted = 0, wanted = rows;
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < more[i].tokens; k++) {
            if (k >= more[i].tokens - more[i].want) rows[n_wanted++] = all;
            tokens[all++] = (struct token){0, (*cell)++, more[i].sequence, length[more[i].sequence]++};
        }
    }
    return make_batch(m, tokens, all, n_kv);
}

/* A server's batches: sequences that decode, and behind them prompts, small and large, and drafts, some of which are taken back. */
static int mixed(struct model *m) {
    enum { N_KV = 512 };
    int cell = 0, length[8] = {0};
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < SLOTS * DIM * KV_HEADS; i++) {
            ((uint16_t *)m->key[l]->data)[i] = (uint16_t)(((unsigned)(i + l) * 2654435761u >> 16 & 0x83FF) | 0x3000);
            ((uint16_t *)m->value[l]->data)[i] = (uint16_t)(((unsigned)(i + l) * 2246822519u >> 16 & 0x83FF) | 0x3800);
        }
    }
#define BATCH(...) make_more(m, (const struct more[]){__VA_ARGS__}, sizeof((const struct more[]){__VA_ARGS__}) / sizeof(struct more), &cell, length, N_KV)
    const bool drafts = getenv("LESSISMORE_SPECULATION") != NULL;
    CHECK(run_mixed("prompts", BATCH({1, 100, 0}), LAYERS, 0, 0) == 0);
    CHECK(run_mixed("another", BATCH({2, 80, 0}), LAYERS, 0, 0) == 0);
    CHECK(run_mixed("ends", BATCH({1, 1, 1}, {2, 1, 1}), LAYERS, 0, 0) == 0); /* the last tokens of prompts */
    CHECK(run_mixed("decodes", BATCH({1, 1, 1}, {2, 1, 1}), 0, 0, 2) == 0);
    CHECK(run_mixed("few", BATCH({1, 1, 1}, {2, 1, 1}, {3, 6, 0}), 1, 0, 2) == 0);
    CHECK(run_mixed("many", BATCH({1, 1, 1}, {2, 1, 1}, {3, 90, 1}), 1, 0, 2) == 0);
    CHECK(run_mixed("decodes again", BATCH({1, 1, 1}, {2, 1, 1}), 0, 0, 2) == 0);
    CHECK(run_mixed("behind", BATCH({4, 70, 0}, {1, 1, 1}, {2, 1, 1}), 1, 70, 2) == 0);
    CHECK(run_mixed("draft", BATCH({1, 3, 3}), drafts ? 1 : LAYERS, 0, 3) == 0);
    cell -= 2, length[1] -= 2; /* two are taken back */
    for (int c = cell; c < cell + 2; c++) m->cells[0][c].sequence = 0;
    CHECK(run_mixed("draft again", BATCH({1, 4, 4}, {2, 1, 1}), 1, drafts ? 0 : 4, drafts ? 5 : 1) == 0);
    CHECK(run_mixed("draft beside", BATCH({1, 2, 2}, {2, 1, 1}, {4, 8, 0}), 1, drafts ? 0 : 2, drafts ? 3 : 1) == 0);
    /* Other large inputs, of which the newest are kept, and one of more rows than any batch that is. */
    for (int i = 0; i < 4; i++) {
        struct tensor *t = put(m->inputs, ggml_new_tensor_4d(NULL, 1, 8, i < 3 ? 100 : 2000, 1, 1), (size_t)(i % 2 + 1) << 20);
        ggml_backend_tensor_set(t, calloc(1, t->nb[3]), 0, t->nb[3]);
    }
    CHECK(run_mixed("many again", BATCH({1, 1, 1}, {2, 1, 1}, {5, 70, 0}), 1, 0, 2) == 0);
    note("end");
    ggml_backend_free(backend);
    return 0;
}

/* A host that keeps its graph from step to step. */
static int keeps(struct model *m) {
    enum { N_KV = 512 };
    struct batch b = make_text(m, 308, 309, N_KV);
    uint16_t    *mask = b.values[0];
    for (int i = 308; i < 316; i++) {
        mask[i] = 0, *(int64_t *)b.values[1] = i, *(int32_t *)b.values[2] = i;
        note("step %d", i);
        if (i == 312 && is("graphs-stale")) b.inputs[1] = b.inputs[0], b.values[1] = b.values[0]; /* the slots are not uploaded again */
        upload(&b);
        if (i == 312) { /* a byte of an input is written as it is, by itself */
            if (is("graphs-mask")) ggml_backend_tensor_memset(b.inputs[0], 0, 0, 1);
            if (is("graphs-slots")) ggml_backend_tensor_memset(b.inputs[1], 0, 7, 1);
            if (is("graphs-positions")) ggml_backend_tensor_memset(b.inputs[2], 0, 3, 1);
        }
        CHECK(compute_whole(&b.graph) == 0);
        if (is("graphs-stale") && i == 312) return 0;
        if (i == 312) b.graph.nodes[PER_LAYER * LAYERS]->op_params[0]++; /* it changes once */
    }
    return 0;
}

/* What a host does to its cells behind the graphs: rows that are read out, cleared and put back are known again; others
 * are not, until they are written anew. */
static int behind(struct model *m) {
    const size_t row = m->key[0]->nb[1];
    char        *saved = malloc(row * 308);
    for (int i = 0; i < 308 * (int)(row / 2); i++) ((uint16_t *)(void *)m->key[0]->data)[i] = (uint16_t)(i * 2654435761u >> 13);
    ggml_backend_tensor_get(m->key[0], saved, 0, row * 308);
    CHECK(run("read out", make_text(m, 308, 309, 512)) == 0);
    ggml_backend_tensor_memset(m->key[0], 0, 0, row * 308);
    CHECK(run("wiped", make_text(m, 309, 310, 512)) == 0);
    for (int i = 0; i < 308; i += 44) ggml_backend_tensor_set(m->key[0], saved + (size_t)i * row, (size_t)i * row, row * 44);
    CHECK(run("put back", make_text(m, 310, 311, 512)) == 0);
    saved[row * 300] ^= 1;
    ggml_backend_tensor_set(m->key[0], saved + row * 300, row * 300, row);
    CHECK(run("another row", make_text(m, 311, 312, 512)) == 0);
    for (int i = 312; i < 325; i++) CHECK(run("steps", make_text(m, i, i + 1, 512)) == 0);
    CHECK(run("newer rows", make_text(m, 325, 326, 512)) == 0);
    ggml_backend_buffer_clear(m->key[0]->buffer, 0);
    CHECK(run("cleared", make_text(m, 326, 327, 512)) == 0);
    return 0;
}

/* A step, whose inputs come as `how` says. */
static int step_by(const char *what, struct model *m, int token, void (*how)(struct tensor *t, const void *data, size_t n)) {
    struct batch b = make_text(m, token, token + 1, 512);
    note("%s", what);
    for (int i = 0; i < 3; i++) how(b.inputs[i], b.values[i], b.inputs[i]->nb[3] * (size_t)b.inputs[i]->ne[3]);
    return compute_whole(&b.graph);
}
static void at_once(struct tensor *t, const void *data, size_t n) { ggml_backend_tensor_set(t, data, 0, n); }
static void on_stream(struct tensor *t, const void *data, size_t n) {
    ((void (*)(void **, struct tensor *, const void *, size_t, size_t))backend[3])(backend, t, data, 0, n);
}
static void by_rows(struct tensor *t, const void *data, size_t n) {
    ggml_backend_tensor_set_2d(t, data, 0, n, 0, n, n); /* none */
    ggml_backend_tensor_set_2d(t, data, 0, n, 1, n, n);
}
static void by_rows_on_stream(struct tensor *t, const void *data, size_t n) {
    for (size_t i = 0; i < 2; i++) {
        ((void (*)(void **, struct tensor *, const void *, size_t, size_t, size_t, size_t, size_t))backend[5])(backend, t, data, 0, n, i, n, n);
    }
}
static void by_copy(struct tensor *t, const void *data, size_t n) {
    struct tensor from = *t;
    from.data = (void *)(uintptr_t)data;
    (void)n;
    ggml_backend_tensor_copy(&from, t);
}
static void by_copy_on_stream(struct tensor *t, const void *data, size_t n) {
    struct tensor from = *t;
    from.data = (void *)(uintptr_t)data;
    if (!((bool (*)(void **, void **, const struct tensor *, struct tensor *))backend[7])(backend, backend, &from, t)) at_once(t, data, n);
}

/* Eight rows of a store, from a slot on. */
static struct tensor *eight(struct model *m, int layer, int slot) {
    struct tensor *of = m->key[layer];
    return ggml_view_4d(NULL, of, of->ne[0], 8, 1, 1, of->nb[1], 8 * of->nb[1], 8 * of->nb[1], (size_t)slot * of->nb[1]);
}

/* A host's other ways to move something: what is seen whole is known, what is not leaves the step to the host. */
static int moves(struct model *m) {
    enum { AFTER = 20 }; /* steps until the newest tokens are known again */
    int t = 308;
    CHECK(step_by("at once", m, t++, at_once) == 0);
    CHECK(step_by("on the stream", m, t++, on_stream) == 0);
    CHECK(step_by("by rows", m, t++, by_rows) == 0);
    CHECK(step_by("by rows on the stream", m, t++, by_rows_on_stream) == 0);
    CHECK(step_by("by a copy", m, t++, by_copy) == 0);
    CHECK(step_by("by a copy on the stream", m, t++, by_copy_on_stream) == 0);
    copies = false;
    CHECK(step_by("by a refused copy on the stream", m, t++, by_copy_on_stream) == 0);
    copies = true;
    for (int i = 0; i < AFTER; i++) CHECK(step_by("steps", m, t++, at_once) == 0);
    /* Rows that take the place of others, of the same store and of another one. */
    CHECK(step_by("before a copy", m, t++, at_once) == 0);
    ggml_backend_tensor_copy(eight(m, 0, 0), eight(m, 0, t - 8));
    CHECK(step_by("rows copied", m, t++, at_once) == 0);
    for (int i = 0; i < AFTER; i++) CHECK(step_by("steps", m, t++, at_once) == 0);
    CHECK(step_by("before another copy", m, t++, at_once) == 0);
    ggml_backend_tensor_copy(eight(m, 1, 0), eight(m, 0, t - 8));
    CHECK(step_by("another store's rows", m, t++, at_once) == 0);
    for (int i = 0; i < AFTER; i++) CHECK(step_by("steps", m, t++, at_once) == 0);
    /* More changes than are remembered, of rows that nothing sees. */
    CHECK(step_by("before many changes", m, t++, at_once) == 0);
    for (size_t i = 0; i < 5000; i++) ggml_backend_tensor_memset(m->key[0], 0, (900 + i % 2 * 10) * m->key[0]->nb[1], m->key[0]->nb[1]);
    CHECK(step_by("many changes", m, t++, at_once) == 0);
    for (int i = 0; i < AFTER; i++) CHECK(step_by("steps", m, t++, at_once) == 0);
    /* More inputs than are remembered, a large one, and weights. */
    weights = ggml_backend_buft_alloc_buffer(buffer_types[0], 4096);
    const size_t size = (size_t)80 << 20;
    void       **large = ggml_backend_buft_alloc_buffer(buffer_types[0], size);
    char        *data = calloc(1, size);
    for (size_t i = 0; i < 100; i++) at_once(put(m->inputs, ggml_new_tensor_4d(NULL, 0, 16, 1, 1, 1), ((size_t)4 << 20) + i * 256), data, 64);
    at_once(put(weights, ggml_new_tensor_4d(NULL, 0, 16, 1, 1, 1), 0), data, 64);
    at_once(put(large, ggml_new_tensor_4d(NULL, 0, (int64_t)size / 4, 1, 1, 1), 0), data, size);
    CHECK(step_by("after all", m, t++, at_once) == 0);
    copies = false;
    CHECK(step_by("by a refused copy", m, t++, by_copy) == 0);
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
    for (int d = 0; d < GPUS; d++) {
        static void *types[GPUS][8];
        types[d][0] = (void *)device_name, types[d][1] = (void *)new_buffer;
        buffer_types[d] = types[is("one-type") ? 0 : d];
    }
    cpu_registry.api_version = 2, gpu_registry.api_version = is("gpu-api") ? 3 : 2;
    void *(*init)(void);
    *(void **)&init = init_of(argv[1]);
    init();
    init(); /* twice is harmless */

    void **(*make)(void *, const char *);
    memcpy(&make, &gpu_words[0][5], sizeof make);
    if (gpu_words[0][5] != (void *)init_gpu) note("hooked");
    if (is("device-foreign") || is("no-gpu")) return 0;
    void **backends[GPUS] = {NULL, NULL};
    for (int d = 0; d < gpus(); d++) backends[d] = make(gpu_words[d], NULL);
    backend = backends[0], proven = true;
    if (is("no-gpu-backend-1")) { /* the host's own affair */
        CHECK(backend == NULL);
        return 0;
    }
    memcpy(&compute, &backend[13], sizeof compute);
    if (hands_over()) return handed(backends, compute);
    if (is("elsewhere") || is("elsewhere-unseen")) return elsewhere(backend, compute);
    if (gpus() > 1) return spread(backends, compute);
    if (is("forked")) { /* a worker's backend is its own */
        const pid_t child = fork();
        if (child == 0) _exit(make(gpu_words[0], NULL)[13] == (void *)graph_compute ? 0 : 1);
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
        return 0;
    }

    struct model m;
    make_model(&m, is("streams") ? 2 : 1);
    const int decoded = is("host-fails") ? -1 : 0;
    if (is("slots")) return slots(&m);
    if (is("mixed")) return mixed(&m);
    CHECK(run("prompt", make_text(&m, 0, 199, 256)) == 0);
    CHECK(run("first step", make_text(&m, 199, 200, 256)) == decoded);
    CHECK(run("second step", make_text(&m, 200, 201, 256)) == decoded);
    CHECK(run("more of the prompt", make_text(&m, 201, 299, 512)) == 0);
    CHECK(run("longer step", make_text(&m, 299, 300, 512)) == decoded);
    CHECK(run("another prompt", make_text(&m, 300, 308, 512)) == 0);
    if (is("other-model")) {
        make_model(&m, 1);
        CHECK(run("other model", make_text(&m, 0, 149, 256)) == 0);
        for (int i = 0; i < 2; i++) CHECK(run("other model", make_text(&m, 149 + i, 150 + i, 256)) == 0);
    }
    if (is("parts")) { /* a host that calls back between layers */
        struct batch b = make_text(&m, 308, 309, 512);
        struct graph part = b.graph;
        note("parts");
        upload(&b);
        for (int l = 0; l < LAYERS; l++) {
            part.nodes = b.graph.nodes + PER_LAYER * l, part.n = PER_LAYER;
            CHECK(compute(backend, &part) == 0);
        }
    }
    if (is("behind") && behind(&m) != 0) return 1;
    if (is("unseen") || is("unseen-again")) { /* nor what moves there on the stream */
        CHECK(step_by("on the stream", &m, 308, on_stream) == 0);
        CHECK(step_by("by a copy on the stream", &m, 309, by_copy_on_stream) == 0);
    }
    if (is("two-contexts")) { /* that have the same stores: each knows what it has written itself */
        void **first = backend, **second = make(gpu_words[0], NULL);
        CHECK(run("alone", make_text(&m, 308, 309, 512)) == 0);
        backend = second;
        for (int i = 309; i < 312; i++) CHECK(run("the second's", make_text(&m, i, i + 1, 512)) == 0);
        backend = first;
        for (int i = 312; i < 332; i++) CHECK(run("the first's", make_text(&m, i, i + 1, 512)) == 0);
        CHECK(run("known again", make_text(&m, 332, 333, 512)) == 0);
        ggml_backend_free(second);
    }
    if (is("moves") && moves(&m) != 0) return 1;
    if (strncmp(variant, "graphs", 6) == 0 && keeps(&m) != 0) return 1;
    note("end");
    if (is("not-freed")) return 0;
    ggml_backend_free(backend);
    return 0;
}
