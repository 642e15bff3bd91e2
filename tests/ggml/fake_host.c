/* A ggml host that lies: the hook must recognise the layout that it knows, and leave everything else
 * alone with one line in the log.
 *
 *     fake_host LIBRARY VARIANT
 *
 * plays a host whose structures are right ("sound"), or wrong in one way. It loads the library as a host
 * does, and checks whether the device and the backend were touched. Exit status 0: as it should be.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake.h"

const char *ggml_version(void) { return "fake"; }

static bool cpu_is_there = true;

void       *ggml_backend_dev_by_type(int type) { return type == 0 && cpu_is_there ? (void *)cpu_words : NULL; }
const char *ggml_backend_dev_name(void *d) { return is("device-name") ? "CPU0" : cpu_name(d); }
int         ggml_backend_dev_type(void *d) { return is("device-type") ? 2 : cpu_type(d); }
void       *ggml_backend_dev_backend_reg(void *d) { return (void)d, is("no-registry") ? NULL : (void *)&cpu_registry; }
size_t      ggml_backend_dev_count(void) { return cpu_is_there; }
void       *ggml_backend_dev_get(size_t i) { return (void)i, cpu_words; }
const char *ggml_backend_reg_name(void *r) { return cpu_name(r); }

static void make_host(void) {
    cpu_words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    make_device(cpu_words, (void *)cpu_name, (void *)cpu_type, is("device-foreign") ? (void *)strlen : (void *)cpu_init, &cpu_registry);
    if (is("device-no-registry")) cpu_words[15] = NULL;
    if (is("device-data")) cpu_words[0] = malloc(1);
    if (is("device-read-only")) mprotect(cpu_words, 4096, PROT_READ);
    cpu_registry.api_version = strncmp(variant, "api-", 4) == 0 ? atoi(variant + 4) : 2;
    cpu_is_there = !is("no-cpu") && !is("late-cpu");
}

static void told(int number) { (void)number; }
static void informed(int number, siginfo_t *about, void *context) { (void)number, (void)about, (void)context; }

/* A server that loads the library and makes the model in its workers: they are served by the host alone. */
static int forked(struct registry *(*init)(void), void **(*hooked)(void *, const char *)) {
    void **before = hooked(cpu_words, NULL);
    int    status;
    pid_t  child = fork();
    if (child == 0) {
        if (is("forked-0")) setenv("LESSISMORE", "0", 1); /* says nothing */
        for (int i = 0; i < 2; i++) {
            void **b = i ? before : hooked(cpu_words, NULL);
            if (b == NULL || (b[13] == (void *)cpu_compute) != (b != before)) _exit(1);
            int (*compute)(void **, struct graph *);
            memcpy(&compute, &b[13], sizeof compute);
            struct graph g = {0, NULL, {0}};
            if (compute(b, &g) != 42 || init() != NULL) _exit(2);
            ggml_backend_free(b);
        }
        exit(0); /* as a host's worker ends */
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}

/* Each word of each tensor that the layout is proven by reads otherwise, one after another: those that are declared are refused, the others
 * do not matter. A host that is refused may try again; one that is not gets another device. */
static int fields(struct registry *(*init)(void)) {
    enum { STORE,
           KEY,
           QUERY,
           MASK,
           SINKS,
           NODE,
           SLOTS,
           ROWS,
           WRITE,
           CUSTOM,
           TENSORS,
           WORDS = offsetof(struct tensor, name) / 4 };
    static const struct {
        int    tensor, words;
        size_t at;
    } declared[] = {
        {STORE, 1, offsetof(struct tensor, type)},
        {STORE, 4, offsetof(struct tensor, ne)},
        {STORE, 4, offsetof(struct tensor, nb)},
        {STORE, 1, offsetof(struct tensor, op)},
        {STORE, 2, offsetof(struct tensor, view_src)},
        {STORE, 2, offsetof(struct tensor, data)},
        {KEY, 6, offsetof(struct tensor, ne)}, /* the first through the attention's result, as the query's */
        {QUERY, 4, offsetof(struct tensor, ne[1])},
        {KEY, 2, offsetof(struct tensor, nb[2])},
        {KEY, 2, offsetof(struct tensor, view_src)},
        {KEY, 2, offsetof(struct tensor, view_offs)},
        {NODE, 1, offsetof(struct tensor, type)},
        {NODE, 6, offsetof(struct tensor, ne)},
        {NODE, 1, offsetof(struct tensor, op)},
        {NODE, 3, offsetof(struct tensor, op_params)},
        {NODE, 8, offsetof(struct tensor, src)},
        {NODE, 2, offsetof(struct tensor, src[5])},
        {SLOTS, 1, offsetof(struct tensor, type)},
        {SLOTS, 2, offsetof(struct tensor, ne)},
        {WRITE, 1, offsetof(struct tensor, op)},
        {WRITE, 2, offsetof(struct tensor, src[1])},
        {WRITE, 2, offsetof(struct tensor, view_src)},
        {CUSTOM, 1, offsetof(struct tensor, op)},
        {CUSTOM, 3, offsetof(struct tensor, op_params)},
        {CUSTOM, 2, offsetof(struct tensor, op_params[4])},
    };
    int refused = 0;
    for (spoilt_tensor = 0; spoilt_tensor < TENSORS; spoilt_tensor++) {
        for (spoilt_word = 0; spoilt_word < WORDS; spoilt_word++) {
            bool is_declared = false;
            for (size_t i = 0; i < sizeof declared / sizeof *declared; i++) {
                const int at = (int)declared[i].at / 4;
                is_declared = is_declared || (declared[i].tensor == spoilt_tensor && spoilt_word >= at && spoilt_word < at + declared[i].words);
            }
            if (!is_declared && spoilt_word % 5 != 0) continue; /* there are many */
            const bool is_refused = init() == NULL;
            refused += is_refused;
            if (is_refused != is_declared) printf("tensor %d, word %d: refused %d\n", spoilt_tensor, spoilt_word, is_refused);
            CHECK(is_refused == is_declared);
            if (!is_refused) make_host(); /* that one is hooked from now on */
        }
    }
    CHECK(refused == 65);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    variant = argv[2];
    make_host();
    struct registry *(*init)(void);
    *(void **)&init = init_of(argv[1]);
    if (is("fields")) return fields(init);
    struct registry *r = init();
    if (is("late-cpu")) { /* a host that loads the library first, then its own backends, then all there are */
        CHECK(r == NULL && init() == NULL);
        cpu_is_there = true;
        r = init();
    }

    void **(*hooked)(void *, const char *);
    memcpy(&hooked, &cpu_words[5], sizeof hooked);
    CHECK(backends_freed == backends_made); /* the self-test's */
    const bool works = is("sound") || is("divided-differs") || is("forked") || is("forked-0") || is("late-cpu") || is("backend-v1") || is("no-context-4") || is("compute-fails-6") || is("no-backend-2") || is("odd-backend-2") || strncmp(variant, "api-", 4) == 0;
    if (!works) {
        CHECK(r == NULL);
        CHECK(hooked == cpu_init || is("device-foreign"));
        const char *number = strrchr(variant, '-');
        const bool  once = number != NULL && atoi(number + 1) > 0 && !is("no-backend-1"); /* the next time it is right */
        CHECK((init() != NULL) == once);
        return 0;
    }
    CHECK(r != NULL && r->api_version == cpu_registry.api_version);
    CHECK(hooked != cpu_init);
    CHECK(is("no-backend-2") || (backends_made == 1 && threads_set == 1));
    CHECK(init() == r); /* twice is harmless */
    CHECK(backends_made == 1);
    if (is("forked") || is("forked-0")) return forked(init, hooked);
    void **b = hooked(cpu_words, NULL);
    if (is("no-backend-2")) { /* the host's own affair */
        CHECK(b == NULL);
        return 0;
    }
    if (is("odd-backend-2")) { /* unlike the one that the self-test was shown */
        CHECK(b != NULL && b[13] == (void *)cpu_compute);
        ggml_backend_free(b);
        return 0;
    }
    CHECK(b != NULL && b[13 + shift()] != (void *)cpu_compute);
    struct graph g = {0, NULL, {0}};
    int (*compute)(void **, struct graph *);
    memcpy(&compute, &b[13 + shift()], sizeof compute);
    struct sigaction now, handlers[2] = {{.sa_flags = SA_SIGINFO, .sa_sigaction = informed}, {.sa_handler = told}};
    for (int i = 0; i < 2; i++) sigaction(i ? SIGUSR1 : SIGUSR2, &handlers[i], NULL);
    CHECK(compute(b, &g) == 42); /* the host's own status comes back */
    for (int i = 0; i < 2; i++) { /* handlers on a stack of their own, whatever they are */
        sigaction(i ? SIGUSR1 : SIGUSR2, NULL, &now);
        CHECK((now.sa_flags & SA_ONSTACK) != 0 && now.sa_handler == handlers[i].sa_handler);
    }
    ggml_backend_free(b);
    CHECK(backends_freed == 2);
    return 0;
}
