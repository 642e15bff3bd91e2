//go:build cuda

// Package cudrv stands in for libcuda when the library is linked, and finds the real one when it is wanted:
// a machine without a driver loads the same file and is told that there is none.
package cudrv

/*
#cgo CFLAGS: -std=gnu11
#cgo LDFLAGS: -Wl,--as-needed -L${SRCDIR}/lib -ldl
#include "shim.h"
*/
import "C"

import "fmt"

// Open finds the driver and initialises it; later calls give the first one's answer.
func Open() error {
	if r := C.cudrv_open(); r != 0 {
		return fmt.Errorf("no usable CUDA driver: %s (error %d)", C.GoString(C.cudrv_error()), int(r))
	}
	return nil
}
