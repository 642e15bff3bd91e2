#include "context.h"

#include "driver.h"

int lim_cuda_enter(void *context) {
    CUcontext current = 0;
    const int result = cuCtxGetCurrent(&current);
    return result == CUDA_SUCCESS && current == 0 ? (int)cuCtxSetCurrent(context) : result;
}

int lim_cuda_swap_context(void *context, void **before) {
    CUcontext current = 0;
    const int result = cuCtxGetCurrent(&current);
    *before = current;
    return result == CUDA_SUCCESS ? (int)cuCtxSetCurrent(context) : result;
}
