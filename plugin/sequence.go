package plugin

import (
	"slices"
	"sync"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// Sequence decodes one sequence, one query token at a time, for callers that hand over each layer's
// tensors (the C ABI). It belongs to one thread at a time; different ones may run in parallel.
//
// Two sights take turns: a call that is refused must leave the step as it was.
type Sequence struct {
	engine  *Engine
	layers  int
	pilot   *pilot
	workers *Workers

	step     step
	position int64 // of the query token of the current step
	seen     *sight
	next     *sight

	call    *cpu.Call
	memory  cpu.Arena // of call
	work    cpu.Arena
	timings timings
	counts  Stats

	mu        sync.Mutex
	published Stats // for the engine's report, which may come from another thread
}

// NewSequence begins a sequence on an engine, of a model with that many layers, with threads to run on.
// The sequences of an engine share what is learned of the model.
func NewSequence(engine *Engine, layers int, workers *Workers) (*Sequence, error) {
	m, err := engine.model(identity{Layers: layers, Weights: engine.about}, engine.said.add)
	if err != nil {
		return nil, err
	}
	s := &Sequence{engine: engine, layers: layers, pilot: newPilot(m, m.log), workers: workers, seen: new(sight), next: new(sight)}
	calls := cpu.Slice[cpu.Call](&s.memory, 1)
	if calls == nil || s.timings.of(cpu.Full) == nil {
		s.free()
		return nil, &Error{NoMemory, "no memory for a sequence"}
	}
	s.call = &calls[0]
	s.step.lasting.interval = engine.config.Interval
	s.Reset()
	s.publish()
	engine.started(s)
	engine.said.flush()
	return s, nil
}

// Attend computes one layer of a step (lim_attend in the public header says how). Arguments that were
// left out are filled in.
func (s *Sequence) Attend(a *Attention) error {
	if err := a.check(s.layers); err != nil {
		return err
	}
	layer := int(a.Layer)
	fresh := a.QueryPosition != s.position || layer <= s.step.layer
	// A step that was seen before may still be the same one: a layer computed again, or a token replaced.
	if fresh || !s.seen.same(a) {
		if err := s.see(a); err != nil {
			return err
		}
	}
	team := s.workers.borrow()
	if team == nil {
		s.Reset()
		return &Error{NoMemory, "no threads to be had"}
	}
	defer s.workers.giveBack(team)

	s.fill(a, s.engine.config.Policy)
	s.pilot.direct(&s.step, layer, s.call)
	s.call.Timing = unsafe.Pointer(s.timings.of(s.call.Mode))
	work := s.work.Bytes(cpu.WorkSize(s.call, team.Size()))
	if work == nil {
		s.Reset()
		return &Error{NoMemory, "no memory for the kernels' work"}
	}
	s.call.Work = work
	team.Attend(s.call)

	if fresh {
		s.position = a.QueryPosition
		s.counts.began(&s.step, s.pilot.kind == stepMeasure)
		s.counts.PositionOrder++
	}
	s.counts.planned(&s.step, layer, s.pilot.role(layer), s.call.Mode)
	s.publish()
	s.engine.said.flush()
	return nil
}

// see makes what a call sees the step's; the token set ends with it.
func (s *Sequence) see(a *Attention) error {
	if err := s.next.look(a); err != nil {
		return err
	}
	config := &s.engine.config
	n := s.next.visible
	s.trace()
	// The slots are the sight's, so the step needs memory for the sets alone.
	if err := s.step.begin(1, min(n, config.Budget), config.Budget, s.pilot.groups()); err != nil {
		s.Reset()
		return &Error{NoMemory, "no memory for the token set"}
	}
	s.seen, s.next = s.next, s.seen
	var split Split
	if n > config.Budget {
		split = SplitBudget(n, config.Budget, config.Recency, config.SinkTokens)
	}
	s.step.see(0, 0, 0, n, s.seen.slots, nil, split)
	s.pilot.begin(&s.step, int(a.Heads), &s.counts)
	if s.pilot.lasts(&s.step) && s.step.lasting.resume(&s.step, func(_ int, slot int32) bool {
		return s.seen.holds(slot) && s.next.holds(slot) && s.seen.position(slot) == s.next.position(slot)
	}, func(int) int32 { return s.seen.newest() }) {
		s.counts.ReusedSteps++
	}
	s.pilot.arrange(&s.step)
	return nil
}

// trace keeps the step that has ended, where its token sets are asked for.
func (s *Sequence) trace() {
	if s.engine.config.Trace > 0 {
		s.pilot.record(&s.step)
	}
}

// fill states the call for the kernels.
func (s *Sequence) fill(a *Attention, policy Policy) {
	c := s.call
	fill(&c.Query, &a.Query)
	fill(&c.Key, &a.Key)
	fill(&c.Value, &a.Value)
	fill(&c.Output, &a.Output)
	c.Heads, c.KVHeads, c.DimK, c.DimV = a.Heads, a.KVHeads, a.KeyDim, a.ValueDim
	c.Scale, c.Softcap = a.Scale, a.Softcap
	point(&c.Slopes, a.Slopes)
	point(&c.Sinks, a.Sinks)
	c.Policy = cpu.Policy(policy)
	row := &s.step.rows[0]
	if s.seen.plain {
		point(&row.Mask, 0)
	} else {
		point(&row.Mask, a.Mask)
	}
}

func fill(t *cpu.Tensor, v *View) {
	point(&t.Data, v.Data)
	t.TokenStride, t.HeadStride, t.Type = v.SlotStride, v.HeadStride, cpu.Type(v.Type)
}

// point stores a caller's address in C memory, as the number that it is to Go.
func point(p *unsafe.Pointer, address uintptr) { *(*uintptr)(unsafe.Pointer(p)) = address }

// Reset forgets the current step: the next call starts a new one.
func (s *Sequence) Reset() {
	s.position = -1
	s.trace()
	s.step.chosen, s.step.layer = false, -1
	s.step.lasting.drop()
	s.pilot.forget()
}

// TokenSet is the current step's token set: slots, ascending; empty when none has been chosen. It is
// valid until the next call.
func (s *Sequence) TokenSet() []int32 {
	if !s.step.chosen || len(s.step.rows) == 0 || s.step.rows[0].SetLen == 0 {
		return nil
	}
	row := &s.step.group(s.pilot.roles.Group(s.step.layer))[0]
	return unsafe.Slice((*int32)(row.Set), row.SetLen)
}

// Stats is what the sequence has counted. Safe for use from any thread.
func (s *Sequence) Stats() Stats { return s.stats() }

func (s *Sequence) stats() Stats {
	s.mu.Lock()
	out := s.published
	s.mu.Unlock()
	s.pilot.report(&out)
	return out
}

func (s *Sequence) publish() {
	s.timings.read(&s.counts)
	s.mu.Lock()
	s.published = s.counts
	s.mu.Unlock()
}

// Free ends the sequence; the engine keeps its counts.
func (s *Sequence) Free() {
	s.trace()
	s.engine.finished(s)
	s.free()
}

func (s *Sequence) free() {
	s.pilot.free()
	s.step.free()
	s.seen.free()
	s.next.free()
	s.memory.Free()
	s.work.Free()
	s.timings.free()
}

// Total is the sum over all sequences and sessions of the engine, ended ones included.
func (e *Engine) Total() Stats {
	r := e.Report()
	var total Stats
	for i := range r.Contexts {
		total.add(&r.Contexts[i])
	}
	total.SelectionLayers = slices.Clone(total.SelectionLayers)
	return total
}
