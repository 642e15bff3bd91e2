/* Which context a driver call works in. */
#ifndef LESSISMORE_CUDA_CONTEXT_H
#define LESSISMORE_CUDA_CONTEXT_H

#include <cuda.h>

/* Makes our context current; the caller puts the one that was back. */
static inline CUresult lim_with(CUcontext mine, CUcontext *before) {
    CUresult r = cuCtxGetCurrent(before);
    return r != CUDA_SUCCESS ? r : cuCtxSetCurrent(mine);
}

#endif
