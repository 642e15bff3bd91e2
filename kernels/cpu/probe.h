/* Measuring what token sets keep, behind a selection whose logits are still there (lim_cpu_probe). */
#ifndef LESSISMORE_CPU_PROBE_H
#define LESSISMORE_CPU_PROBE_H

#include "kernels.h"
#include "select.h"

namespace lessismore {

/* Where the row's own set goes as positions; NULL where it is not probed. */
inline int32_t *OwnPositions(const lim_cpu_call &call, const lim_cpu_row &row) {
    return call.probe != nullptr && &row == call.rows + call.probe->row ? call.probe->own : nullptr;
}

/* Thread ith's part. The logits are gone afterwards. */
void Probe(const RankingKernels &kernels, const lim_cpu_probe &probe, const Selection &selection, int ith, int nth);

}  // namespace lessismore

#endif
