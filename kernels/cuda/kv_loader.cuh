/* How tiles of K and V come into shared memory: each warp has a pipeline of its own, a ring of stages, a stage being a
 * tile of K and one of V. A warp's tiles of a split are warp, warp + kWarps, ...
 *
 *   AsyncLoader   cp.async by all lanes: rows that lie one after another (direct), or those that a block table or a token
 *                 set names (indexed)
 *   TmaLoader     TMA: a tile by one instruction of one lane, of rows that lie one after another or in pages of whole tiles
 *
 * For each turn of the split's loop: Load() starts copying the next tile, Wait() waits for the oldest one's keys,
 * WaitForValues() for its values, Done() says that it has been read. */
#ifndef LESSISMORE_CUDA_KV_LOADER_CUH
#define LESSISMORE_CUDA_KV_LOADER_CUH

#include "kernels.h"
#include "logit_filter.h"
#include "pages.cuh"
#include "rows.cuh"
#include "work_tile.cuh"

namespace lessismore {

/* Slots of four of a warp's tiles, one for each lane: of the next tile (lanes 0 .. 15) and the one after it (16 .. 31). */
struct Slots {
    int now = 0, later = 0; /* the next two tiles, the two after those */
};

/* Packed rows that need not begin at a multiple of four bytes. */
template <class Rows> constexpr bool IsShifted = Rows::kPacked && Rows::kRowBytes % 4 != 0;

template <class Rows, int kWarps, bool kIndexed, bool kShort>
struct AsyncLoader {
    static constexpr int  kTurn = kWarps * kTile;
    static constexpr int  kChunks = Rows::kChunks;
    static constexpr bool kShifted = IsShifted<Rows>, kWholeRows = Rows::kPacked && !kShifted;

    const lim_cuda_args &args;
    uint64_t             policy;
    int                  warp, lane;

    Store    key, value;
    int      row, next, end; /* of the split: its row, the tile to copy next, where it ends */
    Slots    slots;
    int      odd;            /* the lane of slots.now where the next tile's begin */
    int      stages, fill, stage;
    uint32_t stage0;
    /* Short: the values of the tile whose keys have been asked for. */
    const uint8_t *value_row;
    int            value_count, value_lanes;
    uint32_t       into;
    /* Packed: how far into the copies of a row the row begins. */
    uint32_t key_shift, value_shift;

    /* The slot of a token of a row. */
    __device__ __forceinline__ int SlotOf(int of_row, int token, int last) const {
        if (token >= last) return 0;
        if (HasSets(args)) {
            return __ldg((const int32_t *)args.call.set + (int64_t)of_row * args.call.set_stride + token);
        }
        return lessismore::SlotOf(args.call, of_row, token); /* without a table, where the selection had no room */
    }
    __device__ __forceinline__ int TwoTiles(int of_row, int begin, int last) const {
        return kIndexed ? SlotOf(of_row, begin + (lane & 15) + (lane >> 4) * kTurn, last) : 0;
    }
    /* For the warp's first tiles of a row's tokens [begin, last): asked for before Open, as early as they are known. */
    __device__ __forceinline__ void ReadSlots(int of_row, int begin, int last) {
        slots.now = TwoTiles(of_row, begin + warp * kTile, last);
        slots.later = TwoTiles(of_row, begin + warp * kTile + 2 * kTurn, last);
    }

    __device__ __forceinline__ void Open(const WorkTile &work, int begin, int last, uint32_t first_stage) {
        key = StoreOf(args.call, args.call.key, work.row, work.head);
        value = StoreOf(args.call, args.call.value, work.row, work.head);
        row = work.row, next = begin + warp * kTile, end = last;
        stages = args.stages, stage0 = first_stage;
        odd = fill = stage = 0;
        if constexpr (kShifted) {
            key_shift = Rows::ShiftOf(key.base), value_shift = Rows::ShiftOf(value.base);
            key.base -= key_shift, value.base -= value_shift;
        } else {
            key_shift = value_shift = 0;
        }
        if constexpr (kRuns) runs = FromOf(Address(key, next), Address(value, next));
    }

    __device__ __forceinline__ const uint8_t *Address(const Store &s, int slot) const {
        return kIndexed ? SlotAddress(args.call, s, slot) : s.base + (int64_t)slot * s.token_stride;
    }

    /* Of a copy, those of the row: memory may end there. */
    static __device__ __forceinline__ uint32_t BytesAt(int column, uint32_t shift) {
        return kShifted ? min((uint32_t)Rows::kCopy, Rows::kRowBytes + shift - column) : Rows::kCopy;
    }

    /* Starts copying a tile of `count` tokens (more than 16: all), or only its keys or values. Indexed, from_key and from_value
     * are the rows' addresses of the tile's tokens, from lane `from_lane` on; direct, they are that of its first token. */
    template <bool kKeys, bool kValues>
    __device__ __forceinline__ void Copy(uint32_t to_stage, const uint8_t *first_key, const uint8_t *first_value, int count, int from_lane) const {
        constexpr bool kEven = kChunks <= 32 && 32 % kChunks == 0;
        constexpr int  kTurns = (kTile * kChunks + 31) / 32;
        /* Every lane keeps its column where a row's copies go evenly into a warp. */
#pragma unroll
        for (int i = 0; i < kTurns; i++) {
            const int      c = i * 32 + lane;
            const int      r = kEven ? lane / kChunks + i * (32 / kChunks) : min(c / kChunks, kTile - 1);
            const int      column = (kEven ? lane % kChunks : c % kChunks) * Rows::kCopy;
            const uint8_t *from_key = first_key, *from_value = first_value;
            if (kIndexed) {
                if (kKeys) from_key = (const uint8_t *)__shfl_sync(kAll, (unsigned long long)first_key, from_lane + r);
                if (kValues) from_value = (const uint8_t *)__shfl_sync(kAll, (unsigned long long)first_value, from_lane + r);
            } else {
                const int at = min(r, count - 1);
                from_key += at * key.token_stride;
                from_value += at * value.token_stride;
            }
            if (Rows::kPadded && !Rows::kPacked && column >= args.call.dim * 2) continue; /* never read there, nor here */
            if (kEven || c < kTile * kChunks) {
                const uint32_t to = to_stage + r * Rows::Pitch(args.call.dim) + column;
                if (kKeys) CopyAsync<Rows::kCopy>(to, from_key + column, r < count ? BytesAt(column, key_shift) : 0, policy);
                if (kValues) CopyAsync<Rows::kCopy>(to + StageOf<Rows>::TileBytes(args.call.dim), from_value + column, r < count ? BytesAt(column, value_shift) : 0, policy);
            }
        }
    }

    /* Packed rows are 8 or 16 copies and one more: a warp does 8 or 16 of as many rows as it has lanes for at once, and then the
     * last ones of all rows, of keys by its first half and of values by the other. */
    static constexpr int kMain = kChunks - 1, kRows = kWholeRows ? 32 / kMain : 1, kLast = kMain * Rows::kCopy;

    /* Direct: where this lane copies from, of a tile. */
    struct PackedFrom {
        const uint8_t *key, *value, *last;
    };
    __device__ __forceinline__ bool       CopiesLastOfKeys() const { return lane < kTile; }
    __device__ __forceinline__ uint32_t   KeyStride() const { return (uint32_t)args.call.key.token_stride; } /* of 16 tiles and more it fits: LIM_CUDA_MOST_STRIDE */
    __device__ __forceinline__ uint32_t   ValueStride() const { return (uint32_t)args.call.value.token_stride; }
    __device__ __forceinline__ PackedFrom FromOf(const uint8_t *first_key, const uint8_t *first_value) const {
        const uint32_t row = lane / kMain, column = lane % kMain * Rows::kCopy, last_row = lane % kTile;
        return {first_key + KeyStride() * row + column, first_value + ValueStride() * row + column,
                CopiesLastOfKeys() ? first_key + KeyStride() * last_row : first_value + ValueStride() * last_row};
    }

    /* As Copy, of all 16 tokens. */
    template <bool kKeys, bool kValues>
    __device__ __forceinline__ void CopyPacked(uint32_t to_stage, const PackedFrom &from) const {
        const uint32_t values_at = StageOf<Rows>::TileBytes(args.call.dim);
        const uint32_t to = to_stage + lane / kMain * Rows::kPitch + lane % kMain * Rows::kCopy;
#pragma unroll
        for (int i = 0; i < kTile / kRows; i++) {
            const uint32_t at = to + i * kRows * Rows::kPitch;
            if (kKeys) CopyAsync<Rows::kCopy>(at, from.key + KeyStride() * (i * kRows), Rows::kCopy, policy);
            if (kValues) CopyAsync<Rows::kCopy>(at + values_at, from.value + ValueStride() * (i * kRows), Rows::kCopy, policy);
        }
        CopyLast<kKeys, kValues>(to_stage, from.last, Rows::kCopy);
    }
    template <bool kKeys, bool kValues>
    __device__ __forceinline__ void CopyLast(uint32_t to_stage, const uint8_t *from, uint32_t bytes) const {
        const uint32_t to = to_stage + lane % kTile * Rows::kPitch + kLast + (CopiesLastOfKeys() ? 0 : StageOf<Rows>::TileBytes(args.call.dim));
        if (CopiesLastOfKeys() ? kKeys : kValues) CopyAsync<Rows::kCopy>(to, from + kLast, bytes, policy);
    }
    /* Of fewer tokens, the split's last ones: what is not there is zero. */
    static __device__ __noinline__ void CopyShortTile(uint32_t to, const uint8_t *from, uint32_t stride, int count, int lane, uint64_t policy) {
#pragma unroll 1
        for (int i = lane; i < kTile * kChunks; i += 32) {
            const int r = i / kChunks, column = i % kChunks * Rows::kCopy;
            CopyAsync<Rows::kCopy>(to + r * Rows::kPitch + column, from + stride * min(r, count - 1) + column, r < count ? Rows::kCopy : 0, policy);
        }
    }

    /* As Copy, indexed. */
    template <bool kKeys, bool kValues>
    __device__ __forceinline__ void CopyPackedTokens(uint32_t to_stage, const uint8_t *key_row, const uint8_t *from_value, int count, int from_lane) const {
        const uint32_t values_at = StageOf<Rows>::TileBytes(args.call.dim);
        const int      row = lane / kMain, column = lane % kMain * Rows::kCopy, last_row = lane % kTile;
#pragma unroll
        for (int i = 0; i < kTile / kRows; i++) {
            const int      r = row + i * kRows;
            const uint32_t at = to_stage + r * Rows::kPitch + column, bytes = r < count ? Rows::kCopy : 0;
            if (kKeys) CopyAsync<Rows::kCopy>(at, OfLane(key_row, from_lane + r) + column, bytes, policy);
            if (kValues) CopyAsync<Rows::kCopy>(at + values_at, OfLane(from_value, from_lane + r) + column, bytes, policy);
        }
        const uint8_t *const key_last = kKeys ? OfLane(key_row, from_lane + last_row) : nullptr;
        const uint8_t *const value_last = kValues ? OfLane(from_value, from_lane + last_row) : nullptr;
        CopyLast<kKeys, kValues>(to_stage, CopiesLastOfKeys() ? key_last : value_last, last_row < count ? Rows::kCopy : 0);
    }
    static __device__ __forceinline__ const uint8_t *OfLane(const uint8_t *p, int from) {
        return (const uint8_t *)__shfl_sync(kAll, (unsigned long long)p, from);
    }

    template <bool kKeys, bool kValues>
    __device__ __forceinline__ void CopyTile(uint32_t to, const uint8_t *first_key, const uint8_t *first_value, int count, int from_lane) const {
        if constexpr (!kWholeRows) {
            Copy<kKeys, kValues>(to, first_key, first_value, count, from_lane);
        } else if constexpr (kIndexed) {
            CopyPackedTokens<kKeys, kValues>(to, first_key, first_value, count, from_lane);
        } else if (count >= kTile) {
            CopyPacked<kKeys, kValues>(to, FromOf(first_key, first_value));
        } else {
            if (kKeys) CopyShortTile(to, first_key, KeyStride(), count, lane, policy);
            if (kValues) CopyShortTile(to + StageOf<Rows>::TileBytes(args.call.dim), first_value, ValueStride(), count, lane, policy);
        }
    }
    /* Direct, keys and values at once: the addresses run from tile to tile, which takes less than finding each anew. */
    static constexpr bool kRuns = kWholeRows && !kIndexed && !kShort;
    PackedFrom            runs;

    __device__ __forceinline__ void LoadRunning() {
        into = stage0 + fill * StageOf<Rows>::Bytes(args.call.dim);
        if (end - next >= kTile) {
            CopyPacked<true, true>(into, runs);
            runs.key += KeyStride() * kTurn, runs.value += ValueStride() * kTurn;
            runs.last += (CopiesLastOfKeys() ? KeyStride() : ValueStride()) * kTurn;
        } else if (next < end) {
            CopyTile<true, true>(into, Address(key, next), Address(value, next), end - next, 0);
        }
        next += kTurn;
        CopyCommit();
        fill = fill + 1 == stages ? 0 : fill + 1;
    }

    /* Short: values are copied apart from keys, once as much has come, so that a warp never has more than it needs under way
     * (SHORT_BYTES in plan.c). While the pipeline is being filled nothing has, and they follow at once. */
    __device__ __forceinline__ void Load(bool filling) {
        if constexpr (kRuns) {
            LoadRunning();
            return;
        }
        into = stage0 + fill * StageOf<Rows>::Bytes(args.call.dim);
        value_row = nullptr;
        value_count = end - next, value_lanes = odd;
        if (next < end) {
            const int      which = kIndexed ? slots.now : next;
            const uint8_t *key_row = Address(key, which);
            value_row = Address(value, which);
            CopyTile<true, !kShort>(into, key_row, value_row, end - next, odd);
            next += kTurn;
            odd ^= 16;
            if (kIndexed && odd == 0) {
                slots.now = slots.later;
                slots.later = TwoTiles(row, next + 2 * kTurn, end);
            }
        }
        CopyCommit();
        if (kShort && filling) LoadValues();
        fill = fill + 1 == stages ? 0 : fill + 1;
    }
    __device__ __forceinline__ void LoadValues() const {
        if (value_row != nullptr) CopyTile<false, true>(into, nullptr, value_row, value_count, value_lanes);
        CopyCommit();
    }

    /* Until all groups of copies but the last few of kEach for each stage, less kLess, have come. */
    template <int kEach, int kLess>
    __device__ __forceinline__ void WaitFor() const {
        switch (stages) {
        case 2: CopyWait<2 * kEach - kLess>(); break;
        case 3: CopyWait<3 * kEach - kLess>(); break;
        case 4: CopyWait<4 * kEach - kLess>(); break;
        default: CopyWait<6 * kEach - kLess>(); break; /* 6 */
        }
    }
    /* For the oldest group: a tile, or, where keys and values are groups of their own, the older of a tile's two. */
    __device__ __forceinline__ void WaitForOldest() const { WaitFor<kShort ? 2 : 1, kShort ? 3 : 2>(); }

    __device__ __forceinline__ void Wait() {
        WaitForOldest();
        __syncwarp();
    }
    __device__ __forceinline__ void WaitForValues() {
        if constexpr (kShort) {
            WaitForOldest();
            __syncwarp();
            LoadValues();
        }
    }
    /* The query's own copies, which were asked for before any tile. */
    __device__ __forceinline__ void WaitForQuery() const {
        if constexpr (kShort) WaitFor<2, 2>();
    }
    __device__ __forceinline__ void WaitForAll() const {
        if constexpr (kShort) CopyWait<0>();
    }
    __device__ __forceinline__ int  Token(int at) const { return at; } /* the first of the oldest tile */
    __device__ __forceinline__ void Done() { stage = stage + 1 == stages ? 0 : stage + 1; }
    __device__ __forceinline__ void Close() const {}
};

/* kSampled: tiles come in the order of the logit filter. kPaged: a tile lies within a page, which the row's block table
 * names. Pages are read from the table at least 32 tiles ahead, one by each lane: while memory is busy, a read takes as long
 * as several tiles. */
template <class Rows, int kWarps, bool kPaged, bool kSampled>
struct TmaLoader {
    static constexpr int kTurn = kWarps * kTile;
    static constexpr int kChunks = Rows::kRowBytes / (Rows::kPacked ? 4 : 16); /* of a short tile's row */

    static constexpr uint32_t key_shift = 0, value_shift = 0; /* packed rows begin where words do */

    const lim_cuda_args &args;
    uint64_t             policy;
    int                  warp, lane;
    uint32_t             full;   /* the warp's barriers, one for each stage */
    uint32_t             phases; /* a bit for each: which of its phases is next */
    int                 *tokens; /* sampled: the stages' first tokens */

    Store     key, value;
    int       row, head, first, next, end;
    int       stages, fill, stage;
    uint32_t  stage0;
    TileOrder order;
    int       samples, step;
    /* Paged: tiles copied, and each lane's page of those up to the next multiple of 32, and of the 32 after them. */
    int copied, page_now, page_later;

    /* Once, before the first split. */
    __device__ __forceinline__ void Begin(uint64_t *barriers, int *of_stages) {
        full = SharedAddress(barriers + warp * LIM_CUDA_MOST_STAGES);
        phases = 0;
        tokens = of_stages;
        if (lane < LIM_CUDA_MOST_STAGES) MbarrierInit(barriers + warp * LIM_CUDA_MOST_STAGES + lane);
        FenceAsyncProxy();
        __syncwarp();
    }

    __device__ __forceinline__ void ReadSlots(int, int, int) const {}

    __device__ __forceinline__ void Open(const WorkTile &work, int begin, int last, uint32_t first_stage) {
        key = StoreOf(args.call, args.call.key, work.row, work.head);
        value = StoreOf(args.call, args.call.value, work.row, work.head);
        row = work.row, head = work.head, first = next = begin + warp * kTile, end = last;
        stages = args.stages, stage0 = first_stage;
        fill = stage = 0;
    }
    /* After Open: every which_step-th tile first, as many as of_samples (see TileOrder); none: all in turn. */
    __device__ __forceinline__ void Order(int of_samples, int which_step) {
        samples = of_samples, step = which_step;
        order = TileOrderFrom(first, samples);
        if constexpr (kPaged) {
            copied = 0;
            page_now = PageAhead(0);
            page_later = PageAhead(32);
        }
    }
    /* The page of the tile that comes as the (after + lane)-th. */
    __device__ __forceinline__ int PageAhead(int after) const {
        const int token = first + (kSampled ? TileOrderAt(after + lane, step, samples) : after + lane) * kTurn;
        return token < end ? PageOf(args.call, row, token) : 0;
    }
    __device__ __forceinline__ int NextPage() {
        const int page = __shfl_sync(kAll, page_now, copied & 31);
        if ((++copied & 31) == 0) {
            page_now = page_later;
            page_later = PageAhead(copied + 32);
        }
        return page;
    }

    /* The tile from `token` on, which is in `page` where there are pages. Of fewer than 16 tokens only those are read: a
     * row's memory may end there, and values that no weight is for must be numbers. */
    __device__ __forceinline__ void LoadTile(uint32_t to, int token, int page, int count) const {
        const uint32_t bytes = StageOf<Rows>::TileBytes(args.call.dim);
        const int      at = kPaged ? InPage(args.call, token) : token;
        if (count < kTile) {
            const uint8_t *const key_page = kPaged ? key.base + page * key.page_stride : key.base;
            const uint8_t *const value_page = kPaged ? value.base + page * value.page_stride : value.base;
            LoadShortTile(to, key_page + (int64_t)at * key.token_stride, key.token_stride, count, lane);
            LoadShortTile(to + bytes, value_page + (int64_t)at * value.token_stride, value.token_stride, count, lane);
            __syncwarp();
        }
        if (lane != 0) return;
        MbarrierExpect(full + fill * 8, count < kTile ? 0 : 2 * bytes);
        if (count < kTile) return;
        const int element = Rows::kPacked ? head * (Rows::kRowBytes / 2) : 0, of_head = Rows::kPacked ? 0 : head;
        TmaLoad(to, args.key_map, element, of_head, at, kPaged ? page : row, full + fill * 8, policy);
        TmaLoad(to + bytes, args.value_map, element, of_head, at, kPaged ? page : row, full + fill * 8, policy);
    }
    /* What is not there is zero. */
    static __device__ __noinline__ void LoadShortTile(uint32_t to, const uint8_t *from, int64_t stride, int count, int lane) {
#pragma unroll 1
        for (int i = lane; i < kTile * kChunks; i += 32) {
            const int at = i / kChunks, chunk = i % kChunks;
            if constexpr (Rows::kPacked) {
                StoreShared(to + at * Rows::kPitch + chunk * 4, at < count ? __ldg((const uint32_t *)(from + at * stride + chunk * 4)) : 0u);
                continue;
            }
            uint4 v = {0, 0, 0, 0};
            if (at < count) v = __ldg((const uint4 *)(from + at * stride + chunk * 16));
            if constexpr (!Rows::kPacked) StoreShared(to + chunk / 8 * (kTile * 128) + Rows::Chunk(at, chunk % 8), v);
        }
    }

    __device__ __forceinline__ void Load(bool) {
        __syncwarp(); /* the tile before has been read: its place is free */
        const int token = kSampled ? order.token : next;
        if (next < end) {
            LoadTile(stage0 + fill * StageOf<Rows>::Bytes(args.call.dim), token, kPaged ? NextPage() : 0, end - token);
            if constexpr (kSampled) {
                if (lane == 0) tokens[fill] = token;
                TileOrderNext(&order, first, kTurn, step, samples);
            }
        }
        next += kTurn;
        fill = fill + 1 == stages ? 0 : fill + 1;
    }
    __device__ __forceinline__ void Wait() {
        MbarrierWait(full + stage * 8, phases >> stage & 1);
        phases ^= 1u << stage;
    }
    __device__ __forceinline__ void WaitForValues() const {}
    __device__ __forceinline__ void WaitForQuery() const {}
    __device__ __forceinline__ void WaitForAll() const {}
    __device__ __forceinline__ int  Token(int at) const { return kSampled ? tokens[stage] : at; }
    __device__ __forceinline__ void Done() { stage = stage + 1 == stages ? 0 : stage + 1; }
    /* After a split: shared memory is written by threads before TMA writes it again. */
    __device__ __forceinline__ void Close() const { FenceAsyncProxy(); }
};

}  // namespace lessismore

#endif
