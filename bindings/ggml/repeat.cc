#include "repeat.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace lim::ggml {
namespace {

// Operations that write their own memory and nothing else, and from the same inputs always the same. What keeps a state from
// token to token (SSM_SCAN, RWKV_WKV6, …), calls the host back (CUSTOM) or is not known is not among them.
constexpr const char *kPureOps[] = {"DUP", "ADD", "ADD_ID", "ADD1", "SUB", "MUL", "DIV", "SQR", "SQRT", "LOG", "SIN", "COS", "SUM", "SUM_ROWS", "MEAN",
                                    "REPEAT", "CONCAT", "NORM", "RMS_NORM", "GROUP_NORM", "L2_NORM", "MUL_MAT", "MUL_MAT_ID", "OUT_PROD", "SCALE",
                                    "CPY", "CONT", "GET_ROWS", "SOFT_MAX", "ROPE", "CLAMP", "PAD", "ARGSORT", "TOP_K", "FLASH_ATTN_EXT", "UNARY", "GLU"};
constexpr const char *kViews[]   = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"};
// Between the product with the output weights and the graph's end.
constexpr const char *kFinalOps[] = {"SCALE", "UNARY", "ADD", "CONT", "RESHAPE", "VIEW"};
constexpr int         kFinalSteps = 8;

// Inputs that are kept: masks of many slots. More is some other graph's.
constexpr size_t kMostKept = size_t{1} << 28;

template <size_t N> bool is_one_of(const char *name, const char *const (&names)[N]) {
    return std::any_of(names, names + N, [&](const char *n) { return strcmp(n, name) == 0; });
}

bool overlaps(const char *a, size_t n, const char *b, size_t m) { return a < b + m && b < a + n; }

} // namespace

Repeat::Kind Repeat::kind_of(const Host &host, int op) {
    if (op < 0 || op >= kMostOps) return Kind::kRefused;
    Kind &kind = kinds_[op];
    if (kind == Kind::kUnknown) {
        const char *name = host.op_name(op);
        kind             = name == nullptr           ? Kind::kRefused
                         : op == host.set_rows       ? Kind::kRows
                         : is_one_of(name, kViews)   ? Kind::kView
                         : is_one_of(name, kPureOps) ? Kind::kPure
                                                     : Kind::kRefused;
    }
    return kind;
}

// Takes note of what a node reads and writes.
const char *Repeat::look(const Host &host, Tensor *t, int place) {
    const Kind kind = kind_of(host, t->op);
    if (kind == Kind::kRefused) return "an operation of its graph may keep a state, or is not known";
    if (kind == Kind::kView) return nullptr;
    for (const Tensor *s : t->src) {
        if (s == nullptr) continue;
        const Tensor *root = root_of(s);
        // A SET_ROWS names the store as a source, too.
        if (is_leaf(root, host.none) && root->data != nullptr && root != t->view_src) reads_.push_back({root, place});
    }
    const size_t size = host.nbytes(t);
    if (size == 0) return nullptr;
    if (t->data == nullptr) return "a node of its graph has no memory of this process's";
    if (t->view_src != nullptr && is_leaf(t->view_src, host.none)) {
        if (kind != Kind::kRows || !is_leaf(t->src[1], host.none)) return "its graph changes what outlives it in another way than by the rows of a store";
        stores_.push_back({t->view_src, place});
        return nullptr;
    }
    if (kind == Kind::kRows) return "its graph writes rows into what it computes";
    written_.push_back({static_cast<char *>(t->data), size});
    return nullptr;
}

// Keeps each leaf that is read and whose memory is written to: the host's allocator gives it to others once it was read.
const char *Repeat::keep_inputs(const Host &host) {
    std::sort(written_.begin(), written_.end(), [](const Range &a, const Range &b) { return a.data < b.data; });
    size_t joined = 0; // overlapping and touching ranges become one
    for (const Range &r : written_) {
        Range *last = joined > 0 ? &written_[joined - 1] : nullptr;
        if (last != nullptr && r.data <= last->data + last->size) {
            last->size = std::max(last->size, static_cast<size_t>(r.data - last->data) + r.size);
        } else {
            written_[joined++] = r;
        }
    }
    written_.resize(joined);
    const auto is_written = [&](const char *data, size_t size) {
        auto behind = std::upper_bound(written_.begin(), written_.end(), data, [](const char *d, const Range &r) { return d < r.data; });
        if (behind != written_.begin()) {
            const Range &before = *(behind - 1);
            if (overlaps(data, size, before.data, before.size)) return true;
        }
        return behind != written_.end() && overlaps(data, size, behind->data, behind->size);
    };
    // A store is written before it is read, or the first pass would have read what was there before.
    for (const Read &s : stores_) {
        if (is_written(static_cast<const char *>(s.leaf->data), host.nbytes(s.leaf))) return "its graph computes in the memory of a store";
        for (const Read &r : reads_) {
            if (r.leaf == s.leaf && r.place < s.place) return "its graph reads a store before it writes to it";
        }
    }
    std::sort(reads_.begin(), reads_.end(), [](const Read &a, const Read &b) { return a.leaf < b.leaf; });
    const Tensor *last  = nullptr;
    size_t        total = 0;
    for (const Read &r : reads_) {
        if (r.leaf == last) continue;
        last              = r.leaf;
        const size_t size = host.nbytes(last);
        if (size == 0 || !is_written(static_cast<const char *>(last->data), size)) continue;
        if (size > kMostKept || total > kMostKept - size) return "its graph's inputs are too large to be kept";
        kept_.push_back({static_cast<char *>(last->data), size});
        total += size;
    }
    bytes_.resize(total);
    char *to = bytes_.data();
    for (const Range &r : kept_) memcpy(to, r.data, r.size), to += r.size;
    return nullptr;
}

// The graph's last result, if it is a product with weights: one row for each token that logits are wanted of.
const char *Repeat::find_logits(const Host &host, const std::vector<Tensor *> &nodes, int32_t outputs, int32_t output) {
    const char   *missing = "its graph does not end with logits";
    const Tensor *logits  = nodes.empty() ? nullptr : nodes.back();
    const auto    flagged = [](const Tensor *t) { return (t->flags & kFlagCompute) != 0; };
    if (logits == nullptr || (!flagged(logits) && std::any_of(nodes.begin(), nodes.end(), flagged)) || logits->type != kF32 || logits->data == nullptr || logits->ne[0] < 2 || logits->ne[1] != outputs || logits->ne[2] != 1 ||
        logits->ne[3] != 1 || logits->nb[0] != sizeof(float) || output < 0 || output >= outputs) {
        return missing;
    }
    const Tensor *t = logits;
    for (int i = 0; i < kFinalSteps && t != nullptr; i++, t = t->src[0]) {
        const char *name = host.op_name(t->op);
        if (name == nullptr) return missing;
        if (strcmp(name, "MUL_MAT") == 0) {
            if (!is_leaf(t->src[0], host.none) || t->ne[0] != logits->ne[0]) return missing;
            row_  = reinterpret_cast<const float *>(static_cast<const char *>(logits->data) + static_cast<size_t>(output) * logits->nb[1]);
            size_ = static_cast<size_t>(logits->ne[0]);
            logits_.resize(size_);
            return nullptr;
        }
        if (!is_one_of(name, kFinalOps)) return missing;
    }
    return missing;
}

const char *Repeat::prepare(const Host &host, const std::vector<Tensor *> &nodes, int32_t outputs, int32_t output) {
    written_.clear(), kept_.clear(), reads_.clear(), stores_.clear();
    if (host.nbytes == nullptr) return "the host does not export ggml_nbytes";
    for (size_t i = 0; i < nodes.size(); i++) {
        if (const char *why = look(host, nodes[i], static_cast<int>(i)); why != nullptr) return why;
    }
    if (const char *why = find_logits(host, nodes, outputs, output); why != nullptr) return why;
    return keep_inputs(host);
}

void Repeat::rewind() {
    memcpy(logits_.data(), row_, size_ * sizeof(float));
    const char *from = bytes_.data();
    for (const Range &r : kept_) memcpy(r.data, from, r.size), from += r.size;
}

double Repeat::nats() const {
    const auto scale = [&](const float *x, double &most) { // log of the sum of exp(x - most)
        most = -std::numeric_limits<double>::infinity();
        for (size_t i = 0; i < size_; i++) most = std::max(most, static_cast<double>(x[i]));
        double sum = 0;
        for (size_t i = 0; i < size_; i++) sum += std::exp(x[i] - most);
        return std::log(sum);
    };
    double       most, most_kept, out = 0;
    const double all = scale(row_, most), all_kept = scale(logits_.data(), most_kept);
    for (size_t i = 0; i < size_; i++) {
        const double p = row_[i] - most - all, q = logits_[i] - most_kept - all_kept;
        if (const double weight = std::exp(p); weight != 0) out += weight * (p - q); // NaN is not 0
    }
    return out;
}

bool Repeat::same() const { return memcmp(logits_.data(), row_, size_ * sizeof(float)) == 0; }

} // namespace lim::ggml
