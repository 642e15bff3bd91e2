package plugin

import (
	"math"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// cpuDecoder attends on the CPU, with threads of the library's own.
//
// Two visibilities of each row take turns: a call that is refused must leave the step as it was.
type cpuDecoder struct {
	engine  *Engine
	cal     *cpuProbes
	workers *Workers

	step      rowSets
	positions []int64 // of the rows' query tokens in the current step; none: there is no step
	seen      []visibility
	next      []visibility

	call    *cpu.Call
	memory  cpu.Arena // of call
	work    cpu.Arena
	timings timings
	counts  Stats
}

func newCPUDecoder(engine *Engine, layers int, workers *Workers, params DecoderParams) (*cpuDecoder, error) {
	if params.Work != 0 || params.WorkSize != 0 {
		return nil, bad("work = %#x with work_size = %d: a decoder on the CPU needs none", params.Work, params.WorkSize)
	}
	m, err := engine.model(identity{Layers: layers, Weights: engine.about}, engine.said.add)
	if err != nil {
		return nil, err
	}
	rows := int(params.MaxRows)
	d := &cpuDecoder{
		engine: engine, cal: newCPUProbes(m), workers: workers,
		positions: make([]int64, 0, rows), seen: make([]visibility, rows), next: make([]visibility, rows),
	}
	calls := cpu.Slice[cpu.Call](&d.memory, 1)
	if calls == nil || d.timings.of(cpu.Full) == nil {
		d.free()
		return nil, &Error{Kind: NoMemory, Text: "no memory for a decoder"}
	}
	d.call = &calls[0]
	d.step.lasting.interval = engine.settings.Interval
	d.reset()
	return d, nil
}

// check names the first argument that the CPU's kernels cannot take.
func (d *cpuDecoder) check(a *Attention) error {
	if err := a.checkShape(); err != nil {
		return err
	}
	switch {
	case a.Key.Type == FP8:
		return notSupported("key_dtype = %d (fp8) is for GPUs only", FP8)
	case a.Value.Type == FP8:
		return notSupported("value_dtype = %d (fp8) is for GPUs only", FP8)
	case a.Table != 0:
		return notSupported("table = %#x: pages are for GPUs only", a.Table)
	case a.Stream != 0:
		return notSupported("stream = %#x is for GPUs only", a.Stream)
	case orOne(a.KeyScale) != 1:
		return notSupported("key_scale = %v is for GPUs only", a.KeyScale)
	case orOne(a.ValueScale) != 1:
		return notSupported("value_scale = %v is for GPUs only", a.ValueScale)
	}
	if a.Scale == 0 {
		a.Scale = float32(1 / math.Sqrt(float64(a.KeyDim)))
	}
	v, err := a.checkViews()
	switch {
	case err != nil:
		return err
	case v.output.overlaps(v.key):
		return bad("output = %#x overlaps key = %#x", a.Output.Data, a.Key.Data)
	case v.output.overlaps(v.value):
		return bad("output = %#x overlaps value = %#x", a.Output.Data, a.Value.Data)
	}
	return a.checkVisible()
}

// accepts: check has named it.
func (d *cpuDecoder) accepts(*Attention) error { return nil }

func (d *cpuDecoder) progress() *step { return &d.step.step }

// attend computes a layer.
func (d *cpuDecoder) attend(a *Attention) (lost bool, err error) {
	layer := int(a.Layer)
	fresh := layer <= d.step.layer || d.moved(a)
	// A step that was seen before may still be the same one: a layer computed again, or a token replaced.
	if fresh || !d.sees(a) {
		if lost, err = d.see(a); err != nil {
			return lost, err
		}
	}
	team := d.workers.borrow()
	if team == nil {
		return true, &Error{Kind: NoMemory, Text: "the system has no threads for the call"}
	}
	defer d.workers.giveBack(team)

	d.fill(a)
	d.cal.direct(&d.step, layer, d.call)
	d.call.Timing = unsafe.Pointer(d.timings.of(d.call.Mode))
	work := d.work.Bytes(cpu.WorkSize(d.call, team.Size()))
	if work == nil {
		return true, &Error{Kind: NoMemory, Text: "no memory for the kernels' work"}
	}
	d.call.Work = work
	team.Attend(d.call)

	if fresh {
		d.positions = d.positions[:0]
		for row := range int(a.Rows) {
			d.positions = append(d.positions, a.queryPosition(row))
		}
		d.step.began(&d.counts, d.cal.kind == stepMeasure)
		d.counts.PositionOrder += uint64(a.Rows)
	}
	d.step.planned(&d.counts, layer, d.cal.role(layer), d.call.Mode)
	return false, nil
}

// moved tells whether a call is for other query tokens than the step.
func (d *cpuDecoder) moved(a *Attention) bool {
	if len(d.positions) != int(a.Rows) {
		return true
	}
	for row, p := range d.positions {
		if p != a.queryPosition(row) {
			return true
		}
	}
	return false
}

// sees tells whether the rows of a call see what those of the step do.
func (d *cpuDecoder) sees(a *Attention) bool {
	for row := range int(a.Rows) {
		if !d.seen[row].same(a.sees(row)) {
			return false
		}
	}
	return true
}

// see makes what a call sees the step's; the token sets end with it.
func (d *cpuDecoder) see(a *Attention) (lost bool, err error) {
	config, rows, most := &d.engine.settings, int(a.Rows), 0
	for row := range rows {
		v := &d.next[row]
		if err := v.look(a.sees(row)); err != nil {
			return false, err
		}
		most = max(most, v.visible)
	}
	d.trace()
	// The slots are the visibilities', so the step needs memory for the sets alone.
	if err := d.step.begin(rows, min(most, config.Budget), config.Budget, d.cal.groups()); err != nil {
		return true, &Error{Kind: NoMemory, Text: "no memory for the token sets"}
	}
	d.seen, d.next = d.next, d.seen
	for row := range rows {
		v := &d.seen[row]
		var split Split
		if v.visible > config.Budget {
			split = SplitBudget(v.visible, config.Budget, config.Recency, config.SinkTokens)
		}
		d.step.see(row, 0, row, v.visible, v.slots, nil, split) // fill has the masks
	}
	d.cal.begin(&d.step, int(a.Heads), &d.counts, func(row int, slot int32) bool {
		v, before := &d.seen[row], &d.next[row]
		return v.holds(slot) && before.holds(slot) && v.position(slot) == before.position(slot)
	}, func(row int) int32 { return d.seen[row].newest() })
	return false, nil
}

// trace keeps the step that has ended, where its token sets are asked for.
func (d *cpuDecoder) trace() {
	if d.engine.settings.Trace > 0 {
		d.cal.record(&d.step)
	}
}

// fill states the call for the kernels.
func (d *cpuDecoder) fill(a *Attention) {
	c := d.call
	fillRows(&c.Query, &a.Query, a)
	fillRows(&c.Output, &a.Output, a)
	fillStore(&c.Key, &a.Key, a)
	fillStore(&c.Value, &a.Value, a)
	c.Heads, c.KVHeads, c.DimK, c.DimV = a.Heads, a.KVHeads, a.KeyDim, a.ValueDim
	c.Scale, c.Softcap = a.Scale, a.Softcap
	point(&c.Slopes, a.Slopes)
	point(&c.Sinks, a.Sinks)
	c.Policy = cpu.Policy(d.engine.settings.Policy)
	for _, rows := range [...][]cpu.Row{d.step.rows, d.step.more, d.cal.copies()} {
		for i := range rows {
			row := i % len(d.step.rows)
			mask := a.maskOf(row)
			if d.seen[row].plain {
				mask = 0
			}
			point(&rows[i].Mask, mask)
		}
	}
}

// taken is a stride, or 0 where it is never taken.
func taken(stride, count int64) int64 {
	if count == 1 {
		return 0
	}
	return stride
}

func fillRows(t *cpu.Tensor, v *RowView, a *Attention) {
	point(&t.Data, v.Data)
	t.StreamStride, t.HeadStride, t.Type = taken(v.RowStride, int64(a.Rows)), taken(v.HeadStride, int64(a.Heads)), cpu.Type(v.Type)
}

func fillStore(t *cpu.Tensor, v *KVView, a *Attention) {
	point(&t.Data, v.Data)
	t.StreamStride, t.TokenStride = taken(v.PageStride, int64(a.Rows)), taken(v.TokenStride, a.Slots)
	t.HeadStride, t.Type = taken(v.HeadStride, int64(a.KVHeads)), cpu.Type(v.Type)
}

// point stores a caller's address in C memory, as the number that it is to Go.
func point(p *unsafe.Pointer, address uintptr) { *(*uintptr)(unsafe.Pointer(p)) = address }

func (d *cpuDecoder) reset() {
	d.positions = d.positions[:0]
	d.trace()
	d.step.chosen, d.step.layer = false, -1
	d.step.lasting.drop()
	d.cal.forget()
}

// tokenSet is the current step's, as slots; it is valid until the next call.
func (d *cpuDecoder) tokenSet(row int) ([]int32, error) {
	if !d.step.chosen || row >= len(d.step.rows) || d.step.rows[row].SetLen == 0 {
		return nil, nil
	}
	r := &d.step.group(d.cal.roles.Group(d.step.layer))[row]
	return unsafe.Slice((*int32)(r.Set), r.SetLen), nil
}

func (d *cpuDecoder) counted(to *Stats) {
	d.timings.read(&d.counts)
	*to = d.counts
}

func (d *cpuDecoder) read(to *Stats) error {
	d.counted(to)
	return nil
}

// poll: nothing of a step on the CPU can be captured.
func (d *cpuDecoder) poll() (generation uint64, eager bool, err error) {
	return d.cal.revision, false, nil
}

func (d *cpuDecoder) found(s *Stats) { d.cal.report(s) }

func (d *cpuDecoder) free() {
	d.cal.free()
	d.step.free()
	for row := range d.seen {
		d.seen[row].free()
		d.next[row].free()
	}
	d.memory.Free()
	d.work.Free()
	d.timings.free()
}
