/* Where a row's logits and rankings lie. Either every row has room for the capacity, or the rows above the budget share a pool,
 * one after the other, by how much each sees (lim_cuda_call's kv_tokens). Where the pool is too small for what all rows see
 * together, none has room: then nothing is chosen, and until the next selection every layer attends to everything. */
#ifndef LESSISMORE_CUDA_ROOM_CUH
#define LESSISMORE_CUDA_ROOM_CUH

#include "kernels.h"
#include "layout.h"
#include "order.h"
#include "warp.cuh"

namespace lessismore {

/* By a whole warp: see PoolAdd. */
static __device__ __noinline__ PoolUse PoolUseOf(const lim_cuda_args &args, int row, int lane) {
    PoolUse use = {0, 0};
#pragma unroll 1
    for (int r = lane; r < args.call.n_rows; r += 32) {
        PoolAdd(&use, __ldg((const int32_t *)args.call.lengths + r), args.call.budget, r < row);
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        use.tokens += __shfl_xor_sync(kAll, use.tokens, d);
        use.before += __shfl_xor_sync(kAll, use.before, d);
    }
    return use;
}

constexpr uint32_t kNoRoom = 0xffffffffu;

/* The rooms before the row that the block is at, in shared memory: registers are short where it is read. */
__device__ __forceinline__ uint32_t &RoomsBefore() {
    __shared__ uint32_t rooms;
    return rooms;
}

/* By the whole block, where rows share room, once it comes to a row. Returns false if no row has any. */
__device__ __forceinline__ bool ComeToRow(const lim_cuda_args &args, int row) {
    if (args.call.kv_tokens == 0 || args.call.mode != LIM_CUDA_SELECT) return true;
    const PoolUse use = PoolUseOf(args, row, threadIdx.x & 31);
    const bool    fits = use.tokens <= (uint64_t)args.call.kv_tokens;
    if (threadIdx.x == 0) RoomsBefore() = fits ? use.before : kNoRoom;
    __syncthreads();
    return fits;
}

/* The room of the block's row, which sees n tokens, more than the budget. */
struct RowRoom {
    int row, n;

    __device__ __forceinline__ bool There(const lim_cuda_args &args) const { return args.call.kv_tokens == 0 || RoomsBefore() != kNoRoom; }
    /* Floats from a head's logits to the next one's. */
    __device__ __forceinline__ int64_t Stride(const lim_cuda_args &args) const {
        return args.call.kv_tokens == 0 ? args.room_stride : (int64_t)RoomsOf(n) * LIM_CUDA_ROOM * args.floats;
    }
    __device__ __forceinline__ float *Logits(const lim_cuda_args &args) const {
        const int64_t first = args.call.kv_tokens == 0 ? (int64_t)row * args.room_stride : (int64_t)RoomsBefore() * LIM_CUDA_ROOM * args.floats;
        return (float *)args.logits + first * args.call.heads;
    }
    __device__ __forceinline__ float *Mass(const lim_cuda_args &args) const {
        return (float *)args.mass + (args.call.kv_tokens == 0 ? (int64_t)row * args.logit_stride : (int64_t)RoomsBefore() * LIM_CUDA_ROOM);
    }
    __device__ __forceinline__ uint32_t *Ranks(const lim_cuda_args &args, int head) const {
        const int64_t which = args.call.kv_tokens == 0 ? row : RankingAfter(RoomsBefore(), row, args.call.budget);
        return (uint32_t *)args.ranks + (which * args.call.heads + head) * RankStride((uint32_t)args.call.top_k);
    }
};

/* Whether rows attend to their token sets. */
__device__ __forceinline__ bool HasSets(const lim_cuda_args &args) {
    return args.call.mode == LIM_CUDA_SPARSE && (args.no_sets == 0 || __ldg((const uint32_t *)args.no_sets) == 0);
}

}  // namespace lessismore

#endif
