/* See reference.h. Everything here is slow and plain on purpose. */
#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <sstream>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

int Cases(int all) {
    const char *share = getenv("LIM_TEST_SHARE");
    return share == nullptr ? all : std::max(1, all * atoi(share) / 100);
}

uint64_t Seed() {
    static const uint64_t seed = [] {
        const char *text = getenv("LIM_SEED");
        return text != nullptr ? strtoull(text, nullptr, 10) : (uint64_t)std::random_device()();
    }();
    return seed;
}

float Random::Normal() {
    static const std::vector<float> table = [] {
        std::mt19937_64                 engine(Seed());
        std::normal_distribution<float> normal;
        std::vector<float>              t(1 << 16);
        for (float &x : t) x = normal(engine);
        return t;
    }();
    return table[engine_() >> 48];
}

Guarded::Guarded(size_t size) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t body = (size + page - 1) / page * page;
    length_ = body + page;
    map_ = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map_ == MAP_FAILED) abort();
    if (mprotect((char *)map_ + body, page, PROT_NONE) != 0) abort();
    data_ = (char *)map_ + body - size;
}

Guarded::~Guarded() {
    if (map_ != nullptr) munmap(map_, length_);
}

namespace {

float DecodeHalf(uint16_t h) {
    const int   exponent = h >> 10 & 31, fraction = h & 1023;
    const float sign = h & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp((float)fraction, -24);
    return sign * std::ldexp((float)(1024 + fraction), exponent - 25);
}

}  // namespace

float FloatOfHalf(uint16_t h) {
    static const std::vector<float> table = [] {
        std::vector<float> t;
        for (int i = 0; i < 65536; i++) t.push_back(DecodeHalf((uint16_t)i));
        return t;
    }();
    return table[h];
}

/* In floating-point arithmetic, so that the tests share nothing with the kernels' bit tricks. */
uint16_t HalfOf(float f) {
    if (std::isnan(f)) return 0x7e00;
    const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
    const double   a = std::fabs((double)f);
    if (a >= 65520) return sign | 0x7c00;
    int exponent;
    std::frexp(a, &exponent);
    const int unit = std::max(exponent - 11, -24); /* the last bit kept is worth 2^unit */
    const int kept = (int)std::nearbyint(std::ldexp(a, -unit));
    if (kept < 1024) return (uint16_t)(sign | kept);
    return (uint16_t)(sign | (((unit + 25) << 10) + kept - 1024));
}

namespace {

uint16_t Bf16Of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (std::isnan(f)) return 0x7fc0;
    const uint32_t kept = bits >> 16, dropped = bits & 0xffff;
    return (uint16_t)(kept + (dropped > 0x8000 || (dropped == 0x8000 && (kept & 1))));
}

float FloatOfBrain(uint16_t b) {
    const uint32_t bits = (uint32_t)b << 16;
    float          f;
    memcpy(&f, &bits, 4);
    return f;
}

}  // namespace

size_t TypeBytes(int type, size_t n) {
    switch (type) {
    case LIM_CPU_F32: return 4 * n;
    case LIM_CPU_Q8_0: return n / 32 * 34;
    case LIM_CPU_Q4_0: return n / 32 * 18;
    default: return 2 * n;
    }
}

const char *TypeName(int type) {
    static const char *names[] = {"f32", "f16", "bf16", "q8_0", "q4_0"};
    return names[type];
}

void Store(int type, void *to, float *values, size_t n) {
    uint8_t *p = (uint8_t *)to;
    for (size_t i = 0; i < n; i++) {
        if (type == LIM_CPU_F32) memcpy(p + 4 * i, values + i, 4);
        if (type == LIM_CPU_F16 || type == LIM_CPU_BF16) {
            const uint16_t bits = type == LIM_CPU_F16 ? HalfOf(values[i]) : Bf16Of(values[i]);
            memcpy(p + 2 * i, &bits, 2);
        }
    }
    if (type == LIM_CPU_Q8_0 || type == LIM_CPU_Q4_0) {
        for (size_t b = 0; b < n / 32; b++) {
            const float *v = values + 32 * b;
            float        most = 0;
            for (int i = 0; i < 32; i++) most = std::max(most, std::fabs(v[i]));
            const int      range = type == LIM_CPU_Q8_0 ? 127 : 7;
            const uint16_t bits = HalfOf(most / range);
            const float    scale = FloatOfHalf(bits);
            uint8_t       *block = p + b * (type == LIM_CPU_Q8_0 ? 34 : 18);
            memcpy(block, &bits, 2);
            for (int i = 0; i < 32; i++) {
                int q = scale > 0 ? (int)std::lround(v[i] / scale) : 0;
                q = std::clamp(q, type == LIM_CPU_Q8_0 ? -128 : -8, range);
                if (type == LIM_CPU_Q8_0) {
                    block[2 + i] = (uint8_t)(int8_t)q;
                } else if (i < 16) {
                    block[2 + i] = (uint8_t)((block[2 + i] & 0xf0) | (q + 8));
                } else {
                    block[2 + i - 16] = (uint8_t)((block[2 + i - 16] & 0x0f) | (q + 8) << 4);
                }
            }
        }
    }
    for (size_t i = 0; i < n; i++) values[i] = Load(type, to, i);
}

float Load(int type, const void *from, size_t i) {
    const uint8_t *p = (const uint8_t *)from;
    uint16_t       bits;
    float          f;
    switch (type) {
    case LIM_CPU_F32: memcpy(&f, p + 4 * i, 4); return f;
    case LIM_CPU_F16: memcpy(&bits, p + 2 * i, 2); return FloatOfHalf(bits);
    case LIM_CPU_BF16: memcpy(&bits, p + 2 * i, 2); return FloatOfBrain(bits);
    case LIM_CPU_Q8_0:
        p += i / 32 * 34;
        memcpy(&bits, p, 2);
        return FloatOfHalf(bits) * (float)(int8_t)p[2 + i % 32];
    default:
        p += i / 32 * 18;
        memcpy(&bits, p, 2);
        return FloatOfHalf(bits) * (float)((i % 32 < 16 ? p[2 + i % 32] & 15 : p[2 + i % 32 - 16] >> 4) - 8);
    }
}

std::vector<std::string> Targets() {
    std::vector<std::string> names;
    for (int i = 0; lim_cpu_target_at(i) != nullptr; i++) names.push_back(lim_cpu_target_at(i));
    return names;
}

namespace {

template <class Body>
void OnThreads(int nth, Body body) {
    /* One pool for all tests: they make tens of thousands of calls. */
    static lim_cpu_pool *pool = lim_cpu_pool_create(4);
    lim_cpu_pool_run(pool, nth, [](void *arg, int ith, int n) { (*(Body *)arg)(ith, n); }, &body);
}

}  // namespace

void RunAttend(const lim_cpu_call &call, int nth) {
    OnThreads(nth, [&](int ith, int n) { lim_cpu_attend(&call, ith, n); });
}

void RunSelect(const float *logits, int64_t stride, int heads, int n, int sink_tokens, int top_k, int recent, int policy,
               int32_t *positions, void *work, int nth) {
    OnThreads(nth, [&](int ith, int threads) {
        lim_cpu_select(logits, stride, heads, n, sink_tokens, top_k, recent, policy, positions, work, ith, threads);
    });
}

Split SplitBudget(int n, int budget, double ratio, int sink_tokens) {
    const int all = std::min(n, budget);
    Split     split;
    split.recent = (int)std::ceil(all * ratio - 1e-9);
    split.top_k = all - split.recent;
    split.sink_tokens = sink_tokens;
    if (split.recent <= sink_tokens) split.sink_tokens = 0;
    else split.recent -= sink_tokens;
    return split;
}

std::vector<int32_t> UnionSet(const std::vector<std::vector<float>> &logits, int n, const Split &split) {
    std::set<int32_t>                 chosen;
    const int                         heads = (int)logits.size();
    std::vector<std::vector<int32_t>> ranked(heads);
    for (int h = 0; h < heads; h++) {
        const float *x = logits[h].data();
        for (int t = split.sink_tokens; t < n - split.recent; t++) ranked[h].push_back(t);
        std::sort(ranked[h].begin(), ranked[h].end(), [x](int32_t a, int32_t b) {
            const bool nan_a = std::isnan(x[a]), nan_b = std::isnan(x[b]);
            if (nan_a != nan_b) return nan_b;
            if (!nan_a && x[a] != x[b]) return x[a] > x[b];
            return a < b;
        });
    }
    for (size_t r = 0; r < ranked[0].size(); r++) {
        for (int h = 0; h < heads; h++) {
            if ((int)chosen.size() < split.top_k) chosen.insert(ranked[h][r]);
        }
    }
    for (int t = 0; t < split.sink_tokens; t++) chosen.insert(t);
    for (int t = n - split.recent; t < n; t++) chosen.insert(t);
    return {chosen.begin(), chosen.end()};
}

std::vector<double> Mass(const std::vector<std::vector<float>> &logits, int n, const std::vector<float> &extra) {
    std::vector<double> mass(n);
    for (size_t h = 0; h < logits.size(); h++) {
        double top = extra.empty() ? -INFINITY : extra[h], sum = 0;
        for (int t = 0; t < n; t++) top = std::max(top, (double)logits[h][t]);
        for (int t = 0; t < n; t++) sum += std::exp(logits[h][t] - top);
        if (!extra.empty()) sum += std::exp(extra[h] - top);
        for (int t = 0; t < n; t++) mass[t] += std::exp(logits[h][t] - top) / sum;
    }
    return mass;
}

std::string CheckMassSet(const std::vector<double> &mass, int n, const Split &split, const std::vector<int32_t> &set) {
    std::ostringstream why;
    if ((int)set.size() != split.sink_tokens + split.top_k + split.recent) why << "size " << set.size();
    std::vector<bool> in(n);
    for (size_t i = 0; i < set.size(); i++) {
        if (set[i] < 0 || set[i] >= n || (i > 0 && set[i] <= set[i - 1])) {
            why << "not ascending at " << i;
            return why.str();
        }
        in[set[i]] = true;
    }
    for (int t = 0; t < split.sink_tokens; t++)
        if (!in[t]) why << "sink " << t << " missing ";
    for (int t = n - split.recent; t < n; t++)
        if (!in[t]) why << "recent " << t << " missing ";
    double least_in = INFINITY, most_out = 0;
    for (int t = split.sink_tokens; t < n - split.recent; t++) {
        if (in[t]) least_in = std::min(least_in, mass[t]);
        else most_out = std::max(most_out, mass[t]);
    }
    /* Below what f32 holds everything is equal. */
    if (most_out > least_in * (1 + 1e-5) + 1e-36) why << "left out " << most_out << " but took " << least_in;
    return why.str();
}

const uint8_t *KvRow(const lim_cpu_call &call, const lim_cpu_tensor &tensor, const lim_cpu_row &row, int kv_head, int32_t slot) {
    int64_t stream = row.stream, place = slot;
    if (call.table != nullptr) {
        const int32_t page = 1 << call.page_shift;
        stream = call.table[row.stream * call.table_stride + slot / page];
        place = slot % page;
    }
    return (const uint8_t *)tensor.data + stream * tensor.stream_stride + kv_head * tensor.head_stride + place * tensor.token_stride;
}

std::vector<double> ReferenceLogits(const lim_cpu_call &call, const lim_cpu_row &row, int h, const int32_t *slots, int n) {
    const int           g = h / (call.heads / call.kv_heads);
    const uint8_t      *query = (const uint8_t *)call.query.data + row.stream * call.query.stream_stride +
                                h * call.query.head_stride + row.token * call.query.token_stride;
    std::vector<double> q(call.dim_k), logits(n);
    for (int i = 0; i < call.dim_k; i++) q[i] = Load(call.query.type, query, i);
    for (int t = 0; t < n; t++) {
        const int32_t  slot = slots != nullptr ? slots[t] : t;
        const uint8_t *key = KvRow(call, call.key, row, g, slot);
        double         x = 0;
        for (int i = 0; i < call.dim_k; i++) x += q[i] * Load(call.key.type, key, i);
        x *= call.scale;
        if (call.softcap > 0) x = call.softcap * std::tanh(x / call.softcap);
        if (row.mask != nullptr) x += (call.slopes != nullptr ? call.slopes[h] : 1.0f) * (double)FloatOfHalf(row.mask[slot]);
        logits[t] = x;
    }
    return logits;
}

std::vector<double> ReferenceOutput(const lim_cpu_call &call, const lim_cpu_row &row, int h, const int32_t *slots,
                                    const std::vector<double> &logits) {
    const int           g = h / (call.heads / call.kv_heads);
    std::vector<double> out(call.dim_v);
    if (logits.empty()) return out;
    double top = call.sinks != nullptr ? call.sinks[h] : -INFINITY, sum = 0;
    for (double x : logits) top = std::max(top, x);
    if (call.sinks != nullptr) sum = std::exp(call.sinks[h] - top);
    for (size_t t = 0; t < logits.size(); t++) {
        const double   weight = std::exp(logits[t] - top);
        const int32_t  slot = slots != nullptr ? slots[t] : (int32_t)t;
        const uint8_t *value = KvRow(call, call.value, row, g, slot);
        sum += weight;
        for (int i = 0; i < call.dim_v; i++) out[i] += weight * Load(call.value.type, value, i);
    }
    for (double &v : out) v /= sum;
    return out;
}
