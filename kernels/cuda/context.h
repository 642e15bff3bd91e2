/* Which context a driver call works in: a property of the thread, and all that changes it is here. */
#ifndef LESSISMORE_CUDA_CONTEXT_H
#define LESSISMORE_CUDA_CONTEXT_H

#ifdef __cplusplus
extern "C" {
#endif

/* Makes a context (CUcontext) current on a thread that has none; a thread of the host that has one keeps it: its
 * streams are of that one. For work on a host's stream. Returns a CUresult. */
int lim_cuda_enter(void *context);

/* Makes a context current and tells which one was. For work on our own objects; the caller then puts back what was, by the
 * same function. Returns a CUresult. */
int lim_cuda_swap_context(void *context, void **before);

#ifdef __cplusplus
}
#endif
#endif
