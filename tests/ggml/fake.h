/* What the hosts that lie have in common: enough of ggml to prove a layout by. A host plays one variant: right
 * in everything, or wrong in one way. */
#ifndef FAKE_H
#define FAKE_H

#include <dlfcn.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *variant;
static bool        is(const char *name) { return strcmp(variant, name) == 0; }
static int         calls;

/* Variants with a number: the n-th time is another. */
static bool is_nth(const char *name, int n) {
    const size_t length = strlen(name);
    return strncmp(variant, name, length) == 0 && variant[length] == '-' && atoi(variant + length + 1) == n;
}

struct tensor {
    int32_t        type;
    void          *buffer;
    int64_t        ne[4];
    size_t         nb[4];
    int32_t        op;
    int32_t        op_params[16];
    int32_t        flags;
    struct tensor *src[10];
    struct tensor *view_src;
    size_t         view_offs;
    void          *data;
    char           name[64];
    void          *extra;
    char           padding[8];
};

/* The numbers of operations are the host's own business. */
enum { OP_NONE,
       OP_CPY = 1,
       OP_ROPE = 3,
       OP_MUL_MAT = 4,
       OP_SOFT_MAX = 5,
       OP_SCALE = 6,
       OP_RESHAPE = 7,
       OP_SET_ROWS = 8,
       OP_CUSTOM = 9,
       OP_GET_ROWS = 11,
       OP_FLASH = 12,
       OP_COUNT };
static const char *op_names[] = {"NONE", "CPY", "ADD", "ROPE", "MUL_MAT", "SOFT_MAX", "SCALE", "RESHAPE", "SET_ROWS", "CUSTOM", "SUM", "GET_ROWS", "FLASH_ATTN_EXT"};

const char *ggml_op_name(int op) {
    if (op >= OP_COUNT) return is("endless-ops") ? "SUM" : NULL;
    return (is("no-flash-op") || is("endless-ops")) && op == OP_FLASH ? "FLASH_ATTN_BACK" : op_names[op];
}
const char *ggml_type_name(int type) {
    if (is("types-moved") && type == 8) return "q8_1";
    if (is("types-fewer") && type == 30) return NULL;
    switch (type) {
    case 0: return "f32";
    case 1: return "f16";
    case 2: return "q4_0";
    case 8: return "q8_0";
    case 26: return "i32";
    case 27: return "i64";
    case 30: return "bf16";
    }
    return NULL;
}
/* The proof of a layout makes tensors without memory: of the n-th, counted as they are made, a word of 4 bytes may read otherwise. */
static int            made, spoilt_tensor = -1, spoilt_word;
static bool           proves; /* they are made for the proof */
static struct tensor *given(struct tensor *t) {
    if (proves && made++ == spoilt_tensor) ((uint32_t *)(void *)t)[spoilt_word] ^= 1;
    return t;
}

size_t ggml_tensor_overhead(void) { return is("small-tensors") ? 300 : sizeof(struct tensor) + 32; }

struct init_params {
    size_t size;
    void  *memory;
    bool   no_alloc;
};
struct context {
    bool   no_alloc;
    void **owned;
    int    n;
};
struct context *ggml_init(struct init_params p) {
    static _Atomic int n;
    if (is_nth("no-context", ++n)) return NULL;
    struct context *c = calloc(1, sizeof *c);
    c->no_alloc = p.no_alloc;
    proves = p.no_alloc, made = 0;
    return c;
}
void ggml_free(struct context *context) {
    for (int i = 0; i < context->n; i++) free(context->owned[i]);
    free(context->owned);
    free(context);
}
static void *own(struct context *context, void *memory) { /* without a context: a test's leak */
    if (context == NULL) return memory;
    if ((context->n & (context->n - 1)) == 0) context->owned = realloc(context->owned, (size_t)(context->n > 0 ? 2 * context->n : 1) * sizeof(void *));
    return context->owned[context->n++] = memory;
}

static size_t size_of(int type) { return type == 0 ? 4 : type == 27 ? 8
                                                                    : 2; }

static struct tensor *new_tensor_4d(struct context *context, int type, int64_t a, int64_t b, int64_t c, int64_t d) {
    struct tensor *t = own(context, calloc(1, sizeof *t));
    t->type = type;
    const int64_t ne[4] = {a, b, c, d};
    size_t        size = size_of(type);
    for (int i = 0; i < 4; i++) {
        t->ne[is("dims-reversed") ? 3 - i : i] = ne[i];
        t->nb[i] = size;
        size *= (size_t)ne[i];
    }
    if (context != NULL && !context->no_alloc) t->data = own(context, malloc(size + 1));
    if (is("data-moved")) t->extra = t->data, t->data = NULL;
    return t;
}
struct tensor *ggml_new_tensor_4d(struct context *context, int type, int64_t a, int64_t b, int64_t c, int64_t d) {
    return given(new_tensor_4d(context, type, a, b, c, d));
}
void                 *ggml_get_data(const struct tensor *t) { return is("data-moved") || is("data-elsewhere") ? t->extra : t->data; }
static struct tensor *view_4d(struct context *context, struct tensor *of, int64_t a, int64_t b, int64_t c, int64_t d, size_t nb1, size_t nb2, size_t nb3, size_t offset) {
    struct tensor *t = own(context, new_tensor_4d(NULL, of->type, a, b, c, d));
    t->data = of->data != NULL ? (char *)of->data + offset : NULL;
    t->nb[1] = nb1, t->nb[2] = nb2, t->nb[3] = nb3, t->view_src = of, t->view_offs = offset;
    return t;
}
struct tensor *ggml_view_4d(struct context *context, struct tensor *of, int64_t a, int64_t b, int64_t c, int64_t d, size_t nb1, size_t nb2, size_t nb3, size_t offset) {
    return given(view_4d(context, of, a, b, c, d, nb1, nb2, nb3, offset));
}
struct tensor *ggml_reshape_2d(struct context *context, struct tensor *of, int64_t a, int64_t b) {
    struct tensor *t = ggml_view_4d(context, of, a, b, 1, 1, (size_t)a * 4, (size_t)(a * b) * 4, (size_t)(a * b) * 4, 0);
    t->op = OP_RESHAPE, t->src[0] = of;
    return t;
}
struct tensor *ggml_set_name(struct tensor *t, const char *name) {
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}
struct tensor *ggml_flash_attn_ext(struct context *context, struct tensor *q, struct tensor *k, struct tensor *v, struct tensor *mask, float scale, float bias, float cap) {
    struct tensor *t = new_tensor_4d(context, 0, v->ne[0], q->ne[2], q->ne[1], q->ne[3]);
    const float    params[3] = {is("params-moved") || is("both-moved") ? bias : scale, is("params-moved") ? scale : bias, cap};
    memcpy(t->op_params, params, sizeof params);
    t->op = OP_FLASH;
    t->src[0] = q, t->src[1] = is("sources-moved") || is("both-moved") ? mask : k, t->src[2] = v, t->src[3] = is("sources-moved") ? k : mask;
    return given(t);
}
void           ggml_flash_attn_ext_add_sinks(struct tensor *t, struct tensor *sinks) { t->src[is("sinks-moved") ? 5 : 4] = sinks; }
struct tensor *ggml_set_rows(struct context *context, struct tensor *to, struct tensor *rows, struct tensor *slots) {
    struct tensor *t = view_4d(context, to, to->ne[0], to->ne[1], to->ne[2], to->ne[3], to->nb[1], to->nb[2], to->nb[3], 0);
    t->op = OP_SET_ROWS, t->src[0] = rows, t->src[1] = slots;
    return given(t);
}
struct custom_params {
    void (*run)(struct tensor *, int, int, void *);
    int   n_tasks;
    void *user;
};
struct tensor *ggml_custom_4d(struct context *context, int type, int64_t a, int64_t b, int64_t c, int64_t d, struct tensor **of, int n, void (*run)(struct tensor *, int, int, void *), int n_tasks, void *user) {
    struct tensor             *t = new_tensor_4d(context, type, a, b, c, d);
    const struct custom_params params = {run, n_tasks, user};
    memcpy(t->op_params, &params, sizeof params);
    t->op = OP_CUSTOM;
    for (int i = 0; i < n; i++) t->src[i] = of[i];
    return given(t);
}

/* ---- graphs, and what a CPU backend computes ---- */

/* Larger than the fields that are read, as the real one is. */
struct graph {
    int             n;
    struct tensor **nodes;
    char            more[96];
};
int            ggml_graph_n_nodes(struct graph *g) { return g->n; }
struct tensor *ggml_graph_node(struct graph *g, int i) { return g->nodes[i]; }
#ifndef WITHOUT_GRAPHS
size_t        ggml_graph_overhead(void) { return 4096; }
struct graph *ggml_new_graph(struct context *context) {
    struct graph *g = own(context, calloc(1, sizeof *g));
    g->nodes = own(context, calloc(64, sizeof *g->nodes));
    return g;
}
void ggml_build_forward_expand(struct graph *g, struct tensor *t) {
    if (t == NULL || t->op == OP_NONE) return;
    for (int i = 0; i < g->n; i++) {
        if (g->nodes[i] == t) return;
    }
    for (int i = 0; i < 10; i++) ggml_build_forward_expand(g, t->src[i]);
    g->nodes[g->n++] = t;
}
#endif

static float from_half(uint16_t h) {
    const uint32_t exponent = h >> 10 & 31, bits = (uint32_t)(h & 0x8000) << 16 | (exponent + 112) << 23 | (uint32_t)(h & 0x3FF) << 13;
    float          f;
    memcpy(&f, &bits, sizeof f);
    return exponent == 0 ? 0 : exponent == 31 ? (h & 0x8000 ? -INFINITY : INFINITY)
                                              : f;
}
static uint16_t to_half(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    bits += 0x1000; /* round */
    const int exponent = (int)(bits >> 23 & 255) - 112;
    return exponent <= 0 ? 0 : (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)(exponent << 10) | (bits >> 13 & 0x3FF);
}

static void compute_set_rows(const struct tensor *t) {
    const struct tensor *rows = t->src[0], *slots = t->src[1];
    for (int64_t i = 0; i < slots->ne[0]; i++) {
        uint16_t    *to = (uint16_t *)((char *)t->data + ((int64_t *)slots->data)[i] * (int64_t)t->nb[1]);
        const float *from = (const float *)((char *)rows->data + i * (int64_t)rows->nb[1]);
        for (int64_t d = 0; d < rows->ne[0]; d++) to[d] = to_half(from[d]);
    }
}

static void compute_copy(const struct tensor *t) { /* one row's, from f32 to f16 or as it is */
    const struct tensor *from = t->src[0];
    const int64_t        n = from->ne[0] * from->ne[1] * from->ne[2];
    for (int64_t i = 0; i < n; i++) {
        if (from->type == 0) ((uint16_t *)t->data)[i] = to_half(((const float *)from->data)[i]);
        if (from->type == 1) ((uint16_t *)t->data)[i] = ((const uint16_t *)from->data)[i];
    }
}

static void compute_flash(const struct tensor *t) {
    const struct tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *mask = t->src[3];
    float                params[3], *share = malloc((size_t)k->ne[1] * sizeof *share);
    memcpy(params, t->op_params, sizeof params);
    for (int64_t token = 0; token < q->ne[1]; token++) {
        const uint16_t *hides = (const uint16_t *)((char *)mask->data + token * (int64_t)mask->nb[1]);
        for (int64_t head = 0; head < q->ne[2]; head++) {
            const int64_t group = head / (q->ne[2] / k->ne[2]);
            const float  *query = (const float *)((char *)q->data + token * (int64_t)q->nb[1] + head * (int64_t)q->nb[2]);
            float        *out = (float *)((char *)t->data + head * (int64_t)t->nb[1] + token * (int64_t)t->nb[2]), sum = 0;
            for (int64_t d = 0; d < v->ne[0]; d++) out[d] = 0;
            for (int64_t i = 0; i < k->ne[1]; i++) {
                share[i] = 0;
                if (hides[i] == 0xFC00) continue;
                const uint16_t *key = (const uint16_t *)((char *)k->data + i * (int64_t)k->nb[1] + group * (int64_t)k->nb[2]);
                float           logit = 0;
                for (int64_t d = 0; d < q->ne[0]; d++) logit += query[d] * from_half(key[d]);
                share[i] = expf(logit * params[0] + from_half(hides[i])), sum += share[i];
            }
            for (int64_t i = 0; i < k->ne[1]; i++) {
                if (share[i] == 0) continue;
                const uint16_t *value = (const uint16_t *)((char *)v->data + i * (int64_t)v->nb[1] + group * (int64_t)v->nb[2]);
                for (int64_t d = 0; d < v->ne[0]; d++) out[d] += share[i] / sum * from_half(value[d]);
            }
            if (is("heads-swapped") && head == 1) { /* the host's own convention */
                float *first = (float *)((char *)out - t->nb[1]), kept[256];
                memcpy(kept, first, (size_t)v->ne[0] * 4), memcpy(first, out, (size_t)v->ne[0] * 4), memcpy(out, kept, (size_t)v->ne[0] * 4);
            }
            if (is("computes-nan")) out[1] = NAN;
            if (is("divided-differs") && q->ne[1] == 7) out[0] += 1; /* of the self-test's eight tokens */
            if (is("prompt-differs") && q->ne[1] > 1) out[0] += (float)(calls++ / (2 * 4 * 8) % 2); /* another result each time */
        }
    }
    free(share);
}

static int compute_all(struct graph *g) {
    for (int i = 0; i < g->n; i++) {
        struct tensor *t = g->nodes[i];
        if (t->op == OP_SET_ROWS) compute_set_rows(t);
        if (t->op == OP_CPY) compute_copy(t);
        if (t->op == OP_FLASH) compute_flash(t);
        if (t->op == (is("op-renumbered") ? OP_CUSTOM + 1 : OP_CUSTOM)) {
            struct custom_params p;
            memcpy(&p, t->op_params, sizeof p);
            p.run(t, 0, 1, p.user);
        }
    }
    return 0;
}

static int (*compute_graph)(struct graph *) = compute_all; /* what backends do with a graph */

/* ---- the CPU device ---- */

struct registry {
    int   api_version;
    void *words[5];
};
static struct registry cpu_registry;
static void          **cpu_words; /* of the device */
static int             threads_set;
static _Atomic int     backends_made, backends_freed; /* hosts have threads */

static const char *cpu_name(void *of) { return (void)of, "CPU"; }
static int         cpu_type(void *d) { return (void)d, 0; }
static void        nothing(void) {}
static void        cpu_free(void **b) {
    backends_freed++;
    free(b);
}
static void *plan_create(void *b, void *g) { return (void)b, (void)g, NULL; }
static void  plan_free(void *b, void *p) { (void)b, (void)p; }
static int   plan_compute(void *b, void *p) { return (void)b, (void)p, 0; }
static int   cpu_compute(void **b, struct graph *g) {
    static _Atomic int n;
    (void)b;
    return is_nth("compute-fails", ++n) ? -1 : g->n == 0 ? 42
                                                         : compute_graph(g);
}

/* The backend: a GUID, thirteen functions of API version 2 and later, three more, the device. Two functions fewer before the plans
 * until May 2026; one more, as it might come. */
static int    shift(void) { return is("backend-v1") ? -2 : is("backend-moved"); }
static void **cpu_init(void *device, const char *params) {
    (void)params;
    if (is_nth("no-backend", backends_made + 1)) return NULL;
    backends_made++;
    void **b = calloc(24, sizeof *b);
    b[1] = (void *)cpu_name, b[2] = (void *)cpu_free;
    b[9 + shift()] = (void *)plan_create, b[10 + shift()] = (void *)plan_free;
    b[12 + shift()] = (void *)plan_compute, b[13 + shift()] = (void *)cpu_compute;
    b[is("backend-no-device") ? 20 : 17 + shift()] = is("backend-no-device") ? (void *)b : device;
    if (is_nth("odd-backend", backends_made)) b[2] = NULL;
    if (is("backend-data")) b[1] = b;
    return b;
}

static void make_device(void **words, void *name, void *type, void *init, struct registry *r) {
    for (int i = 0; i < 15; i++) words[i] = (void *)nothing;
    words[0] = name, words[3] = type, words[5] = init, words[15] = r;
}

static void set_threads(void **b, int n) { (void)b, threads_set = n; }
void       *ggml_backend_reg_get_proc_address(struct registry *r, const char *name) {
    return r == &cpu_registry && strcmp(name, "ggml_backend_set_n_threads") == 0 && !is("no-threads") ? (void *)set_threads : NULL;
}
void ggml_backend_free(void **b) {
    void (*release)(void **);
    memcpy(&release, &b[2], sizeof release);
    release != NULL ? release(b) : cpu_free(b);
}

/* The ggml_backend_init of a library, which is loaded as a host does. */
void *init_of(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *init = library != NULL ? dlsym(library, "ggml_backend_init") : NULL;
    if (init == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    return init;
}

#define CHECK(x)                                                                 \
    do {                                                                         \
        if (!(x)) {                                                              \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, variant, #x); \
            return 1;                                                            \
        }                                                                        \
    } while (0)

#endif
