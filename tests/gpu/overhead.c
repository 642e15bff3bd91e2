/* What a layer costs the thread that queues it: a bare launch through the driver, lim_decoder_attend() with the arguments of
 * the layer's last call, and with others. Needs a GPU; no CUDA headers.
 *
 *     overhead liblessismore.so kernels.fatbin     one line, and the same as JSON */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lessismore.h"
#include "tally.h"

enum { BURST = 200,
       BURSTS = 21,
       LAYERS = 36,
       BUDGET = 64,
       HEADS = 32,
       KV_HEADS = 8,
       DIM = 128,
       TOKENS = 512 };

static void *driver;
static void  fail(const char *what, long code) {
    fprintf(stderr, "%s: %ld\n", what, code);
    exit(1);
}
#define CALL(name, ...)                               \
    do {                                              \
        int (*f)() = (int (*)())dlsym(driver, #name); \
        int r = f ? f(__VA_ARGS__) : -1;              \
        if (r != 0) fail(#name, r);                   \
    } while (0)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static const lim_api *api;
static lim_decoder   *decoder;
static void          *bare, *stream;
static uint64_t       memory;

static void bare_launch(int i) {
    static int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
    if (!launch) *(void **)&launch = dlsym(driver, "cuLaunchKernel");
    lim_cuda_tally step = {.lengths = memory, .counters = memory + 4096, .kept = memory + 8192};
    void          *params[] = {&step};
    (void)i;
    int r = launch(bare, 1, 1, 1, LIM_CUDA_TALLY_THREADS, 1, 1, 0, stream, params, NULL);
    if (r) fail("cuLaunchKernel", r);
}

static void *at(uint64_t address) { return (void *)(uintptr_t)address; }

static void attend(int layer, uint64_t key) {
    const int64_t row = DIM * 2;
    lim_attention a = {
        .struct_size = sizeof a,
        .query = at(memory + (1 << 20)),
        .output = at(memory + (2 << 20)),
        .key = at(key),
        .value = at(memory + (8 << 20)),
        .lengths = at(memory),
        .query_row_stride = HEADS * row,
        .query_head_stride = row,
        .output_row_stride = HEADS * row,
        .output_head_stride = row,
        .key_token_stride = KV_HEADS * row,
        .key_head_stride = row,
        .key_page_stride = TOKENS * KV_HEADS * row,
        .value_token_stride = KV_HEADS * row,
        .value_head_stride = row,
        .value_page_stride = TOKENS * KV_HEADS * row,
        .stream = stream,
        .layer = layer,
        .n_rows = 1,
        .query_dtype = LIM_DTYPE_F16,
        .output_dtype = LIM_DTYPE_F16,
    };
    if (api->decoder_attend(decoder, &a)) fail(api->last_error(), layer);
}
/* A layer that launches one kernel, as a bare launch does. */
static void same(int i) {
    (void)i;
    attend(1, memory + (4 << 20));
}
static void other(int i) { attend(1, memory + (4 << 20) + (uint64_t)(i % 2) * 4096); }

static double measure(void (*body)(int)) {
    double times[BURSTS];
    for (int b = 0; b < BURSTS; b++) {
        const double begin = now();
        for (int i = 0; i < BURST; i++) body(i);
        times[b] = (now() - begin) / BURST;
        CALL(cuCtxSynchronize);
    }
    qsort(times, BURSTS, sizeof *times, ascending);
    return times[BURSTS / 2];
}

int main(int argc, char **argv) {
    if (argc != 3) fail("overhead liblessismore.so kernels.fatbin", argc);
    void *library = dlopen(argv[1], RTLD_NOW);
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library || !driver) fail(dlerror(), 0);
    const lim_api *(*get)(uint32_t);
    *(void **)&get = dlsym(library, "lim_get_api");
    if (!get || !(api = get(LIM_API_VERSION))) fail("lim_get_api", 0);

    int   device;
    void *context, *module;
    CALL(cuInit, 0);
    CALL(cuDeviceGet, &device, 0);
    CALL(cuDevicePrimaryCtxRetain, &context, device);
    CALL(cuCtxSetCurrent, context);
    CALL(cuStreamCreate, &stream, 1);
    CALL(cuMemAlloc_v2, &memory, (size_t)(16 << 20));
    CALL(cuMemsetD8_v2, memory, 0, (size_t)(16 << 20));
    CALL(cuModuleLoad, &module, argv[2]);
    CALL(cuModuleGetFunction, &bare, module, LIM_CUDA_TALLY);

    const int32_t     layers[] = {2, 12};
    lim_engine_params params;
    lim_engine       *engine;
    api->engine_default_params(&params, sizeof params);
    params.layers = layers, params.layers_count = 2, params.n_layers = LAYERS, params.budget = BUDGET;
    if (api->engine_create(&params, &engine)) fail(api->last_error(), 0);
    const lim_decoder_params shape = {.struct_size = sizeof shape, .max_rows = 1, .capacity = TOKENS, .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .kv_dtype = LIM_DTYPE_F16};
    if (api->decoder_create(engine, &shape, &decoder)) fail(api->last_error(), 0);

    measure(bare_launch), measure(same);
    const double launch = measure(bare_launch), unchanged = measure(same), changed = measure(other);
    printf("a bare launch %.0f ns, a layer %.0f ns, a layer with other arguments %.0f ns\n", launch, unchanged, changed);
    printf("{\"launch_ns\": %.0f, \"attend_ns\": %.0f, \"attend_changed_ns\": %.0f}\n", launch, unchanged, changed);
    return 0;
}
