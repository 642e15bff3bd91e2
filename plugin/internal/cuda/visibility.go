package cuda

// Visibility is the masks of rows of a batch in device memory, and where their lengths and slots go, field by field
// lim_cuda_visible (kernels/cuda/visible.h).
type Visibility struct {
	Mask                      uint64 // f16 [streams][Tokens][NSlots]
	TokenStride, StreamStride int64  // of the mask, in bytes
	Lengths                   uint64 // int32 [NRows]
	Table                     uint64 // int32 [NRows][TableStride]
	TableStride               int64
	Odd                       uint64 // uint32
	NRows                     int32
	NSlots                    int32 // a multiple of VisibilityStep
	SlotsApart                int32 // from the first slot of a stream to the next one's
	Tokens                    int32 // rows of the batch to a stream
	First                     int32 // the batch's row that is the first of these
	_                         int32
}

// Recordings is how many a bridge holds, by numbers from 0.
const Recordings = 4

// What the masks' addresses, strides and lengths are multiples of.
const (
	VisibilityAlign = 16 // bytes
	VisibilityStep  = 8  // slots
)
