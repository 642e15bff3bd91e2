/* Wrong arguments, one by one: the status, a text that names the argument and the value, and nothing changed. */
#include <math.h>

#include "small.h"

static small        s;
static lim_engine  *engine;
static lim_decoder *decoder;
static const char  *odd(const void *p) { return (const char *)p + 1; }

typedef struct attention_case {
    lim_status  status;
    const char *name, *value; /* both in the text */
    void (*spoil)(lim_attention *a);
} attention_case;

#define CASE(status, name, value, code) {status, name, value, spoil_##code}
#define SPOIL(code, ...) \
    static void spoil_##code(lim_attention *a) { __VA_ARGS__; }

enum { MINUS_INFINITY = 0xfc00 }; /* in f16 */

static int32_t positions[SMALL_SLOTS], numbers_of[2];
static float   two_rows[2 * SMALL_HEADS * SMALL_DIM];
static float   numbers[SMALL_HEADS];
static char    quantised[SMALL_SLOTS * SMALL_KV_HEADS * 68];

SPOIL(size_0, a->struct_size = 0)
SPOIL(size_small, a->struct_size = offsetof(lim_attention, sequences) - 4)
SPOIL(size_huge, a->struct_size = (size_t)-1)
SPOIL(reserved, a->reserved = 5)
SPOIL(layer_low, a->layer = -1)
SPOIL(layer_high, a->layer = 4)
SPOIL(heads_0, a->heads = 0)
SPOIL(heads_many, a->heads = 514)
SPOIL(heads_negative, a->heads = INT32_MIN)
SPOIL(kv_0, a->kv_heads = 0)
SPOIL(kv_many, a->kv_heads = 8)
SPOIL(kv_odd, a->kv_heads = 3)
SPOIL(key_dim_0, a->head_dim = 0)
SPOIL(key_dim_odd, a->head_dim = 40)
SPOIL(key_dim_big, a->head_dim = 272)
SPOIL(value_dim_negative, a->value_dim = -16)
SPOIL(value_dim_odd, a->value_dim = 63)
SPOIL(key_dim_quantised, a->key_dtype = LIM_DTYPE_Q8_0; a->head_dim = 48)
SPOIL(value_dim_quantised, a->value_dtype = LIM_DTYPE_Q4_0; a->value_dim = 16)
SPOIL(slots_0, a->n_slots = 0)
SPOIL(slots_negative, a->n_slots = -64)
SPOIL(slots_huge, a->n_slots = INT64_MAX)
SPOIL(rows_0, a->n_rows = 0)
SPOIL(rows_many, a->n_rows = 2)
SPOIL(query_position_negative, numbers_of[0] = -1; a->query_positions = numbers_of)
SPOIL(query_position_huge, numbers_of[0] = INT32_MAX; a->query_positions = numbers_of)
SPOIL(query_position_odd, a->query_positions = (const int32_t *)(const void *)odd(numbers_of))
SPOIL(nothing_seen, a->query_positions = NULL)
SPOIL(both_seen, a->lengths = numbers_of)
SPOIL(length_negative, a->query_positions = NULL; numbers_of[0] = -1; a->lengths = numbers_of)
SPOIL(length_huge, a->query_positions = NULL; numbers_of[0] = SMALL_SLOTS + 1; a->lengths = numbers_of)
SPOIL(positions_alone, a->query_positions = NULL; a->lengths = numbers_of; a->positions = positions)
/* Pages: the store as four of them. */
static int32_t pages[2][4];
static void    in_pages(lim_attention *a) {
    a->query_positions = NULL, a->lengths = numbers_of, a->page_size = 16, a->table = pages[0], a->table_stride = 4;
    a->key_page_stride = 16 * a->key_token_stride, a->value_page_stride = 16 * a->value_token_stride;
}
SPOIL(page_size, in_pages(a); a->page_size = 24)
SPOIL(page_size_0, in_pages(a); a->page_size = 0)
SPOIL(page_size_negative, in_pages(a); a->page_size = INT32_MIN)
SPOIL(page_size_huge, in_pages(a); a->page_size = 1 << 25)
SPOIL(table_odd, in_pages(a); a->table = (const int32_t *)(const void *)odd(pages))
SPOIL(table_low, in_pages(a); a->table = (const int32_t *)16)
SPOIL(page_negative, in_pages(a); pages[0][3] = -1)
SPOIL(page_high, in_pages(a); pages[0][2] = 4; a->n_pages = 4)
SPOIL(page_far, in_pages(a); pages[0][1] = INT32_MAX; a->key_page_stride = (int64_t)1 << 40)
SPOIL(pages_negative, in_pages(a); a->n_pages = -1)
SPOIL(pages_huge, in_pages(a); a->n_pages = (int64_t)1 << 31)
SPOIL(pages_alone, a->n_pages = 4)
SPOIL(page_stride_0, in_pages(a); a->key_page_stride = 0)
SPOIL(page_stride_negative, in_pages(a); a->value_page_stride = -8192)
SPOIL(page_stride_odd, in_pages(a); a->key_page_stride = 8193)
SPOIL(page_token_stride, in_pages(a); a->key_token_stride = 8)
SPOIL(page_overlap, in_pages(a); a->output = (char *)a->key + 32768 - 256)
SPOIL(page_masked, in_pages(a); pages[0][2] = -7; s.mask[40] = 0; a->mask = s.mask)
SPOIL(page_placed, in_pages(a); pages[0][0] = -3; a->lengths = NULL; numbers_of[0] = 63; a->query_positions = numbers_of; a->positions = positions)
SPOIL(sequences_odd, a->sequences = (const uint64_t *)(const void *)odd(pages))
SPOIL(sequences_low, a->sequences = (const uint64_t *)8)
SPOIL(stream, a->stream = (void *)2)
SPOIL(key_scale, a->key_scale = 2)
SPOIL(value_scale, a->value_scale = 0.5f)
SPOIL(value_scale_nan, a->value_scale = NAN)
SPOIL(query_null, a->query = NULL)
SPOIL(key_null, a->key = NULL)
SPOIL(value_null, a->value = NULL)
SPOIL(output_null, a->output = NULL)
SPOIL(query_low, a->query = (void *)8)
SPOIL(key_high, a->key = (void *)(uintptr_t)0xfffffffffffffff0)
SPOIL(key_end, a->key = (void *)(uintptr_t)0x7ffffffffffffffc)
SPOIL(query_odd, a->query = odd(a->query))
SPOIL(key_odd, a->key_dtype = LIM_DTYPE_F16; a->key = odd(a->key))
SPOIL(value_odd, a->value_dtype = LIM_DTYPE_Q8_0; a->value = odd(quantised))
SPOIL(output_odd, a->output = (void *)odd(a->output))
SPOIL(query_dtype, a->query_dtype = 6)
SPOIL(query_q8, a->query_dtype = LIM_DTYPE_Q8_0)
SPOIL(key_fp8, a->key_dtype = LIM_DTYPE_FP8)
SPOIL(output_q4, a->output_dtype = LIM_DTYPE_Q4_0)
SPOIL(key_dtype, a->key_dtype = -1)
SPOIL(value_dtype, a->value_dtype = 1000)
SPOIL(query_stride, a->query_head_stride = 128)
SPOIL(query_stride_odd, a->query_head_stride = 258)
SPOIL(key_stride_0, a->key_token_stride = 0)
SPOIL(key_stride_negative, a->key_token_stride = -512)
SPOIL(key_stride_odd, a->key_head_stride = 257)
SPOIL(key_stride_overflow, a->key_token_stride = INT64_MAX - 3)
SPOIL(key_stride_wrap, a->key_token_stride = (int64_t)1 << 60)
SPOIL(value_stride_overflow, a->value_head_stride = INT64_MAX / 4 * 4)
SPOIL(value_stride_small, a->value_token_stride = 252)
SPOIL(output_stride, a->output_head_stride = -256)
SPOIL(overlap_query, a->output = (void *)a->query)
SPOIL(overlap_key, a->output = (char *)a->key + 4096)
SPOIL(overlap_value, a->output = (char *)a->value + 256)
/* Output on what is read while it is written, or later. */
static _Alignas(8) char room[8192];
static void *in_room(const void *array, size_t size) { return memcpy(room + 512, array, size); }
SPOIL(overlap_lengths, in_pages(a); a->lengths = in_room(numbers_of, sizeof numbers_of); a->output = room)
SPOIL(overlap_query_positions, numbers_of[0] = SMALL_SLOTS - 1; a->query_positions = in_room(numbers_of, sizeof numbers_of); a->output = room)
SPOIL(overlap_positions, a->positions = in_room(positions, sizeof positions); a->output = room + 512 + sizeof positions - 4)
SPOIL(overlap_mask, a->mask = in_room(s.mask, sizeof s.mask); a->output = room + 512 + sizeof s.mask - 4)
SPOIL(overlap_table, in_pages(a); a->table = in_room(pages, sizeof pages); a->output = room + 512 + 12)
SPOIL(overlap_slopes, a->mask = s.mask; a->alibi_slopes = in_room(s.slopes, sizeof s.slopes); a->output = room + 512 + 12)
SPOIL(overlap_sinks, a->sinks = in_room(s.sinks, sizeof s.sinks); a->output = room + 512 + 12)
SPOIL(overlap_sequences, static const uint64_t text = 5; a->sequences = in_room(&text, sizeof text); a->output = room + 512 + 4)
SPOIL(positions_twice, positions[9] = 3; a->positions = positions)
SPOIL(positions_far_twice, positions[9] = 7; positions[11] = 7; positions[0] = 100000; numbers_of[0] = 1000000; a->query_positions = numbers_of; a->positions = positions)
SPOIL(positions_low, positions[20] = -2; a->positions = positions)
SPOIL(positions_odd, a->positions = (const int32_t *)(const void *)odd(positions))
SPOIL(positions_low_address, a->positions = (const int32_t *)16)
SPOIL(mask_odd, a->mask = (const uint16_t *)(const void *)odd(s.mask))
SPOIL(slopes_alone, a->alibi_slopes = s.slopes)
SPOIL(slopes_nan, a->mask = s.mask; numbers[1] = NAN; a->alibi_slopes = numbers)
SPOIL(slopes_infinite, a->mask = s.mask; numbers[2] = -INFINITY; a->alibi_slopes = numbers)
SPOIL(slopes_odd, a->mask = s.mask; a->alibi_slopes = (const float *)(const void *)odd(s.slopes))
SPOIL(sinks_nan, numbers[3] = NAN; a->sinks = numbers)
SPOIL(sinks_infinite, numbers[0] = INFINITY; a->sinks = numbers)
SPOIL(scale_nan, a->scale = NAN)
SPOIL(scale_infinite, a->scale = -INFINITY)
SPOIL(softcap_nan, a->softcap = NAN)
SPOIL(softcap_infinite, a->softcap = INFINITY)
SPOIL(softcap_negative, a->softcap = -30)

static const attention_case attention_cases[] = {
    CASE(LIM_ERROR_ARGUMENT, "struct_size", "= 0 ", size_0),
    CASE(LIM_ERROR_ARGUMENT, "struct_size", "is not in", size_small),
    CASE(LIM_ERROR_ARGUMENT, "struct_size", "18446744073709551615", size_huge),
    CASE(LIM_ERROR_ARGUMENT, "reserved", "= 5", reserved),
    CASE(LIM_ERROR_ARGUMENT, "layer", "= -1", layer_low),
    CASE(LIM_ERROR_ARGUMENT, "layer", "= 4 is not in 0 .. 3", layer_high),
    CASE(LIM_ERROR_ARGUMENT, "heads", "= 0", heads_0),
    CASE(LIM_ERROR_ARGUMENT, "heads", "= 514", heads_many),
    CASE(LIM_ERROR_ARGUMENT, "heads", "= -2147483648", heads_negative),
    CASE(LIM_ERROR_ARGUMENT, "kv_heads", "= 0", kv_0),
    CASE(LIM_ERROR_ARGUMENT, "kv_heads", "= 8", kv_many),
    CASE(LIM_ERROR_ARGUMENT, "kv_heads", "= 3 does not divide heads = 4", kv_odd),
    CASE(LIM_ERROR_ARGUMENT, "head_dim", "= 0", key_dim_0),
    CASE(LIM_ERROR_ARGUMENT, "head_dim", "= 40", key_dim_odd),
    CASE(LIM_ERROR_ARGUMENT, "head_dim", "= 272", key_dim_big),
    CASE(LIM_ERROR_ARGUMENT, "value_dim", "= -16", value_dim_negative),
    CASE(LIM_ERROR_ARGUMENT, "value_dim", "= 63", value_dim_odd),
    CASE(LIM_ERROR_ARGUMENT, "head_dim", "= 48 is not a multiple of 32", key_dim_quantised),
    CASE(LIM_ERROR_ARGUMENT, "value_dim", "= 16 is not a multiple of 32", value_dim_quantised),
    CASE(LIM_ERROR_ARGUMENT, "n_slots", "= 0", slots_0),
    CASE(LIM_ERROR_ARGUMENT, "n_slots", "= -64", slots_negative),
    CASE(LIM_ERROR_ARGUMENT, "n_slots", "= 9223372036854775807", slots_huge),
    CASE(LIM_ERROR_ARGUMENT, "n_rows", "= 0", rows_0),
    CASE(LIM_ERROR_ARGUMENT, "n_rows", "= 2 is not in 1 .. 1", rows_many),
    CASE(LIM_ERROR_ARGUMENT, "query_positions[0]", "= -1", query_position_negative),
    CASE(LIM_ERROR_ARGUMENT, "query_positions[0]", "= 2147483647", query_position_huge),
    CASE(LIM_ERROR_ARGUMENT, "query_positions", "multiple of 4", query_position_odd),
    CASE(LIM_ERROR_ARGUMENT, "lengths = NULL", "query_positions = NULL", nothing_seen),
    CASE(LIM_ERROR_ARGUMENT, "lengths", "query_positions is not NULL", both_seen),
    CASE(LIM_ERROR_ARGUMENT, "lengths[0]", "= -1", length_negative),
    CASE(LIM_ERROR_ARGUMENT, "lengths[0]", "= 65 is not in 0 .. n_slots = 64", length_huge),
    CASE(LIM_ERROR_ARGUMENT, "positions", "query_positions = NULL", positions_alone),
    CASE(LIM_ERROR_ARGUMENT, "page_size", "= 24", page_size),
    CASE(LIM_ERROR_ARGUMENT, "page_size", "= 0 is not a power of two", page_size_0),
    CASE(LIM_ERROR_ARGUMENT, "page_size", "= -2147483648", page_size_negative),
    CASE(LIM_ERROR_ARGUMENT, "page_size", "= 33554432", page_size_huge),
    CASE(LIM_ERROR_ARGUMENT, "table", "multiple of 4", table_odd),
    CASE(LIM_ERROR_ARGUMENT, "table", "= 0x10", table_low),
    CASE(LIM_ERROR_ARGUMENT, "table[0][3]", "= -1 is negative", page_negative),
    CASE(LIM_ERROR_ARGUMENT, "table[0][2]", "= 4 is not in 0 .. 3", page_high),
    CASE(LIM_ERROR_ARGUMENT, "key_page_stride", "= 1099511627776 times 2147483648 pages", page_far),
    CASE(LIM_ERROR_ARGUMENT, "n_pages", "= -1", pages_negative),
    CASE(LIM_ERROR_ARGUMENT, "n_pages", "= 2147483648", pages_huge),
    CASE(LIM_ERROR_ARGUMENT, "n_pages", "= 4, but table = NULL", pages_alone),
    CASE(LIM_ERROR_ARGUMENT, "key_page_stride", "= 0", page_stride_0),
    CASE(LIM_ERROR_ARGUMENT, "value_page_stride", "= -8192", page_stride_negative),
    CASE(LIM_ERROR_ARGUMENT, "key_page_stride", "= 8193", page_stride_odd),
    CASE(LIM_ERROR_ARGUMENT, "key_token_stride", "= 8", page_token_stride),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps key = 0x", page_overlap),
    CASE(LIM_ERROR_ARGUMENT, "table[0][2]", "= -7", page_masked),
    CASE(LIM_ERROR_ARGUMENT, "table[0][0]", "= -3", page_placed),
    CASE(LIM_ERROR_ARGUMENT, "sequences", "multiple of 8", sequences_odd),
    CASE(LIM_ERROR_ARGUMENT, "sequences", "= 0x8", sequences_low),
    CASE(LIM_ERROR_UNSUPPORTED, "stream", "= 0x2 is for GPUs only", stream),
    CASE(LIM_ERROR_UNSUPPORTED, "key_scale", "= 2 is for GPUs only", key_scale),
    CASE(LIM_ERROR_UNSUPPORTED, "value_scale", "= 0.5 is for GPUs only", value_scale),
    CASE(LIM_ERROR_ARGUMENT, "value_scale", "= NaN", value_scale_nan),
    CASE(LIM_ERROR_ARGUMENT, "query", "= NULL", query_null),
    CASE(LIM_ERROR_ARGUMENT, "key", "= NULL", key_null),
    CASE(LIM_ERROR_ARGUMENT, "value", "= NULL", value_null),
    CASE(LIM_ERROR_ARGUMENT, "output", "= NULL", output_null),
    CASE(LIM_ERROR_ARGUMENT, "query", "= 0x8", query_low),
    CASE(LIM_ERROR_ARGUMENT, "key", "= 0xfffffffffffffff0", key_high),
    CASE(LIM_ERROR_ARGUMENT, "key", "= 0x7ffffffffffffffc", key_end),
    CASE(LIM_ERROR_ARGUMENT, "query", "multiple of 4", query_odd),
    CASE(LIM_ERROR_ARGUMENT, "key", "multiple of 2", key_odd),
    CASE(LIM_ERROR_ARGUMENT, "value", "multiple of 2, as q8_0", value_odd),
    CASE(LIM_ERROR_ARGUMENT, "output", "multiple of 4", output_odd),
    CASE(LIM_ERROR_ARGUMENT, "query_dtype", "= 6", query_dtype),
    CASE(LIM_ERROR_UNSUPPORTED, "key_dtype", "= 5 (fp8)", key_fp8),
    CASE(LIM_ERROR_UNSUPPORTED, "query_dtype", "= 3 (q8_0)", query_q8),
    CASE(LIM_ERROR_UNSUPPORTED, "output_dtype", "= 4 (q4_0)", output_q4),
    CASE(LIM_ERROR_ARGUMENT, "key_dtype", "= -1", key_dtype),
    CASE(LIM_ERROR_ARGUMENT, "value_dtype", "= 1000", value_dtype),
    CASE(LIM_ERROR_ARGUMENT, "query_head_stride", "= 128", query_stride),
    CASE(LIM_ERROR_ARGUMENT, "query_head_stride", "= 258", query_stride_odd),
    CASE(LIM_ERROR_ARGUMENT, "key_token_stride", "= 0", key_stride_0),
    CASE(LIM_ERROR_ARGUMENT, "key_token_stride", "= -512", key_stride_negative),
    CASE(LIM_ERROR_ARGUMENT, "key_head_stride", "= 257", key_stride_odd),
    CASE(LIM_ERROR_ARGUMENT, "key_token_stride", "= 9223372036854775804 times 64 tokens", key_stride_overflow),
    CASE(LIM_ERROR_ARGUMENT, "key_token_stride", "= 1152921504606846976 times 64 tokens", key_stride_wrap),
    CASE(LIM_ERROR_ARGUMENT, "value_head_stride", "= 9223372036854775804 times 2 heads", value_stride_overflow),
    CASE(LIM_ERROR_ARGUMENT, "value_token_stride", "= 252", value_stride_small),
    CASE(LIM_ERROR_ARGUMENT, "output_head_stride", "= -256", output_stride),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps query = 0x", overlap_query),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps key = 0x", overlap_key),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps value = 0x", overlap_value),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps lengths = 0x", overlap_lengths),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps query_positions = 0x", overlap_query_positions),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps positions = 0x", overlap_positions),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps mask = 0x", overlap_mask),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps table = 0x", overlap_table),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps alibi_slopes = 0x", overlap_slopes),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps sinks = 0x", overlap_sinks),
    CASE(LIM_ERROR_ARGUMENT, "output", "overlaps sequences = 0x", overlap_sequences),
    CASE(LIM_ERROR_ARGUMENT, "positions[9]", "= 3 is also positions[3]", positions_twice),
    CASE(LIM_ERROR_ARGUMENT, "positions[9]", "= 7 is also positions[7]", positions_far_twice),
    CASE(LIM_ERROR_ARGUMENT, "positions[20]", "= -2", positions_low),
    CASE(LIM_ERROR_ARGUMENT, "positions", "multiple of 4", positions_odd),
    CASE(LIM_ERROR_ARGUMENT, "positions", "= 0x10", positions_low_address),
    CASE(LIM_ERROR_ARGUMENT, "mask", "multiple of 2", mask_odd),
    CASE(LIM_ERROR_ARGUMENT, "alibi_slopes", "mask = NULL", slopes_alone),
    CASE(LIM_ERROR_ARGUMENT, "alibi_slopes[1]", "= NaN", slopes_nan),
    CASE(LIM_ERROR_ARGUMENT, "alibi_slopes[2]", "= -Inf", slopes_infinite),
    CASE(LIM_ERROR_ARGUMENT, "alibi_slopes", "multiple of 4", slopes_odd),
    CASE(LIM_ERROR_ARGUMENT, "sinks[3]", "= NaN", sinks_nan),
    CASE(LIM_ERROR_ARGUMENT, "sinks[0]", "= +Inf", sinks_infinite),
    CASE(LIM_ERROR_ARGUMENT, "scale", "= NaN", scale_nan),
    CASE(LIM_ERROR_ARGUMENT, "scale", "= -Inf", scale_infinite),
    CASE(LIM_ERROR_ARGUMENT, "softcap", "= NaN", softcap_nan),
    CASE(LIM_ERROR_ARGUMENT, "softcap", "= +Inf", softcap_infinite),
    CASE(LIM_ERROR_ARGUMENT, "softcap", "= -30", softcap_negative),
};

static void expect(lim_status status, lim_status want, const char *name, const char *value) {
    const char *text = lim_last_error();
    CHECK(status == want, "%s = %s: %s, not %s", name, value, lim_status_name(status), lim_status_name(want));
    CHECK(strstr(text, name) && strstr(text, value), "%s %s is not in: %s", name, value, text);
}

static void attention(void) {
    lim_attention good = small_attention(&s);
    OK(lim_decoder_attend(decoder, &good));
    float     output[SMALL_HEADS * SMALL_DIM];
    lim_stats before = {.struct_size = sizeof before}, after = before;
    for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++) {
        const attention_case *c = &attention_cases[i];
        lim_attention         a = good;
        memcpy(positions, s.positions, sizeof positions);
        for (int i = 0; i < 8; i++) pages[i / 4][i % 4] = i % 4;
        for (int h = 0; h < SMALL_HEADS; h++) numbers[h] = 0;
        numbers_of[0] = SMALL_SLOTS;
        memcpy(output, s.output, sizeof output);
        a.layer = 1; /* the step's next, were it right */
        OK(lim_decoder_stats(decoder, &before));
        c->spoil(&a);
        expect(lim_decoder_attend(decoder, &a), c->status, c->name, c->value);
        CHECK(strncmp(lim_last_error(), "lim_decoder_attend: ", 20) == 0, "%s", lim_last_error());
        OK(lim_decoder_stats(decoder, &after));
        CHECK(!memcmp(&before, &after, sizeof before) && !memcmp(output, s.output, sizeof output), "%s %s changed something", c->name, c->value);
    }
    /* What is never taken is ignored: strides of one head, or of one slot. */
    lim_attention one = good;
    const int32_t first = 0;
    one.heads = one.kv_heads = 1, one.n_slots = 1, one.query_positions = &first;
    one.query_row_stride = one.key_page_stride = one.query_head_stride = one.key_head_stride = one.value_head_stride = one.output_head_stride = -1;
    one.key_token_stride = one.value_token_stride = INT64_MIN;
    OK(lim_decoder_attend(decoder, &one));
    CHECK(s.output[0] == s.value[0], "%g", s.output[0]);

    /* Pages in which nothing is seen may be anything; each row has its own part of the table. */
    one = good;
    in_pages(&one);
    numbers_of[0] = numbers_of[1] = 33, pages[0][3] = -5;
    OK(lim_decoder_attend(decoder, &one));
    s.mask[40] = MINUS_INFINITY, pages[0][2] = -5, numbers_of[0] = 48;
    for (int i = 32; i < 48; i++) s.mask[i] = MINUS_INFINITY;
    one.mask = s.mask;
    OK(lim_decoder_attend(decoder, &one));
    for (int i = 32; i < 48; i++) s.mask[i] = 0;

    lim_decoder_params two = one_row;
    lim_decoder       *both = NULL;
    two.max_rows = 2;
    OK(lim_decoder_create(engine, &two, &both));
    one = good;
    in_pages(&one);
    for (int i = 0; i < 8; i++) pages[i / 4][i % 4] = i % 4;
    numbers_of[0] = numbers_of[1] = 64, one.n_rows = 2, one.output = two_rows, one.output_row_stride = sizeof s.output;
    one.table_stride = 3;
    expect(lim_decoder_attend(both, &one), LIM_ERROR_ARGUMENT, "table_stride", "= 3 is not in 4 .. ");
    one.table_stride = 4, pages[1][1] = -2;
    one.query_row_stride = SMALL_DIM * 4; /* rows may overlap */
    one.heads = 2;
    expect(lim_decoder_attend(both, &one), LIM_ERROR_ARGUMENT, "table[1][1]", "= -2");
    pages[1][1] = 1;
    OK(lim_decoder_attend(both, &one));
    one.output_row_stride = SMALL_DIM * 4; /* those of output may not: the second would be written over the first */
    expect(lim_decoder_attend(both, &one), LIM_ERROR_ARGUMENT, "output_row_stride", "and output_head_stride = 256: of 2 rows of 2 heads with 256 bytes each, some overlap");
    one.output_head_stride = 2 * SMALL_DIM * 4; /* a head's rows side by side */
    OK(lim_decoder_attend(both, &one));
    OK(lim_decoder_free(both));

    expect(lim_decoder_attend(decoder, NULL), LIM_ERROR_ARGUMENT, "attention", "NULL");
    expect(lim_decoder_attend(NULL, &good), LIM_ERROR_HANDLE, "decoder", "NULL");
    OK(lim_decoder_attend(decoder, &good));
}

static const int32_t ascending[3] = {0, 2, 3}, doubled[3] = {1, 2, 2}, beyond[2] = {1, 9}, below[2] = {-1, 2};

static char long_text[LIM_MAX_TEXT + 2];

static void engine_params(void) {
    memset(long_text, 'x', LIM_MAX_TEXT + 1);
    static const struct {
        const char *name, *value;
        int         kind;
    } cases[] = {
        {"budget", "0", 0},
        {"budget", "-5", 1},
        {"budget", "16777217", 2},
        {"recency", "NaN", 3},
        {"recency", "-0.1", 4},
        {"recency", "1.5", 5},
        {"recency", "+Inf", 6},
        {"sink_tokens", "-1", 7},
        {"sink_tokens", "2147483647", 8},
        {"policy", "7", 9},
        {"n_layers", "0", 10},
        {"n_layers", "4097", 11},
        {"n_threads", "-1", 12},
        {"n_threads", "1025", 13},
        {"reserved", "3", 14},
        {"layers_count", "-1", 15},
        {"layers_count", "65", 16},
        {"layers", "layers_count = 3", 17},
        {"layers_count", "0", 18},
        {"layers", "2 follows 2", 19},
        {"layers", "layer 9", 20},
        {"layers", "layer -1", 21},
        {"layers", "multiple of 4", 22},
        {"selections", "-1 ", 25},
        {"selections", "65 ", 26},
        {"guard", "-1 ", 27},
        {"guard", "1048577 ", 28},
        {"interval", "0 ", 29},
        {"interval", "65 ", 30},
        {"trace", "-1 ", 31},
        {"trace", "65537 ", 32},
        {"model", "NULL stands for none", 33},
        {"profile", "longer than 4000 bytes", 34},
        {"profile_dir", "\"/nowhere\", but model = NULL", 35},
        {"profile_dir", "but profile is not NULL", 36},
        {"profile", "\"/\" is a folder", 37},
        {"quality", "NaN", 38},
        {"quality", "-0.1 ", 39},
        {"quality", "10.5 ", 40},
        {"quality", "but layers names [0 2]", 41},
        {"quality", "with interval 2", 42},
        {"params.struct_size", "= 8 ", 23},
        {"params.struct_size", "= 4097 ", 24},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lim_engine_params p = small_params();
        switch (cases[i].kind) {
        case 0: p.budget = 0; break;
        case 1: p.budget = -5; break;
        case 2: p.budget = LIM_MAX_BUDGET + 1; break;
        case 3: p.recency = NAN; break;
        case 4: p.recency = -0.1; break;
        case 5: p.recency = 1.5; break;
        case 6: p.recency = INFINITY; break;
        case 7: p.sink_tokens = -1; break;
        case 8: p.sink_tokens = INT32_MAX; break;
        case 9: p.policy = 7; break;
        case 10: p.n_layers = 0; break;
        case 11: p.n_layers = LIM_MAX_LAYERS + 1; break;
        case 12: p.n_threads = -1; break;
        case 13: p.n_threads = LIM_MAX_THREADS + 1; break;
        case 14: p.reserved = 3; break;
        case 15: p.layers = ascending, p.layers_count = -1; break;
        case 16: p.layers = ascending, p.layers_count = 65; break;
        case 17: p.layers_count = 3; break;
        case 18: p.layers = ascending; break;
        case 19: p.layers = doubled, p.layers_count = 3; break;
        case 20: p.layers = beyond, p.layers_count = 2; break;
        case 21: p.layers = below, p.layers_count = 2; break;
        case 22: p.layers = (const int32_t *)(const void *)odd(ascending), p.layers_count = 2; break;
        case 25: p.selections = -1; break;
        case 26: p.selections = LIM_MAX_SELECTION_LAYERS + 1; break;
        case 27: p.guard = -1; break;
        case 28: p.guard = LIM_MAX_GUARD + 1; break;
        case 29: p.interval = 0; break;
        case 30: p.interval = LIM_MAX_INTERVAL + 1; break;
        case 31: p.trace = -1; break;
        case 32: p.trace = LIM_MAX_TRACE + 1; break;
        case 33: p.model = ""; break;
        case 34: p.profile = long_text; break;
        case 35: p.profile_dir = "/nowhere"; break;
        case 36: p.model = "m", p.profile = "/nowhere/p", p.profile_dir = "/nowhere"; break;
        case 37: p.profile = "/"; break;
        case 38: p.quality = NAN; break;
        case 39: p.quality = -0.1; break;
        case 40: p.quality = 10.5; break;
        case 41: p.quality = 0.01, p.layers = ascending, p.layers_count = 2; break;
        case 42: p.quality = 0.01, p.interval = 2; break;
        case 23: p.struct_size = 8; break;
        case 24: p.struct_size = 4097; break;
        }
        lim_engine *made = (lim_engine *)&s;
        expect(lim_engine_create(&p, &made), LIM_ERROR_ARGUMENT, cases[i].name, cases[i].value);
        CHECK(made == (lim_engine *)&s, "%s %s: *engine was written", cases[i].name, cases[i].value);
    }
    lim_engine_params p = small_params();
    expect(lim_engine_create(&p, NULL), LIM_ERROR_ARGUMENT, "engine", "NULL");
    expect(lim_engine_create(NULL, &engine), LIM_ERROR_ARGUMENT, "params", "NULL");
    expect(lim_engine_default_params(NULL, sizeof p), LIM_ERROR_ARGUMENT, "params", "NULL");
    expect(lim_engine_default_params(&p, 8), LIM_ERROR_ARGUMENT, "params.struct_size", "= 8 ");
}

static void the_rest(void) {
    lim_stats    stats = {.struct_size = 16};
    int64_t      count;
    int32_t      set[4];
    char         text[8];
    lim_decoder *made = NULL;
    expect(lim_decoder_stats(decoder, NULL), LIM_ERROR_ARGUMENT, "stats", "NULL");
    expect(lim_decoder_stats(decoder, &stats), LIM_ERROR_ARGUMENT, "stats.struct_size", "= 16 ");
    expect(lim_engine_stats(engine, &stats), LIM_ERROR_ARGUMENT, "stats.struct_size", "= 16 ");
    stats.struct_size = sizeof stats;
    expect(lim_engine_stats(NULL, &stats), LIM_ERROR_HANDLE, "engine", "NULL");
    expect(lim_engine_stats_json(NULL, text, sizeof text, NULL), LIM_ERROR_HANDLE, "engine", "NULL");
    expect(lim_engine_stats_json(engine, NULL, 100, NULL), LIM_ERROR_ARGUMENT, "buffer", "NULL");
    expect(lim_engine_stats_json(engine, text, sizeof text, NULL), LIM_ERROR_SIZE, "size", "= 8");
    expect(lim_decoder_token_set(decoder, 0, set, 4, NULL), LIM_ERROR_ARGUMENT, "count", "NULL");
    expect(lim_decoder_token_set(decoder, 0, NULL, 4, &count), LIM_ERROR_ARGUMENT, "tokens", "NULL");
    expect(lim_decoder_token_set(decoder, 0, set, -4, &count), LIM_ERROR_ARGUMENT, "capacity", "= -4");
    expect(lim_decoder_token_set(decoder, 1, set, 4, &count), LIM_ERROR_ARGUMENT, "row", "= 1 is not in 0 .. 0");
    expect(lim_decoder_token_set(decoder, -1, set, 4, &count), LIM_ERROR_ARGUMENT, "row", "= -1");
    int32_t whole[SMALL_SLOTS]; /* more than there is to be written */
    OK(lim_decoder_token_set(decoder, 0, whole, INT64_MAX, &count));
    expect(lim_decoder_token_set(NULL, 0, set, 4, &count), LIM_ERROR_HANDLE, "decoder", "NULL");
    static const struct {
        int32_t     select, sparse;
        const char *name, *value;
    } ablations[] = {{-2, -1, "select", "= -2"}, {4, -1, "select", "= 4 is not in -1 .. 3"}, {0, 4, "sparse", "= 4"}, {0, -2, "sparse", "= -2"}, {2, 2, "sparse", "= 2 is not above select = 2"}, {-1, 0, "sparse", "= 0 is not above select = -1"}};
    for (size_t i = 0; i < sizeof ablations / sizeof *ablations; i++)
        expect(lim_engine_ablate(engine, ablations[i].select, ablations[i].sparse), LIM_ERROR_ARGUMENT, ablations[i].name, ablations[i].value);
    expect(lim_engine_ablate(NULL, -1, -1), LIM_ERROR_HANDLE, "engine", "NULL");
    static const int32_t doubled[] = {1, 1}, beyond[] = {1, 4}, below[] = {-1, 2};
    const struct {
        const int32_t *layers;
        int64_t        count;
        const char    *name, *value;
    } choices[] = {{doubled, 2, "layers", "1 follows 1"}, {beyond, 2, "layers", "layer 4, which is not in 0 .. 3"}, {below, 2, "layers", "layer -1"}, {NULL, 2, "layers", "NULL with layers_count = 2"}, {beyond, 0, "layers_count", "= 0"}, {beyond, -1, "layers_count", "= -1"}, {beyond, 65, "layers_count", "= 65"}, {(const int32_t *)(const void *)odd(beyond), 1, "layers", "multiple of 4"}};
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        expect(lim_engine_try(engine, choices[i].layers, choices[i].count), LIM_ERROR_ARGUMENT, choices[i].name, choices[i].value);
    expect(lim_engine_try(NULL, NULL, 0), LIM_ERROR_HANDLE, "engine", "NULL");
    lim_engine         *host = engine;
    static const double targets[] = {0, -1, 10.5, NAN, INFINITY};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
        expect(lim_profile_for_quality(SMALL_PROFILE, targets[i], NULL, 0, NULL), LIM_ERROR_ARGUMENT, "quality = ", "is not above 0, up to 10");
    const struct {
        const char *profile, *value;
    } profiles[] = {{NULL, "NULL"}, {"", "\"\" is not text"}, {"{", "it is no profile"}, {"{}", "its format is 0, not 1"}, {strchr(SMALL_PROFILE, ','), "it is no profile"}};
    for (size_t i = 0; i < sizeof profiles / sizeof *profiles; i++)
        expect(lim_profile_for_quality(profiles[i].profile, 0.01, NULL, 0, NULL), LIM_ERROR_ARGUMENT, "profile", profiles[i].value);
    char edited[sizeof SMALL_PROFILE];
    memcpy(edited, SMALL_PROFILE, sizeof edited);
    strstr(edited, "\"budget\":64")[10] = '5';
    expect(lim_profile_for_quality(edited, 0.01, NULL, 0, NULL), LIM_ERROR_ARGUMENT, "profile", "its fingerprint is \"fc674c8a1217aebe\"");
    char *large = malloc(LIM_MAX_PROFILE + 2);
    memset(large, ' ', LIM_MAX_PROFILE + 1);
    large[LIM_MAX_PROFILE + 1] = 0;
    expect(lim_profile_for_quality(large, 0.01, NULL, 0, NULL), LIM_ERROR_ARGUMENT, "profile", "longer than 8388608 bytes");
    free(large);
    expect(lim_profile_for_quality(SMALL_PROFILE, 0.01, NULL, 100, NULL), LIM_ERROR_ARGUMENT, "buffer", "NULL");
    expect(lim_profile_for_quality(SMALL_PROFILE, 0.01, text, sizeof text, NULL), LIM_ERROR_SIZE, "size", "= 8");
    expect(lim_ggml_engine(NULL), LIM_ERROR_ARGUMENT, "engine", "NULL");
    expect(lim_ggml_engine(&host), LIM_ERROR_UNSUPPORTED, "no ggml host", "loaded");
    CHECK(host == engine, "*engine was written");
    expect(lim_decoder_reset(NULL), LIM_ERROR_HANDLE, "decoder", "NULL");
    expect(lim_decoder_create(NULL, &one_row, &made), LIM_ERROR_HANDLE, "engine", "NULL");
    expect(lim_decoder_create(engine, &one_row, NULL), LIM_ERROR_ARGUMENT, "decoder", "NULL");
}

int main(void) {
    lim_engine_params params = small_params();
    OK(lim_engine_create(&params, &engine));
    OK(lim_decoder_create(engine, &one_row, &decoder));
    attention();
    engine_params();
    the_rest();
    OK(lim_decoder_free(decoder));
    OK(lim_engine_free(engine));
    return finish("arguments");
}
