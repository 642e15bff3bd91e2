// What a host moves into a GPU's memory and out of it, seen on the way.
//
// A graph on a GPU is described by tensors whose values lie on the device: reading them back would mean waiting for it. But
// the host has just put its inputs there itself (masks, positions, the slots that a batch goes to), through functions
// of the buffers that they lie in. These are hooked, as a backend's graph_compute is, and small inputs are kept. What a
// host does to a K store behind its graphs (a state that is restored, a stream that is copied) passes the same functions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "graph.h"
#include "host.h"

namespace lim::ggml {

// Proves the layout of a device's buffers and hooks those that are made from now on; a device is hooked once. Returns ""
// or what is not as it should be. A small buffer is made for it.
std::string watch_transfers(void *handle, Device *device);

// Sees what a backend moves on its stream, too. For a backend whose layout is proven. `met` is told between which backends something was
// to be copied: a host does so between those of one of its contexts.
using Met = void (*)(const Backend *from, const Backend *to);
void watch_backend(Backend *backend, Met met);
void forget_backend(Backend *backend);

// The values of a tensor, where the host has put them there whole, and nothing has since. They stay as they are until the calling
// thread's host moves something again, and in memory as long as this is kept: other threads' hosts may have all of them forgotten.
struct Uploaded {
    const void *data          = nullptr; // null: they are not known
    uint64_t    serial        = 0;       // tells this upload from all others
    const void *before        = nullptr; // what the one before it brought, if that was of the same size and name, or null …
    uint64_t    serial_before = 0; // … and that one's number

    std::shared_ptr<const void> kept;
};
Uploaded uploaded(const Tensor *t);

// Whether all that is moved into a tensor is seen.
bool is_watched(const Tensor *t);

// Whether part of a tensor can be read through ggml_backend_tensor_get: its buffer is one of those that are hooked, or like
// them. The buffers of matrices that are split by rows cannot.
bool is_plain(const Tensor *t);

// Has rows that are moved out of a store, or into it, told apart by prints: of one store for each reader, whatever was
// asked for before. 0: it may be any; kNoStore: none.
// `mixed`: masks of batches with a prompt's rows are wanted, too.
constexpr uint64_t kNoStore = 1;
void               tell_rows(const void *reader, uint64_t store, bool mixed);

// What has happened to K stores since `reader` last asked, oldest first; prints lie in `prints`. False: more than is
// remembered.
bool changes_since(const void *reader, std::vector<lim_ggml_change> &changes, std::vector<uint64_t> &prints);

// A graph of `writer`'s writes to stores. What another one's graphs write there is a change that is not understood.
void graph_writes(const void *writer, const std::vector<lim_ggml_write> &writes);

// A reader or writer is gone.
void leave_transfers(const void *who);

} // namespace lim::ggml
