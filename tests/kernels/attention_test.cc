/* Attention and the selection inside it, over random shapes, layouts, types and targets, against float64. */
#include <cmath>
#include <cstring>

#include "attention.h"
#include "gtest/gtest.h"
#include "reference.h"

namespace {

/* One random call with all its memory. */
struct Problem {
    lim_cpu_call                       call = {};
    int                                n_slots, n_streams, n_tokens;
    Guarded                            query{0}, key{0}, value{0}, output{0};
    std::vector<lim_cpu_row>           rows;
    std::vector<std::vector<int32_t>>  slots, sets;
    std::vector<std::vector<uint16_t>> masks;
    std::vector<float>                 slopes, sinks;
    std::vector<int32_t>               table;
    std::vector<std::vector<double>>   expected; /* outputs, once known */
    std::string                        text;
    size_t                             output_bytes = 0;
};

/* Lays out [streams][heads][tokens] rows of `bytes` in some order with some padding; returns the total size. */
size_t Layout(Random *random, lim_cpu_tensor *tensor, int streams, int heads, int tokens, size_t bytes, size_t unit) {
    auto       padding = [&] { return random->Chance(0.4) ? (size_t)random->Int(1, 9) * unit : 0; };
    const bool by_token = random->Chance(0.6);
    size_t     inner = bytes + padding(), outer = inner * (by_token ? heads : tokens) + padding();
    tensor->token_stride = (int64_t)(by_token ? outer : inner);
    tensor->head_stride = (int64_t)(by_token ? inner : outer);
    tensor->stream_stride = (int64_t)(outer * (by_token ? tokens : heads) + padding());
    /* Up to the last row's last byte, so that nothing may be read beyond it. */
    return (size_t)(tensor->stream_stride * (streams - 1) + tensor->head_stride * (heads - 1) +
                    tensor->token_stride * (tokens - 1)) +
           bytes;
}

size_t Unit(int type) { return type == LIM_CPU_F32 ? 4 : 2; }

Guarded FillTensor(Random *random, lim_cpu_tensor *tensor, int streams, int heads, int tokens, int dim, bool exact, bool specials) {
    Guarded            memory(Layout(random, tensor, streams, heads, tokens, TypeBytes(tensor->type, dim), Unit(tensor->type)));
    std::vector<float> row(dim);
    tensor->data = memory.data();
    for (int s = 0; s < streams; s++) {
        for (int h = 0; h < heads; h++) {
            for (int t = 0; t < tokens; t++) {
                for (float &x : row) x = exact ? (float)random->Int(-2, 2) : random->Normal();
                if (specials && random->Chance(0.05)) row[random->Int(0, dim - 1)] = random->Pick({NAN, INFINITY, -INFINITY, 1e30f});
                Store(tensor->type, memory.bytes() + s * tensor->stream_stride + h * tensor->head_stride + t * tensor->token_stride,
                      row.data(), dim);
            }
        }
    }
    return memory;
}

/* `exact`: small integers, so that logits have no rounding and token sets can be compared exactly. */
void Make(Random *random, Problem *p, bool exact, bool specials = false) {
    lim_cpu_call &call = p->call;
    call.kv_heads = random->Pick({1, 1, 2, 3, 4, 8});
    call.heads = call.kv_heads * random->Pick({1, 2, 3, 4, 5, 6, 7, 8});
    call.query.type = random->Pick({LIM_CPU_F32, LIM_CPU_F16, LIM_CPU_BF16});
    call.output.type = random->Pick({LIM_CPU_F32, LIM_CPU_F32, LIM_CPU_F16, LIM_CPU_BF16});
    call.key.type = exact ? random->Pick({LIM_CPU_F32, LIM_CPU_F16, LIM_CPU_BF16}) : random->Int(0, 4);
    call.value.type = random->Int(0, 4);
    call.dim_k = call.key.type >= LIM_CPU_Q8_0 ? 32 * random->Int(1, 8) : 16 * random->Int(1, 16);
    call.dim_v = call.value.type >= LIM_CPU_Q8_0 ? 32 * random->Int(1, 8) : 16 * random->Int(1, 16);
    p->n_streams = random->Int(1, 2);
    p->n_tokens = random->Int(1, 3);
    p->n_slots = random->Chance(0.1) ? random->Int(300, 1200) : random->Chance(0.3) ? random->Int(1, 12)
                                                                                    : random->Int(1, 250);
    /* A store for each stream, or pages that any stream may have, also several times, as rows share a prefix. */
    int stores = p->n_streams, size = p->n_slots;
    if (random->Chance(0.4)) {
        call.page_shift = random->Int(0, 8);
        size = 1 << call.page_shift;
        const int used = (p->n_slots + size - 1) / size;
        stores = used + random->Int(0, 5);
        call.table_stride = used + random->Int(0, 3);
        for (int64_t i = 0; i < p->n_streams * call.table_stride; i++) {
            p->table.push_back(i % call.table_stride < used ? random->Int(0, stores - 1) : INT32_MIN); /* never read */
        }
        call.table = p->table.data();
    }
    call.scale = exact ? 0.5f : 1 / std::sqrt((float)call.dim_k) * random->Pick({0.5f, 1.0f, 3.0f});
    if (!exact && random->Chance(0.3)) call.softcap = random->Pick({5.0f, 30.0f, 50.0f});
    p->query = Guarded(FillTensor(random, &call.query, p->n_streams, call.heads, p->n_tokens, call.dim_k, exact, specials));
    p->key = Guarded(FillTensor(random, &call.key, stores, call.kv_heads, size, call.dim_k, exact, specials));
    p->value = Guarded(FillTensor(random, &call.value, stores, call.kv_heads, size, call.dim_v, false, specials));
    p->output_bytes = Layout(random, &call.output, p->n_streams, call.heads, p->n_tokens, TypeBytes(call.output.type, call.dim_v), Unit(call.output.type));
    p->output = Guarded(p->output_bytes);
    call.output.data = p->output.data();
    if (random->Chance(0.3)) {
        for (int h = 0; h < call.heads; h++) p->slopes.push_back(std::ldexp(1.0f, -random->Int(0, 4)));
        call.slopes = p->slopes.data();
    }
    if (random->Chance(0.3)) {
        for (int h = 0; h < call.heads; h++) p->sinks.push_back(random->Chance(0.1) ? -INFINITY : random->Normal() * 2);
        call.sinks = p->sinks.data();
    }
    call.mode = random->Int(0, 2);
    call.policy = random->Int(0, 1);
    const int        n_rows = random->Int(1, std::min(4, p->n_streams * p->n_tokens));
    std::vector<int> places(p->n_streams * p->n_tokens);
    for (size_t i = 0; i < places.size(); i++) places[i] = (int)i;
    random->Shuffle(&places);
    p->rows.resize(n_rows);
    p->slots.resize(n_rows);
    p->sets.resize(n_rows);
    p->masks.resize(n_rows);
    for (int r = 0; r < n_rows; r++) {
        lim_cpu_row &row = p->rows[r];
        row = {};
        row.stream = places[r] / p->n_tokens;
        row.token = places[r] % p->n_tokens;
        if (random->Chance(0.5)) {
            row.n = random->Chance(0.05) ? 0 : random->Int(1, p->n_slots);
        } else { /* some slots, in an order of their own now and then */
            for (int s = 0; s < p->n_slots; s++) {
                if (random->Chance(0.7)) p->slots[r].push_back(s);
            }
            if (random->Chance(0.4)) random->Shuffle(&p->slots[r]);
            row.n = (int)p->slots[r].size();
            row.slots = p->slots[r].data();
        }
        if (random->Chance(0.4)) {
            for (int s = 0; s < p->n_slots; s++) p->masks[r].push_back(HalfOf(random->Pick({0.0f, -1.0f, -7.0f, 2.0f})));
            row.mask = p->masks[r].data();
        }
        if (row.n > 1 && random->Chance(0.7)) {
            const Split split = SplitBudget(row.n, random->Chance(0.1) ? row.n : random->Int(1, row.n), random->Pick({0.0, 0.25, 0.25, 0.9, 1.0}), 4);
            row.sink_tokens = split.sink_tokens;
            row.top_k = split.top_k;
            row.recent = split.recent;
            row.set_n = split.sink_tokens + split.top_k + split.recent;
            p->sets[r].assign(row.set_n, 0);
            if (call.mode == LIM_CPU_SPARSE) { /* any slots that the row sees */
                std::vector<int32_t> all = p->slots[r];
                for (int t = 0; row.slots == nullptr && t < row.n; t++) all.push_back(t);
                random->Shuffle(&all);
                all.resize(row.set_n);
                std::sort(all.begin(), all.end());
                p->sets[r] = all;
            }
            row.set = p->sets[r].data();
        }
    }
    call.rows = p->rows.data();
    call.n_rows = n_rows;
    char text[256];
    snprintf(text, sizeof text, "heads %d/%d dims %d/%d K %s V %s Q %s out %s slots %d page %d rows %d mode %d policy %d cap %g%s%s", call.heads,
             call.kv_heads, call.dim_k, call.dim_v, TypeName(call.key.type), TypeName(call.value.type), TypeName(call.query.type),
             TypeName(call.output.type), p->n_slots, call.table != nullptr ? 1 << call.page_shift : 0, n_rows, call.mode, call.policy, call.softcap, p->slopes.empty() ? "" : " slopes",
             p->sinks.empty() ? "" : " sinks");
    p->text = text;
}

const uint8_t *OutputOf(const lim_cpu_call &call, const lim_cpu_row &row, int h) {
    return (const uint8_t *)call.output.data + row.stream * call.output.stream_stride + h * call.output.head_stride +
           row.token * call.output.token_stride;
}

bool Sparse(const lim_cpu_row &row) { return row.set_n > 0 && row.set_n < row.n; }

/* The error of a head's output relative to its norm; a norm far below that of the values' counts as theirs,
 * since weights that cancel leave rounding only. */
void CheckOutput(Problem &p, const std::string &where) {
    const lim_cpu_call &call = p.call;
    const bool          known = !p.expected.empty(); /* from the run with another number of threads */
    for (int r = 0; r < call.n_rows; r++) {
        const lim_cpu_row &row = p.rows[r];
        const bool         list = call.mode == LIM_CPU_SPARSE && Sparse(row);
        const int32_t     *slots = list ? row.set : row.slots;
        const int          n = list ? row.set_n : row.n;
        for (int h = 0; h < call.heads; h++) {
            if (!known) p.expected.push_back(ReferenceOutput(call, row, h, slots, ReferenceLogits(call, row, h, slots, n)));
            const std::vector<double> &expected = p.expected[(size_t)r * call.heads + h];
            double                     error = 0, norm = 0;
            for (int i = 0; i < call.dim_v; i++) {
                const double got = Load(call.output.type, OutputOf(call, row, h), i);
                error += (got - expected[i]) * (got - expected[i]);
                norm += expected[i] * expected[i];
            }
            const double relative = std::sqrt(error) / (std::sqrt(norm) + 0.02 * std::sqrt((double)call.dim_v));
            /* A query for keys in blocks has 16 bits; what that may change a logit by, IntegersCostLittle says. */
            const double arithmetic = call.key.type >= LIM_CPU_Q8_0 ? 4e-4 : 1e-5;
            const double rounding = call.output.type == LIM_CPU_F32 ? 0 : call.output.type == LIM_CPU_F16 ? 6e-4
                                                                                                          : 4e-3;
            const double limit = std::max(arithmetic, rounding);
            ASSERT_LE(n == 0 ? error : relative, n == 0 ? 0 : limit) << where << " row " << r << " head " << h << " n " << n;
        }
    }
}

void CheckSets(const Problem &p, const std::string &where) {
    const lim_cpu_call &call = p.call;
    if (call.mode != LIM_CPU_SELECT) return;
    for (int r = 0; r < call.n_rows; r++) {
        const lim_cpu_row &row = p.rows[r];
        if (!Sparse(row)) continue;
        std::vector<std::vector<float>> logits;
        for (int h = 0; h < call.heads; h++) {
            const auto x = ReferenceLogits(call, row, h, row.slots, row.n);
            logits.emplace_back(x.begin(), x.end());
        }
        const Split split = {row.sink_tokens, row.top_k, row.recent};
        if (call.policy == LIM_CPU_UNION) {
            std::vector<int32_t> expected = UnionSet(logits, row.n, split);
            for (int32_t &t : expected) t = row.slots != nullptr ? row.slots[t] : t;
            std::sort(expected.begin(), expected.end());
            ASSERT_EQ(p.sets[r], expected) << where << " row " << r;
        } else {
            std::vector<int32_t> position(p.n_slots, -1), set;
            for (int t = 0; t < row.n; t++) position[row.slots != nullptr ? row.slots[t] : t] = t;
            for (size_t i = 0; i < p.sets[r].size(); i++) {
                ASSERT_TRUE(p.sets[r][i] >= 0 && p.sets[r][i] < p.n_slots);
                if (i > 0) { ASSERT_LT(p.sets[r][i - 1], p.sets[r][i]); }
                set.push_back(position[p.sets[r][i]]);
            }
            std::sort(set.begin(), set.end());
            ASSERT_EQ(CheckMassSet(Mass(logits, row.n, p.sinks), row.n, split, set), "") << where << " row " << r;
        }
    }
}

void CheckRandom(uint64_t salt, int cases, bool exact) {
    Random     random(salt);
    const auto targets = Targets();
    for (int i = 0; i < cases; i++) {
        Problem p;
        Make(&random, &p, exact);
        const std::string &target = targets[random.Int(0, (int)targets.size() - 1)];
        ASSERT_TRUE(lim_cpu_force_target(target.c_str()));
        const std::string where = "case " + std::to_string(i) + " " + target + " " + p.text;
        /* Exactly the size asked for, for at most four threads; used twice. */
        Guarded                           work((lim_cpu_work_size(&p.call, 4) + 63) / 64 * 64);
        lim_cpu_timing                    timing = {};
        std::vector<uint8_t>              first;
        std::vector<std::vector<int32_t>> first_sets;
        p.call.work = work.data();
        p.call.timing = &timing;
        for (int nth : {1, random.Int(2, 4)}) {
            memset(p.output.data(), 0x5a, p.output_bytes);
            if (p.call.mode == LIM_CPU_SELECT)
                for (auto &set : p.sets) std::fill(set.begin(), set.end(), -1);
            RunAttend(p.call, nth);
            CheckOutput(p, where + " nth " + std::to_string(nth));
            if (exact) CheckSets(p, where);
            if (testing::Test::HasFatalFailure()) return;
            /* The same bits whatever the number of threads. */
            std::vector<uint8_t> bytes(p.output.bytes(), p.output.bytes() + p.output_bytes);
            if (nth == 1) first = bytes, first_sets = p.sets;
            ASSERT_EQ(bytes, first) << where << " nth " << nth;
            ASSERT_EQ(p.sets, first_sets) << where << " nth " << nth;
        }
        ASSERT_GT(timing.attend_ns, 0u);
        ASSERT_GE(timing.attend_ns, timing.select_ns);
    }
    lim_cpu_force_target(nullptr);
}

TEST(Attention, MatchesFloat64) { CheckRandom(100, Cases(1500), false); }

TEST(Attention, ExactLogitsGiveExactSets) { CheckRandom(101, Cases(1500), true); }

/* Long rows: many KV chunks, more than one tile each, and a realistic budget. */
TEST(Attention, LongRows) {
    Random random(102);
    for (const std::string &target : Targets()) {
        ASSERT_TRUE(lim_cpu_force_target(target.c_str()));
        for (int mode : {LIM_CPU_FULL, LIM_CPU_SELECT, LIM_CPU_SPARSE}) {
            Problem       p;
            lim_cpu_call &call = p.call;
            call.heads = 4;
            call.kv_heads = 2;
            call.dim_k = call.dim_v = 32;
            call.key.type = random.Int(0, 4);
            call.value.type = random.Int(0, 4);
            call.scale = 0.4f;
            call.mode = mode;
            p.n_streams = p.n_tokens = 1;
            p.n_slots = 20000 + random.Int(0, 300);
            p.query = FillTensor(&random, &call.query, 1, 4, 1, 32, false, false);
            p.key = FillTensor(&random, &call.key, 1, 2, p.n_slots, 32, false, false);
            p.value = FillTensor(&random, &call.value, 1, 2, p.n_slots, 32, false, false);
            p.output_bytes = Layout(&random, &call.output, 1, 4, 1, 128, 4);
            p.output = Guarded(p.output_bytes);
            call.output.data = p.output.data();
            const Split split = SplitBudget(p.n_slots, 1500, 0.25, 4);
            p.rows.resize(1);
            p.rows[0] = {};
            p.rows[0].n = p.n_slots;
            p.rows[0].sink_tokens = split.sink_tokens;
            p.rows[0].top_k = split.top_k;
            p.rows[0].recent = split.recent;
            p.rows[0].set_n = 1500;
            p.sets.resize(1);
            p.sets[0].resize(1500);
            for (int t = 0; t < 1500; t++) p.sets[0][t] = t * 13;
            p.rows[0].set = p.sets[0].data();
            call.rows = p.rows.data();
            call.n_rows = 1;
            Guarded work((lim_cpu_work_size(&call, 3) + 63) / 64 * 64);
            call.work = work.data();
            RunAttend(call, 3);
            CheckOutput(p, target + " " + TypeName(call.key.type) + " " + TypeName(call.value.type));
            if (mode == LIM_CPU_SELECT) {
                /* Rounding may swap neighbours at the cut: nearly all the same as from float64 logits. */
                std::vector<std::vector<float>> logits;
                for (int h = 0; h < 4; h++) {
                    const auto x = ReferenceLogits(call, p.rows[0], h, nullptr, p.n_slots);
                    logits.emplace_back(x.begin(), x.end());
                }
                const auto           expected = UnionSet(logits, p.n_slots, split);
                std::vector<int32_t> both;
                std::set_intersection(expected.begin(), expected.end(), p.sets[0].begin(), p.sets[0].end(), std::back_inserter(both));
                ASSERT_GE(both.size(), 1497u);
            }
        }
    }
    lim_cpu_force_target(nullptr);
}

/* One block of work memory for calls of all shapes, each leaving it ready for the next. */
TEST(Attention, WorkMemoryIsReusable) {
    Random  random(103);
    Guarded work(64 << 20);
    for (int i = 0; i < Cases(300); i++) {
        Problem p;
        Make(&random, &p, true);
        ASSERT_LE(lim_cpu_work_size(&p.call, 4), 64u << 20);
        p.call.work = work.data();
        RunAttend(p.call, random.Int(1, 4));
        CheckOutput(p, p.text);
        CheckSets(p, p.text);
        if (HasFatalFailure()) return;
    }
}

/* NaN and infinities anywhere: no crash (the memory is guarded), token sets stay sets of visible slots. */
TEST(Attention, SurvivesAnything) {
    Random     random(104);
    const auto targets = Targets();
    for (int i = 0; i < Cases(600); i++) {
        Problem p;
        Make(&random, &p, false, true);
        ASSERT_TRUE(lim_cpu_force_target(targets[i % targets.size()].c_str()));
        Guarded work((lim_cpu_work_size(&p.call, 3) + 63) / 64 * 64);
        p.call.work = work.data();
        RunAttend(p.call, 3);
        for (int r = 0; r < p.call.n_rows; r++) {
            if (p.call.mode != LIM_CPU_SELECT || !Sparse(p.rows[r])) continue;
            std::vector<bool> seen(p.n_slots);
            for (int t = 0; t < p.rows[r].n; t++) seen[p.rows[r].slots != nullptr ? p.rows[r].slots[t] : t] = true;
            for (size_t t = 0; t < p.sets[r].size(); t++) {
                ASSERT_TRUE(p.sets[r][t] >= 0 && p.sets[r][t] < p.n_slots && seen[p.sets[r][t]]);
                if (t > 0) { ASSERT_LT(p.sets[r][t - 1], p.sets[r][t]); }
            }
        }
    }
    lim_cpu_force_target(nullptr);
}

/* Stored numbers have no rounding: a row that sees one token gets its value, and a query that picks one dimension ranks by the
 * keys' numbers there. Any finite scale, any code. */
TEST(Attention, QuantizedNumbersAreExact) {
    Random random(106);
    for (const std::string &target : Targets()) {
        ASSERT_TRUE(lim_cpu_force_target(target.c_str()));
        for (int i = 0; i < Cases(200); i++) {
            const int    type = random.Pick({LIM_CPU_Q8_0, LIM_CPU_Q4_0}), dim = 32 * random.Int(1, 8), n = random.Int(20, 300);
            const size_t row = TypeBytes(type, dim), block = TypeBytes(type, 32);
            Guarded      store(n * row), output(4 * dim);
            for (size_t at = 0; at < n * row; at++) store.bytes()[at] = (uint8_t)random.Int(0, 255);
            for (size_t at = 0; at < n * row; at += block) {
                if ((store.bytes()[at + 1] & 0x7c) == 0x7c) store.bytes()[at + 1] &= 0xbf; /* neither infinite nor NaN */
            }
            std::vector<float> query(dim, 0.0f);
            const int          picked = random.Int(0, dim - 1);
            query[picked] = 1;
            const Split          split = SplitBudget(n, 16, 0.25, 1);
            std::vector<int32_t> set(16);
            lim_cpu_row          r = {};
            lim_cpu_call         call = {};
            call.query = {query.data(), 4 * dim, 4 * dim, 4 * dim, LIM_CPU_F32};
            call.output = {output.data(), 4 * dim, 4 * dim, 4 * dim, LIM_CPU_F32};
            call.key = call.value = {store.data(), (int64_t)row, (int64_t)row, (int64_t)row, type};
            call.heads = call.kv_heads = call.n_rows = 1;
            call.dim_k = call.dim_v = dim;
            call.scale = 1;
            call.rows = &r;
            r = {0, 0, n, nullptr, nullptr, split.sink_tokens, split.top_k, split.recent, 16, set.data()};
            Guarded work((lim_cpu_work_size(&call, 1) + 63) / 64 * 64);
            call.work = work.data();
            call.mode = LIM_CPU_SELECT;
            call.policy = LIM_CPU_UNION;
            RunAttend(call, 1);
            std::vector<std::vector<float>> logits(1);
            for (int t = 0; t < n; t++) logits[0].push_back(Load(type, store.bytes() + t * row, picked));
            ASSERT_EQ(set, UnionSet(logits, n, split)) << target << " " << TypeName(type);

            call.mode = LIM_CPU_FULL;
            r.n = 1;
            r.set_n = 0;
            call.value.data = store.bytes() + (n - 1) * row;
            RunAttend(call, 1);
            for (int d = 0; d < dim; d++) {
                ASSERT_EQ(((const float *)output.data())[d], Load(type, call.value.data, d)) << target << " " << TypeName(type) << " " << d;
            }
        }
    }
    lim_cpu_force_target(nullptr);
}

/* A row's logits, [heads][n], as the target's kernels leave them for a selection. */
std::vector<std::vector<double>> LogitsOf(const lim_cpu_call &call, const std::string &target) {
    EXPECT_TRUE(lim_cpu_force_target(target.c_str()));
    const lessismore::AttentionKernels &kernels = *lessismore::AttentionFor(lessismore::CurrentTarget());
    const lim_cpu_row                  &row = call.rows[0];
    const int64_t                       stride = row.n + lessismore::kTile;
    std::vector<float>                  logits((size_t)(call.heads * stride)), query((size_t)call.heads * call.dim_k + 16),
        scratch((size_t)call.heads * lessismore::kScratchPerHead + lessismore::kTile + 16), part(lessismore::Part::Floats(call.heads, call.dim_v) + 16);
    kernels.load_query(&call, &row, query.data());
    kernels.attend({&call, &row, nullptr, row.n, 0, row.n, -1, logits.data(), stride}, query.data(), scratch.data(), {part.data(), call.heads});
    std::vector<std::vector<double>> all;
    for (int h = 0; h < call.heads; h++) all.emplace_back(logits.begin() + h * stride, logits.begin() + h * stride + row.n);
    return all;
}

/* Keys in blocks are multiplied by a query of 16 bits. Each logit is within what rounding the query may cost at most, whatever its
 * size; with normal queries and keys all of them together are off by a hundredth of what storing the keys in blocks costs, two at the most. */
TEST(Attention, IntegersCostLittle) {
    Random random(107);
    for (const std::string &target : Targets()) {
        for (int i = 0; i < Cases(60); i++) {
            const int    type = random.Pick({LIM_CPU_Q8_0, LIM_CPU_Q4_0}), dim = 32 * random.Int(1, 8), n = random.Int(1, 150);
            const int    kv_heads = random.Int(1, 3), heads = kv_heads * random.Int(1, 7);
            const size_t row_bytes = TypeBytes(type, dim);
            const float  size = random.Pick({1.0f, 1.0f, 0.0f, 1e-20f, 1e-32f, 1e-39f, 1e30f}), outlier = random.Pick({1.0f, 1e3f});
            const bool   normal = size == 1 && outlier == 1;

            std::vector<float> query((size_t)heads * dim), keys((size_t)n * kv_heads * dim), output(query.size());
            for (float &x : query) x = random.Normal() * size;
            for (int h = 0; h < heads; h++) query[(size_t)h * dim + random.Int(0, dim - 1)] *= outlier;
            for (float &x : keys) x = random.Normal();
            Guarded store((size_t)n * kv_heads * row_bytes);
            for (int t = 0; t < n * kv_heads; t++) {
                std::vector<float> key(keys.begin() + t * dim, keys.begin() + (t + 1) * dim); /* becomes what was stored */
                Store(type, store.bytes() + t * row_bytes, key.data(), dim);
            }

            lim_cpu_row  row = {0, 0, n, nullptr, nullptr, 0, 0, 0, 0, nullptr};
            lim_cpu_call call = {};
            call.query = {query.data(), 0, 4 * dim, 0, LIM_CPU_F32};
            call.output = {output.data(), 0, 4 * dim, 0, LIM_CPU_F32};
            call.key = call.value = {store.data(), (int64_t)row_bytes * kv_heads, (int64_t)row_bytes, 0, type};
            call.heads = heads;
            call.kv_heads = kv_heads;
            call.dim_k = call.dim_v = dim;
            call.scale = 1;
            call.rows = &row;
            call.n_rows = 1;
            const auto logits = LogitsOf(call, target);
            double     lost = 0, lost_in_store = 0;
            for (int h = 0; h < heads; h++) {
                double most = 0;
                for (int d = 0; d < dim; d++) most = std::max(most, (double)std::fabs(query[(size_t)h * dim + d]));
                const auto expected = ReferenceLogits(call, row, h, nullptr, n);
                for (int t = 0; t < n; t++) {
                    double magnitude = 0, weighted = 0, unstored = 0;
                    for (int d = 0; d < dim; d++) {
                        const double q = query[(size_t)h * dim + d], k = Load(type, KvRow(call, call.key, row, h / (heads / kv_heads), t), d);
                        magnitude += std::fabs(k);
                        weighted += std::fabs(q * k);
                        unstored += q * keys[((size_t)t * kv_heads + h / (heads / kv_heads)) * dim + d];
                    }
                    const double error = std::fabs(logits[h][t] - expected[t]);
                    ASSERT_LE(error, most / 32767 * magnitude + 2e-6 * weighted + 32767 * 0x1p-150 * magnitude) /* the last: steps may be subnormal */
                        << target << " " << TypeName(type) << " size " << size << " outlier " << outlier << " head " << h << " token " << t;
                    lost += error * error;
                    lost_in_store += (unstored - expected[t]) * (unstored - expected[t]);
                }
            }
            if (normal && n * heads > 100) { ASSERT_LT(50 * std::sqrt(lost), std::sqrt(lost_in_store)) << target << " " << TypeName(type); }
        }
    }
    lim_cpu_force_target(nullptr);
}

/* A query that is not finite, or a block's scale that is NaN, must never become numbers: whatever it meets is NaN, nothing else. */
TEST(Attention, NanInBlocksShows) {
    Random random(108);
    for (const std::string &target : Targets()) {
        for (int type : {LIM_CPU_Q8_0, LIM_CPU_Q4_0}) {
            for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
                const int          dim = 32 * random.Int(1, 8), n = random.Int(1, 70), heads = 4;
                const size_t       row_bytes = TypeBytes(type, dim);
                std::vector<float> query((size_t)heads * dim), output(query.size()), key(dim);
                Guarded            store((size_t)n * 2 * row_bytes);
                for (float &x : query) x = random.Normal();
                for (int t = 0; t < 2 * n; t++) {
                    for (float &x : key) x = random.Normal();
                    Store(type, store.bytes() + t * row_bytes, key.data(), dim);
                }
                lim_cpu_row  row = {0, 0, n, nullptr, nullptr, 0, 0, 0, 0, nullptr};
                lim_cpu_call call = {};
                call.query = {query.data(), 0, 4 * dim, 0, LIM_CPU_F32};
                call.output = {output.data(), 0, 4 * dim, 0, LIM_CPU_F32};
                call.key = call.value = {store.data(), (int64_t)row_bytes * 2, (int64_t)row_bytes, 0, type};
                call.heads = heads;
                call.kv_heads = 2;
                call.dim_k = call.dim_v = dim;
                call.scale = 1;
                call.rows = &row;
                call.n_rows = 1;
                const int ruined = random.Int(0, heads - 1), token = random.Int(0, n - 1), block = random.Int(0, dim / 32 - 1);
                float    &picked = query[(size_t)ruined * dim + random.Int(0, dim - 1)], before = picked;
                picked = bad;
                auto logits = LogitsOf(call, target);
                for (int h = 0; h < heads; h++) {
                    for (int t = 0; t < n; t++) {
                        /* In f32 an infinite query gives infinite logits, too. */
                        ASSERT_EQ(std::isfinite(logits[h][t]), h != ruined) << target << " " << TypeName(type) << " " << bad << " head " << h;
                        if (std::isnan(bad) && h == ruined) { ASSERT_TRUE(std::isnan(logits[h][t])); }
                    }
                }
                picked = before;
                const uint16_t scale = 0x7e00;
                memcpy(store.bytes() + (token * 2 + 1) * row_bytes + TypeBytes(type, 32) * block, &scale, 2);
                logits = LogitsOf(call, target);
                for (int h = 0; h < heads; h++) {
                    for (int t = 0; t < n; t++) ASSERT_EQ(std::isnan(logits[h][t]), h >= 2 && t == token) << target << " " << TypeName(type);
                }
            }
        }
    }
    lim_cpu_force_target(nullptr);
}

/* NaN in one head's values must show there, and nowhere else. */
TEST(Attention, NanStaysInItsHead) {
    Random random(105);
    for (const std::string &target : Targets()) {
        ASSERT_TRUE(lim_cpu_force_target(target.c_str()));
        for (int type : {LIM_CPU_F32, LIM_CPU_F16, LIM_CPU_BF16}) {
            Problem p;
            do {
                p = Problem();
                Make(&random, &p, true);
            } while (p.call.kv_heads < 2 || p.n_slots < 5 || p.call.table != nullptr);
            lim_cpu_call &call = p.call;
            call.mode = LIM_CPU_FULL;
            call.output.type = LIM_CPU_F32;
            p.output_bytes = Layout(&random, &call.output, p.n_streams, call.heads, p.n_tokens, 4 * call.dim_v, 4);
            p.output = Guarded(p.output_bytes);
            call.output.data = p.output.data();
            call.key.type = type;
            p.key = FillTensor(&random, &call.key, p.n_streams, call.kv_heads, p.n_slots, call.dim_k, true, false);
            std::vector<float> row(call.dim_k, NAN);
            call.n_rows = 1;
            p.rows[0].slots = nullptr;
            p.rows[0].n = p.n_slots;
            Store(type, p.key.bytes() + p.rows[0].stream * call.key.stream_stride + call.key.head_stride + 3 * call.key.token_stride, row.data(), call.dim_k);
            Guarded work((lim_cpu_work_size(&call, 1) + 63) / 64 * 64);
            call.work = work.data();
            RunAttend(call, 1);
            for (int h = 0; h < call.heads; h++) {
                const bool ruined = h / (call.heads / call.kv_heads) == 1;
                ASSERT_EQ(std::isnan(Load(LIM_CPU_F32, OutputOf(call, p.rows[0], h), 0)), ruined) << target << " " << TypeName(type) << " head " << h;
            }
        }
    }
    lim_cpu_force_target(nullptr);
}

}  // namespace
