package oncuda

import (
	"math"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/steps"
)

// Probes is a calibrator that drives a GPU: what a step brings is left on the device. Measured losses are added up
// there and fetched once, at the end; the shares of an audit are fetched by themselves. A fetch is a copy into pinned memory
// and an event; whoever comes by next asks for it, nobody waits.
//
// How much the rows see is known on the device alone and is looked up in the same way, now and then. So it may be old:
// a row that sees too little when its turn comes takes no part.
//
// A captured step stays what it is as long as its graph is replayed. It goes by the roles in force and is neither
// measured nor audited, and poll tells its host when to capture again and when to run a step without capture.
type Probes struct {
	calibrate.Calibrator
	device *cuda.Device

	sets, stamps, Sums, own, Shares uint64 // device memory
	Most, sumBytes                  int    // tokens in a set that is compared; size of sums

	lengths, results, shared *cuda.Fetch // of what the rows see, of sums, of shares
	plan                     *cuda.ProbePlan
	probe                    cuda.Probe
	call                     cuda.Call

	lookIn   int  // steps to the next look at what the rows see
	look     bool // once this step's first layer is on its way
	polled   bool // the coming step has been counted
	opening  bool // none of the step's layers is on its way
	Looking  bool // lengths are on the way
	auditing bool // shares are
	Fetching bool // sums are
	audit    struct {
		layer, tokens int
		revision      uint64 // of the roles then
	} // that is on its way

	Clear   bool   // before the next step of the measurement under way the sums begin anew
	counted bool   // this step is in begun
	Begun   int    // measured steps
	Wanted  int    // of them, in all
	stamp   uint32 // of the step

	Measured, Dense, ablations uint64  // steps, for the statistics
	counter                    *uint64 // of these, what counts the step once one of its layers is on its way
}

const (
	LookSteps     = 16 // steps between looks at what the rows see
	leastCompared = 8  // steps that compared two layers, before their loss is believed
	measureTries  = 4  // measurements' worth of steps, where rows come and go, until what there is has to do
)

// place lays out the device memory that is wanted; none, where nothing can be found out.
func (p *Probes) place(config *settings.Config, layers int, params *backend.Params, take func(bytes int) uint64) {
	heads, pairs := int(params.Heads), layers*(layers-1)/2
	if p.Most = 0; config.Layers != nil || layers < selection.LeastMeasured || pairs*heads > selection.MostMeasured ||
		int(params.Capacity) < max(selection.FirstMeasured*config.Budget, selection.ProbeShare) {
		return
	}
	p.Most = min(config.Budget, int(params.Capacity)/selection.ProbeShare, selection.MostProbed)
	p.sumBytes = 4 * (pairs + 2*pairs*heads)
	p.sets = take(4 * layers * p.Most)
	p.stamps = take(4 * layers)
	p.Sums = take(p.sumBytes)
	p.own = take(4 * (config.Budget + config.Interval - 1))
	p.Shares = take(4 * 2 * heads)
}

// open makes what is needed besides, and joins the model.
func (p *Probes) open(m *selection.Model, device *cuda.Device, params *backend.Params) (err error) {
	m.Mu.Lock()
	if !m.Fixed {
		m.Suits(int(params.Heads))
	}
	m.Mu.Unlock()
	p.Init(m)
	p.device = device
	if p.Most == 0 {
		return nil
	}
	p.Seen = make([]int32, 0, params.MaxRows)
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
func (p *Probes) close() {
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
func (p *Probes) wantsLook(unknown, audit bool) bool {
	p.Model.Mu.Lock()
	defer p.Model.Mu.Unlock()
	return audit || !p.Looking && p.lookIn <= 0 && (unknown || p.Model.Reach < 1<<selection.ProbeRatios)
}

// begin decides what a step is for, whose first layer has been asked for. resumes: it may go on with the sets of the one before.
func (p *Probes) begin(a *backend.Attention, heads int32, resumes bool) error {
	p.look, p.counter = false, nil
	again := p.opening // the step's first layer was refused: it has been counted
	p.opening = true
	stream := a.Stream
	free := p.Most > 0 && !p.Fixed && p.Model.Ablation.Load() == nil && !p.device.Capturing(stream)
	if free {
		if err := p.settle(); err != nil {
			return err
		}
		if p.Measuring && p.Begun >= p.Wanted { // the step before ended early
			if err := p.fetch(stream); err != nil {
				return err
			}
		}
	}
	counted := p.polled || again
	if free && !counted {
		p.lookIn--
	}
	p.Calibrator.Begin(calibrate.Opening{
		Rows: int(a.Rows), Heads: int(heads), Sparse: true, Probes: free, Counted: counted, Busy: p.auditing || p.Looking,
	})
	if p.Kind == calibrate.StepAblate {
		p.counter = &p.ablations
		return nil
	}
	if !again && !p.Fixed {
		p.Steps++
	}
	if !free {
		return nil
	}
	p.polled, p.look = false, !p.Fixed && p.wantsLook(p.Kind == calibrate.StepDense || p.Kind == calibrate.StepMeasure, p.Due)
	switch p.Kind {
	case calibrate.StepDense:
		p.counter = &p.Dense
	case calibrate.StepAudit:
		p.PickLayer(resumes)
	case calibrate.StepMeasure:
		if p.Clear {
			if err := p.device.Clear(p.Sums, p.sumBytes, stream); err != nil {
				return err
			}
		}
		p.Clear, p.counted = false, false
		p.stamp++
		p.Compare(p.Begun)
	}
	return nil
}

// probed tells whether a layer is measured or audited, and states the call and the probe of it. c is the call by role,
// positions where it leaves token sets.
func (p *Probes) probed(layer int, c *cuda.Call, stream uintptr) bool {
	if p.Kind != calibrate.StepMeasure && p.Kind != calibrate.StepAudit {
		return false
	}
	config, heads, layers := &p.Model.Config, p.Model.Heads, p.Model.Layers
	switch {
	case p.Kind == calibrate.StepMeasure && c.Mode == cuda.Full && slices.Contains(p.Layers, layer) &&
		p.Target.Row < int(c.NRows) && int(c.Capacity) >= selection.ProbeShare*p.Target.Budget:
		budget, pairs, first := p.Target.Budget, layers*(layers-1)/2, selection.Pair(0, layer)
		split := steps.SplitBudget(budget, budget, config.Recency, config.SinkTokens)
		p.call = *c
		p.call.Budget, p.call.SinkTokens, p.call.TopK, p.call.Recent = int32(budget), int32(split.SinkTokens), int32(split.TopK), int32(split.Recent)
		p.probe = cuda.Probe{
			Own: p.sets + uint64(4*layer*p.Most), Sets: p.sets, SetStride: int64(p.Most), SetBudget: int32(budget), Stamps: p.stamps,
			Row: int32(p.Target.Row), NSets: int32(layer), Least: int32(selection.ProbeShare * budget), Stamp: p.stamp,
		}
		if layer > 0 {
			p.probe.Count = p.Sums + uint64(4*first)
			p.probe.Sum = p.Sums + uint64(4*(pairs+first*heads))
			p.probe.Square = p.probe.Sum + uint64(4*pairs*heads)
		}
	case p.Kind == calibrate.StepAudit && c.Mode == cuda.Sparse && layer == p.Layer && p.Row < int(c.NRows):
		p.call = *c
		p.probe = cuda.Probe{
			Own: p.own, Sets: c.Positions + uint64(4*int64(p.Row)*c.SetStride), SetStride: c.SetStride, SetBudget: c.Budget,
			Kept: p.Shares, Row: int32(p.Row), NSets: 1,
		}
	default:
		return false
	}
	p.call.Mode = cuda.Select
	return !p.device.Capturing(stream) // a host may capture its layers one by one
}

// queued is told of each layer that is on its way, and whether it was probed.
func (p *Probes) queued(a *backend.Attention, probed bool) error {
	p.opening = false
	if p.counter != nil {
		*p.counter++
		p.counter = nil
	}
	if p.Fixed || p.Most == 0 || p.Kind == calibrate.StepAblate {
		return nil
	}
	stream, last := a.Stream, ends(a, p.Model.Layers)
	if probed && p.Kind == calibrate.StepMeasure && !p.counted {
		p.counted = true
		p.Begun++
		p.Measured++
	}
	if probed && p.Kind == calibrate.StepAudit {
		if err := p.shared.Start(p.Shares, 4*2*p.Model.Heads, stream); err != nil {
			return err
		}
		p.auditing, p.audit.layer, p.audit.tokens, p.audit.revision = true, p.Layer, p.Tokens, p.Revision
	}
	// A copy must not become part of a graph, where a host captures its layers one by one: the next step makes it.
	if last && p.Measuring && p.Kind == calibrate.StepMeasure && p.Begun >= p.Wanted && !p.device.Capturing(stream) {
		return p.fetch(stream)
	}
	if p.look && !p.device.Capturing(stream) {
		p.look, p.lookIn, p.Seen = false, LookSteps, p.Seen[:a.Rows]
		err := p.lengths.Start(uint64(a.Lengths), 4*int(a.Rows), stream)
		p.Looking = err == nil // else what an older copy brought would be taken for it
		return err
	}
	return nil
}

// fetch ends the measured steps.
func (p *Probes) fetch(stream uintptr) error {
	err := p.results.Start(p.Sums, p.sumBytes, stream)
	p.Measuring, p.Fetching = false, err == nil
	return err
}

// settle takes what has arrived.
func (p *Probes) settle() error {
	if there, err := arrived(&p.auditing, p.shared); err != nil {
		return err
	} else if there {
		p.takeAudit()
	}
	if there, err := arrived(&p.Fetching, p.results); err != nil {
		return err
	} else if there {
		p.takeSums()
	}
	there, err := arrived(&p.Looking, p.lengths)
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
func (p *Probes) takeLengths() {
	copy(p.Seen, numbers[int32](p.lengths.Bytes(), len(p.Seen)))
	m := p.Model
	m.Mu.Lock()
	defer m.Mu.Unlock()
	row, longest := p.Longest()
	unknown, due, under := !m.Known || m.Again, !m.Fixed && m.Due(longest), p.Target
	switch {
	case p.Fetching:
	case !due: // a measurement waits for rows to come, if there is nothing else to do
		p.Measuring = p.Measuring && unknown
	case p.Measuring && longest >= selection.ProbeShare*under.Budget:
		p.Target.Row, p.Target.Tokens = row, longest
	case min(m.Config.Budget, longest/selection.ProbeShare, p.Most) > 0:
		p.Aim()
		p.Target.Budget = min(p.Target.Budget, p.Most)
		p.Clear, p.Begun, p.Wanted = true, 0, selection.MeasuredSteps(m.Layers)
	}
}

// takeSums ends a measurement, unless some layers have met too rarely: then it goes on.
func (p *Probes) takeSums() {
	m := p.Model
	pairs, all := m.Layers*(m.Layers-1)/2, numbers[float32](p.results.Bytes(), p.sumBytes/4)
	counts := numbers[int32](p.results.Bytes(), pairs)
	var profile *selection.Profile
	m.Mu.Lock()
	switch t := &p.Target; {
	case m.Fixed || !m.Due(t.Tokens): // another context was first
	case slices.Min(counts) < leastCompared && p.Begun < measureTries*selection.MeasuredSteps(m.Layers):
		p.Measuring = true
		p.Wanted += selection.MeasuredSteps(m.Layers)
	default:
		m.Sums = &selection.Sums{
			Reach: t.Reach, Begun: p.Begun, Steps: p.Begun, N: slices.Clone(counts),
			Sum: slices.Clone(all[pairs:][:pairs*m.Heads]), Square: slices.Clone(all[pairs*(1+m.Heads):]),
		}
		profile = p.Finish(t.Tokens, t.Budget)
	}
	m.Mu.Unlock()
	if profile != nil {
		m.File.Save(profile, p.Log)
	}
}

// takeAudit takes the shares of an audited layer: on its set and on its own best one.
func (p *Probes) takeAudit() {
	m := p.Model
	kept := numbers[float32](p.shared.Bytes(), 2*m.Heads)
	m.Mu.Lock()
	defer m.Mu.Unlock()
	if kept[0] >= 0 && m.Revision == p.audit.revision && !m.Again && !m.Fixed {
		p.Judge(p.audit.layer, p.audit.tokens, kept)
	}
}

// chooses tells whether a set that a layer chooses in the step is read.
func (p *Probes) chooses() bool { return p.Kind == calibrate.StepAblate || p.ReadsSets() }

// choosesByRole tells whether the step's layers attend and choose by their roles.
func (p *Probes) choosesByRole() bool {
	return p.Kind == calibrate.StepPlain || p.Kind == calibrate.StepAudit
}

// bound is the budget that a step's rows are counted by, once so many tokens have joined their sets.
func (p *Probes) bound(joined int32) int32 {
	if p.Kind == calibrate.StepDense || p.Kind == calibrate.StepMeasure || !p.chooses() {
		return math.MaxInt32
	}
	return int32(p.Model.Config.Budget) + joined
}

// numbers looks at fetched bytes as what they are.
func numbers[T int32 | float32](from []byte, n int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(from))), n)
}

// poll is for a host that replays captured steps, before each step (lim_decoder_poll in the public header). It waits for
// nothing.
func (p *Probes) poll() (generation uint64, eager bool, err error) {
	m := p.Model
	if m.Ablation.Load() != nil {
		return p.Revision, true, nil
	}
	if p.Fixed || p.Most == 0 {
		return p.Revision, false, nil
	}
	if err = p.settle(); err != nil {
		return 0, false, DeviceError(err)
	}
	p.lookIn--
	m.Mu.Lock()
	unknown, audit := p.Follow(true, p.auditing || p.Looking)
	m.Mu.Unlock()
	p.polled = true
	return p.Revision, !p.Fixed && (p.Measuring || p.wantsLook(unknown, audit)), nil
}
