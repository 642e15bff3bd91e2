/* Decode attention: one query token per row, all query heads of a KV head at once.
 *
 * Reading K and V is all the cost, so they are read once, in tiles of 16 tokens, through each warp's own
 * pipeline of asynchronous copies: warps hardly ever wait for each other until a split is done. The scores of a
 * tile, its weights and its values are three small matrix products in registers. Blocks take equal shares
 * of all work (split.h); splits of a work tile are merged by the last block to arrive, in the order
 * of the splits and not of the arrivals, so results are the same bits in every run.
 *
 * Softmax is kept in base 2. Weights are stored as f16 or bf16 for the second product; for f16 they are
 * shifted up by 2^kShift so that the weights of a diffuse head do not fall below its smallest numbers. */
#ifndef LESSISMORE_CUDA_ATTENTION_CUH
#define LESSISMORE_CUDA_ATTENTION_CUH

#include "elements.cuh"
#include "kernels.h"
#include "work_tile.cuh"
#include "rows.cuh"
#include "logit_filter.cuh"
#include "split.h"

namespace lessismore {

/* Warps of a block: more where a block has a multiprocessor for itself, since a short split's tiles then all run
 * side by side. */
constexpr int WarpsOf(bool short_work) { return short_work ? 8 : 4; }
constexpr int ThreadsOf(bool short_work) { return WarpsOf(short_work) * 32; }
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLowest = -3.0e38f; /* row_max of no logits: the difference of two must be a number */

/* Partial results: [group][dim] sums of values, then [group] row_max, [group] row_sum. */
__device__ __forceinline__ size_t PartFloats(int group, int dim) { return (size_t)(group * (dim + 2) + 3) / 4 * 4; }

/* The sink, the quotient, the output: four elements of one head. Weights are 2^shift too large. */
__device__ __forceinline__ void FinishHead(const lim_cuda_args &args, float shift, int row, int head, int d, float4 v, float row_max,
                                               float row_sum) {
    const lim_cuda_call &call = args.call;
    if (call.sinks != 0) {
        const float sink = __ldg((const float *)call.sinks + head) * kLog2e, larger = fmaxf(row_max, sink);
        const float shrink = Exp2(row_max - larger);
        v.x *= shrink, v.y *= shrink, v.z *= shrink, v.w *= shrink;
        row_sum = row_sum * shrink + Exp2(sink - larger + shift);
        row_max = larger;
    }
    if (call.mode == LIM_CUDA_SELECT && d == 0) {
        ((float *)args.sums)[(int64_t)row * call.heads + head] = (row_max - shift) * kLn2 + logf(row_sum);
    }
    const float inverse = row_sum == 0 ? 0.0f : call.value_scale / row_sum; /* no visible token: zeros */
    v.x *= inverse, v.y *= inverse, v.z *= inverse, v.w *= inverse;
    uint8_t *to = (uint8_t *)call.output.data + row * call.output.row_stride + (int64_t)head * call.output.head_stride;
    StoreFour(to, call.output.type, d, v);
}
static __device__ __noinline__ void FinishHeadOutOfLine(const lim_cuda_args &args, float shift, int row, int head, int d, float4 v, float row_max,
                                                        float row_sum) {
    FinishHead(args, shift, row, head, d, v, row_max, row_sum);
}

template <class Rows, int kDim, int kHeadTiles, bool kIndexed, bool kShort, bool kFilter>
struct Attention {
    static constexpr int   kWarps = WarpsOf(kShort);
    static constexpr int   kThreads = ThreadsOf(kShort);
    static constexpr int   kFragments = kDim / 16;
    static constexpr int   kSteps = Rows::kSteps;
    static constexpr float kShift = Rows::kBf16 ? 0.0f : 12.0f;
    static constexpr int   kChunks = Rows::kRowBytes / Rows::kCopy; /* copies of a row */
    static constexpr bool  kTma = Rows::kTma;
    static constexpr int   kMostStages = 6;
    static constexpr int   kMostCluster = 8; /* MAX_CLUSTER in plan.c */
    static constexpr int   kMergePitch = kDim + 4;
    static constexpr int   kAtOnce = 8; /* parts that the merge reads at once */
    /* With 16 heads of 256 elements the query does not fit the registers beside the values. */
    static constexpr bool  kQueryInRegisters = kFragments * kHeadTiles <= 16;
    static constexpr int   kQueryFragments = kQueryInRegisters ? kFragments : 1;

    struct Store {
        const uint8_t *base; /* of the KV head, and of the row where there is no table */
        int64_t        token_stride, page_stride;
    };

    const lim_cuda_args &args;
    uint8_t             *dsmem; /* where the other blocks of the cluster store to: see Send */
    uint64_t            *dsmem_full;
    uint8_t             *shared;
    int                  warp, lane, g, t;
    uint64_t             policy;
    uint32_t             full;   /* the warp's barriers, one for each stage, where TMA fills them */
    uint32_t             phases; /* a bit for each: which of its phases is next */
    int                 *tokens; /* the warp's stages' first tokens, where tiles come in another order */
    typename LogitFilter<kWarps>::Survivors *survivors;
    uint32_t             each, finish_first, finish_count;  /* SentFours, and those that this block finishes: see OpenDsmem */
    uint32_t             send_values, send_sums, send_full; /* where this thread's four goes */

    /* ---- copies ---- */

    __device__ __forceinline__ const uint8_t *Address(const Store &s, int slot) const {
        if (!kIndexed || args.call.table == 0) return s.base + (int64_t)slot * s.token_stride;
        const int page = slot >> args.call.page_shift, in_page = slot & ((1 << args.call.page_shift) - 1);
        return s.base + page * s.page_stride + (int64_t)in_page * s.token_stride;
    }

    /* The slot of a token of this row. */
    __device__ __forceinline__ int SlotOf(int row, int token, int end) const {
        if (token >= end) return 0;
        if (args.call.mode == LIM_CUDA_LIST) {
            return __ldg((const int32_t *)args.call.set + (int64_t)row * args.call.set_stride + token);
        }
        const int page = __ldg((const int32_t *)args.call.table + (int64_t)row * args.call.table_stride +
                               (token >> args.call.page_shift));
        return page << args.call.page_shift | (token & ((1 << args.call.page_shift) - 1));
    }
    /* Those of the warp's tiles that begin at `begin` (lanes 0 .. 15) and one turn later (16 .. 31). */
    __device__ __forceinline__ int TwoTiles(int row, int begin, int end) const {
        return kIndexed ? SlotOf(row, begin + (lane & 15) + (lane >> 4) * kWarps * kTile, end) : 0;
    }

    /* Starts copying a tile of `count` tokens (more than 16: all), or only its keys or values. Indexed, key and value are the
     * rows' addresses of the tile's tokens, from lane `from_lane` on; direct, they are that of its first token. */
    template <bool kKeys, bool kValues>
    __device__ __forceinline__ void Copy(uint32_t stage, const uint8_t *key, const uint8_t *value, const Store &keys, const Store &values,
                                         int count, int from_lane) const {
        constexpr bool kEven = kChunks <= 32 && 32 % kChunks == 0;
        constexpr int  kTurns = (kTile * kChunks + 31) / 32;
        /* Every lane keeps its column where a row's copies go evenly into a warp. */
#pragma unroll
        for (int i = 0; i < kTurns; i++) {
            const int c = i * 32 + lane;
            const int r = kEven ? lane / kChunks + i * (32 / kChunks) : min(c / kChunks, kTile - 1);
            const int column = (kEven ? lane % kChunks : c % kChunks) * Rows::kCopy;
            const uint8_t *from_key = key, *from_value = value;
            if (kIndexed) {
                if (kKeys) from_key = (const uint8_t *)__shfl_sync(kAll, (unsigned long long)key, from_lane + r);
                if (kValues) from_value = (const uint8_t *)__shfl_sync(kAll, (unsigned long long)value, from_lane + r);
            } else {
                const int row = min(r, count - 1);
                from_key += row * keys.token_stride;
                from_value += row * values.token_stride;
            }
            if (kEven || c < kTile * kChunks) {
                const uint32_t bytes = r < count ? Rows::kCopy : 0;
                const uint32_t to = stage + r * Rows::kPitch + column;
                if (kKeys) CopyAsync<Rows::kCopy>(to, from_key + column, bytes, policy);
                if (kValues) CopyAsync<Rows::kCopy>(to + StageOf<Rows>::kTileBytes, from_value + column, bytes, policy);
            }
        }
    }

    /* Until all groups of copies but the last few of kEach for each stage, less kLess, have come. */
    template <int kEach, int kLess>
    static __device__ __forceinline__ void WaitFor(int stages) {
        switch (stages) {
        case 2: CopyWait<2 * kEach - kLess>(); break;
        case 3: CopyWait<3 * kEach - kLess>(); break;
        case 4: CopyWait<4 * kEach - kLess>(); break;
        default: CopyWait<6 * kEach - kLess>(); break; /* 6 */
        }
    }
    /* The oldest tile; short, where keys and values are groups of their own, the older of a tile's two. */
    static __device__ __forceinline__ void WaitForOldest(int stages) { WaitFor<kShort ? 2 : 1, kShort ? 3 : 2>(stages); }

    /* ---- TMA ---- */

    __device__ __forceinline__ void OpenPipeline(uint64_t *barriers) {
        full = SharedAddress(barriers + warp * kMostStages);
        phases = 0;
        if (lane < kMostStages) MbarrierInit(barriers + warp * kMostStages + lane);
        FenceAsyncProxy();
        __syncwarp();
    }

    /* The tile from `token` on; of fewer than 16 tokens only those are read: a row's memory may end there. */
    __device__ __forceinline__ void LoadTile(int fill, uint32_t stage, const Store &keys, const Store &values, const WorkTile &work, int token,
                                             int count) const {
        constexpr int kBytes = StageOf<Rows>::kTileBytes;
        if (count < kTile) {
            LoadShortTile(stage, keys.base + (int64_t)token * keys.token_stride, keys.token_stride, count, lane);
            LoadShortTile(stage + kBytes, values.base + (int64_t)token * values.token_stride, values.token_stride, count, lane);
            __syncwarp();
        }
        if (lane != 0) return;
        MbarrierExpect(full + fill * 8, count < kTile ? 0 : 2 * kBytes);
        if (count < kTile) return;
        TmaLoad(stage, args.key_map, work.head, token, work.row, full + fill * 8, policy);
        TmaLoad(stage + kBytes, args.value_map, work.head, token, work.row, full + fill * 8, policy);
    }
    /* What is not there is zero. */
    static __device__ __noinline__ void LoadShortTile(uint32_t to, const uint8_t *from, int64_t stride, int count, int lane) {
#pragma unroll 1
        for (int i = lane; i < kTile * kChunks; i += 32) {
            const int row = i / kChunks, chunk = i % kChunks;
            uint4     v = {0, 0, 0, 0};
            if (row < count) v = __ldg((const uint4 *)(from + row * stride + chunk * 16));
            StoreShared(to + chunk / 8 * (kTile * 128) + Rows::Chunk(row, chunk % 8), v);
        }
    }

    /* ---- the query ---- */

    /* The block brings the group's query into shared memory, as the store's type and in the order of the
     * fragments; heads that are not there are zero. */
    static constexpr int kQueryPitch = kDim * 2 + 16;
    static constexpr int kQueryBytes = kTma ? (kHeadTiles * 8 * kQueryPitch + 1023) / 1024 * 1024 : kHeadTiles * 8 * kQueryPitch;

    __device__ __forceinline__ void StageQuery(const uint8_t *query) const {
        const int type = args.call.query.type;
#pragma unroll kTma ? kHeadTiles * 8 * (kDim / 2) / kThreads : 1
        for (int i = threadIdx.x; i < kHeadTiles * 8 * (kDim / 2); i += kThreads) {
            const int head = i / (kDim / 2), pair = i % (kDim / 2); /* of a step's eight: half * 4 + t */
            uint32_t  two = 0;
            if (head < args.group) {
                const uint8_t *from = query + head * args.call.query.head_stride;
                const int      d = Rows::QueryDim(pair / 8, pair / 4 % 2, pair % 4);
                if (type == (Rows::kBf16 ? LIM_CUDA_BF16 : LIM_CUDA_F16)) {
                    if constexpr (kShort) { /* ahead of the copies of K and V, which then need not wait for it */
                        CopyAsyncPair(SharedAddress(shared + head * kQueryPitch + pair * 4), from + d * 2);
                        continue;
                    }
                    two = __ldg((const uint32_t *)from + d / 2); /* the usual case needs no conversion */
                } else {
                    two = PackPair<Rows::kBf16>(LoadElement(from, type, d), LoadElement(from, type, d + 1));
                }
            }
            *(uint32_t *)(shared + head * kQueryPitch + pair * 4) = two;
        }
        if constexpr (kShort) CopyCommit();
    }
    static __device__ __forceinline__ void MeetForQuery() {
        asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
        if (kShort) ClusterWait(); /* long since over: all its blocks have begun, and may be sent to */
    }
    /* Two steps' fragments of eight heads. */
    __device__ __forceinline__ void QueryFragments(int tile, int step, uint32_t (&b)[4]) const {
        LoadMatrices(b, SharedAddress(shared) + (tile * 8 + (lane & 7)) * kQueryPitch + step * 32 + (lane >> 3) * 16);
    }

    /* ---- logits ---- */

    /* A tile of eight heads, 16 tokens of a head after 16 of another: each thread gets four tokens in a row of one head, so
     * that whole lines are written at once. What is beyond the row's tokens is room of the last tile and never read. */
    __device__ __forceinline__ void StoreLogits(float *tile, int h, const float (&x)[4]) const {
        const bool  odd = g & 1, upper = g & 2;
        const float low = __shfl_xor_sync(kAll, odd ? x[0] : x[1], 4), high = __shfl_xor_sync(kAll, odd ? x[2] : x[3], 4);
        /* Now of head 2t + odd: tokens g and g + 1 (or g - 1 and g), and the same in the upper eight. */
        const float2 a = odd ? float2{low, x[1]} : float2{x[0], low}, b = odd ? float2{high, x[3]} : float2{x[2], high};
        const float  first = __shfl_xor_sync(kAll, upper ? a.x : b.x, 8), second = __shfl_xor_sync(kAll, upper ? a.y : b.y, 8);
        const int    head = h * 8 + t * 2 + (odd ? 1 : 0);
        if (head >= args.group) return;
        const float4 four = upper ? float4{first, second, b.x, b.y} : float4{a.x, a.y, first, second};
        float4      *to = (float4 *)(tile + head * kTile + (upper ? 8 : 0) + (g >> 2) * 4);
        *to = four;
    }

    /* ---- a split ---- */

    /* Tokens [begin, end) of a row and KV head by the whole block. Whether the row's logits are filtered, is the row's. */
    __device__ __forceinline__ void Split(const WorkTile &work, int begin, int end, bool whole, uint32_t part, int slots, int more_slots,
                                          bool filters = false) {
        const lim_cuda_call &call = args.call;
        const int            group = args.group, row = work.row, kv_head = work.head;
        const int64_t        row_offset = call.table != 0 ? 0 : (int64_t)row;
        const Store key = {(const uint8_t *)call.key.data + kv_head * call.key.head_stride + row_offset * call.key.page_stride,
                           call.key.token_stride, call.key.page_stride};
        const Store value = {(const uint8_t *)call.value.data + kv_head * call.value.head_stride + row_offset * call.value.page_stride,
                             call.value.token_stride, call.value.page_stride};

        const int      stages = args.stages;
        const uint32_t warp_bytes = stages * StageOf<Rows>::kBytes + (Rows::kConvert ? StageOf<HalfRows<kDim, false>>::kBytes : 0);
        uint8_t       *mine = shared + kQueryBytes + warp * warp_bytes;
        uint8_t       *wide = mine + stages * StageOf<Rows>::kBytes;
        const uint32_t stage0 = SharedAddress(mine);

        /* The warp's tiles are warp, warp + kWarps, ... of the split. */
        const int turn = kWarps * kTile;
        int       next = begin + warp * kTile; /* the tile to copy next */

        const uint8_t *query = (const uint8_t *)call.query.data + row * call.query.row_stride + (int64_t)kv_head * group * call.query.head_stride;
        if constexpr (!kTma) StageQuery(query);
        /* The copies do not wait for it: warps meet when they first need it, those without a tile at the end. */
        bool     staged = false;
        uint32_t q[kHeadTiles][kQueryFragments][2];

        float o[kHeadTiles][kFragments][4];
        float row_max[kHeadTiles][2], row_sum[kHeadTiles][2];
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
            row_max[h][0] = row_max[h][1] = kLowest;
            row_sum[h][0] = row_sum[h][1] = 0;
#pragma unroll
            for (int f = 0; f < kFragments; f++) o[h][f][0] = o[h][f][1] = o[h][f][2] = o[h][f][3] = 0;
        }
        float *logits = nullptr;
        if (call.mode == LIM_CUDA_SELECT && work.tokens > call.budget) {
            logits = (float *)args.logits + ((int64_t)row * call.heads + (int64_t)kv_head * group) * args.room_stride;
        }
        LogitFilter<kWarps> filter = {survivors, (float *)(shared + kQueryBytes + kWarps * warp_bytes) + warp * (LIM_CUDA_FILTER_SAMPLES / kWarps),
                               (uint2 *)logits, (uint32_t)group, (uint32_t)args.logit_stride, begin, end, call.sink_tokens,
                               min(end, work.tokens - call.recent), warp, lane};
        TileOrder order = {};
        int       step = 0, samples = 0, sampled = 0; /* tiles of the warp */
        if constexpr (kFilter) {
            if (filters) {
                filter.Open();
                if (end - begin >= (int)FilterLeast(args.need, (uint32_t)group, kWarps) / 2) {
                    samples = (int)filter.Tiles();
                    step = (end - begin) / turn / samples;
                }
            }
            order = TileOrderFrom(next, samples);
        }

        /* The logits of a tile leave while the next one is waited for. */
        float before[4];
        int   before_token = -1;
        auto  leave = [&] {
            if (before_token < 0) return;
            if (kFilter && filters) {
                if (sampled < samples) {
                    filter.Sample(before, sampled, before_token);
                    if (++sampled == samples) {
                        const uint32_t split = end - begin, all = samples * kTile;
                        filter.SetBounds((uint32_t)((uint64_t)FilterAim(args.need, split) * all / split), begin + warp * kTile, step * turn);
                    }
                } else {
                    filter.Keep(before, before_token);
                }
            } else if (logits != nullptr) {
                StoreLogits(logits + (int64_t)before_token * group, 0, before);
            }
        };

        /* One loop both fills the pipeline and keeps it full: the first turns only copy. */
        int stage = 0, fill = 0, odd = 0;
#pragma unroll 1
        for (int at = next - (stages - 1) * turn; at < end; at += turn) {
            const bool computes = at >= begin;
            if constexpr (kTma) {
                __syncwarp(); /* the tile before has been read: its place is free */
                const int token = kFilter ? order.token : next;
                if (next < end) {
                    LoadTile(fill, stage0 + fill * StageOf<Rows>::kBytes, key, value, work, token, end - token);
                    if constexpr (kFilter) {
                        if (lane == 0) tokens[fill] = token;
                        TileOrderNext(&order, begin + warp * kTile, turn, step, samples);
                    }
                }
                next += turn;
                leave();
            }
            if (computes) {
                if (!staged) {
                    staged = true;
                    if constexpr (kTma) StageQuery(query);
                    if constexpr (kShort) WaitFor<2, 2>(stages); /* the query's own copies: tiles are behind it */
                    MeetForQuery();
                    if constexpr (kQueryInRegisters) {
#pragma unroll
                        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
                            for (int f = 0; f < kQueryFragments; f += 2) {
                                uint32_t b[4];
                                QueryFragments(h, f, b);
                                q[h][f][0] = b[0], q[h][f][1] = b[1], q[h][f + 1][0] = b[2], q[h][f + 1][1] = b[3];
                            }
                        }
                    }
                }
                if constexpr (kTma) {
                    MbarrierWait(full + stage * 8, phases >> stage & 1);
                    phases ^= 1u << stage;
                } else {
                    WaitForOldest(stages);
                    __syncwarp();
                }
            }
            const uint32_t into = stage0 + fill * StageOf<Rows>::kBytes;
            /* Short: values are copied apart from keys, once as much has come, so that a warp never has more than it needs under
             * way: see SHORT_BYTES in plan.c. */
            const uint8_t *value_row = nullptr;
            const int      value_count = end - next, value_lanes = odd;
            const auto     copy_values = [&] {
                if (value_row != nullptr) Copy<false, true>(into, nullptr, value_row, key, value, value_count, value_lanes);
                CopyCommit();
            };
            if (!kTma && next < end) {
                const int      which = kIndexed ? slots : next;
                const uint8_t *key_row = Address(key, which);
                value_row = Address(value, which);
                Copy<true, !kShort>(into, key_row, value_row, key, value, end - next, odd);
                next += turn;
                odd ^= 16;
                if (kIndexed && odd == 0) {
                    slots = more_slots;
                    more_slots = TwoTiles(row, next + 2 * turn, end);
                }
            }
            if constexpr (!kTma) CopyCommit();
            if (kShort && !computes) copy_values();
            fill = fill + 1 == stages ? 0 : fill + 1;
            if (!computes) continue;
            const int token0 = kFilter ? tokens[stage] : at; /* the tile's first */

            uint32_t from = stage0 + stage * StageOf<Rows>::kBytes, value_from = from + StageOf<Rows>::kTileBytes;
            const uint8_t *raw = mine + stage * StageOf<Rows>::kBytes;
            if constexpr (Rows::kConvert) {
                constexpr int kWide = StageOf<HalfRows<kDim, false>>::kTileBytes;
                Rows::template Convert<false>(raw, wide, lane);
                Rows::template Convert<true>(raw + StageOf<Rows>::kTileBytes, wide + kWide, lane);
                __syncwarp();
                from = SharedAddress(wide);
                value_from = from + kWide;
            }

            /* Scores: rows of x are tokens g and g + 8, columns heads 2t and 2t + 1. */
            float x[kHeadTiles][4];
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) x[h][0] = x[h][1] = x[h][2] = x[h][3] = 0;
            float odd_x[kHeadTiles][4]; /* a chain of its own for every other step: each waits for the one before */
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) odd_x[h][0] = odd_x[h][1] = odd_x[h][2] = odd_x[h][3] = 0;
            uint32_t again[kHeadTiles][4]; /* the query's fragments where registers do not hold them */
            float    block[kHeadTiles][4]; /* q8_0: the part of a score within a block */
            const uint32_t key_lane = from + Rows::KeyLane(lane);
#pragma unroll
            for (int f = 0; f < kFragments; f += kSteps) {
                if (Rows::kConvert && f % 2 == 0) {
#pragma unroll
                    for (int h = 0; h < kHeadTiles; h++) block[h][0] = block[h][1] = block[h][2] = block[h][3] = 0;
                }
                uint32_t a[kSteps][4];
                Rows::KeyFragments(key_lane, f / kSteps, a);
#pragma unroll
                for (int s = 0; s < kSteps; s++) {
#pragma unroll
                    for (int h = 0; h < kHeadTiles; h++) {
                        float(&to)[4] = Rows::kConvert ? block[h] : (f + s) % 2 == 1 && kShort ? odd_x[h] : x[h];
                        if constexpr (kQueryInRegisters) {
                            MultiplyAdd<Rows::kBf16>(to, a[s], q[h][f + s][0], q[h][f + s][1]);
                        } else {
                            if ((f + s) % 2 == 0) QueryFragments(h, f + s, again[h]);
                            MultiplyAdd<Rows::kBf16>(to, a[s], again[h][(f + s) % 2 * 2], again[h][(f + s) % 2 * 2 + 1]);
                        }
                    }
                }
                if constexpr (Rows::kConvert) {
                    if (f % 2 == 1) {
                        const float low = Rows::ScaleOf(raw, g, f / 2), high = Rows::ScaleOf(raw, g + 8, f / 2);
#pragma unroll
                        for (int h = 0; h < kHeadTiles; h++) {
                            x[h][0] += block[h][0] * low, x[h][1] += block[h][1] * low;
                            x[h][2] += block[h][2] * high, x[h][3] += block[h][3] * high;
                        }
                    }
                }
            }

            /* Logits, then weights. */
            bool higher = false;
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float v = (kShort ? x[h][i] + odd_x[h][i] : x[h][i]) * call.scale;
                    if (call.softcap > 0) v = SoftCap(v, call.softcap);
                    x[h][i] = v;
                }
            }
            if constexpr (kTma) {
#pragma unroll
                for (int i = 0; i < 4; i++) before[i] = x[0][i];
                before_token = token0;
            } else if (logits != nullptr) {
#pragma unroll
                for (int h = 0; h < kHeadTiles; h++) StoreLogits(logits + (int64_t)at * group, h, x[h]);
            }
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int token = token0 + g + (i >> 1) * 8;
                    x[h][i] = token < end ? x[h][i] * kLog2e : -INFINITY;
                    higher |= x[h][i] > row_max[h][i & 1];
                }
            }
            if (__any_sync(kAll, higher)) {
#pragma unroll
                for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        /* fmaxf leaves NaN out; it reaches the sums by itself. */
                        float now = fmaxf(fmaxf(x[h][c], x[h][c + 2]), row_max[h][c]);
                        now = fmaxf(now, __shfl_xor_sync(kAll, now, 4));
                        now = fmaxf(now, __shfl_xor_sync(kAll, now, 8));
                        now = fmaxf(now, __shfl_xor_sync(kAll, now, 16));
                        const float shrink = Exp2(row_max[h][c] - now);
                        row_max[h][c] = now;
                        row_sum[h][c] *= shrink;
#pragma unroll
                        for (int f = 0; f < kFragments; f++) {
                            o[h][f][c] *= shrink;
                            o[h][f][c + 2] *= shrink;
                        }
                    }
                }
            }
            uint32_t weights[kHeadTiles][2];
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    x[h][i] = Exp2(x[h][i] - row_max[h][i & 1] + kShift);
                    row_sum[h][i & 1] += x[h][i];
                }
                /* Tokens to the rows' side: what was the result's layout becomes the second operand's. */
                weights[h][0] = TransposeMatrix(PackPair<Rows::kBf16>(x[h][0], x[h][1]));
                weights[h][1] = TransposeMatrix(PackPair<Rows::kBf16>(x[h][2], x[h][3]));
            }

            /* Values. */
            if constexpr (kShort) {
                WaitForOldest(stages);
                __syncwarp();
                copy_values();
            }
            const uint32_t value_lane = value_from + Rows::ValueLane(lane);
#pragma unroll
            for (int f = 0; f < kFragments; f += kSteps) {
                uint32_t a[kSteps][4];
                Rows::ValueFragments(value_lane, f / kSteps, a);
#pragma unroll
                for (int s = 0; s < kSteps; s++) {
#pragma unroll
                    for (int h = 0; h < kHeadTiles; h++) MultiplyAdd<Rows::kBf16>(o[h][f + s], a[s], weights[h][0], weights[h][1]);
                }
            }
            if (Rows::kConvert) __syncwarp();
            stage = stage + 1 == stages ? 0 : stage + 1;
        }
        if (!staged) {
            if constexpr (kTma) StageQuery(query);
            if constexpr (kShort) CopyWait<0>();
            MeetForQuery();
        }
        if constexpr (kTma) leave();
        if (kFilter && filters) filter.SendRest(filter.waiting[0], filter.waiting[1]);

#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
#pragma unroll
                for (int d = 4; d < 32; d *= 2) row_sum[h][c] += __shfl_xor_sync(kAll, row_sum[h][c], d);
            }
        }

        /* The block's warps into one: each leaves its values where its tiles were. */
        __shared__ float warp_max[kWarps][kHeadTiles * 8], warp_sum[kWarps][kHeadTiles * 8];
        __syncwarp();
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const int head = h * 8 + t * 2 + c;
                if (head >= group) continue;
                if (g == 0) {
                    warp_max[warp][head] = row_max[h][c];
                    warp_sum[warp][head] = row_sum[h][c];
                }
                float *to = (float *)mine + head * kMergePitch;
#pragma unroll
                for (int f = 0; f < kFragments; f++) {
                    to[Rows::ValueDim(f, 0, g)] = o[h][f][c];
                    to[Rows::ValueDim(f, 1, g)] = o[h][f][c + 2];
                }
            }
        }
        __syncthreads();

        float *mine_part = (float *)args.parts + part * PartFloats(group, kDim);
#pragma unroll 1
        for (int i = threadIdx.x; i < group * (kDim / 4); i += kThreads) {
            const int head = i / (kDim / 4), d = i % (kDim / 4) * 4;
            float     row_max = warp_max[0][head];
#pragma unroll
            for (int w = 1; w < kWarps; w++) row_max = fmaxf(row_max, warp_max[w][head]);
            float4 v = {0, 0, 0, 0};
            float  row_sum = 0;
#pragma unroll
            for (int w = 0; w < kWarps; w++) {
                const float4 from = *(const float4 *)(shared + kQueryBytes + w * warp_bytes + (head * kMergePitch + d) * 4);
                const float  weight = Exp2(warp_max[w][head] - row_max);
                v.x += from.x * weight, v.y += from.y * weight, v.z += from.z * weight, v.w += from.w * weight;
                row_sum += warp_sum[w][head] * weight;
            }
            if (!kShort && whole) {
                Finish(row, kv_head, head, d, v, row_max, row_sum);
            } else if (kShort) {
                Send(v, row_max, row_sum);
            } else {
                __stcg((float4 *)(mine_part + head * kDim + d), v);
                if (d == 0) {
                    __stcg(mine_part + group * kDim + head, row_max);
                    __stcg(mine_part + group * (kDim + 1) + head, row_sum);
                }
            }
        }
    }

    __device__ __forceinline__ void Finish(int row, int kv_head, int in_group, int d, float4 v, float row_max, float row_sum) const {
        if (kShort) {
            FinishHead(args, kShift, row, kv_head * args.group + in_group, d, v, row_max, row_sum);
        } else {
            FinishHeadOutOfLine(args, kShift, row, kv_head * args.group + in_group, d, v, row_max, row_sum);
        }
    }

    /* ---- a work tile by a cluster ---- */

    /* Each block finishes an equal number of the work tile's fours of elements, of which it gets all blocks' parts:
     * float4 [cluster][SentFours], then float2 [cluster][SentFours], row_max and row_sum. It lies in distributed shared memory (DSMEM). */
    __device__ __forceinline__ uint32_t Fours() const { return (uint32_t)args.group * (kDim / 4); }
    __device__ __forceinline__ uint32_t SentFours() const { return (Fours() + args.cluster - 1) / args.cluster; }

    static_assert(!kShort || kHeadTiles * 8 * (kDim / 4) <= kThreads, "a thread sends one four");

    /* Before anything is sent to this block. Each thread finds out where its own four will go, too: the divisions would take
     * their time when everything waits for them. */
    __device__ __forceinline__ void OpenDsmem() {
        each = SentFours();
        const uint32_t to = min(threadIdx.x / each, args.cluster - 1);
        finish_first = ClusterRank() * each;
        finish_count = finish_first < Fours() ? min(each, Fours() - finish_first) : 0;
        if (threadIdx.x == 0) {
            MbarrierInit(dsmem_full);
            MbarrierFenceCluster();
        }
        const uint32_t at = finish_first + threadIdx.x % each;
        send_values = InBlock(SharedAddress(dsmem), to) + at * 16;
        send_sums = InBlock(SharedAddress(dsmem), to) + args.cluster * each * 16 + at * 8;
        send_full = InBlock(SharedAddress(dsmem_full), to);
    }
    __device__ __forceinline__ void Send(float4 v, float row_max, float row_sum) const {
        StoreInBlock(send_values, v, send_full);
        StoreInBlock(send_sums, float2{row_max, row_sum}, send_full);
    }

    __device__ __forceinline__ void FinishSent(const WorkTile &work) const {
        if (threadIdx.x >= finish_count) return;
        const float4 *values = (const float4 *)dsmem + threadIdx.x;
        const float2 *sums = (const float2 *)((const float4 *)dsmem + args.cluster * each) + threadIdx.x;
        float2        sum[kMostCluster];
        float4        part[kMostCluster];
        float         row_max = kLowest, row_sum = 0;
#pragma unroll
        for (uint32_t p = 0; p < kMostCluster; p++) {
            sum[p] = p < args.cluster ? sums[p * each] : float2{kLowest, 0};
            part[p] = p < args.cluster ? values[p * each] : float4{0, 0, 0, 0};
            row_max = fmaxf(row_max, sum[p].x);
        }
        float4 v = {0, 0, 0, 0};
#pragma unroll
        for (uint32_t p = 0; p < kMostCluster; p++) {
            const float weight = Exp2(sum[p].x - row_max);
            v.x += part[p].x * weight, v.y += part[p].y * weight, v.z += part[p].z * weight, v.w += part[p].w * weight;
            row_sum += sum[p].y * weight;
        }
        const int four = (int)(finish_first + threadIdx.x);
        Finish(work.row, work.head, four / (kDim / 4), four % (kDim / 4) * 4, v, row_max, row_sum);
    }

    /* This block's share of a work tile's tokens, in whole tiles. */
    __device__ __forceinline__ void ShareOf(int tokens, int *begin, int *end) const {
        const int tiles = (max(tokens, 0) + kTile - 1) / kTile, each = (tiles + (int)args.cluster - 1) / (int)args.cluster;
        *begin = (int)ClusterRank() * each * kTile;
        *end = max(min(*begin + each * kTile, tokens), *begin);
    }

    /* ---- work tiles by equal shares ---- */

    /* Counts this block in; the last one of the work tile merges all of its parts. */
    __device__ __forceinline__ void Arrive(const WorkTile &work, uint32_t chunks, uint32_t blocks) {
        const lim_cuda_call &call = args.call;
        const int            group = args.group;
        const Span           span = SpanOf(work, chunks, blocks);
        const uint32_t       first = span.first;
        const int            count = (int)span.count;
        uint32_t            *arrivals = (uint32_t *)args.arrivals + (int64_t)work.row * call.kv_heads + work.head;

        __shared__ bool is_last;
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence(); /* for the whole block: the barrier before it makes it cumulative */
            is_last = atomicAdd(arrivals, 1) == (uint32_t)count - 1;
            if (is_last) *arrivals = 0; /* ready for the next call */
            __threadfence();
        }
        __syncthreads();
        if (!is_last) return;

        const float *parts = (const float *)args.parts;
        const size_t size = PartFloats(group, kDim);
#pragma unroll 1
        for (int i = threadIdx.x; i < group * (kDim / 4); i += kThreads) {
            const int head = i / (kDim / 4), d = i % (kDim / 4) * 4;
            float     row_max = kLowest, row_sum = 0;
            float4    v = {0, 0, 0, 0};
            /* Several parts under way at once: the time is all latency. */
#pragma unroll 1
            for (int base = 0; base < count; base += kAtOnce) {
                float  part_max[kAtOnce], part_sum[kAtOnce];
                float4 part[kAtOnce];
#pragma unroll
                for (int p = 0; p < kAtOnce; p++) {
                    const int    which = min(base + p, count - 1);
                    const float *from = parts + SplitPart(first + which, which == 0) * size;
                    part_max[p] = base + p < count ? __ldcg(from + group * kDim + head) : kLowest;
                    part_sum[p] = base + p < count ? __ldcg(from + group * (kDim + 1) + head) : 0.0f;
                    part[p] = base + p < count ? __ldcg((const float4 *)(from + head * kDim + d)) : float4{0, 0, 0, 0};
                }
                float now = row_max;
#pragma unroll
                for (int p = 0; p < kAtOnce; p++) now = fmaxf(now, part_max[p]);
                const float shrink = Exp2(row_max - now);
                v.x *= shrink, v.y *= shrink, v.z *= shrink, v.w *= shrink;
                row_sum *= shrink;
#pragma unroll
                for (int p = 0; p < kAtOnce; p++) {
                    const float weight = Exp2(part_max[p] - now);
                    v.x += part[p].x * weight, v.y += part[p].y * weight, v.z += part[p].z * weight, v.w += part[p].w * weight;
                    row_sum += part_sum[p] * weight;
                }
                row_max = now;
            }
            Finish(work.row, work.head, head, d, v, row_max, row_sum);
        }
    }

    /* A list is read before the length is known: few rows have fewer tokens than the budget. */
    __device__ __forceinline__ bool GuessesTokens() const {
        return kIndexed && args.call.mode == LIM_CUDA_LIST && args.call.capacity >= args.call.budget;
    }

    __device__ __forceinline__ void RunShort() {
        const uint32_t tile = blockIdx.x / args.cluster;
        WorkTile          work = {};
        work.row = (int32_t)(tile / (uint32_t)args.call.kv_heads);
        work.head = (int32_t)(tile - (uint32_t)work.row * (uint32_t)args.call.kv_heads);
        int begin, end, slots = 0, more_slots = 0;
        ShareOf(args.call.budget, &begin, &end);
        OpenDsmem();
        ClusterArrive();
        PdlWait();
        if (GuessesTokens()) {
            slots = TwoTiles(work.row, begin + warp * kTile, end);
            more_slots = TwoTiles(work.row, begin + (warp + 2 * kWarps) * kTile, end);
        }
        work.tokens = RowTokens(args.call, work.row);
        if (!GuessesTokens() || work.tokens != args.call.budget) {
            ShareOf(work.tokens, &begin, &end);
            slots = TwoTiles(work.row, begin + warp * kTile, end);
            more_slots = TwoTiles(work.row, begin + (warp + 2 * kWarps) * kTile, end);
        }
        Split(work, begin, end, false, 0, slots, more_slots);
        if (threadIdx.x == 0) MbarrierExpect(SharedAddress(dsmem_full), args.cluster * 24 * finish_count);
        MbarrierWaitCluster(dsmem_full);
        FinishSent(work);
    }

    /* ---- which logits survive ---- */

    /* The same for all blocks of the row. */
    __device__ __forceinline__ bool Filters(const WorkTile &work, uint32_t chunks, uint32_t blocks) const {
        const uint32_t least = FilterLeast(args.need, args.group, kWarps);
        return work.tokens > args.call.budget && (uint32_t)work.tokens >= least && 2 * SpanOf(work, chunks, blocks).count <= LIM_CUDA_FILTER_LISTS &&
               work.total / blocks * args.chunk_tokens >= least;
    }
    /* What the selection finds of the split. */
    __device__ __forceinline__ void LeaveSurvivors(const WorkTile &work, uint32_t chunks, uint32_t blocks, int begin, int end, bool filters) const {
        const Span       span = SpanOf(work, chunks, blocks);
        lim_cuda_survivors *to = (lim_cuda_survivors *)args.survivors +
                              ((int64_t)work.row * args.call.heads + work.head * args.group) * LIM_CUDA_FILTER_LISTS + 2 * (blockIdx.x - span.first);
        if (!filters && blockIdx.x != span.first) return;
        if (threadIdx.x < args.group) {
            const uint32_t head = threadIdx.x, lists = filters ? 2 * span.count : 0, others = survivors->others[head];
            const float    bound = survivors->bound[0][head];
            to[head * LIM_CUDA_FILTER_LISTS] = lim_cuda_survivors{(uint32_t)begin, survivors->lines[head], bound, lists};
            to[head * LIM_CUDA_FILTER_LISTS + 1] = lim_cuda_survivors{(uint32_t)end - others, others, bound, lists};
        }
    }

    __device__ __forceinline__ void Run() {
        WorkTile    work;
        uint32_t at, end;
        int      slots = 0, more_slots = 0;
        bool     fresh = false; /* the slots are this split's */
        if (GuessesTokens()) {
            GuessWork(args, &work, &at, &end);
            if (at < end) {
                const int first = (int)(work.chunk * args.chunk_tokens) + warp * kTile;
                slots = TwoTiles(work.row, first, work.tokens);
                more_slots = TwoTiles(work.row, first + 2 * kWarps * kTile, work.tokens);
            }
            fresh = GuessedRight(args, lane);
            if (fresh && at >= end) return;
        }
        if (!fresh && !FindWork(args, lane, &work, &at, &end)) return;
        const uint32_t blocks = SplitBlocks(work.total, gridDim.x);
#pragma unroll 1
        for (;;) {
            const uint32_t chunks = SplitChunks(work.tokens, args.chunk_tokens);
            const uint32_t to = min(chunks, work.chunk + (end - at));
            const bool     begins = work.chunk == 0, whole = begins && to == chunks;
            const int      last_token = (int)min((uint64_t)to * args.chunk_tokens, (uint64_t)max(work.tokens, 0));
            const int      first_token = (int)(work.chunk * args.chunk_tokens);
            if (kIndexed && !fresh) {
                slots = TwoTiles(work.row, first_token + warp * kTile, last_token);
                more_slots = TwoTiles(work.row, first_token + (warp + 2 * kWarps) * kTile, last_token);
            }
            fresh = false;
            const bool filters = kFilter && Filters(work, chunks, blocks);
            Split(work, first_token, last_token, whole, SplitPart(blockIdx.x, begins), slots, more_slots, filters);
            if (kFilter) LeaveSurvivors(work, chunks, blocks, first_token, last_token, filters);
            if (!whole) Arrive(work, chunks, blocks);
            at += to - work.chunk;
            if (at >= end) return;
            if constexpr (kTma) FenceAsyncProxy();
            __syncthreads(); /* shared memory is for the next split now */
            work.chunk = 0;
            work.before += chunks;
            if (++work.head == args.call.kv_heads) {
                work.head = 0;
                work.row++;
                work.tokens = RowTokens(args.call, work.row);
            }
        }
    }
};

template <class Rows, int kDim, int kHeadTiles, bool kIndexed, bool kShort, bool kFilter = false>
__device__ __forceinline__ void Attend(const lim_cuda_args &args) {
    extern __shared__ __align__(1024) uint8_t shared[];
    using A = Attention<Rows, kDim, kHeadTiles, kIndexed, kShort, kFilter>;
    const int lane = threadIdx.x & 31;
    PdlLaunchDependents();
    __shared__ uint64_t dsmem_full;
    A attention = {args, shared, &dsmem_full, shared, (int)threadIdx.x >> 5, lane, lane >> 2, lane & 3, StreamPolicy(), 0, 0, nullptr, nullptr};
    if constexpr (A::kTma) {
        __shared__ uint64_t barriers[A::kWarps * A::kMostStages];
        attention.OpenPipeline(barriers);
    }
    if constexpr (kFilter) {
        __shared__ int tokens[A::kWarps][A::kMostStages];
        __shared__ typename LogitFilter<A::kWarps>::Survivors survivors;
        attention.tokens = tokens[threadIdx.x >> 5];
        attention.survivors = &survivors;
    }
    if constexpr (kShort) {
        attention.shared += (attention.SentFours() * args.cluster * 24 + 127) / 128 * 128; /* dsmem_bytes in plan.c */
        attention.RunShort();
    } else {
        attention.Run();
    }
}

}  // namespace lessismore

#endif
