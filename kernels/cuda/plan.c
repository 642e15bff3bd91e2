/* Plans a call: checks its arguments, carves the work memory, sizes grids and pipelines. Plain C without the
 * driver, so that it is tested without a GPU and shared by Go and by the tests on GPU machines. */
#include "kernels.h"

#include <stdio.h>
#include <string.h>

#include "layout.h"
#include "logit_filter.h"
#include "order.h"
#include "split.h"

enum { HOPPER = 90 }; /* compute capability */

/* Shared memory that the system takes of each block. */
#define RESERVED 1024
/* Of the selection's and attention's own static variables, rounded up. */
#define STATIC 1024

static int power_of_two_from(int64_t least) {
    int p = 64;
    while (p < least) p *= 2;
    return p;
}

static int group_of(const lim_cuda_call *c) { return c->heads / c->kv_heads; }

/* ---- checks ---- */

#define REFUSE(kind, ...)                  \
    do {                                   \
        snprintf(text, size, __VA_ARGS__); \
        return kind;                       \
    } while (0)

static int is_packed(int type) { return type == LIM_CUDA_Q8_0 || type == LIM_CUDA_Q4_0; }
static int is_half(int type) { return type == LIM_CUDA_F16 || type == LIM_CUDA_BF16; }

static int64_t row_bytes(int type, int dim) {
    switch (type) {
    case LIM_CUDA_FP8: return dim;
    case LIM_CUDA_Q8_0: return dim / 32 * 34;
    case LIM_CUDA_Q4_0: return dim / 32 * 18;
    case LIM_CUDA_F32: return dim * 4;
    default: return dim * 2;
    }
}

/* The elements that the kernel for this head_dim has room for; it is a padded one where they are more. */
static int kernel_dim(const lim_cuda_call *c) {
    if (c->dim == 64) return 64;
    return c->dim <= 128 ? 128 : 256;
}
static int is_padded(const lim_cuda_call *c) { return c->dim != kernel_dim(c); }

static int check_dim(const lim_cuda_call *c, char *text, size_t size) {
    if (c->kv_type != LIM_CUDA_F16 && c->kv_type != LIM_CUDA_BF16 && c->kv_type != LIM_CUDA_FP8 && !is_packed(c->kv_type))
        REFUSE(2, "kv_type = %d is not f16, bf16, fp8, q8_0 or q4_0", c->kv_type);
    if (c->dim < 16 || c->dim > 256 || c->dim % 16 != 0) REFUSE(2, "dim = %d is not a multiple of 16 up to 256", c->dim);
    if (!is_padded(c) || is_half(c->kv_type)) return 0;
    if (!is_packed(c->kv_type)) REFUSE(2, "dim = %d is not 64, 128 or 256, as it has to be with fp8", c->dim);
    if (c->dim != 96) REFUSE(2, "dim = %d is not 64, 96, 128 or 256, as it has to be with q8_0 and q4_0", c->dim);
    if (group_of(c) > 8) REFUSE(2, "dim = %d with heads = %d, more than 8 for each of the %d KV heads, is not in q8_0 or q4_0", c->dim, c->heads, c->kv_heads);
    return 0;
}

static int check_store(const char *name, const lim_cuda_store *s, const lim_cuda_call *c, char *text, size_t size) {
    /* Of 96 elements a row's bytes are no multiple of four: its head may begin between two. */
    const int     shifted = is_packed(c->kv_type) && c->dim == 96;
    const int64_t align = shifted ? 4 : is_packed(c->kv_type) ? c->dim / 16
                                                              : 16,
                  bytes = row_bytes(c->kv_type, c->dim);
    if (s->data == 0) REFUSE(1, "%s = NULL", name);
    if (s->data % align != 0)
        REFUSE(2, "%s = %#llx is not a multiple of %lld bytes", name, (unsigned long long)s->data, (long long)align);
    const struct {
        const char *name;
        int64_t     stride;
        int         used;
    } strides[] = {
        {"token_stride", s->token_stride, 1},
        {"head_stride", s->head_stride, c->kv_heads > 1},
        {"page_stride", s->page_stride, c->table != 0 || c->n_rows > 1},
    };
    for (int i = 0; i < 3; i++) {
        if (!strides[i].used) continue;
        if (strides[i].stride < bytes)
            REFUSE(1, "%s's %s = %lld is less than a row of %lld bytes", name, strides[i].name, (long long)strides[i].stride,
                   (long long)bytes);
        if (i == 0 && is_packed(c->kv_type) && strides[i].stride > LIM_CUDA_MOST_STRIDE)
            REFUSE(2, "%s's %s = %lld is more than %d", name, strides[i].name, (long long)strides[i].stride, LIM_CUDA_MOST_STRIDE);
        const int64_t step = shifted && i == 1 ? 2 : align;
        if (strides[i].stride % step != 0)
            REFUSE(2, "%s's %s = %lld is not a multiple of %lld bytes", name, strides[i].name, (long long)strides[i].stride,
                   (long long)step);
    }
    return 0;
}

static int check_rows(const char *name, const lim_cuda_rows *r, const lim_cuda_call *c, char *text, size_t size) {
    if (r->data == 0) REFUSE(1, "%s = NULL", name);
    if (r->type != LIM_CUDA_F32 && r->type != LIM_CUDA_F16 && r->type != LIM_CUDA_BF16)
        REFUSE(1, "%s's type = %d is not f32, f16 or bf16", name, r->type);
    const int64_t align = 4, bytes = row_bytes(r->type, c->dim);
    if (r->data % align != 0) REFUSE(2, "%s = %#llx is not a multiple of 4 bytes", name, (unsigned long long)r->data);
    if (c->heads > 1 && (r->head_stride < bytes || r->head_stride % align != 0))
        REFUSE(1, "%s's head_stride = %lld is no multiple of 4 that holds a row of %lld bytes", name, (long long)r->head_stride, (long long)bytes);
    if (c->n_rows > 1 && (r->row_stride < bytes || r->row_stride % align != 0))
        REFUSE(1, "%s's row_stride = %lld is no multiple of 4 that holds a row of %lld bytes", name, (long long)r->row_stride, (long long)bytes);
    return 0;
}

static int64_t select_shared(const lim_cuda_call *c);
static int64_t attend_shared(const lim_cuda_call *c, int stages);

int lim_cuda_check(const lim_cuda_device *device, const lim_cuda_call *c, char *text, size_t size) {
    if (c->mode < LIM_CUDA_FULL || c->mode > LIM_CUDA_SPARSE) REFUSE(1, "mode = %d is unknown", c->mode);
    if (c->policy != LIM_CUDA_UNION && c->policy != LIM_CUDA_MASS) REFUSE(1, "policy = %d is unknown", c->policy);
    if (c->n_rows < 1 || c->n_rows > LIM_CUDA_MAX_ROWS) REFUSE(1, "n_rows = %d is not in 1 .. %d", c->n_rows, LIM_CUDA_MAX_ROWS);
    if (c->heads < 1 || c->heads > LIM_CUDA_MAX_HEADS) REFUSE(1, "heads = %d is not in 1 .. %d", c->heads, LIM_CUDA_MAX_HEADS);
    if (c->kv_heads < 1 || c->kv_heads > c->heads || c->heads % c->kv_heads != 0)
        REFUSE(1, "kv_heads = %d does not divide heads = %d", c->kv_heads, c->heads);
    if (group_of(c) > LIM_CUDA_MAX_GROUP)
        REFUSE(2, "heads = %d is more than %d for each of the %d KV heads", c->heads, LIM_CUDA_MAX_GROUP, c->kv_heads);
    int refused = check_dim(c, text, size);
    if (refused != 0) return refused;
    if (c->capacity < 1 || c->capacity > 1 << 28) REFUSE(1, "capacity = %d is not in 1 .. %d", c->capacity, 1 << 28);
    if (c->kv_tokens < 0 || c->kv_tokens > (int64_t)LIM_CUDA_MAX_ROWS << 20) REFUSE(1, "kv_tokens = %lld is not in 0 .. %lld", (long long)c->kv_tokens, (long long)LIM_CUDA_MAX_ROWS << 20);
    if (!(c->softcap >= 0) || c->softcap > 3.0e38f) REFUSE(1, "softcap = %g is not a finite number of 0 or more", c->softcap);
    if (!(c->scale > -3.0e38f && c->scale < 3.0e38f)) REFUSE(1, "scale = %g is not a finite number", c->scale);
    if (!(c->value_scale > -3.0e38f && c->value_scale < 3.0e38f)) REFUSE(1, "value_scale = %g is not a finite number", c->value_scale);
    refused = check_rows("query", &c->query, c, text, size);
    if (refused == 0) refused = check_rows("output", &c->output, c, text, size);
    if (refused == 0) refused = check_store("key", &c->key, c, text, size);
    if (refused == 0) refused = check_store("value", &c->value, c, text, size);
    if (refused != 0) return refused;
    if (c->lengths == 0 || c->lengths % 4 != 0) REFUSE(1, "lengths = %#llx is no address of int32", (unsigned long long)c->lengths);
    if (c->sinks % 4 != 0) REFUSE(1, "sinks = %#llx is no address of float", (unsigned long long)c->sinks);
    if (c->work == 0 || c->work % 256 != 0) REFUSE(1, "work = %#llx is not a multiple of 256", (unsigned long long)c->work);
    if (c->table != 0) {
        if (c->table % 4 != 0) REFUSE(1, "table = %#llx is no address of int32", (unsigned long long)c->table);
        if (c->page_shift < 0 || c->page_shift > 24) REFUSE(1, "page_shift = %d is not in 0 .. 24", c->page_shift);
        const int64_t pages = ((int64_t)c->capacity + (1 << c->page_shift) - 1) >> c->page_shift;
        if (c->n_rows > 1 && c->table_stride < pages)
            REFUSE(1, "table_stride = %lld is less than the %lld pages of the capacity", (long long)c->table_stride, (long long)pages);
    }
    /* Two tiles under way for each warp are the least that makes sense. */
    if (attend_shared(c, 2) + STATIC > device->shared_per_block)
        REFUSE(2, "dim = %d with %d heads for a KV head needs %lld bytes of shared memory; the device has %d", c->dim, group_of(c),
               (long long)attend_shared(c, 2) + STATIC, device->shared_per_block);
    if (c->mode == LIM_CUDA_FULL) return 0;

    if (c->budget < 1 || c->sink_tokens < 0 || c->top_k < 0 || c->recent < 0 || (int64_t)c->sink_tokens + c->top_k + c->recent != c->budget)
        REFUSE(1, "budget = %d is not the sum of sink_tokens = %d, top_k = %d and recent = %d", c->budget, c->sink_tokens, c->top_k, c->recent);
    if (c->set == 0 || c->set % 4 != 0 || c->positions % 4 != 0)
        REFUSE(1, "set = %#llx is no address of int32", (unsigned long long)c->set);
    const int64_t most = c->budget < c->capacity ? c->budget : c->capacity;
    if (c->n_rows > 1 && c->set_stride < most)
        REFUSE(1, "set_stride = %lld is less than the %lld tokens of a set", (long long)c->set_stride, (long long)most);
    if (c->mode == LIM_CUDA_SELECT) {
        if (c->top_k > LIM_CUDA_MAX_TOP_K) REFUSE(2, "top_k = %d is more than the %d tokens that can be ranked", c->top_k, LIM_CUDA_MAX_TOP_K);
        if (c->capacity > LIM_CUDA_MAX_TOKENS && c->capacity > c->budget)
            REFUSE(2, "capacity = %d is more than the %d tokens that can be chosen from", c->capacity, LIM_CUDA_MAX_TOKENS);
        if (select_shared(c) + STATIC > device->shared_per_block)
            REFUSE(2, "budget = %d at capacity = %d needs %lld bytes of shared memory; the device has %d", c->budget, c->capacity,
                   (long long)select_shared(c) + STATIC, device->shared_per_block);
    }
    return 0;
}

/* ---- attention: pipeline and grid ---- */

/* Which kernels there are besides those for every card: see attention.cu. */
static int has_short(const lim_cuda_device *d, const lim_cuda_call *c) {
    return d->capability == HOPPER && kernel_dim(c) <= 128 && group_of(c) <= 8;
}
static int has_tma(const lim_cuda_device *d, const lim_cuda_call *c) {
    return has_short(d, c) && (is_half(c->kv_type) || is_packed(c->kv_type)) && !is_padded(c);
}
/* In pages, and with the logits filtered. */
static int has_more_tma(const lim_cuda_device *d, const lim_cuda_call *c) { return has_tma(d, c) && is_half(c->kv_type); }

/* Packed rows are read by TMA as parts of a token's, which lie at multiples of 16. */
static int fits_packed_tma(const lim_cuda_call *c, const lim_cuda_store *s) {
    return c->table == 0 && s->data % 16 == 0 && s->token_stride % 16 == 0 && (c->n_rows == 1 || s->page_stride % 16 == 0) &&
           (c->kv_heads == 1 || s->head_stride == row_bytes(c->kv_type, c->dim));
}

/* TMA loads whole tiles, of rows without a table or in pages of whole tiles, where the kernel for it has the registers. */
static int fits_tma(const lim_cuda_device *d, const lim_cuda_call *c) {
    const int64_t               far = (int64_t)1 << 40; /* TMA's strides are less */
    const lim_cuda_store *const stores[] = {&c->key, &c->value};
    if (!has_tma(d, c) || c->mode == LIM_CUDA_SPARSE || (c->table != 0 && 1 << c->page_shift < LIM_CUDA_TILE)) return 0;
    for (int i = 0; i < 2; i++) {
        const lim_cuda_store *s = stores[i];
        if (is_packed(c->kv_type) && !fits_packed_tma(c, s)) return 0;
        if (s->token_stride >= far || (c->kv_heads > 1 && s->head_stride >= far)) return 0;
        if ((c->table != 0 || c->n_rows > 1) && s->page_stride >= far) return 0;
    }
    return 1;
}

static int64_t pipeline_shared(const lim_cuda_call *c, int warps, int stages) {
    const int      heads = group_of(c) > 8 ? 16 : 8, dim = kernel_dim(c);
    const int64_t  pitch = is_packed(c->kv_type) ? LIM_CUDA_PACKED_PITCH(row_bytes(c->kv_type, dim)) : LIM_CUDA_PITCH(row_bytes(c->kv_type, c->dim));
    const uint32_t warp = WarpBytesOf((uint32_t)(stages * 2 * LIM_CUDA_TILE * pitch), (uint32_t)heads, (uint32_t)dim);
    return (int64_t)heads * LIM_CUDA_QUERY_PITCH(dim) + (int64_t)warp * warps;
}
static int64_t attend_shared(const lim_cuda_call *c, int stages) { return pipeline_shared(c, LIM_CUDA_WARPS, stages); }
/* Without the padding of rows, and the tiles at multiples of 1,024. */
static int64_t tma_shared(const lim_cuda_call *c, int stages) {
    if (is_packed(c->kv_type)) return pipeline_shared(c, LIM_CUDA_WARPS, stages) - 8 * LIM_CUDA_QUERY_PITCH(c->dim) + LIM_CUDA_TMA_QUERY_BYTES(c->dim);
    return LIM_CUDA_TMA_QUERY_BYTES(c->dim) + (int64_t)stages * LIM_CUDA_WARPS * 2 * LIM_CUDA_TILE * c->dim * 2;
}
static int64_t short_shared(const lim_cuda_call *c, int stages, int cluster) {
    const uint32_t fours = cluster > 1 ? DsmemFours((uint32_t)group_of(c), (uint32_t)kernel_dim(c), (uint32_t)cluster) : 0;
    return pipeline_shared(c, LIM_CUDA_SHORT_WARPS, stages) + DsmemBytes(fours, (uint32_t)cluster);
}

/* SHORT_BYTES: of a warp's stages. */
enum { DEPTHS = 4,
       GROUPS = 8,
       SHORT = 4096,
       SHORT_BYTES = 16384 };
static const int depths[DEPTHS] = {LIM_CUDA_MOST_STAGES, 4, 3, 2};

typedef struct shape {
    int      stages, per_multiprocessor, cluster;
    uint32_t blocks;
} shape;

/* Bytes in flight hide the memory's latency: as deep as two blocks on each multiprocessor allow, or, where the computing has to be
 * hidden as well, all that there may be; then as many blocks as fit. */
static shape attend_shape(const lim_cuda_device *d, const lim_cuda_call *c) {
    shape     s = {2, 1, 0, 0};
    const int most = LIM_CUDA_MOST_BLOCKS(is_packed(c->kv_type) && !is_padded(c), kernel_dim(c), group_of(c)), beside = is_packed(c->kv_type) ? most : 2;
    for (int i = 0; i < DEPTHS; i++) {
        const int64_t bytes = attend_shared(c, depths[i]);
        if (bytes + STATIC > d->shared_per_block) continue;
        if (beside * (bytes + STATIC + RESERVED) > d->shared_per_multiprocessor && depths[i] > 2) continue;
        s.stages = depths[i];
        break;
    }
    const int64_t fit = d->shared_per_multiprocessor / (attend_shared(c, s.stages) + STATIC + RESERVED);
    s.per_multiprocessor = fit < 1 ? 1 : fit > most ? most
                                                    : (int)fit;
    s.blocks = (uint32_t)(d->multiprocessors * s.per_multiprocessor);
    return s;
}

/* With rows of equal length, a number of blocks that goes evenly into the work tiles (or they into it) gives each
 * block whole splits: a split's end is where a pipeline runs dry. Taken where it leaves few blocks idle. */
static uint32_t even_blocks(uint32_t blocks, uint32_t work_tiles) {
    const uint32_t waves = (work_tiles + blocks - 1) / blocks;
    const uint32_t even = work_tiles <= blocks ? blocks / work_tiles * work_tiles : (work_tiles + waves - 1) / waves;
    return even * 10 >= blocks * 9 ? even : blocks;
}

/* Short work is all latency, and much of that is merging parts through global memory: there the blocks of a work tile
 * are a cluster, one block on each multiprocessor. */
static shape short_shape(const lim_cuda_device *d, const lim_cuda_call *c, uint32_t work_tiles, int32_t longest) {
    shape s = {0, 1, 0, 0};
    if (!has_short(d, c)) return s;
    if (c->mode != LIM_CUDA_SPARSE && longest > SHORT) return s; /* unequal rows would leave blocks idle */
    /* A cluster lies within one of the card's groups of multiprocessors, which are of different sizes: each may leave
     * size - 1 unused. Two always share a pair of multiprocessors. */
    int size = LIM_CUDA_MOST_CLUSTER;
    while (size > 2 && (int)work_tiles * size > d->multiprocessors - GROUPS * (size - 1)) size--;
    if (size < 2 || (int)work_tiles * size > d->multiprocessors || (size < LIM_CUDA_MOST_CLUSTER && (int)work_tiles * size * 2 < d->multiprocessors)) return s;
    /* As many stages as a warp has bytes for: more under way is not read faster, and the multiprocessors' shares drift apart. */
    const int64_t fit = SHORT_BYTES / (2 * LIM_CUDA_TILE * row_bytes(c->kv_type, c->dim));
    int           stages = 2;
    for (int i = DEPTHS - 1; i >= 0; i--) stages = depths[i] <= fit ? depths[i] : stages;
    if (short_shared(c, stages, size) + STATIC > d->shared_per_block) return s;
    s.stages = stages;
    s.cluster = size;
    s.blocks = work_tiles * (uint32_t)size;
    return s;
}

/* ---- selection ---- */

static int room_of(const lim_cuda_call *c) {
    const int room = power_of_two_from(2 * (int64_t)c->top_k + 64);
    return room > LIM_CUDA_MAX_TOP_K ? LIM_CUDA_MAX_TOP_K : room;
}

static int64_t select_shared(const lim_cuda_call *c) {
    /* From LIM_CUDA_MAX_RANKED on there is no second copy: such rankings are sorted in place. */
    const int     room = room_of(c);
    const int64_t ranking = RankingBytes((uint32_t)room, room <= LIM_CUDA_MAX_RANKED);
    const int64_t merging = MergingBytes((uint32_t)c->top_k, (uint32_t)c->heads, (uint32_t)c->capacity);
    if (c->policy == LIM_CUDA_MASS) return ranking + merging;
    return ranking > merging ? ranking : merging;
}

/* ---- work memory ---- */

static uint64_t take(uint64_t *used, int64_t bytes) {
    const uint64_t at = *used;
    *used += ((uint64_t)bytes + 255) / 256 * 256;
    return at;
}

static size_t carve(const lim_cuda_device *d, const lim_cuda_call *c, lim_cuda_args *a) {
    uint64_t      used = c->work;
    const int64_t part = (int64_t)PartFloats((uint32_t)group_of(c), (uint32_t)kernel_dim(c)) * 4;
    const int     blocks = d->multiprocessors * LIM_CUDA_MOST_RESIDENT; /* the most of any mode */
    a->logit_stride = ((int64_t)c->capacity + 31) / 32 * 32;
    a->room_stride = (d->capability == HOPPER ? 2 : 1) * a->logit_stride; /* only there are they filtered */
    /* What has to be zero stays in its place when the number of rows changes. */
    a->arrivals = take(&used, (int64_t)LIM_CUDA_MAX_ROWS * c->kv_heads * 4);
    a->gathered = take(&used, (int64_t)LIM_CUDA_MAX_ROWS * 4);
    a->parts = take(&used, 2 * blocks * part);
    a->floats = (uint32_t)(a->room_stride / a->logit_stride);
    if (c->kv_tokens > 0 || c->lasting) a->no_sets = take(&used, 4);
    a->sums = take(&used, (int64_t)c->n_rows * c->heads * 4);
    if (c->budget > 0) { /* both policies' parts, so that the size does not depend on it */
        /* Tokens that there is room for, and rankings. In a pool each row has whole rooms, and more than the budget: room.cuh. */
        const int64_t room = c->kv_tokens > 0 ? PoolTokens(c->kv_tokens, c->n_rows, c->budget) : c->n_rows * a->logit_stride;
        const int64_t rankings = c->kv_tokens > 0 ? PoolRankings(c->kv_tokens, c->n_rows, c->budget) : c->n_rows;
        a->ranks = take(&used, rankings * c->heads * RankStride((uint32_t)c->top_k) * 4);
        a->mass = take(&used, room * 4);
        a->logits = take(&used, room * c->heads * a->floats * 4);
        a->survivors = take(&used, (int64_t)c->n_rows * c->heads * LIM_CUDA_FILTER_LISTS * (int64_t)sizeof(lim_cuda_survivors));
        a->again = take(&used, (int64_t)c->n_rows * c->heads * 4);
        a->queries = take(&used, (int64_t)c->n_rows * c->heads * c->dim * 4);
    }
    return used - c->work;
}

size_t lim_cuda_work_size(const lim_cuda_device *device, const lim_cuda_call *call) {
    lim_cuda_args args;
    lim_cuda_call c = *call;
    c.work = 0;
    memset(&args, 0, sizeof args);
    return carve(device, &c, &args);
}

uint64_t lim_cuda_no_sets(const lim_cuda_device *device, const lim_cuda_call *call) {
    lim_cuda_args args;
    memset(&args, 0, sizeof args);
    carve(device, call, &args);
    return args.no_sets;
}

/* ---- plans ---- */

static void fill(const lim_cuda_device *d, const lim_cuda_call *c, lim_cuda_args *a) {
    memset(a, 0, sizeof *a);
    a->call = *c;
    carve(d, c, a);
    a->group = group_of(c);
    a->together = (uint32_t)a->group;
    a->room = room_of(c);
    a->need = RanksNeeded((uint32_t)c->heads, (uint32_t)c->top_k);
}

static void plan_select(const lim_cuda_call *c, int filtered, lim_cuda_launch *l) {
    const int mass = c->policy == LIM_CUDA_MASS;
    memset(l, 0, sizeof *l);
    snprintf(l->name, sizeof l->name, mass ? "lim_select_mass" : filtered ? "lim_select_filtered"
                                                                          : "lim_select_union");
    l->grid[0] = mass ? (uint32_t)(c->capacity + LIM_CUDA_SELECT_THREADS - 1) / LIM_CUDA_SELECT_THREADS : (uint32_t)c->heads;
    l->grid[1] = (uint32_t)c->n_rows;
    l->grid[2] = 1;
    l->block = LIM_CUDA_SELECT_THREADS;
    l->shared = (uint32_t)select_shared(c);
}

/* Whether some row may have splits that are worth filtering. */
static int may_filter(const lim_cuda_call *c, const lim_cuda_args *a, uint32_t work_tiles, uint32_t blocks) {
    const uint32_t chunks = work_tiles * SplitChunks(c->capacity, a->chunk_tokens);
    return a->tma && is_half(c->kv_type) && c->mode == LIM_CUDA_SELECT && c->policy == LIM_CUDA_UNION && c->top_k > 0 && c->capacity > c->budget &&
           2 * blocks <= LIM_CUDA_FILTER_LISTS * work_tiles && chunks / blocks * a->chunk_tokens >= FilterLeast(a->need, (uint32_t)a->group, LIM_CUDA_WARPS);
}

static void name_of(const lim_cuda_call *c, const char *kind, const char *how, char name[LIM_CUDA_NAME]) {
    static const char *const types[] = {"", "f16", "bf16", "q8_0", "q4_0", "fp8"};
    const int                upto = is_padded(c) && is_half(c->kv_type);
    snprintf(name, LIM_CUDA_NAME, "lim_%s_%s_%s%d_%d_%s", kind, types[c->kv_type], upto ? "upto" : "", upto ? kernel_dim(c) : c->dim, group_of(c) > 8 ? 16 : 8, how);
}

int lim_cuda_entry_points(const lim_cuda_device *d, const lim_cuda_call *c, char names[LIM_CUDA_MOST_ENTRIES][LIM_CUDA_NAME]) {
    static const char *const tma[] = {"tma", "tma_paged", "filtered", "filtered_paged"};
    static const char *const selections[] = {"lim_select_union", "lim_select_mass", "lim_select_filtered"};
    int                      count = 0;
    name_of(c, "attend", "direct", names[count++]);
    name_of(c, "attend", "indexed", names[count++]);
    if (has_short(d, c)) {
        name_of(c, "short", "direct", names[count++]);
        name_of(c, "short", "indexed", names[count++]);
    }
    for (int i = 0; i < (has_more_tma(d, c) ? 4 : has_tma(d, c)); i++) name_of(c, "attend", tma[i], names[count++]);
    for (int i = 0; i < (has_more_tma(d, c) ? 3 : 2) && c->budget > 0; i++) snprintf(names[count++], LIM_CUDA_NAME, "%s", selections[i]);
    return count;
}

static int plan(const lim_cuda_device *d, const lim_cuda_call *c, lim_cuda_args *a, lim_cuda_launch launches[2], int all) {
    fill(d, c, a);
    const shape    s = attend_shape(d, c);
    const int32_t  longest = c->mode == LIM_CUDA_SPARSE && c->budget < c->capacity ? c->budget : c->capacity;
    const uint32_t work_tiles = (uint32_t)c->n_rows * (uint32_t)c->kv_heads;
    a->stages = s.stages;
    /* Where two blocks on each multiprocessor would have a chunk or less each, one block with twice as much is
     * as fast and leaves half the parts to merge. */
    uint32_t least = LIM_CUDA_WARPS * LIM_CUDA_TILE;
    for (;;) {
        const uint64_t count = (uint64_t)work_tiles * SplitChunks(longest, least);
        if (count <= (uint64_t)d->multiprocessors || count > s.blocks || least >= (uint32_t)longest) break;
        least *= 2;
    }
    const uint32_t blocks = even_blocks(s.blocks, work_tiles);
    const shape    brief = short_shape(d, c, work_tiles, longest);
    /* A pool that is too small makes every layer dense, the sparse ones too. */
    a->chunk_tokens = SplitChunkTokens(least, work_tiles, (uint32_t)(c->kv_tokens > 0 ? c->capacity : longest), blocks);
    lim_cuda_launch *l = &launches[0];
    memset(l, 0, sizeof *l);
    const uint64_t chunks = (uint64_t)work_tiles * SplitChunks(longest, a->chunk_tokens);
    l->grid[0] = chunks < blocks ? (uint32_t)chunks : blocks;
    a->tma = brief.cluster <= 1 && fits_tma(d, c);
    const int filters = !all && may_filter(c, a, work_tiles, l->grid[0]);
    if (!filters) a->survivors = 0;
    name_of(c, brief.cluster > 1 ? "short" : "attend",
            filters                                       ? (c->table != 0 ? "filtered_paged" : "filtered")
            : a->tma                                      ? (c->table != 0 ? "tma_paged" : "tma")
            : c->mode == LIM_CUDA_SPARSE || c->table != 0 ? "indexed"
                                                          : "direct",
            l->name);
    l->grid[1] = l->grid[2] = 1;
    l->block = LIM_CUDA_WARPS * 32;
    l->shared = (uint32_t)(a->tma ? tma_shared(c, s.stages) : attend_shared(c, s.stages));
    if (filters) l->shared += LIM_CUDA_FILTER_SAMPLES * 4;
    if (brief.cluster > 1) {
        a->cluster = l->cluster = (uint32_t)brief.cluster;
        a->stages = brief.stages;
        l->grid[0] = brief.blocks;
        l->pdl = 1; /* long work would lose by it: who comes early gets the fast multiprocessors */
        l->block = LIM_CUDA_SHORT_WARPS * 32;
        l->shared = (uint32_t)short_shared(c, brief.stages, brief.cluster);
    }
    /* A capacity within the budget leaves nothing to choose: the set is written all the same. */
    if (c->mode != LIM_CUDA_SELECT) return 1;
    plan_select(c, filters, &launches[1]);
    return 2;
}

int lim_cuda_plan(const lim_cuda_device *d, const lim_cuda_call *c, lim_cuda_args *a, lim_cuda_launch launches[2]) {
    return plan(d, c, a, launches, 0);
}
int lim_cuda_plan_all(const lim_cuda_device *d, const lim_cuda_call *c, lim_cuda_args *a, lim_cuda_launch launches[2]) {
    return plan(d, c, a, launches, 1);
}

int lim_cuda_plan_select(const lim_cuda_device *d, const lim_cuda_call *c, uint64_t logits, int64_t logit_stride,
                         uint64_t sums, lim_cuda_args *a, lim_cuda_launch launches[2]) {
    fill(d, c, a);
    a->logits = logits;
    a->together = 1;
    a->logit_stride = a->room_stride = logit_stride;
    a->call.kv_tokens = 0; /* the caller's rows are apart */
    a->floats = 1;
    a->survivors = 0;
    if (sums != 0) a->sums = sums;
    plan_select(c, 0, &launches[0]);
    return 1;
}
