//go:build cuda

package cuda

/*
#cgo CFLAGS: -std=gnu11 -I${SRCDIR}/../../../kernels/cuda
#cgo LDFLAGS: -L${SRCDIR}/../../../build/cmake/lib -llim_cuda
#include <stdlib.h>
#include "context.h"
#include "driver_calls.h"
#include "join.h"
#include "launch.h"

// A stream's handle can be a small number, which Go takes for no pointer.
static int lim_run(const lim_cuda_plan_t *plan, uintptr_t stream, uintptr_t attended) {
	return lim_cuda_run(plan, (void *)stream, (void *)attended);
}
static int lim_join_run(void *function, void *context, const lim_cuda_join *join, uintptr_t stream) {
    return lim_cuda_start_join(function, context, join, (void *)stream);
}
static const char *lim_tally_name(void) { return LIM_CUDA_TALLY; }
static const char *lim_join_name(void) { return LIM_CUDA_JOIN; }
*/
import "C"

import (
	_ "embed"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"gorgonia.org/cu"

	"lessismore/plugin/internal/cudrv"
)

// Built tells whether this build has the CUDA engine.
const Built = true

// The kernels' machine code for all supported GPUs; made by the Makefile.
//
//go:embed kernels.fatbin
var fatbin string

// CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, which gorgonia.org/cu does not name.
const maxSharedPerBlock cu.DeviceAttribute = 97

// unknownBandwidth is taken for that of a device that does not tell.
const unknownBandwidth = 1e12

// Device is a GPU with the kernels loaded into its primary context, which it shares with the host's own CUDA
// code. It lives as long as the process.
type Device struct {
	ordinal int
	name    string
	context cu.CUContext
	module  cu.Module
	limits  C.lim_cuda_device
	reads   float64 // bytes a second that its memory can at most

	mu        sync.Mutex
	functions map[string]unsafe.Pointer
}

var (
	devicesMu sync.Mutex
	devices   = map[int]*Device{}
)

// Open gives the GPU of that number. The first call loads the driver and the kernels; an error leaves nothing
// behind, and the next call tries again.
func Open(ordinal int) (*Device, error) {
	devicesMu.Lock()
	defer devicesMu.Unlock()
	if d := devices[ordinal]; d != nil {
		return d, nil
	}
	if err := cudrv.Open(); err != nil {
		return nil, err
	}
	d, err := open(ordinal)
	if err != nil {
		return nil, err
	}
	devices[ordinal] = d
	return d, nil
}

func open(ordinal int) (*Device, error) {
	count, err := cu.NumDevices()
	if err != nil {
		return nil, fmt.Errorf("counting CUDA devices: %w", err)
	}
	if ordinal < 0 || ordinal >= count {
		return nil, fmt.Errorf("CUDA device %d is not one of the %d", ordinal, count)
	}
	device, err := cu.GetDevice(ordinal)
	if err != nil {
		return nil, fmt.Errorf("CUDA device %d: %w", ordinal, err)
	}
	d := &Device{ordinal: ordinal, functions: map[string]unsafe.Pointer{}}
	if d.name, err = device.Name(); err != nil {
		return nil, fmt.Errorf("CUDA device %d: %w", ordinal, err)
	}
	var major, minor C.int32_t
	for _, a := range [...]struct {
		attribute cu.DeviceAttribute
		to        *C.int32_t
	}{
		{cu.ComputeCapabilityMajor, &major},
		{cu.ComputeCapabilityMinor, &minor},
		{cu.MultiprocessorCount, &d.limits.multiprocessors},
		{cu.MaxSharedMemoryPerMultiprocessor, &d.limits.shared_per_multiprocessor},
		{maxSharedPerBlock, &d.limits.shared_per_block},
	} {
		v, err := device.Attribute(a.attribute)
		if err != nil {
			return nil, fmt.Errorf("CUDA device %d (%s): attribute %d: %w", ordinal, d.name, a.attribute, err)
		}
		*a.to = C.int32_t(v)
	}
	d.limits.capability = 10*major + minor
	d.reads = unknownBandwidth
	clock, noClock := device.Attribute(cu.MemoryClockRate) // in kHz, of memory that moves twice in each
	width, noWidth := device.Attribute(cu.GlobalMemoryBusWidth)
	if noClock == nil && noWidth == nil && clock > 0 && width > 0 {
		d.reads = 2 * 1e3 * float64(clock) * float64(width) / 8
	}
	if d.context, err = device.RetainPrimaryCtx(); err != nil {
		return nil, fmt.Errorf("CUDA device %d (%s): primary context: %w", ordinal, d.name, err)
	}

	err = d.within(func() (err error) {
		d.module, err = cu.LoadData(fatbin)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("CUDA device %d (%s): loading the kernels of this build: %w", ordinal, d.name, err)
	}
	return d, nil
}

// within makes, reads or frees what is ours, in the device's context. The context is a property of the thread; it is left
// as the host had it.
func (d *Device) within(do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, ours unsafe.Pointer
	if err := driverError("context", C.CUresult(C.lim_cuda_swap_context(unsafe.Pointer(d.handle()), &before))); err != nil {
		return err
	}
	defer C.lim_cuda_swap_context(before, &ours)
	return do()
}

// The handles of gorgonia.org/cu are structures of one unexported pointer.
func (d *Device) handle() C.CUcontext { return *(*C.CUcontext)(unsafe.Pointer(&d.context)) }

func driverError(doing string, r C.CUresult) error {
	if r == C.CUDA_SUCCESS {
		return nil
	}
	var name *C.char
	if C.cuGetErrorName(r, &name) != C.CUDA_SUCCESS || name == nil {
		return &DriverError{doing, int(r), "unknown error"}
	}
	return &DriverError{doing, int(r), C.GoString(name)}
}

// cuError is driverError for what gorgonia.org/cu returns, whose type of errors has no name outside.
func cuError(doing string, err error) error {
	if r := cu.Success; errors.As(err, &r) {
		return driverError(doing, C.CUresult(r))
	}
	return err
}

// OrdinalOf is the number of the GPU whose memory a device address is in.
func OrdinalOf(address uint64) (int, error) {
	if err := cudrv.Open(); err != nil {
		return 0, err
	}
	var ordinal C.int
	if err := driverError(fmt.Sprintf("address %#x", address), C.lim_ordinal(C.CUdeviceptr(address), &ordinal)); err != nil {
		return 0, err
	}
	return int(ordinal), nil
}

// Name is the driver's name for the GPU.
func (d *Device) Name() string { return d.name }

// Bandwidth is how many bytes a second the device's memory can at most.
func (d *Device) Bandwidth() float64 { return d.reads }

// Ordinal is the GPU's number.
func (d *Device) Ordinal() int { return d.ordinal }

func (c *Call) c() *C.lim_cuda_call { return (*C.lim_cuda_call)(unsafe.Pointer(c)) }

// Check names the first argument that the kernels cannot take, as a *Refusal.
func (d *Device) Check(call *Call) error {
	// The text is asked for only when there is one: the buffer would be on the heap.
	if C.lim_cuda_check(&d.limits, call.c(), nil, 0) == 0 {
		return nil
	}
	var text [256]C.char
	kind := C.lim_cuda_check(&d.limits, call.c(), &text[0], C.size_t(len(text)))
	return &Refusal{Kind(kind), C.GoString(&text[0])}
}

// WorkSize is the work memory that calls of this shape need.
func (d *Device) WorkSize(call *Call) int { return int(C.lim_cuda_work_size(&d.limits, call.c())) }

// NoSets is where calls of this shape leave whether token sets are of no use; 0: nowhere, they always are.
func (d *Device) NoSets(call *Call) uint64 { return uint64(C.lim_cuda_no_sets(&d.limits, call.c())) }

// Memory is device memory of our own: work memory for callers that bring none.
type Memory struct {
	device  *Device
	address uint64
	size    int
}

// Zeroed allocates device memory filled with zeros. It waits for the device: for set-up, not for decoding.
func (d *Device) Zeroed(size int) (*Memory, error) {
	var p cu.DevicePtr
	err := d.within(func() (err error) {
		if p, err = cu.MemAlloc(int64(size)); err != nil {
			return err
		}
		if err = cu.MemsetD8Async(p, 0, int64(size), cu.NoStream); err == nil {
			err = cu.NoStream.Synchronize()
		}
		if err != nil {
			_ = cu.MemFree(p)
		}
		return err
	})
	if err != nil {
		return nil, cuError(fmt.Sprintf("allocating %d bytes on %s", size, d.name), err)
	}
	return &Memory{d, uint64(p), size}, nil
}

// Address is the memory's device address.
func (m *Memory) Address() uint64 { return m.address }

// Size is the number of bytes.
func (m *Memory) Size() int { return m.size }

// Free gives the memory back; no kernel may still be using it.
func (m *Memory) Free() {
	if m.address != 0 {
		_ = m.device.within(func() error { return cu.MemFree(cu.DevicePtr(m.address)) })
		m.address = 0
	}
}

// Foreign is the place of the first address that is not one of this device's memory; -1: all are. Zeros stand for none.
func (d *Device) Foreign(addresses []uint64) int {
	return int(C.lim_foreign(d.handle(), C.int(d.ordinal), (*C.CUdeviceptr)(unsafe.Pointer(unsafe.SliceData(addresses))), C.int(len(addresses))))
}

// Read copies device memory to the host, once all that was queued on the stream is done: nothing is asked of other streams, which
// may be under capture. 0: on the device.
func (d *Device) Read(stream uintptr, address uint64, to []byte) error {
	doing := fmt.Sprintf("reading %d bytes from %s", len(to), d.name)
	if stream != 0 {
		return driverError(doing, C.lim_read(d.handle(), unsafe.Pointer(unsafe.SliceData(to)), C.CUdeviceptr(address), C.size_t(len(to)), C.uintptr_t(stream)))
	}
	err := d.within(func() error {
		if err := cu.Synchronize(); err != nil { // streams that do not wait for the default one, too
			return err
		}
		return cu.MemcpyDtoH(unsafe.Pointer(unsafe.SliceData(to)), cu.DevicePtr(address), int64(len(to)))
	})
	return cuError(doing, err)
}

// Pinned is host memory that the device copies from without a stop in between.
type Pinned struct {
	device *Device
	data   unsafe.Pointer
	size   int
}

// Pin allocates pinned host memory.
func (d *Device) Pin(size int) (*Pinned, error) {
	var p unsafe.Pointer
	err := d.within(func() error {
		return driverError(fmt.Sprintf("pinning %d bytes", size), C.cuMemHostAlloc(&p, C.size_t(size), C.CU_MEMHOSTALLOC_PORTABLE))
	})
	if err != nil {
		return nil, err
	}
	return &Pinned{d, p, size}, nil
}

// Bytes is the memory.
func (p *Pinned) Bytes() []byte { return unsafe.Slice((*byte)(p.data), p.size) }

// Free gives it back.
func (p *Pinned) Free() {
	if p.data != nil {
		_ = p.device.within(func() error { return cu.MemFreeHost(p.data) })
		p.data = nil
	}
}

// Plan is a call that is ready to run. It lies in C memory, so that running it is one crossing and no copy.
type Plan struct {
	plan *C.lim_cuda_plan_t
}

// ErrMemory is the host's memory running out.
var ErrMemory = errors.New("out of memory")

// NewPlan is memory for a plan, with no call in it yet.
func NewPlan() (*Plan, error) {
	p := (*C.lim_cuda_plan_t)(C.calloc(1, C.sizeof_lim_cuda_plan_t))
	if p == nil {
		return nil, ErrMemory
	}
	return &Plan{p}, nil
}

// Plan checks a call and gets it ready, into the memory of an old plan if there is one. The call's addresses are
// read when it runs; nothing is queued here.
func (d *Device) Plan(call *Call, into *Plan) (*Plan, error) {
	if err := d.Check(call); err != nil {
		return nil, err
	}
	if into == nil {
		var err error
		if into, err = NewPlan(); err != nil {
			return nil, err
		}
	}
	p := into.plan
	p.count = C.int32_t(C.lim_cuda_plan(&d.limits, call.c(), &p.args, &p.launches[0]))
	p.context = unsafe.Pointer(d.handle())
	if err := d.encode(&p.args); err != nil {
		p.count = 0
		return nil, err
	}
	for i := range int(p.count) {
		f, err := d.function(&p.launches[i].name[0])
		if err != nil {
			p.count = 0
			return nil, err
		}
		p.functions[i] = f
	}
	return into, nil
}

// Load finds all entry points that calls like this one may need, whatever their rows, lengths, mode, policy and table.
// The driver loads code when it is first asked for, which it may not do while a stream is being captured.
func (d *Device) Load(call *Call) error {
	var names [C.LIM_CUDA_MOST_ENTRIES][C.LIM_CUDA_NAME]C.char
	for i := range int(C.lim_cuda_entry_points(&d.limits, call.c(), &names[0])) {
		if _, err := d.function(&names[i][0]); err != nil {
			return err
		}
	}
	return nil
}

// encode completes the arguments of a plan's attention by what only the driver can make.
func (d *Device) encode(args *C.lim_cuda_args) error {
	return driverError("making the tensor maps of K and V", C.CUresult(C.lim_cuda_encode(unsafe.Pointer(d.handle()), args)))
}

var tallyName = C.lim_tally_name()

// Tally makes the plan count a step, too, after its call; nil: it counts nothing any more.
func (p *Plan) Tally(d *Device, t *Tally) error {
	if t == nil {
		p.plan.tally_function = nil
		return nil
	}
	f, err := d.function(tallyName)
	if err != nil {
		return err
	}
	p.plan.tally = *(*C.lim_cuda_tally)(unsafe.Pointer(t))
	p.plan.tally_function = f
	return nil
}

var joinName = C.lim_join_name()

// LoadJoin finds what Join needs, which is then not looked up on the decode path.
func (d *Device) LoadJoin() error {
	_, err := d.function(joinName)
	return err
}

// Join has each row's new token join its token sets, on a stream.
func (d *Device) Join(j *Join, stream uintptr) error {
	f, err := d.function(joinName)
	if err != nil {
		return err
	}
	return driverError("launching lim_join", C.CUresult(C.lim_join_run(f, unsafe.Pointer(d.handle()), (*C.lim_cuda_join)(unsafe.Pointer(j)), C.uintptr_t(stream))))
}

// function finds an entry point, once, and allows it all the shared memory that the device has.
func (d *Device) function(name *C.char) (unsafe.Pointer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// The conversion inside the index does not allocate.
	text := unsafe.Slice((*byte)(unsafe.Pointer(name)), C.LIM_CUDA_NAME)
	n := 0
	for n < len(text) && text[n] != 0 {
		n++
	}
	if f, ok := d.functions[string(text[:n])]; ok {
		return f, nil
	}
	key := string(text[:n])
	var f unsafe.Pointer
	err := d.within(func() error {
		function, err := d.module.Function(key)
		if err != nil {
			return cuError("kernel "+key, err)
		}
		f = *(*unsafe.Pointer)(unsafe.Pointer(&function))
		return driverError("shared memory of "+key, C.lim_use_shared(C.CUfunction(f), C.int(d.limits.shared_per_block)))
	})
	if err != nil {
		return nil, err
	}
	d.functions[key] = f
	return f, nil
}

// Run queues the call on a stream of the plan's device (0: the default stream) and returns. It may be called
// while the stream is being captured. attended: an event that is recorded behind the attention, before a selection; 0: none.
func (p *Plan) Run(stream, attended uintptr) error {
	r := C.lim_run(p.plan, C.uintptr_t(stream), C.uintptr_t(attended))
	if r != 0 {
		return driverError("launching "+C.GoString(&p.plan.launches[0].name[0]), C.CUresult(r))
	}
	return nil
}

// Free gives the plan's memory back. What was queued or captured from it has its own copy.
func (p *Plan) Free() {
	C.free(unsafe.Pointer(p.plan))
	p.plan = nil
}
