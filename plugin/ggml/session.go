// Package ggml is one context of a host that computes graphs (ggml), on the CPU or on a GPU.
package ggml

import (
	"sync"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/layers"
	"lessismore/plugin/ggml/oncpu"
	"lessismore/plugin/ggml/rows"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// Session takes part in one context of a host. For each compute call, Plan decides which attentions the library takes and
// what every row of them attends to; how that is computed is the device's business.
type Session struct {
	mu     sync.Mutex // Plan against a reader of the statistics
	layers layers.Context
	rows   rows.Rows
	on     device
	left   contexts.Left // for the device behind this one; kept, so that a step allocates nothing
}

// device is what a session's context computes on.
type device interface {
	// Groups is how many token sets a row of a step has.
	Groups() int
	// Assigned gets ready what attending takes, once the layers are known.
	Assigned(n *graph.Node) error
	// Called is told of a compute call with attention before its nodes are decided about.
	Called(g *graph.Graph)
	// Fits tells whether a node is of the kind that is computed here.
	Fits(n *graph.Node) stats.Reason
	// Ended is told that a new step begins.
	Ended()
	// Leaves adds where the step leaves its token sets for another device.
	Leaves(left *contexts.Left)
	// Begin begins a step whose rows are known, or leaves it to the host.
	Begin(n *graph.Node) stats.Reason
	// Direct states how a node of the step is computed.
	Direct(n *graph.Node, layer int) stats.Reason
	// Planned has the last word on the nodes of a call that were taken, and counts them.
	Planned(g *graph.Graph)
	// Left counts a node of a step that is left to the host.
	Left(n *graph.Node)
	// Unlearn drops what the layers did and were to do.
	Unlearn()
	Report(to *stats.Stats)
	Close()
}

// NewSession starts taking part in a context whose graphs the CPU computes. log may be nil.
func NewSession(e *contexts.Engine, log func(level settings.LogLevel, text string)) *Session {
	s := &Session{}
	s.on = oncpu.New(&s.layers, &s.rows)
	s.start(e, log, kvindex.NewKVIndex)
	return s
}

func (s *Session) start(e *contexts.Engine, log func(level settings.LogLevel, text string), index func(kvindex.Store) *kvindex.KVIndex) {
	s.layers.Init(e, log, layers.Then{
		Forget: s.rows.Drop,
		Unlearn: func() {
			s.on.Unlearn()
			s.rows.Unlearn()
		},
		Assigned: s.assigned,
	})
	s.rows.Init(&e.Settings, &s.layers.Counts, index)
	s.rows.Speculates = e.Settings.Speculation
	e.Started(s)
}

// DivideAlways has mixed batches taken apart also where that gains nothing; for the self-test.
func (s *Session) DivideAlways() { s.rows.Always = true }

// OrderByCell makes recency go by slot number; for tests.
func (s *Session) OrderByCell() { s.rows.ByCell = true }

// Close ends the session; the host's context is gone. What it counted stays with the engine.
func (s *Session) Close() {
	s.mu.Lock()
	s.on.Ended()
	s.mu.Unlock()
	s.layers.Engine.Finished(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers.Close()
	s.on.Close()
	s.rows.Free()
}

// Stats is what the session has counted so far. On a GPU it waits for the device.
func (s *Session) Stats() stats.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counted()
}

// StatsAtOnce is Stats where nothing is waited for; false: a device would be, and with it a host that wants a plan meanwhile.
func (s *Session) StatsAtOnce() (out stats.Stats, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on, is := s.on.(interface{ Counts() bool }); is && on.Counts() {
		return out, false
	}
	return s.counted(), true
}

func (s *Session) counted() stats.Stats {
	out := s.layers.Counts
	s.on.Report(&out)
	return out
}

// Plan decides about each node of a compute call: Reason is Offloaded where the library computes it, with
// Call ready to run. It must be called on every compute call of the context, also those without
// attention: they carry positions and writes.
func (s *Session) Plan(g *graph.Graph) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.layers
	l.Asks(g)
	idle := l.Idle()
	if idle {
		s.rows.Drop()
	}
	s.rows.Follow(g, l.Batch(g), l.Ordinal == nil && !idle, l.Deaf() || idle)
	if s.rows.Fresh() {
		l.Withdraw()
	}
	defer func() { s.rows.Note(g, l.Idle()) }()
	if len(g.Nodes) == 0 {
		if len(g.Writes) > 0 && l.Flashless(g) {
			s.rows.Drop()
		}
		return
	}
	l.Shown()
	l.Regroup()
	s.on.Called(g)
	if l.Anew(g) || l.Adapted(g) {
		s.leave(g)
		return
	}
	l.Survey(g)
	fresh := false // the step was looked at in this compute call
	for i := range g.Nodes {
		n := &g.Nodes[i]
		if n.Reason == stats.Offloaded {
			n.Reason = s.node(n, &fresh)
		} else {
			l.Pass(n)
		}
	}
	l.Show(g)
	l.Untakable(g)
	l.Drafts(&g.Nodes[0], func(n *graph.Node) bool {
		if n.Scan == nil {
			return true // it is not known
		}
		visible, _ := cpu.Visible(n.Values(0, 0), n.ScanType, int(n.NKV), nil)
		return visible <= 1
	})
	if l.Ordinal == nil { // a later node of the graph showed that the layers were not known after all
		g.Undecide()
	}
	s.on.Planned(g)
	for i := range g.Nodes {
		n := &g.Nodes[i]
		l.Counts.Decline(n.Reason)
		switch n.Reason {
		case stats.ReasonWithin, stats.ReasonDense, stats.ReasonNoGain:
			s.on.Left(n)
		}
	}
}

// Again, Tried and Untried are graph.Retrier's, which the device is where it announces trials.
func (s *Session) Again(nodes []graph.Node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on.(graph.Retrier).Again(nodes)
}

func (s *Session) Tried(nats float64, same bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on.(graph.Retrier).Tried(nats, same)
}

func (s *Session) Untried(nodes []graph.Node, why string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on.(graph.Retrier).Untried(nodes, why)
}

// node decides about one node that the kernels could take.
func (s *Session) node(n *graph.Node, fresh *bool) stats.Reason {
	layer, reason := s.layers.Place(n)
	if reason != stats.Offloaded {
		return reason
	}
	if reason = s.on.Fits(n); reason != stats.Offloaded {
		return reason
	}
	if *fresh {
		reason = s.rows.Joins(n, layer)
	} else {
		reason = s.look(n, layer)
		s.rows.Settle(n, layer, reason)
		*fresh = true
	}
	if reason != stats.Offloaded {
		return reason
	}
	if !s.rows.Divide(n) {
		return stats.ReasonMixed
	}
	return s.on.Direct(n, layer)
}

// look finds out what the rows of a batch see, and begins a step unless the batch continues one.
func (s *Session) look(n *graph.Node, layer int) stats.Reason {
	reason := s.rows.Known(n)
	if reason == stats.Offloaded && s.rows.Continues(n, layer) {
		return stats.Offloaded
	}
	s.layers.Withdraw()
	if reason != stats.Offloaded {
		return reason
	}
	if reason := s.rows.Decode(n); reason != stats.Offloaded {
		return reason
	}
	s.on.Ended()
	if reason := s.rows.Begin(n, s.on.Groups()); reason != stats.Offloaded {
		return reason
	}
	if reason = s.on.Begin(n); reason != stats.Offloaded {
		return reason
	}
	if s.rows.Mixed() {
		s.layers.Counts.MixedSteps++
	}
	if s.layers.Spread() {
		s.left = s.rows.Leaves(n)
		s.on.Leaves(&s.left)
		s.layers.Offer(s.left)
	}
	return reason
}

// leave leaves a whole graph to the host: the layers are not known.
func (s *Session) leave(g *graph.Graph) {
	g.Undecide()
	for i := range g.Nodes {
		s.layers.Counts.Decline(g.Nodes[i].Reason)
	}
}

// assigned keeps only the index that the rows are ordered by: that of the first of the layers that can take
// part, which is written before any of them is read.
func (s *Session) assigned(n *graph.Node) error {
	s.rows.Lasts(s.layers.Engine.Settings.Interval)
	s.rows.Keep(s.layers.First())
	return s.on.Assigned(n)
}
