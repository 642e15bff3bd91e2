//go:build cuda

#include "driver_calls.h"

#include "context.h"
#include "driver.h" /* after cuda.h: the list that the kernels' side is compiled with agrees with it */

CUresult lim_use_shared(CUfunction f, int most) {
    int      own = 0;
    CUresult r = cuFuncGetAttribute(&own, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, f);
    if (r != CUDA_SUCCESS) return r;
    r = cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most - own);
    if (r != CUDA_SUCCESS) return r;
    /* Left to itself, the driver does not always make room for as many blocks as the plan counts on. */
    return cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, CU_SHAREDMEM_CARVEOUT_MAX_SHARED);
}

CUresult lim_ordinal(CUdeviceptr p, int *ordinal) { return cuPointerGetAttribute(ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, p); }

int lim_foreign(CUcontext ours, int device, const CUdeviceptr *addresses, int n) {
    lim_cuda_enter(ours); /* a failure shows at the addresses */
    for (int i = 0; i < n; i++) {
        int ordinal = -1;
        if (addresses[i] == 0) continue;
        if (lim_ordinal(addresses[i], &ordinal) != CUDA_SUCCESS || ordinal != device) return i;
    }
    return -1;
}

CUresult lim_fetch(CUcontext ours, void *to, CUdeviceptr from, size_t n, CUevent e, uintptr_t stream) {
    CUresult r = (CUresult)lim_cuda_enter(ours);
    if (r == CUDA_SUCCESS) r = cuMemcpyDtoHAsync(to, from, n, (CUstream)stream);
    return r == CUDA_SUCCESS ? cuEventRecord(e, (CUstream)stream) : r;
}

CUresult lim_put(CUcontext ours, CUdeviceptr to, const void *from, size_t n, CUevent e, uintptr_t stream) {
    CUresult r = (CUresult)lim_cuda_enter(ours);
    if (r == CUDA_SUCCESS) r = cuMemcpyHtoDAsync(to, from, n, (CUstream)stream);
    return r == CUDA_SUCCESS ? cuEventRecord(e, (CUstream)stream) : r;
}

CUresult lim_clear(CUcontext ours, CUdeviceptr at, size_t n, uintptr_t stream) {
    const CUresult r = (CUresult)lim_cuda_enter(ours);
    return r == CUDA_SUCCESS ? cuMemsetD8Async(at, 0, n, (CUstream)stream) : r;
}

CUresult lim_ready(CUevent e) {
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    const CUresult      exchanged = cuThreadExchangeStreamCaptureMode(&mode), r = cuEventQuery(e);
    if (exchanged == CUDA_SUCCESS) cuThreadExchangeStreamCaptureMode(&mode);
    return r;
}

CUresult lim_read(CUcontext ours, void *to, CUdeviceptr from, size_t n, uintptr_t stream) {
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    CUresult            r = (CUresult)lim_cuda_enter(ours);
    if (r != CUDA_SUCCESS) return r;
    const CUresult exchanged = cuThreadExchangeStreamCaptureMode(&mode);
    r = cuMemcpyDtoHAsync(to, from, n, (CUstream)stream);
    if (r == CUDA_SUCCESS) r = cuStreamSynchronize((CUstream)stream);
    if (exchanged == CUDA_SUCCESS) cuThreadExchangeStreamCaptureMode(&mode);
    return r;
}

CUresult lim_hand_over(const lim_handover *h) {
    const CUstream from = (CUstream)h->from_stream, to = (CUstream)h->to_stream;
    CUresult       r = cuEventRecord(h->made, from);
    if (r == CUDA_SUCCESS) r = cuStreamWaitEvent(to, h->made, 0);
    if (r == CUDA_SUCCESS) r = cuMemcpyPeerAsync(h->target, h->to, h->source, h->from, h->bytes, to);
    if (r == CUDA_SUCCESS) r = cuEventRecord(h->brought, to);
    return r == CUDA_SUCCESS ? cuStreamWaitEvent(from, h->brought, 0) : r;
}

int lim_capturing(CUcontext ours, uintptr_t stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (lim_cuda_enter(ours) != CUDA_SUCCESS || cuStreamIsCapturing((CUstream)stream, &status) != CUDA_SUCCESS) return 1;
    return status != CU_STREAM_CAPTURE_STATUS_NONE;
}
