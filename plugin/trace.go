package plugin

import (
	"fmt"
	"slices"
	"unsafe"
)

// A trace keeps which tokens the steps of a context attended to, for a person to look at (Config.Trace). It is
// bounded twice: by the steps asked for, and by what their sets take. Where there are more, every other one
// that was kept goes, and from then on only every other one is kept: what is left covers the whole of the context.
type trace struct {
	steps   kept[TraceStep]
	audits  kept[TraceAudit]
	numbers int // positions in the sets that are kept
}

// mostTraced bounds the positions that a context's trace holds: 4 MB.
const mostTraced = 1 << 20

// mostTracedAudits bounds the audits of a trace.
const mostTracedAudits = 512

// TraceStep is one step of a context: its first row.
type TraceStep struct {
	Step   uint64 `json:"step"`   // of the context
	Tokens int    `json:"tokens"` // visible
	What   string `json:"what"`   // "sparse"; "dense", "measured": everything is attended to; "intervention"
	Layer  int    `json:"layer"`  // whose set it is: the last selection layer; -1: there is none
	Set    string `json:"set"`    // positions among the visible tokens, ascending, such as "0-3 17 40-71"

	set []int32
}

// TraceAudit is one audit of the guard.
type TraceAudit struct {
	Step  uint64  `json:"step"`
	Layer int     `json:"layer"`
	Loss  float64 `json:"loss"` // of the worst head, in this step alone
	Mean  float64 `json:"mean"` // of the worst head so far: what is held against the profile
}

// Trace is what was kept.
type Trace struct {
	Every  uint64       `json:"every"` // step of which one was kept
	Steps  []TraceStep  `json:"steps"`
	Audits []TraceAudit `json:"audits"`
}

// kept is a bounded sequence that is thinned evenly.
type kept[T any] struct {
	of    []T
	every uint64 // offers of which one is kept
	turn  uint64
}

// wants tells whether the next offer is to be kept.
func (k *kept[T]) wants() bool {
	k.every = max(k.every, 1)
	k.turn++
	return (k.turn-1)%k.every == 0
}

// thin lets every other one go.
func (k *kept[T]) thin() {
	n := 0
	for i := 0; i < len(k.of); i += 2 {
		k.of[i], k.of[n] = k.of[n], k.of[i]
		n++
	}
	clear(k.of[n:])
	k.of = k.of[:n]
	k.every *= 2
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
		s.Layer = p.roles.selections[p.roles.Group(st.layer)]
		row = &st.group(p.roles.Group(st.layer))[0]
		s.set = make([]int32, row.SetLen)
		if !p.place(s.set, row.Set, row) { // the host never computed it
			return
		}
		slices.Sort(s.set)
	}
	t.steps.of = append(t.steps.of, s)
	t.numbers += len(s.set)
	for len(t.steps.of) > p.model.config.Trace || t.numbers > mostTraced && len(t.steps.of) > 1 {
		t.steps.thin()
		t.numbers = 0
		for i := range t.steps.of {
			t.numbers += len(t.steps.of[i].set)
		}
	}
}

// recordAudit keeps an audit; under c.mu.
func (c *calibrator) recordAudit(a TraceAudit) {
	t := &c.traced.audits
	if c.model.config.Trace == 0 || !t.wants() {
		return
	}
	if t.of = append(t.of, a); len(t.of) > mostTracedAudits {
		t.thin()
	}
}

// show is the trace as the statistics have it; under p.mu.
func (t *trace) show() *Trace {
	out := &Trace{Every: max(t.steps.every, 1), Steps: slices.Clone(t.steps.of), Audits: slices.Clone(t.audits.of)}
	for i := range out.Steps {
		out.Steps[i].Set = ranges(out.Steps[i].set)
	}
	return out
}

// ranges is ascending numbers as text.
func ranges(numbers []int32) string {
	var text []byte
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		if i > 0 {
			text = append(text, ' ')
		}
		if text = fmt.Append(text, numbers[i]); j > i {
			text = fmt.Appendf(text, "-%d", numbers[j])
		}
		i = j + 1
	}
	return unsafe.String(unsafe.SliceData(text), len(text))
}
