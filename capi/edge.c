/* The C face of the library: what has to be settled before Go is entered.
 *
 * - A forked child has none of Go's threads, and a call into Go can hang there: the process's id is
 *   compared first.
 * - The error text belongs to a thread of the host, of which Go knows nothing. It is kept by
 *   pthread_setspecific(), not in thread-local storage: Go's own makes the library's storage static, of
 *   which a process has only some 1.6 KB for all libraries that it loads later.
 * - A caller's structure may be older or newer than ours. Go gets a copy of the size that it knows.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "edge.h"
#include "_cgo_export.h"

/* ---- Error text ---- */

enum { TEXT_SIZE = 1024 };

static pthread_key_t text_key;
static int           text_key_made;
static pid_t         loaded_in;

__attribute__((constructor)) static void edge_load(void) {
    loaded_in = getpid();
    text_key_made = pthread_key_create(&text_key, free) == 0;
}

void edge_fail(const char *function, const char *text, size_t length) {
    int   saved = errno;
    char *buffer = text_key_made ? pthread_getspecific(text_key) : NULL;
    if (!buffer && text_key_made && (buffer = malloc(TEXT_SIZE)) && pthread_setspecific(text_key, buffer) != 0) {
        free(buffer);
        buffer = NULL;
    }
    if (buffer) snprintf(buffer, TEXT_SIZE, "%s: %.*s", function, (int)(length < TEXT_SIZE ? length : TEXT_SIZE), text);
    errno = saved;
}

const char *lim_last_error(void) {
    const char *text = text_key_made ? pthread_getspecific(text_key) : NULL;
    return text ? text : "";
}

static lim_status fail(lim_status status, const char *function, const char *text) {
    edge_fail(function, text, strlen(text));
    return status;
}

/* ---- Checks ---- */

static lim_status check_process(const char *function) {
    pid_t pid = getpid();
    if (pid == loaded_in) return LIM_OK;
    char text[160];
    snprintf(text, sizeof text,
             "process %ld was forked from process %ld, which loaded the library; "
             "its threads are not here: load it after fork()",
             (long)pid, (long)loaded_in);
    return fail(LIM_ERROR_FORKED, function, text);
}

static lim_status check_pointer(const char *function, const char *name, const void *pointer) {
    if (pointer) return LIM_OK;
    char text[80];
    snprintf(text, sizeof text, "%s = NULL", name);
    return fail(LIM_ERROR_ARGUMENT, function, text);
}

/* The largest structure that is searched for unknown fields: what is larger was never initialised. */
enum { MAX_STRUCT_SIZE = 4096 };

/* No version's structure ends within a field: each has pointers, so its size is a multiple of theirs, and no field is larger. */
static lim_status check_size(const char *function, const char *name, size_t size, size_t oldest) {
    char text[160];
    if (size >= oldest && size <= MAX_STRUCT_SIZE) {
        if (size % sizeof(void *) == 0) return LIM_OK;
        snprintf(text, sizeof text, "%s.struct_size = %zu is not a multiple of %zu, as sizeof is", name, size, sizeof(void *));
        return fail(LIM_ERROR_ARGUMENT, function, text);
    }
    snprintf(text, sizeof text, "%s.struct_size = %zu is not in %zu .. %d, the sizes of the oldest and of newer versions", name,
             size, oldest, MAX_STRUCT_SIZE);
    return fail(LIM_ERROR_ARGUMENT, function, text);
}

/* Copies a caller's structure, of which the first field is its size, over what it lacks if it is older. */
static lim_status copy_in(const char *function, const char *name, void *to, size_t known, size_t oldest, const void *from) {
    lim_status status = check_pointer(function, name, from);
    if (status) return status;
    size_t size;
    memcpy(&size, from, sizeof size);
    if ((status = check_size(function, name, size, oldest))) return status;
    const unsigned char *bytes = from;
    for (size_t i = known; i < size; i++) {
        if (!bytes[i]) continue;
        char text[160];
        snprintf(text, sizeof text, "%s has a field at byte %zu that version " LIM_VERSION_STRING " does not know, and it is not zero",
                 name, i);
        return fail(LIM_ERROR_UNSUPPORTED, function, text);
    }
    memcpy(to, from, size < known ? size : known);
    return LIM_OK;
}

/* Copies a structure to the caller, whose size it has stated. */
static void copy_out(void *to, size_t size, const void *from, size_t known) {
    unsigned char *bytes = to;
    size_t         shared = size < known ? size : known;
    memcpy(bytes + sizeof size, (const unsigned char *)from + sizeof size, shared - sizeof size);
    memset(bytes + shared, 0, size - shared);
}

/* Handles are numbers, never addresses. */
static uint64_t number(const void *handle) { return (uint64_t)(uintptr_t)handle; }

#define CHECK(call)                            \
    do {                                       \
        lim_status status_ = (call);           \
        if (status_ != LIM_OK) return status_; \
    } while (0)

/* ---- The library ---- */

uint32_t    lim_version_number(void) { return LIM_VERSION_NUMBER; }
const char *lim_version_string(void) { return LIM_VERSION_STRING; }

const char *lim_status_name(lim_status status) {
    switch (status) {
    case LIM_OK: return "LIM_OK";
    case LIM_ERROR_ARGUMENT: return "LIM_ERROR_ARGUMENT";
    case LIM_ERROR_UNSUPPORTED: return "LIM_ERROR_UNSUPPORTED";
    case LIM_ERROR_HANDLE: return "LIM_ERROR_HANDLE";
    case LIM_ERROR_BUSY: return "LIM_ERROR_BUSY";
    case LIM_ERROR_SIZE: return "LIM_ERROR_SIZE";
    case LIM_ERROR_MEMORY: return "LIM_ERROR_MEMORY";
    case LIM_ERROR_FORKED: return "LIM_ERROR_FORKED";
    case LIM_ERROR_INTERNAL: return "LIM_ERROR_INTERNAL";
    case LIM_ERROR_DEVICE: return "LIM_ERROR_DEVICE";
    }
    return "LIM_ERROR_UNKNOWN";
}

void edge_log(lim_logger logger, void *user, int32_t level, const char *text) { logger(user, level, text); }

/* ---- Engine ---- */

/* What the structures of the oldest version that is still served have: these never grow. */
enum { OLDEST_PARAMS = offsetof(lim_engine_params, selections),
       OLDEST_STATS = offsetof(lim_stats, measured_steps),
       OLDEST_DECODER = offsetof(lim_decoder_params, reserved) + sizeof(uint64_t),
       OLDEST_ATTENTION = offsetof(lim_attention, sequences) };

lim_status lim_engine_default_params(lim_engine_params *params, size_t struct_size) {
    CHECK(check_process(__func__));
    CHECK(check_pointer(__func__, "params", params));
    CHECK(check_size(__func__, "params", struct_size, OLDEST_PARAMS));
    lim_engine_params defaults;
    memset(&defaults, 0, sizeof defaults);
    limgo_engine_defaults(&defaults);
    copy_out(params, struct_size, &defaults, sizeof defaults);
    params->struct_size = struct_size;
    return LIM_OK;
}

lim_status lim_engine_create(const lim_engine_params *params, lim_engine **engine) {
    CHECK(check_process(__func__));
    lim_engine_params copy;
    memset(&copy, 0, sizeof copy);
    limgo_engine_defaults(&copy);
    CHECK(copy_in(__func__, "params", &copy, sizeof copy, OLDEST_PARAMS, params));
    CHECK(check_pointer(__func__, "engine", engine));
    uint64_t handle = 0;
    CHECK((lim_status)limgo_engine_create((char *)__func__, &copy, &handle));
    *engine = (lim_engine *)(uintptr_t)handle;
    return LIM_OK;
}

lim_status lim_engine_free(lim_engine *engine) {
    CHECK(check_process(__func__));
    if (!engine) return LIM_OK;
    return (lim_status)limgo_engine_free((char *)__func__, number(engine));
}

lim_status lim_engine_ablate(lim_engine *engine, int32_t select, int32_t sparse) {
    CHECK(check_process(__func__));
    return (lim_status)limgo_engine_ablate((char *)__func__, number(engine), select, sparse);
}

lim_status lim_engine_try(lim_engine *engine, const int32_t *layers, int64_t layers_count) {
    CHECK(check_process(__func__));
    return (lim_status)limgo_engine_try((char *)__func__, number(engine), (int32_t *)layers, layers_count);
}

lim_status lim_ggml_engine(lim_engine **engine) {
    CHECK(check_process(__func__));
    CHECK(check_pointer(__func__, "engine", engine));
    uint64_t handle = 0;
    CHECK((lim_status)limgo_ggml_engine((char *)__func__, &handle));
    *engine = (lim_engine *)(uintptr_t)handle;
    return LIM_OK;
}

static lim_status stats_out(const char *function, lim_stats *stats, uint64_t handle,
                            int32_t (*get)(char *, uint64_t, lim_stats *)) {
    CHECK(check_process(function));
    CHECK(check_pointer(function, "stats", stats));
    size_t size; /* read once: what is checked is what is written */
    memcpy(&size, stats, sizeof size);
    CHECK(check_size(function, "stats", size, OLDEST_STATS));
    lim_stats copy;
    memset(&copy, 0, sizeof copy);
    CHECK((lim_status)get((char *)function, handle, &copy));
    copy_out(stats, size, &copy, sizeof copy);
    return LIM_OK;
}

lim_status lim_engine_stats(lim_engine *engine, lim_stats *stats) {
    return stats_out(__func__, stats, number(engine), limgo_engine_stats);
}

lim_status lim_engine_stats_json(lim_engine *engine, char *buffer, size_t size, size_t *needed) {
    CHECK(check_process(__func__));
    if (size) CHECK(check_pointer(__func__, "buffer", buffer));
    return (lim_status)limgo_engine_stats_json((char *)__func__, number(engine), buffer, size, needed);
}

lim_status lim_profile_for_quality(const char *profile, double quality, char *buffer, size_t size, size_t *needed) {
    CHECK(check_process(__func__));
    CHECK(check_pointer(__func__, "profile", profile));
    if (size) CHECK(check_pointer(__func__, "buffer", buffer));
    return (lim_status)limgo_profile_for_quality((char *)__func__, (char *)profile, quality, buffer, size, needed);
}

/* ---- Decoder ---- */

lim_status lim_decoder_work_size(lim_engine *engine, const lim_decoder_params *params, uint64_t *size) {
    CHECK(check_process(__func__));
    lim_decoder_params copy;
    memset(&copy, 0, sizeof copy);
    CHECK(copy_in(__func__, "params", &copy, sizeof copy, OLDEST_DECODER, params));
    CHECK(check_pointer(__func__, "size", size));
    return (lim_status)limgo_decoder_work_size((char *)__func__, number(engine), &copy, size);
}

lim_status lim_decoder_create(lim_engine *engine, const lim_decoder_params *params, lim_decoder **decoder) {
    CHECK(check_process(__func__));
    lim_decoder_params copy;
    memset(&copy, 0, sizeof copy);
    CHECK(copy_in(__func__, "params", &copy, sizeof copy, OLDEST_DECODER, params));
    CHECK(check_pointer(__func__, "decoder", decoder));
    uint64_t handle = 0;
    CHECK((lim_status)limgo_decoder_create((char *)__func__, number(engine), &copy, &handle));
    *decoder = (lim_decoder *)(uintptr_t)handle;
    return LIM_OK;
}

lim_status lim_decoder_free(lim_decoder *decoder) {
    CHECK(check_process(__func__));
    if (!decoder) return LIM_OK;
    return (lim_status)limgo_decoder_free((char *)__func__, number(decoder));
}

lim_status lim_decoder_reset(lim_decoder *decoder) {
    CHECK(check_process(__func__));
    return (lim_status)limgo_decoder_reset((char *)__func__, number(decoder));
}

lim_status lim_decoder_attend(lim_decoder *decoder, const lim_attention *attention) {
    CHECK(check_process(__func__));
    lim_attention copy;
    memset(&copy, 0, sizeof copy);
    CHECK(copy_in(__func__, "attention", &copy, sizeof copy, OLDEST_ATTENTION, attention));
    return (lim_status)limgo_decoder_attend((char *)__func__, number(decoder), &copy);
}

lim_status lim_decoder_token_set(lim_decoder *decoder, int32_t row, int32_t *tokens, int64_t capacity, int64_t *count) {
    CHECK(check_process(__func__));
    CHECK(check_pointer(__func__, "count", count));
    if (capacity > 0) CHECK(check_pointer(__func__, "tokens", tokens));
    return (lim_status)limgo_decoder_token_set((char *)__func__, number(decoder), row, tokens, capacity, count);
}

lim_status lim_decoder_stats(lim_decoder *decoder, lim_stats *stats) {
    return stats_out(__func__, stats, number(decoder), limgo_decoder_stats);
}

lim_status lim_decoder_poll(lim_decoder *decoder, uint64_t *generation, int32_t *eager) {
    CHECK(check_process(__func__));
    CHECK(check_pointer(__func__, "generation", generation));
    CHECK(check_pointer(__func__, "eager", eager));
    return (lim_status)limgo_decoder_poll((char *)__func__, number(decoder), generation, eager);
}

/* ---- Function table ---- */

const lim_api *lim_get_api(uint32_t version) {
#define ENTRY(type, name, arguments) .name = lim_##name,
    static const lim_api api = {.struct_size = sizeof(lim_api), LIM_API_FUNCTIONS(ENTRY)};
#undef ENTRY
    if (version == LIM_API_VERSION) return &api;
    char text[80];
    snprintf(text, sizeof text, "version = %lu, but the library has version %d only", (unsigned long)version, LIM_API_VERSION);
    fail(LIM_ERROR_UNSUPPORTED, __func__, text);
    return NULL;
}
