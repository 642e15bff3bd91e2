/* The CUDA kernels' face: decode attention and token selection on device memory.
 *
 * Plain C, so that the kernels, the launcher (launch.c), Go (cgo) and the tests (ctypes) share it. Nothing
 * here allocates or waits: the caller owns all memory, states its stream, and has checked every argument
 * with lim_cuda_check. Addresses are device addresses. What changes from step to step (lengths, block
 * table, token set) is read from device memory and grids depend on none of it, so a captured graph
 * replays while the sequences grow, up to the capacity it was planned for.
 *
 * "Slot" is a row of the K/V store; "position" is a token's logical place in its sequence; a "page" is a
 * power of two of consecutive slots. Strides are in bytes.
 */
#ifndef LESSISMORE_KERNELS_CUDA_H
#define LESSISMORE_KERNELS_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Element types; the first five are the numbers of lim_dtype in lessismore.h. */
enum {
    LIM_CUDA_F32 = 0, /* query and output only */
    LIM_CUDA_F16 = 1,
    LIM_CUDA_BF16 = 2,
    LIM_CUDA_Q8_0 = 3, /* key and value only: blocks of 32, f16 scale and 32 x int8 (ggml's layout) */
    LIM_CUDA_Q4_0 = 4, /* key and value only: blocks of 32, f16 scale and 16 bytes of two elements, 16 apart (ggml's layout) */
    LIM_CUDA_FP8 = 5,  /* key and value only: e4m3 */
};

enum {
    LIM_CUDA_FULL = 0, /* attend to every visible token */
    LIM_CUDA_SELECT = 1, /* the same, and leave what the selection needs of the logits (and log-sum-exps) */
    LIM_CUDA_SPARSE = 2, /* attend to each row's token set */
};

enum {
    LIM_CUDA_UNION = 0,
    LIM_CUDA_MASS = 1,
};

enum {
    LIM_CUDA_MAX_HEADS = 512,
    LIM_CUDA_MAX_GROUP = 16,      /* query heads per KV head */
    LIM_CUDA_MAX_ROWS = 4096,
    LIM_CUDA_MAX_TOP_K = 16384,   /* tokens that the ranking may choose */
    LIM_CUDA_MAX_RANKED = 8192,   /* candidates that are ranked without sorting */
    LIM_CUDA_MAX_TOKENS = 1 << 20, /* visible tokens of a row that selects */
};

/* What the card is, for planning. */
typedef struct lim_cuda_device {
    int32_t multiprocessors;
    int32_t shared_per_multiprocessor; /* bytes */
    int32_t shared_per_block;          /* bytes, the most that a kernel may ask for */
    int32_t capability;                /* compute capability: 10 * major + minor; 90 has kernels of its own; 0: not known */
} lim_cuda_device;

/* K or V. The row of a slot: data + (slot >> page_shift) * page_stride + (slot % page) * token_stride +
 * kv_head * head_stride. Without a table, slot is the position and page_stride goes from sequence to sequence. */
typedef struct lim_cuda_store {
    uint64_t data;
    int64_t  token_stride;
    int64_t  head_stride;
    int64_t  page_stride;
} lim_cuda_store;

/* Query or output: [row][head][dim], last dimension contiguous. */
typedef struct lim_cuda_rows {
    uint64_t data;
    int64_t  row_stride;
    int64_t  head_stride;
    int32_t  type;
    int32_t  reserved;
} lim_cuda_rows;

/* One layer's attention for a batch of rows (one query token each), and the selection after it. */
typedef struct lim_cuda_call {
    lim_cuda_rows  query, output;
    lim_cuda_store key, value;
    uint64_t       lengths; /* int32 [n_rows]: visible tokens, the row's own included */
    uint64_t       table;   /* int32 [n_rows][table_stride]: pages in position order; 0: no pages */
    int64_t        table_stride; /* elements */
    uint64_t       set;     /* int32 [n_rows][set_stride]: slots in position order; SELECT's answer, SPARSE's input */
    int64_t        set_stride;   /* elements, at least budget */
    uint64_t       positions; /* int32 [n_rows][set_stride]: the set as positions, ascending; 0: not wanted */
    uint64_t       sinks;   /* float [heads]: a further logit in the softmax's denominator; 0: none */
    uint64_t       work;    /* lim_cuda_work_size bytes, 256-byte aligned, zeroed before first use */
    int64_t        kv_tokens; /* that all rows above the budget see together, at most: more, and nothing is chosen; 0: rows * capacity */
    int32_t        n_rows;
    int32_t        heads, kv_heads;
    int32_t        dim;       /* 64, 128 or 256; with F16 and BF16 any multiple of 16 up to 256, with Q8_0 and Q4_0 also 96 */
    int32_t        kv_type;   /* F16, BF16, FP8, Q8_0 or Q4_0 */
    int32_t        page_shift; /* log2 of the page; read with a table only */
    int32_t        capacity;  /* no length will be above this */
    float          scale;     /* logit = softcap(scale * q.k); an fp8 key's scale is folded in by the caller */
    float          softcap;   /* c > 0: c * tanh(x / c); 0: none */
    float          value_scale; /* of an fp8 value; 1 elsewhere */
    int32_t        mode;      /* LIM_CUDA_FULL ... */
    int32_t        policy;    /* LIM_CUDA_UNION ... */
    /* The split of the budget for rows with more visible tokens than it: sink_tokens + top_k + recent == budget.
     * Rows with no more take all their tokens as their set. */
    int32_t budget;
    int32_t sink_tokens, top_k, recent;
    int32_t lasting;   /* 1: token sets may serve later steps, too (lim_cuda_join); the same in all calls of a decoder */
    int32_t reserved;
} lim_cuda_call;

/* Names the first argument that the kernels cannot take, with its value, in text; returns 0 if there is none,
 * 1 if it is never right, 2 if it is right but not possible here. */
int lim_cuda_check(const lim_cuda_device *device, const lim_cuda_call *call, char *text, size_t size);

/* Bytes of work memory for calls of this shape in any mode: rows, heads, KV heads, dim, capacity, budget count.
 * The memory must be zero when first used; each call leaves it ready for the next one on the same stream, which may
 * have other rows, lengths and mode, but not another kv_heads. Calls that may run at the same time need separate work memory. Monotone in each of
 * n_rows, capacity, top_k and heads. */
size_t lim_cuda_work_size(const lim_cuda_device *device, const lim_cuda_call *call);

/* Where a selection leaves a uint32: 0, or 1 where it had no room in kv_tokens and chose nothing. At 1, SPARSE attends to everything.
 * Returns 0 with neither kv_tokens nor lasting: then there are always sets. */
uint64_t lim_cuda_no_sets(const lim_cuda_device *device, const lim_cuda_call *call);

/* ---- launching ---- */

enum {
    LIM_CUDA_NAME = 48,         /* room for an entry point's name */
    LIM_CUDA_MOST_ENTRIES = 16, /* that calls of one shape need */
};

/* One kernel launch: entry point by name, grid, block, dynamic shared memory. */
typedef struct lim_cuda_launch {
    char     name[LIM_CUDA_NAME];
    uint32_t grid[3];
    uint32_t block;
    uint32_t shared;
    uint32_t cluster; /* blocks of a cluster, along the grid's first axis; 0: no clusters */
    uint32_t pdl;     /* 1: programmatic dependent launch: may start before the kernel queued before it is done, and waits for it by itself */
} lim_cuda_launch;

/* TMA takes a map's address only if it is a multiple of 64, in the kernel's arguments too. The host has them
 * where it likes: offset and size are such multiples. */
#ifdef __CUDACC__
#define LIM_CUDA_MAP alignas(64)
#else
#define LIM_CUDA_MAP
#endif

/* What a kernel gets, by value. */
typedef struct lim_cuda_args {
    lim_cuda_call         call;
    uint64_t              parts;    /* float: partial results of the splits */
    uint64_t              arrivals; /* uint32 [n_rows * kv_heads] */
    uint64_t              gathered; /* uint32 [n_rows]: arrivals of the selection */
    uint64_t              logits;   /* float, room_stride for each head of each row: see LogitAt in order.h; or see logit_filter.h */
    uint64_t              sums;     /* float [n_rows][heads]: log-sum-exp, for `mass` */
    uint64_t              ranks;    /* uint32 [n_rows][heads], RankStride(top_k) for each: positions, `need` or all; `union` */
    uint64_t              mass;     /* float [n_rows][logit_stride]; `mass` */
    int64_t               logit_stride; /* the capacity, rounded up */
    uint32_t              chunk_tokens; /* tokens of a KV chunk: see split.h */
    int32_t               stages;   /* depth of a warp's pipeline */
    int32_t               group;
    int32_t               room;     /* candidates that a ranking can hold: a power of two */
    uint32_t              together; /* heads whose logits are interleaved */
    uint32_t              cluster;  /* blocks that share a work tile and merge in shared memory; 0: see split.h */
    uint32_t              tma;      /* 1: tiles are loaded by TMA, through the maps that lim_cuda_encode makes */
    uint32_t              need;     /* ranks of each head that are found first: see RanksNeeded in order.h */
    int64_t               room_stride; /* floats from a head's room for logits to the next one's: two for a token, which filtered ones need */
    uint64_t              survivors; /* lim_cuda_survivors [n_rows][heads][LIM_CUDA_FILTER_LISTS]; 0: all logits are stored */
    uint64_t              no_sets;  /* uint32: see lim_cuda_no_sets */
    uint64_t              again;    /* uint32 [n_rows][heads]: 1 where logits were computed once more, and lie in the head's room */
    uint64_t              queries;  /* float [n_rows][heads][dim], of rows whose logits are filtered: the caller's may be gone by then */
    uint32_t              floats;   /* of a head's room for a token: room_stride over logit_stride */
    uint32_t              reserved[9];
    LIM_CUDA_MAP uint64_t key_map[16], value_map[16]; /* CUtensorMap */
} lim_cuda_args;

/* Plans the launches of a call: attention and, in SELECT mode, the selection. Returns how many (1 or 2). */
int lim_cuda_plan(const lim_cuda_device *device, const lim_cuda_call *call, lim_cuda_args *args, lim_cuda_launch launches[2]);

/* The same with all logits stored, for who reads them besides the selection. */
int lim_cuda_plan_all(const lim_cuda_device *device, const lim_cuda_call *call, lim_cuda_args *args, lim_cuda_launch launches[2]);

/* All entry points that calls like this one may need, whatever their rows, lengths, mode, policy and table. Returns how many. */
int lim_cuda_entry_points(const lim_cuda_device *device, const lim_cuda_call *call, char names[LIM_CUDA_MOST_ENTRIES][LIM_CUDA_NAME]);

/* Completes the arguments of a plan's attention by what only the driver can make, in a context (CUcontext) of the device.
 * Returns a CUresult. */
int lim_cuda_encode(void *context, lim_cuda_args *args);

/* The selection alone, from given logits (float [n_rows][heads][logit_stride], device memory); for tests and
 * hosts that have their own. sums (float [n_rows][heads]) is needed for `mass`. */
int lim_cuda_plan_select(const lim_cuda_device *device, const lim_cuda_call *call, uint64_t logits, int64_t logit_stride,
                         uint64_t sums, lim_cuda_args *args, lim_cuda_launch launches[2]);

#ifdef __cplusplus
}
#endif
#endif
