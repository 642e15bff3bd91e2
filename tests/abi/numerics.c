/* Outputs and token sets against the reference, over random shapes, types, layouts, orders and masks. */
#include <math.h>

#include "check.h"
#include "reference.h"

enum { MAX_SLOTS = 400,
       LAYERS = 6 };

static const lim_decoder_params one_row = {.struct_size = sizeof(lim_decoder_params), .device = LIM_DEVICE_CPU, .max_rows = 1};

static uint64_t seed;
static int      pick(int low, int high) { return random_int(&seed, low, high); }

/* Rows of random values, each one that each type holds and that sums without rounding. */
static char *fill(int32_t dtype, int elements, int64_t rows, size_t *stride) {
    *stride = ref_row(dtype, elements) + (size_t)pick(0, 2) * 4;
    char  *data = malloc(*stride * (size_t)rows);
    double values[LIM_MAX_HEAD_DIM];
    for (int64_t i = 0; i < rows; i++) {
        for (int d = 0; d < elements; d++) values[d] = pick(-8, 7) / 4.0;
        ref_put(data + *stride * (size_t)i, dtype, values, elements);
    }
    return data;
}

static int compare(const void *a, const void *b) { return *(const int32_t *)a - *(const int32_t *)b; }

static int64_t sparse_layers, no_set, replaced;

static void decoder_of_steps(void) {
    lim_engine_params params;
    OK(lim_engine_default_params(&params, sizeof params));
    int32_t layers[2] = {pick(0, 2), pick(3, LAYERS - 1)};
    params.n_layers = LAYERS;
    params.budget = pick(1, 64);
    params.recency = pick(0, 4) / 4.0;
    params.sink_tokens = pick(0, 8);
    params.n_threads = pick(1, 3);
    params.policy = pick(0, 3) ? LIM_POLICY_UNION : LIM_POLICY_MASS;
    params.layers = layers;
    params.layers_count = 2;
    lim_engine  *engine = NULL;
    lim_decoder *decoder = NULL;
    OK(lim_engine_create(&params, &engine));
    OK(lim_decoder_create(engine, &one_row, &decoder));

    int32_t       query_position;
    lim_attention a = {.struct_size = sizeof a, .n_rows = 1, .query_positions = &query_position};
    a.kv_heads = pick(1, 4);
    a.heads = a.kv_heads * pick(1, 5);
    a.query_dtype = pick(LIM_DTYPE_F32, LIM_DTYPE_BF16);
    a.output_dtype = pick(LIM_DTYPE_F32, LIM_DTYPE_BF16);
    a.key_dtype = pick(LIM_DTYPE_F32, LIM_DTYPE_Q4_0);
    a.value_dtype = pick(0, 1) ? a.key_dtype : pick(LIM_DTYPE_F32, LIM_DTYPE_Q4_0);
    a.head_dim = pick(1, 4) * 32;
    a.value_dim = pick(0, 1) ? a.head_dim : pick(1, 8) * 32;
    if (a.key_dtype <= LIM_DTYPE_BF16 && pick(0, 2) == 0) a.head_dim -= 16;
    a.scale = pick(0, 1) ? 0.0625f : 0;
    int softcap = pick(0, 3) == 0, head_major = pick(0, 1), placed = pick(0, 1), masked = pick(0, 2) == 0;
    if (softcap) a.softcap = 4;

    int32_t  slots = pick(40, MAX_SLOTS), positions[MAX_SLOTS];
    uint16_t mask[MAX_SLOTS];
    float    slopes[64], sinks[64];
    for (int h = 0; h < a.heads; h++) slopes[h] = (float)pick(1, 4) / 2, sinks[h] = (float)pick(-8, 8) / 4;
    if (pick(0, 3) == 0) a.sinks = sinks;
    /* A store as hosts leave it: in order, or with holes that new tokens have filled. */
    int shuffled = pick(0, 1);
    for (int i = 0; i < slots; i++) positions[i] = i, mask[i] = pick(0, 5) ? 0 : ref_f16(pick(-4, 4) / 4.0);
    if (shuffled)
        for (int i = slots - 1; i > 0; i--) {
            int     j = pick(0, i);
            int32_t t = positions[i];
            positions[i] = positions[j], positions[j] = t;
        }
    int spread = pick(0, 3) == 0 ? 1000 : 1; /* positions with gaps, as after evictions */
    for (int i = 0; i < slots; i++) {
        positions[i] *= spread;
        if (pick(0, 9) == 0) positions[i] = -1;
        if (pick(0, 15) == 0) mask[i] = ref_f16(-INFINITY);
    }
    if (placed) a.positions = positions;
    if (masked) {
        a.mask = mask;
        if (pick(0, 1)) a.alibi_slopes = slopes;
    }

    for (int step = 0; step < 3; step++) {
        a.n_slots = slots - 2 + step;
        query_position = (placed ? slots * spread : slots) - 1 - pick(0, 6);
        int32_t set[MAX_SLOTS], visible[MAX_SLOTS];
        int64_t set_n = 0;
        int     n = ref_visible(&a, visible), chosen = 0;
        for (a.layer = 0; a.layer < LAYERS; a.layer++) {
            size_t qs, ks, vs, os = ref_row(a.output_dtype, a.value_dim) + 8;
            char  *query = fill(a.query_dtype, a.head_dim, a.heads, &qs);
            char  *key = fill(a.key_dtype, a.head_dim, a.n_slots * a.kv_heads, &ks);
            char  *value = fill(a.value_dtype, a.value_dim, a.n_slots * a.kv_heads, &vs);
            char  *output = malloc(os * (size_t)a.heads);
            memset(output, 0x7b, os * (size_t)a.heads);
            a.query = query, a.key = key, a.value = value, a.output = output;
            a.query_head_stride = (int64_t)qs, a.output_head_stride = (int64_t)os;
            a.key_token_stride = (int64_t)ks * (head_major ? 1 : a.kv_heads);
            a.key_head_stride = (int64_t)ks * (head_major ? a.n_slots : 1);
            a.value_token_stride = (int64_t)vs * (head_major ? 1 : a.kv_heads);
            a.value_head_stride = (int64_t)vs * (head_major ? a.n_slots : 1);
            int was = 0;
            if (pick(0, 20) == 0 && a.layer > 0 && placed && n > 2) { /* other tokens than before: the set is void */
                replaced++;
                chosen = 0;
                was = visible[0];
                positions[was] = -1;
                n = ref_visible(&a, visible);
            }
            OK(lim_decoder_attend(decoder, &a));

            const int32_t *attended = visible;
            int            attended_n = n;
            if (a.layer == layers[0] || a.layer == layers[1]) {
                OK(lim_decoder_token_set(decoder, 0, set, MAX_SLOTS, &set_n));
                ref_split split = ref_divide(n, params.budget, params.recency, params.sink_tokens);
                chosen = 1;
                if (n <= params.budget) {
                    CHECK(set_n == 0, "a set of %d where all fit", (int)set_n);
                } else if (set_n != split.sinks + split.mid + split.recent) {
                    CHECK(0, "the set has %d tokens, budget %d", (int)set_n, params.budget);
                } else {
                    double *logits = malloc(sizeof *logits * (size_t)n * (size_t)a.heads);
                    ref_logits(&a, visible, n, logits);
                    int32_t want[MAX_SLOTS];
                    ref_select(logits, a.heads, n, split, want);
                    for (int i = 0; i < set_n; i++) want[i] = visible[want[i]];
                    qsort(want, (size_t)set_n, sizeof *want, compare);
                    for (int i = 0; i < split.sinks; i++)
                        CHECK(bsearch(&visible[i], set, (size_t)set_n, sizeof *set, compare), "sink %d is missing", i);
                    for (int i = n - split.recent; i < n; i++)
                        CHECK(bsearch(&visible[i], set, (size_t)set_n, sizeof *set, compare), "recent %d is missing", i);
                    for (int i = 1; i < set_n; i++) CHECK(set[i] > set[i - 1], "the set is not ascending");
                    /* tanh and 1/sqrt(dim) round, and sums of probabilities do: exact sets need exact logits. */
                    if (!softcap && a.scale != 0 && params.policy == LIM_POLICY_UNION)
                        CHECK(!memcmp(want, set, sizeof *set * (size_t)set_n), "set differs: n %d heads %d budget %d", n,
                              a.heads, params.budget);
                    free(logits);
                }
            } else if (a.layer > layers[0] && n > params.budget) {
                if (chosen) {
                    attended = set, attended_n = (int)set_n;
                    sparse_layers++;
                } else {
                    no_set++;
                }
            }
            double want[64 * LIM_MAX_HEAD_DIM];
            ref_attend(&a, attended, attended_n, want);
            double tolerance = a.output_dtype == LIM_DTYPE_F32 ? 2e-5 : a.output_dtype == LIM_DTYPE_F16 ? 2e-3
                                                                                                        : 1.6e-2;
            double worst = 0;
            for (int h = 0; h < a.heads; h++) {
                for (int d = 0; d < a.value_dim; d++)
                    worst = fmax(worst, fabs(ref_get(output + os * (size_t)h, a.output_dtype, d) - want[h * a.value_dim + d]));
                for (size_t i = os - 8; i < os; i++) CHECK(output[os * (size_t)h + i] == 0x7b, "written beyond a row");
            }
            CHECK(worst < tolerance, "layer %d: off by %g (n %d of %d, heads %d/%d, dims %d/%d, types %d %d %d %d)", a.layer, worst,
                  attended_n, n, a.heads, a.kv_heads, a.head_dim, a.value_dim, a.query_dtype, a.key_dtype, a.value_dtype, a.output_dtype);
            free(query), free(key), free(value), free(output);
        }
    }

    lim_stats one = {.struct_size = sizeof one}, all = {.struct_size = sizeof all};
    OK(lim_decoder_stats(decoder, &one));
    OK(lim_decoder_free(decoder));
    OK(lim_engine_stats(engine, &all));
    CHECK(one.steps == 3 && one.rows == 3, "%d steps, %d rows", (int)one.steps, (int)one.rows);
    CHECK(one.dense_calls + one.select_calls + one.sparse_calls == 3 * LAYERS, "calls do not add up");
    CHECK(!memcmp(&one, &all, sizeof one), "the engine forgot an ended decoder");
    OK(lim_engine_free(engine));
}

/* ---- Rows side by side ---- */

enum { MAX_ROWS = 5,
       ROW_SLOTS = 120,
       DIM = 64,
       HEADS = 4,
       KV_HEADS = 2 };

typedef struct store {
    float    query[MAX_ROWS][HEADS * DIM], key[MAX_ROWS][ROW_SLOTS * KV_HEADS * DIM], value[MAX_ROWS][ROW_SLOTS * KV_HEADS * DIM];
    float    together[MAX_ROWS][HEADS * DIM], alone[HEADS * DIM];
    int32_t  positions[MAX_ROWS][ROW_SLOTS], query_positions[MAX_ROWS];
    uint16_t mask[MAX_ROWS][ROW_SLOTS];
} store;

static void randomize(float *values, size_t n) {
    for (size_t i = 0; i < n; i++) values[i] = (float)pick(-100, 100) / 50;
}

/* Several rows in one call give, bit for bit, what each gives alone, and choose the same sets. shared: they are query tokens
 * of one sequence, in one store; placed: slots are out of order, and some are hidden. */
static void rows_side_by_side(int shared, int placed) {
    static store      s;
    lim_engine_params params;
    int32_t           layers[2] = {1, 3};
    int               rows = pick(1, MAX_ROWS), same_places = pick(0, 1);
    lim_engine       *engine = NULL;
    lim_decoder      *together = NULL, *alone[MAX_ROWS] = {NULL};
    OK(lim_engine_default_params(&params, sizeof params));
    params.n_layers = LAYERS;
    params.budget = pick(8, 40);
    params.n_threads = pick(1, 2);
    params.layers = layers, params.layers_count = 2;
    params.interval = shared && !placed ? pick(1, 2) : 1; /* a step goes on with older sets if each of its rows can */
    params.guard = 0;
    OK(lim_engine_create(&params, &engine));
    lim_decoder_params many = one_row;
    many.max_rows = MAX_ROWS;
    OK(lim_decoder_create(engine, &many, &together));
    for (int r = 0; r < rows; r++) OK(lim_decoder_create(engine, &one_row, &alone[r]));

    for (int r = 0; r < MAX_ROWS; r++) {
        for (int i = 0; i < ROW_SLOTS; i++) s.positions[r][i] = i, s.mask[r][i] = pick(0, 9) ? 0 : ref_f16(-INFINITY);
        for (int i = ROW_SLOTS - 1; i > 0; i--) {
            int j = pick(0, i), t = s.positions[r][i];
            s.positions[r][i] = s.positions[r][j], s.positions[r][j] = t;
        }
        s.query_positions[r] = shared ? 90 + r : pick(5, 100);
    }
    lim_attention a = {.struct_size = sizeof a, .n_rows = rows, .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .n_slots = ROW_SLOTS};
    a.query_head_stride = a.output_head_stride = a.key_head_stride = a.value_head_stride = DIM * 4;
    a.query_row_stride = sizeof s.query[0], a.output_row_stride = sizeof s.together[0];
    a.key_token_stride = a.value_token_stride = KV_HEADS * DIM * 4;
    a.key_page_stride = a.value_page_stride = shared ? 0 : sizeof s.key[0];
    a.query = s.query, a.key = s.key, a.value = s.value, a.output = s.together;
    if (placed) {
        a.positions = s.positions[0], a.positions_row_stride = same_places ? 0 : ROW_SLOTS;
        a.mask = s.mask[0], a.mask_row_stride = same_places ? 0 : ROW_SLOTS;
    }
    for (int step = 0; step < 4; step++) {
        int32_t lengths[MAX_ROWS];
        for (int r = 0; r < rows; r++) lengths[r] = ++s.query_positions[r] + 1;
        for (a.layer = 0; a.layer < LAYERS; a.layer++) {
            randomize(s.query[0], sizeof s.query / 4);
            randomize(s.key[0], sizeof s.key / 4);
            randomize(s.value[0], sizeof s.value / 4);
            a.lengths = placed ? NULL : lengths;
            a.query_positions = placed ? s.query_positions : NULL;
            OK(lim_decoder_attend(together, &a));
            for (int r = 0; r < rows; r++) {
                lim_attention one = a;
                one.n_rows = 1, one.query = s.query[r], one.output = s.alone, one.lengths = NULL, one.query_positions = &s.query_positions[r];
                if (!shared) one.key = s.key[r], one.value = s.value[r];
                if (placed && !same_places) one.positions = s.positions[r], one.mask = s.mask[r];
                OK(lim_decoder_attend(alone[r], &one));
                CHECK(!memcmp(s.alone, s.together[r], sizeof s.alone), "row %d of %d, layer %d, step %d: shared %d, placed %d", r, rows,
                      a.layer, step, shared, placed);
                int32_t sets[2][ROW_SLOTS];
                int64_t n[2];
                OK(lim_decoder_token_set(alone[r], 0, sets[0], ROW_SLOTS, &n[0]));
                OK(lim_decoder_token_set(together, r, sets[1], ROW_SLOTS, &n[1]));
                CHECK(n[0] == n[1] && !memcmp(sets[0], sets[1], (size_t)n[0] * 4), "row %d of %d, layer %d: another set", r, rows, a.layer);
            }
        }
    }
    lim_stats stats = {.struct_size = sizeof stats};
    OK(lim_decoder_stats(together, &stats));
    CHECK(stats.steps == 4 && stats.rows == 4 * (uint64_t)rows && stats.no_set_calls == 0, "%d steps, %d rows", (int)stats.steps, (int)stats.rows);
    OK(lim_decoder_free(together));
    for (int r = 0; r < rows; r++) OK(lim_decoder_free(alone[r]));
    OK(lim_engine_free(engine));
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 20260101;
    for (int i = 0; i < cases(120); i++) decoder_of_steps();
    for (int i = 0; i < cases(24); i++) rows_side_by_side(i % 2, i / 2 % 2);
    CHECK(test_share() < 100 || (sparse_layers > 200 && no_set > 2 && replaced > 10), "%d sparse, %d without a set, %d replaced: the test tests little",
          (int)sparse_layers, (int)no_set, (int)replaced);
    return finish("numerics");
}
