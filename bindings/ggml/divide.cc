#include "divide.h"

#include <cstring>

namespace lim::ggml {
namespace {

// Narrows a tensor to `n` of a dimension, from `first` on.
void narrow(Tensor &t, int dimension, int64_t first, int64_t n) {
    t.data          = static_cast<char *>(t.data) + static_cast<size_t>(first) * t.nb[dimension];
    t.ne[dimension] = n;
}

} // namespace

void Saved::restore() const {
    tensor->op   = was.op;
    tensor->data = was.data;
    memcpy(tensor->op_params, was.op_params, sizeof was.op_params);
    memcpy(tensor->ne, was.ne, sizeof was.ne);
    memcpy(tensor->src, was.src, sizeof was.src);
}

// Queries are [head_dim, tokens, heads, streams], the output is [head_dim, heads, tokens, streams]; a mask may be one for all
// streams. The host's own function takes any strides, but counts on an output whose streams lie one behind the other: what is
// left to it is tokens of one stream, or whole streams.
void leave_rest(Tensor *attention, const lim_ggml_node &n, Rest &rest) {
    constexpr int kQuery = 0, kMask = 3, kTokens = 1, kStreams = 3, kOutputTokens = 2;
    for (int i = 0; i < 4; i++) {
        Tensor &source    = rest.sources[i];
        source            = *attention->src[i];
        attention->src[i] = &source;
        if (i == kQuery || i == kMask) narrow(source, kTokens, n.rest_token, n.rest_tokens);
        if (source.ne[kStreams] > 1) narrow(source, kStreams, n.rest_stream, n.rest_streams);
    }
    narrow(*attention, kOutputTokens, n.rest_token, n.rest_tokens);
    narrow(*attention, kStreams, n.rest_stream, n.rest_streams);
}

} // namespace lim::ggml
