package plugin

import (
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// stepKind is what a step is for.
type stepKind int32

const (
	stepPlain     stepKind = iota // every layer by its role
	stepDense                     // every layer attends to everything: the layers' roles are not known
	stepMeasure                   // the same, and half of the layers' sets are held against each other
	stepAudit                     // by role, but one sparse layer attends to everything and is compared
	stepIntervene                 // dense but for one layer, whatever the roles are (Engine.Intervene)
)

// pilot decides for one context what each step is for, and collects what measured and audited steps bring.
// Results of a step are read when the next one begins: by then the host's threads are done with it.
type pilot struct {
	model    *model
	log      func(LogLevel, string)
	revision uint64
	roles    Roles
	source   string
	fixed    bool // the roles will not change
	interval int

	kind    stepKind
	row     int    // of the step, that is measured or audited
	layer   int    // that is audited, or the sparse one of an intervention
	chosen  int    // the selection layer of an intervention
	tokens  int    // that the row sees
	budget  int    // of its set
	waiting bool   // a step's results have not been read
	misfit  int    // heads of a layer that has another number of them than the first one; 0: none
	until   int    // steps to the next audit
	random  uint32 // spreads the audits: texts have periods of their own
	rowTurn int
	steps   uint64

	layers []int // that a measured step compares, ascending; their number is their rank
	probes []cpu.Probe
	kept   []float32 // by rank, blocks of (rank+1)*heads; below zero where nothing was written
	sets   []int32   // by rank, budget positions
	rows   []cpu.Row // of the audited layer
	where  []int32   // scratch of place

	probeMemory, keptMemory, setMemory, rowMemory cpu.Arena

	mu      sync.Mutex // what a reader of the statistics wants
	audited []LayerLoss
	events  []Event
	traced  trace

	recorded uint64 // the last step that was offered to the trace
}

// LayerLoss is what audits of a layer found.
type LayerLoss struct {
	Layer    int     `json:"layer"`
	Audits   uint64  `json:"audits"`
	Loss     float64 `json:"loss"`     // of the worst head, mean of the later audits
	Expected float64 `json:"expected"` // by the profile
}

// Event is something that the guard or a measurement did, and when.
type Event struct {
	Step     uint64  `json:"step"`   // of the context
	Tokens   int     `json:"tokens"` // visible then
	What     string  `json:"what"`   // "measured", "drift"; "interval": it was given up
	Layers   []int   `json:"layers"` // the choice after a measurement; the layer that drifted
	Loss     float64 `json:"loss"`
	Expected float64 `json:"expected,omitempty"`
}

// maxEvents bounds what a context remembers; the first ones stay.
const maxEvents = 64

func newPilot(m *model, log func(LogLevel, string)) *pilot {
	p := &pilot{model: m, log: log, random: 0x9E3779B9}
	m.mu.Lock()
	p.take()
	p.until = p.wait()
	m.mu.Unlock()
	return p
}

// wait is the number of steps to the next audit: about Guard of them, never in step with the text. A choice
// that was read from a file is on trial at first.
func (p *pilot) wait() int {
	p.random ^= p.random << 13
	p.random ^= p.random >> 17
	p.random ^= p.random << 5
	m := p.model.config.Guard
	if p.model.guard.trial > 0 {
		m = min(m, trialSteps)
	}
	return 1 + m/2 + int(p.random%uint32(max(m, 1)))
}

// take copies what is in force.
func (p *pilot) take() {
	m := p.model
	p.roles, p.revision, p.source, p.fixed, p.interval = m.roles, m.revision, m.source, m.fixed, m.interval
}

// groups is how many token sets a row of a step has.
func (p *pilot) groups() int {
	if p.interval <= 1 {
		return 1
	}
	return max(len(p.roles.Selections()), 1)
}

// lasts tells whether a step, which has begun, may go on with the sets of the one before.
func (p *pilot) lasts(st *step) bool {
	if p.interval <= 1 || p.kind == stepDense || p.kind == stepMeasure || p.kind == stepIntervene || p.groups() != st.groups {
		st.lasting.interval = p.interval
		st.lasting.drop()
		return false
	}
	return true
}

// arrange prepares the rest of a step, once it is known which sets its rows have.
func (p *pilot) arrange(st *step) {
	if st.groups > 1 {
		st.spread()
	}
	if p.kind != stepAudit {
		return
	}
	p.model.mu.Lock()
	p.layer = p.model.guard.next(st.lasting.resumed)
	p.model.mu.Unlock()
	if p.layer < 0 {
		p.kind = stepPlain
		return
	}
	p.audit(st)
}

// begin decides what a step is for, whose rows are known. heads is the number of its first layer's.
func (p *pilot) begin(st *step, heads int, counts *Stats) {
	p.settle()
	m := p.model
	p.steps++
	p.kind = stepPlain
	if x := m.intervention.Load(); x != nil {
		p.intervene(x)
		counts.Interventions++
		return
	}
	if p.source != SourceNone && !p.roles.Sparse() { // no set would be read
		for i := range st.rows {
			st.rows[i].SetLen = 0
		}
		return
	}
	if p.fixed && p.interval <= 1 {
		return
	}
	row, longest := 0, 0
	for i := range st.rows {
		if n := int(st.rows[i].Visible); n > longest && st.rows[i].SetLen > 0 {
			row, longest = i, n
		}
	}
	if !st.sparse() {
		return
	}
	m.mu.Lock()
	p.decide(st, row, longest, heads)
	if p.revision != m.revision {
		p.mu.Lock()
		p.take()
		p.mu.Unlock()
	}
	m.mu.Unlock()
	if p.kind == stepMeasure {
		p.measure(st)
	}
	switch p.kind {
	case stepDense:
		counts.DenseSteps++
		for i := range st.rows {
			st.rows[i].SetLen = 0
		}
	case stepMeasure:
		counts.MeasuredSteps++
	}
}

// decide is begin's part under the model's lock.
func (p *pilot) decide(st *step, row, longest, heads int) {
	m := p.model
	switch {
	case m.fixed && m.interval <= 1 || !m.fixed && !m.suits(heads):
		return
	case !m.fixed && m.due(longest):
		p.kind, p.row, p.tokens = stepMeasure, row, longest
		p.budget = min(m.config.Budget, longest/probeShare, mostProbed)
		if m.sums == nil {
			m.sums = newSums(m.layers, m.heads)
		}
		// From 8 budgets on is said by the steps that end a measurement, not by those that began it.
		m.sums.reach = reachOf(longest, m.config.Budget)
		p.layers = p.layers[:0]
		for l := range m.layers {
			if inStep(l, 1+m.sums.begun%roundOf(m.layers)) {
				p.layers = append(p.layers, l)
			}
		}
		m.sums.begun++
		if p.budget < 1 {
			p.kind = stepDense
		}
	case !m.known || m.again:
		p.kind = stepDense
	case m.config.Guard > 0:
		if p.until--; p.until > 0 {
			return
		}
		p.until = p.wait()
		for range st.rows {
			p.rowTurn = (p.rowTurn + 1) % len(st.rows)
			if st.rows[p.rowTurn].SetLen > 0 {
				p.kind, p.row = stepAudit, p.rowTurn
				p.tokens = int(st.rows[p.row].Visible)
				return
			}
		}
	}
}

// block is where the measured shares of a rank begin.
func block(rank, heads int) int { return rank * (rank + 1) / 2 * heads }

// measure prepares a measured step; dense, where there is no memory for it.
func (p *pilot) measure(st *step) {
	layers, heads := len(p.layers), p.model.heads
	p.probes = cpu.Slice[cpu.Probe](&p.probeMemory, layers)
	p.kept = cpu.Slice[float32](&p.keptMemory, block(layers, heads))
	p.sets = cpu.Slice[int32](&p.setMemory, layers*p.budget)
	if p.probes == nil || p.kept == nil || p.sets == nil {
		p.kind = stepDense
		return
	}
	for i := range p.kept {
		p.kept[i] = -1
	}
	clear(p.sets) // a layer that the host leaves out must not leave an older step's positions
	config := &p.model.config
	for i := range st.rows {
		st.rows[i].SetLen = 0
	}
	split := SplitBudget(p.tokens, p.budget, config.Recency, config.SinkTokens)
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

// audit prepares an audited step; a plain one, where there is no memory for it. The layer's rows are copies,
// so that its own best set does not take the place of the one that the layers after it attend to.
func (p *pilot) audit(st *step) {
	heads, row := p.model.heads, &st.rows[p.row]
	length := int(row.SetLen)
	p.budget = int(row.Sinks + row.Mid + row.Recent)
	p.probes = cpu.Slice[cpu.Probe](&p.probeMemory, 2)
	p.kept = cpu.Slice[float32](&p.keptMemory, 2*heads)
	p.sets = cpu.Slice[int32](&p.setMemory, length+2*p.budget)
	p.rows = cpu.Slice[cpu.Row](&p.rowMemory, len(st.rows))
	if p.probes == nil || p.kept == nil || p.sets == nil || p.rows == nil {
		p.kind = stepPlain
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
	if st.lasting.resumed { // the set is there already
		if !p.place(p.sets[:length], st.group(p.roles.Group(p.layer))[p.row].Set, row) {
			p.kind = stepPlain
			return
		}
	}
	p.probes[0] = cpu.Probe{
		Row: int32(p.row), Count: 1, SetLen: int32(length), SetStride: int64(length),
		Sets: unsafe.Pointer(used), Own: unsafe.Pointer(own), Kept: unsafe.Pointer(&p.kept[0]),
	}
	p.probes[1] = cpu.Probe{Row: int32(p.row), Own: unsafe.Pointer(used)}
}

// place turns a set of slots into positions of the row's visible tokens; false: some slot is none of them.
func (p *pilot) place(positions []int32, set unsafe.Pointer, row *cpu.Row) bool {
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
func (p *pilot) direct(st *step, layer int, call *cpu.Call) {
	role := p.role(layer)
	call.Rows, call.NRows, call.Probe = unsafe.Pointer(&st.group(p.roles.Group(layer))[0]), int32(len(st.rows)), nil
	switch p.kind {
	case stepDense, stepMeasure:
		st.layer, call.Mode, call.Rows = layer, cpu.Full, unsafe.Pointer(&st.rows[0])
		if p.kind == stepMeasure {
			if int(call.Heads) != p.model.heads {
				p.misfit = int(call.Heads)
				return
			}
			if rank := slices.Index(p.layers, layer); rank >= 0 {
				call.Mode, call.Probe = cpu.Select, unsafe.Pointer(&p.probes[rank])
			}
		}
	case stepIntervene:
		call.Mode, call.Rows = st.mode(role, layer), unsafe.Pointer(&st.rows[0])
		st.lasting.drop()
	case stepAudit:
		call.Mode = st.mode(role, layer)
		switch {
		case layer == p.layer && call.Mode == cpu.List && int(call.Heads) == p.model.heads:
			call.Mode, call.Rows, call.Probe = cpu.Select, unsafe.Pointer(&p.rows[0]), unsafe.Pointer(&p.probes[0])
			p.waiting = true
		case call.Mode == cpu.Select && layer < p.layer:
			call.Probe = unsafe.Pointer(&p.probes[1])
		}
	default:
		call.Mode = st.mode(role, layer)
	}
}

// role is the layer's in this step, for the counts.
func (p *pilot) role(layer int) Role {
	if p.kind == stepIntervene {
		return p.interveneIn(layer)
	}
	return p.roles.Role(layer)
}

// settle reads what the last step brought, if it was measured or audited.
func (p *pilot) settle() {
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
		p.settleAudit()
	}
	m.mu.Unlock()
	if save != nil {
		m.file.save(save, p.log)
	}
}

func (p *pilot) settleMeasure() *Profile {
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
	profile := m.finish(p.tokens, p.budget)
	p.free() // what an audit needs is far less
	if profile != nil {
		p.note(Event{Step: p.steps, Tokens: p.tokens, What: "measured", Layers: profile.Choice, Loss: profile.Worst})
	}
	return profile
}

func (p *pilot) settleAudit() {
	m := p.model
	w := &m.guard.layers[p.layer]
	loss, drift := m.guard.audit(p.layer, m.heads, p.kept)
	worst := 0.0
	for h := range m.heads {
		worst = max(worst, float64(p.kept[m.heads+h]-p.kept[h]))
	}
	p.mu.Lock()
	if p.audited == nil {
		p.audited = make([]LayerLoss, m.layers)
	}
	a := &p.audited[p.layer]
	a.Layer, a.Loss, a.Expected = p.layer, loss, w.expected
	a.Audits++
	p.recordAudit(TraceAudit{Step: p.steps, Layer: p.layer, Loss: round(worst), Mean: round(loss)})
	p.mu.Unlock()
	if !drift {
		return
	}
	if m.interval > 1 { // sets that are too old lose too: that is the first thing to mend
		m.interval = 1
		m.revision++
		m.guard.expect(m, m.roles.Selections())
		m.log(LogInfo, fmt.Sprintf("guard: the worst head of layer %d loses %.2f of its attention, %.2f was to be expected: "+
			"token sets are chosen in every step from now on", p.layer, loss, w.expected))
		p.note(Event{Step: p.steps, Tokens: p.tokens, What: "interval", Layers: []int{p.layer}, Loss: round(loss), Expected: round(w.expected)})
		return
	}
	m.again, m.sums = true, nil
	m.log(LogInfo, driftLine(p.layer, loss, w.expected, m.roles.Selections(), p.tokens))
	p.note(Event{Step: p.steps, Tokens: p.tokens, What: "drift", Layers: []int{p.layer}, Loss: round(loss), Expected: round(w.expected)})
}

func (p *pilot) note(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) < maxEvents {
		p.events = append(p.events, e)
	}
}

// report adds what the pilot knows to a context's statistics.
func (p *pilot) report(s *Stats) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Layers, s.SelectionLayers, s.LayersFrom = p.roles.Len(), p.roles.Selections(), p.source
	for _, a := range p.audited {
		if a.Audits > 0 {
			a.Loss, a.Expected = round(a.Loss), round(a.Expected)
			s.Audited = append(s.Audited, a)
			s.Audits += a.Audits
		}
	}
	if p.model.config.Trace > 0 {
		s.Trace = p.traced.show()
	}
	for _, e := range p.events {
		s.Events = append(s.Events, e)
		if e.What != "measured" {
			s.Alarms++
		}
	}
}

// forget drops a step whose results will not come.
func (p *pilot) forget() { p.waiting = false }

func (p *pilot) free() {
	p.probeMemory.Free()
	p.keptMemory.Free()
	p.setMemory.Free()
	p.rowMemory.Free()
}
