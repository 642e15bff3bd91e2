//go:build cuda

package cuda

// #include "join.h"
// #include "kernels.h"
// #include "tally.h"
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

	_ [unsafe.Sizeof(Tally{}) - C.sizeof_lim_cuda_tally]struct{}
	_ [C.sizeof_lim_cuda_tally - unsafe.Sizeof(Tally{})]struct{}

	_ [unsafe.Sizeof(Join{}) - C.sizeof_lim_cuda_join]struct{}
	_ [C.sizeof_lim_cuda_join - unsafe.Sizeof(Join{})]struct{}

	_ = [1]int{}[Counters-C.LIM_CUDA_COUNTERS]
	_ = [1]int{}[NoSetCalls-C.LIM_CUDA_NO_SET_CALLS]
	_ = [1]int{}[ReusedSteps-C.LIM_CUDA_REUSED_STEPS]
	_ = [1]int{}[SparseTokensVisible-C.LIM_CUDA_SPARSE_TOKENS_VISIBLE]
	_ = [1]int{}[MaxHeads-C.LIM_CUDA_MAX_HEADS]
	_ = [1]int{}[MaxGroup-C.LIM_CUDA_MAX_GROUP]
	_ = [1]int{}[MaxRows-C.LIM_CUDA_MAX_ROWS]

	_ = [1]int{}[unsafe.Offsetof(Tally{}.Kept)-unsafe.Offsetof(C.lim_cuda_tally{}.kept)]
	_ = [1]int{}[unsafe.Offsetof(Tally{}.NoSet)-unsafe.Offsetof(C.lim_cuda_tally{}.no_set)]
	_ = [1]int{}[unsafe.Offsetof(Tally{}.Reused)-unsafe.Offsetof(C.lim_cuda_tally{}.reused)]
	_ = [1]int{}[unsafe.Offsetof(Join{}.NoSets)-unsafe.Offsetof(C.lim_cuda_join{}.no_sets)]
	_ = [1]int{}[unsafe.Offsetof(Join{}.Groups)-unsafe.Offsetof(C.lim_cuda_join{}.groups)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Lengths)-unsafe.Offsetof(C.lim_cuda_call{}.lengths)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Set)-unsafe.Offsetof(C.lim_cuda_call{}.set)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Positions)-unsafe.Offsetof(C.lim_cuda_call{}.positions)]
	_ = [1]int{}[unsafe.Offsetof(Tally{}.NoSets)-unsafe.Offsetof(C.lim_cuda_tally{}.no_sets)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.KVTokens)-unsafe.Offsetof(C.lim_cuda_call{}.kv_tokens)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Work)-unsafe.Offsetof(C.lim_cuda_call{}.work)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Dim)-unsafe.Offsetof(C.lim_cuda_call{}.dim)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Capacity)-unsafe.Offsetof(C.lim_cuda_call{}.capacity)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Scale)-unsafe.Offsetof(C.lim_cuda_call{}.scale)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Mode)-unsafe.Offsetof(C.lim_cuda_call{}.mode)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Recent)-unsafe.Offsetof(C.lim_cuda_call{}.recent)]
	_ = [1]int{}[unsafe.Offsetof(Call{}.Lasting)-unsafe.Offsetof(C.lim_cuda_call{}.lasting)]
)
