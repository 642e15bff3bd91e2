/* A block of a kernel on the host, from the kernel's own source: a fibre for each thread, which runs until it waits for others of its
 * warp or block. Blocks run one after the other. Included before the kernel's source, instead of mma.cuh: what there is an
 * instruction is here what the PTX manual says that it does. Copies into shared memory come when they are waited for, and no earlier.
 *
 * Not here: TMA and clusters. */
#ifndef LESSISMORE_SIMT_H
#define LESSISMORE_SIMT_H

#define LESSISMORE_CUDA_MMA_CUH

#include <ucontext.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "half.h"

namespace simt {

struct Index {
    unsigned x, y, z;
};

constexpr int kStack = 1 << 17, kMostShared = 232448;

/* Where so many threads wait for each other. */
struct Meeting {
    int      came = 0;
    unsigned turn = 0;
};

struct Thread {
    ucontext_t              context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    bool                    done = false;
    /* Asynchronous copies: those asked for, by groups. */
    struct Copy {
        uint8_t       *to;
        const uint8_t *from;
        uint32_t       bytes, all;
    };
    std::vector<std::vector<Copy>> groups{1};
    size_t                         come = 0;
};

struct Warp {
    Meeting  meeting;
    unsigned turn[32] = {}; /* operations of each lane */
    uint64_t given[2][32][6];
};

struct Block {
    std::vector<Thread>   threads;
    std::vector<Warp>     warps;
    Meeting               barriers[16];
    int                   now = 0;
    ucontext_t            scheduler;
    std::function<void()> body;
};
inline Block *block;
alignas(1024) inline uint8_t dynamic_shared[kMostShared];

inline void Yield() { swapcontext(&block->threads[block->now].context, &block->scheduler); }
inline void Meet(Meeting &m, int all) {
    const unsigned turn = m.turn;
    if (++m.came == all) {
        m.came = 0, m.turn++;
    } else {
        while (m.turn == turn) Yield();
    }
}
inline int Lane() { return block->now & 31; }

/* What each lane of the warp gives, of six words. The next exchange but one writes to the same place, when all have read. */
template <class T>
const uint64_t (&Exchange(const T &mine))[32][6] {
    static_assert(sizeof(T) <= 48);
    Warp &w = block->warps[block->now / 32];
    auto &given = w.given[w.turn[Lane()]++ & 1];
    std::memcpy(given[Lane()], &mine, sizeof mine);
    Meet(w.meeting, 32);
    return given;
}
template <class T>
T Given(const uint64_t (&given)[32][6], int lane) {
    T x;
    std::memcpy(&x, given[lane], sizeof x);
    return x;
}

}  // namespace simt

inline simt::Index threadIdx, blockIdx, gridDim;

namespace simt {

inline void Begin() {
    block->body();
    block->threads[block->now].done = true;
}

inline void RunBlock(int threads, const std::function<void()> &body) {
    Block the;
    block = &the;
    the.body = body;
    the.threads = std::vector<Thread>(threads);
    the.warps.resize(threads / 32);
    std::memset(dynamic_shared, 0xff, sizeof dynamic_shared); /* NaN in every type */
    for (Thread &t : the.threads) {
        getcontext(&t.context);
        t.context.uc_stack = {t.stack.get(), 0, kStack};
        t.context.uc_link = &the.scheduler;
        makecontext(&t.context, Begin, 0);
    }
    for (bool some = true; some;) {
        some = false;
        for (the.now = 0; the.now < threads; the.now++) {
            if (the.threads[the.now].done) continue;
            some = true;
            threadIdx = {static_cast<unsigned>(the.now), 0, 0};
            swapcontext(&the.scheduler, &the.threads[the.now].context);
        }
    }
    block = nullptr;
}
/* Runs a grid of blocks of so many threads, one block after the other. */
inline void Launch(unsigned grid, int threads, const std::function<void()> &body) {
    gridDim = {grid, 1, 1};
    for (unsigned b = 0; b < grid; b++) {
        blockIdx = {b, 0, 0};
        RunBlock(threads, body);
    }
}

}  // namespace simt

/* ---- the language ---- */

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__    __attribute__((noinline))
#define __shared__      static /* one block at a time */
#define __CUDA_ARCH__   800

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
using std::max;
using std::min;

template <class T> T    __ldg(const T *from) { return *from; }
template <class T> T    __ldcg(const T *from) { return *from; }
template <class T> void __stcg(T *to, T v) { *to = v; }
inline uint32_t         atomicAdd(uint32_t *to, uint32_t v) { return (*to += v) - v; }
inline void             __threadfence() {}
inline void             __syncthreads() { simt::Meet(simt::block->barriers[0], static_cast<int>(simt::block->threads.size())); }
inline void             __syncwarp() { simt::Exchange(0); }
inline int              __popc(uint32_t x) { return __builtin_popcount(x); }
inline int              __ffs(int x) { return __builtin_ffs(x); }
inline float            __uint_as_float(uint32_t x) {
    float v;
    std::memcpy(&v, &x, 4);
    return v;
}
inline uint32_t __float_as_uint(float x) {
    uint32_t v;
    std::memcpy(&v, &x, 4);
    return v;
}

template <class T> T __shfl_sync(uint32_t, T v, int lane) { return simt::Given<T>(simt::Exchange(v), lane & 31); }
template <class T> T __shfl_xor_sync(uint32_t, T v, int by) { return simt::Given<T>(simt::Exchange(v), simt::Lane() ^ by); }
template <class T> T __shfl_up_sync(uint32_t, T v, int by) {
    const int from = simt::Lane() - by;
    return simt::Given<T>(simt::Exchange(v), from < 0 ? simt::Lane() : from);
}
inline uint32_t __ballot_sync(uint32_t, bool v) {
    const auto &given = simt::Exchange(v);
    uint32_t    all = 0;
    for (int l = 0; l < 32; l++) all |= static_cast<uint32_t>(simt::Given<bool>(given, l)) << l;
    return all;
}
uint32_t    __reduce_add_sync(uint32_t, uint32_t); /* of the logit filter, which is Hopper's */
uint32_t    __reduce_min_sync(uint32_t, uint32_t);
uint32_t    __reduce_max_sync(uint32_t, uint32_t);
inline bool __any_sync(uint32_t all, bool v) { return __ballot_sync(all, v) != 0; }
inline bool __all_sync(uint32_t all, bool v) { return __ballot_sync(all, v) == 0xffffffffu; }

/* ---- mma.cuh ---- */

namespace lessismore {

/* Shared variables and dynamic_shared are of one image, less than 2 GiB from each other. */
inline uint32_t SharedAddress(const void *p) { return static_cast<uint32_t>(reinterpret_cast<intptr_t>(p) - reinterpret_cast<intptr_t>(simt::dynamic_shared)); }
inline uint8_t *SharedAt(uint32_t address) { return simt::dynamic_shared + static_cast<int32_t>(address); }

inline uint8_t                            *DynamicShared() { return simt::dynamic_shared; }
template <int kBarrier, int kThreads> void MeetAt() { simt::Meet(simt::block->barriers[kBarrier], kThreads); }
inline uint64_t                            StreamPolicy() { return 0; }
template <int kBytes> void                 CopyAsync(uint32_t to, const void *from, uint32_t bytes, uint64_t) {
    if (to % kBytes != 0 || reinterpret_cast<uintptr_t>(from) % kBytes != 0) std::abort();
    simt::block->threads[simt::block->now].groups.back().push_back({SharedAt(to), static_cast<const uint8_t *>(from), bytes, kBytes});
}
inline void                  CopyAsyncPair(uint32_t to, const void *from) { CopyAsync<4>(to, from, 4, 0); }
inline void                  CopyCommit() { simt::block->threads[simt::block->now].groups.emplace_back(); }
template <int kPending> void CopyWait() {
    simt::Thread &t = simt::block->threads[simt::block->now];
    for (; t.come + 1 + kPending < t.groups.size(); t.come++) {
        for (const auto &c : t.groups[t.come]) {
            std::memcpy(c.to, c.from, c.bytes);
            std::memset(c.to + c.bytes, 0, c.all - c.bytes);
        }
        t.groups[t.come].clear();
    }
}
inline void StoreShared(uint32_t to, uint4 v) { std::memcpy(SharedAt(to), &v, sizeof v); }
inline void StoreShared(uint32_t to, uint32_t v) { std::memcpy(SharedAt(to), &v, sizeof v); }

/* Of Hopper's kernels, which are not instantiated here. */
void        MbarrierInit(uint64_t *);
void        MbarrierExpect(uint32_t, uint32_t);
void        MbarrierWait(uint32_t, uint32_t);
void        MbarrierFenceCluster();
void        MbarrierWaitCluster(uint64_t *);
void        TmaLoad(uint32_t, const uint64_t *, int, int, int, int, uint32_t, uint64_t);
void        FenceAsyncProxy();
uint32_t    ClusterRank();
void        ClusterArrive();
void        ClusterWait();
uint32_t    InBlock(uint32_t, uint32_t);
void        StoreInBlock(uint32_t, float4, uint32_t);
void        StoreInBlock(uint32_t, float2, uint32_t);
void        PdlWait();
void        StoreToStay(uint2 *, uint2);
inline void PdlLaunchDependents() {}

/* Four matrices of 8 x 8, whose rows' addresses the lanes give, eight after eight. */
inline void LoadMatrices(uint32_t (&r)[4], uint32_t from) {
    const auto &given = simt::Exchange(from);
    for (int m = 0; m < 4; m++) std::memcpy(&r[m], SharedAt(simt::Given<uint32_t>(given, m * 8 + simt::Lane() / 4)) + simt::Lane() % 4 * 4, 4);
}
inline void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t from) {
    const auto &given = simt::Exchange(from);
    for (int m = 0; m < 4; m++) {
        for (int i = 0; i < 2; i++) {
            std::memcpy(reinterpret_cast<uint8_t *>(&r[m]) + i * 2, SharedAt(simt::Given<uint32_t>(given, m * 8 + simt::Lane() % 4 * 2 + i)) + simt::Lane() / 4 * 2, 2);
        }
    }
}
inline uint16_t HalfOf(uint32_t two, int which) { return static_cast<uint16_t>(two >> which * 16); }
inline uint32_t TransposeMatrix(uint32_t r) {
    const auto &given = simt::Exchange(r);
    const int   row = simt::Lane() / 4, column = simt::Lane() % 4 * 2;
    const auto  at = [&](int i, int j) { return HalfOf(simt::Given<uint32_t>(given, i * 4 + j / 2), j % 2); };
    return at(column, row) | static_cast<uint32_t>(at(column + 1, row)) << 16;
}

/* c[16][8] += a[16][16] * b[16][8] */
template <bool kBf16>
void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Given {
        uint32_t a[4], b[2];
    };
    const auto &given = simt::Exchange(Given{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const auto  number = [](uint32_t two, int which) { return kBf16 ? simt::FromBfloat(HalfOf(two, which)) : simt::FromHalf(HalfOf(two, which)); };
    for (int i = 0; i < 4; i++) {
        const int row = simt::Lane() / 4 + i / 2 * 8, column = simt::Lane() % 4 * 2 + i % 2;
        double    sum = c[i];
        for (int k = 0; k < 16; k++) {
            const Given left = simt::Given<Given>(given, row % 8 * 4 + k % 8 / 2), right = simt::Given<Given>(given, column * 4 + k % 8 / 2);
            sum += static_cast<double>(number(left.a[k / 8 * 2 + row / 8], k % 2)) * number(right.b[k / 8], k % 2);
        }
        c[i] = static_cast<float>(sum);
    }
}

template <bool kBf16>
uint32_t PackPair(float low, float high) {
    return kBf16 ? simt::ToBfloat(low) | static_cast<uint32_t>(simt::ToBfloat(high)) << 16 : simt::ToHalf(low) | static_cast<uint32_t>(simt::ToHalf(high)) << 16;
}

template <uint32_t kMask, uint32_t kBits> uint32_t MaskedOr(uint32_t x) { return (x & kMask) | kBits; }

inline float Exp2(float x) { return std::exp2(x); }

}  // namespace lessismore

#endif
