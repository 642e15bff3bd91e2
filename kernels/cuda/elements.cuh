/* Queries, outputs and logits, one element or four at a time. */
#ifndef LESSISMORE_CUDA_ELEMENTS_CUH
#define LESSISMORE_CUDA_ELEMENTS_CUH

#include "kernels.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace lessismore {

__device__ __forceinline__ float LoadElement(const uint8_t *from, int type, int i) {
    switch (type) {
    case LIM_CUDA_F16: return __half2float(((const __half *)from)[i]);
    case LIM_CUDA_BF16: return __bfloat162float(((const __nv_bfloat16 *)from)[i]);
    default: return ((const float *)from)[i];
    }
}

__device__ __forceinline__ void StoreFour(uint8_t *to, int type, int i, float4 v) {
    switch (type) {
    case LIM_CUDA_F16: {
        __half *p = (__half *)to + i;
        p[0] = __float2half_rn(v.x), p[1] = __float2half_rn(v.y), p[2] = __float2half_rn(v.z), p[3] = __float2half_rn(v.w);
        break;
    }
    case LIM_CUDA_BF16: {
        __nv_bfloat16 *p = (__nv_bfloat16 *)to + i;
        p[0] = __float2bfloat16_rn(v.x), p[1] = __float2bfloat16_rn(v.y);
        p[2] = __float2bfloat16_rn(v.z), p[3] = __float2bfloat16_rn(v.w);
        break;
    }
    default: {
        float *p = (float *)to + i;
        p[0] = v.x, p[1] = v.y, p[2] = v.z, p[3] = v.w;
    }
    }
}

/* Out of line: code that is rare, or runs once, must not push the loop out of the instruction cache; at
 * these run times a kernel's first pass through its code is mostly waiting for it. */
static __device__ __noinline__ float SoftCap(float x, float cap) { return cap * tanhf(x / cap); }

}  // namespace lessismore

#endif
