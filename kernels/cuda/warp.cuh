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

/* Room in a list for each lane's `own` entries: where its first one goes. */
__device__ __forceinline__ uint32_t TakeRoom(uint32_t &count, uint32_t own, int lane) {
    const uint32_t sum = WarpScan(own, lane);
    uint32_t       to = 0;
    if (lane == 31 && sum != 0) to = atomicAdd(&count, sum);
    return __shfl_sync(kAll, to, 31) + sum - own;
}

}  // namespace lessismore

#endif
