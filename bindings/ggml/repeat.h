// A graph that is computed more than once: with one choice of selection layers and then with everything, so that what the
// choice loses is read off the logits. The host sees the last result only.
#pragma once

#include <vector>

#include "extract.h"

namespace lim::ggml {

class Repeat {
  public:
    // Whether a graph of the CPU's gives the same however often it is computed, and ends with the logits of `outputs` rows. Keeps
    // what it would overwrite of its inputs. Returns nullptr, or why not. Before any node is changed.
    const char *prepare(const Host &host, const std::vector<Tensor *> &nodes, int32_t outputs, int32_t output);

    // Between the two: keeps the logits of the one row that is compared, and brings the inputs back.
    void rewind();

    // After the last one. Kullback-Leibler divergence of the logits that were kept from those that are there now, in nats; NaN where
    // some are not finite.
    double nats() const;

    // Whether both are the same to the bit.
    bool same() const;

  private:
    struct Range {
        char  *data;
        size_t size;
    };
    struct Read {
        const Tensor *leaf;
        int           place;
    };
    // What may be done with a node of an operation.
    enum class Kind : uint8_t { kUnknown,
                                kRefused,
                                kPure,   // writes its own memory only, and the same each time
                                kView,   // computes nothing
                                kRows }; // SET_ROWS
    static constexpr int kMostOps = 256;

    Kind        kind_of(const Host &host, int op);
    const char *look(const Host &host, Tensor *t, int place);
    const char *keep_inputs(const Host &host);
    const char *find_logits(const Host &host, const std::vector<Tensor *> &nodes, int32_t outputs, int32_t output);

    Kind               kinds_[kMostOps] = {};
    std::vector<Range> written_, kept_;  // by nodes, ascending; of leaves
    std::vector<Read>  reads_, stores_;  // leaves that nodes read; those that they write to, where last
    std::vector<char>  bytes_;           // of the kept leaves, one behind the other
    std::vector<float> logits_;
    const float       *row_  = nullptr; // that is compared
    size_t             size_ = 0;       // of it
};

} // namespace lim::ggml
