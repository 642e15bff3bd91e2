/* Decode attention: one query token per row, all query heads of a KV head at once.
 *
 * Reading K and V is all the cost, so they are read once, in tiles of 16 tokens, through each warp's own
 * pipeline of asynchronous copies: warps hardly ever wait for each other until a split is done. The logits of a
 * tile, its weights and its values are three small matrix products in registers. Blocks take equal shares
 * of all work (split.h); splits of a work tile are merged in their order, so results are the same bits in every run.
 *
 * This file is the way of a block through its splits, and of a warp through its tiles of one. What it is made of:
 * kv_loader.cuh, query.cuh, softmax.cuh, logit_sink.cuh, epilogue.cuh. */
#ifndef LESSISMORE_CUDA_ATTENTION_CUH
#define LESSISMORE_CUDA_ATTENTION_CUH

#include "epilogue.cuh"
#include "kernels.h"
#include "kv_loader.cuh"
#include "logit_sink.cuh"
#include "packed.cuh"
#include "query.cuh"
#include "rows.cuh"
#include "softmax.cuh"
#include "work_tile.cuh"

#include <type_traits>

namespace lessismore {

constexpr int ThreadsOf(bool short_work) { return (short_work ? LIM_CUDA_SHORT_WARPS : LIM_CUDA_WARPS) * 32; }

template <class Rows, int kDim, int kHeadTiles, bool kIndexed, bool kShort, bool kFilter>
struct Attention {
    static constexpr int  kThreads = ThreadsOf(kShort);
    static constexpr int  kWarps = kThreads / 32;
    static constexpr int  kFragments = kDim / 16;
    static constexpr int  kSteps = Rows::kSteps;
    static constexpr bool kTma = Rows::kTma;

    template <bool kChoice, class A, class B> using Choose = std::conditional_t<kChoice, A, B>;
    using Loader = Choose<kTma, TmaLoader<Rows, kWarps, kIndexed, kFilter>, AsyncLoader<Rows, kWarps, kIndexed, kShort>>;
    using Q = Query<Rows, kDim, kHeadTiles, kThreads, kShort>;
    using Sink = Choose<kTma, LateLogitSink<kWarps, kFilter>, LogitSink<kHeadTiles>>;
    using Warps = WarpMerge<Rows, kDim, kHeadTiles, kWarps>;
    using Epilogue = Choose<kShort, ClusterEpilogue<Rows, kDim, kHeadTiles, kWarps>, SplitEpilogue<Rows, kDim, kHeadTiles, kWarps>>;
    using Survivors = typename LogitFilter<kWarps>::Survivors;

    const lim_cuda_args &args;
    uint8_t             *shared; /* the query, then each warp's stages, then the filter's samples */
    int                  warp, lane;
    Loader               loader;
    Epilogue             epilogue;
    Survivors           *survivors; /* of the block, where it filters */

    /* ---- a tile ---- */

    /* Steps of a head: fewer than there are fragments where it is padded. */
    __device__ __forceinline__ bool Has(int fragment) const { return !Rows::kPadded || fragment * 16 < args.call.dim; }

    /* The scores: K times query. Rows of x are tokens g and g + 8, columns heads 2t and 2t + 1. */
    __device__ __forceinline__ void Scores(const Q &query, uint32_t keys, float (&x)[kHeadTiles][4]) const {
        float    odd_x[kHeadTiles][4]; /* short: a chain of its own for every other step: each waits for the one before */
        uint32_t again[kHeadTiles][4]; /* the query's fragments where registers do not hold them */
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
            x[h][0] = x[h][1] = x[h][2] = x[h][3] = 0;
            odd_x[h][0] = odd_x[h][1] = odd_x[h][2] = odd_x[h][3] = 0;
        }
        const uint32_t key_lane = keys + Rows::KeyLane(lane, Rows::Pitch(args.call.dim));
#pragma unroll
        for (int f = 0; f < kFragments; f += kSteps) {
            if (!Has(f)) break;
            uint32_t a[kSteps][4];
            Rows::KeyFragments(key_lane, f / kSteps, a);
#pragma unroll
            for (int s = 0; s < kSteps; s++) {
#pragma unroll
                for (int h = 0; h < kHeadTiles; h++) {
                    query.Pair(h, f + s, again[h]);
                    MultiplyAdd<Rows::kBf16>((f + s) % 2 == 1 && kShort ? odd_x[h] : x[h], a[s], query.Low(h, f + s, again[h]), query.High(h, f + s, again[h]));
                }
            }
        }
        if constexpr (kShort) {
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
                for (int i = 0; i < 4; i++) x[h][i] += odd_x[h][i];
            }
        }
    }

    /* The same of blocks with scales. */
    __device__ __forceinline__ void PackedScores(const Q &query, const uint8_t *keys, uint32_t shift, float (&x)[kHeadTiles][4]) const {
        uint32_t again[kHeadTiles][4];
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) x[h][0] = x[h][1] = x[h][2] = x[h][3] = 0;
#pragma unroll
        for (int u = 0; u < Rows::kUnits; u++) {
            uint32_t a[4][4];
            float    scale[2][2];
            Rows::Keys(keys, shift, u, lane, a, scale);
#pragma unroll
            for (int b = 0; b < (Rows::HasSecond(u) ? 2 : 1); b++) {
                const int f = u * 4 + b * 2;
#pragma unroll
                for (int h = 0; h < kHeadTiles; h++) {
                    float block[4] = {0, 0, 0, 0};
                    query.Pair(h, f, again[h]);
                    MultiplyAdd<false>(block, a[b * 2], query.Low(h, f, again[h]), query.High(h, f, again[h]));
                    MultiplyAdd<false>(block, a[b * 2 + 1], query.Low(h, f + 1, again[h]), query.High(h, f + 1, again[h]));
                    x[h][0] += block[0] * scale[b][0], x[h][1] += block[1] * scale[b][0];
                    x[h][2] += block[2] * scale[b][1], x[h][3] += block[3] * scale[b][1];
                }
            }
        }
    }

    __device__ __forceinline__ void Scale(float (&x)[kHeadTiles][4]) const {
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float v = x[h][i] * args.call.scale;
                if (args.call.softcap > 0) v = SoftCap(v, args.call.softcap);
                x[h][i] = v;
            }
        }
    }

    /* The accumulator: V transposed times weights. */
    __device__ __forceinline__ void Values(uint32_t values, const uint32_t (&weights)[kHeadTiles][2], float (&o)[kHeadTiles][kFragments][4]) const {
        const uint32_t value_lane = values + Rows::ValueLane(lane, Rows::Pitch(args.call.dim));
#pragma unroll
        for (int f = 0; f < kFragments; f += kSteps) {
            if (!Has(f)) break;
            uint32_t a[kSteps][4];
            Rows::ValueFragments(value_lane, f / kSteps, a);
#pragma unroll
            for (int s = 0; s < kSteps; s++) {
#pragma unroll
                for (int h = 0; h < kHeadTiles; h++) MultiplyAdd<Rows::kBf16>(o[h][f + s], a[s], weights[h][0], weights[h][1]);
            }
        }
    }

    __device__ __forceinline__ void PackedValues(const uint8_t *values, uint32_t shift, const uint32_t (&weights)[kHeadTiles][2], float (&o)[kHeadTiles][kFragments][4]) const {
#pragma unroll
        for (int u = 0; u < Rows::kUnits; u++) {
            uint32_t a[4][4];
            Rows::Values(values, shift, u, lane, a);
#pragma unroll
            for (int f = 0; f < 4; f++) {
#pragma unroll
                for (int h = 0; h < kHeadTiles; h++) MultiplyAdd<false>(o[h][u * 4 + f], a[f], weights[h][0], weights[h][1]);
            }
        }
    }

    /* ---- a split ---- */

    __device__ __forceinline__ uint32_t WarpBytes() const { return WarpBytesOf(args.stages * StageOf<Rows>::Bytes(args.call.dim), kHeadTiles * 8, kDim); }

    /* Tokens [begin, end) of a work tile by the whole block. Whether the row's logits are filtered, is the row's. */
    __device__ __forceinline__ void Split(const WorkTile &work, int begin, int end, bool whole, uint32_t part, bool filters = false) {
        const lim_cuda_call &call = args.call;
        const uint32_t       warp_bytes = WarpBytes();
        uint8_t             *mine = shared + Q::kBytes + warp * warp_bytes;
        loader.Open(work, begin, end, SharedAddress(mine));

        const uint8_t *from = (const uint8_t *)call.query.data + work.row * call.query.row_stride +
                              (int64_t)work.head * args.group * call.query.head_stride;
        Q              query;
        query.shared = shared;
        if constexpr (!Q::kLate) query.Stage(args, from);
        /* The copies do not wait for it: warps meet when they first need it, those without a tile at the end. */
        bool staged = false;

        Softmax<Rows, kDim, kHeadTiles> softmax;
        softmax.Begin();
        Sink sink;
        sink.lane = lane;
        sink.Open(args, work);
        if constexpr (kFilter) {
            float *const sample = (float *)(shared + Q::kBytes + kWarps * warp_bytes) + warp * (LIM_CUDA_FILTER_SAMPLES / kWarps);
            if (filters) sink.Filter(args, work, begin, end, warp, survivors, sample);
            loader.Order(sink.samples, sink.step);
        } else if constexpr (kTma) {
            loader.Order(0, 0);
        }

        /* One loop both fills the pipeline and keeps it full: the first turns only copy. */
#pragma unroll 1
        for (int at = begin + warp * kTile - (args.stages - 1) * kWarps * kTile; at < end; at += kWarps * kTile) {
            const bool computes = at >= begin;
            if constexpr (kTma) {
                loader.Load(!computes);
                sink.Leave();
            }
            if (computes) {
                if (!staged) {
                    staged = true;
                    if constexpr (Q::kLate) query.Stage(args, from);
                    loader.WaitForQuery();
                    query.Meet();
                    query.Hold();
                }
                loader.Wait();
            }
            if constexpr (!kTma) loader.Load(!computes);
            if (!computes) continue;

            const int      token = loader.Token(at);
            const uint8_t *tile = mine + loader.stage * StageOf<Rows>::Bytes(args.call.dim);
            const uint32_t keys = loader.stage0 + loader.stage * StageOf<Rows>::Bytes(args.call.dim);
            float          x[kHeadTiles][4];
            uint32_t       weights[kHeadTiles][2];
            if constexpr (Rows::kPacked) {
                PackedScores(query, tile, loader.key_shift, x);
            } else {
                Scores(query, keys, x);
            }
            Scale(x);
            sink.Put(x, token);
            softmax.Weigh(x, lane >> 2, end - token, weights);
            loader.WaitForValues();
            if constexpr (Rows::kPacked) {
                PackedValues(tile + StageOf<Rows>::TileBytes(args.call.dim), loader.value_shift, weights, softmax.o);
            } else {
                Values(keys + StageOf<Rows>::TileBytes(args.call.dim), weights, softmax.o);
            }
            loader.Done();
        }
        if (!staged) {
            if constexpr (Q::kLate) query.Stage(args, from);
            loader.WaitForAll();
            query.Meet();
        }
        sink.Close();

        __shared__ Warps warps;
        warps.Leave(softmax, args.group, warp, lane, mine);
        epilogue.Put(work, warps, shared + Q::kBytes, warp_bytes, whole, part);
    }

    /* ---- a block's way ---- */

    /* A list is read before the length is known: few rows have fewer tokens than the budget. */
    __device__ __forceinline__ bool GuessesTokens() const {
        return kIndexed && !kTma && args.call.mode == LIM_CUDA_SPARSE && args.call.capacity >= args.call.budget;
    }

    /* Short: this block's share of a work tile's tokens, in whole tiles. */
    __device__ __forceinline__ void ShareOf(int tokens, int *begin, int *end) const {
        const int tiles = (max(tokens, 0) + kTile - 1) / kTile, each = (tiles + (int)args.cluster - 1) / (int)args.cluster;
        *begin = (int)ClusterRank() * each * kTile;
        *end = max(min(*begin + each * kTile, tokens), *begin);
    }

    __device__ __forceinline__ void RunShort() {
        const uint32_t tile = blockIdx.x / args.cluster;
        WorkTile       work = {};
        work.row = (int32_t)(tile / (uint32_t)args.call.kv_heads);
        work.head = (int32_t)(tile - (uint32_t)work.row * (uint32_t)args.call.kv_heads);
        int begin, end;
        ShareOf(args.call.budget, &begin, &end);
        epilogue.Open();
        ClusterArrive();
        PdlWait();
        if (GuessesTokens()) loader.ReadSlots(work.row, begin, end);
        work.tokens = RowTokens(args, work.row);
        if (!GuessesTokens() || work.tokens != args.call.budget) {
            ShareOf(work.tokens, &begin, &end);
            loader.ReadSlots(work.row, begin, end);
        }
        ComeToRow(args, work.row);
        Split(work, begin, end, false, 0);
        epilogue.Finish(work);
    }

    /* Whether a row's logits are filtered: the same for all blocks of the row. */
    __device__ __forceinline__ bool Filters(const WorkTile &work, uint32_t chunks, uint32_t blocks) const {
        const uint32_t least = FilterLeast(args.need, args.group, kWarps);
        return work.tokens > args.call.budget && (uint32_t)work.tokens >= least && 2 * SpanOf(work, chunks, blocks).count <= LIM_CUDA_FILTER_LISTS &&
               work.total / blocks * args.chunk_tokens >= least;
    }
    /* What the selection finds of the split, and of the row's query, where the row begins. */
    __device__ __forceinline__ void LeaveSurvivors(const WorkTile &work, uint32_t chunks, uint32_t blocks, int begin, int end, bool filters) const {
        const Span          span = SpanOf(work, chunks, blocks);
        lim_cuda_survivors *to = (lim_cuda_survivors *)args.survivors +
                                 ((int64_t)work.row * args.call.heads + work.head * args.group) * LIM_CUDA_FILTER_LISTS + 2 * (blockIdx.x - span.first);
        if (!filters && blockIdx.x != span.first) return;
        if (threadIdx.x < args.group) {
            const uint32_t head = threadIdx.x, lists = filters ? 2 * span.count : 0, others = survivors->others[head];
            const float    bound = survivors->bound[0][head];
            to[head * LIM_CUDA_FILTER_LISTS] = lim_cuda_survivors{(uint32_t)begin, survivors->lines[head], bound, lists};
            to[head * LIM_CUDA_FILTER_LISTS + 1] = lim_cuda_survivors{(uint32_t)end - others, others, bound, lists};
        }
        if (!filters || begin != 0) return;
        const int64_t first = ((int64_t)work.row * args.call.heads + work.head * args.group) * kDim;
#pragma unroll 1
        for (int i = threadIdx.x; i < args.group * kDim; i += kThreads) {
            const lim_cuda_rows &query = args.call.query;
            const uint8_t       *from = (const uint8_t *)query.data + work.row * query.row_stride + (work.head * args.group + i / kDim) * query.head_stride;
            ((float *)args.queries)[first + i] = LoadElement(from, query.type, i % kDim);
        }
    }

    __device__ __forceinline__ void Run() {
        WorkTile work;
        uint32_t at, end;
        bool     fresh = false; /* the loader's slots are this split's */
        if (GuessesTokens()) {
            GuessWork(args, &work, &at, &end);
            if (at < end) loader.ReadSlots(work.row, (int)(work.chunk * args.chunk_tokens), work.tokens);
            fresh = GuessedRight(args, lane);
            if (fresh && at >= end) return;
        }
        if (!fresh && !FindWork(args, lane, &work, &at, &end)) return;
        ComeToRow(args, work.row);
        const uint32_t blocks = SplitBlocks(work.total, gridDim.x);
#pragma unroll 1
        for (;;) {
            const uint32_t chunks = SplitChunks(work.tokens, args.chunk_tokens);
            const uint32_t to = min(chunks, work.chunk + (end - at));
            const bool     begins = work.chunk == 0, whole = begins && to == chunks;
            const int      last_token = (int)min((uint64_t)to * args.chunk_tokens, (uint64_t)max(work.tokens, 0));
            const int      first_token = (int)(work.chunk * args.chunk_tokens);
            if (kIndexed && !fresh) loader.ReadSlots(work.row, first_token, last_token);
            fresh = false;
            const bool filters = kFilter && Filters(work, chunks, blocks);
            Split(work, first_token, last_token, whole, SplitPart(blockIdx.x, begins), filters);
            if (kFilter) LeaveSurvivors(work, chunks, blocks, first_token, last_token, filters);
            if (!whole) epilogue.MergeParts(work, chunks, blocks);
            at += to - work.chunk;
            if (at >= end) return;
            loader.Close();
            __syncthreads(); /* shared memory is for the next split now */
            work.chunk = 0;
            work.before += chunks;
            if (++work.head == args.call.kv_heads) {
                work.head = 0;
                work.row++;
                work.tokens = RowTokens(args, work.row);
                ComeToRow(args, work.row);
            }
        }
    }
};

template <class Rows, int kDim, int kHeadTiles, bool kIndexed, bool kShort, bool kFilter = false>
__device__ __forceinline__ void Attend(const lim_cuda_args &args) {
    using A = Attention<Rows, kDim, kHeadTiles, kIndexed, kShort, kFilter>;
    uint8_t  *shared = DynamicShared();
    const int warp = (int)threadIdx.x >> 5, lane = threadIdx.x & 31;
    PdlLaunchDependents();
    A attention = {args, shared, warp, lane, {args, StreamPolicy(), warp, lane}, {args}, nullptr};
    if constexpr (kFilter) {
        __shared__ typename A::Survivors survivors;
        attention.survivors = &survivors;
    }
    if constexpr (A::kTma) {
        __shared__ uint64_t barriers[A::kWarps * LIM_CUDA_MOST_STAGES];
        __shared__ int      tokens[kFilter ? A::kWarps : 1][LIM_CUDA_MOST_STAGES];
        attention.loader.Begin(barriers, tokens[kFilter ? warp : 0]);
    }
    if constexpr (kShort) {
        __shared__ uint64_t dsmem_full;
        attention.epilogue.dsmem = shared;
        attention.epilogue.full = &dsmem_full;
        attention.shared += DsmemBytes(DsmemFours(args.group, kDim, args.cluster), args.cluster);
        attention.RunShort();
    } else {
        attention.Run();
    }
}

}  // namespace lessismore

#endif
