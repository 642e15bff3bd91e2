//go:build cuda

package cuda

/*
#include "context.h"
#include "stream_bridge.h"

static CUresult lim_stream(CUcontext mine, void **stream) {
    CUcontext before;
    CUresult  r = lim_with(mine, &before);
    if (r != CUDA_SUCCESS) return r;
    r = cuStreamCreate((CUstream *)stream, CU_STREAM_NON_BLOCKING);
    cuCtxSetCurrent(before);
    return r;
}
static CUresult lim_stream_wait(CUcontext mine, void *stream, int last) {
    CUcontext before;
    CUresult  r = lim_with(mine, &before);
    if (r != CUDA_SUCCESS) return r;
    r = cuStreamSynchronize(stream);
    if (last) cuStreamDestroy(stream);
    cuCtxSetCurrent(before);
    return r;
}
static const char *lim_visible_name(void) { return LIM_CUDA_VISIBLE; }
*/
import "C"

import "unsafe"

// Bridge is a stream of our own that takes turns with a host's: events of the host's order the two.
type Bridge struct {
	bridge *C.lim_cuda_bridge
}

// NewBridge makes a stream on the device.
func (d *Device) NewBridge() (*Bridge, error) {
	f, err := d.function(C.lim_visible_name())
	if err != nil {
		return nil, err
	}
	t := &Bridge{(*C.lim_cuda_bridge)(C.calloc(1, C.sizeof_lim_cuda_bridge))}
	if t.bridge == nil {
		return nil, ErrMemory
	}
	t.bridge.context, t.bridge.function = unsafe.Pointer(d.handle()), f
	if err := driverError("making a stream", C.lim_stream(d.handle(), &t.bridge.stream)); err != nil {
		C.free(unsafe.Pointer(t.bridge))
		return nil, err
	}
	return t, nil
}

// Look states the masks that Begin looks at.
func (t *Bridge) Look(s *Visibility) { t.bridge.visible = *(*C.lim_cuda_visible)(unsafe.Pointer(s)) }

// Begin has the stream wait for an event that the host has recorded; with look, it then makes the rows' lengths
// and slots from their masks. It queues and returns.
func (t *Bridge) Begin(before uintptr, look bool) error {
	with := C.int(0)
	if look {
		with = 1
	}
	return driverError("a stream bridge's begin", C.CUresult(C.lim_cuda_bridge_begin(t.bridge, handle(before), with)))
}

// End records the event that the host will wait for.
func (t *Bridge) End(after uintptr) error {
	return driverError("a stream bridge's end", C.CUresult(C.lim_cuda_bridge_end(t.bridge, handle(after))))
}

// Stream is where the bridge's work belongs.
func (t *Bridge) Stream() uintptr { return uintptr(t.bridge.stream) }

// Wait waits for all that was queued: for failures and the end, not for decoding.
func (t *Bridge) Wait() error {
	return driverError("waiting for a stream", C.lim_stream_wait(C.CUcontext(t.bridge.context), t.bridge.stream, 0))
}

// Free waits, and gives the stream back.
func (t *Bridge) Free() {
	C.lim_stream_wait(C.CUcontext(t.bridge.context), t.bridge.stream, 1)
	C.free(unsafe.Pointer(t.bridge))
	t.bridge = nil
}

// handle is a foreign handle, which is no pointer of Go's, in the driver's type.
func handle(h uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&h)) }

// Both sides of the structure agree, or the package does not compile.
var (
	_ [unsafe.Sizeof(Visibility{}) - C.sizeof_lim_cuda_visible]struct{}
	_ [C.sizeof_lim_cuda_visible - unsafe.Sizeof(Visibility{})]struct{}

	_ = [1]int{}[unsafe.Offsetof(Visibility{}.TableStride)-unsafe.Offsetof(C.lim_cuda_visible{}.table_stride)]
	_ = [1]int{}[unsafe.Offsetof(Visibility{}.Odd)-unsafe.Offsetof(C.lim_cuda_visible{}.odd)]
	_ = [1]int{}[unsafe.Offsetof(Visibility{}.SlotsApart)-unsafe.Offsetof(C.lim_cuda_visible{}.slots_apart)]
)
