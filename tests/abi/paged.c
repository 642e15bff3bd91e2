/* A server's sequences in pages: appended to, truncated, forked with a shared prefix, freed, moved, their rows given to others.
 * Each step against the reference, and bit for bit against the same tokens in one piece. */
#include <math.h>

#include "check.h"
#include "reference.h"

enum { LAYERS = 4,
       MAX_ROWS = 4,
       MAX_TEXTS = 6,
       MOST = 260, /* tokens of a text */
       MAX_PAGES = 2 * MAX_TEXTS * MOST };

static uint64_t seed;
static int      pick(int low, int high) { return random_int(&seed, low, high); }

/* One kind of store, a key's or a value's. */
typedef struct store {
    int32_t dtype, dim;
    size_t  row;                      /* bytes of a head */
    int64_t page, token, head;        /* strides */
    char   *paged[LAYERS], *together; /* the pages; what the rows see, in one piece */
} store;

typedef struct text {
    uint64_t number; /* 0: none */
    int      length;
    int32_t  table[MOST];
} text;

static int   page_size, n_pages, kv_heads, heads;
static int   used[MAX_PAGES]; /* how many texts have a page */
static text  texts[MAX_TEXTS];
static store key, value;

static int pages_of(int tokens) { return (tokens + page_size - 1) / page_size; }

static void lay_out(store *s, int32_t dtype, int dim) {
    s->dtype = dtype, s->dim = dim, s->row = ref_row(dtype, dim);
    int64_t unit = dtype == LIM_DTYPE_F32 ? 4 : 2, row = (int64_t)s->row + unit * pick(0, 2);
    if (pick(0, 1)) { /* heads of a token side by side, or tokens of a head */
        s->head = row, s->token = row * kv_heads + unit * pick(0, 3);
        s->page = s->token * page_size + unit * pick(0, 3);
    } else {
        s->token = row, s->head = row * page_size + unit * pick(0, 3);
        s->page = s->head * kv_heads + unit * pick(0, 3);
    }
    for (int l = 0; l < LAYERS; l++) s->paged[l] = calloc(1, (size_t)s->page * (size_t)n_pages);
    s->together = calloc(1, s->row * (size_t)kv_heads * MOST * MAX_ROWS);
}

static void drop(store *s) {
    for (int l = 0; l < LAYERS; l++) free(s->paged[l]);
    free(s->together);
}

static char *at(const store *s, int layer, int32_t page, int place, int h) {
    return s->paged[layer] + page * s->page + place * s->token + h * s->head;
}

static int32_t take_page(void) {
    for (int tries = 0;; tries++) {
        int32_t page = pick(0, n_pages - 1);
        if (tries > 1000 * n_pages) abort(); /* there are enough for all */
        if (used[page]) continue;
        used[page] = 1;
        return page;
    }
}

static void copy_page(int32_t to, int32_t from) {
    for (int l = 0; l < LAYERS; l++) {
        memcpy(key.paged[l] + to * key.page, key.paged[l] + from * key.page, (size_t)key.page);
        memcpy(value.paged[l] + to * value.page, value.paged[l] + from * value.page, (size_t)value.page);
    }
}

/* ---- What a server does ---- */

static void append(text *t, int tokens) {
    double values[LIM_MAX_HEAD_DIM];
    for (; tokens > 0 && t->length < MOST; tokens--) {
        int place = t->length % page_size, page = t->length / page_size;
        if (place == 0) {
            t->table[page] = take_page();
        } else if (used[t->table[page]] > 1) { /* shared with a fork: a copy of one's own */
            int32_t own = take_page();
            copy_page(own, t->table[page]);
            used[t->table[page]]--;
            t->table[page] = own;
        }
        for (int l = 0; l < LAYERS; l++)
            for (int h = 0; h < kv_heads; h++) {
                const store *s[2] = {&key, &value};
                for (int i = 0; i < 2; i++) {
                    for (int d = 0; d < s[i]->dim; d++) values[d] = pick(-8, 7) / 4.0;
                    ref_put(at(s[i], l, t->table[page], place, h), s[i]->dtype, values, s[i]->dim);
                }
            }
        t->length++;
    }
}

static void truncate_to(text *t, int length) {
    for (int i = pages_of(length); i < pages_of(t->length); i++) {
        used[t->table[i]]--;
        t->table[i] = -1;
    }
    t->length = length;
}

static void end(text *t) {
    truncate_to(t, 0);
    t->number = 0;
}

static void begin(text *t, uint64_t number, int length) {
    for (int i = 0; i < MOST; i++) t->table[i] = -1;
    t->number = number, t->length = 0;
    append(t, length);
}

static void fork_of(text *t, const text *of, uint64_t number, int length) {
    *t = *of;
    t->number = number;
    for (int i = 0; i < pages_of(t->length); i++) used[t->table[i]]++;
    truncate_to(t, length);
}

static void move_page(text *t) {
    int     i = pick(0, pages_of(t->length) - 1);
    int32_t own = take_page();
    copy_page(own, t->table[i]);
    used[t->table[i]]--;
    t->table[i] = own;
}

static int64_t forks, truncated, freed, moved, replaced, reused, deceptive, sparse_rows;

static void serve(uint64_t *number) {
    text *t = &texts[pick(0, MAX_TEXTS - 1)], *other = &texts[pick(0, MAX_TEXTS - 1)];
    switch (pick(0, 9)) {
    case 0:
    case 1:
        if (!t->number) begin(t, ++*number, pick(1, MOST / 2));
        break;
    case 2:
    case 3:
        if (!t->number && other->number && other->length > 0) fork_of(t, other, ++*number, pick(1, other->length)), forks++;
        break;
    case 4:
        if (t->number && t->length > 1 && pick(0, 2) == 0) truncate_to(t, pick(1, t->length - 1)), truncated++;
        break;
    case 5:
        if (t->number && pick(0, 3) == 0) end(t), freed++;
        break;
    case 6:
        if (t->number && t->length > 0) move_page(t), moved++;
        break;
    case 7: /* another text as long: only its number tells */
        if (t->number && t->length > 0) {
            int length = t->length;
            end(t);
            begin(t, ++*number, length);
            replaced++;
        }
        break;
    default: break; /* nothing: the same texts go on */
    }
}

/* ---- A step ---- */

typedef struct batch {
    int      rows;
    uint64_t numbers[MAX_ROWS];
    int32_t  lengths[MAX_ROWS];
} batch;

static batch before; /* of the step before */

/* A row's tokens in one piece. */
static void gather(const store *s, int layer, int row, const text *t) {
    char *to = s->together + (size_t)row * MOST * (size_t)kv_heads * s->row;
    for (int i = 0; i < t->length; i++)
        for (int h = 0; h < kv_heads; h++, to += s->row) memcpy(to, at(s, layer, t->table[i / page_size], i % page_size, h), s->row);
}

static int compare(const void *a, const void *b) { return *(const int32_t *)a - *(const int32_t *)b; }

typedef struct host {
    lim_decoder *paged, *plain; /* plain: with an interval of 1 */
    int          budget, interval;
    int32_t      query_dtype, output_dtype, layers[2];
    int          state_pages;
} host;

static void check_row(const host *h, const lim_attention *all, const text *t, int row, int layer, int *chosen, int selects) {
    int32_t       set[MOST], visible[MOST], want_set[MOST], last = t->length - 1;
    int64_t       set_n = 0;
    lim_attention one = *all;
    one.n_rows = 1, one.n_slots = t->length, one.lengths = NULL, one.query_positions = &last, one.table = NULL, one.sequences = NULL;
    one.query = (const char *)all->query + row * all->query_row_stride;
    one.output = (char *)all->output + row * all->output_row_stride;
    one.key = key.together + (size_t)row * MOST * (size_t)kv_heads * key.row;
    one.value = value.together + (size_t)row * MOST * (size_t)kv_heads * value.row;
    one.key_head_stride = (int64_t)key.row, one.key_token_stride = (int64_t)key.row * kv_heads;
    one.value_head_stride = (int64_t)value.row, one.value_token_stride = (int64_t)value.row * kv_heads;
    for (int i = 0; i < t->length; i++) visible[i] = i;
    const int32_t *attended = visible;
    int            n = t->length;
    OK(lim_decoder_token_set(h->paged, row, set, MOST, &set_n));
    if (n > h->budget && selects) {
        ref_split split = ref_divide(n, h->budget, 0.25, 4);
        double   *logits = malloc(sizeof *logits * (size_t)n * (size_t)heads);
        ref_logits(&one, visible, n, logits);
        ref_select(logits, heads, n, split, want_set);
        qsort(want_set, (size_t)h->budget, sizeof *want_set, compare);
        CHECK(set_n == h->budget && !memcmp(set, want_set, sizeof *set * (size_t)set_n), "row %d, layer %d: another set of %d of %d", row, layer, (int)set_n, n);
        free(logits);
        *chosen = 1;
    } else if (n > h->budget && *chosen) {
        CHECK(set_n >= h->budget && set_n < h->budget + h->interval, "row %d: a set of %d", row, (int)set_n);
        for (int i = 0; i < set_n; i++) CHECK(set[i] >= 0 && set[i] < n, "row %d: slot %d of %d", row, set[i], n);
        attended = set, n = (int)set_n;
        sparse_rows++;
    }
    double want[64 * LIM_MAX_HEAD_DIM], worst = 0;
    ref_attend(&one, attended, n, want);
    for (int head = 0; head < heads; head++)
        for (int d = 0; d < value.dim; d++)
            worst = fmax(worst, fabs(ref_get((const char *)one.output + head * one.output_head_stride, one.output_dtype, d) - want[head * value.dim + d]));
    CHECK(worst < (one.output_dtype == LIM_DTYPE_F32 ? 2e-5 : one.output_dtype == LIM_DTYPE_F16 ? 2e-3
                                                                                                : 1.6e-2),
          "layer %d, row %d: off by %g (%d of %d tokens, pages of %d, types %d %d)", layer, row, worst, n,
          t->length, page_size, key.dtype, value.dtype);
}

static void decode(const host *h) {
    text *rows[MAX_ROWS];
    batch now = {.rows = 0};
    int   first = pick(0, 3) ? 0 : pick(0, MAX_TEXTS - 1); /* mostly the same rows as before */
    for (int i = 0; i < MAX_TEXTS && now.rows < MAX_ROWS; i++) {
        text *t = &texts[(first + i) % MAX_TEXTS];
        if (!t->number || t->length >= MOST) continue;
        append(t, 1);
        rows[now.rows] = t, now.numbers[now.rows] = t->number, now.lengths[now.rows++] = t->length;
    }
    if (now.rows == 0) return;
    int n_slots = 0;
    for (int r = 0; r < now.rows; r++) n_slots = now.lengths[r] > n_slots ? now.lengths[r] : n_slots;
    int      stride = pages_of(n_slots) + pick(0, 3);
    int32_t *table = malloc(sizeof *table * (size_t)stride * (size_t)now.rows);
    for (int r = 0; r < now.rows; r++)
        for (int i = 0; i < stride; i++) table[r * stride + i] = i < pages_of(now.lengths[r]) ? rows[r]->table[i] : -pick(0, 9);

    lim_stats stats = {.struct_size = sizeof stats};
    OK(lim_decoder_stats(h->paged, &stats));
    uint64_t reused_before = stats.reused_steps;
    size_t   query_row = ref_row(h->query_dtype, key.dim), output_row = ref_row(h->output_dtype, value.dim);
    char    *query = malloc(query_row * (size_t)heads * MAX_ROWS), *output = malloc(output_row * (size_t)heads * MAX_ROWS);
    char    *plain = malloc(output_row * (size_t)heads * MAX_ROWS);
    int      chosen[MAX_ROWS] = {0};
    for (int layer = 0; layer < LAYERS; layer++) {
        double values[LIM_MAX_HEAD_DIM];
        for (int i = 0; i < heads * now.rows; i++) {
            for (int d = 0; d < key.dim; d++) values[d] = pick(-8, 7) / 4.0;
            ref_put(query + query_row * (size_t)i, h->query_dtype, values, key.dim);
        }
        lim_attention a = {.struct_size = sizeof a, .layer = layer, .n_rows = now.rows, .query = query, .key = key.paged[layer], .value = value.paged[layer], .output = output};
        a.query_head_stride = (int64_t)query_row, a.query_row_stride = (int64_t)query_row * heads;
        a.output_head_stride = (int64_t)output_row, a.output_row_stride = (int64_t)output_row * heads;
        a.key_page_stride = key.page, a.key_token_stride = key.token, a.key_head_stride = key.head;
        a.value_page_stride = value.page, a.value_token_stride = value.token, a.value_head_stride = value.head;
        a.query_dtype = h->query_dtype, a.output_dtype = h->output_dtype, a.key_dtype = key.dtype, a.value_dtype = value.dtype;
        a.heads = heads, a.kv_heads = kv_heads, a.head_dim = key.dim, a.value_dim = value.dim, a.scale = 0.0625f;
        a.n_slots = n_slots, a.lengths = now.lengths;
        a.table = table, a.table_stride = stride, a.page_size = page_size, a.n_pages = h->state_pages ? n_pages : 0;
        a.sequences = now.numbers;
        OK(lim_decoder_attend(h->paged, &a));
        for (int r = 0; r < now.rows; r++) gather(&key, layer, r, rows[r]), gather(&value, layer, r, rows[r]);
        OK(lim_decoder_stats(h->paged, &stats));
        int resumed = stats.reused_steps > reused_before;
        for (int r = 0; r < now.rows; r++) {
            if (resumed && layer >= h->layers[0]) chosen[r] = 1;
            check_row(h, &a, rows[r], r, layer, &chosen[r], !resumed && (layer == h->layers[0] || layer == h->layers[1]));
        }

        if (h->interval > 1) continue;
        a.table = NULL, a.sequences = NULL, a.n_pages = 0, a.output = plain;
        a.key = key.together, a.value = value.together;
        a.key_head_stride = (int64_t)key.row, a.key_token_stride = (int64_t)key.row * kv_heads, a.key_page_stride = a.key_token_stride * MOST;
        a.value_head_stride = (int64_t)value.row, a.value_token_stride = (int64_t)value.row * kv_heads, a.value_page_stride = a.value_token_stride * MOST;
        OK(lim_decoder_attend(h->plain, &a));
        CHECK(!memcmp(output, plain, output_row * (size_t)heads * (size_t)now.rows), "layer %d: other bits than in one piece, pages of %d", layer, page_size);
    }
    int same = now.rows == before.rows, longer = same;
    for (int r = 0; r < now.rows && longer; r++) {
        same = same && now.numbers[r] == before.numbers[r];
        longer = now.lengths[r] == before.lengths[r] + 1;
    }
    if (stats.reused_steps > reused_before) {
        reused++;
        CHECK(same && longer, "a step of other texts went on with the sets of the one before");
    } else if (longer && !same) {
        deceptive++;
    }
    before = now;
    free(table), free(query), free(output), free(plain);
}

static void server(int interval) {
    lim_engine_params params;
    OK(lim_engine_default_params(&params, sizeof params));
    host h = {.interval = interval, .budget = pick(16, 48), .layers = {pick(0, 1), 2}, .state_pages = pick(0, 1)};
    params.n_layers = LAYERS, params.budget = h.budget, params.layers = h.layers, params.layers_count = 2;
    params.n_threads = pick(1, 2), params.interval = interval, params.guard = 0;
    lim_engine *engine = NULL;
    OK(lim_engine_create(&params, &engine));
    lim_decoder_params shape = {.struct_size = sizeof shape, .device = LIM_DEVICE_CPU, .max_rows = MAX_ROWS};
    OK(lim_decoder_create(engine, &shape, &h.paged));
    OK(lim_decoder_create(engine, &shape, &h.plain));

    page_size = 1 << pick(0, 8);
    n_pages = 2 * MAX_TEXTS * pages_of(MOST);
    memset(used, 0, sizeof used);
    memset(texts, 0, sizeof texts);
    before = (batch){.rows = 0};
    kv_heads = pick(1, 3), heads = kv_heads * pick(1, 4);
    lay_out(&key, pick(LIM_DTYPE_F32, LIM_DTYPE_Q4_0), 32 * pick(1, 2));
    lay_out(&value, pick(LIM_DTYPE_F32, LIM_DTYPE_Q4_0), 32 * pick(1, 2));
    h.query_dtype = pick(LIM_DTYPE_F32, LIM_DTYPE_BF16), h.output_dtype = pick(LIM_DTYPE_F32, LIM_DTYPE_BF16);
    uint64_t number = (uint64_t)pick(0, 1000) << 40;
    begin(&texts[0], ++number, pick(1, MOST / 2));
    for (int step = 0; step < 40; step++) {
        serve(&number);
        decode(&h);
    }
    OK(lim_decoder_free(h.paged));
    OK(lim_decoder_free(h.plain));
    OK(lim_engine_free(engine));
    drop(&key), drop(&value);
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : seed_of_now();
    printf("paged      seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < cases(32); i++) server(i % 2 ? 3 : 1);
    CHECK(test_share() < 100 || (forks > 20 && truncated > 5 && freed > 5 && moved > 20 && replaced > 5 && reused > 20 && deceptive > 3 && sparse_rows > 200),
          "%d forks, %d truncated, %d freed, %d moved, %d replaced, %d reused, %d deceptive, %d sparse: the test tests little", (int)forks,
          (int)truncated, (int)freed, (int)moved, (int)replaced, (int)reused, (int)deceptive, (int)sparse_rows);
    return finish("paged");
}
