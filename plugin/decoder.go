package plugin

import (
	"slices"
	"sync"
)

// CPU is the device number of decoders that attend on the CPU; the others are GPUs.
const (
	CPU        = int32(-1)
	MaxOrdinal = 1 << 10
)

// DecoderParams is what a decoder is made for (lim_decoder_params in the public header). On the CPU numbers of heads and
// elements that are 0 are each call's own.
type DecoderParams struct {
	Device           int32 // CPU, or a GPU's number
	MaxRows          int32
	Capacity         int32 // no row will see more tokens
	Heads, KVHeads   int32
	KeyDim, ValueDim int32
	KVType           int32  // on a GPU
	Work             uint64 // on a GPU: device memory of WorkSize zeros; 0: the decoder has its own
	WorkSize         uint64
}

// Decoder attends for rows that are decoded side by side, one query token each, layer by layer, for callers that hand over
// each layer's tensors. It holds the token sets of the current step, never keys or values. It belongs to one thread at a
// time; different ones may run in parallel.
type Decoder struct {
	engine *Engine
	layers int
	params DecoderParams
	on     backend

	mu        sync.Mutex
	published Stats // for the engine's report, which may come from another thread
}

// backend is the engine that a decoder attends on.
type backend interface {
	// check names what the engine does not take of a call whose numbers are right. It is made for every call.
	check(a *Attention) error
	// accepts names what the engine's kernels cannot take. attend does so, too.
	accepts(a *Attention) error
	// attend computes a layer, or queues it. lost: some of it may have been done, or be under way.
	attend(a *Attention) (lost bool, err error)
	// reset forgets the step.
	reset()
	// progress is the step's.
	progress() *step
	// tokenSet is the token set of a row; it may wait for the device.
	tokenSet(row int) ([]int32, error)
	// counted is what was counted, as far as that is known without waiting.
	counted(to *Stats)
	// read brings what was counted, once all that was queued is done.
	read(to *Stats) error
	// poll tells the number of the roles in force, and whether something is to be found out in the coming step.
	poll() (generation uint64, eager bool, err error)
	// found adds what the calibrator knows.
	found(*Stats)
	free()
}

// NewDecoder makes a decoder on an engine, of a model with that many layers. workers are what the CPU's run on. The
// decoders of an engine share what is learned of the model.
func NewDecoder(engine *Engine, layers int, workers *Workers, params DecoderParams) (*Decoder, error) {
	d, err := newDecoder(engine, layers, workers, params)
	if err == nil {
		engine.started(d)
	}
	return d, err
}

// newDecoder makes a decoder that the engine's report does not know.
func newDecoder(engine *Engine, layers int, workers *Workers, params DecoderParams) (*Decoder, error) {
	if err := params.check(); err != nil {
		return nil, err
	}
	d := &Decoder{engine: engine, layers: layers, params: params}
	var err error
	if params.Device == CPU {
		d.on, err = newCPUDecoder(engine, layers, workers, params)
	} else {
		d.on, err = newCUDADecoder(engine, layers, params)
	}
	if err != nil {
		return nil, err
	}
	d.on.counted(&d.published)
	engine.said.flush()
	return d, nil
}

// WorkSize is the device memory that a decoder needs beside keys and values; 0 on the CPU.
func WorkSize(engine *Engine, layers int, params DecoderParams) (uint64, error) {
	if err := params.check(); err != nil || params.Device == CPU {
		return 0, err
	}
	return cudaWorkSize(engine, layers, params)
}

// check names the first wrong parameter, and fills in what is left out.
func (p *DecoderParams) check() error {
	if p.ValueDim == 0 {
		p.ValueDim = p.KeyDim
	}
	switch {
	case p.Device < CPU || p.Device >= MaxOrdinal:
		return bad("device = %d is not in -1 (the CPU) .. %d", p.Device, MaxOrdinal-1)
	case p.MaxRows < 1 || p.MaxRows > MaxRows:
		return bad("max_rows = %d is not in 1 .. %d", p.MaxRows, MaxRows)
	case p.Capacity < 0 || p.Capacity > MaxSlots || p.Capacity == 0 && p.Device != CPU:
		return bad("capacity = %d is not in 1 .. %d", p.Capacity, MaxSlots)
	case p.Heads != 0 || p.KVHeads != 0 || p.Device != CPU:
		return checkHeads(p.Heads, p.KVHeads)
	}
	return nil
}

// complete takes what a call leaves out from the parameters, and names what differs from them.
func (p *DecoderParams) complete(a *Attention) error {
	for _, x := range [...]struct {
		name  string
		value *int32
		made  int32
	}{{"heads", &a.Heads, p.Heads}, {"kv_heads", &a.KVHeads, p.KVHeads}, {"head_dim", &a.KeyDim, p.KeyDim}, {"value_dim", &a.ValueDim, p.ValueDim}} {
		switch {
		case *x.value == 0:
			*x.value = x.made
		case x.made != 0 && *x.value != x.made:
			return bad("%s = %d, but the decoder was made for %d", x.name, *x.value, x.made)
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
		return bad("n_slots = %d is not in 1 .. %d", a.Slots, most)
	}
	return nil
}

// check tells what is wrong with a call as far as every call is looked at, and fills in what it leaves out.
func (d *Decoder) check(a *Attention) error {
	if err := a.checkNumbers(d.layers, d.params.MaxRows); err != nil {
		return err
	}
	if err := d.params.complete(a); err != nil {
		return err
	}
	return d.on.check(a)
}

// Check tells whether Attend would take one layer of a step.
func (d *Decoder) Check(a *Attention) error {
	if err := d.check(a); err != nil {
		return err
	}
	return d.on.accepts(a)
}

// Attend computes one layer of a step (lim_decoder_attend in the public header says how). Arguments that were left out are
// filled in. A call that is refused leaves the step as it was.
func (d *Decoder) Attend(a *Attention) error {
	if err := d.check(a); err != nil {
		return err
	}
	lost, err := d.on.attend(a)
	if lost {
		d.on.reset()
	}
	if err != nil {
		return err
	}
	if d.params.Device == CPU {
		d.mu.Lock()
		d.on.counted(&d.published)
		d.mu.Unlock()
	}
	d.engine.said.flush()
	return nil
}

// Reset forgets the current step: the next call starts a new one.
func (d *Decoder) Reset() { d.on.reset() }

// Sparse tells whether a layer of the current step has attended to token sets.
func (d *Decoder) Sparse() bool { return d.on.progress().did.sparse > 0 }

// Poll is for a host that replays captured steps, before each step (lim_decoder_poll in the public header).
func (d *Decoder) Poll() (generation uint64, eager bool, err error) {
	defer d.engine.said.flush()
	return d.on.poll()
}

// TokenSet is a row's token set, ascending; empty if none was chosen, or if the row saw no more tokens than the budget. On
// the CPU: slots, of the current step; on a GPU: positions, of the last finished one, and it waits for the device.
func (d *Decoder) TokenSet(row int) ([]int32, error) {
	if row < 0 || row >= int(d.params.MaxRows) {
		return nil, bad("row = %d is not in 0 .. %d", row, d.params.MaxRows-1)
	}
	return d.on.tokenSet(row)
}

// Read is what the decoder has counted, once all that was queued on its device is done.
func (d *Decoder) Read() (Stats, error) {
	var s Stats
	if err := d.on.read(&s); err != nil {
		return s, err
	}
	d.mu.Lock()
	d.published = s
	d.mu.Unlock()
	d.on.found(&s)
	return s, nil
}

// stats is what was last read: another thread may ask, while a stream is being captured.
func (d *Decoder) stats() Stats {
	d.mu.Lock()
	s := d.published
	d.mu.Unlock()
	d.on.found(&s)
	return s
}

// Free ends the decoder; the engine keeps its counts. It waits for the device.
func (d *Decoder) Free() {
	d.on.reset()
	_, _ = d.Read() // what cannot be read stays as last read
	d.engine.finished(d)
	d.on.free()
}

// Total is the sum over all decoders and sessions of the engine, ended ones included.
func (e *Engine) Total() Stats {
	r := e.Report()
	var total Stats
	for i := range r.Contexts {
		total.add(&r.Contexts[i])
	}
	total.SelectionLayers = slices.Clone(total.SelectionLayers)
	return total
}
