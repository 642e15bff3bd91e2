/* Prints of a K store's rows: whether a row still holds what was written there. */
#include <string.h>

#include "kernels.h"

namespace {

/* A cache line: enough to tell keys apart, and what reading one of them fetches anyway. */
constexpr int32_t kSample = 64;

/* Rows that are on their way from memory while one is looked at: they lie anywhere. */
constexpr int32_t kAhead = 16;

int64_t SlotOf(int64_t base, const int32_t *list, int32_t i) { return base + (list != nullptr ? list[i] : i); }

void Fetch(const lim_cpu_prints *of, int64_t base, const int32_t *list, int32_t i, int32_t n) {
    if (i < n) __builtin_prefetch(static_cast<const uint8_t *>(of->rows) + SlotOf(base, list, i) * of->stride);
}

uint64_t Mix(uint64_t x) {
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccd;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53;
    return x ^ (x >> 33);
}

uint64_t Print(const lim_cpu_prints *of, int64_t slot) {
    const auto   *row = static_cast<const uint8_t *>(of->rows) + slot * of->stride;
    const int32_t n = of->bytes < kSample ? of->bytes : kSample;
    uint64_t      hash = 0x9e3779b97f4a7c15;
    for (int32_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        memcpy(&word, row + i, n - i < 8 ? n - i : 8);
        hash = ((hash << 29 | hash >> 35) ^ word) * 0xd6e8feb86659fd93;
    }
    hash = Mix(hash);
    return hash != 0 ? hash : 1;
}

}  // namespace

extern "C" void lim_cpu_prints_read(const lim_cpu_prints *of, int64_t base, const int32_t *list, int32_t n, uint64_t *prints) {
    for (int32_t i = 0; i < n; i++) {
        Fetch(of, base, list, i + kAhead, n);
        prints[i] = Print(of, SlotOf(base, list, i));
    }
}

extern "C" int32_t lim_cpu_prints_hold(const lim_cpu_prints *of, int64_t base, const int32_t *list, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        Fetch(of, base, list, i + kAhead, n);
        const int64_t slot = SlotOf(base, list, i);
        if (of->noted[slot] != Print(of, slot)) return i;
    }
    return n;
}

extern "C" void lim_cpu_prints_note(const lim_cpu_prints *of, const int64_t *list, int64_t n) {
    for (int64_t i = 0; i < n; i++) of->noted[list[i]] = Print(of, list[i]);
}
