//go:build cuda

package cuda

// #include "kernels.h"
import "C"

import "unsafe"

// Both sides of each structure agree, or the package does not compile.
var (
	_ [unsafe.Sizeof(Call{}) - C.sizeof_lim_cuda_call]struct{}
	_ [C.sizeof_lim_cuda_call - unsafe.Sizeof(Call{})]struct{}
	_ [unsafe.Sizeof(Store{}) - C.sizeof_lim_cuda_store]struct{}
	_ [C.sizeof_lim_cuda_store - unsafe.Sizeof(Store{})]struct{}
	_ [unsafe.Sizeof(Rows{}) - C.sizeof_lim_cuda_rows]struct{}
	_ [C.sizeof_lim_cuda_rows - unsafe.Sizeof(Rows{})]struct{}

	_ = [1]int{}[unsafe.Offsetof(Call{}.Lengths)-unsafe.Offsetof(C.lim_cuda_call{}.lengths)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Set)-unsafe.Offsetof(C.lim_cuda_call{}.set)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Positions)-unsafe.Offsetof(C.lim_cuda_call{}.positions)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Work)-unsafe.Offsetof(C.lim_cuda_call{}.work)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Dim)-unsafe.Offsetof(C.lim_cuda_call{}.dim)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Capacity)-unsafe.Offsetof(C.lim_cuda_call{}.capacity)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Scale)-unsafe.Offsetof(C.lim_cuda_call{}.scale)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Mode)-unsafe.Offsetof(C.lim_cuda_call{}.mode)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Recent)-unsafe.Offsetof(C.lim_cuda_call{}.recent)]
)
