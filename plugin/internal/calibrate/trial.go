package calibrate

import (
	"fmt"
	"slices"

	"lessismore/plugin/internal/selection"
)

// Steps between two trials behind a choice, about; at first, when little is known, they are more. Each costs a dense step beside its own.
const (
	followed      = 64
	followedFirst = 32
)

// mostWaited is how many steps the layers' candidates wait for one that can be computed twice: a batch in which nothing else
// comes than decode rows.
const mostWaited = 1024

// trial is a step that is computed twice: what the logits say with a candidate's selection layers, against what they say
// with everything. The host sees the second result, so a trial is exact.
type trial struct {
	of    selection.Candidate // no layers: the first one of a context has everything attended to both times, and must give the same bits
	roles selection.Roles     // of its layers

	rehearsed, refused bool // in this context: twice the same is the same; it cannot be tried
	until              int  // steps to the next trial behind a choice
	waited             int  // steps that could not be trials
}

// tries tells whether the step that begins is a trial. Under the model's lock.
func (c *Calibrator) tries(o Opening) bool {
	m, t := c.Model, &c.trial
	if _, tokens := c.Longest(); t.refused || !o.Probes || tokens < selection.FirstMeasured*m.Config.Budget {
		return false
	}
	switch {
	case m.Tries():
		if o.Twice {
			return true
		}
		if t.waited++; t.waited > mostWaited {
			t.waited = 0
			c.save(m.GiveUp(fmt.Sprintf("of %d steps none had decode rows alone in one graph", mostWaited)))
		}
	case m.Follows() && o.Twice:
		if t.until == 0 {
			t.until = c.spread(followedFirst)
			if m.Sure() {
				t.until = c.spread(followed)
			}
		}
		t.until--
		return t.until <= 0
	}
	return false
}

// try begins a trial; a plain or a dense step, where nothing is left to try. Under the model's lock.
func (c *Calibrator) try() {
	m, t := c.Model, &c.trial
	t.until, t.of = 0, selection.Candidate{}
	if t.rehearsed {
		of, ok := m.NextTrial()
		if !ok {
			return
		}
		t.of = of
	}
	if t.roles.Len() == 0 || !slices.Equal(t.roles.Selections(), t.of.Layers) {
		config := m.Config
		config.Layers = append([]int{}, t.of.Layers...)
		t.roles, _ = selection.NewRoles(m.Layers, config) // in range: checked where they were read or chosen
	}
	c.Kind = StepTrial
}

// Tried takes the outcome of a trial: how far the first result is from the second, in nats, and whether they are the same bits.
func (c *Calibrator) Tried(nats float64, same bool) {
	t, m := &c.trial, c.Model
	c.Kind = StepDense // the step is over
	m.Mu.Lock()
	defer m.Mu.Unlock()
	switch {
	case len(t.of.Layers) > 0:
		c.save(m.Tried(&t.of, nats))
	case same:
		t.rehearsed = true
	default:
		t.refused = true
		c.save(m.GiveUp("a step that is computed twice alike gives other logits"))
	}
}

// Untried says that a trial cannot be: the step is a dense one, and so are those to come.
func (c *Calibrator) Untried(why string) {
	m := c.Model
	m.Mu.Lock()
	defer m.Mu.Unlock()
	c.trial.refused = true
	c.save(m.GiveUp(why))
}

// save notes a profile to be saved once the model's lock is given back; nil: there is none.
func (c *Calibrator) save(p *selection.Profile) {
	if p != nil {
		c.Save = p
	}
}

// Remember saves the trials of a context that ends.
func (c *Calibrator) Remember() {
	c.save(c.Model.Unsaved())
	c.Keep()
}

// Keep saves what the last trial brought.
func (c *Calibrator) Keep() {
	if p := c.Save; p != nil {
		c.Save = nil
		c.Model.File.Save(p, c.Log)
	}
}
