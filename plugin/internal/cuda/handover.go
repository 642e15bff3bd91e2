//go:build cuda

package cuda

/*
#include <stdlib.h>
#include "driver_calls.h"
*/
import "C"

import (
	"unsafe"

	"gorgonia.org/cu"
)

// Handover brings token sets from one GPU to another.
type Handover struct {
	from, to      *Device
	made, brought cu.Event
	c             *C.lim_handover
}

// NewHandover makes what it takes to bring sets from a device to another one.
func NewHandover(from, to *Device) (*Handover, error) {
	h := &Handover{from: from, to: to, c: (*C.lim_handover)(C.calloc(1, C.sizeof_lim_handover))}
	if h.c == nil {
		return nil, ErrMemory
	}
	err := from.within(func() (err error) {
		h.made, err = cu.MakeEvent(cu.DisableTiming)
		return err
	})
	if err != nil {
		C.free(unsafe.Pointer(h.c))
		return nil, cuError("making an event", err)
	}
	err = to.within(func() (err error) {
		h.brought, err = cu.MakeEvent(cu.DisableTiming)
		return err
	})
	if err != nil {
		_ = cu.DestroyEvent(&h.made)
		C.free(unsafe.Pointer(h.c))
		return nil, cuError("making an event", err)
	}
	h.c.from, h.c.to = from.handle(), to.handle()
	h.c.made, h.c.brought = *(*C.CUevent)(unsafe.Pointer(&h.made)), *(*C.CUevent)(unsafe.Pointer(&h.brought))
	return h, nil
}

// From is the device that sets come from.
func (h *Handover) From() *Device { return h.from }

// Bring queues the copy of so many rows' sets: when the first device has come so far, and before the other one goes on. Nobody waits
// on the host.
func (h *Handover) Bring(from, to *Sets, rows int) error {
	c := h.c
	c.from_stream, c.to_stream = C.uintptr_t(from.Stream), C.uintptr_t(to.Stream)
	c.source, c.target, c.bytes = C.CUdeviceptr(from.Slots), C.CUdeviceptr(to.Slots), C.size_t(4*int64(rows)*from.Stride)
	return driverError("handing token sets over", C.lim_hand_over(c))
}

// Free gives the events back.
func (h *Handover) Free() {
	_ = cu.DestroyEvent(&h.made)
	_ = cu.DestroyEvent(&h.brought)
	C.free(unsafe.Pointer(h.c))
	h.c = nil
}
