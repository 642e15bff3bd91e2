/* Measuring on the device what token sets keep: the CUDA side of lim_cpu_probe.
 *
 * Behind a SELECT call that stores all logits (lim_cuda_plan_all), which are still in its work memory, one launch finds how
 * much of each head's softmax other token sets of a row would keep and how much the set that the call chose for it
 * keeps, and adds up what the others lose. Sums stay in device memory, so that a step of a measurement needs nothing of the host.
 * No atomic adds: a place belongs to one thread, so sums are the same bits in every run of the same calls. */
#ifndef LESSISMORE_CUDA_PROBE_H
#define LESSISMORE_CUDA_PROBE_H

#include "launch.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LIM_CUDA_MAX_PROBED = 4096 }; /* sets that one probe looks at */

/* What a SELECT call measures besides, for one of its rows. Sets are lists of positions, each once, in any order.
 * A position that the row does not see counts for nothing. A row that sees no more than the call's budget has nothing
 * to choose and takes no part. */
typedef struct lim_cuda_probe {
    uint64_t own;        /* int32 [min(n, call's budget)]: the set that the call chooses for the row is written here */
    uint64_t sets;       /* int32 [n_sets][set_stride]: the others, min(n, set_budget) positions in each */
    int64_t  set_stride; /* elements */
    uint64_t stamps;     /* uint32 [n_sets + 1]: a set takes part if its stamp is `stamp`, which the last one, the
                            own set's, is given; 0: all take part */
    uint64_t kept;       /* float [n_sets + 1][heads]: share of each head's softmax on each set, the own one last; the
                            attention sink counts in the denominator; -1 where nothing takes part; 0: not wanted */
    uint64_t count;      /* uint32 [n_sets]: grows by 1 for each set that takes part; 0: nothing is added up */
    uint64_t sum;        /* float [n_sets][heads]: own share less the set's, added up */
    uint64_t square;     /* float [n_sets][heads]: its square, likewise */
    int32_t  row;        /* of the call */
    int32_t  n_sets;
    int32_t  set_budget;
    int32_t  least; /* nor does one that sees fewer tokens than this: the host may know its length late */
    uint32_t stamp;
    int32_t  reserved;
} lim_cuda_probe;

/* What the kernel gets: the same, with the call's part. */
typedef struct lim_cuda_probe_args {
    lim_cuda_probe probe;
    uint64_t       length; /* int32: visible tokens of the row */
    uint64_t       logits; /* float, room_stride for each head: of the row; see LogitAt in order.h */
    uint64_t       sums;   /* float [heads]: log-sum-exp */
    int64_t        room_stride;
    int32_t        heads;
    int32_t        own_budget;
    uint32_t       together; /* heads whose logits are interleaved */
    int32_t        reserved;
} lim_cuda_probe_args;

/* As lim_cuda_check, for a probe behind a call that has passed it. */
int lim_cuda_check_probe(const lim_cuda_call *call, const lim_cuda_probe *probe, char *text, size_t size);

/* Plans three launches: the call's attention for all its rows; the selection, for the probe's row alone, so that the
 * sets of call->set stay as they are; the probe. */
void lim_cuda_plan_probe(const lim_cuda_device *device, const lim_cuda_call *call, const lim_cuda_probe *probe,
                         lim_cuda_args *attend, lim_cuda_args *select, lim_cuda_probe_args *measure, lim_cuda_launch launches[3]);

/* A measured call that is ready to run. */
typedef struct lim_cuda_probe_plan {
    lim_cuda_plan_t     attend, select;
    lim_cuda_probe_args probe;
    lim_cuda_launch     launches[3]; /* as planned; the first two are in the plans as well */
    void               *function;    /* CUfunction of the last one */
} lim_cuda_probe_plan;

/* As lim_cuda_run. */
int lim_cuda_run_probe(const lim_cuda_probe_plan *plan, void *stream, void *attended);

#ifdef __cplusplus
}
#endif
#endif
