package oncpu

import (
	"slices"
	"unsafe"

	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// cpuProbes is a calibrator that drives the CPU's kernels: what each row sees is known when a step begins, and its results
// are read when the next one does, for by then the host's threads are done with it.
type Probes struct {
	calibrate.Calibrator

	Waiting bool // a step's results have not been read
	misfit  int  // heads of a layer that has another number of them than the first one; 0: none
	budget  int  // of the measured or audited row's set

	Probes []cpu.Probe
	kept   []float32 // by rank, blocks of (rank+1)*heads; below zero where nothing was written
	sets   []int32   // by rank, budget positions
	rows   []cpu.Row // of the audited layer
	where  []int32   // scratch of place

	probeMemory, keptMemory, setMemory, rowMemory cpu.Arena
}

func NewProbes(m *selection.Model) *Probes {
	p := new(Probes)
	p.Init(m)
	return p
}

// Groups is how many token sets a row of a step has.
func (p *Probes) Groups() int {
	if p.Interval <= 1 {
		return 1
	}
	return max(len(p.Roles.Selections()), 1)
}

// Begin decides what a step is for, whose rows are known. heads is the number of its first layer's. What may go on with
// the sets of the step before does: sees tells whether a row sees a slot, own is its own token's.
// twice tells whether the step can be computed twice, as far as that is known.
func (p *Probes) Begin(st *steps.RowSets, heads int, twice bool, counts *stats.Stats, sees func(row int, slot int32) bool, own func(row int) int32) {
	p.Settle()
	p.Steps++
	if !twice && p.idle() {
		st.Dense()
	}
	p.Seen = p.Seen[:0]
	for i := range st.Rows {
		if r := &st.Rows[i]; r.SetLen > 0 {
			p.Seen = append(p.Seen, r.Visible)
		} else { // whatever it sees, it attends to all of it
			p.Seen = append(p.Seen, 0)
		}
	}
	p.Calibrator.Begin(calibrate.Opening{Rows: len(st.Rows), Heads: heads, Sparse: st.Sparse(), Current: true, Probes: true, Twice: twice})
	p.Keep()
	if p.Kind == calibrate.StepMeasure {
		p.measure(st)
	}
	switch p.Kind {
	case calibrate.StepTrial:
		counts.TrialSteps++
	case calibrate.StepDense:
		counts.DenseSteps++
		st.Dense()
	case calibrate.StepMeasure:
		counts.MeasuredSteps++
	case calibrate.StepAblate:
		counts.Ablations++
	}
	if (p.Kind == calibrate.StepPlain || p.Kind == calibrate.StepAudit) && p.idle() {
		st.Dense()
		p.Kind = calibrate.StepPlain
	}
	if budget, config := p.Budget(), &p.Model.Config; budget < config.Budget && p.Kind != calibrate.StepMeasure {
		st.Narrow(budget, config.Recency, config.SinkTokens)
	}
	if p.lasts(st) && st.Lasting.Resume(st, sees, own) {
		counts.ReusedSteps++
	}
	if st.Groups > 1 {
		st.Spread()
	}
	if p.Kind == calibrate.StepAudit {
		p.audit(st)
	}
}

// idle tells whether no layer reads a set by what is in force.
func (p *Probes) idle() bool {
	return p.Source != selection.SourceNone && !p.ReadsSets() && p.Model.Ablation.Load() == nil
}

// lasts tells whether a step, which has begun, may go on with the sets of the one before.
func (p *Probes) lasts(st *steps.RowSets) bool {
	if p.Interval <= 1 || p.Kind == calibrate.StepDense || p.Kind == calibrate.StepMeasure || p.Kind == calibrate.StepAblate || p.Kind == calibrate.StepTrial || p.Groups() != st.Groups {
		st.Lasting.Interval = p.Interval
		st.Lasting.Drop()
		return false
	}
	return true
}

// block is where the measured shares of a rank begin.
func block(rank, heads int) int { return rank * (rank + 1) / 2 * heads }

// measure prepares a measured step; a dense one, where there is no memory for it.
func (p *Probes) measure(st *steps.RowSets) {
	m, t := p.Model, p.Target
	m.Mu.Lock()
	if m.Sums == nil {
		m.Sums = selection.NewSums(m.Layers, m.Heads)
	}
	// From 8 budgets on is said by the steps that end a measurement, not by those that began it.
	m.Sums.Reach = t.Reach
	p.Compare(m.Sums.Begun)
	m.Sums.Begun++
	m.Mu.Unlock()
	p.Row, p.Tokens, p.budget = t.Row, t.Tokens, t.Budget
	layers, heads := len(p.Layers), m.Heads
	if p.Kind = calibrate.StepDense; p.budget < 1 || !p.allocate(layers, block(layers, heads), layers*p.budget) {
		return
	}
	p.Kind = calibrate.StepMeasure
	for i := range p.kept {
		p.kept[i] = -1
	}
	clear(p.sets) // a layer that the host leaves out must not leave an older step's positions
	st.Dense()
	split := steps.SplitBudget(p.Tokens, p.budget, m.Config.Recency, m.Config.SinkTokens)
	r := &st.Rows[p.Row]
	r.SinkTokens, r.TopK, r.Recent, r.SetLen = int32(split.SinkTokens), int32(split.TopK), int32(split.Recent), int32(split.Len())
	r.Set = st.Set(p.Row)
	for j := range p.Probes {
		p.Probes[j] = cpu.Probe{
			Row: int32(p.Row), Count: int32(j), SetLen: int32(p.budget), SetStride: int64(p.budget),
			Sets: unsafe.Pointer(&p.sets[0]), Own: unsafe.Pointer(&p.sets[j*p.budget]),
			Kept: unsafe.Pointer(&p.kept[block(j, heads)]),
		}
	}
	p.Waiting = true
}

// allocate gets memory for probes, shares and positions of sets.
func (p *Probes) allocate(probes, shares, positions int) bool {
	p.Probes = cpu.Slice[cpu.Probe](&p.probeMemory, probes)
	p.kept = cpu.Slice[float32](&p.keptMemory, shares)
	p.sets = cpu.Slice[int32](&p.setMemory, positions)
	return p.Probes != nil && p.kept != nil && p.sets != nil
}

// audit prepares an audited step; a plain one, where there is no memory for it. The layer's rows are copies,
// so that its own best set does not take the place of the one that the layers after it attend to.
func (p *Probes) audit(st *steps.RowSets) {
	if p.PickLayer(st.Resumed); p.Kind != calibrate.StepAudit {
		return
	}
	heads, row := p.Model.Heads, &st.Rows[p.Row]
	length := int(row.SetLen)
	p.budget = int(row.SinkTokens + row.TopK + row.Recent)
	p.rows = cpu.Slice[cpu.Row](&p.rowMemory, len(st.Rows))
	if p.Kind = calibrate.StepPlain; !p.allocate(2, 2*heads, length+2*p.budget) || p.rows == nil {
		return
	}
	p.kept[0] = -1
	copy(p.rows, st.Rows)
	for i := range p.rows {
		if i != p.Row {
			p.rows[i].SetLen = 0
		}
	}
	used, own, slots := &p.sets[0], &p.sets[length], &p.sets[length+p.budget]
	p.rows[p.Row].Set, p.rows[p.Row].SetLen = unsafe.Pointer(slots), int32(p.budget)
	// Where the step goes on with older sets, the layer's is there already.
	if st.Resumed && !p.Place(p.sets[:length], st.Group(p.Roles.Group(p.Layer))[p.Row].Set, row) {
		return
	}
	p.Kind = calibrate.StepAudit
	p.Probes[0] = cpu.Probe{
		Row: int32(p.Row), Count: 1, SetLen: int32(length), SetStride: int64(length),
		Sets: unsafe.Pointer(used), Own: unsafe.Pointer(own), Kept: unsafe.Pointer(&p.kept[0]),
	}
	p.Probes[1] = cpu.Probe{Row: int32(p.Row), Own: unsafe.Pointer(used)}
}

// copies are the rows of an audited step that are copies of the step's.
func (p *Probes) copies() []cpu.Row {
	if p.Kind != calibrate.StepAudit {
		return nil
	}
	return p.rows
}

// Place turns a set of slots into positions of the row's visible tokens; false: some slot is none of them.
func (p *Probes) Place(positions []int32, set unsafe.Pointer, row *cpu.Row) bool {
	slots := unsafe.Slice((*int32)(set), len(positions))
	if row.Slots == nil {
		copy(positions, slots)
		return true
	}
	visible := unsafe.Slice((*int32)(row.Slots), row.Visible)
	last := slices.Max(visible)
	p.where = slices.Grow(p.where[:0], int(last)+1)[:last+1]
	for i := range p.where {
		p.where[i] = -1
	}
	for i, slot := range visible {
		p.where[slot] = int32(i)
	}
	for i, slot := range slots {
		if slot < 0 || slot > last || p.where[slot] < 0 {
			return false
		}
		positions[i] = p.where[slot]
	}
	return true
}

// Rows are those of the step with the sets that a layer chooses or uses: where sets last, each selection layer has its own.
func (p *Probes) Rows(st *steps.RowSets, layer int) []cpu.Row {
	if p.Kind == calibrate.StepPlain || p.Kind == calibrate.StepAudit {
		return st.Group(p.Roles.Group(layer))
	}
	return st.Rows
}

// Direct states how a layer attends: mode, rows and probe of its call.
func (p *Probes) Direct(st *steps.RowSets, layer int, call *cpu.Call) {
	mode := p.Mode(&st.Step, layer, st.Sparse())
	rows := p.Rows(st, layer)
	if mode == steps.Select {
		st.Lasting.Chose++
		steps.Unwritten(rows)
	}
	call.Mode, call.Rows, call.NRows, call.Probe = cpu.Mode(mode), unsafe.Pointer(&rows[0]), int32(len(rows)), nil
	switch p.Kind {
	case calibrate.StepMeasure:
		if int(call.Heads) != p.Model.Heads {
			p.misfit = int(call.Heads)
			return
		}
		if rank := slices.Index(p.Layers, layer); rank >= 0 {
			call.Mode, call.Probe = cpu.Select, unsafe.Pointer(&p.Probes[rank])
		}
	case calibrate.StepAblate:
		st.Lasting.Drop()
	case calibrate.StepAudit:
		switch {
		case layer == p.Layer && mode == steps.Sparse && int(call.Heads) == p.Model.Heads:
			call.Mode, call.Rows, call.Probe = cpu.Select, unsafe.Pointer(&p.rows[0]), unsafe.Pointer(&p.Probes[0])
			p.Waiting = true
		case mode == steps.Select && layer < p.Layer:
			call.Probe = unsafe.Pointer(&p.Probes[1])
		}
	}
}

// Settle reads what the last step brought, if it was measured or audited.
func (p *Probes) Settle() {
	if !p.Waiting {
		return
	}
	p.Waiting = false
	m := p.Model
	var save *selection.Profile
	m.Mu.Lock()
	switch {
	case m.Fixed && p.Kind == calibrate.StepMeasure:
	case p.misfit != 0:
		m.Suits(p.misfit)
	case p.Kind == calibrate.StepMeasure:
		save = p.settleMeasure()
	case p.Kind == calibrate.StepAudit && p.kept[0] >= 0 && m.Revision == p.Revision && !m.Again:
		p.Judge(p.Layer, p.Tokens, p.kept)
	}
	m.Mu.Unlock()
	if save != nil {
		m.File.Save(save, p.Log)
	}
}

func (p *Probes) settleMeasure() *selection.Profile {
	m := p.Model
	if m.Sums == nil { // another context ended the measurement
		return nil
	}
	heads, any := m.Heads, false
	seen := func(j int) bool { return p.kept[block(j, heads)] >= 0 }
	for j := range p.Layers {
		if seen(j) {
			m.Sums.Add(p.Layers, j, heads, p.kept[block(j, heads):block(j+1, heads)], seen)
			any = true
		}
	}
	if !any {
		return nil
	}
	if m.Sums.Steps++; m.Sums.Steps < selection.MeasuredSteps(m.Layers) {
		return nil
	}
	profile := p.Finish(p.Tokens, p.budget)
	p.Free() // what an audit needs is far less
	return profile
}

// forget drops a step whose results will not come.
func (p *Probes) forget() { p.Waiting = false }

func (p *Probes) Free() {
	p.probeMemory.Free()
	p.keptMemory.Free()
	p.setMemory.Free()
	p.rowMemory.Free()
}

// Record keeps the step that has ended: its sets are complete, and still there.
func (p *Probes) Record(st *steps.RowSets) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	t := &p.Traced
	if p.Recorded == p.Steps || len(st.Rows) == 0 { // it was, or there is none
		return
	}
	p.Recorded = p.Steps
	if !t.Steps.Wants() {
		return
	}
	row := &st.Rows[0]
	s := stats.TraceStep{Step: p.Steps, Tokens: int(row.Visible), What: "dense", Layer: -1}
	switch {
	case p.Kind == calibrate.StepMeasure:
		s.What = "measured"
	case p.Kind == calibrate.StepAblate:
		s.What = "ablation"
	case p.Kind != calibrate.StepDense && st.Chosen && row.SetLen > 0:
		s.What = "sparse"
		s.Layer = p.Roles.Selections()[p.Roles.Group(st.Layer)]
		row = &st.Group(p.Roles.Group(st.Layer))[0]
		s.Positions = make([]int32, row.SetLen)
		if !p.Place(s.Positions, row.Set, row) { // the host never computed it
			return
		}
		slices.Sort(s.Positions)
	}
	t.Steps.Of = append(t.Steps.Of, s)
	t.Numbers += len(s.Positions)
	for len(t.Steps.Of) > p.Model.Config.Trace || t.Numbers > calibrate.MostTraced && len(t.Steps.Of) > 1 {
		t.Steps.Thin()
		t.Numbers = 0
		for i := range t.Steps.Of {
			t.Numbers += len(t.Steps.Of[i].Positions)
		}
	}
}
