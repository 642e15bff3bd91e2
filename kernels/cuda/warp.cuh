/* What warps do together. */
#ifndef LESSISMORE_CUDA_WARP_CUH
#define LESSISMORE_CUDA_WARP_CUH

#include <stdint.h>

namespace lessismore {

constexpr uint32_t kAll = 0xffffffffu;

__device__ __forceinline__ uint32_t WarpScan(uint32_t x, int lane) { /* inclusive */
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t other = __shfl_up_sync(kAll, x, d);
        if (lane >= d) x += other;
    }
    return x;
}

}  // namespace lessismore

#endif
