package plugin

import (
	"math"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/cuda"
)

// batchPilot is the pilot of a batch: the same measurement, choice and guard, with what a step brings left on the
// device. Measured losses are added up there and fetched once, at the end; the shares of an audit are fetched by
// themselves. A fetch is a copy into pinned memory and an event; whoever comes by next asks for it, nobody waits.
//
// How much the rows see is known on the device alone and is looked up in the same way, now and then. So it may be old:
// a row that sees too little when its turn comes takes no part.
//
// A captured step stays what it is as long as its graph is replayed. It goes by the roles in force and is neither
// measured nor audited, and Poll tells its host when to capture again and when to run a step without capture.
type batchPilot struct {
	*pilot
	device *cuda.Device
	policy Policy

	sets, stamps, sums, own, shares uint64 // device memory
	most, sumBytes                  int    // tokens in a set that is compared; size of sums

	lengths, results, shared *cuda.Fetch // of what the rows see, of sums, of shares
	plan                     *cuda.ProbePlan
	probe                    cuda.Probe
	call                     cuda.Call

	seen      []int32 // what the rows saw when they were last looked at
	lookIn    int     // steps to the next look
	look      bool    // once this step's first layer is on its way
	polled    bool    // the coming step has been counted
	opening   bool    // none of the step's layers is on its way
	looking   bool    // lengths are on the way
	auditing  bool    // shares are
	fetching  bool    // sums are
	auditOf   uint64  // the revision that was audited
	auditSees int     // tokens, its row

	target    struct{ row, tokens, budget, reach int } // of the measurement under way
	measuring bool
	clear     bool   // before the next step of it the sums begin anew
	counted   bool   // this step is in begun
	begun     int    // measured steps
	wanted    int    // of them, in all
	stamp     uint32 // of the step

	measured, dense, intervened uint64  // steps, for the statistics
	counter                     *uint64 // of these, what counts the step once one of its layers is on its way
}

const (
	lookSteps     = 16 // steps between looks at what the rows see
	leastCompared = 8  // steps that compared two layers, before their loss is believed
	measureTries  = 4  // measurements' worth of steps, where rows come and go, until what there is has to do
)

// place lays out the pilot's device memory; none, where nothing can be found out.
func (p *batchPilot) place(b *Batch, take func(bytes int) uint64) {
	config, layers, heads := &b.engine.config, b.count, int(b.params.Heads)
	pairs := layers * (layers - 1) / 2
	if p.most = 0; config.Layers != nil || layers < leastMeasured || pairs*heads > mostMeasured ||
		int(b.params.Capacity) < max(firstMeasured*config.Budget, probeShare) {
		return
	}
	p.most = min(config.Budget, int(b.params.Capacity)/probeShare, mostProbed)
	p.sumBytes = 4 * (pairs + 2*pairs*heads)
	p.sets = take(4 * layers * p.most)
	p.stamps = take(4 * layers)
	p.sums = take(p.sumBytes)
	p.own = take(4 * config.Budget)
	p.shares = take(4 * 2 * heads)
}

// open makes what the pilot needs besides, and joins the model.
func (p *batchPilot) open(b *Batch) error {
	m, err := b.engine.model(identity{Layers: b.count, Weights: b.engine.about}, b.engine.said.add)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if !m.fixed {
		m.suits(int(b.params.Heads))
	}
	m.mu.Unlock()
	p.pilot, p.device, p.policy = newPilot(m, m.log), b.device, b.engine.config.Policy
	if p.most == 0 {
		return nil
	}
	p.seen = make([]int32, 0, b.params.MaxRows)
	if p.plan, err = cuda.NewProbePlan(); err != nil {
		return err
	}
	for _, f := range []struct {
		to   **cuda.Fetch
		size int
	}{{&p.lengths, 4 * int(b.params.MaxRows)}, {&p.results, p.sumBytes}, {&p.shared, 4 * 2 * int(b.params.Heads)}} {
		if *f.to, err = b.device.NewFetch(f.size); err != nil {
			return err
		}
	}
	return nil
}

// close gives the memory back; nothing may be under way.
func (p *batchPilot) close() {
	if p.plan != nil {
		p.plan.Free()
	}
	for _, f := range []*cuda.Fetch{p.lengths, p.results, p.shared} {
		if f != nil {
			f.Free()
		}
	}
}

// follow takes over what is in force, and tells what there is to find out. count: it is for a step that has not been
// counted.
func (p *batchPilot) follow(count bool) (unknown, look, audit bool) {
	m := p.model
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.revision != m.revision {
		p.mu.Lock()
		p.take()
		p.mu.Unlock()
	}
	unknown = !m.known || m.again
	if m.fixed || p.most == 0 {
		return unknown, false, false
	}
	p.measuring = p.measuring && m.due(p.target.tokens)
	if count {
		p.lookIn--
		if !unknown && !p.measuring {
			p.until--
		}
	}
	audit = !unknown && !p.measuring && m.config.Guard > 0 && p.until <= 0 && !p.auditing && !p.looking
	look = audit || !p.looking && p.lookIn <= 0 && (unknown || m.reach < 1<<probeRatios)
	return unknown, look, audit
}

// begin decides what a step is for, whose first layer has been asked for.
func (p *batchPilot) begin(a *BatchAttention) error {
	p.kind, p.look, p.counter = stepPlain, false, nil
	again := p.opening // the step's first layer was refused: it has been counted
	p.opening = true
	if x := p.model.intervention.Load(); x != nil {
		p.intervene(x)
		p.counter = &p.intervened
		return nil
	}
	if p.fixed {
		return nil
	}
	stream := uintptr(a.Stream)
	free := p.most > 0 && !p.device.Capturing(stream)
	if free {
		if err := p.settle(); err != nil {
			return err
		}
		if p.measuring && p.begun >= p.wanted { // the step before ended early
			if err := p.fetch(stream); err != nil {
				return err
			}
		}
	}
	unknown, look, audit := p.follow(free && !p.polled && !again)
	if !again {
		p.steps++
	}
	if unknown {
		p.kind = stepDense
	}
	if !free {
		return nil
	}
	p.polled, p.look = false, look
	switch {
	case p.measuring && p.target.row < int(a.Rows):
		if p.clear {
			if err := p.device.Clear(p.sums, p.sumBytes, stream); err != nil {
				return err
			}
		}
		p.clear, p.counted = false, false
		p.kind = stepMeasure
		p.stamp++
		p.layers = p.layers[:0]
		for l := range p.model.layers {
			if inStep(l, 1+p.begun%roundOf(p.model.layers)) {
				p.layers = append(p.layers, l)
			}
		}
	case audit:
		p.audit(int(a.Rows))
	}
	if p.kind == stepDense {
		p.counter = &p.dense
	}
	return nil
}

// audit makes a step an audited one, if a row is known to be sparse.
func (p *batchPilot) audit(rows int) {
	m := p.model
	m.mu.Lock()
	defer m.mu.Unlock()
	p.until = p.wait()
	for range rows {
		p.rowTurn = (p.rowTurn + 1) % rows
		if p.rowTurn >= len(p.seen) || int(p.seen[p.rowTurn]) <= m.config.Budget {
			continue
		}
		if p.layer = m.guard.next(false); p.layer >= 0 {
			p.kind, p.row, p.auditSees = stepAudit, p.rowTurn, int(p.seen[p.rowTurn])
		}
		return
	}
}

// probes tells whether a layer is measured or audited, and states the call and the probe of it. c is the call by
// role.
func (p *batchPilot) probes(b *Batch, layer int, c *cuda.Call, stream uintptr) bool {
	if p.kind != stepMeasure && p.kind != stepAudit {
		return false
	}
	config, heads, layers := &p.model.config, int(b.params.Heads), p.model.layers
	switch {
	case p.kind == stepMeasure && c.Mode == cuda.Full && slices.Contains(p.layers, layer) &&
		p.target.row < int(c.NRows) && int(c.Capacity) >= probeShare*p.target.budget:
		budget, pairs, first := p.target.budget, layers*(layers-1)/2, pair(0, layer)
		split := SplitBudget(budget, budget, config.Recency, config.SinkTokens)
		p.call = *c
		p.call.Budget, p.call.SinkTokens, p.call.TopK, p.call.Recent = int32(budget), int32(split.Sinks), int32(split.Mid), int32(split.Recent)
		p.probe = cuda.Probe{
			Own: p.sets + uint64(4*layer*p.most), Sets: p.sets, SetStride: int64(p.most), SetBudget: int32(budget), Stamps: p.stamps,
			Row: int32(p.target.row), NSets: int32(layer), Least: int32(probeShare * budget), Stamp: p.stamp,
		}
		if layer > 0 {
			p.probe.Count = p.sums + uint64(4*first)
			p.probe.Sum = p.sums + uint64(4*(pairs+first*heads))
			p.probe.Square = p.probe.Sum + uint64(4*pairs*heads)
		}
	case p.kind == stepAudit && c.Mode == cuda.Sparse && layer == p.layer && p.row < int(c.NRows):
		p.call = *c
		p.probe = cuda.Probe{
			Own: p.own, Sets: b.positions + uint64(4*p.row*config.Budget), SetStride: int64(config.Budget), SetBudget: int32(config.Budget),
			Kept: p.shares, Row: int32(p.row), NSets: 1,
		}
	default:
		return false
	}
	p.call.Mode = cuda.Select
	return !p.device.Capturing(stream) // a host may capture its layers one by one
}

// queued is told of each layer that is on its way, and whether it was probed.
func (p *batchPilot) queued(a *BatchAttention, probed bool) error {
	p.opening = false
	if p.counter != nil {
		*p.counter++
		p.counter = nil
	}
	if p.fixed || p.most == 0 || p.kind == stepIntervene {
		return nil
	}
	stream, last := uintptr(a.Stream), int(a.Layer) == p.model.layers-1
	if probed && p.kind == stepMeasure && !p.counted {
		p.counted = true
		p.begun++
		p.measured++
	}
	if probed && p.kind == stepAudit {
		if err := p.shared.Start(p.shares, 4*2*p.model.heads, stream); err != nil {
			return err
		}
		p.auditing, p.auditOf = true, p.revision
	}
	// A copy must not become part of a graph, where a host captures its layers one by one: the next step makes it.
	if last && p.measuring && p.kind == stepMeasure && p.begun >= p.wanted && !p.device.Capturing(stream) {
		return p.fetch(stream)
	}
	if p.look && !p.device.Capturing(stream) {
		p.look, p.lookIn, p.seen = false, lookSteps, p.seen[:a.Rows]
		err := p.lengths.Start(a.Lengths, 4*int(a.Rows), stream)
		p.looking = err == nil // else what an older copy brought would be taken for it
		return err
	}
	return nil
}

// fetch ends the measured steps.
func (p *batchPilot) fetch(stream uintptr) error {
	err := p.results.Start(p.sums, p.sumBytes, stream)
	p.measuring, p.fetching = false, err == nil
	return err
}

// settle takes what has arrived.
func (p *batchPilot) settle() error {
	if there, err := arrived(&p.auditing, p.shared); err != nil {
		return err
	} else if there {
		p.takeAudit()
	}
	if there, err := arrived(&p.fetching, p.results); err != nil {
		return err
	} else if there {
		p.takeSums()
	}
	there, err := arrived(&p.looking, p.lengths)
	if there {
		p.takeLengths()
	}
	return err
}

// arrived asks for what is under way; then it is so no more, and neither after an error.
func arrived(under *bool, fetch *cuda.Fetch) (bool, error) {
	if !*under {
		return false, nil
	}
	ready, err := fetch.Ready()
	*under = err == nil && !ready
	return ready, err
}

// takeLengths begins a measurement where one is due, and sees to it that the row of the one under way is the longest.
func (p *batchPilot) takeLengths() {
	row, longest := 0, 0
	for i, n := range numbers[int32](p.lengths.Bytes(), len(p.seen)) {
		if p.seen[i] = n; int(n) > longest {
			row, longest = i, int(n)
		}
	}
	m, t := p.model, &p.target
	m.mu.Lock()
	due, unknown := !m.fixed && m.due(longest), !m.known || m.again
	m.mu.Unlock()
	switch {
	case p.fetching:
		return
	case !due: // a measurement waits for rows to come, if there is nothing else to do
		p.measuring = p.measuring && unknown
		return
	case p.measuring && longest >= probeShare*t.budget:
		t.row, t.tokens = row, longest
		return
	}
	if budget := min(p.model.config.Budget, longest/probeShare, p.most); budget > 0 {
		t.row, t.tokens, t.budget, t.reach = row, longest, budget, reachOf(longest, p.model.config.Budget)
		p.measuring, p.clear, p.begun, p.wanted = true, true, 0, measuredSteps(m.layers)
	}
}

// takeSums ends a measurement, unless some layers have met too rarely: then it goes on.
func (p *batchPilot) takeSums() {
	m := p.model
	pairs, all := m.layers*(m.layers-1)/2, numbers[float32](p.results.Bytes(), p.sumBytes/4)
	counts := numbers[int32](p.results.Bytes(), pairs)
	var profile *Profile
	m.mu.Lock()
	switch t := &p.target; {
	case m.fixed || !m.due(t.tokens): // another context was first
	case slices.Min(counts) < leastCompared && p.begun < measureTries*measuredSteps(m.layers):
		p.measuring = true
		p.wanted += measuredSteps(m.layers)
	default:
		m.sums = &sums{
			reach: t.reach, begun: p.begun, steps: p.begun, n: slices.Clone(counts),
			sum: slices.Clone(all[pairs:][:pairs*m.heads]), square: slices.Clone(all[pairs*(1+m.heads):]),
		}
		if profile = m.finish(t.tokens, t.budget); profile != nil {
			p.note(Event{Step: p.steps, Tokens: t.tokens, What: "measured", Layers: profile.Choice, Loss: profile.Worst})
		}
	}
	m.mu.Unlock()
	if profile != nil {
		m.file.save(profile, p.log)
	}
}

// takeAudit takes the shares of an audited layer: on its set and on its own best one.
func (p *batchPilot) takeAudit() {
	m := p.model
	p.kept = numbers[float32](p.shared.Bytes(), 2*m.heads)
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.kept[0] >= 0 && m.revision == p.auditOf && !m.again && !m.fixed {
		p.tokens = p.auditSees
		p.settleAudit()
	}
}

// chooses tells whether a set that a layer chooses is read by another one.
func (p *batchPilot) chooses() bool { return p.kind == stepIntervene || p.roles.Sparse() }

// bound is the budget that a step's rows are counted by.
func (p *batchPilot) bound() int32 {
	if p.kind == stepDense || p.kind == stepMeasure || !p.chooses() {
		return math.MaxInt32
	}
	return int32(p.model.config.Budget)
}

// numbers looks at fetched bytes as what they are.
func numbers[T int32 | float32](from []byte, n int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(from))), n)
}

// Poll is for a host that replays captured steps, before each step (lim_batch_generation in the public header). It
// waits for nothing.
func (b *Batch) Poll() (generation uint64, eager bool, err error) {
	p := &b.pilot
	defer b.engine.said.flush()
	if p.model.intervention.Load() != nil {
		return p.revision, true, nil
	}
	if p.fixed || p.most == 0 {
		return p.revision, false, nil
	}
	if err = p.settle(); err != nil {
		return 0, false, deviceError(err)
	}
	_, look, _ := p.follow(true)
	p.polled = true
	return p.revision, p.measuring || look, nil
}
