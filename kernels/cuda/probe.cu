/* What token sets keep of a row's attention, from the logits that a SELECT call left. A block looks at one set for one
 * head, and at the row's own set again: that costs less than blocks that wait for each other. */
#include "probe.h"
#include "layout.h"
#include "order.h"
#include "warp.cuh"

#include <cuda_runtime.h>

namespace lessismore {
namespace probing {

constexpr int kThreads = LIM_CUDA_PROBE_THREADS;
constexpr int kWarps = kThreads / 32;

/* This thread's part of what a set keeps of a head: every kThreads-th token. */
static __device__ __forceinline__ float Share(const float *x, uint32_t together, float sum, uint32_t n, const int32_t *positions, uint32_t count) {
    float kept = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
        const uint32_t at = (uint32_t)__ldcg(positions + i);
        const float    p = at < n ? __expf(__ldcg(x + LogitAt(at, together)) - sum) : 0.0f;
        kept += p == p ? p : 0.0f; /* NaN adds nothing */
    }
    return kept;
}

/* The block's sums, in the same order whatever runs first. */
static __device__ __forceinline__ float2 BlockSum(float2 v) {
    __shared__ float2 warps[kWarps];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        v.x += __shfl_xor_sync(kAll, v.x, d);
        v.y += __shfl_xor_sync(kAll, v.y, d);
    }
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = warps[0];
#pragma unroll
    for (int w = 1; w < kWarps; w++) v.x += warps[w].x, v.y += warps[w].y;
    return v;
}

static __device__ void Probe(const lim_cuda_probe_args &args) {
    const lim_cuda_probe &probe = args.probe;
    const int             head = blockIdx.x, set = blockIdx.y;
    const bool            is_own = set == probe.n_sets;
    float                *kept = probe.kept == 0 ? nullptr : (float *)probe.kept + (int64_t)set * args.heads + head;
    uint32_t             *stamps = (uint32_t *)probe.stamps;
    const int             length = __ldg((const int32_t *)args.length);
    if (length <= args.own_budget || length < probe.least || (!is_own && stamps != nullptr && __ldcg(stamps + set) != probe.stamp)) {
        if (threadIdx.x == 0 && kept != nullptr) *kept = -1;
        return;
    }
    const uint32_t n = (uint32_t)length;
    const float   *x = (const float *)args.logits + LogitsOf(head, args.together, args.room_stride);
    const float    sum = __ldcg((const float *)args.sums + head);
    float2         share = {0, Share(x, args.together, sum, n, (const int32_t *)probe.own, (uint32_t)args.own_budget)};
    if (!is_own) share.x = Share(x, args.together, sum, n, (const int32_t *)probe.sets + set * probe.set_stride, min(n, (uint32_t)probe.set_budget));
    share = BlockSum(share);
    if (threadIdx.x != 0) return;
    if (kept != nullptr) *kept = is_own ? share.y : share.x;
    if (is_own) {
        if (stamps != nullptr && head == 0) stamps[set] = probe.stamp;
        return;
    }
    if (probe.count == 0) return;
    const float   lost = share.y - share.x;
    const int64_t at = (int64_t)set * args.heads + head;
    ((float *)probe.sum)[at] += lost;
    ((float *)probe.square)[at] += lost * lost;
    if (head == 0) ((uint32_t *)probe.count)[set]++;
}

}  // namespace probing
}  // namespace lessismore

extern "C" __global__ void __launch_bounds__(lessismore::probing::kThreads, 6) lim_probe(const __grid_constant__ lim_cuda_probe_args args) {
    lessismore::probing::Probe(args);
}
