package cpu

// #include <stdlib.h>
// #include <stdint.h>
// // Large blocks from calloc are fresh pages, which cost nothing until they are used.
// static void *lim_zeroed_block(size_t n, void **block) {
//     *block = calloc(n + 64, 1);
//     return *block == NULL ? NULL : (void *)(((uintptr_t)*block + 63) & ~(uintptr_t)63);
// }
import "C"

import "unsafe"

// Arena is one growing block of zeroed C memory, 64-byte aligned. The zero value is empty. It grows in
// powers of two and never shrinks, so that a steady state allocates nothing.
type Arena struct {
	block unsafe.Pointer // what C gave
	ptr   unsafe.Pointer // in it, aligned
	size  int
}

// Bytes gives a block of at least n bytes. A block that has to grow is a new one, zeroed: what the old
// one held is gone. Nil when there is no memory; the old block then stays.
func (a *Arena) Bytes(n int) unsafe.Pointer {
	if n <= a.size && a.ptr != nil {
		return a.ptr
	}
	size := 4096
	for size < n {
		size *= 2
	}
	var block unsafe.Pointer
	p := C.lim_zeroed_block(C.size_t(size), &block)
	if p == nil {
		return nil
	}
	C.free(a.block)
	a.block, a.ptr, a.size = block, p, size
	return p
}

// Free gives the memory back.
func (a *Arena) Free() {
	C.free(a.block)
	*a = Arena{}
}

// Slice gives n elements of T in the arena (see Bytes); nil when there is no memory. T must hold no Go pointers.
func Slice[T any](a *Arena, n int) []T {
	var t T
	p := a.Bytes(max(n, 1) * int(unsafe.Sizeof(t)))
	if p == nil {
		return nil
	}
	return unsafe.Slice((*T)(p), n)
}
