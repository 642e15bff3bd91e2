package plugin

import (
	"slices"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// cpuProbes is a calibrator that drives the CPU's kernels: what each row sees is known when a step begins, and its results
// are read when the next one does, for by then the host's threads are done with it.
type cpuProbes struct {
	calibrator

	waiting bool // a step's results have not been read
	misfit  int  // heads of a layer that has another number of them than the first one; 0: none
	budget  int  // of the measured or audited row's set

	probes []cpu.Probe
	kept   []float32 // by rank, blocks of (rank+1)*heads; below zero where nothing was written
	sets   []int32   // by rank, budget positions
	rows   []cpu.Row // of the audited layer
	where  []int32   // scratch of place

	probeMemory, keptMemory, setMemory, rowMemory cpu.Arena
}

func newCPUProbes(m *model) *cpuProbes {
	p := new(cpuProbes)
	p.init(m)
	return p
}

// groups is how many token sets a row of a step has.
func (p *cpuProbes) groups() int {
	if p.interval <= 1 {
		return 1
	}
	return max(len(p.roles.Selections()), 1)
}

// begin decides what a step is for, whose rows are known. heads is the number of its first layer's. What may go on with
// the sets of the step before does: sees tells whether a row sees a slot, own is its own token's.
func (p *cpuProbes) begin(st *rowSets, heads int, counts *Stats, sees func(row int, slot int32) bool, own func(row int) int32) {
	p.settle()
	p.steps++
	if p.source != SourceNone && !p.roles.Sparse() && p.model.ablation.Load() == nil { // no set would be read
		st.dense()
	}
	p.seen = p.seen[:0]
	for i := range st.rows {
		if r := &st.rows[i]; r.SetLen > 0 {
			p.seen = append(p.seen, r.Visible)
		} else { // whatever it sees, it attends to all of it
			p.seen = append(p.seen, 0)
		}
	}
	p.calibrator.begin(opening{rows: len(st.rows), heads: heads, sparse: st.sparse(), current: true, probes: true})
	if p.kind == stepMeasure {
		p.measure(st)
	}
	switch p.kind {
	case stepDense:
		counts.DenseSteps++
		st.dense()
	case stepMeasure:
		counts.MeasuredSteps++
	case stepAblate:
		counts.Interventions++
	}
	if p.lasts(st) && st.lasting.resume(st, sees, own) {
		counts.ReusedSteps++
	}
	if st.groups > 1 {
		st.spread()
	}
	if p.kind == stepAudit {
		p.audit(st)
	}
}

// lasts tells whether a step, which has begun, may go on with the sets of the one before.
func (p *cpuProbes) lasts(st *rowSets) bool {
	if p.interval <= 1 || p.kind == stepDense || p.kind == stepMeasure || p.kind == stepAblate || p.groups() != st.groups {
		st.lasting.interval = p.interval
		st.lasting.drop()
		return false
	}
	return true
}

// block is where the measured shares of a rank begin.
func block(rank, heads int) int { return rank * (rank + 1) / 2 * heads }

// measure prepares a measured step; a dense one, where there is no memory for it.
func (p *cpuProbes) measure(st *rowSets) {
	m, t := p.model, p.target
	m.mu.Lock()
	if m.sums == nil {
		m.sums = newSums(m.layers, m.heads)
	}
	// From 8 budgets on is said by the steps that end a measurement, not by those that began it.
	m.sums.reach = t.reach
	p.compare(m.sums.begun)
	m.sums.begun++
	m.mu.Unlock()
	p.row, p.tokens, p.budget = t.row, t.tokens, t.budget
	layers, heads := len(p.layers), m.heads
	if p.kind = stepDense; p.budget < 1 || !p.allocate(layers, block(layers, heads), layers*p.budget) {
		return
	}
	p.kind = stepMeasure
	for i := range p.kept {
		p.kept[i] = -1
	}
	clear(p.sets) // a layer that the host leaves out must not leave an older step's positions
	st.dense()
	split := SplitBudget(p.tokens, p.budget, m.config.Recency, m.config.SinkTokens)
	r := &st.rows[p.row]
	r.Sinks, r.Mid, r.Recent, r.SetLen = int32(split.Sinks), int32(split.Mid), int32(split.Recent), int32(split.Len())
	r.Set = st.set(p.row)
	for j := range p.probes {
		p.probes[j] = cpu.Probe{
			Row: int32(p.row), Count: int32(j), SetLen: int32(p.budget), SetStride: int64(p.budget),
			Sets: unsafe.Pointer(&p.sets[0]), Own: unsafe.Pointer(&p.sets[j*p.budget]),
			Kept: unsafe.Pointer(&p.kept[block(j, heads)]),
		}
	}
	p.waiting = true
}

// allocate gets memory for probes, shares and positions of sets.
func (p *cpuProbes) allocate(probes, shares, positions int) bool {
	p.probes = cpu.Slice[cpu.Probe](&p.probeMemory, probes)
	p.kept = cpu.Slice[float32](&p.keptMemory, shares)
	p.sets = cpu.Slice[int32](&p.setMemory, positions)
	return p.probes != nil && p.kept != nil && p.sets != nil
}

// audit prepares an audited step; a plain one, where there is no memory for it. The layer's rows are copies,
// so that its own best set does not take the place of the one that the layers after it attend to.
func (p *cpuProbes) audit(st *rowSets) {
	if p.pickLayer(st.resumed); p.kind != stepAudit {
		return
	}
	heads, row := p.model.heads, &st.rows[p.row]
	length := int(row.SetLen)
	p.budget = int(row.Sinks + row.Mid + row.Recent)
	p.rows = cpu.Slice[cpu.Row](&p.rowMemory, len(st.rows))
	if p.kind = stepPlain; !p.allocate(2, 2*heads, length+2*p.budget) || p.rows == nil {
		return
	}
	p.kept[0] = -1
	copy(p.rows, st.rows)
	for i := range p.rows {
		if i != p.row {
			p.rows[i].SetLen = 0
		}
	}
	used, own, slots := &p.sets[0], &p.sets[length], &p.sets[length+p.budget]
	p.rows[p.row].Set, p.rows[p.row].SetLen = unsafe.Pointer(slots), int32(p.budget)
	// Where the step goes on with older sets, the layer's is there already.
	if st.resumed && !p.place(p.sets[:length], st.group(p.roles.Group(p.layer))[p.row].Set, row) {
		return
	}
	p.kind = stepAudit
	p.probes[0] = cpu.Probe{
		Row: int32(p.row), Count: 1, SetLen: int32(length), SetStride: int64(length),
		Sets: unsafe.Pointer(used), Own: unsafe.Pointer(own), Kept: unsafe.Pointer(&p.kept[0]),
	}
	p.probes[1] = cpu.Probe{Row: int32(p.row), Own: unsafe.Pointer(used)}
}

// copies are the rows of an audited step that are copies of the step's.
func (p *cpuProbes) copies() []cpu.Row {
	if p.kind != stepAudit {
		return nil
	}
	return p.rows
}

// place turns a set of slots into positions of the row's visible tokens; false: some slot is none of them.
func (p *cpuProbes) place(positions []int32, set unsafe.Pointer, row *cpu.Row) bool {
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

// direct states how a layer attends: mode, rows and probe of its call.
func (p *cpuProbes) direct(st *rowSets, layer int, call *cpu.Call) {
	mode := p.mode(&st.step, layer, st.sparse())
	rows := st.rows
	if p.kind == stepPlain || p.kind == stepAudit {
		rows = st.group(p.roles.Group(layer))
	}
	if mode == Select {
		st.lasting.chose++
	}
	call.Mode, call.Rows, call.NRows, call.Probe = cpu.Mode(mode), unsafe.Pointer(&rows[0]), int32(len(rows)), nil
	switch p.kind {
	case stepMeasure:
		if int(call.Heads) != p.model.heads {
			p.misfit = int(call.Heads)
			return
		}
		if rank := slices.Index(p.layers, layer); rank >= 0 {
			call.Mode, call.Probe = cpu.Select, unsafe.Pointer(&p.probes[rank])
		}
	case stepAblate:
		st.lasting.drop()
	case stepAudit:
		switch {
		case layer == p.layer && mode == Sparse && int(call.Heads) == p.model.heads:
			call.Mode, call.Rows, call.Probe = cpu.Select, unsafe.Pointer(&p.rows[0]), unsafe.Pointer(&p.probes[0])
			p.waiting = true
		case mode == Select && layer < p.layer:
			call.Probe = unsafe.Pointer(&p.probes[1])
		}
	}
}

// settle reads what the last step brought, if it was measured or audited.
func (p *cpuProbes) settle() {
	if !p.waiting {
		return
	}
	p.waiting = false
	m := p.model
	var save *Profile
	m.mu.Lock()
	switch {
	case m.fixed && p.kind == stepMeasure:
	case p.misfit != 0:
		m.suits(p.misfit)
	case p.kind == stepMeasure:
		save = p.settleMeasure()
	case p.kind == stepAudit && p.kept[0] >= 0 && m.revision == p.revision && !m.again:
		p.judge(p.layer, p.tokens, p.kept)
	}
	m.mu.Unlock()
	if save != nil {
		m.file.save(save, p.log)
	}
}

func (p *cpuProbes) settleMeasure() *Profile {
	m := p.model
	if m.sums == nil { // another context ended the measurement
		return nil
	}
	heads, any := m.heads, false
	seen := func(j int) bool { return p.kept[block(j, heads)] >= 0 }
	for j := range p.layers {
		if seen(j) {
			m.sums.add(p.layers, j, heads, p.kept[block(j, heads):block(j+1, heads)], seen)
			any = true
		}
	}
	if !any {
		return nil
	}
	if m.sums.steps++; m.sums.steps < measuredSteps(m.layers) {
		return nil
	}
	profile := p.finish(p.tokens, p.budget)
	p.free() // what an audit needs is far less
	return profile
}

// forget drops a step whose results will not come.
func (p *cpuProbes) forget() { p.waiting = false }

func (p *cpuProbes) free() {
	p.probeMemory.Free()
	p.keptMemory.Free()
	p.setMemory.Free()
	p.rowMemory.Free()
}

// record keeps the step that has ended: its sets are complete, and still there.
func (p *cpuProbes) record(st *rowSets) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &p.traced
	if p.recorded == p.steps || len(st.rows) == 0 { // it was, or there is none
		return
	}
	p.recorded = p.steps
	if !t.steps.wants() {
		return
	}
	row := &st.rows[0]
	s := TraceStep{Step: p.steps, Tokens: int(row.Visible), What: "dense", Layer: -1}
	switch {
	case p.kind == stepMeasure:
		s.What = "measured"
	case p.kind == stepAblate:
		s.What = "intervention"
	case p.kind != stepDense && st.chosen && row.SetLen > 0:
		s.What = "sparse"
		s.Layer = p.roles.Selections()[p.roles.Group(st.layer)]
		row = &st.group(p.roles.Group(st.layer))[0]
		s.Positions = make([]int32, row.SetLen)
		if !p.place(s.Positions, row.Set, row) { // the host never computed it
			return
		}
		slices.Sort(s.Positions)
	}
	t.steps.of = append(t.steps.of, s)
	t.numbers += len(s.Positions)
	for len(t.steps.of) > p.model.config.Trace || t.numbers > mostTraced && len(t.steps.of) > 1 {
		t.steps.thin()
		t.numbers = 0
		for i := range t.steps.of {
			t.numbers += len(t.steps.of[i].Positions)
		}
	}
}
