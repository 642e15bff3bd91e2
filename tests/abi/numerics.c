/* Outputs and token sets against the reference, over random shapes, types, layouts, orders and masks. */
#include <math.h>

#include "check.h"
#include "reference.h"

enum { MAX_SLOTS = 400, LAYERS = 6 };

static uint64_t seed;
static int pick(int low, int high) { return random_int(&seed, low, high); }

/* Rows of random values, each one that each type holds and that sums without rounding. */
static char *fill(int32_t dtype, int elements, int64_t rows, size_t *stride) {
    *stride = ref_row(dtype, elements) + (size_t)pick(0, 2) * 4;
    char *data = malloc(*stride * (size_t)rows);
    double values[LIM_MAX_HEAD_DIM];
    for (int64_t i = 0; i < rows; i++) {
        for (int d = 0; d < elements; d++) values[d] = pick(-8, 7) / 4.0;
        ref_put(data + *stride * (size_t)i, dtype, values, elements);
    }
    return data;
}

static int compare(const void *a, const void *b) { return *(const int32_t *)a - *(const int32_t *)b; }

static int64_t sparse_layers, no_set, replaced;

static void sequence_of_steps(void) {
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
    lim_engine *engine = NULL;
    lim_sequence *sequence = NULL;
    OK(lim_engine_create(&params, &engine));
    OK(lim_sequence_create(engine, &sequence));

    lim_attention a = {.struct_size = sizeof a};
    a.kv_heads = pick(1, 4);
    a.heads = a.kv_heads * pick(1, 5);
    a.query_dtype = pick(LIM_DTYPE_F32, LIM_DTYPE_BF16);
    a.output_dtype = pick(LIM_DTYPE_F32, LIM_DTYPE_BF16);
    a.key_dtype = pick(LIM_DTYPE_F32, LIM_DTYPE_Q4_0);
    a.value_dtype = pick(0, 1) ? a.key_dtype : pick(LIM_DTYPE_F32, LIM_DTYPE_Q4_0);
    a.key_dim = pick(1, 4) * 32;
    a.value_dim = pick(0, 1) ? a.key_dim : pick(1, 8) * 32;
    if (a.key_dtype <= LIM_DTYPE_BF16 && pick(0, 2) == 0) a.key_dim -= 16;
    a.scale = pick(0, 1) ? 0.0625f : 0;
    int softcap = pick(0, 3) == 0, head_major = pick(0, 1), placed = pick(0, 1), masked = pick(0, 2) == 0;
    if (softcap) a.softcap = 4;

    int32_t slots = pick(40, MAX_SLOTS), positions[MAX_SLOTS];
    uint16_t mask[MAX_SLOTS];
    float slopes[64], sinks[64];
    for (int h = 0; h < a.heads; h++) slopes[h] = (float)pick(1, 4) / 2, sinks[h] = (float)pick(-8, 8) / 4;
    if (pick(0, 3) == 0) a.sinks = sinks;
    /* A store as hosts leave it: in order, or with holes that new tokens have filled. */
    int shuffled = pick(0, 1);
    for (int i = 0; i < slots; i++) positions[i] = i, mask[i] = pick(0, 5) ? 0 : ref_f16(pick(-4, 4) / 4.0);
    if (shuffled)
        for (int i = slots - 1; i > 0; i--) {
            int j = pick(0, i);
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
        a.query_position = (placed ? (int64_t)slots * spread : slots) - 1 - pick(0, 6);
        int32_t set[MAX_SLOTS], visible[MAX_SLOTS];
        int64_t set_n = 0;
        int n = ref_visible(&a, visible), chosen = 0;
        for (a.layer = 0; a.layer < LAYERS; a.layer++) {
            size_t qs, ks, vs, os = ref_row(a.output_dtype, a.value_dim) + 8;
            char *query = fill(a.query_dtype, a.key_dim, a.heads, &qs);
            char *key = fill(a.key_dtype, a.key_dim, a.n_slots * a.kv_heads, &ks);
            char *value = fill(a.value_dtype, a.value_dim, a.n_slots * a.kv_heads, &vs);
            char *output = malloc(os * (size_t)a.heads);
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
            OK(lim_attend(sequence, &a));

            const int32_t *attended = visible;
            int attended_n = n;
            if (a.layer == layers[0] || a.layer == layers[1]) {
                OK(lim_sequence_token_set(sequence, set, MAX_SLOTS, &set_n));
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
            double tolerance = a.output_dtype == LIM_DTYPE_F32 ? 2e-5 : a.output_dtype == LIM_DTYPE_F16 ? 2e-3 : 1.6e-2;
            double worst = 0;
            for (int h = 0; h < a.heads; h++) {
                for (int d = 0; d < a.value_dim; d++)
                    worst = fmax(worst, fabs(ref_get(output + os * (size_t)h, a.output_dtype, d) - want[h * a.value_dim + d]));
                for (size_t i = os - 8; i < os; i++) CHECK(output[os * (size_t)h + i] == 0x7b, "written beyond a row");
            }
            CHECK(worst < tolerance, "layer %d: off by %g (n %d of %d, heads %d/%d, dims %d/%d, types %d %d %d %d)", a.layer, worst,
                  attended_n, n, a.heads, a.kv_heads, a.key_dim, a.value_dim, a.query_dtype, a.key_dtype, a.value_dtype, a.output_dtype);
            free(query), free(key), free(value), free(output);
        }
    }

    lim_stats one = {.struct_size = sizeof one}, all = {.struct_size = sizeof all};
    OK(lim_sequence_stats(sequence, &one));
    OK(lim_sequence_free(sequence));
    OK(lim_engine_stats(engine, &all));
    CHECK(one.steps == 3 && one.rows == 3, "%d steps, %d rows", (int)one.steps, (int)one.rows);
    CHECK(one.dense_calls + one.select_calls + one.sparse_calls == 3 * LAYERS, "calls do not add up");
    CHECK(!memcmp(&one, &all, sizeof one), "the engine forgot an ended sequence");
    OK(lim_engine_free(engine));
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 20260101;
    for (int i = 0; i < 120; i++) sequence_of_steps();
    CHECK(sparse_layers > 200 && no_set > 2 && replaced > 10, "%d sparse, %d without a set, %d replaced: the test tests little",
          (int)sparse_layers, (int)no_set, (int)replaced);
    return finish("numerics");
}
