package plugin

import (
	"fmt"
	"sync"
)

// stepKind is what a step is for.
type stepKind int32

const (
	stepPlain   stepKind = iota // every layer by its role
	stepDense                   // every layer attends to everything: the layers' roles are not known
	stepMeasure                 // the same, and half of the layers' sets are held against each other
	stepAudit                   // by role, but one sparse layer attends to everything and is compared
	stepAblate                  // dense but for one layer, whatever the roles are (Engine.Ablate)
)

// calibrator decides for one context what each step is for, and judges what measured and audited steps bring. It does not
// know which engine it drives: that one says when a step begins and what is known of its rows (opening), gets the probes
// of a measured or audited step ready (cpuProbes, cudaProbes), and hands over their results when they have arrived: on a
// CPU when the next step begins, from a GPU some steps later.
type calibrator struct {
	model    *model
	log      func(LogLevel, string)
	revision uint64
	roles    Roles
	source   string
	fixed    bool // the roles will not change
	interval int

	kind    stepKind
	row     int      // that is audited
	layer   int      // that is audited
	tokens  int      // that the audited row sees
	ablated Ablation // in a step of one

	seen      []int32 // what the rows see, or saw when that was last known
	measuring bool    // measured steps are wanted
	target    target  // of them
	layers    []int   // that a measured step compares, ascending; their number is their rank
	due       bool    // an audit was, in this step
	until     int     // steps to the next audit
	random    uint32  // spreads the audits: texts have periods of their own
	rowTurn   int
	steps     uint64

	mu      sync.Mutex // what a reader of the statistics wants
	audited []LayerLoss
	events  []Event
	traced  trace

	recorded uint64 // the last step that was offered to the trace
}

// target is what a measured step measures: one row, and sets of how many tokens.
type target struct {
	row, tokens int
	budget      int
	reach       int // in budgets, see reachOf
}

// opening is what an engine knows of a step that begins.
type opening struct {
	rows, heads int
	sparse      bool // some row may see more tokens than the budget
	current     bool // seen is what the rows see now: each step that is due can be measured at once
	probes      bool // the engine can measure and audit in this step
	counted     bool // the step was counted before, on the way to the next audit
	busy        bool // an audit's results are on their way, or what the rows see is
}

// init joins a model.
func (c *calibrator) init(m *model) {
	c.model, c.log, c.random = m, m.log, 0x9E3779B9
	m.mu.Lock()
	c.take()
	c.until = c.wait()
	m.mu.Unlock()
}

// wait is the number of steps to the next audit: about Guard of them, never in step with the text. A choice
// that was read from a file is on trial at first.
func (c *calibrator) wait() int {
	c.random ^= c.random << 13
	c.random ^= c.random >> 17
	c.random ^= c.random << 5
	m := c.model.config.Guard
	if c.model.guard.trial > 0 {
		m = min(m, trialSteps)
	}
	return 1 + m/2 + int(c.random%uint32(max(m, 1)))
}

// take copies what is in force.
func (c *calibrator) take() {
	m := c.model
	c.roles, c.revision, c.source, c.fixed, c.interval = m.roles, m.revision, m.source, m.fixed, m.interval
}

// begin decides what a step is for.
func (c *calibrator) begin(o opening) {
	c.kind, c.due = stepPlain, false
	m := c.model
	if x := m.ablation.Load(); x != nil {
		c.ablate(x)
		return
	}
	if c.fixed && c.interval <= 1 || !o.sparse {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.heads == 0 { // nobody else asks, where the roles are fixed
		m.heads = o.heads
	}
	suits := m.fixed || m.suits(o.heads)
	if o.current && suits {
		c.aim()
	}
	unknown, audit := c.follow(o.probes && !o.counted && suits, o.busy)
	c.due = audit && o.probes
	switch {
	case !suits:
	case o.probes && c.measuring && c.target.row < o.rows:
		c.kind = stepMeasure
	case unknown:
		c.kind = stepDense
	case c.due:
		c.pickRow(o.rows)
	}
}

// follow takes over what is in force, and tells whether the layers' roles are unknown and whether an audit is due. With
// count, a step comes nearer to it. Under the model's lock.
func (c *calibrator) follow(count, busy bool) (unknown, audit bool) {
	m := c.model
	if c.revision != m.revision {
		c.mu.Lock()
		c.take()
		c.mu.Unlock()
	}
	c.measuring = c.measuring && !m.fixed && m.due(c.target.tokens)
	if m.fixed && m.interval <= 1 {
		return false, false
	}
	unknown = !m.known || m.again
	if count && !unknown && !c.measuring {
		c.until--
	}
	return unknown, !unknown && !c.measuring && m.config.Guard > 0 && c.until <= 0 && !busy
}

// longest is the row that sees the most tokens, as far as known.
func (c *calibrator) longest() (row, tokens int) {
	for i, n := range c.seen {
		if int(n) > tokens {
			row, tokens = i, int(n)
		}
	}
	return row, tokens
}

// aim has the longest row measured, if it is long enough. Under the model's lock.
func (c *calibrator) aim() {
	m := c.model
	row, tokens := c.longest()
	if c.measuring = m.due(tokens); c.measuring {
		c.target = target{row, tokens, min(m.config.Budget, tokens/probeShare, mostProbed), reachOf(tokens, m.config.Budget)}
	}
}

// compare says which layers the next measured step compares, after so many others.
func (c *calibrator) compare(begun int) {
	c.layers = c.layers[:0]
	for l := range c.model.layers {
		if inStep(l, 1+begun%roundOf(c.model.layers)) {
			c.layers = append(c.layers, l)
		}
	}
}

// pickRow makes a step an audited one, if a row is known to be sparse. Under the model's lock.
func (c *calibrator) pickRow(rows int) {
	c.until = c.wait()
	for range rows {
		c.rowTurn = (c.rowTurn + 1) % rows
		if c.rowTurn < len(c.seen) && int(c.seen[c.rowTurn]) > c.model.config.Budget {
			c.kind, c.row, c.tokens = stepAudit, c.rowTurn, int(c.seen[c.rowTurn])
			return
		}
	}
}

// pickLayer says which layer an audited step audits; there may be none, and then the step is a plain one. resumed: the
// sets are older ones.
func (c *calibrator) pickLayer(resumed bool) {
	c.model.mu.Lock()
	defer c.model.mu.Unlock()
	if c.layer = c.model.guard.next(resumed); c.layer < 0 {
		c.kind = stepPlain
	}
}

// mode says how a layer attends in the step, before it is measured or audited; sparse as in step.mode.
func (c *calibrator) mode(s *step, layer int, sparse bool) Mode {
	s.layer = layer
	if c.kind == stepDense || c.kind == stepMeasure {
		s.did.dense++
		return Full
	}
	return s.mode(c.role(layer), sparse)
}

// finish ends the measurement whose sums the model has. It returns the profile to be saved once the model's lock, under
// which it is, is given back.
func (c *calibrator) finish(tokens, budget int) *Profile {
	profile := c.model.finish(tokens, budget)
	if profile != nil {
		c.note(Event{Step: c.steps, Tokens: tokens, What: "measured", Layers: profile.Choice, Loss: profile.Worst})
	}
	return profile
}

// judge takes an audit of a layer: each head's share of its attention on the layer's set and, behind these, on its own
// best one. Under the model's lock.
func (c *calibrator) judge(layer, tokens int, kept []float32) {
	m := c.model
	w := &m.guard.layers[layer]
	loss, drift := m.guard.audit(layer, m.heads, kept)
	worst := 0.0
	for h := range m.heads {
		worst = max(worst, float64(kept[m.heads+h]-kept[h]))
	}
	c.mu.Lock()
	if c.audited == nil {
		c.audited = make([]LayerLoss, m.layers)
	}
	a := &c.audited[layer]
	a.Layer, a.Loss, a.Expected = layer, loss, w.expected
	a.Audits++
	c.recordAudit(TraceAudit{Step: c.steps, Layer: layer, Loss: round(worst), Mean: round(loss)})
	c.mu.Unlock()
	if !drift {
		return
	}
	event := Event{Step: c.steps, Tokens: tokens, What: "drift", Layers: []int{layer}, Loss: round(loss), Expected: round(w.expected)}
	if m.interval > 1 { // sets that are too old lose too: that is the first thing to mend
		event.What = "interval"
		m.interval = 1
		m.revision++
		m.guard.expect(m, m.roles.Selections())
		m.log(LogInfo, fmt.Sprintf("guard: the worst head of layer %d loses %.2f of its attention, %.2f was to be expected: "+
			"token sets are chosen in every step from now on", layer, loss, w.expected))
	} else {
		m.again, m.sums = true, nil
		m.log(LogInfo, driftLine(layer, loss, w.expected, m.roles.Selections(), tokens))
	}
	c.note(event)
}

func (c *calibrator) note(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.events) < maxEvents {
		c.events = append(c.events, e)
	}
}

// report adds what the calibrator knows to a context's statistics.
func (c *calibrator) report(s *Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Layers, s.SelectionLayers, s.LayersFrom = c.roles.Len(), c.roles.Selections(), c.source
	for _, a := range c.audited {
		if a.Audits > 0 {
			a.Loss, a.Expected = round(a.Loss), round(a.Expected)
			s.Audited = append(s.Audited, a)
			s.Audits += a.Audits
		}
	}
	if c.model.config.Trace > 0 {
		s.Trace = c.traced.show()
	}
	for _, e := range c.events {
		s.Events = append(s.Events, e)
		if e.What != "measured" {
			s.Alarms++
		}
	}
}
