/* A head's logits become its softmax, in place, once; then each set costs one look-up for each of its tokens. */
#include "probe.h"

namespace lessismore {
namespace {

float Share(const float *softmax, const int32_t *positions, int32_t n) {
    float   sums[4] = {}; /* so that an addition need not wait for the one before */
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (int k = 0; k < 4; k++) sums[k] += softmax[positions[i + k]];
    }
    for (; i < n; i++) sums[0] += softmax[positions[i]];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

void Probe(const RankingKernels &kernels, const lim_cpu_probe &probe, const Selection &s, int ith, int nth) {
    for (int h = ith; h < s.heads; h += nth) {
        float *softmax = const_cast<float *>(s.logits) + h * s.stride; /* work memory that nobody reads after this */
        FindSoftmax(kernels, s, h);
        kernels.add_up(softmax, s.stride, 1, 0, (size_t)s.n, s.row_max + h, s.inverse + h, softmax);
        float *kept = probe.kept + h;
        for (int32_t i = 0; i < probe.n_sets; i++, kept += s.heads) {
            *kept = Share(softmax, probe.sets + i * probe.set_stride, probe.set_n);
        }
        *kept = Share(softmax, probe.own, s.sink_tokens + s.top_k + s.recent);
    }
}

}  // namespace lessismore
