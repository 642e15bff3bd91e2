/* For code that the host and the device share; the host's tests run the very same source. */
#ifndef LESSISMORE_CUDA_SHARED_H
#define LESSISMORE_CUDA_SHARED_H

#include <stdint.h>

#if defined(__CUDACC__)
#define LIM_SHARED __host__ __device__ __forceinline__
#else
#define LIM_SHARED static inline
#endif

#endif
