/* Which slots each row sees; see visible.h. A row has one block, or several where its table is long: each warp counts its share of
 * the mask and, where a table is wanted, learns how many slots the warps before it found, and writes its own. The mask is then read
 * twice, the second time from the cache; what other blocks have, a block counts once more, which is faster than waiting for them.
 * Once per step, beside the attention of all its layers. */
#include "visible.h"

namespace lessismore {

__device__ __forceinline__ void LoadMask(const uint16_t *mask, int slot, int n_slots, uint32_t (&words)[4]) {
    if (slot < n_slots) {
        const uint4 v = *(const uint4 *)(mask + slot);
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else {
        words[0] = words[1] = words[2] = words[3] = 0xfc00fc00u;
    }
}

}  // namespace lessismore

extern "C" __global__ void __launch_bounds__(LIM_CUDA_VISIBLE_WARPS * 32) lim_visible(const __grid_constant__ lim_cuda_visible v) {
    using namespace lessismore;
    __shared__ int32_t found[LIM_CUDA_VISIBLE_WARPS], earlier[LIM_CUDA_VISIBLE_WARPS];
    const int          row = (int)blockIdx.x, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const uint16_t    *mask = (const uint16_t *)VisibleMask(&v, row);
    const int          part = (int)blockIdx.y, parts = (int)gridDim.y, chunk = VisibleChunk(v.n_slots, LIM_CUDA_VISIBLE_WARPS * parts);
    const int          from = part * LIM_CUDA_VISIBLE_WARPS * chunk; /* the block's first slot */
    const int          begin = from + warp * chunk, end = min(begin + chunk, v.n_slots);

    int others = 0;
#pragma unroll 4
    for (int at = warp * LIM_CUDA_VISIBLE_STEP; at < min(from, v.n_slots); at += LIM_CUDA_VISIBLE_WARPS * LIM_CUDA_VISIBLE_STEP) {
        uint32_t words[4];
        LoadMask(mask, at + lane * LIM_CUDA_VISIBLE_LANE, v.n_slots, words);
        others += __popc(VisibleBits(words));
    }
    int count = 0, odd = 0;
#pragma unroll 4
    for (int at = begin; at < end; at += LIM_CUDA_VISIBLE_STEP) {
        uint32_t words[4];
        LoadMask(mask, at + lane * LIM_CUDA_VISIBLE_LANE, v.n_slots, words);
        count += __popc(VisibleBits(words));
        odd |= VisibleOdd(words);
    }
    count = __reduce_add_sync(0xffffffffu, count);
    others = __reduce_add_sync(0xffffffffu, others);
    if (__any_sync(0xffffffffu, odd) && lane == 0) *(volatile uint32_t *)v.odd = 1;
    if (lane == 0) found[warp] = count, earlier[warp] = others;
    __syncthreads();

    int before = 0, all = 0;
    for (int w = 0; w < LIM_CUDA_VISIBLE_WARPS; w++) {
        before += earlier[w] + (w < warp ? found[w] : 0);
        all += earlier[w] + found[w];
    }
    if (threadIdx.x == 0 && part == parts - 1) ((int32_t *)v.lengths)[row] = all;
    if (v.table == 0) return;
    int32_t  *to = (int32_t *)v.table + row * v.table_stride + before;
    const int first = VisibleFirst(&v, row);
    for (int at = begin; at < end; at += LIM_CUDA_VISIBLE_STEP) {
        uint32_t  words[4];
        const int slot = at + lane * LIM_CUDA_VISIBLE_LANE;
        LoadMask(mask, slot, v.n_slots, words);
        const uint32_t bits = VisibleBits(words);
        if (__all_sync(0xffffffffu, bits == 0xff)) { /* the visible past: whole lines */
            for (int i = 0; i < LIM_CUDA_VISIBLE_LANE; i++) to[i * 32 + lane] = first + at + i * 32 + lane;
            to += LIM_CUDA_VISIBLE_STEP;
            continue;
        }
        const int own = __popc(bits);
        int       up = own;
        for (int d = 1; d < 32; d *= 2) {
            const int left = __shfl_up_sync(0xffffffffu, up, d);
            if (lane >= d) up += left;
        }
        VisibleWrite(bits, first + slot, to + up - own);
        to += __shfl_sync(0xffffffffu, up, 31);
    }
}
