/* Decoders on a GPU, without one: what is refused before a driver is wanted, what is said where there is none, and, with the
 * stand-in driver (tests/gpu/standin), what is asked of it.
 *
 *     device               the machine has no driver: LESSISMORE_LIBCUDA names none
 *     device standin LOG    it names the stand-in, which writes its calls to LOG */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "small.h"

enum { LAYERS = 6,
       ROWS = 4,
       HEADS = 8,
       KV_HEADS = 2,
       DIM = 128,
       CAPACITY = 4096,
       PAGE = 16,
       BUDGET = 64 };

static lim_engine *engine;
static const char *log_path;

static void expect(lim_status status, lim_status want, const char *text) {
    CHECK(status == want && strstr(lim_last_error(), text), "%s, not %s with \"%s\": %s", lim_status_name(status), lim_status_name(want), text,
          lim_last_error());
}

static lim_engine *make_engine(const int32_t *layers, int64_t count) {
    lim_engine_params params = small_params();
    lim_engine       *made = NULL;
    params.n_layers = LAYERS;
    params.budget = BUDGET;
    params.layers = layers;
    params.layers_count = count;
    OK(lim_engine_create(&params, &made));
    return made;
}

static lim_decoder_params right_params(void) {
    return (lim_decoder_params){.struct_size = sizeof(lim_decoder_params), .max_rows = ROWS, .capacity = CAPACITY, .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .kv_dtype = LIM_DTYPE_F16};
}

/* Addresses are never followed here. */
static void *at(uintptr_t address) { return (void *)address; }

static lim_attention right_attention(int layer) {
    const int64_t row = DIM * 2;
    return (lim_attention){
        .struct_size = sizeof(lim_attention),
        .query = at(0x10000),
        .output = at(0x20000),
        .key = at(0x100000),
        .value = at(0x200000),
        .lengths = at(0x30000),
        .table = at(0x40000),
        .query_row_stride = HEADS * row,
        .query_head_stride = row,
        .output_row_stride = HEADS * row,
        .output_head_stride = row,
        .key_token_stride = KV_HEADS * row,
        .key_head_stride = row,
        .key_page_stride = PAGE * KV_HEADS * row,
        .value_token_stride = KV_HEADS * row,
        .value_head_stride = row,
        .value_page_stride = PAGE * KV_HEADS * row,
        .table_stride = CAPACITY / PAGE,
        .stream = (void *)2,
        .layer = layer,
        .n_rows = ROWS,
        .page_size = PAGE,
        .query_dtype = LIM_DTYPE_F16,
        .output_dtype = LIM_DTYPE_F16,
    };
}

/* ---- Refused before a driver is wanted ---- */

/* Sets one field, expects both functions that take parameters to name it, and puts it back. */
#define REFUSED(field, value, status, text)                                            \
    do {                                                                               \
        lim_decoder_params bad = right_params();                                       \
        lim_decoder       *none = (lim_decoder *)&bad;                                 \
        uint64_t           size = 77;                                                  \
        bad.field = (value);                                                           \
        expect(lim_decoder_create(engine, &bad, &none), status, text);                 \
        expect(lim_decoder_work_size(engine, &bad, &size), status, text);              \
        CHECK(none == (lim_decoder *)&bad && size == 77, "changed by a refused call"); \
    } while (0)

static void parameters(void) {
    REFUSED(struct_size, 8, LIM_ERROR_ARGUMENT, "params.struct_size = 8");
    REFUSED(reserved, 1, LIM_ERROR_ARGUMENT, "reserved = 1");
    REFUSED(device, -2, LIM_ERROR_ARGUMENT, "device = -2");
    REFUSED(device, 1 << 20, LIM_ERROR_ARGUMENT, "device = 1048576");
    REFUSED(max_rows, 0, LIM_ERROR_ARGUMENT, "max_rows = 0");
    REFUSED(max_rows, LIM_MAX_ROWS + 1, LIM_ERROR_ARGUMENT, "max_rows = 4097 is not in 1 .. 4096");
    REFUSED(max_rows, INT32_MIN, LIM_ERROR_ARGUMENT, "max_rows = -2147483648");
    REFUSED(capacity, 0, LIM_ERROR_ARGUMENT, "capacity = 0");
    REFUSED(kv_tokens, -1, LIM_ERROR_ARGUMENT, "kv_tokens = -1");
    REFUSED(kv_tokens, ROWS * CAPACITY + 1, LIM_ERROR_ARGUMENT, "max_rows * capacity");
    REFUSED(capacity, LIM_MAX_SLOTS + 1, LIM_ERROR_ARGUMENT, "capacity = 16777217");
    REFUSED(heads, 0, LIM_ERROR_ARGUMENT, "heads = 0");
    REFUSED(heads, LIM_MAX_HEADS + 1, LIM_ERROR_ARGUMENT, "heads = 513");
    REFUSED(kv_heads, 0, LIM_ERROR_ARGUMENT, "kv_heads = 0");
    REFUSED(kv_heads, 3, LIM_ERROR_ARGUMENT, "kv_heads = 3 does not divide heads = 8");
    REFUSED(heads, 34, LIM_ERROR_UNSUPPORTED, "heads = 34 is more than 16 for each of kv_heads = 2");
    REFUSED(head_dim, -64, LIM_ERROR_ARGUMENT, "head_dim = -64");
    REFUSED(head_dim, 72, LIM_ERROR_UNSUPPORTED, "head_dim = 72 is not a multiple of 16 up to 256");
    REFUSED(value_dim, 64, LIM_ERROR_UNSUPPORTED, "value_dim = 64 is not head_dim = 128");
    REFUSED(kv_dtype, LIM_DTYPE_F32, LIM_ERROR_UNSUPPORTED, "kv_dtype = 0 (f32)");
    REFUSED(kv_dtype, 6, LIM_ERROR_ARGUMENT, "kv_dtype = 6 is unknown");

    lim_decoder_params right = right_params();
    lim_decoder       *none = NULL;
    uint64_t           size = 0;
    expect(lim_decoder_create(engine, NULL, &none), LIM_ERROR_ARGUMENT, "params = NULL");
    expect(lim_decoder_create(engine, &right, NULL), LIM_ERROR_ARGUMENT, "decoder = NULL");
    expect(lim_decoder_create(NULL, &right, &none), LIM_ERROR_HANDLE, "engine = NULL");
    expect(lim_decoder_work_size(engine, &right, NULL), LIM_ERROR_ARGUMENT, "size = NULL");
    expect(lim_decoder_work_size((lim_engine *)16, &right, &size), LIM_ERROR_HANDLE, "engine = 0x10 is no handle");
    struct {
        lim_decoder_params known;
        int64_t            unknown;
    } newer = {right, 1};
    newer.known.struct_size = sizeof newer;
    expect(lim_decoder_create(engine, &newer.known, &none), LIM_ERROR_UNSUPPORTED, "params has a field at byte");
}

/* An engine that finds its layers by measuring: what a host that captures steps is told. */
static void generations(void) {
    lim_decoder_params params = right_params();
    uint64_t           given = 0, measured = 0, generation = 77, same = 0;
    int32_t            eager = 77;
    lim_decoder       *decoder = NULL;
    lim_engine        *measuring = make_engine(NULL, 0);
    OK(lim_decoder_work_size(engine, &params, &given));
    OK(lim_decoder_work_size(measuring, &params, &measured));
    CHECK(measured > given, "%llu bytes to measure with, %llu without", (unsigned long long)measured, (unsigned long long)given);
    OK(lim_decoder_create(measuring, &params, &decoder));
    expect(lim_decoder_poll(decoder, NULL, &eager), LIM_ERROR_ARGUMENT, "generation = NULL");
    expect(lim_decoder_poll(decoder, &generation, NULL), LIM_ERROR_ARGUMENT, "eager = NULL");
    CHECK(eager == 77 && generation == 77, "changed by a refused call");
    OK(lim_decoder_poll(decoder, &generation, &eager));
    CHECK(eager == 1, "the rows have not been looked at, eager = %d", eager);
    OK(lim_decoder_poll(decoder, &same, &eager));
    CHECK(same == generation, "a generation that nothing has ended");
    OK(lim_decoder_free(decoder));
    expect(lim_decoder_poll(decoder, &generation, &eager), LIM_ERROR_HANDLE, "has been freed");
    OK(lim_engine_free(measuring));

    OK(lim_decoder_create(engine, &params, &decoder));
    for (int i = 0; i < 40; i++) {
        OK(lim_decoder_poll(decoder, &same, &eager));
        CHECK(eager == 0 && (i == 0 || same == generation), "layers were given: eager = %d", eager);
        generation = same;
    }
    OK(lim_decoder_free(decoder));
}

static void no_decoder(void) {
    lim_attention a = right_attention(0);
    lim_stats     stats = {.struct_size = sizeof stats};
    int64_t       count = 5;
    OK(lim_decoder_free(NULL));
    for (int i = 0; i < 2; i++) {
        lim_decoder *decoder = i == 0 ? NULL : (lim_decoder *)(void *)engine;
        const char  *text = i == 0 ? "decoder = NULL" : "is an engine";
        expect(lim_decoder_attend(decoder, &a), LIM_ERROR_HANDLE, text);
        expect(lim_decoder_reset(decoder), LIM_ERROR_HANDLE, text);
        expect(lim_decoder_stats(decoder, &stats), LIM_ERROR_HANDLE, text);
        expect(lim_decoder_token_set(decoder, 0, NULL, 0, &count), LIM_ERROR_HANDLE, text);
        if (i > 0) expect(lim_decoder_free(decoder), LIM_ERROR_HANDLE, text);
    }
    expect(lim_decoder_attend(NULL, NULL), LIM_ERROR_ARGUMENT, "attention = NULL");
    expect(lim_decoder_stats(NULL, NULL), LIM_ERROR_ARGUMENT, "stats = NULL");
    expect(lim_decoder_token_set(NULL, 0, NULL, 1, &count), LIM_ERROR_ARGUMENT, "tokens = NULL");
    expect(lim_decoder_token_set(NULL, 0, NULL, 0, NULL), LIM_ERROR_ARGUMENT, "count = NULL");
    CHECK(count == 5, "changed by a refused call");
}

/* What only GPUs have is refused on the CPU; a decoder there needs no work memory, and captures nothing. */
static void on_the_cpu(void) {
    static small       s;
    lim_attention      a = small_attention(&s);
    lim_decoder       *decoder = NULL;
    lim_decoder_params params = one_row;
    uint64_t           size = 77, generation = 77;
    int32_t            eager = 77;
    OK(lim_decoder_work_size(engine, &params, &size));
    CHECK(size == 0, "%llu", (unsigned long long)size);
    params.work = 0x100000, params.work_size = 4096;
    expect(lim_decoder_create(engine, &params, &decoder), LIM_ERROR_ARGUMENT, "work = 0x100000 with work_size = 4096");
    params = one_row, params.kv_tokens = 7;
    expect(lim_decoder_create(engine, &params, &decoder), LIM_ERROR_UNSUPPORTED, "kv_tokens = 7: a decoder on the CPU");
    expect(lim_decoder_work_size(engine, &params, &size), LIM_ERROR_UNSUPPORTED, "kv_tokens = 7: a decoder on the CPU");
    OK(lim_decoder_create(engine, &one_row, &decoder));
    a.key_dtype = LIM_DTYPE_FP8;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_UNSUPPORTED, "key_dtype = 5 (fp8) is for GPUs only");
    OK(lim_decoder_poll(decoder, &generation, &eager));
    CHECK(eager == 0, "eager = %d", eager);
    OK(lim_decoder_free(decoder));

    /* What the decoder was made for need not be said again, and nothing else is taken. */
    params = one_row;
    params.heads = SMALL_HEADS, params.kv_heads = SMALL_KV_HEADS, params.head_dim = SMALL_DIM, params.capacity = SMALL_SLOTS;
    OK(lim_decoder_create(engine, &params, &decoder));
    a = small_attention(&s);
    OK(lim_decoder_attend(decoder, &a));
    float said = s.output[5];
    s.output[5] = 9;
    a.heads = a.kv_heads = a.head_dim = a.value_dim = 0;
    a.n_slots = 0;
    OK(lim_decoder_attend(decoder, &a));
    CHECK(s.output[5] == said, "%g, not %g", s.output[5], said);
    a.heads = 2;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "heads = 2, but the decoder was made for 4");
    a.heads = 0, a.n_slots = SMALL_SLOTS + 1;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "n_slots = 65 is not in 1 .. 64");
    OK(lim_decoder_free(decoder));
}

/* Without a driver: refused, with its name; all else works. */
static void no_driver(void) {
    lim_decoder_params right = right_params();
    lim_decoder       *none = NULL;
    uint64_t           size = 77;
    for (int i = 0; i < 2; i++) {
        expect(lim_decoder_create(engine, &right, &none), LIM_ERROR_DEVICE, "device = 0: no usable CUDA driver");
        expect(lim_decoder_work_size(engine, &right, &size), LIM_ERROR_DEVICE, getenv("LESSISMORE_LIBCUDA"));
    }
    CHECK(none == NULL && size == 77, "changed by a refused call");
}

/* ---- With the stand-in ---- */

/* What was asked of the driver since the last call, as "name first-word" lines; marked calls are not for the decode path. */
static char *asked(void) {
    static long at;
    static char text[1 << 16];
    FILE       *f = fopen(log_path, "r");
    size_t      n = 0;
    if (f) {
        fseek(f, at, SEEK_SET);
        n = fread(text, 1, sizeof text - 1, f);
        at = ftell(f);
        fclose(f);
    }
    text[n] = 0;
    return text;
}

static int times(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p++) n++;
    return n;
}

static void step(lim_decoder *decoder, const char *first) {
    static const char *const kernels[] = {"f16_128_8_indexed", "f16_128_8_indexed", "f16_128_8_indexed", "lim_select_union", "f16_128_8_indexed",
                                          "f16_128_8_indexed", "lim_select_union", "f16_128_8_indexed", "lim_tally"};
    asked();
    for (int layer = 0; layer < LAYERS; layer++) {
        lim_attention a = right_attention(layer);
        OK(lim_decoder_attend(decoder, &a));
    }
    char *text = asked(), *at = text;
    CHECK(times(text, "!") == 0 || first, "not for the decode path: %s", text);
    CHECK(times(text, "cuLaunchKernel") == 9, "%s", text);
    CHECK(times(text, "stream 0x2 ") == 9, "not all on the caller's stream: %s", text);
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        at = strstr(at, "cuLaunchKernel");
        char *end = at ? strchr(at, '\n') : NULL, *name = at ? strstr(at, kernels[i]) : NULL;
        CHECK(name && end && name < end, "launch %zu is not %s", i, kernels[i]);
        if (!end) break;
        at = end;
    }
    if (first) return;
    CHECK(times(text, "cuPointerGetAttribute") == 0 && times(text, "\n") == times(text, "cuCtxGetCurrent") + 9, "more than launches: %s", text);
}

static void decode(void) {
    lim_decoder_params params = right_params();
    lim_decoder       *decoder = NULL;
    uint64_t           size = 0;
    OK(lim_decoder_work_size(engine, &params, &size));
    CHECK(size > ROWS * HEADS * CAPACITY * 4 && size % 256 == 0, "%llu", (unsigned long long)size);
    lim_decoder_params pool = params;
    uint64_t           shared = 0;
    pool.kv_tokens = CAPACITY;
    OK(lim_decoder_work_size(engine, &pool, &shared));
    CHECK(shared < size, "%llu bytes for rows that share room, %llu else", (unsigned long long)shared, (unsigned long long)size);
    params.work_size = size - 256;
    params.work = 0x100000;
    expect(lim_decoder_create(engine, &params, &decoder), LIM_ERROR_ARGUMENT, "work_size = ");
    params.work = params.work_size = 0;
    OK(lim_decoder_create(engine, &params, &decoder));
    expect(lim_engine_free(engine), LIM_ERROR_BUSY, "has decoders that are still alive: 1");
    expect(lim_engine_free((lim_engine *)(void *)decoder), LIM_ERROR_HANDLE, "is a decoder");
    step(decoder, "first");
    step(decoder, NULL);
    step(decoder, NULL);

    lim_attention a = right_attention(LAYERS);
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "lim_decoder_attend: layer = 6");
    a = right_attention(0);
    a.struct_size = 1;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "attention.struct_size = 1");
    a = right_attention(0);
    a.reserved = 3;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "reserved = 3");
    a = right_attention(0);
    a.page_size = 17;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "page_size = 17");
    a = right_attention(0);
    a.value = at(0x200008);
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_UNSUPPORTED, "value = 0x200008");
    a.value = at(0x3000);
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "value = 0x3000 is not in the memory of CUDA device 0");
    a = right_attention(0);
    a.n_slots = CAPACITY + 1;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "n_slots = 4097 is not in 1 .. 4096");
    a = right_attention(0);
    a.kv_heads = 4;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_ARGUMENT, "kv_heads = 4, but the decoder was made for 2");
    a = right_attention(0);
    a.query_positions = at(0x50000);
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_UNSUPPORTED, "query_positions = 0x50000: on a GPU, lengths and table say");
    a = right_attention(0);
    a.positions = at(0x50000);
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_UNSUPPORTED, "positions = 0x50000: on a GPU");
    a = right_attention(0);
    a.mask = at(0x50000);
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_UNSUPPORTED, "mask = 0x50000: on a GPU");
    a = right_attention(0);
    a.alibi_slopes = at(0x50000);
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_UNSUPPORTED, "alibi_slopes = 0x50000: on a GPU");
    CHECK(times(asked(), "cuLaunchKernel") == 0, "a refused call was launched");

    int64_t   count = 3;
    int32_t   some[BUDGET];
    lim_stats stats = {.struct_size = sizeof stats};
    OK(lim_decoder_stats(decoder, &stats)); /* the stand-in's kernels count nothing */
    CHECK(stats.steps == 0 && stats.rows == 0, "%llu", (unsigned long long)stats.steps);
    char *text = asked();
    CHECK(times(text, "!cuCtxSynchronize") == 1 && times(text, "!cuMemcpyDtoH_v2") == 1, "%s", text);
    expect(lim_decoder_token_set(decoder, 0, some, -1, &count), LIM_ERROR_ARGUMENT, "capacity = -1");
    expect(lim_decoder_token_set(decoder, ROWS, some, BUDGET, &count), LIM_ERROR_ARGUMENT, "row = 4");
    expect(lim_decoder_token_set(decoder, 0, some, BUDGET, &count), LIM_ERROR_ARGUMENT, "row = 0, but the last finished step had 0");
    OK(lim_decoder_reset(decoder));
    OK(lim_decoder_free(decoder));
    CHECK(times(asked(), "!cuMemFree_v2") == 1, "work memory is not freed once");
    a = right_attention(0);
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_HANDLE, "has been freed");
    expect(lim_decoder_free(decoder), LIM_ERROR_HANDLE, "has been freed");

    /* The table of functions leads to the same ones. */
    const lim_api *api = lim_get_api(LIM_API_VERSION);
#define SAME(type, name, arguments) &&api->name == lim_##name
    CHECK(api && api->struct_size == sizeof *api LIM_API_FUNCTIONS(SAME), "the function table");
}

enum { THREADS = 4,
       CALLS = 300 };

static lim_decoder *shared;
static atomic_int   busy, done, wrong, ready;

static void *same_decoder(void *unused) {
    atomic_fetch_add(&ready, 1);
    while (atomic_load(&ready) < THREADS) {}
    for (int i = 0; i < CALLS; i++) {
        lim_attention a = right_attention(i % LAYERS);
        switch (lim_decoder_attend(shared, &a)) {
        case LIM_OK: atomic_fetch_add(&done, 1); break;
        case LIM_ERROR_BUSY: atomic_fetch_add(&busy, 1); break;
        default: atomic_fetch_add(&wrong, 1);
        }
    }
    return unused;
}

static void threads_and_fork(void) {
    lim_decoder_params params = right_params();
    OK(lim_decoder_create(engine, &params, &shared));
    pthread_t thread[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&thread[i], NULL, same_decoder, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    CHECK(!wrong && done > 0 && busy + done == THREADS * CALLS, "%d done, %d busy, %d wrong", done, busy, wrong);

    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(20); /* a call that hangs fails */
        lim_attention a = right_attention(0);
        lim_stats     stats = {.struct_size = sizeof stats};
        lim_decoder  *none = NULL;
        int64_t       count;
        uint64_t      size;
        expect(lim_decoder_attend(shared, &a), LIM_ERROR_FORKED, "fork");
        expect(lim_decoder_create(engine, &params, &none), LIM_ERROR_FORKED, "fork");
        expect(lim_decoder_work_size(engine, &params, &size), LIM_ERROR_FORKED, "fork");
        expect(lim_decoder_reset(shared), LIM_ERROR_FORKED, "fork");
        expect(lim_decoder_stats(shared, &stats), LIM_ERROR_FORKED, "fork");
        expect(lim_decoder_token_set(shared, 0, NULL, 0, &count), LIM_ERROR_FORKED, "fork");
        expect(lim_decoder_free(shared), LIM_ERROR_FORKED, "fork");
        _exit(failures != 0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child: status %d", status);
    OK(lim_decoder_free(shared));
}

int main(int argc, char **argv) {
    static const int32_t layers[] = {2, 4};
    engine = make_engine(layers, 2);
    lim_decoder_params right = right_params();
    lim_decoder       *none = NULL;
    if (lim_decoder_create(engine, &right, &none) == LIM_ERROR_UNSUPPORTED && strstr(lim_last_error(), "no CUDA")) {
        OK(lim_engine_free(engine));
        return finish("decoder (none in this build)");
    }
    if (none) OK(lim_decoder_free(none));
    parameters();
    no_decoder();
    on_the_cpu();
    if (argc > 2 && !strcmp(argv[1], "standin")) {
        log_path = argv[2];
        generations();
        decode();
        threads_and_fork();
    } else {
        no_driver();
    }
    OK(lim_engine_free(engine));
    return finish("device");
}
