/* Threads for callers that bring none.
 *
 * A decode step runs one short task per layer in quick succession, so a worker spins for a moment after each
 * task before it sleeps on a condition variable. Workers block all signals: those are the host's business. */
#include <atomic>
#include <new>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "barrier.h"
#include "kernels.h"

namespace {

constexpr int kSpins = 4000; /* some tens of microseconds */

struct Worker {
    lim_cpu_pool *pool;
    int           index;
    pthread_t     thread;
};

}  // namespace

struct lim_cpu_pool {
    int     size;
    Worker *workers; /* [size - 1], indices from 1 */

    /* The task of this generation; written before the generation is, by the one caller. */
    void (*task)(void *, int, int);
    void *arg;
    int   nth;
    bool  stop;

    alignas(64) std::atomic<uint32_t> generation;
    alignas(64) std::atomic<int> busy; /* workers that have not yet seen this generation to its end */

    pthread_mutex_t mutex; /* guards sleepers' waiting, nothing else */
    pthread_cond_t  wake;
};

namespace {

uint32_t WaitForChange(lim_cpu_pool *pool, uint32_t seen) {
    for (int spins = 0; spins < kSpins; spins++) {
        const uint32_t now = pool->generation.load(std::memory_order_acquire);
        if (now != seen) return now;
        lessismore::Pause();
    }
    pthread_mutex_lock(&pool->mutex);
    uint32_t now;
    while ((now = pool->generation.load(std::memory_order_acquire)) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    return now;
}

void *Work(void *arg) {
    const Worker *worker = (const Worker *)arg;
    lim_cpu_pool *pool = worker->pool;
    uint32_t      seen = 0;
    for (;;) {
        seen = WaitForChange(pool, seen);
        const bool stop = pool->stop;
        if (!stop && worker->index < pool->nth) pool->task(pool->arg, worker->index, pool->nth);
        pool->busy.fetch_sub(1, std::memory_order_release);
        if (stop) return nullptr;
    }
}

/* Sets all workers on the task, or has them leave. */
void Announce(lim_cpu_pool *pool) {
    pool->busy.store(pool->size - 1, std::memory_order_relaxed);
    pthread_mutex_lock(&pool->mutex);
    pool->generation.fetch_add(1, std::memory_order_release);
    pthread_mutex_unlock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
}

void Release(lim_cpu_pool *pool, int started) {
    if (started > 0) {
        pool->stop = true;
        Announce(pool);
        for (int i = 0; i < started; i++) pthread_join(pool->workers[i].thread, nullptr);
    }
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    delete[] pool->workers;
    delete pool;
}

}  // namespace

extern "C" lim_cpu_pool *lim_cpu_pool_create(int size) {
    if (size < 1) size = 1;
    lim_cpu_pool *pool = new (std::nothrow) lim_cpu_pool();
    if (pool == nullptr) return nullptr;
    pool->size = size;
    pool->workers = new (std::nothrow) Worker[size];
    if (pool->workers == nullptr) {
        delete pool;
        return nullptr;
    }
    pthread_mutex_init(&pool->mutex, nullptr);
    pthread_cond_init(&pool->wake, nullptr);

    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = 0;
    for (; started < size - 1; started++) {
        Worker *worker = &pool->workers[started];
        worker->pool = pool;
        worker->index = started + 1;
        if (pthread_create(&worker->thread, nullptr, Work, worker) != 0) break;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (started < size - 1) {
        Release(pool, started);
        return nullptr;
    }
    return pool;
}

extern "C" void lim_cpu_pool_run(lim_cpu_pool *pool, int nth, void (*task)(void *arg, int ith, int nth), void *arg) {
    if (nth > pool->size) nth = pool->size;
    if (nth <= 1) {
        task(arg, 0, 1);
        return;
    }
    pool->task = task;
    pool->arg = arg;
    pool->nth = nth;
    Announce(pool);
    task(arg, 0, nth);
    for (int spins = 0; pool->busy.load(std::memory_order_acquire) != 0; spins++) {
        if (spins < kSpins) {
            lessismore::Pause();
        } else {
            sched_yield();
        }
    }
}

extern "C" void lim_cpu_pool_free(lim_cpu_pool *pool) {
    if (pool != nullptr) Release(pool, pool->size - 1);
}
