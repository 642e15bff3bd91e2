package cuda

// Probe is what a Select call measures besides, for one of its rows, field by field lim_cuda_probe
// (kernels/cuda/probe.h).
type Probe struct {
	Own       uint64 // int32 [min(n, the call's Budget)]: the row's own set, written
	Sets      uint64 // int32 [NSets][SetStride]: positions
	SetStride int64
	Stamps    uint64 // uint32 [NSets+1], or 0: every set takes part
	Kept      uint64 // float32 [NSets+1][Heads], or 0
	Count     uint64 // uint32 [NSets], or 0: nothing is added up
	Sum       uint64 // float32 [NSets][Heads]
	Square    uint64 // float32 [NSets][Heads]
	Row       int32
	NSets     int32
	SetBudget int32 // a set holds min(n, SetBudget) positions
	Least     int32 // a row that sees fewer tokens takes no part, nor does one with no more than the call's Budget
	Stamp     uint32
	_         int32
}
