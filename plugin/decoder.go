package plugin

import "sync"

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

// NewDecoder makes a decoder on an engine, of a model with that many layers. workers are what the CPU's run on. The
// decoders of an engine share what is learned of the model.
func NewDecoder(engine *Engine, layers int, workers *Workers, params DecoderParams) (*Decoder, error) {
	d, err := build(engine, layers, workers, params)
	if err == nil {
		engine.started(d)
	}
	return d, err
}

// build makes a decoder that the engine's report does not know.
func build(engine *Engine, layers int, workers *Workers, params DecoderParams) (*Decoder, error) {
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

// Stats is what was last read: another thread may ask, while a stream is being captured.
func (d *Decoder) Stats() Stats {
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
	d.close()
}

// close ends a decoder that the engine's report does not know.
func (d *Decoder) close() { d.on.free() }
