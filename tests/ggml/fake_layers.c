/* A ggml host whose layers have to be known by what its graphs do: other names than llama.cpp's or none, stores of another
 * shape, graphs in parts.
 *
 *     fake_layers LIBRARY VARIANT
 *
 * decodes a text of four layers on the host's CPU backend, as the library has it computed and then by the host alone. Last
 * line of its output: the bits of all outputs as one number, the largest difference from the host's, and how many outputs have
 * the host's bits. Whether the library took part is in its log and statistics.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "fake.h"

enum { LAYERS = 4,
       DIM = 64,
       HEADS = 4,
       KV_HEADS = 2,
       WIDTH = DIM * KV_HEADS,
       SLOTS = 512,
       PROMPT = 199,
       STEPS = 12 };

const char *ggml_version(void) { return "fake"; }
void       *ggml_backend_dev_by_type(int type) { return type == 0 ? (void *)cpu_words : NULL; }
const char *ggml_backend_dev_name(void *d) { return cpu_name(d); }
int         ggml_backend_dev_type(void *d) { return cpu_type(d); }
void       *ggml_backend_dev_backend_reg(void *d) { return (void)d, &cpu_registry; }
size_t      ggml_backend_dev_count(void) { return 1; }
void       *ggml_backend_dev_get(size_t i) { return (void)i, cpu_words; }
const char *ggml_backend_reg_name(void *r) { return cpu_name(r); }

static uint32_t state = 17;
static float    noise(void) { return (float)((int)((state = state * 1664525 + 1013904223) >> 20) - 2048) / 1024; }

static struct context with_data;
static struct tensor *new_tensor(int type, int64_t a, int64_t b, int64_t c) {
    struct tensor *t = ggml_new_tensor_4d(&with_data, type, a, b, c, 1);
    memset(t->data, 0, t->nb[3]);
    return t;
}
static struct tensor *filled(int64_t a, int64_t b) {
    struct tensor *t = new_tensor(0, a, b, 1);
    for (int64_t i = 0; i < a * b; i++) ((float *)t->data)[i] = noise();
    return t;
}

struct model {
    struct tensor *key[LAYERS], *value[LAYERS], *weight[LAYERS];
};

/* As llama.cpp has it, [width, slots], or as other engines do, [head_dim, heads, slots]. */
static struct tensor *new_store(const char *name, int layer) {
    struct tensor *t = is("by-heads") || is("by-heads-offset") ? new_tensor(1, DIM, KV_HEADS, SLOTS) : new_tensor(1, WIDTH, SLOTS, 1);
    if (is("named") || is("parts-named")) snprintf(t->name, sizeof t->name, "cache_%s_l%d", name, layer);
    if (is("other-names")) snprintf(t->name, sizeof t->name, "blk.%d.%s_cache", layer, name);
    if (is("leaves")) snprintf(t->name, sizeof t->name, "leaf_%d", 7 * layer + name[0]);
    return t;
}

static void make_model(struct model *m) {
    for (int l = 0; l < LAYERS; l++) m->key[l] = new_store("k", l), m->value[l] = new_store("v", l), m->weight[l] = filled(DIM, DIM);
}

static struct tensor *as_rows(struct tensor *t) { return ggml_view_4d(NULL, t, WIDTH, SLOTS, 1, 1, 2 * WIDTH, 2 * WIDTH * SLOTS, 2 * WIDTH * SLOTS, 0); }

/* Writes rows of n tokens from slot `first` on. */
static struct tensor *write(struct tensor *store, struct tensor *rows, struct tensor *slots, int first, int n) {
    if (is("copies")) {
        struct tensor *t = ggml_view_4d(NULL, store, WIDTH * n, 1, 1, 1, 2 * WIDTH * (size_t)n, 2 * WIDTH * (size_t)n, 2 * WIDTH * (size_t)n, 2 * WIDTH * (size_t)first);
        t->op = OP_CPY, t->src[0] = rows;
        return t;
    }
    struct tensor *t = ggml_set_rows(NULL, as_rows(store), rows, slots);
    t->view_src = store; /* as ggml has it: the root of all views */
    return t;
}

/* The heads of a store's slots, from `first` on. */
static struct tensor *heads_of(struct tensor *store, int64_t n_kv, size_t first) {
    return ggml_view_4d(NULL, store, DIM, n_kv, KV_HEADS, 1, 2 * WIDTH, 2 * DIM, 2 * WIDTH * SLOTS, 2 * WIDTH * first);
}

static struct graph make_graph(const struct model *m, int from, int to, struct tensor **outputs) {
    const int      n = to - from;
    const size_t   skipped = is("offset") || is("by-heads-offset") ? 8 : 0;
    const int64_t  n_kv = 256 - (int64_t)skipped;
    struct graph   g = {0, calloc(8 * LAYERS, sizeof *g.nodes), {0}};
    struct tensor *slots = new_tensor(27, n, 1, 1), *positions = new_tensor(27, n, 1, 1), *mask = new_tensor(1, n_kv, n < 64 ? 64 : n, 1);
    positions->type = 26, positions->nb[0] = 4; /* i32 */
    for (int i = 0; i < n; i++) {
        ((int64_t *)slots->data)[i] = from + i, ((int32_t *)positions->data)[i] = from + i;
        for (int64_t s = 0; s < n_kv; s++) ((uint16_t *)mask->data)[i * n_kv + s] = s + (int64_t)skipped <= from + i ? 0 : 0xfc00;
    }
    for (int l = 0; l < LAYERS; l++) {
        struct tensor *x = filled(DIM, n), *product = ggml_new_tensor_4d(NULL, 0, DIM, n, 1, 1), *rope = ggml_new_tensor_4d(NULL, 0, DIM, n, 1, 1);
        product->op = OP_MUL_MAT, product->src[0] = m->weight[l], product->src[1] = x;
        rope->op = OP_ROPE, rope->src[0] = product, rope->src[1] = positions;
        g.nodes[g.n++] = product;
        g.nodes[g.n++] = rope;
        g.nodes[g.n++] = write(m->key[l], filled(WIDTH, n), slots, from, n);
        g.nodes[g.n++] = write(m->value[l], filled(WIDTH, n), slots, from, n);
        struct tensor *queries = filled(DIM * HEADS, n), *key = heads_of(m->key[l], n_kv, skipped);
        struct tensor *query = ggml_view_4d(NULL, queries, DIM, n, HEADS, 1, 4 * DIM * HEADS, 4 * DIM, 4 * DIM * HEADS * (size_t)n, 0);
        if (is("no-store")) { /* keys that nothing writes: those of an encoder */
            struct tensor *other = new_tensor(1, WIDTH, SLOTS, 1);
            memcpy(other->data, m->key[l]->data, 2 * WIDTH * SLOTS);
            key = heads_of(other, n_kv, 0);
        }
        if (is("converted")) {
            struct tensor *copy = new_tensor(1, WIDTH, n_kv, 1), *node = ggml_view_4d(NULL, copy, WIDTH, n_kv, 1, 1, 2 * WIDTH, 2 * WIDTH * (size_t)n_kv, 2 * WIDTH * (size_t)n_kv, 0);
            struct tensor *rows = ggml_view_4d(NULL, m->key[l], WIDTH, n_kv, 1, 1, 2 * WIDTH, 2 * WIDTH * (size_t)n_kv, 2 * WIDTH * (size_t)n_kv, 0);
            node->view_src = NULL, node->op = OP_CPY, node->src[0] = rows;
            g.nodes[g.n++] = node;
            key = ggml_view_4d(NULL, node, DIM, n_kv, KV_HEADS, 1, 2 * WIDTH, 2 * DIM, 2 * WIDTH * (size_t)n_kv, 0);
            key->src[0] = node;
        }
        struct tensor *node = ggml_flash_attn_ext(NULL, query, key, heads_of(m->value[l], n_kv, skipped), mask, 0.125f, 0, 0);
        node->data = malloc(node->nb[3]);
        outputs[l] = g.nodes[g.n++] = node;
    }
    return g;
}

static int (*compute)(void **, struct graph *);
static void **backend;

/* Computes a graph as the host does: whole, or in parts. */
static int compute_as_host(struct graph *g) {
    const int part = is("parts") || is("parts-named") ? g->n / LAYERS : is("by-node") ? 1
                                                                                      : g->n;
    for (int i = 0; i < g->n; i += part) {
        struct graph some = {part, g->nodes + i, {0}};
        const int    status = compute(backend, &some);
        if (status != 0) return status;
    }
    return 0;
}

static uint64_t bits = 0xcbf29ce484222325;
static float    largest;
static int      equal;

static int decode(const struct model *m, int from, int to) {
    struct tensor *outputs[LAYERS];
    struct graph   g = make_graph(m, from, to, outputs);
    CHECK(compute_as_host(&g) == 0);
    for (int l = 0; l < LAYERS; l++) {
        struct tensor *t = outputs[l];
        const size_t   n = t->nb[3] / 4;
        float         *ours = malloc(t->nb[3]), *hosts = t->data;
        memcpy(ours, hosts, t->nb[3]);
        CHECK(t->op == OP_FLASH);
        CHECK(t->op_params[0] == 0x3e000000); /* 0.125: the node is what it was */
        compute_flash(t);
        equal += memcmp(ours, hosts, t->nb[3]) == 0;
        for (size_t i = 0; i < n; i++) {
            bits = (bits ^ ((const uint32_t *)(void *)ours)[i]) * 0x100000001b3;
            if (!(fabsf(ours[i] - hosts[i]) <= largest)) largest = fabsf(ours[i] - hosts[i]);
        }
        free(ours);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    variant = argv[2];
    static void *words[24];
    cpu_words = words;
    make_device(cpu_words, (void *)cpu_name, (void *)cpu_type, (void *)cpu_init, &cpu_registry);
    cpu_registry.api_version = 2;
    void *(*init)(void);
    *(void **)&init = init_of(argv[1]);
    if (init() == NULL) init(); /* as hosts do that load all there are once more */
    void **(*make)(void *, const char *);
    memcpy(&make, &cpu_words[5], sizeof make);
    backend = make(cpu_words, NULL);
    memcpy(&compute, &backend[13], sizeof compute);

    struct model m;
    for (int models = is("other-model") ? 2 : 1; models > 0; models--) { /* one after another in the same context */
        make_model(&m);
        CHECK(decode(&m, 0, PROMPT) == 0);
        for (int i = PROMPT; i < PROMPT + STEPS; i++) CHECK(decode(&m, i, i + 1) == 0);
    }
    ggml_backend_free(backend);
    printf("bits %016llx largest %g equal %d of %d\n", (unsigned long long)bits, (double)largest, equal, (is("other-model") ? 2 : 1) * LAYERS * (STEPS + 1));
    return 0;
}
