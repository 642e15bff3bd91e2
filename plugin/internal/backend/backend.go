package backend

import (
	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// CPU is the device number of decoders that attend on the CPU; the others are GPUs.
const (
	CPU        = int32(-1)
	MaxOrdinal = 1 << 10
)

// DecoderParams is what a decoder is made for (lim_decoder_params in the public header). On the CPU numbers of heads and
// elements that are 0 are each call's own.
type Params struct {
	Device           int32 // CPU, or a GPU's number
	MaxRows          int32
	Capacity         int32 // no row will see more tokens
	Heads, KVHeads   int32
	KeyDim, ValueDim int32
	KVType           int32  // on a GPU
	KVTokens         int64  // on a GPU: that all rows above the budget will see together: more, and the step is dense; 0: no bound
	Work             uint64 // on a GPU: device memory of WorkSize zeros; 0: the decoder has its own
	WorkSize         uint64
	Stream           uintptr // on a GPU: that all calls come on; 0: on any
}

// Backend is the engine that a decoder attends on.
type Backend interface {
	// Check names what the engine does not take of a call whose numbers are right. It is made for every call.
	Check(a *Attention) error
	// Accepts names what the engine's kernels cannot take. attend does so, too.
	Accepts(a *Attention) error
	// Attend computes a layer, or queues it. lost: some of it may have been done, or be under way.
	Attend(a *Attention) (lost bool, err error)
	// Reset forgets the step.
	Reset()
	// Progress is the step's.
	Progress() *steps.Step
	// TokenSet is the token set of a row; it may wait for the device.
	TokenSet(row int) ([]int32, error)
	// Counted is what was counted, as far as that is known without waiting.
	Counted(to *stats.Stats)
	// Read brings what was counted, once all that was queued is done.
	Read(to *stats.Stats) error
	// Poll tells the number of the roles in force, and whether something is to be found out in the coming step.
	Poll() (generation uint64, eager bool, err error)
	// Found adds what the calibrator knows.
	Found(*stats.Stats)
	Free()
}

// Check names the first wrong parameter, and fills in what is left out.
func (p *Params) Check() error {
	if p.ValueDim == 0 {
		p.ValueDim = p.KeyDim
	}
	switch {
	case p.Device < CPU || p.Device >= MaxOrdinal:
		return fault.Bad("device = %d is not in -1 (the CPU) .. %d", p.Device, MaxOrdinal-1)
	case p.MaxRows < 1 || p.MaxRows > MaxRows:
		return fault.Bad("max_rows = %d is not in 1 .. %d", p.MaxRows, MaxRows)
	case p.Capacity < 0 || p.Capacity > MaxSlots || p.Capacity == 0 && p.Device != CPU:
		return fault.Bad("capacity = %d is not in 1 .. %d", p.Capacity, MaxSlots)
	case p.KVTokens != 0 && p.Device == CPU:
		return fault.NotSupported("kv_tokens = %d: a decoder on the CPU has no work memory for rows to share", p.KVTokens)
	case p.KVTokens < 0 || p.KVTokens > int64(p.MaxRows)*int64(p.Capacity):
		return fault.Bad("kv_tokens = %d is not in 0 .. %d, max_rows * capacity", p.KVTokens, int64(p.MaxRows)*int64(p.Capacity))
	case p.Heads != 0 || p.KVHeads != 0 || p.Device != CPU:
		return checkHeads(p.Heads, p.KVHeads)
	}
	return nil
}

// Complete takes what a call leaves out from the parameters, and names what differs from them.
func (p *Params) Complete(a *Attention) error {
	for _, x := range [...]struct {
		name  string
		value *int32
		made  int32
	}{{"heads", &a.Heads, p.Heads}, {"kv_heads", &a.KVHeads, p.KVHeads}, {"head_dim", &a.KeyDim, p.KeyDim}, {"value_dim", &a.ValueDim, p.ValueDim}} {
		switch {
		case *x.value == 0:
			*x.value = x.made
		case x.made != 0 && *x.value != x.made:
			return fault.Bad("%s = %d, but the decoder was made for %d", x.name, *x.value, x.made)
		}
	}
	if a.ValueDim == 0 {
		a.ValueDim = a.KeyDim
	}
	most := int64(p.Capacity)
	if most == 0 {
		most = MaxSlots
	} else if a.Slots == 0 {
		a.Slots = most
	}
	if a.Slots < 1 || a.Slots > most {
		return fault.Bad("n_slots = %d is not in 1 .. %d", a.Slots, most)
	}
	return nil
}
