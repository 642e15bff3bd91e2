//go:build cuda

package cuda

/*
#include <stdlib.h>
#include "driver_calls.h"
#include "probe.h"

// Streams come as numbers: 1 and 2 are streams, but no pointers to Go.
static int lim_probe_on(const lim_cuda_probe_plan *p, uintptr_t stream, uintptr_t attended) {
	return lim_cuda_run_probe(p, (void *)stream, (void *)attended);
}
*/
import "C"

import (
	"unsafe"

	"gorgonia.org/cu"
)

// Both sides of each structure agree, or the package does not compile.
var (
	_ [unsafe.Sizeof(Probe{}) - C.sizeof_lim_cuda_probe]struct{}
	_ [C.sizeof_lim_cuda_probe - unsafe.Sizeof(Probe{})]struct{}

	_ = [1]int{}[unsafe.Offsetof(Probe{}.SetStride)-unsafe.Offsetof(C.lim_cuda_probe{}.set_stride)]
	_ = [1]int{}[unsafe.Offsetof(Probe{}.Kept)-unsafe.Offsetof(C.lim_cuda_probe{}.kept)]
	_ = [1]int{}[unsafe.Offsetof(Probe{}.Square)-unsafe.Offsetof(C.lim_cuda_probe{}.square)]
	_ = [1]int{}[unsafe.Offsetof(Probe{}.Stamp)-unsafe.Offsetof(C.lim_cuda_probe{}.stamp)]
)

// ProbePlan is a Select call with a probe behind it, ready to run; like a Plan.
type ProbePlan struct {
	plan *C.lim_cuda_probe_plan
}

// NewProbePlan is memory for a plan, with no call in it yet.
func NewProbePlan() (*ProbePlan, error) {
	p := (*C.lim_cuda_probe_plan)(C.calloc(1, C.sizeof_lim_cuda_probe_plan))
	if p == nil {
		return nil, ErrMemory
	}
	return &ProbePlan{p}, nil
}

// PlanProbe gets a Select call and its probe ready, into the memory of an old plan if there is one. Every row
// attends to everything; the set is chosen for the probe's row alone, and the call's Set is left as it is.
func (d *Device) PlanProbe(call *Call, probe *Probe, into *ProbePlan) (*ProbePlan, error) {
	if err := d.Check(call); err != nil {
		return nil, err
	}
	c := (*C.lim_cuda_probe)(unsafe.Pointer(probe))
	if C.lim_cuda_check_probe(call.c(), c, nil, 0) != 0 {
		var text [256]C.char
		kind := C.lim_cuda_check_probe(call.c(), c, &text[0], C.size_t(len(text)))
		return nil, &Refusal{Kind(kind), C.GoString(&text[0])}
	}
	if into == nil {
		var err error
		if into, err = NewProbePlan(); err != nil {
			return nil, err
		}
	}
	p := into.plan
	p.attend.count, p._select.count = 0, 0
	C.lim_cuda_plan_probe(&d.limits, call.c(), c, &p.attend.args, &p._select.args, &p.probe, &p.launches[0])
	if err := d.encode(&p.attend.args); err != nil {
		return nil, err
	}
	p.attend.launches[0], p._select.launches[0] = p.launches[0], p.launches[1]
	for _, part := range [...]*C.lim_cuda_plan_t{&p.attend, &p._select} {
		f, err := d.function(&part.launches[0].name[0])
		if err != nil {
			return nil, err
		}
		part.functions[0], part.context, part.count = f, unsafe.Pointer(d.handle()), 1
	}
	f, err := d.function(&p.launches[2].name[0])
	if err != nil {
		return nil, err
	}
	p.function = f
	return into, nil
}

// Tally makes the plan count what another one, which it stands in for, would count.
func (p *ProbePlan) Tally(of *Plan) {
	p.plan._select.tally, p.plan._select.tally_function = of.plan.tally, of.plan.tally_function
}

// Run queues the call and its probe on a stream and returns.
func (p *ProbePlan) Run(stream, attended uintptr) error {
	return driverError("launching a probed call", C.CUresult(C.lim_probe_on(p.plan, C.uintptr_t(stream), C.uintptr_t(attended))))
}

// Free gives the plan's memory back.
func (p *ProbePlan) Free() {
	C.free(unsafe.Pointer(p.plan))
	p.plan = nil
}

// Clear queues the zeroing of n bytes.
func (d *Device) Clear(address uint64, n int, stream uintptr) error {
	return driverError("clearing memory", C.lim_clear(d.handle(), C.CUdeviceptr(address), C.size_t(n), C.uintptr_t(stream)))
}

// Capturing tells whether what is queued on a stream becomes part of a graph, or may not be asked just now.
func (d *Device) Capturing(stream uintptr) bool {
	return C.lim_capturing(d.handle(), C.uintptr_t(stream)) != 0
}

// Fetch brings results from the device when the stream comes to it. Nobody waits: Ready asks.
type Fetch struct {
	pinned *Pinned
	event  cu.Event
}

// NewFetch makes room for results of up to size bytes.
func (d *Device) NewFetch(size int) (*Fetch, error) {
	pinned, err := d.Pin(size)
	if err != nil {
		return nil, err
	}
	f := &Fetch{pinned: pinned}
	err = d.within(func() (err error) {
		f.event, err = cu.MakeEvent(cu.DisableTiming)
		return err
	})
	if err != nil {
		pinned.Free()
		return nil, cuError("making an event", err)
	}
	return f, nil
}

func (f *Fetch) handle() C.CUevent { return *(*C.CUevent)(unsafe.Pointer(&f.event)) }

// Start queues the copy of n bytes.
func (f *Fetch) Start(address uint64, n int, stream uintptr) error {
	return driverError("fetching results", C.lim_fetch(f.pinned.device.handle(), f.pinned.data, C.CUdeviceptr(address), C.size_t(n), f.handle(), C.uintptr_t(stream)))
}

// Put queues the copy of n bytes the other way, from an offset of Bytes on, which may be overwritten once Ready says so.
func (f *Fetch) Put(address uint64, offset, n int, stream uintptr) error {
	return driverError("a copy to the device", C.lim_put(f.pinned.device.handle(), C.CUdeviceptr(address), unsafe.Add(f.pinned.data, offset), C.size_t(n), f.handle(), C.uintptr_t(stream)))
}

// Ready tells whether what was started has arrived.
func (f *Fetch) Ready() (bool, error) {
	r := C.lim_ready(f.handle())
	if r == C.CUDA_ERROR_NOT_READY {
		return false, nil
	}
	return r == C.CUDA_SUCCESS, driverError("results", r)
}

// Bytes are the results.
func (f *Fetch) Bytes() []byte { return f.pinned.Bytes() }

// Free gives the memory back; nothing may be under way.
func (f *Fetch) Free() {
	_ = cu.DestroyEvent(&f.event)
	f.pinned.Free()
}
