/* The few instructions that have no C++ name, one function each. */
#ifndef LESSISMORE_CUDA_MMA_CUH
#define LESSISMORE_CUDA_MMA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace lessismore {

__device__ __forceinline__ uint32_t SharedAddress(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* What the launch has given the block. */
__device__ __forceinline__ uint8_t *DynamicShared() {
    extern __shared__ __align__(1024) uint8_t shared[];
    return shared;
}

/* A barrier of the block's besides that of __syncthreads(). */
template <int kBarrier, int kThreads>
__device__ __forceinline__ void MeetAt() {
    asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

/* ---- asynchronous copies into shared memory ---- */

/* For what is read once: K and V leave the second-level cache first, the logits stay for the selection. */
__device__ __forceinline__ uint64_t StreamPolicy() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* For what is read again at once, and need not go to memory before. */
__device__ __forceinline__ void StoreToStay(uint2 *to, uint2 v) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("st.global.L2::cache_hint.v2.u32 [%0], {%1, %2}, %3;" ::"l"(to), "r"(v.x), "r"(v.y), "l"(policy) : "memory");
}

/* `bytes` of 0 reads nothing and writes zeros. Memory is read 128 bytes at a time: 1 % faster than by sectors or 256. */
template <int kBytes>
__device__ __forceinline__ void CopyAsync(uint32_t to, const void *from, uint32_t bytes, uint64_t policy) {
    if (kBytes == 16) {
        asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from), "r"(bytes), "l"(policy)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %3, %2, %4;" ::"r"(to), "l"(from), "r"(bytes), "n"(kBytes), "l"(policy)
                     : "memory");
    }
}
/* Four bytes that stay in the cache. */
__device__ __forceinline__ void CopyAsyncPair(uint32_t to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void CopyCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void CopyWait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void StoreShared(uint32_t to, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ void StoreShared(uint32_t to, uint32_t v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}

/* ---- TMA: a tile by one instruction of one thread ---- */

/* A barrier that counts the bytes that have come: one phase for each time that some are expected. */
__device__ __forceinline__ void MbarrierInit(uint64_t *full) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(SharedAddress(full)) : "memory");
#endif
}
__device__ __forceinline__ void MbarrierExpect(uint32_t full, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void MbarrierWait(uint32_t full, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    uint32_t done = 0;
    while (done == 0) {
        asm volatile("{.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;}"
                     : "=r"(done) : "r"(full), "r"(parity) : "memory");
    }
#endif
}
/* The box at `token` of a row's KV head, or, packed, of what begins there at an element; see lim_cuda_encode for the map's axes. */
__device__ __forceinline__ void TmaLoad(uint32_t to, const uint64_t *map, int element, int head, int token, int row, uint32_t full, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5, %8, %6}], [%2], %7;" ::"r"(to),
                 "l"(map), "r"(full), "r"(element), "r"(head), "r"(token), "r"(row), "l"(policy), "r"(0) : "memory");
#endif
}
/* Between a thread's own accesses to shared memory and TMA's. */
__device__ __forceinline__ void FenceAsyncProxy() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* ---- programmatic dependent launch (PDL): the kernel queued before this one, and the one after ---- */

/* Such a kernel must not touch what the kernel before it reads or writes until this returns. */
__device__ __forceinline__ void PdlWait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* From here on the next kernel may take what room is left. It waits by itself. */
__device__ __forceinline__ void PdlLaunchDependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* ---- clusters: blocks that write into each other's shared memory ---- */

__device__ __forceinline__ void ClusterArrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void ClusterWait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ uint32_t ClusterRank() {
    uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}
/* The place that is `address` here, in the block of that rank. */
__device__ __forceinline__ uint32_t InBlock(uint32_t address, uint32_t rank) {
    uint32_t there = address;
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
#endif
    return there;
}
/* Stores that the barrier `full` of the other block counts, by bytes: whoever waits for it sees them. */
__device__ __forceinline__ void StoreInBlock(uint32_t to, float4 v, uint32_t full) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(full) : "memory");
#endif
}
__device__ __forceinline__ void StoreInBlock(uint32_t to, float2 v, uint32_t full) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to), "f"(v.x), "f"(v.y), "r"(full) : "memory");
#endif
}
/* For what the cluster's other blocks send: by the thread that began the barrier, before the cluster's first one. */
__device__ __forceinline__ void MbarrierFenceCluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
/* Of the first phase, for what other blocks have sent. */
__device__ __forceinline__ void MbarrierWaitCluster(uint64_t *full) {
#if __CUDA_ARCH__ >= 900
    uint32_t done = 0;
    while (done == 0) {
        asm volatile("{.reg .pred p;\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\n\tselp.u32 %0, 1, 0, p;}"
                     : "=r"(done) : "r"(SharedAddress(full)) : "memory");
    }
#endif
}

/* ---- matrix fragments ---- */

__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
__device__ __forceinline__ uint32_t TransposeMatrix(uint32_t r) {
    uint32_t to;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(r));
    return to;
}

/* c[16][8] += a[16][16] * b[16][8] */
template <bool kBf16>
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if (kBf16) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

template <bool kBf16>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
    if (kBf16) {
        const __nv_bfloat162 p = __floats2bfloat162_rn(low, high);
        return *(const uint32_t *)&p;
    }
    const __half2 p = __floats2half2_rn(low, high);
    return *(const uint32_t *)&p;
}

/* x & mask | bits, as one instruction: two constants make the compiler take two. */
template <uint32_t kMask, uint32_t kBits>
__device__ __forceinline__ uint32_t MaskedOr(uint32_t x) {
    uint32_t y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(kMask), "r"(kBits));
    return y;
}

__device__ __forceinline__ float Exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace lessismore

#endif
