// Package cuda is the Go face of the CUDA kernels (kernels/cuda/kernels.h).
//
// A Device is opened once per process and GPU. A Plan is one layer's call, checked and sized, in C memory; Run
// queues it on the host's stream and returns, also while the stream is being captured into a graph. Nothing on
// that path allocates, copies or waits, and lengths, block table and token sets are read by the kernels
// themselves, so that a captured graph replays as sequences grow.
//
// Without the build tag `cuda`, Open says that this build has no CUDA.
package cuda

import "fmt"

// Type is the element type of a tensor.
type Type int32

const (
	F32  Type = 0
	F16  Type = 1
	BF16 Type = 2
	Q8_0 Type = 3
	Q4_0 Type = 4
	FP8  Type = 5
)

// Step is what head_dim has to be a multiple of, up to MaxDim, with keys and values in f16 or bf16.
const (
	Step   = 16
	MaxDim = 256
)

// Takes tells whether there are kernels for keys and values of the type in heads of so many elements; for 96 in blocks, of up
// to 8 query heads for a KV head (lim_cuda_check).
func (t Type) Takes(dim int32) bool {
	switch {
	case t == F16 || t == BF16:
		return dim >= Step && dim <= MaxDim && dim%Step == 0
	case dim == 96:
		return t == Q8_0 || t == Q4_0
	}
	return dim == 64 || dim == 128 || dim == 256
}

// Mode says what a call does with its rows.
type Mode int32

const (
	Full   Mode = 0 // attend to every visible token
	Select Mode = 1 // the same, and choose each row's token set
	Sparse Mode = 2 // attend to each row's token set
)

// Policy ranks the candidates of a selection.
type Policy int32

const (
	Union Policy = 0
	Mass  Policy = 1
)

// Store is K or V in device memory; strides in bytes (see lim_cuda_store).
type Store struct {
	Data        uint64
	TokenStride int64
	HeadStride  int64
	PageStride  int64
}

// Rows is the query or the output in device memory.
type Rows struct {
	Data       uint64
	RowStride  int64
	HeadStride int64
	Type       Type
	_          int32
}

// Call is one layer's attention for a batch of rows, field by field lim_cuda_call. Addresses are device
// addresses, and numbers: Go's collector has no business with them.
type Call struct {
	Query, Output            Rows
	Key, Value               Store
	Lengths                  uint64 // int32 [NRows]
	Table                    uint64 // int32 [NRows][TableStride], or 0
	TableStride              int64
	Set                      uint64 // int32 [NRows][SetStride]
	SetStride                int64
	Positions                uint64 // int32 [NRows][SetStride], or 0
	Sinks                    uint64 // float32 [Heads], or 0
	Work                     uint64 // WorkSize bytes, zeroed before first use
	KVTokens                 int64  // that rows above the budget see together; 0: any
	NRows                    int32
	Heads, KVHeads           int32
	Dim                      int32
	KVType                   Type
	PageShift                int32
	Capacity                 int32
	Scale                    float32
	Softcap                  float32
	ValueScale               float32
	Mode                     Mode
	Policy                   Policy
	Budget                   int32
	SinkTokens, TopK, Recent int32
	Lasting                  int32 // 1: token sets may serve later steps, too; the same in all calls of a decoder
	_                        int32
}

// Join has each row's new token join its token sets, field by field lim_cuda_join.
type Join struct {
	Call         Call // the first group's sets; Budget: tokens of a set, the new one included
	Kept, NoSets uint64
	GroupStride  int64 // elements from a group of sets to the next one's
	Groups       int32
	_            int32
}

// Sets are the token sets of a batch's rows in a GPU's memory, and the stream that they are made and read on.
type Sets struct {
	Device *Device // nil: there are none
	Stream uintptr
	Slots  uint64 // int32 [rows][Stride]
	Stride int64
}

// Tally is a finished step to be counted, field by field lim_cuda_tally.
type Tally struct {
	Lengths, Counters, Kept, NoSets uint64
	NRows, Budget                   int32 // Budget: tokens of a set
	Dense, Select, Sparse, NoSet    int32
	Reused                          int32 // 1: with the token sets of the step before
	_                               int32
}

// What a tally's counters are, in their order (kernels/cuda/tally.h).
const (
	Steps = iota
	TallyRows
	RowsSparse
	TokensVisible
	TokensAttended
	SparseTokensVisible
	SparseTokensAttended
	DenseCalls
	SelectCalls
	SparseCalls
	NoSetCalls
	ReusedSteps
	Counters
)

// Bounds of the kernels.
const (
	MaxHeads    = 512
	MaxGroup    = 16
	MaxRows     = 4096
	MaxCapacity = 1 << 28
)

// OutOfMemory is the driver's code for it.
const OutOfMemory = 2

// Kind is why a call was refused.
type Kind int

const (
	BadArgument Kind = iota + 1 // never right
	Unsupported                 // right, but not something the kernels do
)

// Refusal names the argument that the kernels cannot take, with its value.
type Refusal struct {
	Kind Kind
	Text string
}

func (r *Refusal) Error() string { return r.Text }

// DriverError is a failure that the driver reports.
type DriverError struct {
	Doing string
	Code  int
	Name  string
}

func (e *DriverError) Error() string { return fmt.Sprintf("%s: %s (%d)", e.Doing, e.Name, e.Code) }
