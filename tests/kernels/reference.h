/* What the kernels' tests share: random numbers with a printed seed, memory that faults at its end, element
 * types, and slow, literal versions of attention and selection to compare with. */
#ifndef LESSISMORE_TESTS_REFERENCE_H
#define LESSISMORE_TESTS_REFERENCE_H

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <utility>
#include <random>
#include <string>
#include <vector>

#include "dispatch.h"
#include "kernels.h"

/* A new seed each run; LIM_SEED repeats one. */
uint64_t Seed();

/* How many random cases to run: all of them, or LIM_TEST_SHARE per cent where the processor is emulated. */
int Cases(int all);

class Random {
  public:
    explicit Random(uint64_t salt) : engine_(Seed() * 1000003 + salt) {}
    int    Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
    bool   Chance(double p) { return std::uniform_real_distribution<double>(0, 1)(engine_) < p; }
    float  Normal(); /* from a table: it is called millions of times */
    double Uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(engine_); }
    template <class T>
    T Pick(std::initializer_list<T> of) { return of.begin()[Int(0, (int)of.size() - 1)]; }
    template <class T>
    void Shuffle(std::vector<T> *v) { std::shuffle(v->begin(), v->end(), engine_); }

  private:
    std::mt19937_64 engine_;
};

/* Zeroed memory of `size` bytes that ends where unreadable memory begins. */
class Guarded {
  public:
    explicit Guarded(size_t size);
    ~Guarded();
    Guarded(const Guarded &) = delete;
    Guarded(Guarded &&other) noexcept { *this = std::move(other); }
    Guarded &operator=(Guarded &&other) noexcept {
        std::swap(map_, other.map_);
        std::swap(length_, other.length_);
        std::swap(data_, other.data_);
        return *this;
    }
    void    *data() const { return data_; }
    uint8_t *bytes() const { return (uint8_t *)data_; }

  private:
    void  *map_ = nullptr;
    size_t length_ = 0;
    void  *data_ = nullptr;
};

uint16_t HalfOf(float f);
float    FloatOfHalf(uint16_t h);

/* Bytes of n elements; writes n elements and replaces them by what was stored; reads element i. */
size_t      TypeBytes(int type, size_t n);
void        Store(int type, void *to, float *values, size_t n);
float       Load(int type, const void *from, size_t i);
const char *TypeName(int type);

/* Names of the targets that this machine can run. */
std::vector<std::string> Targets();

/* Calls the kernel on nth real threads at once. */
void RunAttend(const lim_cpu_call &call, int nth);
void RunSelect(const float *logits, int64_t stride, int heads, int n, int sink_tokens, int top_k, int recent, int policy,
               int32_t *positions, void *work, int nth);

/* How a budget is split; sink_tokens + top_k + recent is min(n, budget). */
struct Split {
    int sink_tokens, top_k, recent;
};
Split SplitBudget(int n, int budget, double ratio, int sink_tokens);

/* The token set by the text: sort, merge, cut. Ascending positions. */
std::vector<int32_t> UnionSet(const std::vector<std::vector<float>> &logits, int n, const Split &split);

/* Each candidate's summed probability in double; extra[h] is an attention sink's logit, if not empty. */
std::vector<double> Mass(const std::vector<std::vector<float>> &logits, int n, const std::vector<float> &extra);
/* Is `set` the split's mass set, up to tokens within 1e-5 of the cut? Otherwise says why not. */
std::string CheckMassSet(const std::vector<double> &mass, int n, const Split &split, const std::vector<int32_t> &set);

/* Where a token's key or value of a KV head lies, in pages or not. */
const uint8_t *KvRow(const lim_cpu_call &call, const lim_cpu_tensor &tensor, const lim_cpu_row &row, int kv_head, int32_t slot);
/* Logits of head h for the row, in float64, as the softmax sees them. */
std::vector<double> ReferenceLogits(const lim_cpu_call &call, const lim_cpu_row &row, int h, const int32_t *slots, int n);
/* The head's output over those slots. */
std::vector<double> ReferenceOutput(const lim_cpu_call &call, const lim_cpu_row &row, int h, const int32_t *slots,
                                    const std::vector<double> &logits);

#endif
