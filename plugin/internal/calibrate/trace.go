package calibrate

import (
	"fmt"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/stats"
)

// A trace keeps which tokens the steps of a context attended to, for a person to look at (Config.Trace). It is
// bounded twice: by the steps asked for, and by what their sets take. Where there are more, every other one
// that was kept goes, and from then on only every other one is kept: what is left covers the whole of the context.
type trace struct {
	Steps   kept[stats.TraceStep]
	Audits  kept[stats.TraceAudit]
	Numbers int // positions in the sets that are kept
}

// MostTraced bounds the positions that a context's trace holds: 4 MB.
const MostTraced = 1 << 20

// MostTracedAudits bounds the audits of a trace.
const MostTracedAudits = 512

// kept is a bounded sequence that is thinned evenly.
type kept[T any] struct {
	Of    []T
	every uint64 // offers of which one is kept
	Turn  uint64
}

// Wants tells whether the next offer is to be kept.
func (k *kept[T]) Wants() bool {
	k.every = max(k.every, 1)
	k.Turn++
	return (k.Turn-1)%k.every == 0
}

// Thin lets every other one go.
func (k *kept[T]) Thin() {
	n := 0
	for i := 0; i < len(k.Of); i += 2 {
		k.Of[i], k.Of[n] = k.Of[n], k.Of[i]
		n++
	}
	clear(k.Of[n:])
	k.Of = k.Of[:n]
	k.every *= 2
}

// RecordAudit keeps an audit; under c.mu.
func (c *Calibrator) RecordAudit(a stats.TraceAudit) {
	t := &c.Traced.Audits
	if c.Model.Config.Trace == 0 || !t.Wants() {
		return
	}
	if t.Of = append(t.Of, a); len(t.Of) > MostTracedAudits {
		t.Thin()
	}
}

// show is the trace as the statistics have it; under p.mu.
func (t *trace) show() *stats.Trace {
	out := &stats.Trace{Every: max(t.Steps.every, 1), Steps: slices.Clone(t.Steps.Of), Audits: slices.Clone(t.Audits.Of)}
	for i := range out.Steps {
		out.Steps[i].Set = Ranges(out.Steps[i].Positions)
	}
	return out
}

// Ranges is ascending numbers as text.
func Ranges(numbers []int32) string {
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
