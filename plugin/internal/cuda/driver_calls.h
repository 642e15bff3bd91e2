/* Driver calls that gorgonia.org/cu lacks, and those of the decode path, each one crossing from Go. Streams come as
 * numbers: 1 and 2 are streams, but no pointers to Go. */
#ifndef LESSISMORE_CUDA_DRIVER_CALLS_H
#define LESSISMORE_CUDA_DRIVER_CALLS_H

#include <cuda.h>
#include <stddef.h>
#include <stdint.h>

/* Allows a kernel, of whatever context is current, that much shared memory in all. */
CUresult lim_use_shared(CUfunction f, int most);

/* The number of the device whose memory an address is in. */
CUresult lim_ordinal(CUdeviceptr p, int *ordinal);

/* The first of n addresses that is not this device's memory; -1: all are. Zeros are passed over. */
int lim_foreign(CUcontext ours, int device, const CUdeviceptr *addresses, int n);

/* Queues a copy to pinned memory, and an event behind it. */
CUresult lim_fetch(CUcontext ours, void *to, CUdeviceptr from, size_t n, CUevent e, uintptr_t stream);

/* The same the other way. */
CUresult lim_put(CUcontext ours, CUdeviceptr to, const void *from, size_t n, CUevent e, uintptr_t stream);

/* Queues the zeroing of n bytes. */
CUresult lim_clear(CUcontext ours, CUdeviceptr at, size_t n, uintptr_t stream);

/* Copies to the host and waits, for this stream alone. Spoils no capture by another thread of the host. */
CUresult lim_read(CUcontext ours, void *to, CUdeviceptr from, size_t n, uintptr_t stream);

/* CUDA_ERROR_NOT_READY until the event was reached. Spoils no capture by another thread of the host. */
CUresult lim_ready(CUevent e);

/* 1: the stream is being captured, or may not be asked. */
int lim_capturing(CUcontext ours, uintptr_t stream);

#endif
