/* lessismore: sparse decode attention for long chains of reasoning, without retraining.
 *
 * A few layers of a model attend to every token and choose one token set for all heads; the other layers attend to
 * that set only (LessIsMore, arXiv 2508.07101). An engine calls lim_decoder_attend() in place of its own attention,
 * once per layer and decode step, for K/V in the CPU's memory or in a GPU's. K/V stay where the engine keeps them.
 *
 * This header is a promise, see "What may change" below.
 *
 * A step in short:
 *
 *     lim_engine_params params;
 *     lim_engine_default_params(&params, sizeof params);
 *     params.n_layers = 36;
 *     lim_engine *engine;
 *     if (lim_engine_create(&params, &engine) != LIM_OK) puts(lim_last_error());
 *     lim_decoder_params shape = { .struct_size = sizeof shape, .device = LIM_DEVICE_CPU, .max_rows = 1 };
 *     lim_decoder *decoder;
 *     lim_decoder_create(engine, &shape, &decoder);
 *
 *     for each new token, for each layer in ascending order, once the token's own key and value are stored:
 *         lim_attention a = { .struct_size = sizeof a, .layer = layer, .n_rows = 1, ... };
 *         lim_decoder_attend(decoder, &a);
 *
 *     lim_decoder_free(decoder);
 *     lim_engine_free(engine);
 *
 * Threads
 *   - A decoder may be used from any thread, one at a time. A call that finds it in use by another thread is refused
 *     (LIM_ERROR_BUSY). Different ones may be used in parallel.
 *   - An engine may be used from any thread, also by several at once.
 *   - lim_last_error() belongs to the calling thread.
 *   - In a child of fork() every function that takes or makes a handle is refused (LIM_ERROR_FORKED):
 *     the library's threads do not exist there. fork() and then exec(), or load the library after fork().
 *
 * Errors
 *   A function that returns anything but LIM_OK has changed nothing, and lim_last_error() names the
 *   argument and its value. Sizes, strides, types, order and alignment are checked; the library trusts the
 *   caller that a pointer leads to memory of the size that the arguments state. Handles are not addresses: a
 *   freed or invalid one is refused (LIM_ERROR_HANDLE) and never followed.
 *
 * Structures
 *   Each begins with struct_size, the caller's sizeof. Required fields come first, then common ones, then advanced
 *   ones. Except in lim_engine_params, zero is the neutral value of every field that is not required. A structure that
 *   is larger than the library knows is accepted if the unknown rest is zero. In one of an older version the missing
 *   fields have their defaults. One that is smaller than the oldest is refused.
 *
 * What may change
 *   A program that was compiled against this header works with every later library, without being compiled again; its source
 *   compiles against every later header. Programs compiled against earlier headers are kept, and run on each new library.
 *
 *   Never, in a library that has this version of the table (LIM_API_VERSION, lim_get_api()):
 *   - a function's name, arguments, result and place in the table; that it is exported
 *   - a field's name, type and place; what a value that was accepted means; that zero is neutral, or the default
 *   - the numbers of statuses, types, policies and log levels
 *   - the rules about threads, handles, errors and memory above; who owns what, and until when
 *   - which structure sizes are accepted
 *
 *   At any time:
 *   - functions join the end of the table, fields the end of structures, numbers the enumerations
 *   - what was refused is accepted: types, shapes, greater limits (LIM_MAX_*)
 *   - defaults improve: a program that needs a certain value sets it
 *   - results within rounding: the last bits of outputs, and with them which of two tokens that score the same is chosen
 *   - texts: of errors, log lines, and JSON, which gains keys
 *
 *   Any other change comes with a table of a new version, beside this one. A program that needs something which a library may
 *   lack compares lim_version_number(), or struct_size of the table.
 */
#ifndef LESSISMORE_H
#define LESSISMORE_H

#include <stddef.h>
#include <stdint.h>

#define LIM_VERSION_MAJOR  0
#define LIM_VERSION_MINOR  1
#define LIM_VERSION_PATCH  0
#define LIM_VERSION_NUMBER (LIM_VERSION_MAJOR * 10000 + LIM_VERSION_MINOR * 100 + LIM_VERSION_PATCH)
#define LIM_VERSION_STRING "0.1.0"

/* The version of the function table, see lim_get_api(). */
#define LIM_API_VERSION 2

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
#define LIM_MAX_QUALITY_LAYERS   6 /* selection layers that a quality target tries */
#define LIM_MAX_HEADS            512
#define LIM_MAX_HEAD_DIM         256
#define LIM_MAX_THREADS          1024
#define LIM_MAX_ROWS             4096
#define LIM_MAX_GUARD            1048576
#define LIM_MAX_INTERVAL         64
#define LIM_MAX_TRACE            65536
#define LIM_MAX_TEXT             4000
#define LIM_MAX_PROFILE          8388608 /* bytes of a profile's text */

/* ---------------------------------------------------------------------------------------------
 * Types
 * ------------------------------------------------------------------------------------------- */

/* A configuration, its threads, and what was counted under it. */
typedef struct lim_engine lim_engine;

/* Rows that are decoded side by side, on the CPU or on a GPU: the token sets of their current step, and work memory. It
 * holds no keys or values. */
typedef struct lim_decoder lim_decoder;

typedef enum lim_status {
    LIM_OK                = 0,
    LIM_ERROR_ARGUMENT    = 1, /* an argument has a value that is never right */
    LIM_ERROR_UNSUPPORTED = 2, /* valid, but this version cannot do it */
    LIM_ERROR_HANDLE      = 3, /* a handle that was freed, is of another kind, or never was one */
    LIM_ERROR_BUSY        = 4, /* in use by another thread, or by decoders that are still alive */
    LIM_ERROR_SIZE        = 5, /* a caller's buffer is too small; the size needed is given */
    LIM_ERROR_MEMORY      = 6, /* out of memory, or of threads */
    LIM_ERROR_FORKED      = 7, /* the process is a child of the one that loaded the library */
    LIM_ERROR_INTERNAL    = 8, /* a fault of the library; the text is for a bug report */
    LIM_ERROR_DEVICE      = 9, /* no usable GPU or driver, or the driver failed */
} lim_status;

/* Element types. Fields of this type are int32_t, so that their size does not depend on the compiler. */
typedef enum lim_dtype {
    LIM_DTYPE_F32  = 0,
    LIM_DTYPE_F16  = 1, /* IEEE 754 half */
    LIM_DTYPE_BF16 = 2, /* the upper half of an F32 */
    LIM_DTYPE_Q8_0 = 3, /* 34-byte blocks of 32 elements: F16 scale, 32 x int8 */
    LIM_DTYPE_Q4_0 = 4, /* 18-byte blocks of 32 elements: F16 scale, 16 bytes; element i in the low nibble of
                           byte i for i < 16, in the high nibble of byte i - 16 otherwise; minus 8, times scale */
    LIM_DTYPE_FP8  = 5, /* e4m3, on GPUs only */
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
 * the library is in; it may call the library, but not with a decoder that the interrupted call uses. */
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

    /* Selection layers, ascending and less than n_layers; read during lim_engine_create() only. Layers below the
     * first one attend to everything. Which layers are right depends on the model, and a wrong one costs more
     * accuracy than a small budget.
     * NULL with a count of 0: found by measuring, or read from a profile. Then every layer attends to everything until a
     * row sees twice the budget and some sixty of its steps have been measured; the decoders of an engine
     * share the result. A guard compares one sparse layer with full attention now and then, and has the model
     * measured again if that layer loses more than was measured. A model of fewer than 5 layers, or whose layers
     * differ in heads, is not measured: its third layer selects, and the one a third of the way up. */
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
    int32_t selections; /* at most so many layers choose, up to LIM_MAX_SELECTION_LAYERS; 0 (default): one for six of n_layers, at least 2 */
    int32_t guard;      /* steps between two audits, about, up to LIM_MAX_GUARD; 0: none; default 16 */

    /* Steps that a token set serves, 1 (default) to LIM_MAX_INTERVAL. New tokens join it, and the selection layers
     * attend to their own last set in between. More steps read less and lose more; the guard watches that too, also
     * if layers are given (on a GPU only if they are measured).
     * A step goes on with the sets of the step before if each row sees one token more and, on the CPU, still sees all
     * tokens of its set in the same slots. If the keys in these slots are now another text's, the caller says so: by
     * lim_attention's `sequences`, or on a GPU by lim_decoder_reset(). On a GPU the device compares the lengths: if they are
     * not one more, the step attends to everything, up to the next step that chooses. A captured step always chooses. */
    int32_t interval;

    /* The most steps of a decoder on the CPU whose token sets (of its first row) lim_engine_stats_json() shows, up to
     * LIM_MAX_TRACE; 0 (default): none. For a person to look at: it takes time and memory. On a GPU nothing is kept. */
    int32_t trace;

    /* Text, read during lim_engine_create() only, up to LIM_MAX_TEXT bytes. NULL: none. What is learned about the
     * model is kept in the file `profile`, or in the directory `profile_dir` under a name that is made of the model
     * and of the settings that matter, and read there the next time. `profile_dir` needs `model`: any text that tells
     * the model from others of its shape, such as a hash of its weights. A profile of another model or of other
     * settings is not used, and the logger gets a line about it; a file named by `profile` is then left as it is. A folder
     * as `profile` is an error. Files that the library did not write are never replaced. */
    const char *model;
    const char *profile;
    const char *profile_dir;

    /* Without layers: how far the next token's probabilities may be from those of full attention, in nats a token
     * (Kullback-Leibler divergence, mean), above 0, up to 10. 0 (default): no target. It chooses how many layers select, and
     * which; `selections` is then ignored. An engine sees no logits, so a profile has to hold what each choice
     * loses, measured by `lessismore calibrate --quality` or by a ggml host on CPUs. Without one, a decoder is refused. Not with
     * an interval. */
    double quality;
} lim_engine_params;

/* Fills in the defaults and struct_size. `struct_size` is the caller's sizeof(lim_engine_params).
 * Environment variables are not read: they are for hosts that cannot be changed.
 * @return LIM_OK, LIM_ERROR_ARGUMENT, LIM_ERROR_FORKED */
LIM_EXPORT lim_status lim_engine_default_params(lim_engine_params *params, size_t struct_size);

/* Makes an engine. Threads are started by the first lim_decoder_attend() on the CPU: one team for as many decoders as
 * ever attend at the same time.
 * @return LIM_OK and *engine; else *engine is as it was */
LIM_EXPORT lim_status lim_engine_create(const lim_engine_params *params, lim_engine **engine);

/* Ablates one layer. In every step that begins from now on, of all decoders of the engine, all layers are dense except
 * layer `sparse`, which attends to the token set that layer `select` chooses. The difference between the model's output
 * then and with all layers dense is what that layer loses: the truth about a choice of selection layers. Nothing is
 * measured or audited meanwhile. A captured step that is replayed keeps the roles of its capture. sparse = -1: all
 * layers are dense (`select` still chooses a set). select = -1 and sparse = -1 end the ablation.
 * @return LIM_OK; LIM_ERROR_ARGUMENT for layers out of range or not ascending; LIM_ERROR_HANDLE */
LIM_EXPORT lim_status lim_engine_ablate(lim_engine *engine, int32_t select, int32_t sparse);

/* Tries a choice. Every step that begins from now on, of all decoders of the engine, has the selection layers `layers` (ascending,
 * less than the engine's n_layers, read during the call), as if they had been given. The difference between the model's output then and
 * with all layers dense is what that choice loses. Nothing is measured or audited meanwhile. A captured step that is replayed keeps the
 * roles of its capture. A trial and an ablation replace each other: the later call counts. NULL with a count of 0 ends both.
 * @return LIM_OK; LIM_ERROR_ARGUMENT for layers out of range or not ascending; LIM_ERROR_HANDLE */
LIM_EXPORT lim_status lim_engine_try(lim_engine *engine, const int32_t *layers, int64_t layers_count);

/* Turns a profile into one of the same model for a quality target (`quality` in lim_engine_params). It is for a caller that has the
 * model compute steps both ways by itself, as a ggml host on CPUs does. `profile` is the text of a profile that the library wrote
 * without a target, to a file or in lim_engine_stats_json() (`models`), or that this function gave; zero-terminated, up to
 * LIM_MAX_PROFILE bytes, read during the call. The result is zero-terminated JSON, too: a profile that hosts find in `profile_dir`
 * under the name of its `fingerprint` and .json. Its part `tried` has
 *
 *     least_trials   steps that a choice has to be tried in before it can be taken
 *     candidates     the choices to try, those that read fewest bytes first, each with
 *         budget     tokens that a sparse layer attends to: the profile's
 *         layers     selection layers, ascending: for lim_engine_try()
 *         trials     steps that it was tried in; 0 at first
 *         nats       sum over these steps of the Kullback-Leibler divergence, in nats and not below 0, of the next token's probabilities
 *                    from those of the step with all layers dense (lim_engine_ablate(engine, 0, -1))
 *         squares    sum of the divergences' squares
 *
 * The caller adds its trials to the last three, and calls again with the whole text. `choice` then has the first candidate whose mean
 * plus standard error is at most `quality`. If there is none, `choice` is empty, and hosts attend to everything.
 *
 *     lim_profile_for_quality(text, 0.005, buffer, size, NULL);     candidates
 *     at 64 or more places of a text: ablate, compute; for each candidate: try, compute, add its divergence;
 *     lim_profile_for_quality(buffer, 0.005, other, size, NULL);    the choice, to be written to a file
 *
 * *needed is the size with the terminating zero. buffer may be NULL with a size of 0, to ask for *needed; needed may be NULL; profile and
 * buffer must not overlap. From any thread, also from several at once.
 * @return LIM_OK; LIM_ERROR_ARGUMENT for a quality that is not above 0 and at most 10, for a text that is no profile or whose
 * fingerprint is not that of its model and settings, and for a model of fewer than 5 layers or one that was not measured;
 * LIM_ERROR_SIZE if size < *needed, buffer is then as it was; LIM_ERROR_FORKED */
LIM_EXPORT lim_status lim_profile_for_quality(const char *profile, double quality, char *buffer, size_t size, size_t *needed);

/* The engine that serves the ggml hosts of this process, by the settings of the environment, for
 * lim_engine_ablate(), lim_engine_stats() and lim_engine_stats_json(). Its layers are counted among those that can
 * take part. Making decoders of it, and freeing it, is refused (LIM_ERROR_UNSUPPORTED).
 * @return LIM_OK and *engine; LIM_ERROR_UNSUPPORTED where no host has loaded the library */
LIM_EXPORT lim_status lim_ggml_engine(lim_engine **engine);

/* Ends an engine and its threads. NULL is nothing to do.
 * @return LIM_OK; LIM_ERROR_BUSY while it has decoders; LIM_ERROR_HANDLE */
LIM_EXPORT lim_status lim_engine_free(lim_engine *engine);

/* ---------------------------------------------------------------------------------------------
 * Decoder
 * ------------------------------------------------------------------------------------------- */

/* The device of a decoder that attends on the CPU. Others are GPUs, by their number in the CUDA driver, which the library
 * opens when the first decoder on one is made; it needs no driver for anything else. */
#define LIM_DEVICE_CPU (-1)

/* What a decoder is made for. */
typedef struct lim_decoder_params {
    size_t struct_size;

    /* Required. */
    int32_t device;   /* LIM_DEVICE_CPU, or a GPU's number */
    int32_t max_rows; /* rows of a call, 1 to LIM_MAX_ROWS */

    /* Required on a GPU. On the CPU each may be 0: then each call states it. */
    int32_t capacity;  /* tokens that a row may see, 1 to LIM_MAX_SLOTS; on a GPU, above the budget, at most 1048576 */
    int32_t heads;     /* query heads, a multiple of kv_heads; on a GPU up to 16 for each KV head */
    int32_t kv_heads;
    int32_t head_dim;  /* elements of a query's or key's head; on a GPU 64, 128 or 256, with F16 and BF16 any multiple of 16 up to 256,
                        * with Q8_0 and Q4_0 also 96, of up to 8 query heads for each KV head */
    int32_t value_dim; /* of a value's; 0: head_dim, as on a GPU it has to be */
    int32_t kv_dtype;  /* lim_dtype of key and value on a GPU: F16, BF16, FP8, Q8_0 or Q4_0; on the CPU not read */

    /* Advanced, and zero on the CPU. Device memory for the library's work: lim_decoder_work_size() bytes or more at a multiple of
     * 256. It must be all zero before the first lim_decoder_attend(), and is the decoder's alone until lim_decoder_free(). 0: the
     * library allocates it, which waits for the device. */
    uint64_t work;
    uint64_t work_size;

    /* The most tokens that all rows above the budget will see together: what a K/V store of pages holds; pages that rows
     * share count once for each row. The work memory then grows with it rather than with max_rows * capacity. A step whose
     * rows see more is dense, and counted in no_set_calls. Only if the engine's layers are given. 0: no such bound. */
    int64_t kv_tokens;

    uint64_t reserved; /* 0 */
} lim_decoder_params;

/* The device memory that a decoder needs, in bytes; 0 on the CPU. Grows with each of max_rows, heads, and kv_tokens or else
 * capacity.
 * @return LIM_OK and *size; LIM_ERROR_DEVICE without a driver or GPU; what lim_decoder_create() refuses */
LIM_EXPORT lim_status lim_decoder_work_size(lim_engine *engine, const lim_decoder_params *params, uint64_t *size);

/* Makes a decoder. Where the engine's selection layers are found by measuring, its steps are measured, too.
 * On a GPU: may wait for the device; not to be called while a stream is being captured; the library works in the
 * device's primary context, as the CUDA runtime does.
 * @return LIM_OK and *decoder; LIM_ERROR_DEVICE without a driver or GPU; LIM_ERROR_UNSUPPORTED in a build without
 * CUDA, and for what the kernels do not have; else *decoder is as it was */
LIM_EXPORT lim_status lim_decoder_create(lim_engine *engine, const lim_decoder_params *params, lim_decoder **decoder);

/* Ends a decoder; on a GPU, once all that was queued on the device is done, and a graph that was captured from it must
 * not be replayed any more. NULL is nothing to do.
 * @return LIM_OK; LIM_ERROR_BUSY while another thread uses it; LIM_ERROR_HANDLE */
LIM_EXPORT lim_status lim_decoder_free(lim_decoder *decoder);

/* Forgets the current step: the next lim_decoder_attend() starts a new one. A roll-back does not need it, because its
 * layer or position starts a step. It is needed when other tokens take the position of an unfinished step,
 * and with an interval when the keys of earlier tokens have changed. Counts are kept. */
LIM_EXPORT lim_status lim_decoder_reset(lim_decoder *decoder);

/* The attention of one layer for some rows, each of which is one query token:
 *     output = softmax(logits) * value, per query head, over the tokens that the row sees and, in a sparse layer, that
 *     are in its token set;
 *     logit = softcap(scale * query . key) + slope * mask.
 *
 * Steps. The layers of one decode step come in ascending order; a layer that is not above the one before it starts a new
 * step. On the CPU other query positions (or lengths) start one, too. Layers may be left out. Token sets are chosen in each step
 * afresh, one for each row, and used by the layers after the one that chose them. If a layer's rows see other tokens
 * than those of the layer that chose (other positions, mask, n_slots; on a GPU other n_rows, lengths, table, table_stride
 * or page_size), it attends to everything, and so do the layers after it up to the next selection layer; stats count them as
 * no_set_calls. The contents of lengths and table must not change within a step. On the CPU, where a set names slots, each
 * layer may have a table of its own.
 *
 * Addresses are in the decoder's memory: the CPU's or its GPU's. On the CPU everything is read, and the output is
 * complete on return. On a GPU the call queues kernels on the caller's stream and returns: it allocates nothing, waits
 * for nothing and copies nothing, and may be captured into a CUDA graph. The kernels read from device memory whatever differs
 * from step to step, so that a captured step can be replayed as the rows grow, up to the capacity. A layer with the
 * arguments of its last call costs a comparison and the launches; with other arguments it is checked
 * and planned again, which takes some microseconds. Two steps of one decoder must not be under way at the same time: keep
 * them on one stream, or order the streams.
 *
 * K/V. Row r's token in slot t is in page table[r * table_stride + t / page_size], at place t % page_size. Without a table
 * each row is one page: page r, place t; with a page stride of 0 (on the CPU) the rows share one, as several query tokens
 * of one sequence do. The key of KV head h is at
 *     key + page * key_page_stride + place * key_token_stride + h * key_head_stride.
 *
 * Precision, on the CPU. Arithmetic is F32, within 1e-6 of float64 on the same stored numbers where the key is F32, F16
 * or BF16. For a key of Q8_0 or Q4_0 the query is rounded to 16 bits, which costs about a hundredth of what storing keys
 * so has cost. NaN in a query makes its head's output NaN. Results are the same bits for any number of threads.
 *
 * Sequences. The library keeps no keys, values or pages. The next step tells it what a host did to its sequences:
 *     append           a longer length, or a later query position
 *     truncate         a shorter length, or an earlier query position
 *     fork             two rows whose tables begin with the same pages, with two numbers in `sequences`
 *     free             the row is left out
 *     reuse of a slot  the row's number in `sequences` is another one; on a GPU, with an interval: lim_decoder_reset()
 *     move, defragment another table, or other positions
 *
 * Strides are in bytes, not negative, and at least as large as what they step over; a stride that is never taken (a
 * single head, row or slot) is ignored. The elements of a row are contiguous. Addresses and strides are multiples of the
 * element's size (of 2 for the quantised types). On a GPU query and output and their strides are multiples of 4 bytes, key and value and
 * theirs of 16; with Q8_0 and Q4_0 of head_dim / 16 (with a head_dim of 96: of 4, head strides of 2), and token strides are at most 16 MiB.
 * Output may not overlap anything else that the call states, and its rows may not overlap each other. */
typedef struct lim_attention {
    size_t struct_size;

    /* Required. */
    int32_t layer;  /* 0 to n_layers - 1, counted among the layers that take part */
    int32_t n_rows; /* 1 to max_rows */

    const void *query;  /* [n_rows][heads] rows of head_dim */
    const void *key;    /* [pages][slots][kv_heads] rows of head_dim */
    const void *value;  /* [pages][slots][kv_heads] rows of value_dim */
    void       *output; /* [n_rows][heads] rows of value_dim */

    int64_t query_row_stride;
    int64_t query_head_stride;
    int64_t output_row_stride;
    int64_t output_head_stride;
    int64_t key_page_stride;
    int64_t key_token_stride;
    int64_t key_head_stride;
    int64_t value_page_stride;
    int64_t value_token_stride;
    int64_t value_head_stride;

    int32_t query_dtype;  /* lim_dtype: F32, F16 or BF16 */
    int32_t output_dtype; /* the same */
    int32_t key_dtype;    /* any lim_dtype but FP8; on a GPU not read: the decoder's kv_dtype */
    int32_t value_dtype;  /* the same */

    /* [n_rows] tokens that each row sees, its own included: slots 0 to length - 1. On the CPU, query_positions may be
     * given instead. */
    const int32_t *lengths;

    /* Common. */
    int32_t heads;     /* query heads, a multiple of kv_heads; head h reads KV head h / (heads / kv_heads); 0: the decoder's */
    int32_t kv_heads;  /* 0: the decoder's */
    int32_t head_dim;   /* a multiple of 16 up to LIM_MAX_HEAD_DIM, of 32 for a quantised key; 0: the decoder's */
    int32_t value_dim; /* the same for value; may differ from head_dim on the CPU; 0: the decoder's, or head_dim */
    int64_t n_slots;   /* slots of a row's K/V to look at: no row sees more tokens. 0: the decoder's capacity */

    float scale;   /* 0: 1 / sqrt(head_dim) */
    float softcap; /* c > 0: c * tanh(x / c); 0: none */

    /* [heads] a further logit in the softmax's denominator (attention sinks; not sink_tokens). NULL: none. */
    const float *sinks;

    /* [n_rows][table_stride] pages of each row in the order of its slots, which on a GPU is that of positions. Rows may share
     * pages. Entries of pages in which a row sees no token may be anything. NULL: none. */
    const int32_t *table;
    int64_t        table_stride; /* in elements: from row to row */
    int32_t        page_size;    /* tokens, a power of two; read with a table only */
    int32_t        reserved;     /* 0 */
    void          *stream;       /* on a GPU: CUstream or cudaStream_t; NULL: the default stream */

    /* Advanced: on the CPU only, but for key_scale and value_scale. */

    /* [n_rows] the logical position of each query token; tokens after it are not visible. NULL: lengths say what is. */
    const int32_t *query_positions;

    /* [n_rows][positions_row_stride] the logical position that each slot holds, -1 for none; visible ones all different.
     * NULL: slot i holds position i. Given, each layer of a step reads it again, to be sure that it is the same. */
    const int32_t *positions;
    int64_t        positions_row_stride; /* in elements; 0: one array for all rows */

    /* [n_rows][mask_row_stride] F16 added to the logits by slot; -inf: not visible. NULL: zero. */
    const uint16_t *mask;
    int64_t         mask_row_stride; /* in elements; 0: one array for all rows */

    /* [heads] factors of the mask (ALiBi), which must then be given. NULL: one. */
    const float *alibi_slopes;

    float key_scale;   /* on a GPU: what keys are multiplied by; 0: 1 */
    float value_scale; /* on a GPU: what values are multiplied by; 0: 1 */

    /* What follows is on the CPU; on a GPU it is not read. */

    /* [n_rows] which text each row belongs to: any number that stays with a text, and that no other text gets. NULL: each row
     * belongs to the text of the row of the same number in the step before. If a step has other texts, or in other
     * rows, it uses nothing of the step before. So a host with an interval that gives a slot or a row to another text
     * need not call lim_decoder_reset(). */
    const uint64_t *sequences;

    /* With a table: pages in key and value, any number above that is refused. 0: not stated. */
    int64_t n_pages;
} lim_attention;

/* Computes one layer of a step, see lim_attention; on a GPU: queues it. The output of a row that sees no token is zero.
 * @return LIM_OK; on anything else output and decoder are as they were, except that LIM_ERROR_MEMORY, LIM_ERROR_INTERNAL
 * and LIM_ERROR_DEVICE (the driver refuses a launch) forget the step as lim_decoder_reset() does */
LIM_EXPORT lim_status lim_decoder_attend(lim_decoder *decoder, const lim_attention *attention);

/* The token set of a row, ascending; *count is 0 if no set was chosen, and if the row saw no more tokens than the budget.
 * On the CPU: slots, of the current step. On a GPU: positions, of the last finished step, one whose last layer
 * (n_layers - 1) has been computed; it waits for the device, and must not be called while a stream is being captured.
 * tokens may be NULL with a capacity of 0, to ask for *count.
 * @return LIM_OK; LIM_ERROR_SIZE if capacity < *count, tokens is then as it was */
LIM_EXPORT lim_status lim_decoder_token_set(lim_decoder *decoder, int32_t row, int32_t *tokens, int64_t capacity,
                                            int64_t *count);

/* For hosts that capture steps on a GPU, on an engine whose selection layers are found by measuring. There
 * lim_decoder_attend() also queues small copies to the host, and asks in later steps whether they have come: it still
 * waits for nothing. It finds out by itself whether the stream is being captured. A captured step keeps the layers'
 * roles at that time, however often it is replayed, and is neither measured nor audited. So call this
 * before each step, replayed or not:
 *
 *     lim_decoder_poll(decoder, &generation, &eager);
 *     if (eager)                         run the step without capture;
 *     else if (generation != captured)   capture the step again, captured = generation;
 *     else                               replay;
 *
 * *generation changes when the roles do. A graph of an older generation still computes what it was captured for.
 * *eager is 1 if the coming step should be measured or audited: about 60 steps in a row while the model is measured,
 * otherwise about every 16th. If a host never runs such a step without capture, no selection layers are found, and its steps stay
 * dense. Hosts that capture nothing need not call this, nor those whose engine has its layers given: *eager is 0 there and
 * *generation stays the same, unless lim_engine_ablate() is in force, which makes *eager 1. On the CPU *eager is 0. Waits
 * for nothing. Not to be called while this thread captures.
 * @return LIM_OK; LIM_ERROR_DEVICE if the driver reports an error of earlier work */
LIM_EXPORT lim_status lim_decoder_poll(lim_decoder *decoder, uint64_t *generation, int32_t *eager);

/* ---------------------------------------------------------------------------------------------
 * Statistics
 * ------------------------------------------------------------------------------------------- */

/* What was counted. Tokens are counted once per layer. The caller sets struct_size. */
typedef struct lim_stats {
    size_t   struct_size;
    uint64_t steps;
    uint64_t rows;        /* query tokens, once per step */
    uint64_t rows_sparse; /* of them, with more visible tokens than the budget, in steps that are neither measured nor dense */
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

/* The counts of one decoder, or of all decoders of an engine, ended ones included.
 * A decoder on a GPU counts on the device, as its steps finish (their last layer, n_layers - 1): it counts replayed steps, but
 * no unfinished ones and no times. measured_steps, dense_steps and audits are of steps that were queued without capture.
 * lim_decoder_stats() waits for the device and reads, and must not be called
 * while a stream is being captured; lim_engine_stats() has what was last read in that way. */
LIM_EXPORT lim_status lim_decoder_stats(lim_decoder *decoder, lim_stats *stats);
LIM_EXPORT lim_status lim_engine_stats(lim_engine *engine, lim_stats *stats);

/* The engine's configuration and statistics as JSON, zero-terminated. *needed is the size with the terminating zero;
 * it may grow from call to call. buffer may be NULL with a size of 0, to ask for *needed; needed may be
 * NULL.
 * @return LIM_OK; LIM_ERROR_SIZE if size < *needed, buffer is then as it was */
LIM_EXPORT lim_status lim_engine_stats_json(lim_engine *engine, char *buffer, size_t size, size_t *needed);

/* ---------------------------------------------------------------------------------------------
 * Function table
 * ------------------------------------------------------------------------------------------- */

/* Every function above: what it returns, its name without lim_, and what it takes. Functions are only ever added at the
 * end. */
#define LIM_API_FUNCTIONS(X)                                                                                                  \
    X(uint32_t, version_number, (void))                                                                                       \
    X(const char *, version_string, (void))                                                                                   \
    X(const char *, last_error, (void))                                                                                       \
    X(const char *, status_name, (lim_status status))                                                                         \
    X(lim_status, engine_default_params, (lim_engine_params * params, size_t struct_size))                                    \
    X(lim_status, engine_create, (const lim_engine_params *params, lim_engine **engine))                                      \
    X(lim_status, engine_free, (lim_engine * engine))                                                                         \
    X(lim_status, engine_stats, (lim_engine * engine, lim_stats * stats))                                                     \
    X(lim_status, engine_stats_json, (lim_engine * engine, char *buffer, size_t size, size_t *needed))                        \
    X(lim_status, engine_ablate, (lim_engine * engine, int32_t select, int32_t sparse))                                       \
    X(lim_status, ggml_engine, (lim_engine * *engine))                                                                        \
    X(lim_status, decoder_work_size, (lim_engine * engine, const lim_decoder_params *params, uint64_t *size))                 \
    X(lim_status, decoder_create, (lim_engine * engine, const lim_decoder_params *params, lim_decoder **decoder))             \
    X(lim_status, decoder_free, (lim_decoder * decoder))                                                                      \
    X(lim_status, decoder_reset, (lim_decoder * decoder))                                                                     \
    X(lim_status, decoder_attend, (lim_decoder * decoder, const lim_attention *attention))                                    \
    X(lim_status, decoder_token_set, (lim_decoder * decoder, int32_t row, int32_t *tokens, int64_t capacity, int64_t *count)) \
    X(lim_status, decoder_stats, (lim_decoder * decoder, lim_stats * stats))                                                  \
    X(lim_status, decoder_poll, (lim_decoder * decoder, uint64_t *generation, int32_t *eager))                                \
    X(lim_status, engine_try, (lim_engine * engine, const int32_t *layers, int64_t layers_count))                             \
    X(lim_status, profile_for_quality, (const char *profile, double quality, char *buffer, size_t size, size_t *needed))

/* These functions, for hosts that load the library at run time: a host that knows more of them than struct_size covers
 * must not call those. */
typedef struct lim_api {
    size_t struct_size;
#define LIM_API_FIELD(type, name, arguments) type(*name) arguments;
    LIM_API_FUNCTIONS(LIM_API_FIELD)
#undef LIM_API_FIELD
} lim_api;

/* The table of a version: LIM_API_VERSION.
 * @return the table, valid for ever; NULL for a version that the library does not have, see lim_last_error() */
LIM_EXPORT const lim_api *lim_get_api(uint32_t version);

#ifdef __cplusplus
}
#endif

#endif /* LESSISMORE_H */
