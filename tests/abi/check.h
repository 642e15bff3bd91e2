/* The smallest test harness: CHECK notes a failure and goes on. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks, failures;

#define CHECK(condition, ...)                                               \
    do {                                                                    \
        checks++;                                                           \
        if (!(condition)) {                                                 \
            failures++;                                                     \
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

/* Numbers that are the same on every machine, from a seed. */
static inline uint32_t random_bits(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static inline int random_int(uint64_t *state, int low, int high) {
    return low + (int)(random_bits(state) % (uint32_t)(high - low + 1));
}

#endif
