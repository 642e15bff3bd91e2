/* Stands in for libcuda.so.1 where there is no GPU: one device (LIM_STANDIN_DEVICES: as many), memory from the heap, kernels that do
 * nothing, but for those that look at masks and count steps: these are played, the first with the source that it shares with
 * the host. With LIM_STANDIN_ATTEND those that attend are, too, and with LIM_STANDIN_ATTEND=sets those that choose.
 * What is launched while a stream is captured is remembered and runs when the graph is launched, with what a host in this process
 * has to run in between (it exports standin_capturing).
 * Every call is written, one line each, to the file that LIM_STANDIN_LOG names, so that a test can see what the
 * library asks of the driver, in which order, with which arguments. Calls that must not be made while a
 * stream is captured are marked with an exclamation mark. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../kernels/cuda/driver.h"
#include "../../../kernels/cuda/kernels.h"
#include "../../../kernels/cuda/tally.h"
#include "../../../kernels/cuda/visible.h"

#define EXPORT __attribute__((visibility("default")))

static pthread_mutex_t    mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread CUcontext current;

static void note(const char *format, ...) {
    const char *path = getenv("LIM_STANDIN_LOG");
    if (path == NULL) return;
    pthread_mutex_lock(&mutex);
    FILE *f = fopen(path, "a");
    if (f != NULL) {
        va_list args;
        va_start(args, format);
        vfprintf(f, format, args);
        va_end(args);
        fputc('\n', f);
        fclose(f);
    }
    pthread_mutex_unlock(&mutex);
}

/* LIM_STANDIN_FAIL=name:code makes that function fail, LIM_STANDIN_FAIL=name:code:n once it has been called n times. */
static int fails(const char *name) {
    static int   calls;
    const char  *what = getenv("LIM_STANDIN_FAIL");
    const size_t n = strlen(name);
    if (what == NULL || strncmp(what, name, n) != 0 || what[n] != ':') return 0;
    const char *after = strchr(what + n + 1, ':');
    return after != NULL && __sync_fetch_and_add(&calls, 1) < atoi(after + 1) ? 0 : atoi(what + n + 1);
}

#define BEGIN(name, mark, ...)              \
    note(mark #name " " __VA_ARGS__);       \
    const int standin_fails = fails(#name); \
    if (standin_fails != 0) return standin_fails

/* ---- devices: which one a thread's context is of, and which one memory is in ---- */

enum { DEVICES = 4,
       BLOCKS = 4096 };
static int       devices(void) { return getenv("LIM_STANDIN_DEVICES") != NULL ? atoi(getenv("LIM_STANDIN_DEVICES")) : 1; }
static CUcontext context_of(int device) { return (CUcontext)(uintptr_t)(0x1000 + 0x100 * device); }
static int       device_of(CUcontext c) { return c == NULL ? 0 : (int)(((uintptr_t)c - 0x1000) / 0x100); }

static struct block {
    uint64_t at, end;
    int      device;
} blocks[BLOCKS];
static void own(uint64_t p, size_t n) {
    pthread_mutex_lock(&mutex);
    struct block *b = blocks;
    while (b->end != 0) b++;
    *b = (struct block){p, p + n, device_of(current)};
    pthread_mutex_unlock(&mutex);
}
static void disown(uint64_t p) {
    pthread_mutex_lock(&mutex);
    for (struct block *b = blocks; b != blocks + BLOCKS; b++) {
        if (b->at == p) *b = (struct block){0, 0, 0};
    }
    pthread_mutex_unlock(&mutex);
}
/* Where the library's own memory is, and a host's that tells (it exports standin_device_of); all else is the first one's. */
static int device_at(uint64_t p) {
    int (*told)(uint64_t), device = 0;
    pthread_mutex_lock(&mutex);
    for (const struct block *b = blocks; b != blocks + BLOCKS; b++) {
        if (p >= b->at && p < b->end) device = b->device;
    }
    pthread_mutex_unlock(&mutex);
    *(void **)&told = dlsym(RTLD_DEFAULT, "standin_device_of");
    const int hosts = told != NULL ? told(p) : 0;
    return hosts > 0 ? hosts : device;
}

EXPORT int cuInit(unsigned flags) {
    BEGIN(cuInit, "!", "%u", flags);
    return 0;
}
EXPORT int cuDriverGetVersion(int *v) {
    *v = 13000;
    return 0;
}
EXPORT int cuDeviceGetCount(int *n) {
    BEGIN(cuDeviceGetCount, "", "%s", "");
    *n = devices();
    return 0;
}
EXPORT int cuDeviceGet(int *d, int i) {
    BEGIN(cuDeviceGet, "", "%d", i);
    *d = i;
    return 0;
}
EXPORT int cuDeviceGetName(char *name, int n, int d) {
    (void)d;
    snprintf(name, (size_t)n, "stand-in");
    return 0;
}
EXPORT int cuDeviceGetAttribute(int *v, int which, int d) {
    (void)d;
    switch (which) {
    case 16: *v = 132; break;     /* multiprocessors */
    case 36: *v = getenv("LIM_STANDIN_CLOCK") != NULL ? atoi(getenv("LIM_STANDIN_CLOCK")) : 3201000; break; /* the memory's, kHz */
    case 37: *v = 6144; break;    /* memory bus, bits */
    case 75: *v = 9; break;       /* compute capability */
    case 81: *v = 233472; break;  /* shared memory of each */
    case 97: *v = 232448; break;  /* of a block, opting in */
    default: *v = 0;
    }
    return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void **c, int d) {
    BEGIN(cuDevicePrimaryCtxRetain, "!", "%d", d);
    *c = (void *)context_of(d);
    return 0;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int d) {
    BEGIN(cuDevicePrimaryCtxRelease_v2, "!", "%d", d);
    return 0;
}
EXPORT int cuCtxGetCurrent(CUcontext *c) {
    BEGIN(cuCtxGetCurrent, "", "%s", "");
    *c = current;
    return 0;
}
EXPORT int cuCtxSetCurrent(CUcontext c) {
    BEGIN(cuCtxSetCurrent, "", "%p", (void *)c);
    current = c;
    return 0;
}
EXPORT int cuModuleLoadData(void **m, const void *image) {
    BEGIN(cuModuleLoadData, "!", "magic %08x", *(const uint32_t *)image);
    *m = (void *)0x2000;
    return 0;
}
EXPORT int cuModuleGetFunction(void **f, void *m, const char *name) {
    BEGIN(cuModuleGetFunction, "!", "%p %s", m, name);
    *f = strdup(name);
    return 0;
}
EXPORT int cuFuncGetAttribute(int *v, int which, void *f) {
    (void)which;
    (void)f;
    *v = 512;
    return 0;
}
EXPORT int cuFuncSetAttribute(void *f, int which, int v) {
    BEGIN(cuFuncSetAttribute, "!", "%s %d %d", (char *)f, which, v);
    return 0;
}
EXPORT int cuMemAlloc_v2(uint64_t *p, size_t n) {
    BEGIN(cuMemAlloc_v2, "!", "%zu", n);
    *p = (uint64_t)(uintptr_t)aligned_alloc(4096, (n + 4095) / 4096 * 4096);
    own(*p, n);
    return 0;
}
EXPORT int cuMemFree_v2(uint64_t p) {
    BEGIN(cuMemFree_v2, "!", "%s", "");
    disown(p);
    free((void *)(uintptr_t)p);
    return 0;
}
EXPORT int cuMemHostAlloc(void **p, size_t n, unsigned flags) {
    BEGIN(cuMemHostAlloc, "!", "%zu %u", n, flags);
    *p = calloc(1, n);
    return 0;
}
EXPORT int cuMemFreeHost(void *p) {
    BEGIN(cuMemFreeHost, "!", "%s", "");
    free(p);
    return 0;
}
EXPORT int cuMemsetD8Async(uint64_t p, unsigned char v, size_t n, void *s) {
    BEGIN(cuMemsetD8Async, "", "%d %zu %p", v, n, s);
    memset((void *)(uintptr_t)p, v, n);
    return 0;
}
EXPORT int cuStreamSynchronize(void *s) {
    BEGIN(cuStreamSynchronize, "!", "%p", s);
    return 0;
}
EXPORT int cuCtxSynchronize(void) {
    BEGIN(cuCtxSynchronize, "!", "%s", "");
    return 0;
}
EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) {
    BEGIN(cuMemcpyDtoH_v2, "!", "%zu", n);
    memcpy(to, (const void *)(uintptr_t)from, n);
    return 0;
}
/* Copies and events are done at once; LIM_STANDIN_PENDING=n: the first n times that anybody asks they are not yet. */
EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *s) {
    BEGIN(cuMemcpyDtoHAsync_v2, "", "%zu stream %p", n, s);
    memcpy(to, (void *)(uintptr_t)from, n);
    return 0;
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *s) {
    BEGIN(cuMemcpyHtoDAsync_v2, "", "%zu stream %p", n, s);
    memcpy((void *)(uintptr_t)to, from, n);
    return 0;
}
EXPORT int cuMemcpyPeerAsync(uint64_t to, CUcontext into, uint64_t from, CUcontext of, size_t n, void *s) {
    BEGIN(cuMemcpyPeerAsync, "", "%zu from device %d to %d stream %p", n, device_of(of), device_of(into), s);
    if (into == of || device_at(to) != device_of(into) || device_at(from) != device_of(of)) return 1;
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, n);
    return 0;
}
EXPORT int cuEventCreate(void **e, unsigned flags) {
    BEGIN(cuEventCreate, "!", "%u", flags);
    *e = (void *)(uintptr_t)(0x3000 + device_of(current));
    return 0;
}
EXPORT int cuEventDestroy_v2(void *e) {
    BEGIN(cuEventDestroy_v2, "!", "%p", e);
    return 0;
}
EXPORT int cuEventRecord(CUevent e, CUstream s) {
    BEGIN(cuEventRecord, "", "%p stream %p", (void *)e, (void *)s);
    return 0;
}
EXPORT int cuEventQuery(void *e) {
    static int  asked;
    const char *pending = getenv("LIM_STANDIN_PENDING");
    BEGIN(cuEventQuery, "", "%p", e);
    return pending != NULL && asked++ < atoi(pending) ? 600 : 0;
}
EXPORT int cuThreadExchangeStreamCaptureMode(int *mode) {
    *mode = 2 - *mode;
    return 0;
}
/* ---- graphs: one is captured at a time ---- */

struct work {
    void (*run)(void *);
    void *of;
};
struct graph {
    int         n;
    struct work work[4096];
};
static struct graph *capturing;
static CUstream      captured;

static void remember(void (*run)(void *), void *of) { capturing->work[capturing->n++] = (struct work){run, of}; }

static void tell_host(void (*append)(void (*)(void *), void *)) {
    void (*told)(void (*)(void (*)(void *), void *));
    *(void **)&told = dlsym(RTLD_DEFAULT, "standin_capturing");
    if (told != NULL) told(append);
}

EXPORT int cuStreamBeginCapture_v2(CUstream s, int mode) {
    BEGIN(cuStreamBeginCapture_v2, "", "stream %p mode %d", (void *)s, mode);
    capturing = calloc(1, sizeof *capturing), captured = s;
    tell_host(remember);
    return 0;
}
EXPORT int cuStreamEndCapture(CUstream s, CUgraph *graph) {
    struct graph *g = capturing;
    if (s == captured) capturing = NULL, captured = NULL;
    tell_host(NULL);
    BEGIN(cuStreamEndCapture, "", "stream %p", (void *)s);
    *graph = (CUgraph)(void *)g;
    return 0;
}
EXPORT int cuGraphInstantiateWithFlags(CUgraphExec *ready, CUgraph graph, unsigned long long flags) {
    BEGIN(cuGraphInstantiateWithFlags, "", "%llu", flags);
    struct graph *g = malloc(sizeof *g);
    memcpy(g, graph, sizeof *g);
    *ready = (CUgraphExec)(void *)g;
    return 0;
}
EXPORT int cuGraphLaunch(CUgraphExec ready, CUstream s) {
    const struct graph *g = (const struct graph *)(void *)ready;
    BEGIN(cuGraphLaunch, "", "of %d stream %p", g->n, (void *)s);
    for (int i = 0; i < g->n; i++) g->work[i].run(g->work[i].of);
    return 0;
}
EXPORT int cuGraphExecDestroy(CUgraphExec ready) {
    BEGIN(cuGraphExecDestroy, "", "%s", "");
    free(ready);
    return 0;
}
EXPORT int cuGraphDestroy(CUgraph graph) {
    free(graph);
    return 0;
}

/* Streams 0xc000 to 0xcfff are being captured, too. */
EXPORT int cuStreamIsCapturing(void *s, int *status) {
    BEGIN(cuStreamIsCapturing, "", "%p", s);
    *status = (uintptr_t)s >> 12 == 0xc || (capturing != NULL && s == captured);
    return 0;
}
EXPORT int cuPointerGetAttribute(void *v, int which, uint64_t p) {
    BEGIN(cuPointerGetAttribute, "", "%d", which);
    if (p < 4096 || p >> 12 == 3) return 1; /* 0x3000 to 0x3fff are the host's */
    *(int *)v = device_at(p);
    return 0;
}
EXPORT int cuGetErrorName(int code, const char **name) {
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 1 ? "CUDA_ERROR_INVALID_VALUE"
                                                               : "CUDA_ERROR";
    return 0;
}
EXPORT int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }
EXPORT int cuStreamCreate(void **s, unsigned flags) {
    static uintptr_t next = 0x51;
    BEGIN(cuStreamCreate, "!", "%u", flags);
    *s = (void *)next++;
    return 0;
}
EXPORT int cuStreamDestroy_v2(void *s) {
    BEGIN(cuStreamDestroy_v2, "!", "%p", s);
    return 0;
}
EXPORT int cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags) {
    BEGIN(cuStreamWaitEvent, "", "stream %p event %p flags %u", (void *)s, (void *)e, flags);
    return 0;
}

static lim_cuda_visible visibility; /* the last one that was looked at */

static void look(void) {
    for (int32_t row = 0; row < visibility.n_rows; row++) {
        const uint16_t *mask = (const uint16_t *)(uintptr_t)VisibleMask(&visibility, row);
        int32_t        *slots = visibility.table != 0 ? (int32_t *)(uintptr_t)visibility.table + row * visibility.table_stride : NULL;
        int32_t         n = 0, first = -1, last = -1;
        for (int32_t at = 0; at < visibility.n_slots; at += LIM_CUDA_VISIBLE_LANE) {
            uint32_t words[4];
            memcpy(words, mask + at, sizeof words);
            if (VisibleOdd(words)) *(uint32_t *)(uintptr_t)visibility.odd = 1;
            const uint32_t bits = VisibleBits(words);
            const int32_t  slot = VisibleFirst(&visibility, row) + at;
            if (slots != NULL) VisibleWrite(bits, slot, slots + n);
            for (int32_t i = 0; i < LIM_CUDA_VISIBLE_LANE; i++) {
                if (bits >> i & 1) last = slot + i, first = first < 0 ? last : first;
            }
            n += __builtin_popcount(bits);
        }
        ((int32_t *)(uintptr_t)visibility.lengths)[row] = n;
        note("row %d sees %d slots from %d to %d", row, n, first, last);
    }
}

/* Of lengths that were looked at: elsewhere the addresses are made up. */
static void count(const lim_cuda_tally *t) {
    if (t->lengths == 0 || t->lengths != visibility.lengths) return;
    uint64_t *c = (uint64_t *)(uintptr_t)t->counters, visible = 0, held = 0, sparse = 0;
    for (int32_t row = 0; row < t->n_rows; row++) {
        const uint64_t n = (uint64_t)((const int32_t *)(uintptr_t)t->lengths)[row], budget = (uint64_t)t->budget;
        visible += n, held += n < budget ? n : budget, sparse += n > budget;
    }
    c[LIM_CUDA_STEPS]++, c[LIM_CUDA_ROWS] += (uint64_t)t->n_rows, c[LIM_CUDA_ROWS_SPARSE] += sparse;
    c[LIM_CUDA_TOKENS_VISIBLE] += visible * (uint64_t)(t->dense + t->select + t->sparse);
    c[LIM_CUDA_TOKENS_ATTENDED] += visible * (uint64_t)(t->dense + t->select) + held * (uint64_t)t->sparse;
    c[LIM_CUDA_DENSE_CALLS] += (uint64_t)t->dense, c[LIM_CUDA_SELECT_CALLS] += (uint64_t)t->select, c[LIM_CUDA_SPARSE_CALLS] += (uint64_t)t->sparse;
}

static float from_half(uint16_t h) {
    const uint32_t exponent = h >> 10 & 31, bits = (uint32_t)(h & 0x8000) << 16 | (exponent + 112) << 23 | (uint32_t)(h & 0x3FF) << 13;
    float          f;
    memcpy(&f, &bits, sizeof f);
    return exponent == 0 ? 0 : f;
}

static float exponential(float x) { /* without the mathematics library */
    const float t = x / 64;
    float       e = 1 + t * (1 + t / 2 * (1 + t / 3 * (1 + t / 4 * (1 + t / 5 * (1 + t / 6)))));
    for (int i = 0; i < 6; i++) e *= e;
    return e;
}

/* Where a row's slot lies: a page of one token, or in the row's own page. */
static int64_t place_of_slot(const lim_cuda_call *c, const lim_cuda_store *s, int32_t row, int32_t slot) {
    return c->table == 0 ? row * s->page_stride + slot * s->token_stride : slot * s->page_stride;
}
/* The same of a token. */
static int64_t place(const lim_cuda_call *c, const lim_cuda_store *s, int32_t row, int32_t token) {
    return place_of_slot(c, s, row, c->table == 0 ? token : ((const int32_t *)(uintptr_t)c->table + row * c->table_stride)[token]);
}

/* LIM_STANDIN_ATTEND: attention over f16 in tokens' rows, in pages of one token. */
static int plays(const lim_cuda_call *c) {
    const char *wanted = getenv("LIM_STANDIN_ATTEND");
    return wanted != NULL && *wanted != 0 && c->lengths == visibility.lengths && c->kv_type == 1 && c->query.type == 0;
}

static float logit_at(const lim_cuda_call *c, int32_t row, int32_t head, int64_t at) {
    const float    *q = (const float *)((const char *)(uintptr_t)c->query.data + row * c->query.row_stride + head * c->query.head_stride);
    const uint16_t *k = (const uint16_t *)((const char *)(uintptr_t)c->key.data + at + head / (c->heads / c->kv_heads) * c->key.head_stride);
    float           logit = 0;
    for (int32_t d = 0; d < c->dim; d++) logit += q[d] * from_half(k[d]);
    return logit * c->scale;
}

/* Whether token sets are played, or what layers choose is taken for all that a row sees. */
static int chooses(void) {
    const char *wanted = getenv("LIM_STANDIN_ATTEND");
    return wanted != NULL && strcmp(wanted, "sets") == 0;
}

/* Each row to all that it sees, or to its set. */
static void attend(const lim_cuda_call *c) {
    if (!plays(c)) return;
    const int   sparse = c->mode == 2 && chooses();
    const char *value = (const char *)(uintptr_t)c->value.data;
    float      *share = malloc((size_t)c->capacity * sizeof *share);
    for (int32_t row = 0; row < c->n_rows; row++) {
        const int32_t  sees = ((const int32_t *)(uintptr_t)c->lengths)[row], n = sparse && sees > c->budget ? c->budget : sees;
        const int32_t *set = sparse ? (const int32_t *)(uintptr_t)c->set + row * c->set_stride : NULL;
        for (int32_t h = 0; h < c->heads; h++) {
            float *out = (float *)((char *)(uintptr_t)c->output.data + row * c->output.row_stride + h * c->output.head_stride), sum = 0;
            for (int32_t i = 0; i < n; i++) {
                const int64_t at = set != NULL ? place_of_slot(c, &c->key, row, set[i]) : place(c, &c->key, row, i);
                share[i] = exponential(logit_at(c, row, h, at)), sum += share[i];
            }
            for (int32_t d = 0; d < c->dim; d++) out[d] = 0;
            for (int32_t i = 0; i < n; i++) {
                const int64_t   at = set != NULL ? place_of_slot(c, &c->value, row, set[i]) : place(c, &c->value, row, i);
                const uint16_t *v = (const uint16_t *)(value + at + h / (c->heads / c->kv_heads) * c->value.head_stride);
                for (int32_t d = 0; d < c->dim; d++) out[d] += share[i] / sum * from_half(v[d]);
            }
        }
    }
    free(share);
}

/* Each row's set, by the ranks of all heads (union). */
struct ranked {
    float   logit;
    int32_t token;
};
static int better(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit) - (x->logit > y->logit) : (x->token > y->token) - (x->token < y->token);
}
static void choose(const lim_cuda_call *c) {
    if (!plays(c) || !chooses()) return;
    struct ranked *ranks = malloc((size_t)c->heads * (size_t)c->capacity * sizeof *ranks);
    char          *in = malloc((size_t)c->capacity);
    for (int32_t row = 0; row < c->n_rows; row++) {
        const int32_t n = ((const int32_t *)(uintptr_t)c->lengths)[row], middle = n - c->recent - c->sink_tokens;
        int32_t      *set = (int32_t *)(uintptr_t)c->set + row * c->set_stride, left = c->top_k, put = 0;
        for (int32_t i = 0; i < n; i++) in[i] = n <= c->budget || i < c->sink_tokens || i >= n - c->recent;
        for (int32_t h = 0; h < c->heads && n > c->budget; h++) {
            for (int32_t i = 0; i < middle; i++) {
                const int32_t token = c->sink_tokens + i;
                const float   logit = logit_at(c, row, h, place(c, &c->key, row, token));
                ranks[h * c->capacity + i] = (struct ranked){logit == logit ? logit : -3e38f, token}; /* NaN ranks last */
            }
            qsort(ranks + h * c->capacity, (size_t)middle, sizeof *ranks, better);
        }
        for (int32_t r = 0; n > c->budget && r < middle && left > 0; r++) {
            for (int32_t h = 0; h < c->heads && left > 0; h++) {
                char *is = &in[ranks[h * c->capacity + r].token];
                left -= !*is, *is = 1;
            }
        }
        for (int32_t i = 0; i < n; i++) {
            if (in[i]) set[put++] = c->table == 0 ? i : ((const int32_t *)(uintptr_t)c->table + row * c->table_stride)[i];
        }
    }
    free(ranks), free(in);
}

/* What a launch is remembered by, and what the kernel does as far as the host sees it. */
static const char *kernel_arguments(const char *name, void **params) {
    static _Thread_local char more[160];
    more[0] = 0;
    if (strncmp(name, "lim_attend", 10) == 0 || strncmp(name, "lim_short", 9) == 0) {
        const lim_cuda_call *c = &((const lim_cuda_args *)params[0])->call;
        char                 table[32];
        snprintf(table, sizeof table, c->table != 0 ? "page %d" : "no table", 1 << c->page_shift);
        snprintf(more, sizeof more, " mode %d rows %d capacity %d %s%s", c->mode, c->n_rows, c->capacity, table,
                 c->lengths == visibility.lengths && (c->table == visibility.table || c->table == 0) ? " sees what was looked at" : "");
    }
    return more;
}
static void run_kernel(const char *name, void **params) {
    if (strcmp(name, LIM_CUDA_VISIBLE) == 0) {
        visibility = *(const lim_cuda_visible *)params[0];
        look();
    } else if (strncmp(name, "lim_attend", 10) == 0 || strncmp(name, "lim_short", 9) == 0) {
        attend(&((const lim_cuda_args *)params[0])->call);
    } else if (strncmp(name, "lim_select", 10) == 0) {
        choose(&((const lim_cuda_args *)params[0])->call);
    } else if (strcmp(name, LIM_CUDA_TALLY) == 0) {
        count((const lim_cuda_tally *)params[0]);
    }
}

/* Runs a kernel, or remembers it where its stream is captured. */
struct launched {
    char        name[64];
    const void *params[1];
};
static void run_launched(void *of) {
    const struct launched *l = of;
    void                  *params[1] = {(void *)l->params[0]};
    run_kernel(l->name, params);
}
static void launch(const char *name, CUstream stream, void **params) {
    if (capturing == NULL || stream != captured) {
        run_kernel(name, params);
        return;
    }
    struct launched *l = malloc(sizeof *l);
    const size_t     n = strcmp(name, LIM_CUDA_TALLY) == 0 ? sizeof(lim_cuda_tally) : sizeof(lim_cuda_args);
    void            *copy = malloc(n);
    memcpy(copy, params[0], n);
    snprintf(l->name, sizeof l->name, "%s", name);
    l->params[0] = copy;
    remember(run_launched, l);
}

/* Refuses what the driver does. */
EXPORT int cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, uint32_t rank, void *address, const uint64_t *dims,
                                  const uint64_t *strides, const uint32_t *box, const uint32_t *steps, CUtensorMapInterleave interleave,
                                  CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    char shape[160] = "";
    for (uint32_t i = 0, n = 0; i < rank && i < 5; i++)
        n += (uint32_t)snprintf(shape + n, sizeof shape - n, " %llu/%lld", (unsigned long long)dims[i], i == 0 ? 2 : (long long)strides[i - 1]);
    BEGIN(cuTensorMapEncodeTiled, "!", "%p size/stride%s", address, shape);
    (void)type, (void)interleave, (void)promotion, (void)fill;
    if (current == NULL) return 201;
    if ((uintptr_t)map % 64 != 0 || (uintptr_t)address % 16 != 0 || rank < 1 || rank > 5 || (swizzle == CU_TENSOR_MAP_SWIZZLE_128B && box[0] * 2 > 128)) return 1;
    for (uint32_t i = 0; i < rank; i++) {
        if (dims[i] < 1 || dims[i] > (uint64_t)1 << 32 || box[i] < 1 || box[i] > 256 || steps[i] != 1) return 1;
        if (i + 1 < rank && (strides[i] % 16 != 0 || strides[i] >= (uint64_t)1 << 40)) return 1;
    }
    memset(map, 0, 128);
    memcpy(map, &address, sizeof address);
    return 0;
}
EXPORT int cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                          CUstream stream, void **params, void **extra) {
    BEGIN(cuLaunchKernel, "", "%s grid %u,%u,%u block %u,%u,%u shared %u stream %p context %p query %llx params %d%s", (char *)f, gx, gy, gz,
          bx, by, bz, shared, (void *)stream, (void *)current, *(unsigned long long *)params[0], extra == NULL, kernel_arguments((char *)f, params));
    launch((char *)f, stream, params);
    return 0;
}
EXPORT int cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra) {
    unsigned cluster = 0, pdl = 0;
    for (const CUlaunchAttribute *a = c->attrs; a != c->attrs + c->numAttrs; a++) {
        if (a->id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) cluster = a->value.clusterDim.x;
        if (a->id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) pdl = (unsigned)a->value.programmaticStreamSerializationAllowed;
    }
    BEGIN(cuLaunchKernelEx, "", "%s grid %u,%u,%u block %u,%u,%u shared %u stream %p context %p query %llx params %d cluster %u pdl %u%s", (char *)f,
          c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes, (void *)c->hStream,
          (void *)current, *(unsigned long long *)params[0], extra == NULL, cluster, pdl, kernel_arguments((char *)f, params));
    launch((char *)f, c->hStream, params);
    return 0;
}
