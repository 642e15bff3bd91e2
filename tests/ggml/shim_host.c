/* The fake host of shim.h. */
#define _GNU_SOURCE
#include "fake.h"

static void note(const char *format, ...) { (void)format; }

#include "fake_gpu.h"

#include "shim.h"

void  *ggml_backend_init(void);
size_t ggml_nbytes(const struct tensor *t) { return (size_t)t->ne[3] * t->nb[3]; }

static int (*on_compute)(void **, int);
static int compute_or_look(struct graph *g) { return on_compute != NULL ? on_compute((void **)g->nodes, g->n) : compute_all(g); }

int shim_load(void) {
    variant = getenv("SHIM_VARIANT") != NULL ? getenv("SHIM_VARIANT") : "sound";
    static void *words[24], *types[8];
    cpu_words = words;
    make_device(cpu_words, (void *)cpu_name, (void *)cpu_type, (void *)cpu_init, &cpu_registry);
    make_device(gpu_words[0], (void *)device_name, (void *)device_type, (void *)init_gpu, &gpu_registry);
    types[0] = (void *)device_name, types[1] = (void *)new_buffer;
    buffer_types[0] = types;
    cpu_registry.api_version = gpu_registry.api_version = 2;
    compute_graph = compute_or_look;
    if (ggml_backend_init() == NULL) return 1;
    return cpu_words[5] == (void *)cpu_init || gpu_words[0][5] == (void *)init_gpu;
}

void **shim_backend(int gpu) {
    void **device = gpu ? gpu_words[0] : cpu_words;
    return ((void **(*)(void *, const char *))device[5])(device, NULL);
}
int shim_compute(void **backend, void **nodes, int n) {
    struct graph g = {n, (struct tensor **)nodes, {0}};
    return ((int (*)(void **, struct graph *))backend[13])(backend, &g);
}
void   shim_free(void **backend) { ggml_backend_free(backend); }
void   shim_on_compute(int (*compute)(void **, int)) { on_compute = compute; }
void **shim_buffer(size_t size) { return ggml_backend_buft_alloc_buffer(buffer_types[0], size); }
void  *shim_base(void **buffer) { return ggml_backend_buffer_get_base(buffer); }
void   shim_set(void *tensor, const void *data, size_t offset, size_t n) { ggml_backend_tensor_set(tensor, data, offset, n); }
void   shim_get(const void *tensor, void *data, size_t offset, size_t n) { ggml_backend_tensor_get(tensor, data, offset, n); }
void   shim_memset(void *tensor, int value, size_t offset, size_t n) { ggml_backend_tensor_memset(tensor, (uint8_t)value, offset, n); }
void   shim_copy(const void *from, void *to) { ggml_backend_tensor_copy(from, to); }
void   shim_clear(void **buffer) { ggml_backend_buffer_clear(buffer, 0); }
void   shim_free_buffer(void **buffer) { ggml_backend_buffer_free(buffer); }
