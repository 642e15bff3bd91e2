/* From a token of a row to where it lies in the K/V store. */
#ifndef LESSISMORE_CUDA_PAGES_CUH
#define LESSISMORE_CUDA_PAGES_CUH

#include "kernels.h"

namespace lessismore {

/* The page of a row's token; with a table only. */
__device__ __forceinline__ int PageOf(const lim_cuda_call &call, int row, int token) {
    return __ldg((const int32_t *)call.table + (int64_t)row * call.table_stride + (token >> call.page_shift));
}
__device__ __forceinline__ int InPage(const lim_cuda_call &call, int slot) { return slot & ((1 << call.page_shift) - 1); }

__device__ __forceinline__ int SlotOf(const lim_cuda_call &call, int row, int token) {
    if (call.table == 0) return token;
    return PageOf(call, row, token) << call.page_shift | InPage(call, token);
}

/* K or V of a KV head, and of the row where there is no table. */
struct Store {
    const uint8_t *base;
    int64_t        token_stride, page_stride;
};
__device__ __forceinline__ Store StoreOf(const lim_cuda_call &call, const lim_cuda_store &s, int row, int kv_head) {
    const int64_t from_row = call.table != 0 ? 0 : (int64_t)row;
    return {(const uint8_t *)s.data + kv_head * s.head_stride + from_row * s.page_stride, s.token_stride, s.page_stride};
}
__device__ __forceinline__ const uint8_t *SlotAddress(const lim_cuda_call &call, const Store &s, int slot) {
    if (call.table == 0) return s.base + (int64_t)slot * s.token_stride;
    return s.base + (slot >> call.page_shift) * s.page_stride + (int64_t)InPage(call, slot) * s.token_stride;
}

}  // namespace lessismore

#endif
