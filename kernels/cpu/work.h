/* Carving of the caller's work memory: one pass with a null base measures, the same pass with the real base
 * hands out pointers, so that size and use cannot disagree. */
#ifndef LESSISMORE_CPU_WORK_H
#define LESSISMORE_CPU_WORK_H

#include <stddef.h>
#include <stdint.h>

#include "barrier.h"

namespace lessismore {

/* The only part of work memory that has a meaning between calls. */
struct alignas(64) WorkHeader {
    Barrier barrier;
    alignas(64) std::atomic<uint32_t> next; /* the next KV chunk to claim; zero between calls */
};

class Arena {
  public:
    explicit Arena(void *base) : base_((uintptr_t)base) {}
    /* Every array begins on a cache line of its own and ends with a spare one, for whole-vector stores. */
    template <class T>
    T *Take(size_t count) {
        T *array = (T *)(base_ + used_);
        used_ += (count * sizeof(T) + 63) / 64 * 64 + 64;
        return array;
    }
    size_t used() const { return used_; }

  private:
    uintptr_t base_;
    size_t    used_ = 0;
};

}  // namespace lessismore

#endif
