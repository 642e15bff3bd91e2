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
		out.Steps[i].Set = ranges(out.Steps[i].Positions)
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
