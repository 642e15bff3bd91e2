// Package cpu is the Go face of the CPU kernels (kernels/cpu/kernels.h).
//
// The structures below mirror the kernels' C structures field by field, so that a plan written by Go
// is read by the host's threads in C++ without a copy. layout.go proves at compile time that both
// sides agree. Whatever a plan points to lives in C memory (Arena): Go's collector never moves or
// frees what a thread of the host is reading.
package cpu

import "unsafe"

// Type is the element type of a tensor.
type Type int32

const (
	F32  Type = 0
	F16  Type = 1
	BF16 Type = 2
	Q8_0 Type = 3
	Q4_0 Type = 4
)

// Bounds of the kernels.
const (
	MaxDim   = 256
	MaxHeads = 512
)

// Mode says what a call does with its rows.
type Mode int32

const (
	Full   Mode = 0 // attend to every visible token
	Select Mode = 1 // the same, and choose each sparse row's token set
	Sparse Mode = 2 // attend to each sparse row's token set only
)

// Policy ranks the candidates of a selection.
type Policy int32

const (
	Union Policy = 0
	Mass  Policy = 1
)

// Tensor is a view of a query, key, value or output; strides in bytes.
type Tensor struct {
	Data         unsafe.Pointer
	TokenStride  int64
	HeadStride   int64
	StreamStride int64
	Type         Type
}

// Row is one query token and what it sees.
type Row struct {
	Token      int32
	Stream     int32
	Visible    int32          // visible tokens
	Slots      unsafe.Pointer // *int32: visible slots in position order; nil: 0 .. Visible-1
	Mask       unsafe.Pointer // *uint16: additive f16 mask by slot; nil: zero for every visible token
	SinkTokens int32
	TopK       int32
	Recent     int32
	SetLen     int32          // size of the token set; 0: the row attends to everything
	Set        unsafe.Pointer // *int32: [SetLen] slots, ascending
}

// Timing is what a call adds up, in nanoseconds.
type Timing struct {
	AttendNS uint64
	SelectNS uint64
}

// Call is one layer's attention for a batch of rows.
type Call struct {
	Query, Key, Value, Output Tensor
	Heads, KVHeads            int32
	DimK, DimV                int32
	Scale, Softcap            float32
	Slopes                    unsafe.Pointer // *float32 [Heads], or nil
	Sinks                     unsafe.Pointer // *float32 [Heads], or nil
	Mode                      Mode
	Policy                    Policy
	Rows                      unsafe.Pointer // *Row [NRows]
	NRows                     int32
	Work                      unsafe.Pointer
	Timing                    unsafe.Pointer // *Timing, or nil
	Probe                     unsafe.Pointer // *Probe, or nil
	Table                     unsafe.Pointer // *int32 [stream][TableStride]: K's and V's pages, or nil
	TableStride               int64          // elements
	PageShift                 int32
}

// Probe is what a Select call measures besides, for one of its rows.
type Probe struct {
	Row       int32
	Count     int32          // other sets
	SetLen    int32          // positions in each of them
	SetStride int64          // from one to the next, in elements
	Sets      unsafe.Pointer // *int32
	Own       unsafe.Pointer // *int32: the call's own set goes here, as positions
	Kept      unsafe.Pointer // *float32 [Count+1][Heads]: share of each head's softmax on each set, or nil
}
