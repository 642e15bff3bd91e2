package cuda

// Visibility is the masks of a batch's rows in device memory, and where their lengths and slots go, field by field
// lim_cuda_visible (kernels/cuda/visible.h).
type Visibility struct {
	Mask        uint64 // f16 [NRows][NSlots]
	MaskStride  int64  // bytes
	Lengths     uint64 // int32 [NRows]
	Table       uint64 // int32 [NRows][TableStride]
	TableStride int64
	Odd         uint64 // uint32
	NRows       int32
	NSlots      int32 // a multiple of VisibilityStep
	SlotsApart  int32 // from the first slot of a row's stream to the next row's
	_           int32
}

// Recordings is how many a bridge holds, by numbers from 0.
const Recordings = 4

// What the masks' addresses, strides and lengths are multiples of.
const (
	VisibilityAlign = 16 // bytes
	VisibilityStep  = 8  // slots
)
