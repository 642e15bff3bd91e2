/* What the hosts that lie have in common: enough of ggml to prove a layout by. A host plays one variant: right
 * in everything, or wrong in one way. */
#ifndef FAKE_H
#define FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *variant;
static bool is(const char *name) { return strcmp(variant, name) == 0; }

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
enum { OP_NONE, OP_ROPE = 3, OP_SOFT_MAX = 5, OP_SET_ROWS = 8, OP_CUSTOM = 9, OP_FLASH = 11, OP_COUNT };
static const char *op_names[] = {"NONE", "DUP", "ADD", "ROPE", "MUL", "SOFT_MAX", "SUB", "DIV", "SET_ROWS", "CUSTOM", "SUM", "FLASH_ATTN_EXT"};

const char *ggml_op_name(int op) {
    if (op >= OP_COUNT) return NULL;
    return is("no-flash-op") && op == OP_FLASH ? "FLASH_ATTN_BACK" : op_names[op];
}
const char *ggml_type_name(int type) {
    if (is("types-moved") && type == 8) return "q8_1";
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
size_t ggml_tensor_overhead(void) { return is("small-tensors") ? 300 : sizeof(struct tensor) + 32; }

struct init_params {
    size_t size;
    void  *memory;
    bool   no_alloc;
};
void *ggml_init(struct init_params p) { return p.no_alloc ? calloc(1, 1) : NULL; }
void  ggml_free(void *context) { free(context); }

static size_t size_of(int type) { return type == 0 ? 4 : type == 27 ? 8 : 2; }

struct tensor *ggml_new_tensor_4d(void *context, int type, int64_t a, int64_t b, int64_t c, int64_t d) {
    (void)context;
    struct tensor *t = calloc(1, sizeof *t); /* a test's leak */
    t->type          = type;
    const int64_t ne[4] = {a, b, c, d};
    size_t        size  = size_of(type);
    for (int i = 0; i < 4; i++) {
        t->ne[is("dims-reversed") ? 3 - i : i] = ne[i];
        t->nb[i]                               = size;
        size *= (size_t)ne[i];
    }
    return t;
}
struct tensor *ggml_view_4d(void *context, struct tensor *of, int64_t a, int64_t b, int64_t c, int64_t d, size_t nb1, size_t nb2, size_t nb3, size_t offset) {
    struct tensor *t = ggml_new_tensor_4d(context, of->type, a, b, c, d);
    t->nb[1] = nb1, t->nb[2] = nb2, t->nb[3] = nb3, t->view_src = of, t->view_offs = offset;
    return t;
}
struct tensor *ggml_set_name(struct tensor *t, const char *name) {
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}
struct tensor *ggml_flash_attn_ext(void *context, struct tensor *q, struct tensor *k, struct tensor *v, struct tensor *mask, float scale, float bias, float cap) {
    struct tensor *t = ggml_new_tensor_4d(context, 0, v->ne[0], q->ne[2], q->ne[1], q->ne[3]);
    const float    params[3] = {is("params-moved") ? bias : scale, is("params-moved") ? scale : bias, cap};
    memcpy(t->op_params, params, sizeof params);
    t->op     = OP_FLASH;
    t->src[0] = q, t->src[1] = is("sources-moved") ? mask : k, t->src[2] = v, t->src[3] = is("sources-moved") ? k : mask;
    return t;
}
void           ggml_flash_attn_ext_add_sinks(struct tensor *t, struct tensor *sinks) { t->src[4] = sinks; }
struct tensor *ggml_set_rows(void *context, struct tensor *to, struct tensor *rows, struct tensor *slots) {
    struct tensor *t = ggml_view_4d(context, to, to->ne[0], to->ne[1], to->ne[2], to->ne[3], to->nb[1], to->nb[2], to->nb[3], 0);
    t->op = OP_SET_ROWS, t->src[0] = rows, t->src[1] = slots;
    return t;
}

struct registry {
    int   api_version;
    void *words[5];
};

#define CHECK(x)                                                             \
    do {                                                                     \
        if (!(x)) {                                                          \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, variant, #x); \
            return 1;                                                        \
        }                                                                    \
    } while (0)

#endif
