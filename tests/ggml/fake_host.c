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
#include <sys/wait.h>
#include <unistd.h>

#include "fake.h"

struct graph {
    int            n;
    struct tensor *nodes[4];
};
int            ggml_graph_n_nodes(struct graph *g) { return g->n; }
struct tensor *ggml_graph_node(struct graph *g, int i) { return g->nodes[i]; }
const char    *ggml_version(void) { return "fake"; }

/* The backend: a GUID, thirteen functions of API version 2 and later, three more, the device. */
static int  computed, freed;
static void *device_words[24];
static const char *backend_name(void *b) { return (void)b, "CPU"; }
static void  backend_free(void *b) { freed++, free(b); }
static void *plan_create(void *b, void *g) { return (void)b, (void)g, NULL; }
static void  plan_free(void *b, void *p) { (void)b, (void)p; }
static int   plan_compute(void *b, void *p) { return (void)b, (void)p, 0; }
static int   graph_compute(void **b, struct graph *g) {
    (void)b, (void)g;
    return computed++, 42;
}

static void **init_backend(void *device, const char *params) {
    (void)device, (void)params;
    void **b = calloc(24, sizeof *b);
    const int shift = is("backend-v1") ? -2 : 0; /* two functions fewer before the plans */
    b[1] = (void *)backend_name, b[2] = (void *)backend_free;
    b[9 + shift] = (void *)plan_create, b[10 + shift] = (void *)plan_free;
    b[12 + shift] = (void *)plan_compute, b[13 + shift] = (void *)graph_compute;
    b[is("backend-no-device") ? 20 : 17 + shift] = is("backend-no-device") ? (void *)b : (void *)device_words;
    return b;
}

static struct registry registry;

static const char *device_name(void *d) { return (void)d, "CPU"; }
static int         device_type(void *d) { return (void)d, 0; }
static void        nothing(void) {}

static void make_device(void) {
    static const char *(*const name)(void *) = device_name;
    for (int i = 0; i < 15; i++) device_words[i] = (void *)nothing;
    memcpy(&device_words[0], &name, sizeof name);
    device_words[3] = (void *)device_type;
    device_words[5] = is("device-foreign") ? (void *)strlen : (void *)init_backend;
    if (!is("device-no-registry")) device_words[15] = &registry;
    registry.api_version = is("api-1") ? 1 : is("api-99") ? 99 : is("api-3") ? 3 : 2;
}

void       *ggml_backend_dev_by_type(int type) { return type == 0 && !is("no-cpu") ? (void *)device_words : NULL; }
const char *ggml_backend_dev_name(void *d) { return device_name(d); }
int         ggml_backend_dev_type(void *d) { return device_type(d); }
void       *ggml_backend_dev_backend_reg(void *d) { return (void)d, &registry; }

/* A server that loads the library and makes the model in its workers: they are served by the host alone. */
static int forked(void *(*init)(void), void **(*hooked)(void *, const char *)) {
    void **before = hooked(device_words, NULL);
    int    status;
    pid_t  child = fork();
    if (child == 0) {
        for (int i = 0; i < 2; i++) {
            void **b = i ? before : hooked(device_words, NULL);
            if (b == NULL || (b[13] == (void *)graph_compute) != (b != before)) _exit(1);
            int (*compute)(void **, struct graph *);
            memcpy(&compute, &b[13], sizeof compute);
            struct graph g = {0, {NULL}};
            if (compute(b, &g) != 42 || init() != NULL) _exit(2);
        }
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    variant = argv[2];
    make_device();
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    void *(*init)(void);
    *(void **)&init = dlsym(library, "ggml_backend_init");
    CHECK(init != NULL);
    struct registry *r = init();

    void **(*hooked)(void *, const char *);
    memcpy(&hooked, &device_words[5], sizeof hooked);
    const bool works = is("sound") || is("api-3") || is("forked");
    const bool backend_wrong = strncmp(variant, "backend-", 8) == 0;
    if (!works && !backend_wrong) {
        CHECK(r == NULL);
        CHECK(hooked == init_backend || is("device-foreign"));
        return 0;
    }
    CHECK(r != NULL && r->api_version == registry.api_version);
    CHECK(hooked != init_backend);
    CHECK(init() == r); /* twice is harmless */
    if (is("forked")) return forked(init, hooked);
    void **b = hooked(device_words, NULL);
    CHECK(b != NULL);
    const bool taken = b[13] != (void *)graph_compute && b[11] != (void *)graph_compute;
    CHECK(taken == works);
    if (works) {
        struct graph g = {0, {NULL}};
        int (*compute)(void **, struct graph *);
        memcpy(&compute, &b[13], sizeof compute);
        CHECK(compute(b, &g) == 42 && computed == 1); /* the host's own status comes back */
        void (*release)(void **);
        memcpy(&release, &b[2], sizeof release);
        release(b);
        CHECK(freed == 1);
    }
    return 0;
}
