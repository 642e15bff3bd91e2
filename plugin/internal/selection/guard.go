package selection

import (
	"fmt"
	"math"
	"slices"
)

// DriftLine is what the log says of an alarm.
func DriftLine(layer int, loss, expected float64, choice []int, tokens int) string {
	return fmt.Sprintf("guard: the worst head of layer %d loses %.2f of its attention with selection layers %v, "+
		"%.2f was to be expected: dense until measured again (%d tokens)", layer, loss, choice, expected, tokens)
}

// What the guard makes of its audits. docs/auto.md has the distribution that these come from.
const (
	TrialSteps  = 2          // steps between audits of what this process has not measured
	trialAudits = 16         // of each layer that is on trial
	LeastAudits = 8          // of a layer, before anything is said of it
	forget      = 1 - 1.0/64 // weight of an audit after the next one
	sigmas      = 3          // how certain an alarm is, in standard errors
	slack       = 0.10       // and how much larger than the profile's a loss has to be besides
)

// guard watches the losses of sparse layers against what the model's measurement lets expect.
type guard struct {
	Layers []watched
	turn   int // the layer that was audited last
	own    int // the selection layer that was
	odd    bool
	Trial  int // layers that have not been audited often enough, of a choice that is on trial
}

// watched is one layer under the guard.
type watched struct {
	sparse        bool // it attends to a token set, at least now and then
	selects       bool // only when it goes on with its own last one
	Expected, err float64
	audits        int
	weight        float64
	sum, square   []float64 // per head, older audits weigh less
}

// Expect begins anew with a choice. A choice that its own measurement speaks against (someone wrote it into
// the profile) is held to what the best one would lose: a layer that should choose may lose nothing. Not so one
// that was found by ablation: what it loses was seen to do no harm.
func (g *guard) Expect(m *Model, choice []int) {
	held := choice
	if m.Fixed { // nothing was measured: only what a layer's own set loses with age can be judged
		held = nil
	} else if best := m.measured.Choose(m.Config.Selections); m.truth == nil && m.Trials == nil && best != nil &&
		m.measured.Cost(choice) > m.measured.Cost(best)+CostTolerance {
		held = best
	}
	g.Layers, g.Trial = make([]watched, m.Layers), 0
	for j := range g.Layers {
		w := &g.Layers[j]
		w.selects = slices.Contains(choice, j)
		w.sparse = w.selects && m.Interval > 1 || !m.Fixed && !w.selects && len(choice) > 0 && j > choice[0]
		if w.sparse && (m.Source == SourceProfile || m.Interval > 1) {
			g.Trial++
		}
		if i := latest(held, j); w.sparse && i >= 0 {
			w.Expected, w.err = m.measured.at(i, j), float64(m.measured.err[Pair(i, j)])
		}
	}
}

// latest is the selection layer whose set layer j uses; -1: none, it attends to everything.
func latest(choice []int, j int) int {
	out := -1
	for _, i := range choice {
		if i == j {
			return -1
		}
		if i < j {
			out = i
		}
	}
	return out
}

// Next is the layer whose turn it is; -1: there is none. In a step that goes on with older sets every other
// audit is of a selection layer: those lose first.
func (g *guard) Next(resumed bool) int {
	rotate := func(at *int, selects bool) int {
		for range g.Layers {
			*at = (*at + 1) % len(g.Layers)
			if w := &g.Layers[*at]; w.sparse && w.selects == selects {
				return *at
			}
		}
		return -1
	}
	if g.odd = resumed && !g.odd; g.odd {
		if layer := rotate(&g.own, true); layer >= 0 {
			return layer
		}
	}
	return rotate(&g.turn, false)
}

// Audit takes one audit of a layer: what each head loses. It returns the worst head's mean loss so far, and
// whether that is drift.
func (g *guard) Audit(layer, heads int, kept []float32) (loss float64, drift bool) {
	w := &g.Layers[layer]
	if w.sum == nil {
		w.sum, w.square = make([]float64, heads), make([]float64, heads)
	}
	w.audits++
	if w.audits == trialAudits {
		g.Trial = max(g.Trial-1, 0)
	}
	w.weight = w.weight*forget + 1
	for h := range w.sum {
		x := float64(kept[heads+h] - kept[h])
		w.sum[h] = w.sum[h]*forget + x
		w.square[h] = w.square[h]*forget + x*x
		mean := w.sum[h] / w.weight
		loss = max(loss, mean)
		spread := max(w.square[h]/w.weight-mean*mean, 0) / w.weight
		if w.audits >= LeastAudits && mean > w.Expected+slack+sigmas*math.Sqrt(spread+w.err*w.err) {
			drift = true
		}
	}
	return loss, drift
}
