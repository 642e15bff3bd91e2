package rows

import (
	"slices"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// Rows is the batch of one context: its decode step, and the stores that say which tokens its rows see.
type Rows struct {
	Stores
	Step   steps.RowSets
	ByCell bool // recency goes by slot number even where positions are known: tests show that the difference matters

	config    *settings.Config
	counts    *stats.Stats
	key       key
	own       []int64      // the rows' own slots in the step
	reason    stats.Reason // why the step's batch is left to the host; Offloaded: it is not
	distances distances
	seen      seen
}

// key tells the compute calls of one step from those of another.
type key struct {
	mask            uintptr
	nkv             int32
	tokens, streams int32
	firstStream     int32
}

func keyOf(n *graph.Node) key {
	return key{uintptr(n.Mask), n.NKV, n.Tokens, n.Streams, n.FirstStream}
}

// Init begins. index makes an index of a store; counts is where rows are counted.
func (r *Rows) Init(config *settings.Config, counts *stats.Stats, index func(store kvindex.Store) *kvindex.KVIndex) {
	r.config, r.counts = config, counts
	r.Stores.index, r.Stores.tracks = index, map[uint64]*Track{}
}

// Follow keeps the stores up to date, see there.
func (r *Rows) Follow(g *graph.Graph, news, deaf bool) {
	if r.Stores.Follow(g, news, deaf) {
		r.Step.Lasting.Drop()
	}
}

// Lasts says how many steps token sets serve, from now on.
func (r *Rows) Lasts(interval int) { r.Step.Lasting.Interval = interval }

// Unlearn drops what the layers did last. What is known of the store's tokens stays.
func (r *Rows) Unlearn() {
	r.Step.Lasting.Drop()
	r.Step.Chosen, r.reason = false, stats.ReasonDiscovery
}

// Abandon has no later call go on with the step.
func (r *Rows) Abandon() { r.key = key{} }

// Settle notes what has become of a step: offloaded, or why its batch is left to the host.
func (r *Rows) Settle(n *graph.Node, layer int, reason stats.Reason) {
	r.key, r.reason = keyOf(n), reason
	if reason != stats.Offloaded {
		r.Step.Lasting.Drop()
		r.Step.Layer = layer
	}
}

// Joins tells whether another layer of the compute call that a step was looked at in has the same rows, and what has become
// of them.
func (r *Rows) Joins(n *graph.Node, layer int) stats.Reason {
	switch {
	case layer <= r.Step.Layer:
		return stats.ReasonShared
	case keyOf(n) != r.key:
		return stats.ReasonUnknownRow // a second step in one call would overwrite what the first one's layers read
	case r.reason != stats.Offloaded:
		r.Step.Layer = layer
	}
	return r.reason
}

// Known tells whether it is known which tokens a batch's rows are of.
func (r *Rows) Known(n *graph.Node) stats.Reason {
	rows := int(n.Tokens) * int(n.Streams)
	if rows > Most {
		return stats.ReasonPrompt
	}
	t := r.Followed
	if t == nil || t.count != rows || len(t.last) != rows || n.Scan == nil {
		return stats.ReasonUnknownRow
	}
	return stats.Offloaded
}

// Begin finds out what the rows of a batch see, and begins a step with so many groups of token sets.
func (r *Rows) Begin(n *graph.Node, groups int) stats.Reason {
	rows, t := int(n.Tokens)*int(n.Streams), r.Followed
	t.fresh = false
	if err := r.Step.Begin(rows, int(n.NKV), r.config.Budget, groups); err != nil {
		return stats.ReasonMemory
	}
	r.own = append(r.own[:0], t.last...)
	r.seen.step++
	for i := range rows {
		r.see(n, i, t)
	}
	return stats.Offloaded
}

// Sees tells whether a row of the step sees a slot.
func (r *Rows) Sees(n *graph.Node, row int, slot int32) bool {
	return n.Sees(row/int(n.Tokens), row%int(n.Tokens), int64(slot))
}

// Own is the slot of a row's own token.
func (r *Rows) Own(n *graph.Node, row int) int32 {
	return int32(r.Followed.last[row] - int64(n.FirstStream+int32(row/int(n.Tokens)))*n.Store.Slots)
}

// Free gives back the memory that threads read.
func (r *Rows) Free() {
	r.Drop()
	r.Step.Free()
	r.notes.Free()
}

// Continues tells whether a compute call, whose rows are known, goes on with the step that an earlier call began: the host
// splits a step where it off-loads layers or calls back between them.
func (r *Rows) Continues(n *graph.Node, layer int) bool {
	t := r.Followed
	if t.fresh || keyOf(n) != r.key || r.reason != stats.Offloaded || layer <= r.Step.Layer || !slices.Equal(r.own, t.last) {
		return false
	}
	for i := range r.Step.Rows {
		stream, token := i/int(n.Tokens), i%int(n.Tokens)
		visible, _ := cpu.Visible(n.Values(stream, token), n.ScanType, int(n.NKV), nil)
		if visible != int(r.Step.Rows[i].Visible) {
			return false
		}
	}
	return true
}

// Decode tells decode rows, of tokens that are new, from prompts.
func (r *Rows) Decode(n *graph.Node) stats.Reason {
	t := r.Followed
	if reason := classify(n, t); reason != stats.Offloaded {
		return reason
	}
	switch {
	case t.told && !slices.Contains(t.prompt, false):
		return stats.ReasonPrompt // fed token by token, or the beginnings of several
	case !t.fresh: // its tokens' slots are those of an earlier step
		return stats.ReasonUnknownRow
	}
	return stats.Offloaded
}

// classify tells decode rows from prompts: two rows belong to one sequence if and only if one's own
// token is visible to the other.
func classify(n *graph.Node, t *Track) stats.Reason {
	tokens, streams := int(n.Tokens), int(n.Streams)
	shared, single := 0, 0
	for stream := range streams {
		first := int64(n.FirstStream+int32(stream)) * n.Store.Slots
		own := t.last[stream*tokens : (stream+1)*tokens]
		for i, slot := range own {
			if slot -= first; slot < 0 || slot >= int64(n.NKV) || !n.Sees(stream, i, slot) {
				return stats.ReasonUnknownRow
			}
			alone := true
			for j := range own {
				if j != i && (n.Sees(stream, j, slot) || n.Sees(stream, i, own[j]-first)) {
					alone = false
					break
				}
			}
			if alone {
				single++
			} else {
				shared++
			}
		}
	}
	switch {
	case shared == 0:
		return stats.Offloaded
	case single == 0:
		return stats.ReasonPrompt
	}
	return stats.ReasonMixed
}
