package calibrate

import (
	"fmt"
	"sync"

	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// stepKind is what a step is for.
type stepKind int32

const (
	StepPlain   stepKind = iota // every layer by its role
	StepDense                   // every layer attends to everything: the layers' roles are not known
	StepMeasure                 // the same, and half of the layers' sets are held against each other
	StepAudit                   // by role, but one sparse layer attends to everything and is compared
	StepAblate                  // dense but for one layer, whatever the roles are (Engine.Ablate)
	StepTrial                   // computed twice: as a candidate for a quality target has it, then as StepDense
)

// Calibrator decides for one context what each step is for, and judges what measured and audited steps bring. It does not
// know which engine it drives: that one says when a step begins and what is known of its rows (opening), gets the probes
// of a measured or audited step ready (cpuProbes, cudaProbes), and hands over their results when they have arrived: on a
// CPU when the next step begins, from a GPU some steps later.
type Calibrator struct {
	Model    *selection.Model
	Log      func(settings.LogLevel, string)
	Revision uint64
	Roles    selection.Roles
	budget   int // by the choice
	Source   string
	Fixed    bool // the roles will not change
	Interval int

	Kind    stepKind
	Row     int                // that is audited
	Layer   int                // that is audited
	Tokens  int                // that the audited row sees
	ablated selection.Ablation // in a step of one
	trial   trial
	Save    *selection.Profile // to be saved once no lock is held

	Seen      []int32 // what the rows see, or saw when that was last known
	Measuring bool    // measured steps are wanted
	Target    target  // of them
	Layers    []int   // that a measured step compares, ascending; their number is their rank
	Due       bool    // an audit was, in this step
	until     int     // steps to the next audit
	random    uint32  // spreads the audits: texts have periods of their own
	rowTurn   int
	Steps     uint64

	Mu      sync.Mutex // what a reader of the statistics wants
	audited []stats.LayerLoss
	events  []stats.Event
	Traced  trace

	Recorded uint64 // the last step that was offered to the trace
}

// target is what a measured step measures: one row, and sets of how many tokens.
type target struct {
	Row, Tokens int
	Budget      int
	Reach       int // in budgets, see reachOf
}

// Opening is what an engine knows of a step that begins.
type Opening struct {
	Rows, Heads int
	Sparse      bool // some row may see more tokens than the budget
	Current     bool // seen is what the rows see now: each step that is due can be measured at once
	Probes      bool // the engine can measure and audit in this step
	Counted     bool // the step was counted before, on the way to the next audit
	Busy        bool // an audit's results are on their way, or what the rows see is
	Twice       bool // the step can be computed twice, as far as is known
}

// Init joins a model.
func (c *Calibrator) Init(m *selection.Model) {
	c.Model, c.Log, c.random = m, m.Log, 0x9E3779B9
	m.Mu.Lock()
	c.take()
	c.until = c.wait()
	m.Mu.Unlock()
}

// wait is the number of steps to the next audit: about Guard of them, never in step with the text. A choice
// that was read from a file is on trial at first.
func (c *Calibrator) wait() int {
	m := c.Model.Config.Guard
	if c.Model.Guard.Trial > 0 {
		m = min(m, selection.TrialSteps)
	}
	return c.spread(m)
}

// spread is about m steps.
func (c *Calibrator) spread(m int) int {
	c.random ^= c.random << 13
	c.random ^= c.random >> 17
	c.random ^= c.random << 5
	return 1 + m/2 + int(c.random%uint32(max(m, 1)))
}

// take copies what is in force.
func (c *Calibrator) take() {
	m := c.Model
	c.Roles, c.budget, c.Revision, c.Source, c.Fixed, c.Interval = m.Roles, m.Budget, m.Revision, m.Source, m.Fixed, m.Interval
}

// Begin decides what a step is for.
func (c *Calibrator) Begin(o Opening) {
	c.Kind, c.Due = StepPlain, false
	m := c.Model
	if x := m.Ablation.Load(); x != nil {
		c.ablate(x)
		return
	}
	if c.Fixed && c.Interval <= 1 || !o.Sparse {
		return
	}
	m.Mu.Lock()
	defer m.Mu.Unlock()
	if m.Heads == 0 { // nobody else asks, where the roles are fixed
		m.Heads = o.Heads
	}
	suits := m.Fixed || m.Suits(o.Heads)
	if o.Current && suits {
		c.Aim()
	}
	unknown, audit := c.Follow(o.Probes && !o.Counted && suits, o.Busy)
	c.Due = audit && o.Probes
	switch {
	case !suits:
	case o.Probes && c.Measuring && c.Target.Row < o.Rows:
		c.Kind = StepMeasure
	case c.tries(o):
		c.try()
	case unknown:
		c.Kind = StepDense
	case c.Due:
		c.pickRow(o.Rows)
	}
}

// Follow takes over what is in force, and tells whether the layers' roles are unknown and whether an audit is due. With
// count, a step comes nearer to it. Under the model's lock.
func (c *Calibrator) Follow(count, busy bool) (unknown, audit bool) {
	m := c.Model
	if c.Revision != m.Revision {
		c.Mu.Lock()
		c.take()
		c.Mu.Unlock()
	}
	c.Measuring = c.Measuring && !m.Fixed && m.Due(c.Target.Tokens)
	if m.Fixed && m.Interval <= 1 {
		return false, false
	}
	unknown = !m.Known || m.Again || m.Tries()
	if count && !unknown && !c.Measuring {
		c.until--
	}
	return unknown, !unknown && !c.Measuring && m.Config.Guard > 0 && c.until <= 0 && !busy
}

// Longest is the row that sees the most tokens, as far as known.
func (c *Calibrator) Longest() (row, tokens int) {
	for i, n := range c.Seen {
		if int(n) > tokens {
			row, tokens = i, int(n)
		}
	}
	return row, tokens
}

// Aim has the longest row measured, if it is long enough. Under the model's lock.
func (c *Calibrator) Aim() {
	m := c.Model
	row, tokens := c.Longest()
	if c.Measuring = m.Due(tokens); c.Measuring {
		c.Target = target{row, tokens, min(m.Config.Budget, tokens/selection.ProbeShare, selection.MostProbed), selection.ReachOf(tokens, m.Config.Budget)}
	}
}

// ReadsSets tells whether a set that a layer chooses is read: by a sparse layer, or by itself in a later step.
func (c *Calibrator) ReadsSets() bool {
	return c.Roles.Sparse() || c.Interval > 1 && len(c.Roles.Selections()) > 0
}

// Compare says which layers the next measured step compares, after so many others.
func (c *Calibrator) Compare(begun int) {
	c.Layers = c.Layers[:0]
	for l := range c.Model.Layers {
		if selection.InStep(l, 1+begun%selection.RoundOf(c.Model.Layers)) {
			c.Layers = append(c.Layers, l)
		}
	}
}

// pickRow makes a step an audited one, if a row is known to be sparse. Under the model's lock.
func (c *Calibrator) pickRow(rows int) {
	c.until = c.wait()
	for range rows {
		c.rowTurn = (c.rowTurn + 1) % rows
		if c.rowTurn < len(c.Seen) && int(c.Seen[c.rowTurn]) > c.Model.Config.Budget {
			c.Kind, c.Row, c.Tokens = StepAudit, c.rowTurn, int(c.Seen[c.rowTurn])
			return
		}
	}
}

// PickLayer says which layer an audited step audits; there may be none, and then the step is a plain one. resumed: the
// sets are older ones.
func (c *Calibrator) PickLayer(resumed bool) {
	c.Model.Mu.Lock()
	defer c.Model.Mu.Unlock()
	if c.Layer = c.Model.Guard.Next(resumed); c.Layer < 0 {
		c.Kind = StepPlain
	}
}

// Mode says how a layer attends in the step, before it is measured or audited; sparse as in step.mode.
func (c *Calibrator) Mode(s *steps.Step, layer int, sparse bool) steps.Mode {
	s.Layer = layer
	if c.Kind == StepDense || c.Kind == StepMeasure {
		s.Did.Dense++
		return steps.Full
	}
	return s.Mode(c.Role(layer), sparse)
}

// Finish ends the measurement whose sums the model has. It returns the profile to be saved once the model's lock, under
// which it is, is given back.
func (c *Calibrator) Finish(tokens, budget int) *selection.Profile {
	profile := c.Model.Finish(tokens, budget)
	if profile != nil {
		c.note(stats.Event{Step: c.Steps, Tokens: tokens, What: "measured", Layers: profile.Choice, Loss: profile.Worst})
	}
	return profile
}

// Judge takes an audit of a layer: each head's share of its attention on the layer's set and, behind these, on its own
// best one. Under the model's lock.
func (c *Calibrator) Judge(layer, tokens int, kept []float32) {
	m := c.Model
	w := &m.Guard.Layers[layer]
	loss, drift := m.Guard.Audit(layer, m.Heads, kept)
	worst := 0.0
	for h := range m.Heads {
		worst = max(worst, float64(kept[m.Heads+h]-kept[h]))
	}
	c.Mu.Lock()
	if c.audited == nil {
		c.audited = make([]stats.LayerLoss, m.Layers)
	}
	a := &c.audited[layer]
	a.Layer, a.Loss, a.Expected = layer, loss, w.Expected
	a.Audits++
	c.RecordAudit(stats.TraceAudit{Step: c.Steps, Layer: layer, Loss: selection.Round(worst), Mean: selection.Round(loss)})
	c.Mu.Unlock()
	if !drift {
		return
	}
	event := stats.Event{Step: c.Steps, Tokens: tokens, What: "drift", Layers: []int{layer}, Loss: selection.Round(loss), Expected: selection.Round(w.Expected)}
	if m.Interval > 1 { // sets that are too old lose too: that is the first thing to mend
		event.What = "interval"
		m.Interval = 1
		m.Revision++
		m.Guard.Expect(m, m.Roles.Selections())
		m.Log(settings.LogInfo, fmt.Sprintf("guard: the worst head of layer %d loses %.2f of its attention, %.2f was to be expected: "+
			"token sets are chosen in every step from now on", layer, loss, w.Expected))
	} else {
		m.Again, m.Sums = true, nil
		m.Log(settings.LogInfo, selection.DriftLine(layer, loss, w.Expected, m.Roles.Selections(), tokens))
	}
	c.note(event)
}

func (c *Calibrator) note(e stats.Event) {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	if len(c.events) < stats.MaxEvents {
		c.events = append(c.events, e)
	}
}

// Report adds what the calibrator knows to a context's statistics.
func (c *Calibrator) Report(s *stats.Stats) {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	s.Layers, s.SelectionLayers, s.LayersFrom = c.Roles.Len(), c.Roles.Selections(), c.Source
	for _, a := range c.audited {
		if a.Audits > 0 {
			a.Loss, a.Expected = selection.Round(a.Loss), selection.Round(a.Expected)
			s.Audited = append(s.Audited, a)
			s.Audits += a.Audits
		}
	}
	if c.Model.Config.Trace > 0 {
		s.Trace = c.Traced.show()
	}
	for _, e := range c.events {
		s.Events = append(s.Events, e)
		if e.What != "measured" {
			s.Alarms++
		}
	}
}
