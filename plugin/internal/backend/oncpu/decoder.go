package oncpu

import (
	"math"
	"math/bits"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// cpuDecoder attends on the CPU, with threads of the library's own.
//
// Two visibilities of each row take turns: a call that is refused must leave the step as it was.
type Decoder struct {
	engine  *contexts.Engine
	Cal     *Probes
	workers *Workers

	step      steps.RowSets
	positions []int64  // of the rows' query tokens in the current step; none: there is no step
	sequences []uint64 // which texts the rows were of in the last step; none: nobody said
	seen      []steps.Visibility
	next      []steps.Visibility

	Call    *cpu.Call
	memory  cpu.Arena // of call
	work    cpu.Arena
	timings steps.Timings
	Counts  stats.Stats
}

func NewDecoder(engine *contexts.Engine, layers int, workers *Workers, params backend.Params) (*Decoder, error) {
	if params.Work != 0 || params.WorkSize != 0 {
		return nil, fault.Bad("work = %#x with work_size = %d: a decoder on the CPU needs none", params.Work, params.WorkSize)
	}
	m, err := engine.Model(selection.Identity{Layers: layers, Weights: engine.About}, engine.Said.Add)
	if err != nil {
		return nil, err
	}
	if err := m.Promised(); err != nil {
		return nil, fault.Bad("%v", err)
	}
	rows := int(params.MaxRows)
	d := &Decoder{
		engine: engine, Cal: NewProbes(m), workers: workers,
		positions: make([]int64, 0, rows), sequences: make([]uint64, 0, rows), seen: make([]steps.Visibility, rows), next: make([]steps.Visibility, rows),
	}
	calls := cpu.Slice[cpu.Call](&d.memory, 1)
	if calls == nil || d.timings.Of(cpu.Full) == nil {
		d.Free()
		return nil, &fault.Error{Kind: fault.NoMemory, Text: "no memory for a decoder"}
	}
	d.Call = &calls[0]
	d.step.Lasting.Interval = engine.Settings.Interval
	d.Reset()
	return d, nil
}

// Check names the first argument that the CPU's kernels cannot take.
func (d *Decoder) Check(a *backend.Attention) error {
	if err := a.CheckShape(); err != nil {
		return err
	}
	switch {
	case a.Key.Type == backend.FP8:
		return fault.NotSupported("key_dtype = %d (fp8) is for GPUs only", backend.FP8)
	case a.Value.Type == backend.FP8:
		return fault.NotSupported("value_dtype = %d (fp8) is for GPUs only", backend.FP8)
	case a.Stream != 0:
		return fault.NotSupported("stream = %#x is for GPUs only", a.Stream)
	case backend.OrOne(a.KeyScale) != 1:
		return fault.NotSupported("key_scale = %v is for GPUs only", a.KeyScale)
	case backend.OrOne(a.ValueScale) != 1:
		return fault.NotSupported("value_scale = %v is for GPUs only", a.ValueScale)
	}
	if a.Scale == 0 {
		a.Scale = float32(1 / math.Sqrt(float64(a.KeyDim)))
	}
	if err := a.CheckVisible(); err != nil {
		return err
	}
	if err := a.CheckTable(); err != nil {
		return err
	}
	v, err := a.CheckViews()
	switch {
	case err != nil:
		return err
	case v.Output.Overlaps(v.Key):
		return fault.Bad("output = %#x overlaps key = %#x", a.Output.Data, a.Key.Data)
	case v.Output.Overlaps(v.Value):
		return fault.Bad("output = %#x overlaps value = %#x", a.Output.Data, a.Value.Data)
	}
	return nil
}

// Accepts: check has named it.
func (d *Decoder) Accepts(*backend.Attention) error { return nil }

func (d *Decoder) Progress() *steps.Step { return &d.step.Step }

// Attend computes a layer.
func (d *Decoder) Attend(a *backend.Attention) (lost bool, err error) {
	layer := int(a.Layer)
	fresh := layer <= d.step.Layer || d.moved(a)
	// A step that was seen before may still be the same one: a layer computed again, or a token replaced.
	if fresh || !d.sees(a) {
		if lost, err = d.see(a); err != nil {
			return lost, err
		}
	}
	team := d.workers.borrow()
	if team == nil {
		return true, &fault.Error{Kind: fault.NoMemory, Text: "the system has no threads for the call"}
	}
	defer d.workers.giveBack(team)

	d.fill(a)
	d.Cal.Direct(&d.step, layer, d.Call)
	d.Call.Timing = unsafe.Pointer(d.timings.Of(d.Call.Mode))
	work := d.work.Bytes(cpu.WorkSize(d.Call, team.Size()))
	if work == nil {
		return true, &fault.Error{Kind: fault.NoMemory, Text: "no memory for the kernels' work"}
	}
	d.Call.Work = work
	team.Attend(d.Call)

	if fresh {
		d.positions = d.positions[:0]
		for row := range int(a.Rows) {
			d.positions = append(d.positions, a.QueryPosition(row))
		}
		d.sequences = append(d.sequences[:0], steps.At[uint64](a.Sequences, int(a.Rows))...)
		d.step.Began(&d.Counts, d.Cal.Kind == calibrate.StepMeasure)
		d.Counts.PositionOrder += uint64(a.Rows)
	}
	d.step.Planned(&d.Counts, layer, d.Cal.Role(layer), d.Call.Mode)
	return false, nil
}

// sameTexts tells whether the rows of a call are of the texts that they were of in the last step.
func (d *Decoder) sameTexts(a *backend.Attention) bool {
	return slices.Equal(d.sequences, steps.At[uint64](a.Sequences, int(a.Rows)))
}

// moved tells whether a call is for other query tokens than the step.
func (d *Decoder) moved(a *backend.Attention) bool {
	if len(d.positions) != int(a.Rows) || !d.sameTexts(a) {
		return true
	}
	for row, p := range d.positions {
		if p != a.QueryPosition(row) {
			return true
		}
	}
	return false
}

// sees tells whether the rows of a call see what those of the step do.
func (d *Decoder) sees(a *backend.Attention) bool {
	for row := range int(a.Rows) {
		if !d.seen[row].Same(a.Sees(row)) {
			return false
		}
	}
	return true
}

// see makes what a call sees the step's; the token sets end with it.
func (d *Decoder) see(a *backend.Attention) (lost bool, err error) {
	config, rows, most := &d.engine.Settings, int(a.Rows), 0
	for row := range rows {
		v := &d.next[row]
		if err := v.Look(a.Sees(row)); err != nil {
			return false, err
		}
		most = max(most, v.Visible)
	}
	d.trace()
	// The slots are the visibilities', so the step needs memory for the sets alone.
	if err := d.step.Begin(rows, min(most, config.Budget), config.Budget, d.Cal.Groups()); err != nil {
		return true, &fault.Error{Kind: fault.NoMemory, Text: "no memory for the token sets"}
	}
	if !d.sameTexts(a) { // a set of another text's keys is none
		d.step.Lasting.Drop()
	}
	d.seen, d.next = d.next, d.seen
	for row := range rows {
		v := &d.seen[row]
		var split steps.Split
		if v.Visible > config.Budget {
			split = steps.SplitBudget(v.Visible, config.Budget, config.Recency, config.SinkTokens)
		}
		d.step.See(row, 0, row, v.Visible, v.Slots, nil, split) // fill has the masks
	}
	d.Cal.Begin(&d.step, int(a.Heads), false, &d.Counts, func(row int, slot int32) bool {
		v, before := &d.seen[row], &d.next[row]
		return v.Holds(slot) && before.Holds(slot) && v.Position(slot) == before.Position(slot)
	}, func(row int) int32 { return d.seen[row].Newest() })
	return false, nil
}

// trace keeps the step that has ended, where its token sets are asked for.
func (d *Decoder) trace() {
	if d.engine.Settings.Trace > 0 {
		d.Cal.Record(&d.step)
	}
}

// fill states the call for the kernels.
func (d *Decoder) fill(a *backend.Attention) {
	c := d.Call
	fillRows(&c.Query, &a.Query, a)
	fillRows(&c.Output, &a.Output, a)
	fillStore(&c.Key, &a.Key, a)
	fillStore(&c.Value, &a.Value, a)
	c.Heads, c.KVHeads, c.DimK, c.DimV = a.Heads, a.KVHeads, a.KeyDim, a.ValueDim
	c.Scale, c.Softcap = a.Scale, a.Softcap
	point(&c.Slopes, a.Slopes)
	point(&c.Sinks, a.Sinks)
	point(&c.Table, a.Table)
	if c.TableStride = a.TableStride; a.Table != 0 {
		c.PageShift = int32(bits.TrailingZeros32(uint32(a.PageSize)))
	}
	c.Policy = cpu.Policy(d.engine.Settings.Policy)
	for _, rows := range [...][]cpu.Row{d.step.Rows, d.step.More, d.Cal.copies()} {
		for i := range rows {
			row := i % len(d.step.Rows)
			mask := a.MaskOf(row)
			if d.seen[row].Plain {
				mask = 0
			}
			point(&rows[i].Mask, mask)
		}
	}
}

// StrideOf is a stride, or 0 where it is never taken.
func StrideOf(stride, count int64) int64 {
	if count == 1 {
		return 0
	}
	return stride
}

func fillRows(t *cpu.Tensor, v *backend.RowView, a *backend.Attention) {
	point(&t.Data, v.Data)
	t.StreamStride, t.HeadStride, t.Type = StrideOf(v.RowStride, int64(a.Rows)), StrideOf(v.HeadStride, int64(a.Heads)), cpu.Type(v.Type)
}

func fillStore(t *cpu.Tensor, v *backend.KVView, a *backend.Attention) {
	point(&t.Data, v.Data)
	pages, slots := a.Stores()
	t.StreamStride, t.TokenStride = StrideOf(v.PageStride, pages), StrideOf(v.TokenStride, slots)
	t.HeadStride, t.Type = StrideOf(v.HeadStride, int64(a.KVHeads)), cpu.Type(v.Type)
}

// point stores a caller's address in C memory, as the number that it is to Go.
func point(p *unsafe.Pointer, address uintptr) { *(*uintptr)(unsafe.Pointer(p)) = address }

func (d *Decoder) Reset() {
	d.positions = d.positions[:0]
	d.trace()
	d.step.Chosen, d.step.Layer = false, -1
	d.step.Lasting.Drop()
	d.Cal.forget()
}

// TokenSet is the current step's, as slots; it is valid until the next call.
func (d *Decoder) TokenSet(row int) ([]int32, error) {
	if !d.step.Chosen || row >= len(d.step.Rows) || d.step.Rows[row].SetLen == 0 {
		return nil, nil
	}
	r := &d.Cal.Rows(&d.step, d.step.Layer)[row]
	return unsafe.Slice((*int32)(r.Set), r.SetLen), nil
}

func (d *Decoder) Counted(to *stats.Stats) {
	d.timings.Read(&d.Counts)
	*to = d.Counts
}

func (d *Decoder) Read(to *stats.Stats) error {
	d.Counted(to)
	return nil
}

// Poll: nothing of a step on the CPU can be captured.
func (d *Decoder) Poll() (generation uint64, eager bool, err error) {
	return d.Cal.Revision, false, nil
}

func (d *Decoder) Found(s *stats.Stats) { d.Cal.Report(s) }

func (d *Decoder) Free() {
	d.Cal.Free()
	d.step.Free()
	for row := range d.seen {
		d.seen[row].Free()
		d.next[row].Free()
	}
	d.memory.Free()
	d.work.Free()
	d.timings.Free()
}
