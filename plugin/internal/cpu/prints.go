package cpu

// #include "kernels.h"
// // By value: a pointer into one of Go's structures would have cgo look at all of that structure.
// static void lim_read(lim_cpu_prints of, int64_t base, const int32_t *list, int32_t n, uint64_t *prints) {
//     lim_cpu_prints_read(&of, base, list, n, prints);
// }
// static int32_t lim_hold(lim_cpu_prints of, int64_t base, const int32_t *list, int32_t n) {
//     return lim_cpu_prints_hold(&of, base, list, n);
// }
// static void lim_note(lim_cpu_prints of, const int64_t *list, int64_t n) { lim_cpu_prints_note(&of, list, n); }
import "C"

import "unsafe"

// Prints are hashes of a K store's rows, noted once the rows are written (lim_cpu_prints). Noted lies in C memory.
type Prints struct {
	Rows   unsafe.Pointer
	Stride int64
	Slots  int64
	Noted  unsafe.Pointer // [Slots] uint64; NoPrint: none
	Bytes  int32
}

// NoPrint is what is noted of a slot without a print.
const NoPrint = 0

func (p *Prints) c() C.lim_cpu_prints { return *(*C.lim_cpu_prints)(unsafe.Pointer(p)) }

// Read fills prints with those of slots base + list[i]; base + i where list is nil.
func (p *Prints) Read(base int, list []int32, prints []uint64) {
	if len(prints) > 0 {
		C.lim_read(p.c(), C.int64_t(base), (*C.int32_t)(unsafe.SliceData(list)),
			C.int32_t(len(prints)), (*C.uint64_t)(&prints[0]))
	}
}

// Hold tells how many of n such slots, counted from the first one, hold what is noted of them.
func (p *Prints) Hold(base int, list []int32, n int) int {
	return int(C.lim_hold(p.c(), C.int64_t(base), (*C.int32_t)(unsafe.SliceData(list)), C.int32_t(n)))
}

// Note notes the prints of slots.
func (p *Prints) Note(slots []int64) {
	C.lim_note(p.c(), (*C.int64_t)(unsafe.SliceData(slots)), C.int64_t(len(slots)))
}
