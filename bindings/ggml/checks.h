// What the kernels take of an attention, and how a refusal is told.
#pragma once

#include "graph.h"
#include "host.h"

namespace lim::ggml {

// The kernels' number of an element type, or -1.
int kernel_type(int type);

// Says of a node what is refused, in the log's terms. Returns the reason.
int refuse(lim_ggml_node &n, int reason, const char *what, int64_t value, const char *remedy);

// Return why the host has to keep a FLASH_ATTN_EXT node that reads K from a store, or LIM_GGML_TAKEN. Types first.
int check_types(const Host &host, const Tensor *t, lim_ggml_node &n);
int check_shape(const Tensor *t, lim_ggml_node &n);

} // namespace lim::ggml
