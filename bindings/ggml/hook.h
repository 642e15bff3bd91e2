/* The ggml hook, as Go sees it. */
#ifndef LESSISMORE_GGML_HOOK_H
#define LESSISMORE_GGML_HOOK_H

#include <stddef.h>
#include <stdint.h>

#include "graph.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a load of the library found. */
typedef enum lim_ggml_found {
    LIM_GGML_UNFIT, /* no host that it can work in */
    LIM_GGML_EARLY, /* a host without its CPU backend so far: a later load may find it */
    LIM_GGML_NEW,   /* a host that is hooked from now on */
    LIM_GGML_AGAIN, /* one that was already */
} lim_ggml_found;

/* Finds the host that `caller` (an address in its code) belongs to, and proves its layout. With `hook`, a
 * small graph is computed by the host and through the hook, and every CPU backend that the host makes from now
 * on is hooked; a host is hooked once. Returns the registry that ggml_backend_init answers with, or
 * NULL, with the reason in `text`; on success `text` names the host. */
void *lim_ggml_install(void *caller, int hook, lim_ggml_found *found, char *text, size_t size);

/* The CUDA devices of an installed host: how many, with their names in `text`. With `hook`, every backend that
 * the host makes on them from now on is hooked; copies between backends show which ones are of one context. -1: they have to be
 * left alone, `text` says why. */
int lim_ggml_install_gpus(void *caller, int hook, char *text, size_t size);

/* Calls lim_go_ggml_exit when the process ends, unless it is a forked child. */
void lim_ggml_at_exit(void);

/* What a context is for. */
enum { LIM_GGML_CPU,
       LIM_GGML_GPU,
       LIM_GGML_REHEARSAL /* the self-test's: counted and logged nowhere */,
       LIM_GGML_GPU_REHEARSAL };

/* Tokens that a row of the self-test on a GPU attends to in its second layer. */
enum { LIM_GGML_REHEARSED_BUDGET = 192 };

/* Recordings that a context of a GPU's holds. */
enum { LIM_GGML_RECORDINGS = 4 };

/* Implemented in Go (capi/ggml.go). */
extern void     *lim_go_ggml_init(void *caller);              /* what ggml_backend_init returns */
extern uintptr_t lim_go_ggml_open(int kind);                  /* a context begins; 0: left alone */
extern void      lim_go_ggml_plan(uintptr_t session, lim_ggml_graph *graph); /* decides about each node */
/* A graph that is to be computed twice (trial). Before the second time: its nodes attend to everything. 0: done; else they have to be the
 * host's. */
extern int lim_go_ggml_again(uintptr_t session, lim_ggml_graph *graph);
/* After it: by how much the first result diverges from the second, in nats, and whether they are equal to the bit. */
extern void lim_go_ggml_tried(uintptr_t session, double nats, int same);
/* Instead of both, before the graph is computed: it cannot be computed twice. As lim_go_ggml_again. */
extern int lim_go_ggml_untried(uintptr_t session, lim_ggml_graph *graph, char *why);
/* On a GPU: queues an offloaded node between two events of the driver's. 0: queued; else nothing is under way. */
extern int lim_go_ggml_attend(uintptr_t session, lim_ggml_node *node, void *before, void *after);
/* A recording of what is queued for a graph: begun, ended (see lim_cuda_bridge_captured), replayed between two events. Of
 * LIM_GGML_RECORDINGS, the one of that number. 0: done. */
extern int  lim_go_ggml_capture(uintptr_t session);
extern int  lim_go_ggml_captured(uintptr_t session, int number, void *before);
extern int  lim_go_ggml_replay(uintptr_t session, int number, void *before, void *after);
extern void lim_go_ggml_close(uintptr_t session);
extern void lim_go_ggml_problem(char *text);             /* the hook cannot work; for the log */
extern void lim_go_ggml_left_alone(char *text);          /* so are CUDA devices; for the log */
extern void lim_go_ggml_exit(void);

#ifdef __cplusplus
}
#endif
#endif
