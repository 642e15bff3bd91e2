/* A host that was compiled against a promised header, and that every later library has to serve: it finds the library at run
 * time, calls each function of the table, and compares what it gets with arithmetic of its own. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lessismore.h"

enum { LAYERS = 4,
       ROWS = 3,
       HEADS = 4,
       KV_HEADS = 2,
       DIM = 32,
       PAGE = 16,
       PAGES = 24,
       WIDTH = 6,
       BUDGET = 20 };

static const lim_api *api;
static int            checks, failures;

#define CHECK(condition, ...)                                               \
    do {                                                                    \
        checks++;                                                           \
        if (!(condition) && ++failures <= 10) {                             \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fputc('\n', stderr);                                            \
        }                                                                   \
    } while (0)
#define OK(call) CHECK((call) == LIM_OK, "%s", api->last_error())

static float    query[ROWS][HEADS][DIM], key[PAGES][PAGE][KV_HEADS][DIM], value[PAGES][PAGE][KV_HEADS][DIM], output[ROWS][HEADS][DIM];
static int32_t  table[ROWS][WIDTH], lengths[ROWS];
static uint32_t state = 1;
static float    next(void) { return (float)((state = state * 1664525u + 1013904223u) >> 16) / 32768 - 1; }

/* The largest difference of a row's output from attention over some of its tokens. */
static double off(int row, const int32_t *tokens, int n) {
    double worst = 0;
    for (int h = 0; h < HEADS; h++) {
        double sum = 0, mean[DIM] = {0};
        for (int i = 0; i < n; i++) {
            const float *k = key[table[row][tokens[i] / PAGE]][tokens[i] % PAGE][h / 2];
            const float *v = value[table[row][tokens[i] / PAGE]][tokens[i] % PAGE][h / 2];
            double       logit = 0;
            for (int d = 0; d < DIM; d++) logit += (double)query[row][h][d] * k[d];
            double p = exp(logit / sqrt(DIM));
            sum += p;
            for (int d = 0; d < DIM; d++) mean[d] += p * v[d];
        }
        for (int d = 0; d < DIM; d++) worst = fmax(worst, fabs(mean[d] / sum - output[row][h][d]));
    }
    return worst;
}

static int  lines;
static void log_line(void *user, int32_t level, const char *text) {
    (void)level;
    *(int *)user += *text != 0;
}

static void step(lim_decoder *decoder) {
    for (int r = 0; r < ROWS; r++) lengths[r]++;
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int i = 0; i < ROWS * HEADS * DIM; i++) (&query[0][0][0])[i] = next();
        for (int i = 0; i < PAGES * PAGE * KV_HEADS * DIM; i++) (&key[0][0][0][0])[i] = next(), (&value[0][0][0][0])[i] = next();
        lim_attention a;
        memset(&a, 0, sizeof a);
        a.struct_size = sizeof a, a.layer = layer, a.n_rows = ROWS;
        a.query = query, a.key = key, a.value = value, a.output = output;
        a.query_row_stride = a.output_row_stride = sizeof query[0], a.query_head_stride = a.output_head_stride = sizeof query[0][0];
        a.key_page_stride = a.value_page_stride = sizeof key[0], a.key_token_stride = a.value_token_stride = sizeof key[0][0];
        a.key_head_stride = a.value_head_stride = sizeof key[0][0][0];
        a.lengths = lengths, a.heads = HEADS, a.kv_heads = KV_HEADS, a.head_dim = DIM, a.n_slots = WIDTH * PAGE;
        a.table = table[0], a.table_stride = WIDTH, a.page_size = PAGE;
        OK(api->decoder_attend(decoder, &a));
        for (int r = 0; r < ROWS; r++) {
            int32_t set[WIDTH * PAGE], n = lengths[r];
            int64_t count = 0;
            OK(api->decoder_token_set(decoder, r, set, WIDTH * PAGE, &count));
            if (layer > 1 && n > BUDGET) {
                CHECK(count == BUDGET && set[count - 1] == n - 1, "a set of %d", (int)count);
                n = (int32_t)count;
            } else {
                for (int i = 0; i < n; i++) set[i] = i;
            }
            CHECK(off(r, set, n) < 1e-4, "layer %d, row %d: off by %g", layer, r, off(r, set, n));
        }
    }
}

static void decode(void) {
    static const int32_t layers[1] = {1};
    lim_engine_params    params;
    lim_engine          *engine = NULL, *other = NULL;
    OK(api->engine_default_params(&params, sizeof params));
    CHECK(params.struct_size == sizeof params && params.sink_tokens >= 0 && params.interval == 1, "the defaults");
    params.n_layers = LAYERS, params.budget = BUDGET, params.n_threads = 2, params.layers = layers, params.layers_count = 1;
    params.logger = log_line, params.logger_user = &lines;
    OK(api->engine_create(&params, &engine));
    lim_decoder_params shape;
    memset(&shape, 0, sizeof shape);
    shape.struct_size = sizeof shape, shape.device = LIM_DEVICE_CPU, shape.max_rows = ROWS;
    lim_decoder *decoder = NULL;
    uint64_t     size = 1, generation;
    int32_t      eager = 1;
    OK(api->decoder_work_size(engine, &shape, &size));
    CHECK(size == 0, "work memory on the CPU");
    OK(api->decoder_create(engine, &shape, &decoder));
    OK(api->decoder_poll(decoder, &generation, &eager));
    CHECK(eager == 0, "eager on the CPU");
    for (int r = 0; r < ROWS; r++) {
        lengths[r] = 10 + 30 * r;
        for (int i = 0; i < WIDTH; i++) table[r][i] = i == 0 ? 7 : (5 * (r * WIDTH + i)) % PAGES; /* the first page is shared */
    }
    for (int i = 0; i < 5; i++) step(decoder);
    lim_stats stats;
    stats.struct_size = sizeof stats;
    OK(api->decoder_stats(decoder, &stats));
    CHECK(stats.steps == 5 && stats.rows == 15 && stats.rows_sparse == 10 && stats.sparse_calls == 10 && stats.no_set_calls == 0, "%d steps, %d rows, %d sparse",
          (int)stats.steps, (int)stats.rows, (int)stats.rows_sparse);
    OK(api->engine_stats(engine, &stats));
    CHECK(stats.select_calls == 5, "the engine's counts");
    OK(api->engine_ablate(engine, 0, 3));
    OK(api->engine_ablate(engine, -1, -1));
    OK(api->decoder_reset(decoder));
    size_t needed = 0;
    OK(api->engine_stats_json(engine, NULL, 0, &needed));
    char *json = malloc(needed);
    OK(api->engine_stats_json(engine, json, needed, &needed));
    CHECK(json[0] == '{' && strstr(json, "\"no_set_calls\""), "the report");
    free(json);

    lim_attention bad;
    memset(&bad, 0, sizeof bad);
    bad.struct_size = sizeof bad, bad.layer = LAYERS, bad.n_rows = 1;
    CHECK(api->decoder_attend(decoder, &bad) == LIM_ERROR_ARGUMENT && strstr(api->last_error(), "layer = 4"), "%s", api->last_error());
    CHECK(api->engine_free(engine) == LIM_ERROR_BUSY, "an engine with a decoder was freed");
    CHECK(api->ggml_engine(&other) == LIM_ERROR_UNSUPPORTED && !other, "an engine of no host");
    OK(api->decoder_free(decoder));
    CHECK(api->decoder_free(decoder) == LIM_ERROR_HANDLE, "freed twice");
    OK(api->engine_free(engine));
    CHECK(lines > 0 && strcmp(api->status_name(LIM_ERROR_SIZE), "LIM_ERROR_SIZE") == 0, "log and names");
}

int main(int argc, char **argv) {
    void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library) return fprintf(stderr, "%s\n", argc > 1 ? dlerror() : "usage: host LIBRARY"), 1;
    const lim_api *(*get)(uint32_t);
    *(void **)&get = dlsym(library, "lim_get_api");
    if (!get || !(api = get(LIM_API_VERSION))) return fprintf(stderr, "no table of version %d\n", LIM_API_VERSION), 1;
    if (api->struct_size < sizeof *api) return fprintf(stderr, "a table of %zu bytes\n", api->struct_size), 1;
    CHECK(api->version_number() >= LIM_VERSION_NUMBER && strlen(api->version_string()) > 0, "%s is older than this host", api->version_string());
    CHECK(!get(0) && strstr(api->last_error(), "version = 0"), "%s", api->last_error());
    decode();
    printf("host of %s with %s: %d checks, %d failed\n", LIM_VERSION_STRING, api->version_string(), checks, failures);
    return failures != 0;
}
