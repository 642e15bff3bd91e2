/* Handles after their end, of the wrong kind, in two threads at once, and in a forked child. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "small.h"

static small        s;
static lim_engine  *engine;
static lim_decoder *decoder;

static void expect(lim_status status, lim_status want, const char *text) {
    CHECK(status == want && strstr(lim_last_error(), text), "%s, not %s: %s", lim_status_name(status), lim_status_name(want), lim_last_error());
}

static void handles(void) {
    lim_attention a = small_attention(&s);
    lim_stats     stats = {.struct_size = sizeof stats};
    lim_decoder  *other = NULL;
    expect(lim_decoder_attend((lim_decoder *)(void *)engine, &a), LIM_ERROR_HANDLE, "is an engine");
    expect(lim_engine_stats((lim_engine *)(void *)decoder, &stats), LIM_ERROR_HANDLE, "is a decoder");
    expect(lim_decoder_attend((lim_decoder *)(void *)&s, &a), LIM_ERROR_HANDLE, "is no handle of this library");
    expect(lim_decoder_free((lim_decoder *)(uintptr_t)1), LIM_ERROR_HANDLE, "decoder = 0x1 is no handle");
    expect(lim_engine_free((lim_engine *)(uintptr_t)-1), LIM_ERROR_HANDLE, "engine = 0xffffffffffffffff is no handle");

    OK(lim_decoder_create(engine, &one_row, &other));
    OK(lim_decoder_attend(other, &a));
    OK(lim_decoder_free(other));
    expect(lim_decoder_attend(other, &a), LIM_ERROR_HANDLE, "has been freed");
    expect(lim_decoder_free(other), LIM_ERROR_HANDLE, "has been freed");
    expect(lim_decoder_reset(other), LIM_ERROR_HANDLE, "has been freed");
    expect(lim_decoder_stats(other, &stats), LIM_ERROR_HANDLE, "has been freed");

    lim_engine_params params = small_params();
    lim_engine       *short_lived = NULL;
    OK(lim_engine_create(&params, &short_lived));
    OK(lim_engine_free(short_lived));
    expect(lim_engine_free(short_lived), LIM_ERROR_HANDLE, "has been freed");
    expect(lim_decoder_create(short_lived, &one_row, &other), LIM_ERROR_HANDLE, "has been freed");
    expect(lim_engine_stats(short_lived, &stats), LIM_ERROR_HANDLE, "has been freed");
}

/* ---- Threads ---- */

enum { THREADS = 4,
       CALLS = 2000 };

static atomic_int busy, done, wrong, ready;

static void *same_decoder(void *unused) {
    small        *mine = malloc(sizeof *mine);
    lim_attention a = small_attention(mine);
    atomic_fetch_add(&ready, 1);
    while (atomic_load(&ready) < THREADS) {}
    for (int i = 0; i < CALLS; i++) {
        a.layer = i % SMALL_LAYERS;
        switch (lim_decoder_attend(decoder, &a)) {
        case LIM_OK: atomic_fetch_add(&done, 1); break;
        case LIM_ERROR_BUSY:
            atomic_fetch_add(&busy, 1);
            if (!strstr(lim_last_error(), "in use by another thread")) atomic_fetch_add(&wrong, 1);
            break;
        default: atomic_fetch_add(&wrong, 1);
        }
    }
    free(mine);
    return unused;
}

static void *own_decoder(void *result) {
    small        *mine = malloc(sizeof *mine);
    lim_attention a = small_attention(mine);
    lim_decoder  *own = NULL;
    int           bad = lim_decoder_create(engine, &one_row, &own) != LIM_OK;
    mine->query_position = -1; /* this thread's error text is its own */
    bad += lim_decoder_attend(own, &a) != LIM_ERROR_ARGUMENT;
    mine->query_position = SMALL_SLOTS - 1;
    float first[SMALL_HEADS * SMALL_DIM];
    for (int i = 0; i < CALLS; i++) {
        a.layer = i % SMALL_LAYERS;
        bad += lim_decoder_attend(own, &a) != LIM_OK;
        if (i == SMALL_LAYERS - 1) memcpy(first, mine->output, sizeof first);
    }
    bad += memcmp(first, mine->output, sizeof first) != 0;
    bad += !strstr(lim_last_error(), "query_positions[0] = -1");
    bad += lim_decoder_free(own) != LIM_OK;
    *(int *)result = bad;
    free(mine);
    return NULL;
}

static void threads(void) {
    pthread_t thread[THREADS];
    int       bad[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&thread[i], NULL, same_decoder, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    CHECK(atomic_load(&wrong) == 0 && atomic_load(&done) > 0 && atomic_load(&busy) > 0, "%d done, %d busy, %d wrong", atomic_load(&done),
          atomic_load(&busy), atomic_load(&wrong));

    const char *before = lim_last_error();
    char        kept[200];
    snprintf(kept, sizeof kept, "%s", before);
    for (int i = 0; i < THREADS; i++) pthread_create(&thread[i], NULL, own_decoder, &bad[i]);
    lim_stats stats = {.struct_size = sizeof stats};
    for (int i = 0; i < 200; i++) OK(lim_engine_stats(engine, &stats));
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < THREADS; i++) CHECK(bad[i] == 0, "thread %d: %d calls went wrong", i, bad[i]);
    CHECK(!strcmp(kept, lim_last_error()), "another thread's error is here: %s", lim_last_error());
    OK(lim_engine_stats(engine, &stats));
    CHECK(stats.dense_calls + stats.select_calls + stats.sparse_calls >= THREADS * CALLS, "calls were lost");
}

/* ---- fork() ---- */

static int child(void) {
    lim_attention     a = small_attention(&s);
    lim_engine_params params = {0};
    lim_engine       *other = NULL;
    lim_decoder      *another = NULL;
    lim_stats         stats = {.struct_size = sizeof stats};
    int64_t           count;
    expect(lim_decoder_attend(decoder, &a), LIM_ERROR_FORKED, "lim_decoder_attend: process ");
    expect(lim_engine_default_params(&params, sizeof params), LIM_ERROR_FORKED, "fork");
    expect(lim_engine_create(&params, &other), LIM_ERROR_FORKED, "fork");
    expect(lim_engine_free(engine), LIM_ERROR_FORKED, "fork");
    expect(lim_engine_stats(engine, &stats), LIM_ERROR_FORKED, "fork");
    expect(lim_engine_stats_json(engine, NULL, 0, NULL), LIM_ERROR_FORKED, "fork");
    expect(lim_profile_for_quality(SMALL_PROFILE, 0.01, NULL, 0, NULL), LIM_ERROR_FORKED, "fork");
    expect(lim_decoder_create(engine, &one_row, &another), LIM_ERROR_FORKED, "fork");
    expect(lim_decoder_free(decoder), LIM_ERROR_FORKED, "fork");
    expect(lim_decoder_reset(decoder), LIM_ERROR_FORKED, "fork");
    expect(lim_decoder_stats(decoder, &stats), LIM_ERROR_FORKED, "fork");
    expect(lim_decoder_token_set(decoder, 0, NULL, 0, &count), LIM_ERROR_FORKED, "fork");
    CHECK(!strcmp(lim_version_string(), LIM_VERSION_STRING) && lim_get_api(2), "what needs no threads works");
    return failures != 0;
}

static void forked(void) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(20); /* a call that hangs fails */
        _exit(child());
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child: status %d", status);
    lim_attention a = small_attention(&s);
    OK(lim_decoder_attend(decoder, &a));
}

int main(void) {
    lim_engine_params params = small_params();
    OK(lim_engine_create(&params, &engine));
    OK(lim_decoder_create(engine, &one_row, &decoder));
    handles();
    threads();
    forked();
    OK(lim_decoder_free(decoder));
    OK(lim_engine_free(engine));
    return finish("misuse");
}
