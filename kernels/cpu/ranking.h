/* Between select.cc, which merges rankings into a token set, and ranking.cc, the passes over the logits. */
#ifndef LESSISMORE_CPU_RANKING_H
#define LESSISMORE_CPU_RANKING_H

#include <stddef.h>
#include <stdint.h>

namespace lessismore {

struct RankingKernels {
    /* Candidates for the `want` largest of x[0, n): writes keys (0 is the largest possible value, more is
     * smaller; NaN is the largest key) and positions in ascending order within equal keys. The candidates are
     * a superset of the answer, at least `want` (or n) and at most `capacity` of them; capacity >= 3 * want.
     * keys and positions have room for 16 more. Returns how many. */
    size_t (*candidates)(const float *x, size_t n, size_t want, size_t capacity, uint32_t *keys, uint32_t *positions);
    /* The largest of x[0, n) (NaN left out) and the sum of exp(x - row_max). */
    void (*softmax_stats)(const float *x, size_t n, float *row_max, float *row_sum);
    /* mass[t] = sum over heads, in order, of exp(x[h][t] - row_max[h]) * inverse[h], for t in [begin, end),
     * multiples of 16 except the last end. NaN logits add nothing, nor does a head whose inverse is 0. */
    void (*add_up)(const float *x, int64_t stride, int heads, size_t begin, size_t end, const float *row_max,
                   const float *inverse, float *mass);
};

const RankingKernels *RankingFor(int64_t target);

}  // namespace lessismore

#endif
