//go:build cuda

package cuda

/*
#include "context.h"
#include "turn.h"

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

// Turn is a stream of our own that takes turns with a host's: events of the host's order the two.
type Turn struct {
	turn *C.lim_cuda_turn
}

// NewTurn makes a stream on the device.
func (d *Device) NewTurn() (*Turn, error) {
	f, err := d.function(C.lim_visible_name())
	if err != nil {
		return nil, err
	}
	t := &Turn{(*C.lim_cuda_turn)(C.calloc(1, C.sizeof_lim_cuda_turn))}
	if t.turn == nil {
		return nil, ErrMemory
	}
	t.turn.context, t.turn.function = unsafe.Pointer(d.handle()), f
	if err := driverError("making a stream", C.lim_stream(d.handle(), &t.turn.stream)); err != nil {
		C.free(unsafe.Pointer(t.turn))
		return nil, err
	}
	return t, nil
}

// Look states the masks that Begin looks at.
func (t *Turn) Look(s *Sight) { t.turn.sight = *(*C.lim_cuda_visible)(unsafe.Pointer(s)) }

// Begin has the stream wait for an event that the host has recorded; with look, it then makes the rows' lengths
// and slots from their masks. It queues and returns.
func (t *Turn) Begin(before uintptr, look bool) error {
	with := C.int(0)
	if look {
		with = 1
	}
	return driverError("a turn's begin", C.CUresult(C.lim_cuda_turn_begin(t.turn, handle(before), with)))
}

// End records the event that the host will wait for.
func (t *Turn) End(after uintptr) error {
	return driverError("a turn's end", C.CUresult(C.lim_cuda_turn_end(t.turn, handle(after))))
}

// Stream is where a turn's work belongs.
func (t *Turn) Stream() uintptr { return uintptr(t.turn.stream) }

// Wait waits for all that was queued: for failures and the end, not for decoding.
func (t *Turn) Wait() error {
	return driverError("waiting for a stream", C.lim_stream_wait(C.CUcontext(t.turn.context), t.turn.stream, 0))
}

// Free waits, and gives the stream back.
func (t *Turn) Free() {
	C.lim_stream_wait(C.CUcontext(t.turn.context), t.turn.stream, 1)
	C.free(unsafe.Pointer(t.turn))
	t.turn = nil
}

// handle is a foreign handle, which is no pointer of Go's, in the driver's type.
func handle(h uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&h)) }

// Both sides of the structure agree, or the package does not compile.
var (
	_ [unsafe.Sizeof(Sight{}) - C.sizeof_lim_cuda_visible]struct{}
	_ [C.sizeof_lim_cuda_visible - unsafe.Sizeof(Sight{})]struct{}

	_ = [1]int{}[unsafe.Offsetof(Sight{}.TableStride)-unsafe.Offsetof(C.lim_cuda_visible{}.table_stride)]
	_ = [1]int{}[unsafe.Offsetof(Sight{}.Odd)-unsafe.Offsetof(C.lim_cuda_visible{}.odd)]
	_ = [1]int{}[unsafe.Offsetof(Sight{}.SlotsApart)-unsafe.Offsetof(C.lim_cuda_visible{}.slots_apart)]
)
