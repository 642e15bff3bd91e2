package plugin

import (
	"math"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/cuda"
)

// cudaProbes is a calibrator that drives a GPU: what a step brings is left on the device. Measured losses are added up
// there and fetched once, at the end; the shares of an audit are fetched by themselves. A fetch is a copy into pinned memory
// and an event; whoever comes by next asks for it, nobody waits.
//
// How much the rows see is known on the device alone and is looked up in the same way, now and then. So it may be old:
// a row that sees too little when its turn comes takes no part.
//
// A captured step stays what it is as long as its graph is replayed. It goes by the roles in force and is neither
// measured nor audited, and poll tells its host when to capture again and when to run a step without capture.
type cudaProbes struct {
	calibrator
	device *cuda.Device

	sets, stamps, sums, own, shares uint64 // device memory
	most, sumBytes                  int    // tokens in a set that is compared; size of sums

	lengths, results, shared *cuda.Fetch // of what the rows see, of sums, of shares
	plan                     *cuda.ProbePlan
	probe                    cuda.Probe
	call                     cuda.Call

	lookIn   int  // steps to the next look at what the rows see
	look     bool // once this step's first layer is on its way
	polled   bool // the coming step has been counted
	opening  bool // none of the step's layers is on its way
	looking  bool // lengths are on the way
	auditing bool // shares are
	fetching bool // sums are
	audit    struct {
		layer, tokens int
		revision      uint64 // of the roles then
	} // that is on its way

	clear   bool   // before the next step of the measurement under way the sums begin anew
	counted bool   // this step is in begun
	begun   int    // measured steps
	wanted  int    // of them, in all
	stamp   uint32 // of the step

	measured, dense, ablations uint64  // steps, for the statistics
	counter                    *uint64 // of these, what counts the step once one of its layers is on its way
}

const (
	lookSteps     = 16 // steps between looks at what the rows see
	leastCompared = 8  // steps that compared two layers, before their loss is believed
	measureTries  = 4  // measurements' worth of steps, where rows come and go, until what there is has to do
)

// place lays out the device memory that is wanted; none, where nothing can be found out.
func (p *cudaProbes) place(config *Config, layers int, params *DecoderParams, take func(bytes int) uint64) {
	heads, pairs := int(params.Heads), layers*(layers-1)/2
	if p.most = 0; config.Layers != nil || layers < leastMeasured || pairs*heads > mostMeasured ||
		int(params.Capacity) < max(firstMeasured*config.Budget, probeShare) {
		return
	}
	p.most = min(config.Budget, int(params.Capacity)/probeShare, mostProbed)
	p.sumBytes = 4 * (pairs + 2*pairs*heads)
	p.sets = take(4 * layers * p.most)
	p.stamps = take(4 * layers)
	p.sums = take(p.sumBytes)
	p.own = take(4 * config.Budget)
	p.shares = take(4 * 2 * heads)
}

// open makes what is needed besides, and joins the model.
func (p *cudaProbes) open(m *model, device *cuda.Device, params *DecoderParams) (err error) {
	m.mu.Lock()
	if !m.fixed {
		m.suits(int(params.Heads))
	}
	m.mu.Unlock()
	p.init(m)
	p.device = device
	if p.most == 0 {
		return nil
	}
	p.seen = make([]int32, 0, params.MaxRows)
	if p.plan, err = cuda.NewProbePlan(); err != nil {
		return err
	}
	for _, f := range []struct {
		to   **cuda.Fetch
		size int
	}{{&p.lengths, 4 * int(params.MaxRows)}, {&p.results, p.sumBytes}, {&p.shared, 4 * 2 * int(params.Heads)}} {
		if *f.to, err = device.NewFetch(f.size); err != nil {
			return err
		}
	}
	return nil
}

// close gives the memory back; nothing may be under way.
func (p *cudaProbes) close() {
	if p.plan != nil {
		p.plan.Free()
	}
	for _, f := range []*cuda.Fetch{p.lengths, p.results, p.shared} {
		if f != nil {
			f.Free()
		}
	}
}

// wantsLook tells whether what the rows see is to be looked at.
func (p *cudaProbes) wantsLook(unknown, audit bool) bool {
	p.model.mu.Lock()
	defer p.model.mu.Unlock()
	return audit || !p.looking && p.lookIn <= 0 && (unknown || p.model.reach < 1<<probeRatios)
}

// begin decides what a step is for, whose first layer has been asked for.
func (p *cudaProbes) begin(a *Attention, heads int32) error {
	p.look, p.counter = false, nil
	again := p.opening // the step's first layer was refused: it has been counted
	p.opening = true
	stream := a.Stream
	free := p.most > 0 && !p.fixed && p.model.ablation.Load() == nil && !p.device.Capturing(stream)
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
	counted := p.polled || again
	if free && !counted {
		p.lookIn--
	}
	p.calibrator.begin(opening{
		rows: int(a.Rows), heads: int(heads), sparse: true, probes: free, counted: counted, busy: p.auditing || p.looking,
	})
	if p.kind == stepAblate {
		p.counter = &p.ablations
		return nil
	}
	if !again && !p.fixed {
		p.steps++
	}
	if !free {
		return nil
	}
	p.polled, p.look = false, !p.fixed && p.wantsLook(p.kind == stepDense || p.kind == stepMeasure, p.due)
	switch p.kind {
	case stepDense:
		p.counter = &p.dense
	case stepAudit:
		p.pickLayer(false)
	case stepMeasure:
		if p.clear {
			if err := p.device.Clear(p.sums, p.sumBytes, stream); err != nil {
				return err
			}
		}
		p.clear, p.counted = false, false
		p.stamp++
		p.compare(p.begun)
	}
	return nil
}

// probed tells whether a layer is measured or audited, and states the call and the probe of it. c is the call by role,
// positions where it leaves token sets.
func (p *cudaProbes) probed(layer int, c *cuda.Call, stream uintptr) bool {
	if p.kind != stepMeasure && p.kind != stepAudit {
		return false
	}
	config, heads, layers := &p.model.config, p.model.heads, p.model.layers
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
			Own: p.own, Sets: c.Positions + uint64(4*p.row*config.Budget), SetStride: int64(config.Budget), SetBudget: int32(config.Budget),
			Kept: p.shares, Row: int32(p.row), NSets: 1,
		}
	default:
		return false
	}
	p.call.Mode = cuda.Select
	return !p.device.Capturing(stream) // a host may capture its layers one by one
}

// queued is told of each layer that is on its way, and whether it was probed.
func (p *cudaProbes) queued(a *Attention, probed bool) error {
	p.opening = false
	if p.counter != nil {
		*p.counter++
		p.counter = nil
	}
	if p.fixed || p.most == 0 || p.kind == stepAblate {
		return nil
	}
	stream, last := a.Stream, int(a.Layer) == p.model.layers-1
	if probed && p.kind == stepMeasure && !p.counted {
		p.counted = true
		p.begun++
		p.measured++
	}
	if probed && p.kind == stepAudit {
		if err := p.shared.Start(p.shares, 4*2*p.model.heads, stream); err != nil {
			return err
		}
		p.auditing, p.audit.layer, p.audit.tokens, p.audit.revision = true, p.layer, p.tokens, p.revision
	}
	// A copy must not become part of a graph, where a host captures its layers one by one: the next step makes it.
	if last && p.measuring && p.kind == stepMeasure && p.begun >= p.wanted && !p.device.Capturing(stream) {
		return p.fetch(stream)
	}
	if p.look && !p.device.Capturing(stream) {
		p.look, p.lookIn, p.seen = false, lookSteps, p.seen[:a.Rows]
		err := p.lengths.Start(uint64(a.Lengths), 4*int(a.Rows), stream)
		p.looking = err == nil // else what an older copy brought would be taken for it
		return err
	}
	return nil
}

// fetch ends the measured steps.
func (p *cudaProbes) fetch(stream uintptr) error {
	err := p.results.Start(p.sums, p.sumBytes, stream)
	p.measuring, p.fetching = false, err == nil
	return err
}

// settle takes what has arrived.
func (p *cudaProbes) settle() error {
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
func (p *cudaProbes) takeLengths() {
	copy(p.seen, numbers[int32](p.lengths.Bytes(), len(p.seen)))
	m := p.model
	m.mu.Lock()
	defer m.mu.Unlock()
	row, longest := p.longest()
	unknown, due, under := !m.known || m.again, !m.fixed && m.due(longest), p.target
	switch {
	case p.fetching:
	case !due: // a measurement waits for rows to come, if there is nothing else to do
		p.measuring = p.measuring && unknown
	case p.measuring && longest >= probeShare*under.budget:
		p.target.row, p.target.tokens = row, longest
	case min(m.config.Budget, longest/probeShare, p.most) > 0:
		p.aim()
		p.target.budget = min(p.target.budget, p.most)
		p.clear, p.begun, p.wanted = true, 0, measuredSteps(m.layers)
	}
}

// takeSums ends a measurement, unless some layers have met too rarely: then it goes on.
func (p *cudaProbes) takeSums() {
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
		profile = p.finish(t.tokens, t.budget)
	}
	m.mu.Unlock()
	if profile != nil {
		m.file.save(profile, p.log)
	}
}

// takeAudit takes the shares of an audited layer: on its set and on its own best one.
func (p *cudaProbes) takeAudit() {
	m := p.model
	kept := numbers[float32](p.shared.Bytes(), 2*m.heads)
	m.mu.Lock()
	defer m.mu.Unlock()
	if kept[0] >= 0 && m.revision == p.audit.revision && !m.again && !m.fixed {
		p.judge(p.audit.layer, p.audit.tokens, kept)
	}
}

// chooses tells whether a set that a layer chooses is read by another one.
func (p *cudaProbes) chooses() bool { return p.kind == stepAblate || p.roles.Sparse() }

// bound is the budget that a step's rows are counted by.
func (p *cudaProbes) bound() int32 {
	if p.kind == stepDense || p.kind == stepMeasure || !p.chooses() {
		return math.MaxInt32
	}
	return int32(p.model.config.Budget)
}

// numbers looks at fetched bytes as what they are.
func numbers[T int32 | float32](from []byte, n int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(from))), n)
}

// poll is for a host that replays captured steps, before each step (lim_decoder_poll in the public header). It waits for
// nothing.
func (p *cudaProbes) poll() (generation uint64, eager bool, err error) {
	m := p.model
	if m.ablation.Load() != nil {
		return p.revision, true, nil
	}
	if p.fixed || p.most == 0 {
		return p.revision, false, nil
	}
	if err = p.settle(); err != nil {
		return 0, false, deviceError(err)
	}
	p.lookIn--
	m.mu.Lock()
	unknown, audit := p.follow(true, p.auditing || p.looking)
	m.mu.Unlock()
	p.polled = true
	return p.revision, !p.fixed && (p.measuring || p.wantsLook(unknown, audit)), nil
}
