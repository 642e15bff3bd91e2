/* lessismore: sparse decode attention for long chains of reasoning, without retraining.
 *
 * A few layers of a model attend to every token and choose one set of tokens for all heads; the other
 * layers attend to that set only (LessIsMore, arXiv 2508.07101). An engine calls lim_attend() in place
 * of its own attention, once per layer and decode step, or lim_batch_attend() where K/V are on a GPU.
 * K/V stay where the engine keeps them.
 *
 * EXPERIMENTAL: functions and fields may change with the minor version. Compare lim_version_number() with
 * LIM_VERSION_NUMBER.
 *
 * A step in short:
 *
 *     lim_engine_params params;
 *     lim_engine_default_params(&params, sizeof params);
 *     params.n_layers = 36;
 *     lim_engine *engine;
 *     if (lim_engine_create(&params, &engine) != LIM_OK) puts(lim_last_error());
 *     lim_sequence *sequence;
 *     lim_sequence_create(engine, &sequence);
 *
 *     for each new token, for each layer in ascending order, once the token's own key and value are stored:
 *         lim_attention a = { .struct_size = sizeof a, .layer = layer, ... };
 *         lim_attend(sequence, &a);
 *
 *     lim_sequence_free(sequence);
 *     lim_engine_free(engine);
 *
 * Threads
 *   - A sequence or a batch may be used from any thread, one at a time. A call that finds it in use by
 *     another thread is refused (LIM_ERROR_BUSY). Different ones may be used in parallel.
 *   - An engine may be used from any thread, also by several at once.
 *   - lim_last_error() belongs to the calling thread.
 *   - In a child of fork() every function that takes or makes a handle is refused (LIM_ERROR_FORKED):
 *     the library's threads do not exist there. fork() and then exec(), or load the library after fork().
 *
 * Errors
 *   A function that returns anything but LIM_OK has changed nothing, and lim_last_error() names the
 *   argument and its value. Sizes, strides, types, order and alignment are checked; that a pointer leads
 *   to memory of the size that the arguments state is the caller's word. Handles are not addresses: one
 *   that was freed, or never was one, is refused (LIM_ERROR_HANDLE) and never followed.
 *
 * Structures
 *   Each begins with struct_size, the caller's sizeof. One that is larger than the library knows is
 *   accepted if the unknown rest is zero; one of an older version has the defaults in what it lacks; a smaller
 *   one than the oldest is refused. Except in lim_engine_params, zero is the neutral value of every optional field.
 */
#ifndef LESSISMORE_H
#define LESSISMORE_H

#include <stddef.h>
#include <stdint.h>

#define LIM_VERSION_MAJOR 0
#define LIM_VERSION_MINOR 1
#define LIM_VERSION_PATCH 0
#define LIM_VERSION_NUMBER (LIM_VERSION_MAJOR * 10000 + LIM_VERSION_MINOR * 100 + LIM_VERSION_PATCH)
#define LIM_VERSION_STRING "0.1.0"

/* The version of the function table, see lim_get_api(). */
#define LIM_API_VERSION 1

#if defined(__GNUC__)
#define LIM_EXPORT __attribute__((visibility("default")))
#else
#define LIM_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Largest values that are accepted. */
#define LIM_MAX_BUDGET           16777216
#define LIM_MAX_SLOTS            16777216
#define LIM_MAX_LAYERS           4096
#define LIM_MAX_SELECTION_LAYERS 64
#define LIM_MAX_HEADS            512
#define LIM_MAX_HEAD_DIM         256
#define LIM_MAX_THREADS          1024
#define LIM_MAX_ROWS             4096
#define LIM_MAX_GUARD            1048576
#define LIM_MAX_INTERVAL         64
#define LIM_MAX_TRACE            65536
#define LIM_MAX_TEXT             4000

/* ---------------------------------------------------------------------------------------------
 * Types
 * ------------------------------------------------------------------------------------------- */

/* A configuration, its threads, and what was counted under it. */
typedef struct lim_engine lim_engine;

/* One sequence that is being decoded: the token set of its current step. It holds no keys or values. */
typedef struct lim_sequence lim_sequence;

/* Sequences that are decoded side by side on a GPU: the token sets of their current step, and work memory. */
typedef struct lim_batch lim_batch;

typedef enum lim_status {
    LIM_OK                = 0,
    LIM_ERROR_ARGUMENT    = 1, /* an argument has a value that is never right */
    LIM_ERROR_UNSUPPORTED = 2, /* right, but not something that this version can do */
    LIM_ERROR_HANDLE      = 3, /* a handle that was freed, is of another kind, or never was one */
    LIM_ERROR_BUSY        = 4, /* in use by another thread, or by sequences or batches that are still alive */
    LIM_ERROR_SIZE        = 5, /* a caller's buffer is too small; the size needed is given */
    LIM_ERROR_MEMORY      = 6, /* no memory or no threads to be had */
    LIM_ERROR_FORKED      = 7, /* the process is a child of the one that loaded the library */
    LIM_ERROR_INTERNAL    = 8, /* a fault of the library; the text is for a bug report */
    LIM_ERROR_DEVICE      = 9, /* no GPU or no driver to be used, or the driver failed */
} lim_status;

/* Element types. Fields of this type are int32_t, so that their size does not depend on the compiler. */
typedef enum lim_dtype {
    LIM_DTYPE_F32  = 0,
    LIM_DTYPE_F16  = 1, /* IEEE 754 half */
    LIM_DTYPE_BF16 = 2, /* the upper half of an F32 */
    LIM_DTYPE_Q8_0 = 3, /* 34-byte blocks of 32 elements: F16 scale, 32 x int8 */
    LIM_DTYPE_Q4_0 = 4, /* 18-byte blocks of 32 elements: F16 scale, 16 bytes; element i in the low nibble of
                           byte i for i < 16, in the high nibble of byte i - 16 otherwise; minus 8, times scale */
    LIM_DTYPE_FP8  = 5, /* e4m3, in batches only */
} lim_dtype;

/* How a selection layer ranks tokens. */
typedef enum lim_policy {
    LIM_POLICY_UNION = 0, /* merges the heads' rankings, rank by rank: the paper's method */
    LIM_POLICY_MASS  = 1, /* softmax probability, summed over the heads */
} lim_policy;

typedef enum lim_log_level {
    LIM_LOG_ERROR = 0,
    LIM_LOG_WARN  = 1,
    LIM_LOG_INFO  = 2,
    LIM_LOG_DEBUG = 3,
} lim_log_level;

/* A host's logger. `text` is one line without its end, valid during the call. Called from whatever thread
 * the library is in; it may call the library, but not with a sequence that the interrupted call uses. */
typedef void (*lim_logger)(void *user, int32_t level, const char *text);

/* ---------------------------------------------------------------------------------------------
 * Library
 * ------------------------------------------------------------------------------------------- */

/* The library's version as LIM_VERSION_NUMBER and as text. */
LIM_EXPORT uint32_t    lim_version_number(void);
LIM_EXPORT const char *lim_version_string(void);

/* The text of the last failure on this thread, naming the argument and its value; "" if there was none.
 * Success does not clear it. Valid until the next failure on this thread, or the thread's end. */
LIM_EXPORT const char *lim_last_error(void);

/* A status's name, such as "LIM_ERROR_ARGUMENT"; for a number that is none, "LIM_ERROR_UNKNOWN". Never NULL. */
LIM_EXPORT const char *lim_status_name(lim_status status);

/* ---------------------------------------------------------------------------------------------
 * Engine
 * ------------------------------------------------------------------------------------------- */

/* An engine's configuration. lim_engine_default_params() fills it in; n_layers is for the caller to set. */
typedef struct lim_engine_params {
    size_t struct_size;

    /* Selection layers, ascending and less than n_layers; read during lim_engine_create() only. NULL with a
     * count of 0: found by measuring, or read from a profile. Then every layer attends to everything until a
     * sequence sees twice the budget and some sixty of its steps have been measured; the sequences of an engine
     * share what is found. A guard compares one sparse layer with full attention now and then, and has the model
     * measured again if it loses more than was measured. In a model of fewer than 5 layers, or whose layers differ in
     * heads: the third layer and the one a third of the way up. Layers below the first one attend to
     * everything. Which layers are right depends on the model, and a wrong one costs more accuracy than a
     * small budget. */
    const int32_t *layers;
    int64_t        layers_count;

    double recency; /* share of the budget that is kept for the newest tokens, 0 to 1; default 0.25 */

    lim_logger logger; /* NULL: silence */
    void      *logger_user;

    int32_t n_layers;    /* attention layers of the model that take part, 1 to LIM_MAX_LAYERS; no default */
    int32_t budget;      /* tokens that a sparse layer attends to, 1 to LIM_MAX_BUDGET; default 2048 */
    int32_t sink_tokens; /* first tokens that are always kept, out of the recency share; default 4 */
    int32_t policy;      /* lim_policy; default LIM_POLICY_UNION */
    int32_t n_threads;   /* threads per call, the caller's included, up to LIM_MAX_THREADS; 0: one per CPU */
    int32_t reserved;    /* 0 */

    /* What finds, keeps and watches the selection layers where none are given. */
    int32_t selections; /* at most so many layers choose, 1 to LIM_MAX_SELECTION_LAYERS; default 2 */
    int32_t guard;      /* steps between two audits, about, up to LIM_MAX_GUARD; 0: none; default 16 */

    /* Steps that a token set serves, 1 (default) to LIM_MAX_INTERVAL: new tokens join it, and the selection layers
     * attend to their own last set in between. More reads less and loses more; the guard watches that too, also
     * where layers are given. A step goes on with the sets of the one before if it sees one token more and all that
     * they hold, in the same slots; lim_sequence_reset() where the keys in these slots are another text's. */
    int32_t interval;

    /* Steps of a sequence whose token sets lim_engine_stats_json() shows, at most, up to LIM_MAX_TRACE; 0 (default):
     * none. For a person to look at: it takes time and memory. */
    int32_t trace;

    /* Text, read during lim_engine_create() only, up to LIM_MAX_TEXT bytes. NULL: none. What is learned about the
     * model is kept in the file `profile`, or in the directory `profile_dir` under a name that is made of the model
     * and of the settings that matter, and read there the next time. `profile_dir` needs `model`: any text that tells
     * the model from others of its shape, such as a hash of its weights. A profile of another model or of other
     * settings is not used, and named to the logger; a file that the caller named is then left as it is. A folder
     * as `profile` is an error; files that the library did not write are never replaced. */
    const char *model;
    const char *profile;
    const char *profile_dir;
} lim_engine_params;

/* Fills in the defaults and struct_size. `struct_size` is the caller's sizeof(lim_engine_params).
 * Environment variables have no say here: they are for hosts that cannot be changed.
 * @return LIM_OK, LIM_ERROR_ARGUMENT, LIM_ERROR_FORKED */
LIM_EXPORT lim_status lim_engine_default_params(lim_engine_params *params, size_t struct_size);

/* Makes an engine. Threads are started by the first lim_attend(): one team for as many sequences as
 * ever attend at the same time.
 * @return LIM_OK and *engine; else *engine is as it was */
LIM_EXPORT lim_status lim_engine_create(const lim_engine_params *params, lim_engine **engine);

/* The truth about a choice of selection layers: every step that begins from now on, of all sequences and batches of the
 * engine, is dense but for one layer, `sparse`, which attends to the token set that layer `select` chooses. What the
 * model says then, compared with what it says when all layers are dense, is what that layer loses. Nothing is
 * measured or audited meanwhile. A captured step that is replayed stays what it was captured as. sparse = -1: all layers are dense (`select` still chooses a set). select = -1 and
 * sparse = -1: that is over.
 * @return LIM_OK; LIM_ERROR_ARGUMENT for layers out of range or not ascending; LIM_ERROR_HANDLE */
LIM_EXPORT lim_status lim_engine_intervene(lim_engine *engine, int32_t select, int32_t sparse);

/* The engine that serves the ggml hosts of this process, by the settings of the environment, for
 * lim_engine_intervene(), lim_engine_stats() and lim_engine_stats_json(). Its layers are counted among those that can
 * take part. It has no sequences or batches of its own, and is not to be freed: these are refused
 * (LIM_ERROR_UNSUPPORTED).
 * @return LIM_OK and *engine; LIM_ERROR_UNSUPPORTED where no host has loaded the library */
LIM_EXPORT lim_status lim_ggml_engine(lim_engine **engine);

/* Ends an engine and its threads. NULL is nothing to do.
 * @return LIM_OK; LIM_ERROR_BUSY while it has sequences or batches; LIM_ERROR_HANDLE */
LIM_EXPORT lim_status lim_engine_free(lim_engine *engine);

/* ---------------------------------------------------------------------------------------------
 * Sequence
 * ------------------------------------------------------------------------------------------- */

/* Begins a sequence.
 * @return LIM_OK and *sequence; else *sequence is as it was */
LIM_EXPORT lim_status lim_sequence_create(lim_engine *engine, lim_sequence **sequence);

/* Ends a sequence. NULL is nothing to do.
 * @return LIM_OK; LIM_ERROR_BUSY while another thread uses it; LIM_ERROR_HANDLE */
LIM_EXPORT lim_status lim_sequence_free(lim_sequence *sequence);

/* Forgets the current step: the next lim_attend() starts a new one. Never needed for a roll-back, which
 * starts a step by its layer or position; needed when other tokens come under an unfinished step's position,
 * and with an interval where the keys of earlier tokens have changed.
 * What was counted stays. */
LIM_EXPORT lim_status lim_sequence_reset(lim_sequence *sequence);

/* The attention of one layer for one query token: output = softmax(logits) * value, per query head, over
 * the tokens that are visible and, in a sparse layer, in the token set;
 *     logit = softcap(scale * query . key) + slope * mask.
 *
 * Steps. The layers of one decode step come in ascending order; a layer that is not above the one before
 * it, or another query_position, starts a new step. Layers may be left out. The token set is chosen in
 * each step afresh, and used by the layers after the one that chose it. A layer that sees other tokens than
 * the one before it (other n_slots, positions or mask) attends to everything, and so do the ones
 * after it up to the next selection layer; stats count them as no_set_calls.
 *
 * Views. All strides are in bytes, not negative, and at least as large as what they step over; one that
 * would never be taken (a single head, a single slot) is ignored. The elements of a row are contiguous.
 * Addresses and strides are multiples of the element's size (of 2 for the quantised types). Output may
 * not overlap query, key or value. */
typedef struct lim_attention {
    size_t struct_size;

    const void *query;  /* [heads] rows of key_dim */
    const void *key;    /* [n_slots][kv_heads] rows of key_dim */
    const void *value;  /* [n_slots][kv_heads] rows of value_dim */
    void       *output; /* [heads] rows of value_dim */

    int64_t query_head_stride;
    int64_t key_slot_stride;
    int64_t key_head_stride;
    int64_t value_slot_stride;
    int64_t value_head_stride;
    int64_t output_head_stride;

    int64_t n_slots;        /* slots of the K/V store to look at, 1 to LIM_MAX_SLOTS */
    int64_t query_position; /* logical position of the query token; tokens after it are not visible */

    /* [n_slots] the logical position that each slot holds, -1 for none; visible ones all different. NULL:
     * slot i holds position i. Given, each layer of a step reads it again, to be sure that it is the same. */
    const int32_t *positions;

    /* [n_slots] F16 added to the logits by slot; -inf: not visible. NULL: zero. */
    const uint16_t *mask;

    /* [heads] factors of the mask (ALiBi), which must then be given. NULL: one. */
    const float *alibi_slopes;

    /* [heads] a further logit in the softmax's denominator (attention sinks; not sink_tokens). NULL: none. */
    const float *sinks;

    int32_t layer;     /* 0 to n_layers - 1, counted among the layers that take part */
    int32_t heads;     /* query heads, a multiple of kv_heads; head h reads KV head h / (heads / kv_heads) */
    int32_t kv_heads;
    int32_t key_dim;   /* a multiple of 16 up to LIM_MAX_HEAD_DIM; of 32 for a quantised key */
    int32_t value_dim; /* the same for value; may differ from key_dim */

    int32_t query_dtype; /* lim_dtype: F32, F16 or BF16 */
    int32_t key_dtype;   /* any lim_dtype but FP8 */
    int32_t value_dtype; /* the same */
    int32_t output_dtype; /* F32, F16 or BF16 */

    float scale;   /* 0: 1 / sqrt(key_dim) */
    float softcap; /* c > 0: c * tanh(x / c); 0: none */

    int32_t reserved; /* 0 */
} lim_attention;

/* Computes one layer of a step, see lim_attention. The output is complete on return, zero if no token is
 * visible. Keys, values and everything else are read during the call only.
 * @return LIM_OK; on anything else output and sequence are as they were, except that
 * LIM_ERROR_MEMORY and LIM_ERROR_INTERNAL forget the step as lim_sequence_reset() does */
LIM_EXPORT lim_status lim_attend(lim_sequence *sequence, const lim_attention *attention);

/* The slots of the current step's token set, ascending; *count is 0 before a set is chosen, and when the
 * visible tokens are no more than the budget. slots may be NULL with a capacity of 0, to ask for *count.
 * @return LIM_OK; LIM_ERROR_SIZE if capacity < *count, slots is then as it was */
LIM_EXPORT lim_status lim_sequence_token_set(lim_sequence *sequence, int32_t *slots, int64_t capacity,
                                             int64_t *count);

/* ---------------------------------------------------------------------------------------------
 * Batch: sequences side by side on a GPU
 * ------------------------------------------------------------------------------------------- */

/* The library opens NVIDIA's driver when the first batch is made, and needs none for anything else. Fields
 * that are device addresses are uint64_t, as CUdeviceptr is.
 *
 * lim_batch_attend() queues kernels on the caller's stream and returns: it allocates nothing, waits for nothing
 * and copies nothing, and may be captured into a CUDA graph. What differs from step to step is read by the
 * kernels from device memory, lengths and block table, so that a captured step can be replayed as the
 * sequences grow, up to the capacity. A layer whose arguments are those of its last call costs a comparison
 * and the launches; one whose arguments have changed is checked and planned again, which takes some
 * microseconds. The library works in the device's primary context, as the CUDA runtime does. */

/* What a batch is made for. Zero where nothing is said. */
typedef struct lim_batch_params {
    size_t struct_size;

    /* Device memory for the library's work: lim_batch_work_size() bytes or more, a multiple of 256, all of it
     * zero before the first lim_batch_attend(), the batch's alone until lim_batch_free(). 0: the library allocates
     * it, which waits for the device. */
    uint64_t work;
    uint64_t work_size;

    int32_t device;   /* the GPU's number in the CUDA driver */
    int32_t max_rows; /* rows of a call, 1 to LIM_MAX_ROWS */
    int32_t capacity; /* tokens that a row may see, 1 to LIM_MAX_SLOTS; above the budget at most 1048576 */
    int32_t heads;    /* query heads, up to 16 for each KV head */
    int32_t kv_heads;
    int32_t head_dim; /* of query, key and value: 64, 128 or 256 */
    int32_t kv_dtype; /* lim_dtype: F16, BF16, FP8 or Q8_0 */
    int32_t reserved; /* 0 */
} lim_batch_params;

/* The device memory that a batch needs, in bytes. Grows with each of max_rows, capacity and heads.
 * @return LIM_OK and *size; LIM_ERROR_DEVICE without a driver or GPU; what lim_batch_create() refuses */
LIM_EXPORT lim_status lim_batch_work_size(lim_engine *engine, const lim_batch_params *params, uint64_t *size);

/* Begins a batch. Where the engine's selection layers are found by measuring, the batch takes part in that, see
 * lim_batch_generation().
 * May wait for the device; not to be called while a stream is being captured.
 * @return LIM_OK and *batch; LIM_ERROR_DEVICE without a driver or GPU; LIM_ERROR_UNSUPPORTED in a build without
 * CUDA, and for what the kernels do not have; else *batch is as it was */
LIM_EXPORT lim_status lim_batch_create(lim_engine *engine, const lim_batch_params *params, lim_batch **batch);

/* Ends a batch, once all that was queued on the device is done. A graph that was captured from it must not be
 * replayed any more. NULL is nothing to do.
 * @return LIM_OK; LIM_ERROR_BUSY while another thread uses it; LIM_ERROR_HANDLE */
LIM_EXPORT lim_status lim_batch_free(lim_batch *batch);

/* Forgets the current step: the next lim_batch_attend() starts a new one. */
LIM_EXPORT lim_status lim_batch_reset(lim_batch *batch);

/* For hosts that capture steps, on an engine whose selection layers are found by measuring. There lim_batch_attend()
 * queues small copies to the host besides, and asks in later steps whether they have come: it still waits for nothing.
 * It finds out by itself whether the stream is being captured. A captured step is what the layers' roles at that
 * time make it, is neither measured nor audited, and stays so however often it is replayed. So call this before
 * each step, replayed or not:
 *
 *     lim_batch_generation(batch, &generation, &eager);
 *     if (eager)                         run the step without capture;
 *     else if (generation != captured)   capture the step again, captured = generation;
 *     else                               replay;
 *
 * *generation changes when the roles do. A graph of an older one still computes what it was captured for.
 * *eager is 1 if something is to be found out in the coming step: about 60 steps in a row while the model is measured,
 * otherwise about every 16th. A host that never grants one is never told of selection layers: its steps stay dense.
 * Hosts that capture nothing need not call it, nor those whose engine has its layers given: *eager is 0 there and
 * *generation stays the same, unless lim_engine_intervene() is in force, which makes *eager 1. Waits for nothing. Not to be called while this thread captures.
 * @return LIM_OK; LIM_ERROR_DEVICE if the driver reports an error of earlier work */
LIM_EXPORT lim_status lim_batch_generation(lim_batch *batch, uint64_t *generation, int32_t *eager);

/* The attention of one layer for the rows of a batch, one query token each: as lim_attention for each row, with
 * a token set of its own. Rows that see no more tokens than the budget attend to all of them.
 *
 * Steps. As in lim_attend(): a layer that is not above the one before it starts a new step. A layer attends to
 * the token sets only if n_rows, lengths, table, table_stride and page_size are those of the layer that chose
 * them; otherwise to everything, and so do the ones after it up to the next selection layer. What lengths and
 * table point to must not change within a step. Two steps of one batch must not be under way at the same time:
 * keep them on one stream, or order the streams.
 *
 * K/V. Token t of row r is in page table[r * table_stride + t / page_size], at place t % page_size. Without a
 * table each row is one page: page r, place t. Its key of KV head h is at
 *     key + page * key_page_stride + place * key_token_stride + h * key_head_stride.
 *
 * Strides are in bytes and at least as large as what they step over; one that would never be taken is ignored.
 * Key and value and their strides are multiples of 16 bytes (Q8_0: of head_dim / 16), query and output of 4. */
typedef struct lim_batch_attention {
    size_t struct_size;

    uint64_t query;   /* device address: [n_rows][heads] rows of head_dim */
    uint64_t output;  /* device address: the same; must not overlap the query */
    uint64_t key;     /* device address */
    uint64_t value;   /* device address */
    uint64_t lengths; /* device address: [n_rows] int32, tokens that each row sees, its own included; up to the capacity */
    uint64_t table;   /* device address: [n_rows][table_stride] int32, pages in position order; 0: none */
    uint64_t sinks;   /* device address: [heads] float, a further logit in the softmax's denominator; 0: none */

    int64_t query_row_stride;
    int64_t query_head_stride;
    int64_t output_row_stride;
    int64_t output_head_stride;
    int64_t key_token_stride;
    int64_t key_head_stride;
    int64_t key_page_stride;
    int64_t value_token_stride;
    int64_t value_head_stride;
    int64_t value_page_stride;
    int64_t table_stride; /* in elements: from row to row */

    void *stream; /* CUstream or cudaStream_t of the batch's device; NULL: the default stream */

    int32_t layer;        /* 0 to n_layers - 1, counted among the layers that take part */
    int32_t n_rows;       /* 1 to max_rows */
    int32_t page_size;    /* tokens, a power of two; read with a table only */
    int32_t query_dtype;  /* lim_dtype: F32, F16 or BF16 */
    int32_t output_dtype; /* the same */

    float scale;       /* of the logits; 0: 1 / sqrt(head_dim) */
    float softcap;     /* c > 0: c * tanh(x / c); 0: none */
    float key_scale;   /* what keys are multiplied by; 0: 1 */
    float value_scale; /* what values are multiplied by; 0: 1 */

    int32_t reserved; /* 0 */
} lim_batch_attention;

/* Queues one layer of a step on the stream, see lim_batch_attention.
 * @return LIM_OK; LIM_ERROR_DEVICE if the driver refuses a launch, the step is then forgotten; on anything else
 * nothing was queued */
LIM_EXPORT lim_status lim_batch_attend(lim_batch *batch, const lim_batch_attention *attention);

/* The token set of a row in the last finished step, one whose last layer (n_layers - 1) has been computed: positions,
 * ascending. *count is 0 if no set was chosen, or the row saw no more tokens than the budget. positions may be
 * NULL with a capacity of 0, to ask for *count. Waits for the device; not to be called while a stream is being
 * captured.
 * @return LIM_OK; LIM_ERROR_SIZE if capacity < *count, positions is then as it was */
LIM_EXPORT lim_status lim_batch_token_set(lim_batch *batch, int32_t row, int32_t *positions, int64_t capacity,
                                          int64_t *count);

/* ---------------------------------------------------------------------------------------------
 * Statistics
 * ------------------------------------------------------------------------------------------- */

/* What was counted. Tokens are counted once per layer. The caller sets struct_size. */
typedef struct lim_stats {
    size_t   struct_size;
    uint64_t steps;
    uint64_t rows;        /* query tokens, once per step */
    uint64_t rows_sparse; /* of them, with more visible tokens than the budget */
    uint64_t rows_full;
    uint64_t tokens_visible;
    uint64_t tokens_attended;
    uint64_t sparse_layer_tokens_visible; /* in the layers that do not choose */
    uint64_t sparse_layer_tokens_attended;
    uint64_t dense_calls; /* layers, by what they did */
    uint64_t select_calls;
    uint64_t sparse_calls;
    uint64_t no_set_calls; /* of dense_calls: should have been sparse, but there was no set to use */
    uint64_t dense_ns;     /* time in the kernels */
    uint64_t select_ns;
    uint64_t sparse_ns;
    uint64_t ranking_ns; /* of select_ns, choosing the set */
    uint64_t measured_steps; /* dense, to find the selection layers */
    uint64_t dense_steps;    /* dense, because they are not known */
    uint64_t reused_steps;   /* with the token sets of the step before (interval) */
    uint64_t audits;         /* of a layer by the guard */
    uint64_t alarms;         /* of the guard: more was lost than expected */
} lim_stats;

/* The counts of one sequence, of one batch, or of all of an engine's, ended ones included.
 * A batch counts on the device, as its steps finish (their last layer, n_layers - 1): replayed steps are in it,
 * unfinished ones and times are not. measured_steps and dense_steps are those that were queued without capture,
 * and audits are of such. lim_batch_stats() waits for the device and reads, and must not be called
 * while a stream is being captured; lim_engine_stats() has what was last read so. */
LIM_EXPORT lim_status lim_sequence_stats(lim_sequence *sequence, lim_stats *stats);
LIM_EXPORT lim_status lim_batch_stats(lim_batch *batch, lim_stats *stats);
LIM_EXPORT lim_status lim_engine_stats(lim_engine *engine, lim_stats *stats);

/* The engine's configuration and statistics as JSON, zero-terminated. *needed is the size with that zero;
 * it may grow from call to call. buffer may be NULL with a size of 0, to ask for *needed; needed may be
 * NULL.
 * @return LIM_OK; LIM_ERROR_SIZE if size < *needed, buffer is then as it was */
LIM_EXPORT lim_status lim_engine_stats_json(lim_engine *engine, char *buffer, size_t size, size_t *needed);

/* ---------------------------------------------------------------------------------------------
 * Function table
 * ------------------------------------------------------------------------------------------- */

/* Every function above, for hosts that load the library at run time. Functions are only ever added at
 * the end: a host that knows more of them than struct_size covers must not call those. */
typedef struct lim_api {
    size_t struct_size;
    uint32_t (*version_number)(void);
    const char *(*version_string)(void);
    const char *(*last_error)(void);
    const char *(*status_name)(lim_status status);
    lim_status (*engine_default_params)(lim_engine_params *params, size_t struct_size);
    lim_status (*engine_create)(const lim_engine_params *params, lim_engine **engine);
    lim_status (*engine_free)(lim_engine *engine);
    lim_status (*engine_stats)(lim_engine *engine, lim_stats *stats);
    lim_status (*engine_stats_json)(lim_engine *engine, char *buffer, size_t size, size_t *needed);
    lim_status (*sequence_create)(lim_engine *engine, lim_sequence **sequence);
    lim_status (*sequence_free)(lim_sequence *sequence);
    lim_status (*sequence_reset)(lim_sequence *sequence);
    lim_status (*sequence_stats)(lim_sequence *sequence, lim_stats *stats);
    lim_status (*sequence_token_set)(lim_sequence *sequence, int32_t *slots, int64_t capacity, int64_t *count);
    lim_status (*attend)(lim_sequence *sequence, const lim_attention *attention);
    lim_status (*batch_work_size)(lim_engine *engine, const lim_batch_params *params, uint64_t *size);
    lim_status (*batch_create)(lim_engine *engine, const lim_batch_params *params, lim_batch **batch);
    lim_status (*batch_free)(lim_batch *batch);
    lim_status (*batch_reset)(lim_batch *batch);
    lim_status (*batch_attend)(lim_batch *batch, const lim_batch_attention *attention);
    lim_status (*batch_token_set)(lim_batch *batch, int32_t row, int32_t *positions, int64_t capacity, int64_t *count);
    lim_status (*batch_stats)(lim_batch *batch, lim_stats *stats);
    lim_status (*engine_intervene)(lim_engine *engine, int32_t select, int32_t sparse);
    lim_status (*ggml_engine)(lim_engine **engine);
    lim_status (*batch_generation)(lim_batch *batch, uint64_t *generation, int32_t *eager);
} lim_api;

/* The table of a version: LIM_API_VERSION.
 * @return the table, valid for ever; NULL for a version that the library does not have, see lim_last_error() */
LIM_EXPORT const lim_api *lim_get_api(uint32_t version);

#ifdef __cplusplus
}
#endif

#endif /* LESSISMORE_H */
