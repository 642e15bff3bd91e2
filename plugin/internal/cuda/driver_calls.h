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

/* What brings bytes from one device's memory to another one's. */
typedef struct lim_handover {
    CUcontext   from, to;
    uintptr_t   from_stream, to_stream; /* what is queued on the first one so far makes the bytes, the second one is to read them */
    CUdeviceptr source, target;
    size_t      bytes;
    CUevent     made, brought; /* one of each device's */
} lim_handover;

/* Queues the copy: behind what makes the bytes, before what reads them, and before what the first stream does next, which may put others in
 * their place. Nothing waits on the host. */
CUresult lim_hand_over(const lim_handover *h);

/* CUDA_ERROR_NOT_READY until the event was reached. Spoils no capture by another thread of the host. */
CUresult lim_ready(CUevent e);

/* 1: the stream is being captured, or may not be asked. */
int lim_capturing(CUcontext ours, uintptr_t stream);

#endif
