/* Brings keys and values of token sets into the second-level cache; see ahead.h. */
#include "ahead.h"
#include "pages.cuh"

extern "C" __global__ void __launch_bounds__(LIM_CUDA_AHEAD_THREADS) lim_ahead(const __grid_constant__ lim_cuda_call call, int row_bytes) {
    using namespace lessismore;
    const int row = (int)blockIdx.y, lines = (row_bytes + LIM_CUDA_AHEAD_LINE - 1) / LIM_CUDA_AHEAD_LINE;
    if (__ldg((const int32_t *)call.lengths + row) <= call.budget) return; /* it attends to all that it sees */
    const int32_t *set = (const int32_t *)call.set + row * call.set_stride;
    const int      each = 2 * call.kv_heads * lines, all = call.budget * each;
#pragma unroll 4
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < all; i += (int)(gridDim.x * blockDim.x)) {
        const int      rest = i % each, line = rest % lines, head = rest / lines % call.kv_heads;
        const Store    store = StoreOf(call, rest / lines < call.kv_heads ? call.key : call.value, row, head);
        const uint8_t *from = SlotAddress(call, store, __ldg(set + i / each)) + min(line * LIM_CUDA_AHEAD_LINE, row_bytes - 1);
        asm volatile("prefetch.global.L2::evict_last [%0];" ::"l"(from));
    }
}
