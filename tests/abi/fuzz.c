/* The ABI's structures at the hands of chance: right ones, of which bytes choose what is wrong, one call after another.
 *
 * Bytes are a host's decisions. Whatever they are, a call returns a status of the header's, a refusal has a text and has changed
 * nothing, and nobody reads or writes where a host has no memory. What the arguments state of the host's memory has to be there,
 * as the header says: where it would be more than this host has, the call is not made.
 *
 * With clang's -fsanitize=fuzzer this is a target of libFuzzer (fuzz.sh); else it is run with random bytes: fuzz SECONDS [SEED]. */
#include <math.h>
#include <sys/mman.h>

#include "small.h"

enum { LAYERS = 4,
       ROWS = 4 };
static const size_t kRoom = (size_t)1 << 28; /* of each array: address space, of which little is ever touched */

/* Decisions, as long as there are any; then zeros. */
typedef struct bytes {
    const uint8_t *at, *end;
} bytes;

static uint8_t one(bytes *b) { return b->at < b->end ? *b->at++ : 0; }

static uint64_t word(bytes *b, int n) {
    uint64_t x = 0;
    for (int i = 0; i < n; i++) x |= (uint64_t)one(b) << (8 * i);
    return x;
}

static uint64_t number(bytes *b) {
    static const uint64_t odd[] = {0, 1, (uint64_t)-1, 2, 3, 16, 31, 32, 33, 64, 256, 257, 4096, INT32_MAX, (uint64_t)INT32_MIN, INT64_MAX, (uint64_t)INT64_MIN, 1ull << 24, 1ull << 33, 1ull << 57, 0x7ff8000000000000, 0x7fc00000, 0x7f800000, 0xff800000};
    uint8_t               kind = one(b);
    if (kind < 128) return kind;
    if (kind < 200) return odd[kind % (sizeof odd / sizeof *odd)];
    return word(b, kind < 220 ? 2 : kind < 240 ? 4
                                               : 8);
}

/* The host's memory. */
enum { QUERY,
       KEY,
       VALUE,
       OUTPUT,
       ARRAYS };
static char     *room[ARRAYS];
static int32_t  *lengths, *query_positions, *positions, *table;
static uint16_t *mask;
static float    *slopes, *sinks;
static uint64_t *sequences;
static char     *edge; /* a structure ends where memory does */

static void *reserve(size_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) abort();
    return at;
}

static void require(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fuzz: %s; last error: %s\n", what, lim_last_error());
    abort();
}

static void set_up(void) {
    static int done;
    if (done++) return;
    for (int i = 0; i < ARRAYS; i++) room[i] = reserve(kRoom);
    for (size_t i = 0; i < 1 << 18; i++) ((float *)(void *)room[QUERY])[i] = ((float *)(void *)room[KEY])[i] = ((float *)(void *)room[VALUE])[i] = (float)(i % 17) / 8 - 1;
    lengths = reserve(kRoom), query_positions = reserve(kRoom), positions = reserve(kRoom), table = reserve(kRoom), mask = reserve(kRoom);
    slopes = reserve(kRoom), sinks = reserve(kRoom), sequences = reserve(kRoom);
    edge = reserve(3 * 4096);
    edge += 2 * 4096;
    if (mprotect(edge, 4096, PROT_NONE) != 0) abort();
}

/* A structure right before memory ends, of the size that it states where that is one. */
static void *at_edge(const void *from, size_t known, bytes *b) {
    size_t size = known, stated = known;
    switch (one(b) % 8) {
    case 0: stated = size = 8 + one(b) * 4 / 8 * 8; break;
    case 1: stated = size = known + one(b) * 8u; break;
    case 2: stated = (size_t)number(b), size = 4096; break;
    default: break;
    }
    char *to = edge - size;
    memset(to, 0, size);
    memcpy(to, from, known < size ? known : size);
    if (size > known && one(b) % 4 == 0) to[known + one(b) % (size - known)] = 1;
    memcpy(to, &stated, sizeof stated);
    return to;
}

static long accepted, refused; /* calls of lim_decoder_attend() */

static lim_status answered(lim_status status) {
    require(status >= LIM_OK && status <= LIM_ERROR_DEVICE, "a status that is none");
    require(status != LIM_ERROR_INTERNAL, "a fault of the library");
    require(status == LIM_OK || *lim_last_error(), "refused without a text");
    return status;
}

/* Bytes that an array takes, or more than there are. A negative stride, which the library ignores where it is not taken, makes up for no other. */
static size_t extent(double row, double count0, double stride0, double count1, double stride1, double count2, double stride2) {
    double size = row + fmax(count0 - 1, 0) * fabs(stride0) + fmax(count1 - 1, 0) * fabs(stride1) + fmax(count2 - 1, 0) * fabs(stride2);
    return size < (double)kRoom ? (size_t)size : kRoom;
}

static lim_decoder_params shape; /* of the decoder: what a call's zeros mean */

/* Whether this host has the memory that a call states, and the patience. */
static int has(lim_attention call) {
    lim_attention *a = &call;
    if (a->n_slots == 0) a->n_slots = shape.capacity;
    if (a->heads == 0) a->heads = shape.heads;
    if (a->kv_heads == 0) a->kv_heads = shape.kv_heads;
    double pages = a->table ? 64 : a->n_rows, slots = a->table ? a->page_size : (double)a->n_slots;
    if (a->table && a->n_pages > 64) return 0;
    if (a->n_slots > 1 << 14 || a->n_rows > ROWS || (a->table && a->table_stride > 1 << 14)) return 0;
    if (fabs((double)a->positions_row_stride) > 1 << 14 || fabs((double)a->mask_row_stride) > 1 << 14) return 0;
    double row = 4 * LIM_MAX_HEAD_DIM;
    return extent(row, a->n_rows, (double)a->query_row_stride, a->heads, (double)a->query_head_stride, 0, 0) < kRoom &&
           extent(row, a->n_rows, (double)a->output_row_stride, a->heads, (double)a->output_head_stride, 0, 0) < kRoom &&
           extent(row, pages, (double)a->key_page_stride, slots, (double)a->key_token_stride, a->kv_heads, (double)a->key_head_stride) < kRoom &&
           extent(row, pages, (double)a->value_page_stride, slots, (double)a->value_token_stride, a->kv_heads, (double)a->value_head_stride) < kRoom &&
           a->value_dim <= 1 << 20;
}

static lim_attention right(bytes *b) {
    lim_attention a = {.struct_size = sizeof a};
    a.layer = one(b) % LAYERS, a.n_rows = 1 + one(b) % ROWS;
    a.kv_heads = 1 + one(b) % 3, a.heads = a.kv_heads * (1 + one(b) % 4), a.head_dim = 32, a.value_dim = 32;
    a.key_dtype = one(b) % 5, a.value_dtype = one(b) % 5, a.query_dtype = one(b) % 3, a.output_dtype = one(b) % 3;
    a.query = room[QUERY], a.key = room[KEY], a.value = room[VALUE], a.output = room[OUTPUT];
    a.query_head_stride = a.output_head_stride = a.key_head_stride = a.value_head_stride = 128;
    a.query_row_stride = a.output_row_stride = a.key_token_stride = a.value_token_stride = 128 * 16;
    a.n_slots = 1 + one(b);
    for (int r = 0; r < ROWS; r++) {
        lengths[r] = (int32_t)(1 + one(b) % a.n_slots), query_positions[r] = lengths[r] - 1;
        sequences[r] = one(b) % 8;
    }
    uint8_t with = one(b);
    a.lengths = lengths;
    if (with & 1) {
        a.page_size = 1 << one(b) % 6, a.table = table, a.table_stride = (a.n_slots + a.page_size - 1) / a.page_size;
        for (int64_t i = 0; i < a.table_stride * ROWS; i++) table[i] = (int32_t)(i * 7 % 64);
        a.key_page_stride = a.value_page_stride = 2048 * a.page_size;
        if (with & 2) a.n_pages = 64;
    } else if (with & 2) {
        a.key_page_stride = a.value_page_stride = 2048 * 512;
    }
    if (with & 4) a.sequences = sequences;
    if (with & 8) a.lengths = NULL, a.query_positions = query_positions;
    if (with & 24 && a.query_positions) {
        a.positions = positions;
        for (int64_t i = 0; i < a.n_slots; i++) positions[i] = (int32_t)(i ^ (one(b) & 1));
    }
    if (with & 32) {
        a.mask = mask;
        for (int64_t i = 0; i < a.n_slots; i++) mask[i] = i % 5 == 1 ? 0xfc00 : 0;
        if (with & 64) a.alibi_slopes = slopes;
    }
    if (with & 128) a.sinks = sinks;
    return a;
}

static void attend(lim_decoder *decoder, bytes *b) {
    lim_attention a = right(b);
    /* Fields but struct_size and addresses: those are wrong by a little, or nobody's. */
    for (int wrong = one(b) % 4; wrong > 0; wrong--) {
        size_t   at = 8 + one(b) * 4u % (sizeof a - 8);
        size_t   last = offsetof(lim_attention, output) + 8;
        int      pointer = (at >= offsetof(lim_attention, query) && at < last) || (at >= offsetof(lim_attention, lengths) && at < offsetof(lim_attention, heads)) ||
                           (at >= offsetof(lim_attention, sinks) && at < offsetof(lim_attention, table_stride)) || (at >= offsetof(lim_attention, stream) && at < offsetof(lim_attention, positions_row_stride)) ||
                           (at >= offsetof(lim_attention, mask) && at < offsetof(lim_attention, mask_row_stride)) ||
                           (at >= offsetof(lim_attention, alibi_slopes) && at < offsetof(lim_attention, key_scale)) || (at >= offsetof(lim_attention, sequences) && at < offsetof(lim_attention, n_pages));
        uint64_t x = number(b);
        if (pointer) {
            uint64_t old;
            at = at / 8 * 8;
            memcpy(&old, (char *)&a + at, sizeof old);
            x = x < 64 ? (old ? old + x : 0) : x < 128 ? x - 64
                                                       : 0xfff0000000000000ull | x << 4;
            memcpy((char *)&a + at, &x, 8);
        } else {
            memcpy((char *)&a + at, &x, at % 8 == 0 && one(b) % 2 ? 8 : 4);
        }
    }
    /* An output that lies on something else that is stated. */
    const void *stated_arrays[] = {a.lengths, a.query_positions, a.positions, a.table, a.mask, a.alibi_slopes, a.sinks, a.sequences};
    const void *under = one(b) % 16 == 0 ? stated_arrays[one(b) % 8] : NULL;
    if (under) a.output = (char *)(uintptr_t)under - one(b) % 4 * 4;
    for (int wrong = one(b) % 8 == 0; wrong > 0; wrong--) {
        int32_t *arrays[] = {lengths, query_positions, positions, table};
        arrays[one(b) % 4][one(b) % 8] = (int32_t)number(b);
    }
    if (!has(a)) return;
    /* Of pages that there are not, the library is told; where the structure ends before it can be, there are none. */
    lim_attention *stated = at_edge(&a, sizeof a, b);
    const int      tells = stated->struct_size >= sizeof a;
    for (int i = 0; i < ROWS << 14 && a.table && !(tells && a.n_pages); i++) {
        if (table[i] < 64) continue;
        if (tells)
            a.n_pages = stated->n_pages = 64;
        else
            table[i] = 63;
    }
    char      before[4096];
    lim_stats was = {.struct_size = sizeof was}, is = was;
    require(lim_decoder_stats(decoder, &was) == LIM_OK, "stats");
    memcpy(before, room[OUTPUT], sizeof before);
    if (answered(lim_decoder_attend(decoder, stated)) == LIM_OK) {
        require(!under || (under == a.sequences && stated->struct_size <= offsetof(lim_attention, sequences)), "an output on what is read is accepted");
        accepted++;
        return;
    }
    refused++;
    require(lim_decoder_stats(decoder, &is) == LIM_OK, "stats");
    require(!memcmp(&was, &is, sizeof is), "a refused call was counted");
    require(!memcmp(before, room[OUTPUT], sizeof before), "a refused call has written");
}

static lim_engine *engine_of(bytes *b) {
    static const int32_t layers[] = {1, 2};
    lim_engine_params    params;
    lim_engine          *engine = NULL;
    require(lim_engine_default_params(&params, sizeof params) == LIM_OK, "defaults");
    params.n_layers = LAYERS, params.n_threads = 1, params.budget = 1 + one(b) % 32, params.interval = 1 + one(b) % 3;
    params.policy = one(b) % 2;
    if (one(b) % 4) params.layers = layers, params.layers_count = 2;
    if (one(b) % 4 == 0) { /* something is wrong; not where its files are: they would be written */
        size_t   at = 8 + one(b) * 4u % (offsetof(lim_engine_params, model) - 8);
        uint64_t x = number(b);
        if (at < 16)
            params.layers = NULL;
        else if (at >= offsetof(lim_engine_params, logger) && at < offsetof(lim_engine_params, n_layers))
            params.logger_user = (void *)(uintptr_t)x;
        else
            memcpy((char *)&params + at, &x, 4);
    }
    if (answered(lim_engine_create(at_edge(&params, sizeof params, b), &engine)) != LIM_OK) return NULL;
    return engine;
}

static void sets(lim_decoder *decoder, bytes *b) {
    static int32_t set[1 << 15]; /* more than any row here sees */
    uint64_t       capacity = number(b);
    int64_t        count = -1;
    int32_t        row = (int32_t)number(b);
    set[0] = -7;
    lim_status status = answered(lim_decoder_token_set(decoder, row, capacity ? set : NULL, (int64_t)capacity, &count));
    if (status != LIM_OK) {
        require(set[0] == -7, "a refused call has written a set");
        return;
    }
    require(count >= 0 && count < 1 << 15 && (!capacity || (uint64_t)count <= capacity), "a set's size");
    for (int64_t i = 0; capacity && i < count; i++) require(set[i] >= 0 && set[i] < 1 << 14 && (i == 0 || set[i] > set[i - 1]), "a set that does not ascend");
}

/* A text that is delivered: whole, or not at all. */
static void texts(lim_engine *engine, bytes *b) {
    static char buffer[1 << 16];
    size_t      size = (size_t)number(b), needed = 0;
    int         asks = one(b) % 4 != 0;
    if (size > sizeof buffer) size = sizeof buffer;
    memset(buffer, 'x', sizeof buffer);
    if (one(b) % 2) {
        lim_status status = answered(lim_engine_stats_json(engine, size ? buffer : NULL, size, asks ? &needed : NULL));
        if (status == LIM_OK && size) require(buffer[0] == '{' && strlen(buffer) < size && (!asks || strlen(buffer) + 1 == needed), "a report");
        if (status == LIM_ERROR_SIZE) require(buffer[0] == 'x' && (!asks || needed > size), "a report that does not fit");
        return;
    }
    /* A profile, and what was made of it, with numbers that are others. */
    char profile[1 << 14];
    strcpy(profile, SMALL_PROFILE);
    for (int round = 0; round < 2; round++) {
        for (int wrong = one(b) % 4; wrong > 0; wrong--) {
            size_t at = word(b, 2) % strlen(profile);
            while (profile[at] && (profile[at] < '0' || profile[at] > '9')) at++; /* mostly a number's */
            if (profile[at]) profile[at] = "0123456789-.e,]}"[one(b) % 16];
        }
        if (answered(lim_profile_for_quality(profile, one(b) % 8 ? 0.01 : (double)(int64_t)number(b), buffer, sizeof buffer, &needed)) != LIM_OK) return;
        require(strlen(buffer) + 1 == needed, "a profile");
        if (needed > sizeof profile) return;
        memcpy(profile, buffer, needed);
    }
}

static void trials(lim_engine *engine, bytes *b) {
    static int32_t layers[LIM_MAX_SELECTION_LAYERS + 1];
    int64_t        count = one(b) % 4 ? one(b) % 4 : (int64_t)number(b);
    for (int i = 0; i < 4; i++) layers[i] = one(b) % 4 ? i + one(b) % 2 : (int32_t)number(b);
    char *at = (char *)layers + (one(b) % 8 == 0);
    answered(lim_engine_try(engine, one(b) % 8 ? (const int32_t *)(const void *)at : NULL, count));
}

static void asks(lim_engine *engine, lim_decoder *decoder, bytes *b) {
    uint64_t generation;
    int32_t  eager = -1;
    require(answered(lim_decoder_poll(decoder, &generation, &eager)) == LIM_OK && eager == 0, "a poll");
    require(*lim_status_name((lim_status)number(b)) == 'L', "a status's name");
    const lim_api *api = lim_get_api((uint32_t)number(b));
    require(!api || api->struct_size == sizeof *api, "a table");
    lim_engine *host = engine;
    require(lim_ggml_engine(&host) == LIM_ERROR_UNSUPPORTED && host == engine, "a host's engine");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    set_up();
    bytes       b = {data, data + size};
    lim_engine *engine = engine_of(&b);
    if (!engine) return 0;
    shape = (lim_decoder_params){.struct_size = sizeof shape, .device = LIM_DEVICE_CPU, .max_rows = ROWS};
    if (one(&b) % 4 == 0) {
        size_t   at = 8 + one(&b) * 4u % (sizeof shape - 8);
        uint64_t x = number(&b);
        memcpy((char *)&shape + at, &x, 4);
        if (shape.device >= 0) shape.device = LIM_DEVICE_CPU; /* a GPU is not what is tried here */
        if (shape.max_rows > 64) shape.max_rows = 64;
    }
    lim_decoder *decoder = NULL;
    uint64_t     work;
    answered(lim_decoder_work_size(engine, at_edge(&shape, sizeof shape, &b), &work));
    if (answered(lim_decoder_create(engine, at_edge(&shape, sizeof shape, &b), &decoder)) == LIM_OK) {
        while (b.at < b.end) {
            switch (one(&b) % 32) {
            case 0: answered(lim_decoder_reset(decoder)); break;
            case 1:
            case 4:
            case 5: sets(decoder, &b); break;
            case 6: texts(engine, &b); break;
            case 7: trials(engine, &b); break;
            case 8: asks(engine, decoder, &b); break;
            case 9: answered(lim_engine_ablate(engine, -1, -1)); break;
            case 2: answered(lim_engine_ablate(engine, (int32_t)number(&b), (int32_t)number(&b))); break;
            case 3: {
                lim_stats stats = {.struct_size = sizeof stats};
                char     *at = at_edge(&stats, sizeof stats, &b);
                answered(one(&b) % 2 ? lim_engine_stats(engine, (void *)at) : lim_decoder_stats(decoder, (void *)at));
                break;
            }
            default: attend(decoder, &b); break;
            }
        }
        require(lim_decoder_free(decoder) == LIM_OK, "the decoder's end");
    }
    require(lim_engine_free(engine) == LIM_OK, "the engine's end");
    return 0;
}

#ifndef LIBFUZZER
int main(int argc, char **argv) {
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : seed_of_now();
    time_t   end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 4);
    uint8_t  data[1024];
    int      n = 0;
    printf("fuzz       seed %llu\n", (unsigned long long)seed);
    fflush(stdout); /* lest it is lost with the process */
    for (; time(NULL) < end; n++) {
        size_t size = (size_t)random_int(&seed, 0, sizeof data);
        for (size_t i = 0; i < size; i++) data[i] = (uint8_t)random_bits(&seed);
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("fuzz       %6d hosts, %ld calls accepted, %ld refused\n", n, accepted, refused);
    return accepted == 0 || refused < accepted / 100;
}
#endif
