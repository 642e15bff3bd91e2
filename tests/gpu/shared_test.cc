/* The parts of the CUDA engine that do not need a GPU: how tokens are shared out among blocks (split.h), the order
 * of logits and the search for a head's best (order.h), planning (plan.c). The kernels compile the same source. */
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels.h"
#include "layout.h"
#include "order.h"
#include "logit_filter.h"
#include "split.h"
#include "visible.h"

namespace {

uint32_t Bits(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}

/* As the kernel walks it: every chunk of every work tile is computed once, by the block that SplitBlockOf names; no
 * block leaves two partial results in one place; a work tile's parts come from consecutive blocks. */
TEST(Split, CoversEverythingOnce) {
    std::mt19937 random(1);
    for (int i = 0; i < 3000; i++) {
        const uint32_t       rows = 1 + random() % 40, kv_heads = 1 + random() % 8, grid = 1 + random() % 400;
        const int32_t        capacity = 1 + random() % (random() % 2 != 0 ? 300 : 40000);
        const uint32_t       chunk_tokens = SplitChunkTokens(64, rows * kv_heads, (uint32_t)capacity, grid);
        std::vector<int32_t> lengths(rows);
        for (auto &n : lengths) n = random() % 4 == 0 ? 0 : (int32_t)(random() % ((uint32_t)capacity + 1));

        struct WorkTile {
            uint32_t before, chunks;
        };
        std::vector<WorkTile> work_tiles;
        uint32_t              total = 0;
        for (uint32_t r = 0; r < rows; r++) {
            for (uint32_t h = 0; h < kv_heads; h++) {
                work_tiles.push_back({total, SplitChunks(lengths[r], chunk_tokens)});
                total += work_tiles.back().chunks;
            }
        }
        const uint32_t                     blocks = SplitBlocks(total, grid);
        std::vector<int>                   seen(total);
        std::set<uint32_t>                 parts;
        std::vector<std::vector<uint32_t>> of_tile(work_tiles.size());
        ASSERT_EQ(SplitBegin(0, blocks, total), 0u);
        ASSERT_EQ(SplitBegin(blocks, blocks, total), total);
        for (uint32_t b = 0; b < blocks; b++) {
            uint32_t       at = SplitBegin(b, blocks, total);
            const uint32_t end = SplitBegin(b + 1, blocks, total);
            ASSERT_LT(at, end) << "a block without work";
            while (at < end) {
                size_t p = 0;
                while (work_tiles[p].before + work_tiles[p].chunks <= at) p++;
                const uint32_t from = at - work_tiles[p].before, to = std::min(work_tiles[p].chunks, from + (end - at));
                if (!(from == 0 && to == work_tiles[p].chunks)) {
                    const uint32_t part = SplitPart(b, from == 0);
                    ASSERT_LT(part, 2 * blocks);
                    ASSERT_TRUE(parts.insert(part).second) << "two parts in one place";
                    of_tile[p].push_back(b);
                }
                for (uint32_t u = from; u < to; u++) {
                    ASSERT_EQ(SplitBlockOf(work_tiles[p].before + u, blocks, total), b);
                    seen[work_tiles[p].before + u]++;
                }
                at += to - from;
            }
        }
        for (int s : seen) ASSERT_EQ(s, 1);
        for (size_t p = 0; p < work_tiles.size(); p++) {
            if (of_tile[p].empty()) continue;
            const uint32_t first = SplitBlockOf(work_tiles[p].before, blocks, total);
            const uint32_t last = SplitBlockOf(work_tiles[p].before + work_tiles[p].chunks - 1, blocks, total);
            ASSERT_EQ(of_tile[p].size(), last - first + 1);
            for (size_t k = 0; k < of_tile[p].size(); k++) ASSERT_EQ(of_tile[p][k], first + k);
        }
    }
}

TEST(Split, ProductsFit) {
    for (uint32_t work_tiles : {1u, 8u, 2048u, 32768u, 2097152u}) {
        for (uint32_t capacity : {1u, 4096u, 1u << 20, 1u << 28}) {
            const uint32_t chunk_tokens = SplitChunkTokens(64, work_tiles, capacity, 528);
            ASSERT_LE(((uint64_t)work_tiles * SplitChunks((int32_t)capacity, chunk_tokens) + 1) * 528, UINT32_MAX);
        }
    }
}

/* Larger first, -0 equals +0, NaN last; ties by position. */
bool Before(float a, uint32_t i, float b, uint32_t j) {
    if (std::isnan(a) != std::isnan(b)) return std::isnan(b);
    if (!std::isnan(a) && a != b) return a > b;
    return i < j;
}

const float kOdd[] = {0.0f, -0.0f, 1.0f, -1.0f, INFINITY, -INFINITY, NAN, -NAN, 1e-45f, -1e-45f, 3.4e38f, -3.4e38f, 1.0000001f};

TEST(Order, IsThatOfTheLogits) {
    for (float a : kOdd) {
        for (float b : kOdd) {
            for (uint32_t i = 0; i < 2; i++) {
                if (std::isnan(a) && std::isnan(b) && i == 1) continue;
                ASSERT_EQ(OrderItem(Bits(a), i) < OrderItem(Bits(b), 1 - i), Before(a, i, b, 1 - i)) << a << " " << b;
            }
        }
    }
}

/* The search of the kernel, with its counting done here: it ends, soon where a guess is good, and what it lets
 * through contains the best. */
TEST(Order, BoundIsFound) {
    std::mt19937 random(2);
    for (int i = 0; i < 2000; i++) {
        const uint32_t        n = 1 + random() % 3000, kind = random() % 5;
        std::vector<uint64_t> items(n);
        for (uint32_t p = 0; p < n; p++) {
            float x = std::normal_distribution<float>(0, 4)(random);
            if (kind == 0) x = (float)(int)(random() % 3);
            if (kind == 1) x = 7;
            if (kind == 2) x = kOdd[random() % 13];
            if (kind == 3) x *= 1e-20f;
            items[p] = OrderItem(Bits(x), p);
        }
        const uint32_t want = 1 + random() % n, room = want + random() % (n + 1);
        BoundSearch    search;
        BoundBegin(&search);
        uint64_t bound = random() % 2 != 0 ? items[random() % n] | UINT32_MAX : (uint64_t)random() << 32 | random();
        int      tries = 0;
        uint32_t count;
        for (;; tries++) {
            ASSERT_LT(tries, 200) << "n " << n << " want " << want << " room " << room << " kind " << kind;
            count = 0;
            for (uint64_t item : items) count += item <= bound;
            const uint64_t next = BoundNext(&search, bound, count, want, room);
            if (next == bound) break;
            bound = next;
        }
        ASSERT_GE(count, want);
        ASSERT_LE(count, room);
        std::nth_element(items.begin(), items.begin() + (want - 1), items.end());
        ASSERT_LE(items[want - 1], bound);
    }
}

TEST(Order, SamplesStayInside) {
    for (uint32_t count : {2049u, 4097u, 32768u, 1u << 20}) {
        for (uint32_t i : {0u, 1u, 2047u}) ASSERT_LT(SampleAt(i, 2048, count), count);
        ASSERT_LT(SampleRank(2048, count, 1536, 4096), 2048u);
        ASSERT_LT(SampleRank(2048, count, 768, 4096), 2048u);
    }
}

/* Every logit has a place of its own, four tokens of a head in a row of 16 bytes. */
TEST(Order, LogitsHavePlaces) {
    for (uint32_t together : {1u, 3u, 4u, 16u}) {
        const uint32_t     heads = 2 * together, stride = 96;
        std::set<uint64_t> places;
        for (uint32_t head = 0; head < heads; head++) {
            for (uint32_t token = 0; token < stride; token++) {
                const uint64_t at = LogitsOf(head, together, stride) + LogitAt(token, together);
                ASSERT_LT(at, (uint64_t)heads * stride);
                ASSERT_TRUE(places.insert(at).second);
                if (together == 1) {
                    ASSERT_EQ(at, (uint64_t)head * stride + token);
                }
                if (token % 4 == 0) {
                    ASSERT_EQ(at % 4, 0u);
                } else {
                    ASSERT_EQ(at, LogitsOf(head, together, stride) + LogitAt(token - 1, together) + 1);
                }
            }
        }
    }
}

/* ---- masks ---- */

/* As the kernel walks a mask, its lanes and warps one after the other. */
struct Seen {
    std::vector<int32_t> slots;
    bool                 odd = false;
};

Seen See(const std::vector<uint16_t> &mask, int32_t first, int32_t warps) {
    const int32_t n = (int32_t)mask.size(), chunk = VisibleChunk(n, warps);
    const auto    load = [&](int32_t slot, uint32_t words[4]) {
        for (int i = 0; i < 4; i++) words[i] = 0xfc00fc00u;
        if (slot < n) memcpy(words, &mask[slot], 16);
    };
    Seen                 out;
    std::vector<int32_t> found;
    for (int32_t w = 0; w < warps; w++) {
        int32_t count = 0;
        for (int32_t at = w * chunk; at < std::min(w * chunk + chunk, n); at += LIM_CUDA_VISIBLE_STEP) {
            for (int32_t lane = 0; lane < 32; lane++) {
                uint32_t words[4];
                load(at + lane * LIM_CUDA_VISIBLE_LANE, words);
                count += __builtin_popcount(VisibleBits(words));
                out.odd |= VisibleOdd(words) != 0;
            }
        }
        found.push_back(count);
    }
    int32_t all = 0;
    for (int32_t count : found) all += count;
    out.slots.assign((size_t)all, -1);
    int32_t before = 0;
    for (int32_t w = 0; w < warps; w++) {
        int32_t to = before;
        for (int32_t at = w * chunk; at < std::min(w * chunk + chunk, n); at += LIM_CUDA_VISIBLE_STEP) {
            for (int32_t lane = 0; lane < 32; lane++) {
                uint32_t words[4];
                load(at + lane * LIM_CUDA_VISIBLE_LANE, words);
                const uint32_t bits = VisibleBits(words);
                int32_t        slots[LIM_CUDA_VISIBLE_LANE];
                VisibleWrite(bits, first + at + lane * LIM_CUDA_VISIBLE_LANE, slots);
                const int count = __builtin_popcount(bits);
                std::copy(slots, slots + count, out.slots.begin() + to);
                to += count;
            }
        }
        before += found[(size_t)w];
    }
    return out;
}

TEST(Visible, IsWhatTheMaskShows) {
    std::mt19937 random(3);
    for (int i = 0; i < 600; i++) {
        const int32_t         n = 8 * (int32_t)(1 + random() % (random() % 4 == 0 ? 4000 : 100)), first = (int32_t)(random() % 100000);
        const int             kind = (int)(random() % 4);
        std::vector<uint16_t> mask((size_t)n);
        std::vector<int32_t>  want;
        const int32_t         past = (int32_t)(random() % (uint32_t)(n + 1));
        for (int32_t s = 0; s < n; s++) {
            const bool shown = kind == 0 ? s < past : kind == 1 ? random() % 2 != 0
                                                : kind == 2     ? random() % 300 != 0
                                                                : random() % 300 == 0;
            mask[(size_t)s] = !shown ? 0xfc00 : random() % 2 != 0 ? 0
                                                                  : 0x8000; /* -0 is a zero */
            if (shown) want.push_back(first + s);
        }
        Seen seen = See(mask, first, 1 + (int32_t)(random() % 32));
        ASSERT_EQ(seen.slots, want);
        ASSERT_FALSE(seen.odd);
        if (want.empty()) continue;
        /* Any other value shows the slot, and is told: a bias, NaN, +inf, the lowest number. */
        static const uint16_t kOther[] = {0x3c00, 0xbc00, 0x7e00, 0xfe00, 0x7c00, 0xfbff, 0x0001};
        mask[(size_t)(want[random() % want.size()] - first)] = kOther[random() % 7];
        seen = See(mask, first, LIM_CUDA_VISIBLE_WARPS);
        ASSERT_EQ(seen.slots, want);
        ASSERT_TRUE(seen.odd);
    }
}

/* Warps share the slots without a gap, and the last ones may have none. */
TEST(Visible, ChunksCover) {
    for (int32_t n : {8, 248, 256, 264, 8192, 8200, 131072, 1 << 28}) {
        const int32_t chunk = VisibleChunk(n, LIM_CUDA_VISIBLE_WARPS);
        ASSERT_EQ(chunk % LIM_CUDA_VISIBLE_STEP, 0);
        ASSERT_GE((int64_t)chunk * LIM_CUDA_VISIBLE_WARPS, n);
        ASSERT_LT((int64_t)(chunk - LIM_CUDA_VISIBLE_STEP) * LIM_CUDA_VISIBLE_WARPS, n);
    }
}

/* ---- planning ---- */

const lim_cuda_device kH200 = {132, 233472, 232448, 90};
const lim_cuda_device kSmall = {48, 102400, 101376, 86}; /* as of compute capability 8.6 or 12.0 */

lim_cuda_call Good() {
    lim_cuda_call c = {};
    c.query = {0x1000, 8192, 256, LIM_CUDA_F16, 0};
    c.output = c.query;
    c.key = {0x100000, 2048, 256, 1 << 26};
    c.value = c.key;
    c.lengths = 0x1000, c.set = 0x1000, c.set_stride = 2048, c.work = 0x1000;
    c.n_rows = 8, c.heads = 32, c.kv_heads = 8, c.dim = 128, c.kv_type = LIM_CUDA_F16, c.capacity = 32768;
    c.scale = 0.1f, c.value_scale = 1;
    c.budget = 2048, c.sink_tokens = 4, c.top_k = 1536, c.recent = 508;
    return c;
}

int64_t RowBytes(int type, int dim) {
    switch (type) {
    case LIM_CUDA_FP8: return dim;
    case LIM_CUDA_Q8_0: return dim / 32 * 34;
    case LIM_CUDA_Q4_0: return dim / 32 * 18;
    default: return dim * 2;
    }
}
/* Good() with heads of so many elements. */
void SetHeads(lim_cuda_call *c, int type, int dim) {
    c->kv_type = type, c->dim = dim;
    c->query.head_stride = c->output.head_stride = dim * 2;
    c->query.row_stride = c->output.row_stride = dim * 2 * c->heads;
    c->key.head_stride = c->value.head_stride = RowBytes(type, dim);
    c->key.token_stride = c->value.token_stride = RowBytes(type, dim) * 8;
}

TEST(Plan, FitsEveryDeviceAndShape) {
    char text[256];
    for (const lim_cuda_device *d : {&kH200, &kSmall}) {
        for (int type : {LIM_CUDA_F16, LIM_CUDA_BF16, LIM_CUDA_FP8, LIM_CUDA_Q8_0, LIM_CUDA_Q4_0}) {
            for (int dim : {64, 128, 256, 16, 80, 96, 112, 144, 192, 240}) {
                const bool packed = type == LIM_CUDA_Q8_0 || type == LIM_CUDA_Q4_0, half = type == LIM_CUDA_F16 || type == LIM_CUDA_BF16;
                if (dim != 64 && dim != 128 && dim != 256 && !half && !(packed && dim == 96)) continue;
                for (int group = 1; group <= (packed && dim == 96 ? 8 : 16); group++) {
                    for (int rows : {1, 7, 25, 300}) {
                        for (int capacity : {1, 100, 2048, 131072}) {
                            lim_cuda_call c = Good();
                            c.heads = 8 * group, c.n_rows = rows, c.capacity = capacity;
                            SetHeads(&c, type, dim);
                            for (int way = 0; way < 9; way++) { /* each mode without a table, with small pages, with those of a tile */
                                const int mode = way / 3;
                                c.mode = mode, c.table = way % 3 == 0 ? 0 : 64, c.table_stride = 1 << 17, c.page_shift = way % 3 == 1 ? 0 : 4;
                                if (lim_cuda_check(d, &c, text, sizeof text) != 0) {
                                    ASSERT_EQ(d, &kSmall) << text; /* the largest tiles do not fit the smallest cards */
                                    ASSERT_NE(std::string(text).find("shared memory"), std::string::npos) << text;
                                    ASSERT_GT(dim, 128);
                                    continue;
                                }
                                lim_cuda_args   args;
                                lim_cuda_launch l[2];
                                const int       count = lim_cuda_plan(d, &c, &args, l);
                                ASSERT_EQ(count, mode == LIM_CUDA_SELECT ? 2 : 1);
                                char      names[LIM_CUDA_MOST_ENTRIES][LIM_CUDA_NAME];
                                const int entries = lim_cuda_entry_points(d, &c, names);
                                ASSERT_LE(entries, LIM_CUDA_MOST_ENTRIES);
                                for (int k = 0; k < count; k++)
                                    ASSERT_EQ(std::count_if(names, names + entries, [&](const char *n) { return strcmp(n, l[k].name) == 0; }), 1) << l[k].name;
                                for (int k = 0; k < count; k++) ASSERT_LE(l[k].shared + 1024, (uint32_t)d->shared_per_block) << l[k].name;
                                ASSERT_GE(l[0].grid[0], 1u);
                                ASSERT_LE(l[0].grid[0], (uint32_t)d->multiprocessors * LIM_CUDA_MOST_RESIDENT);
                                ASSERT_EQ(args.cluster, l[0].cluster);
                                ASSERT_EQ(args.cluster != 0, std::string(l[0].name).find("lim_short_") == 0) << l[0].name;
                                if (args.cluster != 0) { /* all blocks at once, one on each multiprocessor */
                                    ASSERT_EQ(d, &kH200);
                                    ASSERT_EQ(l[0].grid[0], (uint32_t)rows * 8 * args.cluster);
                                    ASSERT_LE(l[0].grid[0], (uint32_t)d->multiprocessors);
                                }
                                ASSERT_TRUE(args.stages == 2 || args.stages == 3 || args.stages == 4 || args.stages == 6);
                            }
                        }
                    }
                }
            }
        }
    }
}

TEST(Plan, WorkGrowsWithTheCall) {
    lim_cuda_call c = Good();
    size_t        last = 0;
    const auto    takes = [&](size_t least) {
        const size_t size = lim_cuda_work_size(&kH200, &c);
        ASSERT_GE(size, least);
        last = size;
    };
    for (int capacity : {1, 1000, 32768, 131072}) {
        c.capacity = capacity;
        takes(last);
    }
    for (int rows : {8, 9, 64}) {
        c.n_rows = rows;
        takes(last);
    }
    for (int heads : {40, 64}) {
        c.heads = heads;
        takes(last + 1);
    }
    for (int top_k : {c.top_k + 4, c.top_k + 5, 8 * c.top_k}) {
        c.budget += top_k - c.top_k;
        c.top_k = top_k;
        takes(last);
    }
}

/* Rows that share room take it by what they see together, however many there may be. */
TEST(Plan, SharedRoomGrowsWithTheTokens) {
    lim_cuda_call c = Good();
    c.mode = LIM_CUDA_SELECT;
    c.capacity = 131072;
    c.n_rows = 512; /* more than can be above the budget at a time */
    c.kv_tokens = 800000;
    const size_t few = lim_cuda_work_size(&kH200, &c);
    c.n_rows = 1024;
    const size_t many = lim_cuda_work_size(&kH200, &c);
    EXPECT_LT(many - few, (size_t)512 * c.heads * (LIM_CUDA_FILTER_LISTS * sizeof(lim_cuda_survivors) + 16 + (size_t)c.dim * 4)); /* lists, sums, again, queries */
    EXPECT_LT(many, (size_t)800000 * c.heads * 4 * 4);
    c.kv_tokens *= 2;
    EXPECT_GT(lim_cuda_work_size(&kH200, &c), many);
    c.kv_tokens = 0;
    EXPECT_GT(lim_cuda_work_size(&kH200, &c), 20 * many);
    c.kv_tokens = 800000;
    lim_cuda_args   a;
    lim_cuda_launch l[2];
    lim_cuda_plan(&kH200, &c, &a, l);
    EXPECT_EQ(a.no_sets, lim_cuda_no_sets(&kH200, &c));
    EXPECT_NE(a.no_sets, 0u);
    const uint64_t in_one_room = a.no_sets; /* in the same place for any rows: the sparse layers find it */
    c.n_rows = 3, c.mode = LIM_CUDA_SPARSE;
    EXPECT_EQ(lim_cuda_no_sets(&kH200, &c), in_one_room);
    /* More rows than the budget lets in: the last ranking and the last logits are inside. */
    const int64_t each = RoomsOf(c.budget + 1), rows = c.kv_tokens / (c.budget + 1), rooms = rows * each;
    EXPECT_LE(a.ranks + (RankingAfter(rooms - each, rows - 1, c.budget) + 1) * c.heads * RankStride(c.top_k) * 4, a.mass);
    EXPECT_LE(a.mass + (uint64_t)rooms * LIM_CUDA_ROOM * 4, a.logits);
    EXPECT_LE(a.logits + (uint64_t)rooms * LIM_CUDA_ROOM * c.heads * a.floats * 4, a.survivors);
    /* With a token for each of all, sharing takes whole rooms more, and no more. */
    for (int n_rows : {1, 7, 64}) {
        c = Good();
        c.mode = LIM_CUDA_SELECT, c.n_rows = n_rows;
        const size_t apart = lim_cuda_work_size(&kH200, &c);
        c.kv_tokens = (int64_t)n_rows * c.capacity;
        EXPECT_LE(lim_cuda_work_size(&kH200, &c), apart + (size_t)n_rows * LIM_CUDA_ROOM * (2 * c.heads + 1) * 4 + 1024);
    }
}

/* Sparse layers whose selection had no room attend to everything, in the grid that they have for token sets: the line of all
 * chunks still fits 32 bits. */
TEST(Plan, SparseLayersMayBeDense) {
    for (int n_rows : {1, 8, (int)LIM_CUDA_MAX_ROWS}) {
        for (int32_t capacity : {4096, 1 << 20}) {
            lim_cuda_call c = Good();
            c.mode = LIM_CUDA_SPARSE, c.n_rows = n_rows, c.capacity = capacity, c.kv_tokens = 1 << 20;
            lim_cuda_args   a;
            lim_cuda_launch l[2];
            ASSERT_EQ(lim_cuda_plan(&kH200, &c, &a, l), 1);
            const uint64_t work_tiles = (uint64_t)c.n_rows * c.kv_heads;
            ASSERT_LE((work_tiles * SplitChunks(capacity, a.chunk_tokens) + 1) * l[0].grid[0], UINT32_MAX);
            if (a.cluster > 1) continue;
            ASSERT_LE(l[0].grid[0], work_tiles * SplitChunks(c.budget, a.chunk_tokens)) << "a guess beyond the last row";
        }
    }
}

/* As the kernels place rows: those above the budget one after another, none in another one's room or ranking, all inside;
 * with a token less than they see together, none. */
TEST(Pool, RowsHaveRoomsOfTheirOwn) {
    std::mt19937 random(5);
    for (int i = 0; i < 4000; i++) {
        const int32_t        rows = 1 + random() % (i % 4 == 0 ? 300 : 20), budget = 1 + random() % (i % 2 != 0 ? 40 : 3000);
        std::vector<int32_t> lengths(rows);
        for (auto &n : lengths) {
            const int32_t some[] = {0, -1, budget, budget + 1, (int32_t)(random() % (budget + 1)), budget + (int32_t)(random() % 5000)};
            n = some[random() % 6];
        }
        const auto use_of = [&](int row) { /* by the lanes of a warp */
                                           PoolUse use = {0, 0};
                                           for (int lane = 0; lane < 32; lane++) {
                                               PoolUse own = {0, 0};
                                               for (int r = lane; r < rows; r += 32) PoolAdd(&own, lengths[r], budget, r < row);
                                               use.before += own.before;
                                               use.tokens += own.tokens;
                                           }
                                           return use;
        };
        const int64_t together = (int64_t)use_of(0).tokens;
        int64_t       sum = 0, at = 0, ranking = -1;
        for (int32_t n : lengths) sum += n > budget ? n : 0;
        ASSERT_EQ(together, sum);
        if (together == 0) continue;
        const int64_t kv_tokens = together + (random() % 2 != 0 ? 0 : random() % 1000);
        for (int row = 0; row < rows; row++) {
            const PoolUse use = use_of(row);
            ASSERT_EQ((int64_t)use.tokens, together) << "rows must agree on whether there is room";
            if (lengths[row] <= budget) continue;
            ASSERT_EQ(use.before * (int64_t)LIM_CUDA_ROOM, at);
            at += (int64_t)RoomsOf(lengths[row]) * LIM_CUDA_ROOM;
            ASSERT_GE(at - use.before * (int64_t)LIM_CUDA_ROOM, (lengths[row] + LIM_CUDA_TILE - 1) / LIM_CUDA_TILE * LIM_CUDA_TILE) << "whole tiles are stored";
            const int64_t own = RankingAfter(use.before, row, budget);
            ASSERT_GT(own, ranking);
            ranking = own;
        }
        ASSERT_LE(at, PoolTokens(kv_tokens, rows, budget));
        ASSERT_LT(ranking, PoolRankings(kv_tokens, rows, budget));
    }
}

/* Everything that a plan hands out lies in the work memory, in one piece each. */
TEST(Plan, WorkIsInside) {
    lim_cuda_call c = Good();
    c.mode = LIM_CUDA_SELECT;
    lim_cuda_args   a;
    lim_cuda_launch l[2];
    lim_cuda_plan(&kH200, &c, &a, l);
    const uint64_t end = c.work + lim_cuda_work_size(&kH200, &c);
    const uint64_t parts[] = {a.arrivals, a.gathered, a.parts, a.sums, a.ranks, a.mass, a.logits, a.survivors, a.again, a.queries};
    for (size_t i = 0; i + 1 < sizeof parts / sizeof *parts; i++) ASSERT_LT(parts[i], parts[i + 1]);
    ASSERT_GE(parts[0], c.work);
    ASSERT_GE(a.room_stride, 2 * a.logit_stride); /* two floats for each token that is kept */
    ASSERT_LE(a.logits + (uint64_t)c.n_rows * c.heads * a.room_stride * 4, a.survivors);
    ASSERT_LE(a.survivors + (uint64_t)c.n_rows * c.heads * LIM_CUDA_FILTER_LISTS * sizeof(lim_cuda_survivors), a.again);
    ASSERT_LE(a.again + (uint64_t)c.n_rows * c.heads * 4, a.queries);
    ASSERT_EQ(a.queries + (uint64_t)c.n_rows * c.heads * c.dim * 4, end);
    ASSERT_EQ(a.logits % 256, 0u);
}

/* TMA and the logit filter are for Hopper, halves, rows without a table or in pages of whole tiles, long splits. */
TEST(Plan, TakesTheKernelOfTheCase) {
    const struct {
        const char *attends, *selects;
        void (*change)(lim_cuda_call *);
    } cases[] = {
        {"lim_attend_f16_128_8_filtered", "lim_select_filtered", [](lim_cuda_call *) {}},
        {"lim_attend_bf16_64_8_filtered", "lim_select_filtered", [](lim_cuda_call *c) { c->kv_type = LIM_CUDA_BF16, c->dim = 64; }},
        {"lim_attend_f16_128_8_tma", "", [](lim_cuda_call *c) { c->mode = LIM_CUDA_FULL; }},
        {"lim_attend_f16_128_8_tma", "lim_select_mass", [](lim_cuda_call *c) { c->policy = LIM_CUDA_MASS; }},
        {"lim_attend_f16_128_8_tma", "lim_select_union", [](lim_cuda_call *c) { c->n_rows = 1; }},
        /* Worth it, but more blocks would share a row's head than there are lists. */
        {"lim_attend_f16_128_8_tma", "lim_select_union", [](lim_cuda_call *c) { c->n_rows = 1, c->capacity = 1 << 18; }},
        {"lim_attend_f16_128_8_filtered_paged", "lim_select_filtered", [](lim_cuda_call *c) { c->table = 64; c->table_stride = 1 << 12; c->page_shift = 4; }},
        {"lim_attend_bf16_64_8_filtered_paged", "lim_select_filtered", [](lim_cuda_call *c) { c->kv_type = LIM_CUDA_BF16, c->dim = 64, c->table = 64, c->table_stride = 1 << 12, c->page_shift = 7; }},
        {"lim_attend_f16_128_8_tma_paged", "", [](lim_cuda_call *c) { c->mode = LIM_CUDA_FULL; c->table = 64; c->table_stride = 1 << 12; c->page_shift = 5; }},
        {"lim_attend_f16_128_8_tma_paged", "lim_select_mass", [](lim_cuda_call *c) { c->policy = LIM_CUDA_MASS; c->table = 64; c->table_stride = 1 << 12; c->page_shift = 6; }},
        /* A tile would lie in two pages. */
        {"lim_attend_f16_128_8_indexed", "lim_select_union", [](lim_cuda_call *c) { c->table = 64; c->table_stride = 1 << 12; c->page_shift = 3; }},
        {"lim_attend_f16_128_8_indexed", "lim_select_union", [](lim_cuda_call *c) { c->n_rows = 1, c->table = 64, c->table_stride = 1 << 15, c->page_shift = 0; }},
        {"lim_attend_fp8_128_8_indexed", "lim_select_union", [](lim_cuda_call *c) { c->kv_type = LIM_CUDA_FP8; c->table = 64; c->table_stride = 1 << 12; c->page_shift = 4; }},
        {"lim_attend_f16_128_16_direct", "lim_select_union", [](lim_cuda_call *c) { c->heads = 128; }},
        {"lim_attend_f16_256_8_direct", "lim_select_union", [](lim_cuda_call *c) { c->dim = 256; c->key.head_stride = c->value.head_stride = 512; c->query.head_stride = c->output.head_stride = 512; c->query.row_stride = c->output.row_stride = 16384; }},
        {"lim_attend_fp8_128_8_direct", "lim_select_union", [](lim_cuda_call *c) { c->kv_type = LIM_CUDA_FP8; }},
        {"lim_attend_q4_0_128_8_tma", "lim_select_union", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q4_0, 128); }},
        {"lim_attend_q8_0_64_8_tma", "", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q8_0, 64); c->mode = LIM_CUDA_FULL; }},
        /* Packed rows that TMA does not take: tokens at no multiple of 16, heads that lie apart, pages. */
        {"lim_attend_q4_0_128_8_direct", "lim_select_union", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q4_0, 128); c->value.token_stride += 8; }},
        {"lim_attend_q4_0_128_8_direct", "lim_select_union", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q4_0, 128); c->key.head_stride += 8; c->key.token_stride += 64; }},
        {"lim_attend_q8_0_128_8_indexed", "", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q8_0, 128); c->mode = LIM_CUDA_FULL, c->table = 64, c->table_stride = 1 << 12, c->page_shift = 4; }},
        {"lim_attend_q8_0_256_8_indexed", "", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q8_0, 256); c->mode = LIM_CUDA_SPARSE; }},
        {"lim_short_q8_0_96_8_indexed", "", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q8_0, 96); c->mode = LIM_CUDA_SPARSE; }},
        {"lim_short_q4_0_64_8_indexed", "", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q4_0, 64); c->mode = LIM_CUDA_SPARSE; }},
        /* Heads of other sizes have the kernels of the next larger one, none with TMA. */
        {"lim_attend_f16_upto128_8_direct", "lim_select_union", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_F16, 96); }},
        {"lim_attend_bf16_upto128_8_direct", "", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_BF16, 48); c->mode = LIM_CUDA_FULL; }},
        {"lim_short_f16_upto128_8_indexed", "", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_F16, 80); c->mode = LIM_CUDA_SPARSE; }},
        {"lim_attend_f16_upto256_8_indexed", "", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_F16, 192); c->mode = LIM_CUDA_SPARSE; }},
        {"lim_attend_f16_128_8_direct", "lim_select_union", [](lim_cuda_call *c) { c->value.page_stride = (int64_t)1 << 40; }},
        {"lim_short_f16_128_8_indexed", "", [](lim_cuda_call *c) { c->mode = LIM_CUDA_SPARSE; }},
    };
    for (const auto &x : cases) {
        for (int all : {0, 1}) {
            lim_cuda_call c = Good();
            c.mode = LIM_CUDA_SELECT;
            x.change(&c);
            char text[256];
            ASSERT_EQ(lim_cuda_check(&kH200, &c, text, sizeof text), 0) << text;
            lim_cuda_args   a;
            lim_cuda_launch l[2];
            const int       count = (all ? lim_cuda_plan_all : lim_cuda_plan)(&kH200, &c, &a, l);
            std::string     attends = x.attends, selects = x.selects;
            if (all && selects == "lim_select_filtered") {
                selects = "lim_select_union";
                attends.replace(attends.find("filtered"), 8, "tma");
            }
            EXPECT_EQ(l[0].name, attends);
            EXPECT_EQ(count == 2 ? l[1].name : "", selects);
            EXPECT_EQ(a.survivors != 0, selects == "lim_select_filtered");
            EXPECT_EQ(a.tma != 0, attends.find("tma") != std::string::npos || a.survivors != 0);
            const uint32_t each = l[0].shared + 2048; /* two blocks on each multiprocessor */
            EXPECT_TRUE(a.tma == 0 || 2 * each <= (uint32_t)kH200.shared_per_multiprocessor) << attends;
        }
        lim_cuda_call c = Good();
        c.mode = LIM_CUDA_SELECT;
        x.change(&c);
        lim_cuda_args   a;
        lim_cuda_launch l[2];
        lim_cuda_plan(&kSmall, &c, &a, l);
        EXPECT_EQ(a.tma, 0u);
        EXPECT_EQ(a.survivors, 0u);
    }
}

/* ---- the logit filter ---- */

TEST(LogitFilter, EveryTileComesOnce) {
    std::mt19937 rng(std::random_device{}());
    for (int round = 0; round < 2000; round++) {
        const int        tiles = (int)(rng() % 16), all = tiles * 2 + (int)(rng() % 200), turn = 64, first = (int)(rng() % 1000) * 16;
        const int        step = tiles == 0 ? 0 : all / tiles;
        TileOrder        o = TileOrderFrom(first, tiles);
        std::vector<int> seen(all, -1);
        for (int i = 0; i < all; i++) {
            const int which = (o.token - first) / turn;
            ASSERT_EQ((o.token - first) % turn, 0);
            ASSERT_EQ(TileOrderAt(i, step, tiles), which);
            ASSERT_TRUE(which >= 0 && which < all) << which << " of " << all << ", " << tiles << " sampled";
            ASSERT_EQ(seen[which], -1);
            seen[which] = i;
            if (i < tiles) {
                ASSERT_EQ(which, i * step);
            }
            TileOrderNext(&o, first, turn, step, tiles);
        }
    }
}

TEST(LogitFilter, BoundsAreReached) {
    std::mt19937 rng(std::random_device{}());
    for (int round = 0; round < 3000; round++) {
        /* Logits far from zero as well: the search looks at their range, not at their size. */
        const float                     offset = std::vector<float>{0, 3, -40, 700, 1e6f}[rng() % 5], spread = rng() % 9 == 0 ? 0 : 2;
        std::vector<uint32_t>           keys(96 + rng() % 97);
        std::normal_distribution<float> normal(offset, spread);
        for (auto &k : keys) k = OrderKey(Bits(normal(rng)));
        std::vector<uint32_t> sorted = keys;
        std::sort(sorted.begin(), sorted.end());
        const uint32_t rank = 1 + rng() % (uint32_t)keys.size();
        FilterSearch   s = FilterSearchFrom(sorted.front(), sorted.back());
        int            tries = 0;
        for (; s.bit != 0; tries++) {
            const uint32_t below = FilterSearchTry(&s);
            FilterSearchNext(&s, (uint32_t)std::count_if(keys.begin(), keys.end(), [&](uint32_t k) { return k < below; }) < rank);
        }
        ASSERT_LE(tries, 16);
        const uint32_t last = FilterSearchEnd(&s), range = sorted.back() - sorted.front();
        ASSERT_GE(last, sorted[rank - 1]);
        ASSERT_LE(last - sorted[rank - 1], range / 32768);
    }
}

TEST(LogitFilter, SamplesFitAndSplitsPay) {
    for (uint32_t group = 1; group <= 8; group++) {
        const uint32_t tiles = FilterTiles(group, 4);
        ASSERT_LE(tiles * 4 * 16 * group, (uint32_t)LIM_CUDA_FILTER_SAMPLES);
        /* What waits of a head, a line and a tile, has its samples' place. */
        ASSERT_GE(tiles * 16 * 4, (32u + 16) * 8);
        for (uint32_t need : {1u, 48u, 768u, 8192u}) {
            const uint32_t least = FilterLeast(need, group, 4);
            /* Half of it is the least that is sampled: two tiles for each that is, and it keeps no more than half. */
            ASSERT_GE(least / 2 / 64 / tiles, 2u);
            ASSERT_LE(FilterAim(need, least / 2) * 2, least / 2);
            ASSERT_GE(FilterAim(need, least), 2 * need);
        }
    }
}

TEST(Plan, RefusalsNameTheArgument) {
    char text[256];
    const struct {
        const char *name;
        void (*spoil)(lim_cuda_call *);
    } cases[] = {
        {"dim", [](lim_cuda_call *c) { c->dim = 72; }},
        {"dim", [](lim_cuda_call *c) { c->dim = 272; }},
        {"dim", [](lim_cuda_call *c) { c->dim = 0; }},
        {"dim", [](lim_cuda_call *c) { c->heads = 128; SetHeads(c, LIM_CUDA_Q8_0, 96); }},
        {"dim", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q8_0, 192); }},
        {"token_stride", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q4_0, 96); c->value.token_stride += 2; }},
        {"head_stride", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q4_0, 96); c->key.head_stride += 1; }},
        {"token_stride", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q4_0, 128); c->key.token_stride = 1 << 25; }},
        {"dim", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_Q4_0, 32); }},
        {"dim", [](lim_cuda_call *c) { SetHeads(c, LIM_CUDA_FP8, 192); }},
        {"kv_type", [](lim_cuda_call *c) { c->kv_type = LIM_CUDA_F32; }},
        {"kv_type", [](lim_cuda_call *c) { c->kv_type = 6; }},
        {"heads", [](lim_cuda_call *c) { c->heads = 256; }},
        {"scale", [](lim_cuda_call *c) { c->scale = NAN; }},
        {"softcap", [](lim_cuda_call *c) { c->softcap = INFINITY; }},
        {"value_scale", [](lim_cuda_call *c) { c->value_scale = NAN; }},
        {"key", [](lim_cuda_call *c) { c->key.data = 0; }},
        {"page_stride", [](lim_cuda_call *c) { c->value.page_stride = 8; }},
        {"page_shift", [](lim_cuda_call *c) { c->table = 64; c->table_stride = 1 << 20; c->page_shift = 30; }},
        {"query", [](lim_cuda_call *c) { c->query.type = LIM_CUDA_FP8; }},
        {"output", [](lim_cuda_call *c) { c->output.row_stride = 4; }},
        {"capacity", [](lim_cuda_call *c) { c->capacity = 1 << 21; }},
        {"budget", [](lim_cuda_call *c) { c->sink_tokens = -1; }},
    };
    for (const auto &x : cases) {
        lim_cuda_call c = Good();
        c.mode = LIM_CUDA_SELECT;
        ASSERT_EQ(lim_cuda_check(&kH200, &c, text, sizeof text), 0) << text;
        x.spoil(&c);
        ASSERT_NE(lim_cuda_check(&kH200, &c, text, sizeof text), 0) << x.name;
        ASSERT_NE(std::string(text).find(x.name), std::string::npos) << text;
    }
}

}  // namespace
