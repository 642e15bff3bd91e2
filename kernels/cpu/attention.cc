/* Decode attention over a KV chunk of tokens, for all heads at once.
 *
 * Decoding is bound by reading K and V, so each row is read once, whole tokens at a time (in the layouts of
 * the engines all KV heads of a token lie together) and in tiles: score the tile's keys, exponentiate, add up
 * its values. While one tile is computed the next one's rows are prefetched, which hides memory latency also
 * where the hardware prefetcher cannot guess the address, as with a token list. The query heads of a KV head
 * share the conversion of its rows; four tokens are scored together so that the sums across a vector
 * cost a quarter. */
#include "targets.h"

#include <math.h>
#include <string.h>

#include "attention.h"
#include "dispatch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "hwy/contrib/math/math-inl.h"
#include "query-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lessismore {
namespace HWY_NAMESPACE {
namespace {

/* The K or V rows of a tile, and those that come after it, to prefetch. */
constexpr int kAhead = kTile;
struct Rows {
    const uint8_t *at[kTile + kAhead];
};

enum Cache { kSecond = 2,
             kFirst = 3 }; /* the compiler's numbers */
template <Cache kInto>
HWY_INLINE void Prefetch(const uint8_t *row, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, kInto);
}

/* Walks the rows ahead in memory order, token by token and head by head, one head's row per call, whatever
 * order the arithmetic takes them in: memory likes it so. From memory they are asked into the second-level
 * cache, which has room for many more requests than the first, but plain rows on processors that do better with
 * the first (AsksFirst); from there a second time, kAgain tokens before their turn. */
template <class Row, int kAgain>
struct Prefetcher {
    const uint8_t *const *token;
    int64_t               head_stride;
    size_t                row_bytes;
    int                   kv_heads, head = 0;
    bool                  first;

    Prefetcher(const Rows &rows, const lim_cpu_tensor &tensor, size_t bytes, int heads)
        : token(rows.at), head_stride(tensor.head_stride), row_bytes(bytes), kv_heads(heads), first(!Row::kScaled && AsksFirst()) {}

    HWY_INLINE void Next() {
        const uint8_t *row = token[kAhead] + head * head_stride;
        if (first) {
            Prefetch<kFirst>(row, row_bytes);
        } else {
            Prefetch<kSecond>(row, row_bytes);
        }
        if (kAgain > 0) Prefetch<kFirst>(token[kAgain] + head * head_stride, row_bytes);
        if (++head == kv_heads) {
            head = 0;
            token++;
        }
    }
};
/* Values are not taken in memory order, and quantised rows are bound by arithmetic: a second time gains nothing. */
template <class Row>
using KeyPrefetcher = Prefetcher<Row, Row::kScaled ? 0 : 8>;
template <class Row>
using ValuePrefetcher = Prefetcher<Row, 0>;

/* The largest of no logits. Not -inf: the difference of two would be NaN. */
constexpr float kLowest = -3.0e38f;

/* ---- scores ---- */

/* Sums across each of four vectors, times a factor, stored side by side. */
HWY_INLINE void StoreFourSums(Vec a, Vec b, Vec c, Vec d, Vec by, float *to) {
#if HWY_TARGET == HWY_SCALAR
    to[0] = hn::GetLane(hn::Mul(a, by));
    to[1] = hn::GetLane(hn::Mul(b, by));
    to[2] = hn::GetLane(hn::Mul(c, by));
    to[3] = hn::GetLane(hn::Mul(d, by));
#else
    const F32                          df;
    const hn::Repartition<double, F32> pairs;
    const auto                         ab = hn::Add(hn::InterleaveLower(df, a, b), hn::InterleaveUpper(df, a, b));
    const auto                         cd = hn::Add(hn::InterleaveLower(df, c, d), hn::InterleaveUpper(df, c, d));
    const auto                         lower = hn::InterleaveLower(pairs, hn::BitCast(pairs, ab), hn::BitCast(pairs, cd));
    const auto                         upper = hn::InterleaveUpper(pairs, hn::BitCast(pairs, ab), hn::BitCast(pairs, cd));
    const auto                         abcd = hn::Mul(hn::Add(hn::BitCast(df, lower), hn::BitCast(df, upper)), by);
#if HWY_TARGET == HWY_AVX3
    const hn::Half<F32>            half;
    const hn::Half<decltype(half)> quarter;
    const auto                     two = hn::Add(hn::LowerHalf(half, abcd), hn::UpperHalf(half, abcd));
    hn::StoreU(hn::Add(hn::LowerHalf(quarter, two), hn::UpperHalf(quarter, two)), quarter, to);
#elif HWY_TARGET == HWY_AVX2
    const hn::Half<F32> half;
    hn::StoreU(hn::Add(hn::LowerHalf(half, abcd), hn::UpperHalf(half, abcd)), half, to);
#else
    hn::StoreU(abcd, df, to);
#endif
#endif
}

/* Keeps the compiler from adding constants to `p` ahead of a loop, for which it would need many registers. */
HWY_INLINE const uint8_t *Opaque(const uint8_t *p) {
    __asm__("" : "+r"(p));
    return p;
}

/* Four tokens by kHeads query heads of one KV head, from `head` on. */
template <class Row, int kHeads>
HWY_INLINE void ScoreFour(const uint8_t *const *rows, size_t offset, const QueryOf<Row> &query, size_t head, size_t dim, float *logits) {
    const uint8_t *row[4];
    Vec            sum[kHeads][4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        row[t] = rows[t] + offset;
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; h++) sum[h][t] = hn::Zero(F32());
    }
    for (size_t i = 0; i < dim; i += Row::kStep) {
        AddProducts<Row>(row, query.numbers + head * dim + i, dim, sum);
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) row[t] += Row::Bytes(Row::kStep);
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; h++) {
        StoreFourSums(sum[h][0], sum[h][1], sum[h][2], sum[h][3], query.Step(head + h), logits + (head + h) * kTile);
    }
}

/* logits[head][kTile] for n tokens, a multiple of four. */
template <class Row>
void ScoreTile(const lim_cpu_call &call, const Rows &rows, int n, const float *query, float *logits) {
    const size_t       dim = (size_t)call.dim_k;
    const int          group = call.heads / call.kv_heads;
    const QueryOf<Row> all(query, (size_t)call.heads, dim);
    KeyPrefetcher<Row> prefetcher(rows, call.key, Row::Bytes(dim), call.kv_heads);
    for (int t = 0; t < n; t += 4) {
        for (int g = 0; g < call.kv_heads; g++) {
            const size_t offset = (size_t)(g * call.key.head_stride);
            for (int i = 0; i < 4; i++) prefetcher.Next();
            size_t       head = (size_t)(g * group);
            const size_t end = head + (size_t)group;
            if (kSums >= 16) {
                for (; head + 4 <= end; head += 4) ScoreFour<Row, kSums / 4>(rows.at + t, offset, all, head, dim, logits + t);
            }
            for (; head + 2 <= end; head += 2) ScoreFour<Row, 2>(rows.at + t, offset, all, head, dim, logits + t);
            if (head < end) ScoreFour<Row, 1>(rows.at + t, offset, all, head, dim, logits + t);
        }
    }
}

/* ---- values ---- */

/* The weights of the tile's tokens, times the scales of V's blocks where it has them: [head][block][kTile].
 * So a block's elements need no multiplication of their own. */
template <class Row>
struct Weights {
    const float     *at;
    size_t           per_head; /* from head to head */
    HWY_INLINE float operator()(int head, size_t element, int token) const {
        return at[head * per_head + (Row::kScaled ? element / Row::kStep * kTile : 0) + token];
    }
};

template <class Row>
HWY_INLINE Weights<Row> WeightsOf(const Rows &rows, size_t offset, int heads, const float *weights, size_t dim, float *scaled) {
    if (!Row::kScaled) return {weights, kTile};
    const F32            df;
    const size_t         blocks = dim / Row::kStep;
    alignas(64) uint16_t bits[LIM_CPU_MAX_DIM / 32][kTile];
    for (int t = 0; t < kTile; t++) {
        for (size_t b = 0; b < blocks; b++) memcpy(&bits[b][t], rows.at[t] + offset + Row::Bytes(b * Row::kStep), 2);
    }
    for (size_t b = 0; b < blocks; b++) {
        for (int t = 0; t < kTile; t += kLanes) {
            const Vec scale = LoadHalf((const uint8_t *)&bits[b][t]);
            for (int h = 0; h < heads; h++) {
                hn::StoreU(hn::Mul(scale, hn::LoadU(df, weights + h * kTile + t)), df, scaled + (h * blocks + b) * kTile + t);
            }
        }
    }
    return {scaled, blocks * kTile};
}

/* value[head][...] += weight[head][t] * V row t, for kHeads heads and kVecs vectors of elements from `from` on. */
template <class Row, int kHeads, int kVecs>
HWY_INLINE void AddBlock(const Rows &rows, size_t offset, size_t from, int n, const Weights<Row> &weights, float *value,
                         size_t dim, ValuePrefetcher<Row> *prefetcher) {
    const F32        df;
    constexpr int    kScales = Row::kScaled && kVecs * kLanes > Row::kStep ? kVecs * kLanes / Row::kStep : 1;
    constexpr size_t kPerScale = kVecs / kScales;
    /* Whole steps first, so that the rest are constants. */
    const size_t inside = kVecs * kLanes % Row::kStep == 0 ? 0 : from % Row::kStep;
    const size_t begin = offset + Row::Bytes(from - inside);
    Vec          sum[kHeads][kVecs];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; h++) {
#pragma GCC unroll 16
        for (int c = 0; c < kVecs; c++) sum[h][c] = hn::LoadU(df, value + h * dim + from + c * kLanes);
    }
    for (int t = 0; t < n; t++) {
        const uint8_t *row = Opaque(rows.at[t] + begin);
        if (prefetcher != nullptr) prefetcher->Next();
#pragma GCC unroll 8
        for (int s = 0; s < kScales; s++) {
            Vec weight[kHeads];
#pragma GCC unroll 4
            for (int h = 0; h < kHeads; h++) weight[h] = hn::Set(df, weights(h, from + s * kPerScale * kLanes, t));
#pragma GCC unroll 16
            for (size_t c = s * kPerScale; c < (s + 1) * kPerScale; c++) {
                const Vec v = Row::Whole(row, inside + c * kLanes);
#pragma GCC unroll 4
                for (int h = 0; h < kHeads; h++) sum[h][c] = hn::MulAdd(weight[h], v, sum[h][c]);
            }
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; h++) {
#pragma GCC unroll 16
        for (int c = 0; c < kVecs; c++) hn::StoreU(sum[h][c], df, value + h * dim + from + c * kLanes);
    }
}

/* All elements of kHeads heads: the widest blocks that the registers take, then smaller ones. */
template <class Row, int kHeads>
HWY_INLINE void AddHeads(const Rows &rows, size_t offset, int n, const float *weights, float *value, size_t dim,
                         ValuePrefetcher<Row> *prefetcher) {
    constexpr int      kSmall = 16 / kLanes; /* vectors in 16 elements, which divide every dim */
    constexpr int      kFit = kSums / kHeads;
    constexpr int      kMost = kFit < kSmall ? kSmall : kFit > 8 && kLanes >= 8 ? 8
                                                                                : kFit;
    constexpr size_t   kWide = kMost * kLanes;
    alignas(64) float  scaled[Row::kScaled ? kHeads * LIM_CPU_MAX_DIM / 32 * kTile : 1];
    const Weights<Row> by = WeightsOf<Row>(rows, offset, kHeads, weights, dim, scaled);
    size_t             i = 0;
    for (; i + kWide <= dim; i += kWide, prefetcher = nullptr) {
        AddBlock<Row, kHeads, kMost>(rows, offset, i, n, by, value, dim, prefetcher);
    }
    for (; i + 32 <= dim && kWide > 32; i += 32, prefetcher = nullptr) {
        AddBlock<Row, kHeads, 2 * kSmall>(rows, offset, i, n, by, value, dim, prefetcher);
    }
    for (; i + 16 <= dim; i += 16, prefetcher = nullptr) {
        AddBlock<Row, kHeads, kSmall>(rows, offset, i, n, by, value, dim, prefetcher);
    }
}

template <class Row>
void AddTile(const lim_cpu_call &call, const Rows &rows, int n, const float *weights, float *value) {
    const size_t         dim = (size_t)call.dim_v;
    const int            group = call.heads / call.kv_heads;
    ValuePrefetcher<Row> ahead(rows, call.value, Row::Bytes(dim), call.kv_heads);
    for (int g = 0; g < call.kv_heads; g++) {
        const size_t          offset = (size_t)(g * call.value.head_stride);
        const float          *w = weights + (size_t)g * group * kTile;
        float                *v = value + (size_t)g * group * dim;
        int                   left = group;
        ValuePrefetcher<Row> *prefetcher = &ahead; /* once for each row, in the first of its heads */
        if (kSums >= 16) {
            for (; left >= 4; left -= 4, w += 4 * kTile, v += 4 * dim, prefetcher = nullptr) {
                AddHeads<Row, kSums / 4>(rows, offset, n, w, v, dim, prefetcher);
            }
        }
        for (; left >= 2; left -= 2, w += 2 * kTile, v += 2 * dim, prefetcher = nullptr) {
            AddHeads<Row, 2>(rows, offset, n, w, v, dim, prefetcher);
        }
        if (left > 0) AddHeads<Row, 1>(rows, offset, n, w, v, dim, prefetcher);
    }
}

/* ---- one tile's softmax ---- */

HWY_INLINE void Multiply(float *x, size_t n, float by) {
    const F32 df;
    for (size_t i = 0; i < n; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(df, x + i), hn::Set(df, by)), df, x + i);
}

HWY_INLINE float ExpOne(float x) { return hn::GetLane(Exp(hn::Set(F32(), x))); }

/* q.k times scale to the logit that the softmax sees. */
HWY_INLINE void FinishLogits(const lim_cpu_call &call, int head, int n, const float *mask, float *x) {
    const F32 df;
    if (call.softcap > 0) {
        const auto cap = hn::Set(df, call.softcap), inverse = hn::Set(df, 1 / call.softcap);
        for (int t = 0; t < n; t += kLanes) {
            hn::StoreU(hn::Mul(cap, hn::CallTanh(df, hn::Mul(hn::LoadU(df, x + t), inverse))), df, x + t);
        }
    }
    if (mask != nullptr) {
        const auto slope = hn::Set(df, call.slopes != nullptr ? call.slopes[head] : 1.0f);
        for (int t = 0; t < n; t += kLanes) {
            hn::StoreU(hn::MulAdd(slope, hn::LoadU(df, mask + t), hn::LoadU(df, x + t)), df, x + t);
        }
    }
    for (int t = n; t < kTile; t++) x[t] = -INFINITY;
}

/* Turns a head's logits into weights relative to its running largest logit, which it raises where needed. */
HWY_INLINE void Softmax(float *x, float *row_max, float *row_sums, float *value, size_t dim) {
    const F32  df;
    const auto before = hn::Set(df, *row_max);
    auto       most = before;
    /* Comparisons with NaN are false, so NaN never becomes the largest; it reaches the sums below. */
    for (int t = 0; t < kTile; t += kLanes) {
        const auto v = hn::LoadU(df, x + t);
        most = hn::IfThenElse(hn::Gt(v, most), v, most);
    }
    if (!hn::AllFalse(df, hn::Gt(most, before))) {
        const float now = Max(most);
        const float shrink = ExpOne(*row_max - now);
        Multiply(row_sums, kLanes, shrink);
        Multiply(value, dim, shrink);
        *row_max = now;
    }
    const auto top = hn::Set(df, *row_max);
    auto       sum = hn::LoadU(df, row_sums);
    for (int t = 0; t < kTile; t += kLanes) {
        const auto weight = Exp(hn::Sub(hn::LoadU(df, x + t), top));
        sum = hn::Add(sum, weight);
        hn::StoreU(weight, df, x + t);
    }
    hn::StoreU(sum, df, row_sums);
}

/* ---- a KV chunk ---- */

typedef void (*ScoreFn)(const lim_cpu_call &, const Rows &, int, const float *, float *);
typedef void (*AddFn)(const lim_cpu_call &, const Rows &, int, const float *, float *);

ScoreFn ScoreOf(int32_t type) {
    switch (type) {
    case LIM_CPU_F16: return ScoreTile<RowF16>;
    case LIM_CPU_BF16: return ScoreTile<RowBF16>;
    case LIM_CPU_Q8_0: return ScoreTile<RowQ8>;
    case LIM_CPU_Q4_0: return ScoreTile<RowQ4>;
    default: return ScoreTile<RowF32>;
    }
}

AddFn AddOf(int32_t type) {
    switch (type) {
    case LIM_CPU_F16: return AddTile<RowF16>;
    case LIM_CPU_BF16: return AddTile<RowBF16>;
    case LIM_CPU_Q8_0: return AddTile<RowQ8>;
    case LIM_CPU_Q4_0: return AddTile<RowQ4>;
    default: return AddTile<RowF32>;
    }
}

/* Where the rows from `begin` on begin; past the KV chunk's end, those of the next one. */
HWY_INLINE void FindRows(const lim_cpu_call &call, const KvChunk &chunk, int32_t begin, Rows *keys, Rows *values) {
    const lim_cpu_tensor &k = call.key, &v = call.value;
    const int32_t        *table = call.table != nullptr ? call.table + chunk.row->stream * call.table_stride : nullptr;
    const int32_t         place = ((int32_t)1 << call.page_shift) - 1;
    const uint8_t        *key = (const uint8_t *)k.data, *value = (const uint8_t *)v.data;
    if (table == nullptr) {
        key += chunk.row->stream * k.stream_stride;
        value += chunk.row->stream * v.stream_stride;
    }
    for (int t = 0; t < kTile + kAhead; t++) {
        int32_t i = begin + t;
        if (i >= chunk.end) i = chunk.next >= 0 ? chunk.next + (i - chunk.end) : chunk.end - 1;
        if (i >= chunk.length) i = chunk.length - 1;
        int32_t slot = chunk.slots != nullptr ? chunk.slots[i] : i;
        int64_t page = 0;
        if (table != nullptr) {
            page = table[slot >> call.page_shift];
            slot &= place;
        }
        keys->at[t] = key + page * k.stream_stride + slot * k.token_stride;
        values->at[t] = value + page * v.stream_stride + slot * v.token_stride;
    }
}

void Attend(const KvChunk &chunk, const float *query, float *scratch, const Part &part) {
    const F32           df;
    const lim_cpu_call &call = *chunk.call;
    const lim_cpu_row  &row = *chunk.row;
    const size_t        heads = (size_t)call.heads, dim_v = (size_t)call.dim_v;
    const ScoreFn       score = ScoreOf(call.key.type);
    const AddFn         add = AddOf(call.value.type);
    float              *logits = scratch;
    float              *sums = logits + heads * kTile; /* [heads][16], by lane */
    float              *mask = sums + heads * 16;

    memset(sums, 0, heads * 16 * sizeof(float));
    memset(part.value, 0, heads * dim_v * sizeof(float));
    for (size_t h = 0; h < heads; h++) part.row_max[h] = kLowest;

    Rows keys, values;
    for (int32_t begin = chunk.begin; begin < chunk.end; begin += kTile) {
        const int now = HWY_MIN(kTile, chunk.end - begin);
        FindRows(call, chunk, begin, &keys, &values);
        score(call, keys, (now + 3) & ~3, query, logits);
        if (row.mask != nullptr) {
            uint16_t bits[kTile];
            for (int t = 0; t < kTile; t++) {
                const int32_t i = begin + (t < now ? t : now - 1);
                bits[t] = row.mask[chunk.slots != nullptr ? chunk.slots[i] : i];
            }
            for (int t = 0; t < kTile; t += kLanes) hn::StoreU(LoadHalf((const uint8_t *)(bits + t)), df, mask + t);
        }
        for (size_t h = 0; h < heads; h++) {
            float *x = logits + h * kTile;
            FinishLogits(call, (int)h, now, row.mask != nullptr ? mask : nullptr, x);
            if (chunk.logits != nullptr) memcpy(chunk.logits + h * chunk.logit_stride + begin, x, kTile * sizeof(float));
            Softmax(x, part.row_max + h, sums + h * 16, part.value + h * dim_v, dim_v);
        }
        add(call, values, now, logits, part.value);
    }
    for (size_t h = 0; h < heads; h++) part.row_sum[h] = Sum(hn::LoadU(df, sums + h * 16));
}

/* ---- query in, output out ---- */

void LoadQuery(const lim_cpu_call *call, const lim_cpu_row *row, float *query) {
    const F32    df;
    const size_t dim = (size_t)call->dim_k;
    const auto   store = call->key.type == LIM_CPU_Q8_0 ? QueryOf<RowQ8>::Store
                       : call->key.type == LIM_CPU_Q4_0 ? QueryOf<RowQ4>::Store
                                                        : Query32::Store;
    for (int h = 0; h < call->heads; h++) {
        alignas(64) float head[LIM_CPU_MAX_DIM];
        const uint8_t    *from = (const uint8_t *)call->query.data + row->stream * call->query.stream_stride +
                                 h * call->query.head_stride + row->token * call->query.token_stride;
        for (size_t i = 0; i < dim; i += kLanes) {
            Vec v;
            switch (call->query.type) {
            case LIM_CPU_F16: v = LoadHalf(from + i * 2); break;
            case LIM_CPU_BF16: v = LoadBrain(from + i * 2); break;
            default: v = hn::LoadU(df, (const float *)from + i); break;
            }
            hn::Store(v, df, head + i);
        }
        store(query, (size_t)call->heads, dim, (size_t)h, head, call->scale);
    }
}

/* Round to nearest even. In plain integers, since outputs are few and Highway's fallbacks drop NaN or truncate. */
inline uint16_t HalfFromFloat(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to at least 65536 */
    if (rest < 0x38800000) { /* subnormal: adding 0.5 leaves the value in units of 2^-24 in the low bits */
        float magnitude;
        memcpy(&magnitude, &rest, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13));
}

inline uint16_t Bf16FromFloat(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void Merge(const lim_cpu_call *call, const lim_cpu_row *row, int head, float *parts, int n_parts) {
    const F32         df;
    const size_t      dim = (size_t)call->dim_v, floats = Part::Floats(call->heads, call->dim_v);
    alignas(64) float value[LIM_CPU_MAX_DIM] = {};
    float             sum = 0;
    if (n_parts > 0) {
        float most = kLowest;
        for (int p = 0; p < n_parts; p++) {
            const Part part(parts + p * floats, call->heads);
            if (part.row_max[head] > most) most = part.row_max[head];
        }
        if (call->sinks != nullptr) {
            if (call->sinks[head] > most) most = call->sinks[head];
            sum = ExpOne(call->sinks[head] - most);
        }
        for (int p = 0; p < n_parts; p++) {
            const Part  part(parts + p * floats, call->heads);
            const float weight = ExpOne(part.row_max[head] - most), *from = part.value + head * dim;
            sum += weight * part.row_sum[head];
            for (size_t i = 0; i < dim; i += kLanes) {
                hn::Store(hn::MulAdd(hn::Set(df, weight), hn::LoadU(df, from + i), hn::Load(df, value + i)), df, value + i);
            }
        }
    }
    /* No visible token: zeros. */
    Multiply(value, dim, sum == 0 ? 0.0f : 1 / sum);

    uint8_t *to = (uint8_t *)call->output.data + row->stream * call->output.stream_stride +
                  head * call->output.head_stride + row->token * call->output.token_stride;
    switch (call->output.type) {
    case LIM_CPU_F16:
        for (size_t i = 0; i < dim; i++) ((uint16_t *)to)[i] = HalfFromFloat(value[i]);
        break;
    case LIM_CPU_BF16:
        for (size_t i = 0; i < dim; i++) ((uint16_t *)to)[i] = Bf16FromFloat(value[i]);
        break;
    default: memcpy(to, value, dim * sizeof(float)); break;
    }
}

}  // namespace

const AttentionKernels kTable = {LoadQuery, Attend, Merge};

}  // namespace HWY_NAMESPACE
}  // namespace lessismore
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lessismore {
LIM_CPU_TABLES(AttentionKernels, AttentionFor)
}  // namespace lessismore
#endif
