/* Between attend.cc, which plans a call and splits it over threads, and attention.cc, the arithmetic. */
#ifndef LESSISMORE_CPU_ATTENTION_H
#define LESSISMORE_CPU_ATTENTION_H

#include <stddef.h>

#include "kernels.h"

namespace lessismore {

/* Tokens that are scored, exponentiated and added up together. */
constexpr int kTile = 32;

/* What attending to a KV chunk of a row's tokens alone gives. Parts merge by log-sum-exp. */
struct Part {
    float *row_max; /* [heads] the largest logit */
    float *row_sum; /* [heads] sum of exp(logit - row_max) */
    float *value;   /* [heads][dim_v] sum of the values with those weights */

    Part(float *memory, int heads) : row_max(memory), row_sum(memory + heads), value(memory + 2 * heads) {}
    static size_t Floats(int heads, int dim_v) { return ((size_t)heads * (dim_v + 2) + 31) / 16 * 16; }
};

struct KvChunk {
    const lim_cpu_call *call;
    const lim_cpu_row  *row;
    const int32_t      *slots;      /* list of slots to attend to; NULL: the slot is the index */
    int32_t             length;     /* of the list */
    int32_t             begin, end; /* indices into the list */
    int32_t             next;       /* where this thread goes on after that, if in the same row; or -1 */
    float              *logits;     /* [heads][logit_stride], written at the indices; or NULL */
    int64_t             logit_stride;
};

struct AttentionKernels {
    /* The row's query with the scale, as its keys' type wants it (query-inl.h), in the room of f32 [heads][dim_k]. */
    void (*load_query)(const lim_cpu_call *call, const lim_cpu_row *row, float *query);
    /* scratch: kScratchPerHead floats for each head and kTile more. */
    void (*attend)(const KvChunk &chunk, const float *query, float *scratch, const Part &part);
    /* Merges one head's parts (memory of Part::Floats each), adds the attention sink, divides, writes the output. */
    void (*merge)(const lim_cpu_call *call, const lim_cpu_row *row, int head, float *parts, int n_parts);
};
constexpr int kScratchPerHead = kTile + 16;

const AttentionKernels *AttentionFor(int64_t target);

}  // namespace lessismore

#endif
