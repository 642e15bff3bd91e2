/* Which context a driver call works in. */
#ifndef LESSISMORE_CUDA_CONTEXT_H
#define LESSISMORE_CUDA_CONTEXT_H

#include <cuda.h>

#include "kernels.h"

/* Makes our context current; the caller puts the one that was back. */
static inline CUresult lim_with(CUcontext mine, CUcontext *before) {
    CUresult r = cuCtxGetCurrent(before);
    return r != CUDA_SUCCESS ? r : cuCtxSetCurrent(mine);
}

/* lim_cuda_encode, which the driver does in a context only. */
static inline CUresult lim_encode(CUcontext mine, lim_cuda_args *args) {
    CUcontext before;
    CUresult  r = lim_with(mine, &before);
    if (r != CUDA_SUCCESS) return r;
    r = (CUresult)lim_cuda_encode(args);
    cuCtxSetCurrent(before);
    return r;
}

#endif
