// Makes one call fail that the library's own C, C++ and Go files make: the n-th allocation, look-up of a library or of a function, pipe
// or exit handler.
//
// Linked into a library of its own (faults.sh) in the place of the real ones, so that nothing of the host's, of libstdc++'s start or of Go's
// run-time is hit: the latter ends the process by design when it gets no memory or no thread.
//
//     LIM_FAULT=KIND:N     the N-th call of KIND (new, calloc, dlopen, dlsym, pipe2, atexit) fails, once
//     LIM_FAULT_COUNT=FILE at the process's end: a line for each kind with the number of its calls, and whether one has failed
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

constexpr const char *kKinds[] = {"new", "calloc", "dlopen", "dlsym", "pipe2", "atexit"};
enum { kNew,
       kCalloc,
       kDlopen,
       kDlsym,
       kPipe2,
       kAtexit,
       kMost };

std::atomic<long> calls[kMost];
std::atomic<bool> failed;

// Read once, before the first call counts.
struct Order {
    int  kind = -1;
    long at = 0;
    Order() {
        const char *text = getenv("LIM_FAULT"), *colon = text != nullptr ? strchr(text, ':') : nullptr;
        for (int k = 0; colon != nullptr && k < kMost; k++) {
            if (strncmp(text, kKinds[k], static_cast<size_t>(colon - text)) == 0 && kKinds[k][colon - text] == 0) kind = k, at = atol(colon + 1);
        }
    }
};

bool fails(int kind) {
    static const Order order;
    if (++calls[kind] != order.at || kind != order.kind) return false;
    failed = true;
    return true;
}

__attribute__((destructor)) void tell() {
    const char *path = getenv("LIM_FAULT_COUNT");
    FILE       *file = path != nullptr ? fopen(path, "w") : nullptr;
    if (file == nullptr) return;
    for (int k = 0; k < kMost; k++) fprintf(file, "%s %ld\n", kKinds[k], calls[k].load());
    fprintf(file, "failed %d\n", failed.load() ? 1 : 0);
    fclose(file);
}

} // namespace

extern "C" {
void *__real__Znwm(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_dlopen(const char *path, int flags);
void *__real_dlsym(void *handle, const char *name);
int   __real_pipe2(int ends[2], int flags);
int   __real_atexit(void (*run)());

void *__wrap__Znwm(size_t n) {
    if (fails(kNew)) throw std::bad_alloc();
    return __real__Znwm(n);
}
void *__wrap_calloc(size_t n, size_t size) { return fails(kCalloc) ? nullptr : __real_calloc(n, size); }
void *__wrap_dlopen(const char *path, int flags) { return fails(kDlopen) ? nullptr : __real_dlopen(path, flags); }
void *__wrap_dlsym(void *handle, const char *name) { return fails(kDlsym) ? nullptr : __real_dlsym(handle, name); }
int   __wrap_pipe2(int ends[2], int flags) { return fails(kPipe2) ? errno = EMFILE, -1 : __real_pipe2(ends, flags); }
int   __wrap_atexit(void (*run)()) { return fails(kAtexit) ? -1 : __real_atexit(run); }
}
