/* What the hook reads out of one compute call of a ggml host, and what the plan answers.
 *
 * The shim (C++) describes, Go decides (plugin/ggml/session.go), the host's threads run. The structures are
 * mirrored in plugin/ggml/graph; both sides prove at build time that they agree.
 */
#ifndef LESSISMORE_GGML_GRAPH_H
#define LESSISMORE_GGML_GRAPH_H

#include <stdint.h>

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Why a node is left to the host; the numbers are those of plugin.Reason. The shim finds only what one
 * look at the node tells. */
enum {
    LIM_GGML_OFFLOADED   = 0,
    LIM_GGML_NO_CACHE    = 4,
    LIM_GGML_MLA         = 6,
    LIM_GGML_TYPE        = 7,
    LIM_GGML_SHAPE       = 8,
    LIM_GGML_SPARSE_HINT = 9,
};

/* Whether the library can take some of a node's rows. */
enum { LIM_GGML_WHOLE,   /* it cannot */
       LIM_GGML_DIVIDED, /* the host computes the others alone: see rest_tokens */
       LIM_GGML_OVERLAID /* the host computes all of them, and the library some of them once more behind it, at one stride */ };

/* The host's K store that a node reads or writes. */
typedef struct lim_ggml_store {
    uint64_t id;      /* address of the store's first byte */
    int64_t  slots;   /* per stream */
    int64_t  stride;  /* bytes from slot to slot, through all streams; 0: they do not lie like that */
    int32_t  streams;
    int32_t  row;     /* bytes of a slot's keys */
} lim_ggml_store;

/* One FLASH_ATTN_EXT node. */
typedef struct lim_ggml_node {
    lim_cpu_call   call; /* the shim fills tensors and shape, Go the rest */
    lim_ggml_store store;
    int32_t        layer;        /* the model's number, from the store's name */
    int32_t        first_stream; /* of the store, that the node's stream 0 is */
    int32_t        tokens;       /* query tokens per stream */
    int32_t        streams;
    int32_t        n_kv;         /* slots per stream that the node sees */
    int32_t        scan_type;    /* LIM_CPU_F16 or LIM_CPU_F32 */
    const void    *scan;         /* mask values that are there before the graph runs */
    const void    *before;       /* the same of the host's upload before this one, laid out in the same way; NULL: not known */
    uint64_t       upload, upload_before; /* numbers of these two uploads, on a GPU */
    int64_t        scan_token_stride, scan_stream_stride;
    const void    *mask;         /* the f16 mask that the node reads when it runs */
    int64_t        mask_token_stride, mask_stream_stride;
    float          max_bias;     /* ALiBi */
    int32_t        max_threads;  /* out: how many of the host's threads may share the call */
    int32_t        divides;      /* LIM_GGML_WHOLE ... */
    int32_t        reason;       /* in and out: LIM_GGML_OFFLOADED, or why the host keeps the node */
    /* For the log, of a node that the shim refuses: what is refused, of which type (the host's name) or else of which
     * value, and what would be taken. Texts that stay; NULL: the reason alone tells. */
    const char *what, *type, *remedy;
    int64_t     value;
    /* out: rows of an offloaded node that the host computes itself, of these tokens and streams; 0 tokens: none. All tokens of
     * a stream, if there are several streams. */
    int32_t rest_token, rest_tokens, rest_stream, rest_streams;
} lim_ggml_node;

/* One write into a K store. */
typedef struct lim_ggml_write {
    lim_ggml_store store;
    const void    *slots; /* [n] global slot numbers: stream * slots + index */
    int32_t        wide;  /* 1: int64, 0: int32 */
    int32_t        n;
} lim_ggml_write;

/* Positions of a store's tokens move (the host's K-shift). */
typedef struct lim_ggml_shift {
    uint64_t       store;
    const int32_t *delta; /* [n] by global slot */
    int32_t        n;
} lim_ggml_shift;

/* Rows of a K store whose prints are taken once the graph is computed. */
typedef struct lim_ggml_note {
    lim_cpu_prints prints;
    const int64_t *slots; /* [n] global slot numbers */
    int64_t        n;
} lim_ggml_note;

/* What a host did to a K store in a GPU's memory, behind its graphs. */
enum { LIM_GGML_WRITTEN, /* rows were put there; by prints, if there are any, it may be told which */
       LIM_GGML_COPIED,  /* rows of the same store */
       LIM_GGML_READ,    /* rows were read out */
       LIM_GGML_CLEARED /* all stores that lie in `n` bytes from address `store` on */ };
typedef struct lim_ggml_change {
    uint64_t        store;
    int64_t         first, n; /* global slots */
    int64_t         from;     /* of a copy */
    const uint64_t *prints;   /* of the rows, or NULL */
    int64_t         n_prints;
    int32_t         kind;
    int32_t         reserved;
} lim_ggml_change;

typedef struct lim_ggml_graph {
    lim_ggml_node         *nodes;
    lim_ggml_write        *writes;
    lim_ggml_shift        *shifts;
    const uint64_t        *rewritten; /* ids of K stores that the graph changes in a way that is not understood */
    const int32_t         *positions; /* of the batch's tokens, or NULL where this part of the graph has none, or several */
    const int32_t         *outputs;   /* ascending numbers of the batch's tokens that logits are wanted of */
    int32_t                n_nodes, n_writes, n_shifts, n_rewritten, n_positions;
    int32_t                n_outputs;    /* -1: this part of the graph does not tell */
    int32_t                n_batch;      /* tokens of the batch that outputs counts in */
    int32_t                n_rotations;  /* ROPE nodes, but for a K-shift's: the model has positions */
    int32_t                n_soft_max; /* masked softmax nodes: attention without flash attention */
    int32_t                knows_weights; /* out: the next graphs' weights need not be hashed */
    uint64_t               weights;    /* hash of this graph's weights and adapters, a sum over them; 0: not asked for */
    uint64_t               adapters;   /* which LoRA adapters are applied to them, and how much, and to which of the models that this backend has served */
    int32_t                first_block, last_block; /* of the model, whose weights were hashed; first_block -1: of none */
    int32_t                ends;       /* 1: so were those that follow the last block */
    const lim_ggml_note   *notes; /* out */
    int64_t                n_notes;
    const lim_ggml_change *changes; /* since the last graph, oldest first; on a GPU */
    int64_t                n_changes;
    int32_t                lost;     /* 1: there were more than is remembered */
    uint64_t               followed; /* out, on a GPU: the store whose rows are to be told apart; 0: it may be any, 1: none */
    uint64_t               form;     /* out, on a GPU: equal graphs of equal forms queue the same; 0: this one is like no other */
    int32_t                computed; /* 1: the host has computed it; nothing can be taken of it any more */
    int32_t                records;  /* 1: on a GPU, steps that are alike are recorded and replayed */
    int32_t                later;    /* out, 1: the next graph may be computed before it is planned: nothing would be taken of it */
    int32_t                trial;    /* out, 1: to be computed twice, see lim_go_ggml_again; the logits of row `output` of `rows` tell the two apart */
    int32_t                output, rows;
    int32_t                mixes;    /* out, on a GPU, 1: decode rows are taken out of batches with a prompt's, whose masks are to be kept */
    int32_t                reserved;
    uint64_t               host;     /* number of the host's context: that of the first of the backends that it has shown, by copies, to be its own */
} lim_ggml_graph;

#ifdef __cplusplus
}
#endif
#endif
