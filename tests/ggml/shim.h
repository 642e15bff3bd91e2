/* The shim by itself: its C++ linked into a fake host, with a stand-in for Go behind it. So it runs under sanitizers and the
 * fuzzer at full speed, and what it asks of Go and the host can be looked at. */
#ifndef SHIM_H
#define SHIM_H

#include "hook.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the host (shim_host.c) ---- */

/* Loads the shim as a host does: a CPU device and a CUDA device of the fake's. Returns 0 if both are hooked. */
int shim_load(void);
/* A backend on the CPU or on the GPU, as the host makes one. */
void **shim_backend(int gpu);
int    shim_compute(void **backend, void **nodes, int n);
void   shim_free(void **backend);
/* What backends do with a graph from now on; NULL: compute it. */
void shim_on_compute(int (*compute)(void **nodes, int n));
/* A buffer on the GPU, and a host's ways to move something there. */
void **shim_buffer(size_t size);
void  *shim_base(void **buffer);
void   shim_set(void *tensor, const void *data, size_t offset, size_t n);
void   shim_get(const void *tensor, void *data, size_t offset, size_t n);
void   shim_memset(void *tensor, int value, size_t offset, size_t n);
void   shim_copy(const void *from, void *to);
void   shim_clear(void **buffer);
void   shim_free_buffer(void **buffer);

/* ---- Go (shim_go.cc) ---- */

/* Decides about a graph, as Session.Plan does; NULL: an attention for one token is taken, any other is not. */
void shim_on_plan(void (*plan)(lim_ggml_graph *graph));
/* Attends on a GPU; NULL: it does. Returns what lim_go_ggml_attend does. */
void shim_on_attend(int (*attend)(lim_ggml_node *node));
/* What the shim said last of what is left alone, "" at first. */
const char *shim_said(void);
int         shim_sessions(void); /* that are open */
/* Of graphs that are computed twice: what lim_go_ggml_again and lim_go_ggml_untried return from now on, and what was told since. */
typedef struct shim_trials {
    int    tried, untried;
    double nats;
    int    same;
} shim_trials;
void        shim_on_trial(int again, int untried);
shim_trials shim_told(void);
void        shim_refuse(int yes); /* sessions that are asked for from now on */

#ifdef __cplusplus
}
#endif
#endif
