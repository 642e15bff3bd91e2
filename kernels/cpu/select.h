/* Choosing a row's token set from its logits, in steps that threads share: rank the heads (or sum up their
 * softmax), then merge. Used by lim_cpu_attend behind the scores and by lim_cpu_select. */
#ifndef LESSISMORE_CPU_SELECT_H
#define LESSISMORE_CPU_SELECT_H

#include "kernels.h"
#include "ranking.h"
#include "work.h"

namespace lessismore {

/* One row's selection; what its steps leave for each other. */
struct Selection {
    const float   *logits; /* [heads][n] */
    int64_t        stride;
    int32_t        heads, n;
    int32_t        sink_tokens, top_k, recent; /* the split of the budget */
    int32_t        policy;
    const float   *sinks; /* [heads] for the softmax's denominator, or NULL */
    const int32_t *slots;           /* of the positions; NULL: the same */
    int32_t       *set;             /* the answer, ascending */
    int32_t       *positions;       /* the answer as positions besides, or NULL */

    uint32_t *ranks;   /* union: [heads][top_k], positions best first, as far down as `depth` */
    uint32_t *shallow; /* union: set if `depth` was too little */
    float    *row_max; /* mass: [heads] */
    float    *inverse; /* mass: [heads] */
    float    *mass;    /* mass: [n] */

    void Take(Arena *arena);
};

/* Memory of a thread. */
struct SelectScratch {
    uint32_t *keys, *positions;
    uint64_t *items, *spare;
    uint64_t *chosen; /* a bit per position */

    void Take(Arena *arena, int32_t n, int32_t top_k);
};

/* How many ranks of each head to find at first. */
int32_t FirstDepth(const Selection &selection);

/* Step 1, per head. */
void RankHead(const RankingKernels &kernels, const Selection &selection, int head, int32_t depth, const SelectScratch &scratch);
/* Step 2, `mass` only, split into parts. */
void AddUpMass(const RankingKernels &kernels, const Selection &selection, int part, int parts);
/* Step 3, per row. Returns false if the ranks end before the budget is full: then every head needs step 1 again, as
 * deep as `top_k`, and this once more. */
bool WriteSet(const RankingKernels &kernels, const Selection &selection, int32_t depth, const SelectScratch &scratch);

/* All steps for all selections of a call, by all its threads: each(visit) calls visit(selection) for every one, in
 * the same order every time. */
template <class Each>
void SelectTogether(const RankingKernels &kernels, int32_t policy, Barrier *barrier, const SelectScratch &scratch, int ith, int nth,
                    Each each) {
    int64_t job = 0;
    each([&](const Selection &s) {
        for (int h = 0; h < s.heads; h++) {
            if (job++ % nth == ith) RankHead(kernels, s, h, FirstDepth(s), scratch);
        }
    });
    barrier->Wait(nth);
    if (policy == LIM_CPU_MASS) {
        each([&](const Selection &s) { AddUpMass(kernels, s, ith, nth); });
        barrier->Wait(nth);
    }
    job = 0;
    each([&](const Selection &s) {
        if (job++ % nth == ith) *s.shallow = !WriteSet(kernels, s, FirstDepth(s), scratch);
    });
    if (policy == LIM_CPU_MASS) return;

    barrier->Wait(nth);
    job = 0;
    bool any = false;
    each([&](const Selection &s) {
        if (*s.shallow == 0) return;
        any = true;
        for (int h = 0; h < s.heads; h++) {
            if (job++ % nth == ith) RankHead(kernels, s, h, s.top_k, scratch);
        }
    });
    if (!any) return;
    barrier->Wait(nth);
    job = 0;
    each([&](const Selection &s) {
        if (*s.shallow != 0 && job++ % nth == ith) WriteSet(kernels, s, s.top_k, scratch);
    });
}

/* Sets row_max and inverse of a head: its softmax is exp(logit - row_max) * inverse. */
void FindSoftmax(const RankingKernels &kernels, const Selection &selection, int head);

}  // namespace lessismore

#endif
