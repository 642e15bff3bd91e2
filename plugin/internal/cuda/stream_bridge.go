//go:build cuda

package cuda

/*
#include <cuda.h>
#include <stdlib.h>
#include "stream_bridge.h"

static const char *lim_visible_name(void) { return LIM_CUDA_VISIBLE; }
*/
import "C"

import (
	"unsafe"

	"gorgonia.org/cu"
)

// Bridge is a stream of our own beside a host's: events of the host's order the work of the two.
type Bridge struct {
	device *Device
	stream cu.Stream
	bridge *C.lim_cuda_bridge
	ready  [Recordings]unsafe.Pointer // graphs of the driver's
}

// NewBridge makes a stream on the device.
func (d *Device) NewBridge() (*Bridge, error) {
	f, err := d.function(C.lim_visible_name())
	if err != nil {
		return nil, err
	}
	t := &Bridge{device: d, bridge: (*C.lim_cuda_bridge)(C.calloc(1, C.sizeof_lim_cuda_bridge))}
	if t.bridge == nil {
		return nil, ErrMemory
	}
	err = d.within(func() (err error) {
		t.stream, err = cu.MakeStream(cu.NonBlocking)
		return err
	})
	if err != nil {
		C.free(unsafe.Pointer(t.bridge))
		return nil, cuError("making a stream", err)
	}
	t.bridge.context, t.bridge.function, t.bridge.stream = unsafe.Pointer(d.handle()), f, unsafe.Pointer(t.stream.C())
	return t, nil
}

// Look states the masks that Begin looks at.
func (t *Bridge) Look(s *Visibility) { t.bridge.visible = *(*C.lim_cuda_visible)(unsafe.Pointer(s)) }

// Begin has the stream wait for an event that the host has recorded, 0: for none; with look, it then makes the rows' lengths
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

// Capture begins a recording: what is queued on the bridge's stream, and on the host's stream once that waits for an event of
// the bridge's, is not run but remembered.
func (t *Bridge) Capture() error {
	return driverError("a stream bridge's capture", C.CUresult(C.lim_cuda_bridge_capture(t.bridge)))
}

// Captured ends it. before is the event that the host recorded behind its last work; 0: the recording is dropped. It takes the
// place of the recording of that number.
func (t *Bridge) Captured(number int, before uintptr) error {
	t.forget(number)
	return driverError("a stream bridge's recording", C.CUresult(C.lim_cuda_bridge_captured(t.bridge, handle(before), &t.ready[number])))
}

// Replay queues what was recorded.
func (t *Bridge) Replay(number int) error {
	return driverError("a recording", C.CUresult(C.lim_cuda_bridge_replay(t.bridge, t.ready[number])))
}

func (t *Bridge) forget(number int) {
	if t.ready[number] != nil {
		C.lim_cuda_bridge_forget(t.bridge, t.ready[number])
		t.ready[number] = nil
	}
}

// Stream is where the bridge's work belongs.
func (t *Bridge) Stream() uintptr { return uintptr(t.bridge.stream) }

// Wait waits for all that was queued: for failures and the end, not for decoding.
func (t *Bridge) Wait() error {
	return cuError("waiting for a stream", t.device.within(t.stream.Synchronize))
}

// Free waits, and gives the stream back.
func (t *Bridge) Free() {
	_ = t.device.within(func() error {
		_ = t.stream.Synchronize() // a stream that failed is destroyed, too
		for number := range t.ready {
			t.forget(number)
		}
		return t.stream.Destroy()
	})
	C.free(unsafe.Pointer(t.bridge))
	t.bridge = nil
}

// handle is a foreign handle, which is no pointer of Go's, in the driver's type.
func handle(h uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&h)) }

// Both sides of the structure agree, or the package does not compile.
var (
	_ [unsafe.Sizeof(Visibility{}) - C.sizeof_lim_cuda_visible]struct{}
	_ [C.sizeof_lim_cuda_visible - unsafe.Sizeof(Visibility{})]struct{}

	_ = [1]int{}[unsafe.Offsetof(Visibility{}.StreamStride)-unsafe.Offsetof(C.lim_cuda_visible{}.stream_stride)]
	_ = [1]int{}[unsafe.Offsetof(Visibility{}.TableStride)-unsafe.Offsetof(C.lim_cuda_visible{}.table_stride)]
	_ = [1]int{}[unsafe.Offsetof(Visibility{}.Odd)-unsafe.Offsetof(C.lim_cuda_visible{}.odd)]
	_ = [1]int{}[unsafe.Offsetof(Visibility{}.SlotsApart)-unsafe.Offsetof(C.lim_cuda_visible{}.slots_apart)]
	_ = [1]int{}[unsafe.Offsetof(Visibility{}.First)-unsafe.Offsetof(C.lim_cuda_visible{}.first)]
)
