/* The smallest test harness: CHECK notes a failure and goes on; the first ones are told. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int checks, failures;

#define CHECK(condition, ...)                                               \
    do {                                                                    \
        checks++;                                                           \
        if (!(condition) && ++failures <= 20) {                             \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fputc('\n', stderr);                                            \
        }                                                                   \
    } while (0)

#define OK(call) CHECK((call) == LIM_OK, "%s", lim_last_error())

static inline int finish(const char *name) {
    printf("%-10s %6d checks, %d failed\n", name, checks, failures);
    return failures != 0;
}

/* How many cases of chance to try: all of them, or LIM_TEST_SHARE per cent, where a sanitizer makes each slow. */
static inline int test_share(void) {
    const char *share = getenv("LIM_TEST_SHARE");
    return share ? atoi(share) : 100;
}

static inline int cases(int all) {
    int some = all * test_share() / 100;
    return some > 0 ? some : 1;
}

/* A seed that is another one each time, to be printed. */
static inline uint64_t seed_of_now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Numbers that are the same on every machine, from a seed. */
static inline uint32_t random_bits(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static inline int random_int(uint64_t *state, int low, int high) {
    return low + (int)(random_bits(state) % (uint32_t)(high - low + 1));
}

#endif
