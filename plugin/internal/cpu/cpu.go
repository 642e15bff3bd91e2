package cpu

/*
#cgo CFLAGS: -I${SRCDIR}/../../../kernels/cpu
#cgo LDFLAGS: -L${SRCDIR}/../../../build/cmake/lib -llim_cpu -lm -lpthread
#cgo !libcxx LDFLAGS: -l:libstdc++.a
#cgo libcxx LDFLAGS: -lc++
#include <stdlib.h>
#include <string.h>
#include "kernels.h"


// The count, and the flags above it: a pointer to the flags would escape to Go's heap, per call.
static uint64_t lim_visible(const void *mask, int32_t type, int32_t n_kv, int32_t *slots) {
    uint32_t flags = 0;
    const int32_t n = lim_cpu_visible(mask, type, n_kv, slots, &flags);
    return (uint64_t)flags << 32 | (uint32_t)n;
}

static void lim_pool_attend_task(void *arg, int ith, int nth) {
    lim_cpu_attend((const lim_cpu_call *)arg, ith, nth);
}

static void lim_pool_attend(lim_cpu_pool *pool, int nth, lim_cpu_call *call) {
    lim_cpu_pool_run(pool, nth, lim_pool_attend_task, call);
}
*/
import "C"

import (
	"runtime"
	"unsafe"
)

// Target names the instruction set in use, such as "AVX3" or "NEON".
func Target() string { return C.GoString(C.lim_cpu_target()) }

// WorkSize is the work memory that the call needs when up to threads threads run it.
func WorkSize(call *Call, threads int) int {
	return int(C.lim_cpu_work_size((*C.lim_cpu_call)(unsafe.Pointer(call)), C.int(threads)))
}

// Flags of a scanned mask row.
const (
	Prefix = 1 // the visible slots are exactly 0 .. n-1
	Plain  = 2 // each visible value is zero
)

// Visible scans one mask row of n values (F16 or F32). Visible slots go to slots, which may be nil.
func Visible(mask unsafe.Pointer, typ Type, n int, slots unsafe.Pointer) (visible int, flags uint32) {
	v := uint64(C.lim_visible(mask, C.int32_t(typ), C.int32_t(n), (*C.int32_t)(slots)))
	return int(uint32(v)), uint32(v >> 32)
}

// SelectPositions runs the selection alone on given logits, on the calling thread.
func SelectPositions(logits []float32, heads, n, sinks, mid, recent int, policy Policy) []int32 {
	out := make([]int32, sinks+mid+recent)
	if len(out) == 0 {
		return out
	}
	var work Arena
	defer work.Free()
	w := work.Bytes(int(C.lim_cpu_select_work_size(C.int32_t(heads), C.int32_t(n), C.int32_t(mid), 1)))
	C.lim_cpu_select((*C.float)(unsafe.Pointer(&logits[0])), C.int64_t(n), C.int32_t(heads), C.int32_t(n),
		C.int32_t(sinks), C.int32_t(mid), C.int32_t(recent), C.int32_t(policy),
		(*C.int32_t)(unsafe.Pointer(&out[0])), w, 0, 1)
	runtime.KeepAlive(logits)
	return out
}

// Pool runs calls for callers that bring no threads of their own. One call at a time.
type Pool struct {
	pool *C.lim_cpu_pool
	size int
}

// NewPool starts size-1 threads; the caller of Attend is the remaining one. Nil when the system refuses.
func NewPool(size int) *Pool {
	p := C.lim_cpu_pool_create(C.int(size))
	if p == nil {
		return nil
	}
	return &Pool{p, size}
}

// Attend runs the call, which must lie in C memory, and returns when its output is complete.
func (p *Pool) Attend(call *Call) {
	C.lim_pool_attend(p.pool, C.int(p.size), (*C.lim_cpu_call)(unsafe.Pointer(call)))
}

// Size is the number of threads.
func (p *Pool) Size() int { return p.size }

// Free ends the threads.
func (p *Pool) Free() {
	if p.pool != nil {
		C.lim_cpu_pool_free(p.pool)
		p.pool = nil
	}
}
