/* What a well-behaved host does, from the first call to the last. */
#include "small.h"

static int  lines;
static char line[400];
static void logger(void *user, int32_t level, const char *text) {
    *(int *)user += 1;
    if (level == LIM_LOG_INFO) snprintf(line, sizeof line, "%s", text);
}

/* A host that was compiled against a later header, with one more field. */
typedef struct newer_params {
    lim_engine_params params;
    int64_t           something;
} newer_params;

static void versions(void) {
    CHECK(lim_version_number() == LIM_VERSION_NUMBER, "%u", lim_version_number());
    CHECK(!strcmp(lim_version_string(), LIM_VERSION_STRING), "%s", lim_version_string());
    CHECK(!strcmp(lim_last_error(), ""), "%s", lim_last_error());
    CHECK(!strcmp(lim_status_name(LIM_ERROR_FORKED), "LIM_ERROR_FORKED"), "%s", lim_status_name(LIM_ERROR_FORKED));
    CHECK(!strcmp(lim_status_name((lim_status)99), "LIM_ERROR_UNKNOWN"), "%s", lim_status_name((lim_status)99));
    const lim_api *api = lim_get_api(LIM_API_VERSION);
    CHECK(api && api->struct_size == sizeof *api && api == lim_get_api(2), "no table");
    CHECK(!lim_get_api(0) && strstr(lim_last_error(), "version = 0"), "%s", lim_last_error());
    CHECK(!lim_get_api(1) && strstr(lim_last_error(), "version = 1"), "%s", lim_last_error());
}

static void sizes(void) {
    newer_params newer;
    memset(&newer, 0xee, sizeof newer);
    OK(lim_engine_default_params(&newer.params, sizeof newer));
    CHECK(newer.params.struct_size == sizeof newer && newer.something == 0, "the rest of a newer structure is not zero");
    newer.params.n_layers = 4;
    lim_engine *engine = NULL;
    OK(lim_engine_create(&newer.params, &engine));
    OK(lim_engine_free(engine));
    newer.something = 1;
    CHECK(lim_engine_create(&newer.params, &engine) == LIM_ERROR_UNSUPPORTED, "an unknown field was accepted");

    lim_engine_params params = {0};
    OK(lim_engine_default_params(&params, sizeof params));
    CHECK(params.budget == 2048 && params.recency == 0.25 && params.sink_tokens == 4 && !params.layers && !params.n_layers,
          "defaults differ from the header");
}

/* A host that was compiled against the oldest header: what came later has its default, and is not written. */
static void older(void) {
    lim_engine_params params;
    size_t            oldest = offsetof(lim_engine_params, selections);
    memset(&params, 0xee, sizeof params);
    OK(lim_engine_default_params(&params, oldest));
    CHECK(params.struct_size == oldest && params.reserved == 0 && params.selections == (int32_t)0xeeeeeeee, "more than the caller has was written");
    params.n_layers = 12;
    lim_engine *engine = NULL;
    OK(lim_engine_create(&params, &engine));
    size_t needed = 0;
    OK(lim_engine_stats_json(engine, NULL, 0, &needed));
    char *text = malloc(needed);
    OK(lim_engine_stats_json(engine, text, needed, NULL));
    CHECK(strstr(text, "\"selections\": 2") && strstr(text, "\"guard\": 16") && strstr(text, "\"interval\": 1") && strstr(text, "\"trace\": 0") && strstr(text, "\"quality\": 0"), "%s", text);
    free(text);
    lim_stats stats;
    memset(&stats, 0xee, sizeof stats);
    stats.struct_size = offsetof(lim_stats, measured_steps);
    OK(lim_engine_stats(engine, &stats));
    CHECK(stats.steps == 0 && stats.ranking_ns == 0 && stats.measured_steps == 0xeeeeeeeeeeeeeeee, "more than the caller has was written");
    stats.struct_size -= 8;
    CHECK(lim_engine_stats(engine, &stats) == LIM_ERROR_ARGUMENT, "an unknown older structure was accepted");
    params.struct_size -= 8;
    lim_engine *other = NULL;
    CHECK(lim_engine_create(&params, &other) == LIM_ERROR_ARGUMENT && !other, "an unknown older structure was accepted");
    OK(lim_engine_free(engine));
}

static void decode(void) {
    static small      s;
    lim_engine_params params = small_params();
    params.logger = logger;
    params.logger_user = &lines;
    lim_engine *engine = NULL;
    OK(lim_engine_create(&params, &engine));
    CHECK(lines == 1 && strstr(line, "budget 16"), "logger: %s", line);

    lim_decoder *decoder = NULL;
    OK(lim_decoder_create(engine, &one_row, &decoder));
    lim_attention a = small_attention(&s);
    int32_t       set[SMALL_SLOTS];
    int64_t       count = -1;
    OK(lim_decoder_token_set(decoder, 0, NULL, 0, &count));
    CHECK(count == 0, "%d", (int)count);
    for (int step = 0; step < 4; step++) {
        s.query_position = SMALL_SLOTS - 4 + step;
        a.n_slots = s.query_position + 1;
        for (a.layer = 0; a.layer < SMALL_LAYERS; a.layer++) OK(lim_decoder_attend(decoder, &a));
    }
    OK(lim_decoder_token_set(decoder, 0, NULL, 0, &count));
    CHECK(count == SMALL_BUDGET, "%d", (int)count);
    OK(lim_decoder_token_set(decoder, 0, set, SMALL_SLOTS, &count));
    CHECK(count == SMALL_BUDGET && set[SMALL_BUDGET - 1] == SMALL_SLOTS - 1, "the newest token is not in the set");
    set[0] = -7;
    CHECK(lim_decoder_token_set(decoder, 0, set, SMALL_BUDGET - 1, &count) == LIM_ERROR_SIZE && set[0] == -7 && count == SMALL_BUDGET,
          "a short buffer was written");

    /* Layer 2 chooses, layer 3 is sparse. */
    lim_stats stats = {.struct_size = sizeof stats};
    OK(lim_decoder_stats(decoder, &stats));
    CHECK(stats.steps == 4 && stats.rows == 4 && stats.rows_sparse == 4 && stats.rows_full == 0, "%d steps", (int)stats.steps);
    CHECK(stats.dense_calls == 8 && stats.select_calls == 4 && stats.sparse_calls == 4 && stats.no_set_calls == 0, "calls %d %d %d %d",
          (int)stats.dense_calls, (int)stats.select_calls, (int)stats.sparse_calls, (int)stats.no_set_calls);
    CHECK(stats.sparse_layer_tokens_visible == 61 + 62 + 63 + 64 && stats.sparse_layer_tokens_attended == 4 * SMALL_BUDGET,
          "%d of %d tokens", (int)stats.sparse_layer_tokens_attended, (int)stats.sparse_layer_tokens_visible);

    /* Without its selection layer, and after a reset, a sparse layer has no set. */
    a.layer = 3;
    OK(lim_decoder_attend(decoder, &a));
    a.layer = 2;
    OK(lim_decoder_attend(decoder, &a));
    OK(lim_decoder_reset(decoder));
    a.layer = 3;
    OK(lim_decoder_attend(decoder, &a));
    OK(lim_decoder_stats(decoder, &stats));
    CHECK(stats.no_set_calls == 2 && stats.steps == 7, "%d without a set, %d steps", (int)stats.no_set_calls, (int)stats.steps);

    /* Fewer slots within a step: the set may name ones that are not there. */
    a.layer = 2;
    OK(lim_decoder_attend(decoder, &a));
    a.layer = 3;
    a.n_slots--;
    OK(lim_decoder_attend(decoder, &a));
    OK(lim_decoder_stats(decoder, &stats));
    CHECK(stats.no_set_calls == 3 && stats.steps == 8, "%d without a set, %d steps", (int)stats.no_set_calls, (int)stats.steps);

    /* A refused call leaves the step as it was: the layer after it still has its set. */
    lim_attention wrong = small_attention(&s);
    a = small_attention(&s);
    a.positions = s.positions;
    a.layer = 2;
    OK(lim_decoder_attend(decoder, &a));
    int32_t twice[SMALL_SLOTS];
    memcpy(twice, s.positions, sizeof twice);
    twice[9] = 3;
    wrong.positions = twice;
    const int32_t beyond = 70;
    wrong.query_positions = &beyond;
    CHECK(lim_decoder_attend(decoder, &wrong) == LIM_ERROR_ARGUMENT, "%s", lim_last_error());
    wrong.query_positions = a.query_positions;
    wrong.layer = 3;
    CHECK(lim_decoder_attend(decoder, &wrong) == LIM_ERROR_ARGUMENT, "%s", lim_last_error());
    a.layer = 3;
    uint64_t before = stats.sparse_calls;
    OK(lim_decoder_attend(decoder, &a));
    OK(lim_decoder_stats(decoder, &stats));
    CHECK(stats.sparse_calls == before + 1, "the set was lost");

    /* Nobody is visible: zeros. */
    int32_t nobody[SMALL_SLOTS];
    for (int i = 0; i < SMALL_SLOTS; i++) nobody[i] = -1;
    a.positions = nobody;
    s.output[0] = s.output[SMALL_HEADS * SMALL_DIM - 1] = 9;
    OK(lim_decoder_attend(decoder, &a));
    CHECK(s.output[0] == 0 && s.output[SMALL_HEADS * SMALL_DIM - 1] == 0, "%g", s.output[0]);

    size_t needed = 0;
    OK(lim_engine_stats_json(engine, NULL, 0, &needed));
    char *text = malloc(needed);
    text[0] = '?';
    CHECK(lim_engine_stats_json(engine, text, needed - 1, NULL) == LIM_ERROR_SIZE && text[0] == '?', "a short buffer was written");
    OK(lim_engine_stats_json(engine, text, needed, &needed));
    CHECK(strlen(text) + 1 == needed && strstr(text, "\"version\": \"" LIM_VERSION_STRING "\"") && strstr(text, "\"no_set_calls\": 3"),
          "%s", text);
    free(text);

    CHECK(lim_engine_free(engine) == LIM_ERROR_BUSY && strstr(lim_last_error(), "alive: 1"), "%s", lim_last_error());
    OK(lim_decoder_free(decoder));
    OK(lim_engine_free(engine));
    OK(lim_decoder_free(NULL));
    OK(lim_engine_free(NULL));
}

/* A quality target by trials that a caller makes: the library says what to try, and reads what comes of it. */
static void aimed(void) {
    lim_engine_params params = small_params();
    lim_engine       *engine = NULL;
    lim_decoder      *decoder = NULL;
    params.layers = NULL, params.layers_count = 0;
    params.n_layers = 5, params.budget = 64, params.quality = 0.01;
    params.model = "m", params.profile = "lifecycle-profile.json";
    remove(params.profile);
    OK(lim_engine_create(&params, &engine));
    CHECK(lim_decoder_create(engine, &one_row, &decoder) == LIM_ERROR_ARGUMENT, "a target was promised without a profile");
    OK(lim_engine_free(engine));

    char   first[4096], tried[4096] = "?", last[4096];
    size_t needed = 0, again = 0;
    OK(lim_profile_for_quality(SMALL_PROFILE, params.quality, NULL, 0, &needed));
    CHECK(lim_profile_for_quality(SMALL_PROFILE, params.quality, tried, needed - 1, NULL) == LIM_ERROR_SIZE && tried[0] == '?',
          "a short buffer was written");
    OK(lim_profile_for_quality(SMALL_PROFILE, params.quality, first, sizeof first, &again));
    CHECK(strlen(first) + 1 == needed && again == needed && strstr(first, "\"choice\":[],") && strstr(first, "\"least_trials\":64,"), "%s", first);
    static const char untried[] = "\"layers\":[2],\"trials\":0,\"nats\":0,\"squares\":0";
    char             *at = strstr(first, untried);
    CHECK(at, "%s", first);
    if (!at) return;
    snprintf(tried, sizeof tried, "%.*s\"layers\":[2],\"trials\":64,\"nats\":0.32,\"squares\":0.0017%s", (int)(at - first), first, at + strlen(untried));
    OK(lim_profile_for_quality(tried, params.quality, last, sizeof last, NULL));
    CHECK(strstr(last, "\"choice\":[2],"), "%s", last);
    FILE *file = fopen(params.profile, "w");
    CHECK(file && fputs(last, file) >= 0 && fclose(file) == 0, "%s", params.profile);

    OK(lim_engine_create(&params, &engine));
    OK(lim_decoder_create(engine, &one_row, &decoder));
    OK(lim_decoder_free(decoder));
    OK(lim_engine_free(engine));
    remove(params.profile);
}

int main(void) {
    versions();
    aimed();
    sizes();
    older();
    for (int i = 0; i < 3; i++) lines = 0, decode();
    return finish("lifecycle");
}
