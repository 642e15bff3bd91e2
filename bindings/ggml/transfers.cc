#include "transfers.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <iterator>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "stores.h"
#include "symbols.h"

namespace lim::ggml {
namespace {

using Buffer     = void *; // words: the functions of its interface come first
using BufferType = void *;

// Words of a buffer type and of a buffer. Where a buffer's copies and clears are told by a trial.
constexpr int kTypeAlloc = 1;
constexpr int kMemset = 3, kSet = 4, kGet = 5, kFirstMoving = 6, kLastMoving = 10, kMostWords = 24;

// Words of a backend: its functions that move on its own stream.
constexpr int kSetAsync = 3, kSet2dAsync = 5, kCopyAsync = 7;

using AllocFn   = Buffer *(*)(BufferType *, size_t);
using MemsetFn  = void (*)(Buffer *, Tensor *, uint8_t, size_t, size_t);
using SetFn     = void (*)(Buffer *, Tensor *, const void *, size_t, size_t);
using GetFn     = void (*)(Buffer *, const Tensor *, void *, size_t, size_t);
using Set2dFn   = void (*)(Buffer *, Tensor *, const void *, size_t, size_t, size_t, size_t, size_t);
using CopyFn    = bool (*)(Buffer *, const Tensor *, Tensor *);
using ClearFn   = void (*)(Buffer *, uint8_t);
using CopyAsync = bool (*)(Backend *, Backend *, const Tensor *, Tensor *);

// The interface of a device's buffers.
struct Layout {
    void *words[kMostWords] = {}; // the host's own functions
    int   n                 = 0;  // of them
    int   set_2d = -1, copy = -1, clear = -1;
    int (*usage)(Buffer *)   = nullptr;
    void *(*base)(Buffer *)  = nullptr;
    size_t (*size)(Buffer *) = nullptr;
    AllocFn alloc            = nullptr;
};

// An input as the host has put it there.
struct Upload {
    const void          *data;
    uint64_t             serial;
    char                 name[sizeof(Tensor::name)];
    bool                 whole; // nothing else has been put there since
    bool                 large; // of more rows than kMostRows
    std::vector<uint8_t> bytes;
    std::vector<uint8_t> before; // what the upload before this one brought …
    uint64_t             serial_before; // … and its number
};

// A buffer, or one that was: that it is freed is not seen, for hosts tell their buffers by that function (see watched).
struct Watched {
    const Layout                        *layout;
    const char                          *base;
    size_t                               size;
    std::vector<std::shared_ptr<Upload>> uploads;
};

struct Moving { // a backend's own functions
    SetFn     set;
    void     *set_2d;
    CopyAsync copy;
    Met       met;
};

// Larger inputs are those of a prompt, of which masks are kept where they are wanted, a few; larger stores of uploads are not one graph's.
constexpr int64_t kMostRows    = 64;
constexpr int64_t kMostMixed   = 1024;
constexpr size_t  kMostLarge   = 2; // one for the layers that see everything, and one for those that slide
constexpr size_t  kMostBytes   = 64 << 20;
constexpr size_t  kMostUploads = 64;
constexpr size_t  kMostChanges = 4096;
constexpr size_t  kMostBuffers = 1024;
constexpr int64_t kMostPrints  = 1 << 20; // of a change: 8 MiB
constexpr int     kWeights     = 1;       // usage of a buffer

struct Logged {
    lim_ggml_change       change;
    std::vector<uint64_t> prints;
};

struct Reader {
    uint64_t seen;  // number of the first change that it has not seen
    uint64_t store; // whose rows are told apart
    bool     mixed; // masks of batches with a prompt's rows are wanted
};

// Never destroyed: hosts free buffers while the process ends.
struct State {
    std::mutex                                 mutex;
    std::unordered_map<BufferType *, Layout *> types;
    std::unordered_map<Buffer *, Watched>      buffers;
    std::unordered_map<Backend *, Moving>      backends;
    std::unordered_map<const void *, Reader>   readers;
    std::unordered_map<uint64_t, const void *> writers; // of stores
    std::deque<Logged>                         changes;
    uint64_t                                   dropped = 0; // changes before the first that is remembered
    uint64_t                                   serial  = 0;
    size_t                                     made    = 0; // buffers
};

State &state() {
    static State *s = new State;
    return *s;
}

size_t bytes_of(const Tensor *t) { return t->nb[3] * static_cast<size_t>(t->ne[3]); }

Buffer *buffer_of(const Tensor *t) { return static_cast<Buffer *>(root_of(t)->buffer); }

void on_set(Buffer *, Tensor *, const void *, size_t, size_t);

// All below is under the lock.

// In the place of a buffer that was freed another one may lie, also of a kind whose functions are its own.
Watched *watched(const Tensor *t) {
    Buffer    *buffer = buffer_of(t);
    const auto it     = state().buffers.find(buffer);
    const bool ours   = it != state().buffers.end() && buffer[kSet] == reinterpret_cast<void *>(on_set);
    return ours ? &it->second : nullptr;
}

// Memory is kept: what is put there next is mostly of the same size.
void forget_uploads(Watched &w, const char *from, size_t n) {
    for (auto &u : w.uploads) {
        const char *data = static_cast<const char *>(u->data);
        if (data < from + n && from < data + u->bytes.size()) u->whole = false;
    }
}

// Where an upload to an address is to be kept: where the one before it was, or in the place of the oldest.
Upload &upload_at(Watched &w, const void *data) {
    Upload *oldest = nullptr;
    for (auto &u : w.uploads) {
        if (u->data == data) return *u;
        if (oldest == nullptr || u->serial < oldest->serial) oldest = u.get();
    }
    if (w.uploads.size() < kMostUploads) {
        w.uploads.push_back(std::make_shared<Upload>());
        oldest = w.uploads.back().get();
    }
    return *oldest;
}

// Has room for one more large upload than this one: the memory of the oldest is given back.
void forget_large(Watched &w, const Upload &but) {
    size_t  n      = 0;
    Upload *oldest = nullptr;
    for (auto &u : w.uploads) {
        if (u.get() == &but || !u->large) continue;
        n++;
        if (oldest == nullptr || u->serial < oldest->serial) oldest = u.get();
    }
    if (n < kMostLarge) return;
    oldest->whole = oldest->large = false;
    std::vector<uint8_t>().swap(oldest->bytes);
}

bool wants_mixed() {
    for (const auto &reader : state().readers) {
        if (reader.second.mixed) return true;
    }
    return false;
}

// Stores that a reader follows; before it has chosen, any may be.
bool is_wanted(uint64_t store) {
    for (const auto &reader : state().readers) {
        if (reader.second.store == store || reader.second.store == 0) return true;
    }
    return false;
}

void log_change(const lim_ggml_change &change, std::vector<uint64_t> prints) {
    State &s = state();
    if (!s.changes.empty()) { // rows after rows, as states are restored
        Logged    &last = s.changes.back();
        bool       seen = false;
        const auto told = [](const Logged &l) { return static_cast<int64_t>(l.prints.size()) == l.change.n; };
        for (const auto &reader : s.readers) seen = seen || reader.second.seen == s.dropped + s.changes.size();
        if (!seen && (change.kind == LIM_GGML_WRITTEN || change.kind == LIM_GGML_READ) && last.change.kind == change.kind &&
            last.change.store == change.store && last.change.first + last.change.n == change.first && told(last) == !prints.empty() &&
            last.change.n < kMostPrints) {
            last.change.n += change.n;
            last.prints.insert(last.prints.end(), prints.begin(), prints.end());
            return;
        }
    }
    s.changes.push_back({change, std::move(prints)});
    if (s.changes.size() > kMostChanges) s.changes.pop_front(), s.dropped++;
}

// Rows of a K store that `n` bytes from `offset` of a tensor touch. `data`: what they hold.
void log_rows(int kind, const Tensor *t, size_t offset, size_t n, const void *data, int64_t from = 0) {
    const Tensor *store = root_of(t);
    if (n == 0 || named_layer(store) < 0 || store->nb[1] == 0 || !is_wanted(reinterpret_cast<uint64_t>(store->data))) return;
    const uint64_t        id     = reinterpret_cast<uint64_t>(store->data);
    const size_t          row    = store->nb[1];
    const size_t          begin  = static_cast<size_t>(static_cast<const char *>(t->data) - static_cast<const char *>(store->data)) + offset;
    lim_ggml_change       change = {};
    std::vector<uint64_t> prints;
    change.store = id, change.kind = kind, change.from = from;
    change.first = static_cast<int64_t>(begin / row);
    change.n     = static_cast<int64_t>((begin + n + row - 1) / row) - change.first;
    bool told    = false;
    for (const auto &reader : state().readers) told = told || reader.second.store == id;
    if (told && data != nullptr && begin % row == 0 && n % row == 0 && change.n <= kMostPrints) {
        const lim_cpu_prints of = {data, static_cast<int64_t>(row), change.n, nullptr, static_cast<int32_t>(row)};
        prints.resize(static_cast<size_t>(change.n));
        lim_cpu_prints_read(&of, 0, nullptr, static_cast<int32_t>(change.n), prints.data());
    }
    if (kind == LIM_GGML_READ && prints.empty()) return; // nothing has changed
    log_change(change, std::move(prints));
}

bool has_few_rows(const Tensor *t, int64_t most) {
    int64_t rows = 1;
    for (int i = 1; i < 4; i++) {
        if (t->ne[i] < 0 || t->ne[i] > most) return false;
        rows *= t->ne[i];
    }
    return rows <= most;
}

// Whether a tensor is what a host's scheduler makes for weights that lie on another device: of a long prompt it copies those of the CPU's
// layers, layer after layer. That is no input, and would take the place of these.
bool is_of_weights(const Tensor *t) {
    constexpr const char *ends[] = {".weight#", ".bias#", ".lora_a#", ".lora_b#"};
    return std::any_of(std::begin(ends), std::end(ends), [&](const char *end) { return strstr(t->name, end) != nullptr; });
}

// Something was put into n bytes from `offset` of a tensor.
void moved_in(const Tensor *t, size_t offset, size_t n, const void *data) {
    Watched *w = watched(t);
    if (w == nullptr) return;
    forget_uploads(*w, static_cast<const char *>(t->data) + offset, n);
    log_rows(LIM_GGML_WRITTEN, t, offset, n, data);
    const bool integers = t->type == kI32 || t->type == kI64, large = !integers && !has_few_rows(t, kMostRows);
    if (data == nullptr || offset != 0 || n != bytes_of(t) || n > kMostBytes || t->view_src != nullptr || w->layout->usage(buffer_of(t)) == kWeights ||
        (!integers && t->type != kF16 && t->type != kF32) || (large && (!wants_mixed() || !has_few_rows(t, kMostMixed))) || is_of_weights(t)) {
        return;
    }
    Upload    &u    = upload_at(*w, t->data);
    const bool same = u.data == t->data && !u.large && !large && strncmp(u.name, t->name, sizeof u.name) == 0;
    if (large) {
        forget_large(*w, u);
    } else if (u.large) {
        std::vector<uint8_t>().swap(u.bytes);
    } else {
        std::swap(u.bytes, u.before);
        u.serial_before = u.serial;
    }
    if (!same) u.before.clear();
    u.large  = large;
    u.data   = t->data;
    u.serial = ++state().serial;
    memcpy(u.name, t->name, sizeof u.name);
    u.bytes.assign(static_cast<const uint8_t *>(data), static_cast<const uint8_t *>(data) + n);
    u.whole = true;
}

// A tensor was copied over another one, both on devices.
void copied(const Tensor *from, const Tensor *to) {
    Watched *w = watched(to);
    if (w == nullptr) return;
    forget_uploads(*w, static_cast<const char *>(to->data), bytes_of(to));
    const Tensor *store = root_of(to);
    const size_t  row = store->nb[1], begin = static_cast<size_t>(static_cast<const char *>(from->data) - static_cast<const char *>(root_of(from)->data));
    const bool    rows = root_of(from) == store && row > 0 && begin % row == 0;
    log_rows(rows ? LIM_GGML_COPIED : LIM_GGML_WRITTEN, to, 0, bytes_of(to), nullptr, rows ? static_cast<int64_t>(begin / row) : 0);
}

// The functions that take the place of a buffer's, and call them. A buffer that has them is known. Its free function stays the host's: by
// that one CUDA backends tell which buffers are theirs, and so whether a tensor can be copied from device to device.

const Layout *layout_of(Buffer *buffer) {
    const std::lock_guard lock(state().mutex);
    return state().buffers.find(buffer)->second.layout;
}
template <class Fn> Fn own(Buffer *buffer, int word) { return reinterpret_cast<Fn>(layout_of(buffer)->words[word]); }

// No exception crosses into the host: what cannot be kept is not known. False: it was not.
template <class F> bool note(F what) {
    try {
        const std::lock_guard lock(state().mutex);
        what();
        return true;
    } catch (const std::bad_alloc &) {
        const std::lock_guard lock(state().mutex);
        for (auto &b : state().buffers) b.second.uploads.clear();
        state().dropped += state().changes.size() + 1; // every reader has missed something
        state().changes.clear();
        return false;
    }
}

void on_memset(Buffer *buffer, Tensor *t, uint8_t value, size_t offset, size_t n) {
    own<MemsetFn>(buffer, kMemset)(buffer, t, value, offset, n);
    note([&] { moved_in(t, offset, n, nullptr); });
}
void on_set(Buffer *buffer, Tensor *t, const void *data, size_t offset, size_t n) {
    own<SetFn>(buffer, kSet)(buffer, t, data, offset, n);
    note([&] { moved_in(t, offset, n, data); });
}
void on_get(Buffer *buffer, const Tensor *t, void *data, size_t offset, size_t n) {
    own<GetFn>(buffer, kGet)(buffer, t, data, offset, n);
    if (named_layer(root_of(t)) >= 0) note([&] { log_rows(LIM_GGML_READ, t, offset, n, data); });
}
void on_set_2d(Buffer *buffer, Tensor *t, const void *data, size_t offset, size_t n, size_t copies, size_t apart, size_t data_apart) {
    own<Set2dFn>(buffer, layout_of(buffer)->set_2d)(buffer, t, data, offset, n, copies, apart, data_apart);
    note([&] { moved_in(t, offset, copies > 0 ? (copies - 1) * apart + n : 0, nullptr); });
}
bool on_copy(Buffer *buffer, const Tensor *from, Tensor *to) {
    const bool done = own<CopyFn>(buffer, layout_of(buffer)->copy)(buffer, from, to);
    if (done) note([&] { copied(from, to); }); // else the host goes through its own memory
    return done;
}
void on_clear(Buffer *buffer, uint8_t value) {
    const Layout *layout = layout_of(buffer);
    reinterpret_cast<ClearFn>(layout->words[layout->clear])(buffer, value);
    note([&] {
        state().buffers.find(buffer)->second.uploads.clear();
        lim_ggml_change all = {}; // of every store that lies in it
        all.store = reinterpret_cast<uint64_t>(layout->base(buffer)), all.n = static_cast<int64_t>(layout->size(buffer)), all.kind = LIM_GGML_CLEARED;
        log_change(all, {});
    });
}

// Begins with a buffer. What was put into others that lay in its place is dropped; where so many have come that some must be gone without
// that, of all: what is alive is put there again with the next step.
void watch(Buffer *buffer, const Layout *layout) {
    const char  *base = static_cast<const char *>(layout->base(buffer));
    const size_t size = layout->size(buffer);
    auto        &all  = state().buffers;
    const bool   many = ++state().made % kMostBuffers == 0;
    for (auto &other : all) {
        Watched &w = other.second;
        if (many || (base < w.base + w.size && w.base < base + size)) w.uploads.clear();
    }
    all[buffer] = Watched{layout, base, size, {}};
}

Buffer *on_alloc(BufferType *type, size_t size) {
    const Layout *layout;
    {
        const std::lock_guard lock(state().mutex);
        layout = state().types.at(type);
    }
    Buffer *buffer = layout->alloc(type, size);
    if (buffer == nullptr) return buffer;
    for (int i = 0; i < layout->n; i++) {
        if (buffer[i] != layout->words[i]) return buffer; // of another kind: nothing is known of it
    }
    if (!note([&] { watch(buffer, layout); })) return buffer; // nor of one that there is no memory for
    buffer[kMemset] = reinterpret_cast<void *>(on_memset);
    buffer[kSet]    = reinterpret_cast<void *>(on_set);
    buffer[kGet]    = reinterpret_cast<void *>(on_get);
    if (layout->set_2d >= 0) buffer[layout->set_2d] = reinterpret_cast<void *>(on_set_2d);
    buffer[layout->copy]  = reinterpret_cast<void *>(on_copy);
    buffer[layout->clear] = reinterpret_cast<void *>(on_clear);
    return buffer;
}

// The same of a backend, whose functions move on its stream: what is put there counts from the moment it is queued.
Moving moving_of(Backend *backend) {
    const std::lock_guard lock(state().mutex);
    return state().backends.at(backend);
}
void on_set_async(Backend *backend, Tensor *t, const void *data, size_t offset, size_t n) {
    moving_of(backend).set(reinterpret_cast<Buffer *>(backend), t, data, offset, n);
    note([&] { moved_in(t, offset, n, data); });
}
void on_set_2d_async(Backend *backend, Tensor *t, const void *data, size_t offset, size_t n, size_t copies, size_t apart, size_t data_apart) {
    reinterpret_cast<Set2dFn>(moving_of(backend).set_2d)(reinterpret_cast<Buffer *>(backend), t, data, offset, n, copies, apart, data_apart);
    note([&] { moved_in(t, offset, copies > 0 ? (copies - 1) * apart + n : 0, nullptr); });
}
bool on_copy_async(Backend *from_backend, Backend *backend, const Tensor *from, Tensor *to) {
    const Moving moving = moving_of(backend);
    const bool   done   = moving.copy(from_backend, backend, from, to);
    if (done) note([&] { copied(from, to); });
    moving.met(from_backend, backend); // also where the host has to go through its own memory, as from the CPU
    return done;
}

// ---- the proof ----

struct Functions {
    BufferType *(*type_of)(Device *);
    Buffer *(*alloc)(BufferType *, size_t);
    void (*free_buffer)(Buffer *);
    void *(*base)(Buffer *);
    size_t (*size)(Buffer *);
    int (*usage)(Buffer *);
    void (*clear)(Buffer *, uint8_t);
    int (*tensor_alloc)(Buffer *, Tensor *, void *);
    void (*set)(Tensor *, const void *, size_t, size_t);
    void (*get)(const Tensor *, void *, size_t, size_t);
    void (*fill)(Tensor *, uint8_t, size_t, size_t);
    void (*copy)(const Tensor *, Tensor *);
    void (*set_2d)(Tensor *, const void *, size_t, size_t, size_t, size_t, size_t); // null in older hosts
    struct InitParams {
        size_t size;
        void  *memory;
        bool   no_alloc;
    };
    void *(*init)(InitParams);
    void (*free_context)(void *);
    Tensor *(*new_tensor)(void *, int, int64_t, int64_t, int64_t, int64_t);
    size_t (*overhead)();

    bool find(const Symbols &symbols, void *handle) {
        set_2d = reinterpret_cast<decltype(set_2d)>(dlsym(handle, "ggml_backend_tensor_set_2d"));
        return symbols.get(type_of, "ggml_backend_dev_buffer_type") && symbols.get(alloc, "ggml_backend_buft_alloc_buffer") &&
               symbols.get(free_buffer, "ggml_backend_buffer_free") && symbols.get(base, "ggml_backend_buffer_get_base") &&
               symbols.get(size, "ggml_backend_buffer_get_size") && symbols.get(usage, "ggml_backend_buffer_get_usage") &&
               symbols.get(clear, "ggml_backend_buffer_clear") && symbols.get(tensor_alloc, "ggml_backend_tensor_alloc") &&
               symbols.get(set, "ggml_backend_tensor_set") && symbols.get(get, "ggml_backend_tensor_get") &&
               symbols.get(fill, "ggml_backend_tensor_memset") && symbols.get(copy, "ggml_backend_tensor_copy") && symbols.get(init, "ggml_init") &&
               symbols.get(free_context, "ggml_free") && symbols.get(new_tensor, "ggml_new_tensor_4d") && symbols.get(overhead, "ggml_tensor_overhead");
    }
};

// Which of a buffer's words the host calls, and with what: functions that do nothing stand in their places.
struct Call {
    int       word = -1;
    uintptr_t of[5];
};
thread_local Call trial;

template <int kWord> uintptr_t stand_in(uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e) {
    if (trial.word < 0) trial = {kWord, {a, b, c, d, e}}; // the first: a copy that is refused goes on by others
    return 0;
}

// What the buffers of a device look like, by a trial with one of them. Returns "" or what is not as it should be.
std::string prove_buffer(const Functions &f, BufferType *type, Buffer *buffer, Layout &layout) {
    constexpr size_t kSize                                                                = 256; // of a tensor
    uintptr_t (*const stand_ins[])(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t) = {stand_in<3>, stand_in<4>, stand_in<5>, stand_in<6>,
                                                                                             stand_in<7>, stand_in<8>, stand_in<9>, stand_in<10>};
    while (layout.n < kMostWords && buffer[layout.n] != type) layout.n++; // the functions come first
    if (layout.n < kLastMoving - 1 || layout.n == kMostWords) return "its type does not follow its functions";
    void *context = f.init({4 * f.overhead(), nullptr, true});
    if (context == nullptr) return "this host refused memory for a trial";
    Tensor *a = f.new_tensor(context, kI32, kSize / 4, 1, 1, 1), *b = f.new_tensor(context, kI32, kSize / 4, 1, 1, 1);
    char   *base = static_cast<char *>(f.base(buffer));
    if (base == nullptr || f.tensor_alloc(buffer, a, base) != 0 || f.tensor_alloc(buffer, b, base + 4096) != 0 || a->buffer != buffer ||
        b->buffer != buffer || a->data != base || b->data != base + 4096) {
        f.free_context(context);
        return "a tensor in it does not tell its buffer";
    }
    for (int i = 0; i < layout.n; i++) layout.words[i] = buffer[i];
    for (int i = kMemset; i <= kLastMoving && i < layout.n; i++) {
        if (layout.words[i] != nullptr) buffer[i] = reinterpret_cast<void *>(stand_ins[i - kMemset]);
    }
    char       memory[kSize];
    const auto called = [&](auto act) {
        trial = {};
        act();
        return trial;
    };
    const auto word = [](const void *p) { return reinterpret_cast<uintptr_t>(p); };
    const Call set = called([&] { f.set(a, memory, 8, 16); }), get = called([&] { f.get(a, memory, 8, 16); }), fill = called([&] { f.fill(a, 0, 8, 16); }),
               copy = called([&] { f.copy(a, b); }), clear = called([&] { f.clear(buffer, 0); });
    Call       set_2d;
    if (f.set_2d != nullptr) set_2d = called([&] { f.set_2d(a, memory, 8, 16, 2, 32, 16); });
    for (int i = 0; i < layout.n; i++) buffer[i] = layout.words[i];
    f.free_context(context);

    layout.copy = copy.word, layout.clear = clear.word;
    if (set_2d.word >= kFirstMoving) layout.set_2d = set_2d.word;
    // Whether part of a tensor is moved by the buffer's function, from or to the host's memory.
    const auto moves = [&](const Call &call) {
        return call.of[0] == word(buffer) && call.of[1] == word(a) && call.of[2] == word(memory) && call.of[3] == 8 && call.of[4] == 16;
    };
    if (set.word != kSet || !moves(set)) return "word 4 is not set_tensor";
    if (get.word != kGet || !moves(get)) return "word 5 is not get_tensor";
    if (fill.word != kMemset || fill.of[0] != word(buffer) || fill.of[1] != word(a) || fill.of[3] != 8 || fill.of[4] != 16) return "word 3 is not memset_tensor";
    if (copy.word < kFirstMoving || copy.of[0] != word(buffer) || copy.of[1] != word(a) || copy.of[2] != word(b)) return "its cpy_tensor is not found";
    if (clear.word < kFirstMoving || clear.of[0] != word(buffer) || clear.word == copy.word) return "its clear is not found";
    const bool by_rows = set_2d.word >= 0 && set_2d.word != kSet; // else the host has no function for it, and goes by set_tensor
    if (by_rows && (set_2d.word < kFirstMoving || set_2d.word == copy.word || set_2d.word == clear.word || !moves(set_2d))) {
        return "its set_tensor_2d is not found";
    }
    return "";
}

} // namespace

std::string watch_transfers(void *handle, Device *device) {
    const Symbols symbols(handle);
    Functions     f;
    if (!f.find(symbols, handle)) return symbols.missing() + ", which it takes to see what is moved to a GPU";
    BufferType *type = f.type_of(device);
    if (type == nullptr) return "the device has no buffers";
    {
        const std::lock_guard lock(state().mutex);
        if (state().types.count(type) != 0) return "";
    }
    constexpr size_t kTrial = 8192;
    Buffer          *buffer = f.alloc(type, kTrial);
    if (buffer == nullptr) return "the device makes no buffer";
    auto        layout = std::make_unique<Layout>();
    std::string wrong  = prove_buffer(f, type, buffer, *layout);
    f.free_buffer(buffer);
    if (!wrong.empty()) return "its buffers are laid out in an unknown way: " + wrong;
    layout->usage = f.usage, layout->base = f.base, layout->size = f.size;
    layout->alloc = reinterpret_cast<AllocFn>(type[kTypeAlloc]);
    Layout *kept  = layout.release(); // a device stays
    {
        const std::lock_guard lock(state().mutex);
        state().types[type] = kept;
    }
    __atomic_store_n(&type[kTypeAlloc], reinterpret_cast<void *>(on_alloc), __ATOMIC_RELEASE);
    // Once more, as any buffer of the host's from now on.
    buffer     = f.alloc(type, kTrial);
    bool known = false;
    if (buffer != nullptr) {
        {
            const std::lock_guard lock(state().mutex);
            known = state().buffers.erase(buffer) != 0;
        }
        f.free_buffer(buffer);
    }
    if (!known) {
        __atomic_store_n(&type[kTypeAlloc], reinterpret_cast<void *>(kept->alloc), __ATOMIC_RELEASE);
        const std::lock_guard lock(state().mutex);
        state().types.erase(type);
        return "its buffers are made in an unknown way";
    }
    return "";
}

void watch_backend(Backend *backend, Met met) {
    {
        const std::lock_guard lock(state().mutex);
        state().backends[backend] = {reinterpret_cast<SetFn>(backend[kSetAsync]), backend[kSet2dAsync], reinterpret_cast<CopyAsync>(backend[kCopyAsync]), met};
    }
    backend[kSetAsync] = reinterpret_cast<void *>(on_set_async);
    if (backend[kSet2dAsync] != nullptr) backend[kSet2dAsync] = reinterpret_cast<void *>(on_set_2d_async);
    backend[kCopyAsync] = reinterpret_cast<void *>(on_copy_async);
}

void forget_backend(Backend *backend) {
    const std::lock_guard lock(state().mutex);
    const auto            it = state().backends.find(backend);
    if (it == state().backends.end()) return;
    backend[kSetAsync]   = reinterpret_cast<void *>(it->second.set);
    backend[kSet2dAsync] = it->second.set_2d;
    backend[kCopyAsync]  = reinterpret_cast<void *>(it->second.copy);
    state().backends.erase(it);
}

Uploaded uploaded(const Tensor *t) {
    const std::lock_guard lock(state().mutex);
    const Watched        *w = t->view_src == nullptr ? watched(t) : nullptr;
    if (w == nullptr) return {};
    for (const auto &u : w->uploads) {
        if (u->whole && u->data == t->data && u->bytes.size() == bytes_of(t) && strncmp(u->name, t->name, sizeof u->name) == 0) {
            const bool follows = u->before.size() == u->bytes.size();
            return {u->bytes.data(), u->serial, follows ? u->before.data() : nullptr, follows ? u->serial_before : 0, u};
        }
    }
    return {};
}

bool is_watched(const Tensor *t) {
    const std::lock_guard lock(state().mutex);
    return watched(t) != nullptr;
}

bool is_plain(const Tensor *t) {
    const std::lock_guard lock(state().mutex);
    if (watched(t) != nullptr) return true;
    const Buffer *buffer = buffer_of(t);
    for (const auto &type : state().types) {
        if (buffer != nullptr && memcmp(buffer, type.second->words, static_cast<size_t>(type.second->n) * sizeof(void *)) == 0) return true;
    }
    return false;
}

void tell_rows(const void *reader, uint64_t store, bool mixed) {
    const std::lock_guard lock(state().mutex);
    const auto            it = state().readers.find(reader);
    if (it != state().readers.end()) it->second.store = store, it->second.mixed = mixed;
}

bool changes_since(const void *reader, std::vector<lim_ggml_change> &changes, std::vector<uint64_t> &prints) {
    const std::lock_guard lock(state().mutex);
    State                &s   = state();
    const uint64_t        end = s.dropped + s.changes.size();
    changes.clear();
    prints.clear();
    const auto [it, first] = s.readers.try_emplace(reader, Reader{end, 0, false});
    const uint64_t from    = it->second.seen;
    it->second.seen        = end;
    if (first) return true;
    if (from < s.dropped) return false;
    size_t numbers = 0;
    for (uint64_t i = from; i < end; i++) numbers += s.changes[i - s.dropped].prints.size();
    prints.reserve(numbers);
    for (uint64_t i = from; i < end; i++) {
        const Logged &l = s.changes[i - s.dropped];
        changes.push_back(l.change);
        changes.back().prints   = l.prints.empty() ? nullptr : prints.data() + prints.size();
        changes.back().n_prints = static_cast<int64_t>(l.prints.size());
        prints.insert(prints.end(), l.prints.begin(), l.prints.end());
    }
    return true;
}

void graph_writes(const void *writer, const std::vector<lim_ggml_write> &writes) {
    const std::lock_guard lock(state().mutex);
    for (const lim_ggml_write &w : writes) {
        const void *&is = state().writers[w.store.id];
        if (is != nullptr && is != writer) {
            lim_ggml_change change = {};
            change.store = w.store.id, change.kind = LIM_GGML_WRITTEN, change.n = w.store.slots * w.store.streams;
            log_change(change, {});
        }
        is = writer;
    }
}

void leave_transfers(const void *who) {
    const std::lock_guard lock(state().mutex);
    state().readers.erase(who);
    for (auto it = state().writers.begin(); it != state().writers.end();) it = it->second == who ? state().writers.erase(it) : std::next(it);
}

} // namespace lim::ggml
