/* Structures of older and of later hosts: each size that a host may state, in memory that ends where the structure does. */
#include <sys/mman.h>
#include <unistd.h>

#include "small.h"

enum { LARGEST = 4096 };

static char *edge; /* where readable memory ends */

/* A structure of so many bytes right before that: what it is of one that this test knows, and zeros. */
static void *at_edge(const void *from, size_t known, size_t size) {
    char *to = edge - size;
    memset(to, 0, size);
    memcpy(to, from, known < size ? known : size);
    memcpy(to, &size, sizeof size);
    return to;
}

static lim_engine  *engine;
static lim_decoder *decoder;

/* Each function that takes a structure, and what it does with one. */
static lim_status make_engine(void *params) {
    lim_engine *made = NULL;
    lim_status  status = lim_engine_create(params, &made);
    if (status == LIM_OK) OK(lim_engine_free(made));
    return status;
}

static lim_status make_decoder(void *params) {
    lim_decoder *made = NULL;
    lim_status   status = lim_decoder_create(engine, params, &made);
    if (status == LIM_OK) OK(lim_decoder_free(made));
    return status;
}

static lim_status work_size(void *params) {
    uint64_t size;
    return lim_decoder_work_size(engine, params, &size);
}

static lim_status attend(void *attention) { return lim_decoder_attend(decoder, attention); }

static void taken(const char *name, const void *good, size_t oldest, size_t known, lim_status (*take)(void *)) {
    char text[80];
    for (size_t size = 8; size <= LARGEST; size += size < known + 64 || size > LARGEST - 64 ? 8 : 256) {
        void *at = at_edge(good, known, size);
        if (size < oldest) {
            CHECK(take(at) == LIM_ERROR_ARGUMENT, "%s of %d bytes was taken", name, (int)size);
            snprintf(text, sizeof text, ".struct_size = %d is not in %d .. 4096", (int)size, (int)oldest);
            CHECK(strstr(lim_last_error(), text), "%s: %s", name, lim_last_error());
            continue;
        }
        CHECK(take(at) == LIM_OK, "%s of %d bytes: %s", name, (int)size, lim_last_error());
        for (size_t byte = known; byte < size; byte += 1 + byte / 64 * 7) {
            at = at_edge(good, known, size);
            ((char *)at)[byte] = (char)0x80;
            CHECK(take(at) == LIM_ERROR_UNSUPPORTED, "%s of %d bytes with something at byte %d was taken", name, (int)size, (int)byte);
            snprintf(text, sizeof text, "has a field at byte %d that version " LIM_VERSION_STRING " does not know", (int)byte);
            CHECK(strstr(lim_last_error(), text), "%s: %s", name, lim_last_error());
        }
    }
    for (size_t size = oldest + 1; size < known + 8; size++) {
        if (size % 8 == 0) continue; /* else it ends within a field */
        char *at = at_edge(good, known, known + 8);
        memcpy(at, &size, sizeof size);
        snprintf(text, sizeof text, ".struct_size = %d is not a multiple of 8", (int)size);
        CHECK(take(at) == LIM_ERROR_ARGUMENT && strstr(lim_last_error(), text), "%s of %d bytes: %s", name, (int)size, lim_last_error());
    }
    for (size_t i = 0; i < 3; i++) {
        const size_t wrong[3] = {0, LARGEST + 1, (size_t)-1};
        char        *at = at_edge(good, known, known);
        memcpy(at, &wrong[i], sizeof wrong[i]);
        CHECK(take(at) == LIM_ERROR_ARGUMENT && strstr(lim_last_error(), "struct_size = "), "%s of %zu bytes: %s", name, wrong[i], lim_last_error());
    }
}

/* What is filled in: exactly as much as the host has, and zeros where the library knows nothing. */
static void given(const char *name, size_t oldest, size_t known, lim_status (*fill)(void *, size_t)) {
    char full[LARGEST];
    memset(full, 0x5a, sizeof full);
    OK(fill(full, known));
    for (size_t size = oldest + 1; size < oldest + 8; size++) {
        CHECK(fill(full, size) == LIM_ERROR_ARGUMENT && strstr(lim_last_error(), "a multiple of 8"), "%s of %d bytes: %s", name, (int)size, lim_last_error());
    }
    OK(fill(full, known));
    for (size_t size = 8; size <= LARGEST; size += size < known + 64 ? 8 : 256) {
        char *at = edge - size, before[64];
        memset(at - sizeof before, 0x5a, size + sizeof before);
        memcpy(before, at - sizeof before, sizeof before);
        lim_status status = fill(at, size);
        CHECK(status == (size < oldest ? LIM_ERROR_ARGUMENT : LIM_OK), "%s of %d bytes: %s", name, (int)size, lim_status_name(status));
        CHECK(!memcmp(before, at - sizeof before, sizeof before), "%s: written before it", name);
        if (status != LIM_OK) continue;
        size_t stated;
        memcpy(&stated, at, sizeof stated);
        CHECK(stated == size, "%s of %d bytes says %d", name, (int)size, (int)stated);
        CHECK(!memcmp(at + 8, full + 8, (size < known ? size : known) - 8), "%s of %d bytes has other values", name, (int)size);
        for (size_t i = known; i < size; i++) CHECK(!at[i], "%s: byte %d of %d is not zero", name, (int)i, (int)size);
    }
}

static lim_status defaults(void *at, size_t size) { return lim_engine_default_params(at, size); }
static lim_status engine_stats(void *at, size_t size) {
    memcpy(at, &size, sizeof size);
    return lim_engine_stats(engine, at);
}
static lim_status decoder_stats(void *at, size_t size) {
    memcpy(at, &size, sizeof size);
    return lim_decoder_stats(decoder, at);
}

int main(void) {
    static small      s;
    lim_engine_params params = small_params();
    lim_attention     attention = small_attention(&s);
    char             *map = mmap(NULL, 4 * LARGEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    edge = map + 3 * LARGEST;
    if (map == MAP_FAILED || mprotect(edge, LARGEST, PROT_NONE) != 0) return perror("mmap"), 1;
    OK(lim_engine_create(&params, &engine));
    OK(lim_decoder_create(engine, &one_row, &decoder));

    /* The oldest sizes are a promise: these numbers never grow. */
    taken("lim_engine_params", &params, 72, sizeof params, make_engine);
    taken("lim_decoder_params", &one_row, 72, sizeof one_row, make_decoder);
    taken("lim_decoder_params", &one_row, 72, sizeof one_row, work_size);
    taken("lim_attention", &attention, 280, sizeof attention, attend);
    given("lim_engine_params", 72, sizeof params, defaults);
    given("lim_stats", 136, sizeof(lim_stats), engine_stats);
    given("lim_stats", 136, sizeof(lim_stats), decoder_stats);

    OK(lim_decoder_free(decoder));
    OK(lim_engine_free(engine));
    return finish("sizes");
}
