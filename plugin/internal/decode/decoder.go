package decode

import (
	"sync"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/backend/oncuda"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/stats"
)

// Decoder attends for rows that are decoded side by side, one query token each, layer by layer, for callers that hand over
// each layer's tensors. It holds the token sets of the current step, never keys or values. It belongs to one thread at a
// time; different ones may run in parallel.
type Decoder struct {
	engine *contexts.Engine
	layers int
	Params backend.Params
	on     backend.Backend

	mu        sync.Mutex
	published stats.Stats // for the engine's report, which may come from another thread
}

// NewDecoder makes a decoder on an engine, of a model with that many layers. workers are what the CPU's run on. The
// decoders of an engine share what is learned of the model.
func NewDecoder(engine *contexts.Engine, layers int, workers *oncpu.Workers, params backend.Params) (*Decoder, error) {
	d, err := Build(engine, layers, workers, params)
	if err == nil {
		engine.Started(d)
	}
	return d, err
}

// Build makes a decoder that the engine's report does not know.
func Build(engine *contexts.Engine, layers int, workers *oncpu.Workers, params backend.Params) (*Decoder, error) {
	if err := params.Check(); err != nil {
		return nil, err
	}
	var on backend.Backend
	var err error
	if params.Device == backend.CPU {
		on, err = oncpu.NewDecoder(engine, layers, workers, params)
	} else {
		on, err = oncuda.NewDecoder(engine, layers, nil, params)
	}
	return finish(engine, layers, params, on, err)
}

// BuildOf is Build on a GPU, for a model that others know, too.
func BuildOf(engine *contexts.Engine, model *selection.Model, params backend.Params) (*Decoder, error) {
	if err := params.Check(); err != nil {
		return nil, err
	}
	on, err := oncuda.NewDecoder(engine, model.Layers, model, params)
	return finish(engine, model.Layers, params, on, err)
}

func finish(engine *contexts.Engine, layers int, params backend.Params, on backend.Backend, err error) (*Decoder, error) {
	if err != nil {
		return nil, err
	}
	d := &Decoder{engine: engine, layers: layers, Params: params, on: on}
	d.on.Counted(&d.published)
	engine.Said.Flush()
	return d, nil
}

// WorkSize is the device memory that a decoder needs beside keys and values; 0 on the CPU.
func WorkSize(engine *contexts.Engine, layers int, params backend.Params) (uint64, error) {
	if err := params.Check(); err != nil || params.Device == backend.CPU {
		return 0, err
	}
	return oncuda.WorkSize(engine, layers, params)
}

// check tells what is wrong with a call as far as every call is looked at, and fills in what it leaves out.
func (d *Decoder) check(a *backend.Attention) error {
	if err := a.CheckNumbers(d.layers, d.Params.MaxRows); err != nil {
		return err
	}
	if err := d.Params.Complete(a); err != nil {
		return err
	}
	return d.on.Check(a)
}

// Check tells whether Attend would take one layer of a step.
func (d *Decoder) Check(a *backend.Attention) error {
	if err := d.check(a); err != nil {
		return err
	}
	return d.on.Accepts(a)
}

// Attend computes one layer of a step (lim_decoder_attend in the public header says how). Arguments that were left out are
// filled in. A call that is refused leaves the step as it was.
func (d *Decoder) Attend(a *backend.Attention) error {
	if err := d.check(a); err != nil {
		return err
	}
	lost, err := d.on.Attend(a)
	if lost {
		d.on.Reset()
	}
	if err != nil {
		return err
	}
	if d.Params.Device == backend.CPU {
		d.mu.Lock()
		d.on.Counted(&d.published)
		d.mu.Unlock()
	}
	d.engine.Said.Flush()
	return nil
}

// Reset forgets the current step: the next call starts a new one.
func (d *Decoder) Reset() { d.on.Reset() }

// Follow is for the layers of a later one of the devices that a model is spread over, see oncuda.
func (d *Decoder) Follow(handed bool) { d.on.(*oncuda.Decoder).Follow(handed) }

// Sets is where the token sets of rows are on a GPU.
func (d *Decoder) Sets() cuda.Sets { return d.on.(*oncuda.Decoder).Sets() }

// Chosen tells whether the current step has token sets, as far as it has come.
func (d *Decoder) Chosen() bool { return d.on.Progress().Chosen }

// Sparse tells whether a layer of the current step has attended to token sets.
func (d *Decoder) Sparse() bool { return d.on.Progress().Did.Sparse > 0 }

// Poll is for a host that replays captured steps, before each step (lim_decoder_poll in the public header).
func (d *Decoder) Poll() (generation uint64, eager bool, err error) {
	defer d.engine.Said.Flush()
	return d.on.Poll()
}

// TokenSet is a row's token set, ascending; empty if none was chosen, or if the row saw no more tokens than the budget. On
// the CPU: slots, of the current step; on a GPU: positions, of the last finished one, and it waits for the device.
func (d *Decoder) TokenSet(row int) ([]int32, error) {
	if row < 0 || row >= int(d.Params.MaxRows) {
		return nil, fault.Bad("row = %d is not in 0 .. %d", row, d.Params.MaxRows-1)
	}
	return d.on.TokenSet(row)
}

// Read is what the decoder has counted, once all that was queued on its device is done.
func (d *Decoder) Read() (stats.Stats, error) {
	var s stats.Stats
	if err := d.on.Read(&s); err != nil {
		return s, err
	}
	d.mu.Lock()
	d.published = s
	d.mu.Unlock()
	d.on.Found(&s)
	return s, nil
}

// Stats is what was last read: another thread may ask, while a stream is being captured.
func (d *Decoder) Stats() stats.Stats {
	d.mu.Lock()
	s := d.published
	d.mu.Unlock()
	d.on.Found(&s)
	return s
}

// Free ends the decoder; the engine keeps its counts. It waits for the device.
func (d *Decoder) Free() {
	d.on.Reset()
	_, _ = d.Read() // what cannot be read stays as last read
	d.engine.Finished(d)
	d.Close()
}

// Close ends a decoder that the engine's report does not know.
func (d *Decoder) Close() { d.on.Free() }
