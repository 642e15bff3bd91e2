package cpu

// #include "kernels.h"
import "C"

import "unsafe"

// Both sides of each structure must have the same size and the same offsets: a difference makes the
// array length negative or a constant index out of range, and the package does not compile.
var (
	_ [unsafe.Sizeof(Tensor{}) - C.sizeof_lim_cpu_tensor]struct{}
	_ [C.sizeof_lim_cpu_tensor - unsafe.Sizeof(Tensor{})]struct{}
	_ [unsafe.Sizeof(Row{}) - C.sizeof_lim_cpu_row]struct{}
	_ [C.sizeof_lim_cpu_row - unsafe.Sizeof(Row{})]struct{}
	_ [unsafe.Sizeof(Timing{}) - C.sizeof_lim_cpu_timing]struct{}
	_ [C.sizeof_lim_cpu_timing - unsafe.Sizeof(Timing{})]struct{}
	_ [unsafe.Sizeof(Call{}) - C.sizeof_lim_cpu_call]struct{}
	_ [C.sizeof_lim_cpu_call - unsafe.Sizeof(Call{})]struct{}
	_ [unsafe.Sizeof(Probe{}) - C.sizeof_lim_cpu_probe]struct{}
	_ [C.sizeof_lim_cpu_probe - unsafe.Sizeof(Probe{})]struct{}
	_ [unsafe.Sizeof(Prints{}) - C.sizeof_lim_cpu_prints]struct{}
	_ [C.sizeof_lim_cpu_prints - unsafe.Sizeof(Prints{})]struct{}
)

var (
	_ = [1]int{}[unsafe.Offsetof(Row{}.Slots)-unsafe.Offsetof(C.lim_cpu_row{}.slots)]
	_ = [1]int{}[unsafe.Offsetof(Row{}.SinkTokens)-unsafe.Offsetof(C.lim_cpu_row{}.sink_tokens)]
	_ = [1]int{}[unsafe.Offsetof(Row{}.TopK)-unsafe.Offsetof(C.lim_cpu_row{}.top_k)]
	_ = [1]int{}[unsafe.Offsetof(Row{}.SetLen)-unsafe.Offsetof(C.lim_cpu_row{}.set_n)]
	_ = [1]int{}[unsafe.Offsetof(Row{}.Set)-unsafe.Offsetof(C.lim_cpu_row{}.set)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Heads)-unsafe.Offsetof(C.lim_cpu_call{}.heads)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.DimV)-unsafe.Offsetof(C.lim_cpu_call{}.dim_v)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Slopes)-unsafe.Offsetof(C.lim_cpu_call{}.slopes)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Mode)-unsafe.Offsetof(C.lim_cpu_call{}.mode)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Rows)-unsafe.Offsetof(C.lim_cpu_call{}.rows)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Work)-unsafe.Offsetof(C.lim_cpu_call{}.work)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Timing)-unsafe.Offsetof(C.lim_cpu_call{}.timing)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Probe)-unsafe.Offsetof(C.lim_cpu_call{}.probe)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Table)-unsafe.Offsetof(C.lim_cpu_call{}.table)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.PageShift)-unsafe.Offsetof(C.lim_cpu_call{}.page_shift)]
	_ = [1]int{}[unsafe.Offsetof(Probe{}.Sets)-unsafe.Offsetof(C.lim_cpu_probe{}.sets)]
	_ = [1]int{}[unsafe.Offsetof(Probe{}.Own)-unsafe.Offsetof(C.lim_cpu_probe{}.own)]
	_ = [1]int{}[unsafe.Offsetof(Probe{}.Kept)-unsafe.Offsetof(C.lim_cpu_probe{}.kept)]
	_ = [1]int{}[unsafe.Offsetof(Prints{}.Noted)-unsafe.Offsetof(C.lim_cpu_prints{}.noted)]
	_ = [1]int{}[unsafe.Offsetof(Prints{}.Bytes)-unsafe.Offsetof(C.lim_cpu_prints{}.bytes)]
)
