/* Choosing a row's token set from its logits, in steps that threads share: rank the heads (or sum up their
 * softmax), then merge. Used by lim_cpu_attend behind the scores and by lim_cpu_select. */
#ifndef LESSISMORE_CPU_SELECT_H
#define LESSISMORE_CPU_SELECT_H

#include "ranking.h"
#include "work.h"

namespace lessismore {

/* One row's selection; what its steps leave for each other. */
struct Selection {
    const float   *logits; /* [heads][n] */
    int64_t        stride;
    int32_t        heads, n;
    int32_t        sinks, mid, recent; /* the split of the budget */
    int32_t        policy;
    const float   *attention_sinks; /* [heads] for the softmax's denominator, or NULL */
    const int32_t *slots;           /* of the positions; NULL: the same */
    int32_t       *set;             /* the answer, ascending */

    uint32_t *ranks;   /* union: [heads][mid], positions best first */
    float    *largest; /* mass: [heads] */
    float    *inverse; /* mass: [heads] */
    float    *mass;    /* mass: [n] */

    void Take(Arena *arena);
};

/* Memory of a thread. */
struct SelectScratch {
    uint32_t *keys, *positions;
    uint64_t *items, *spare;
    uint64_t *chosen; /* a bit per position */

    void Take(Arena *arena, int32_t n, int32_t mid);
};

/* Step 1, per head. Step 2, `mass` only, split into parts. Step 3, per row. A barrier between them. */
void RankHead(const RankingKernels &kernels, const Selection &selection, int head, const SelectScratch &scratch);
void AddUpMass(const RankingKernels &kernels, const Selection &selection, int part, int parts);
void WriteSet(const RankingKernels &kernels, const Selection &selection, const SelectScratch &scratch);

}  // namespace lessismore

#endif
