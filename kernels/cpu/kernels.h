/* The CPU kernels' face: decode attention, token selection, mask scan.
 *
 * Plain C so that Go (cgo) and the ggml shim share it. Nothing here allocates, locks or logs;
 * the caller owns all memory and has checked every argument (capi and plugin do).
 *
 * Every kernel is called by `nth` threads at once, each with its own `ith` in [0, nth): the caller's
 * threads or the pool's. Kernels of several phases meet at a barrier inside `work`.
 *
 * Strides are in bytes. "Slot" is a row of the K/V store; "position" is a token's logical place in
 * its sequence. Lists of visible slots are in position order.
 */
#ifndef LESSISMORE_KERNELS_CPU_H
#define LESSISMORE_KERNELS_CPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Element types; the numbers are those of lim_dtype in lessismore.h. */
enum {
    LIM_CPU_F32 = 0,
    LIM_CPU_F16 = 1,
    LIM_CPU_BF16 = 2,
    LIM_CPU_Q8_0 = 3, /* blocks of 32: f16 scale, 32 x int8 (ggml's layout) */
    LIM_CPU_Q4_0 = 4, /* blocks of 32: f16 scale, 16 bytes; element i in the low nibble of byte i for
                         i < 16, in the high nibble of byte i - 16 for i >= 16; value (nibble - 8) * scale */
};

/* Bounds that every caller keeps. */
enum {
    LIM_CPU_MAX_DIM = 256, /* head_dim, a multiple of 16 (of 32 for quantised types) */
    LIM_CPU_MAX_HEADS = 512,
};

/* What a call does with its rows. */
enum {
    LIM_CPU_FULL = 0, /* attend to every visible token */
    LIM_CPU_SELECT = 1, /* the same, and choose each sparse row's token set */
    LIM_CPU_SPARSE = 2, /* attend to each sparse row's token set only */
};

/* Ranking policies (selection). */
enum {
    LIM_CPU_UNION = 0, /* merge of the heads' rankings, rank by rank (the reference) */
    LIM_CPU_MASS = 1, /* sum over heads of softmax probability */
};

typedef struct lim_cpu_tensor {
    void   *data;
    int64_t token_stride;  /* query, output: from one query token to the next; K, V: from slot to slot */
    int64_t head_stride;   /* from head to head (K, V: KV head to KV head) */
    int64_t stream_stride; /* from stream to stream (parallel K/V stores of one host tensor); with a table, from page to page */
    int32_t type;          /* LIM_CPU_F32 ... ; query and output: F32, F16 or BF16 */
} lim_cpu_tensor;

/* One query token and what it sees. Shared by all layers of a step. */
typedef struct lim_cpu_row {
    int32_t         token;  /* index of the query token inside its stream */
    int32_t         stream; /* index of the stream */
    int32_t         n;      /* visible tokens */
    const int32_t  *slots;  /* the visible slots in position order; NULL: 0 .. n-1 */
    const uint16_t *mask;   /* additive f16 mask by slot; NULL: zero for every visible token */
    /* Sparse rows (set_n > 0, set_n < n): the budget's split, sink_tokens + top_k + recent == set_n. */
    int32_t  sink_tokens; /* the first tokens, always in the set */
    int32_t  top_k;       /* how many the ranking chooses among positions [sink_tokens, n - recent) */
    int32_t  recent;      /* the newest tokens, always in the set */
    int32_t  set_n;       /* size of the token set; 0: the row attends to everything in every layer */
    int32_t *set;         /* [set_n] slots, ascending; SELECT writes it, SPARSE reads it */
} lim_cpu_row;

/* What thread 0 adds up, in nanoseconds and counts, after each call. */
typedef struct lim_cpu_timing {
    uint64_t attend_ns; /* whole call, selection included */
    uint64_t select_ns; /* of it, the selection and the probe */
} lim_cpu_timing;

/* What a SELECT call measures besides, for one of its rows: how much of each head's attention other token
 * sets of the row would keep, and how much the set that the call itself chooses keeps. Sets are lists of
 * positions (indices of visible tokens), in any order, each position once. */
typedef struct lim_cpu_probe {
    int32_t        row;        /* index of the row; nothing happens unless it selects */
    int32_t        n_sets;     /* other sets */
    int32_t        set_n;      /* positions in each of them */
    int64_t        set_stride; /* from one to the next, in elements */
    const int32_t *sets;       /* or NULL without any */
    int32_t       *own;        /* [row's set_n] the call's own set is written here, as positions */
    float         *kept;       /* [n_sets + 1][heads] share of each head's softmax on each set, the own one last;
                                  the attention sink counts in the denominator; or NULL: only own is wanted */
} lim_cpu_probe;

/* One layer's attention for a batch of rows. */
typedef struct lim_cpu_call {
    lim_cpu_tensor       query;  /* [stream][head][token][dim_k] by strides; last dimension contiguous */
    lim_cpu_tensor       key;    /* [stream][kv_head][slot][dim_k] */
    lim_cpu_tensor       value;  /* [stream][kv_head][slot][dim_v] */
    lim_cpu_tensor       output; /* [stream][head][token][dim_v] */
    int32_t              heads;    /* query heads */
    int32_t              kv_heads; /* divides heads; query head h reads KV head h / (heads / kv_heads) */
    int32_t              dim_k;
    int32_t              dim_v;
    float                scale;   /* logit = softcap(scale * q.k) + slope * mask */
    float                softcap; /* c > 0: c * tanh(x / c); 0: none */
    const float         *slopes;  /* [heads] ALiBi slope that multiplies the mask, or NULL: 1 */
    const float         *sinks;   /* [heads] extra logit in the softmax's denominator, or NULL */
    int32_t              mode;    /* LIM_CPU_FULL ... */
    int32_t              policy;  /* LIM_CPU_UNION ... ; SELECT only */
    const lim_cpu_row   *rows;
    int32_t              n_rows;
    void                *work;    /* 64-byte aligned; see lim_cpu_work_size */
    lim_cpu_timing      *timing;  /* or NULL */
    const lim_cpu_probe *probe; /* SELECT only; or NULL */
    /* [stream][table_stride] pages, or NULL: then a stream's store is one piece. Slot t of a stream is at place
     * t % (1 << page_shift) of page table[t >> page_shift]; K and V then have no stream but pages, of any number. */
    const int32_t *table;
    int64_t        table_stride; /* in elements */
    int32_t        page_shift;
} lim_cpu_call;

/* Bytes of work memory that `call` needs when up to `nth` threads run it. The memory must be zero when
 * first used; every call leaves it ready for the next one, of any shape that fits. Calls that run at
 * the same time need separate work memory. Monotone in each of: n of the rows, n_rows, heads, dims, nth. */
size_t lim_cpu_work_size(const lim_cpu_call *call, int nth);

/* Runs the call; returns when this thread's part is done. The output is complete when all nth returned.
 * A row with no visible token gives zeros. NaN inputs give NaN outputs, never a wrong address.
 * Arithmetic is f32, within 1e-6 of float64 on the same stored numbers; but keys in blocks are multiplied by a query of 16 bits
 * (q4_0 with AVX-512 excepted), which costs about a hundredth of what storing them in blocks costs. */
void lim_cpu_attend(const lim_cpu_call *call, int ith, int nth);

/* The selection alone, from given logits, for tests and hosts that have their own.
 * logits: [heads][n] f32 in position order, stride in floats. positions: [sink_tokens + top_k + recent], ascending.
 * Ranks per head: larger logit first, ties by lower position, -0 equals +0, NaN last (after -inf).
 * work: lim_cpu_select_work_size bytes, 64-byte aligned, zeroed before first use. */
size_t lim_cpu_select_work_size(int32_t heads, int32_t n, int32_t top_k, int nth);
void   lim_cpu_select(const float *logits, int64_t stride, int32_t heads, int32_t n, int32_t sink_tokens, int32_t top_k,
                      int32_t recent, int32_t policy, int32_t *positions, void *work, int ith, int nth);

/* Scans one mask row of n_kv values (type LIM_CPU_F16 or LIM_CPU_F32): a slot is visible unless its value
 * is -inf. Writes the visible slots, ascending, to `slots` ([n_kv], or NULL to count only). Returns how many.
 * flags gets LIM_CPU_PREFIX if they are exactly 0 .. n-1, LIM_CPU_PLAIN if each visible value is zero. */
enum { LIM_CPU_PREFIX = 1,
       LIM_CPU_PLAIN = 2 };
int32_t lim_cpu_visible(const void *mask, int32_t type, int32_t n_kv, int32_t *slots, uint32_t *flags);

/* Prints: hashes of the first bytes of a K store's rows, noted once a row is written. A row whose print is another one
 * has changed since, whoever did that. Two rows with the same print hold the same keys, as far as 64 bits tell. */
typedef struct lim_cpu_prints {
    const void *rows;   /* slot 0's */
    int64_t     stride; /* from slot to slot */
    int64_t     slots;
    uint64_t   *noted;  /* [slots] 0: none, which no print is */
    int32_t     bytes;  /* of a row */
} lim_cpu_prints;

/* The prints of slots base + list[0 .. n-1], or of base .. base + n-1 where list is NULL. */
void lim_cpu_prints_read(const lim_cpu_prints *of, int64_t base, const int32_t *list, int32_t n, uint64_t *prints);
/* How many of these slots, counted from the first one, hold what is noted of them. */
int32_t lim_cpu_prints_hold(const lim_cpu_prints *of, int64_t base, const int32_t *list, int32_t n);
/* Notes the prints of slots of the store. */
void lim_cpu_prints_note(const lim_cpu_prints *of, const int64_t *list, int64_t n);

/* Threads for callers that have none. A pool runs one task at a time; create returns NULL when out of
 * memory or threads. run calls task(arg, ith, nth) on nth <= size threads, the caller being ith 0. */
typedef struct lim_cpu_pool lim_cpu_pool;
lim_cpu_pool               *lim_cpu_pool_create(int size);
void                        lim_cpu_pool_run(lim_cpu_pool *pool, int nth, void (*task)(void *arg, int ith, int nth), void *arg);
void                        lim_cpu_pool_free(lim_cpu_pool *pool);

/* Name of the instruction set in use: "AVX3_DL", "AVX3", "AVX2", "NEON", ... (Highway's names). */
const char *lim_cpu_target(void);

#ifdef __cplusplus
}
#endif
#endif
