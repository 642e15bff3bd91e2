package rows

import (
	"slices"
	"unsafe"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
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
	Always bool // the batch is taken apart also where no row of the step has a token set: the self-test's
	ByCell bool // recency goes by slot number even where positions are known: tests show that the difference matters

	config    *settings.Config
	counts    *stats.Stats
	key       key
	own       []int64      // the rows' own slots in the step
	reason    stats.Reason // why the step's batch is left to the host; Offloaded: it is not
	distances distances
	seen      seen
	front     front

	kinds   []kind     // of the batch's rows
	taken   []int32    // of these, the step's, ascending
	rest    graph.Rest // the others
	drafted bool       // the step has rows of drafts
	slots   int64      // of a stream
	newest  []int64    // the step's rows' own slots, where token sets last
	changes uint64     // of the store, when these were written
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
func (r *Rows) Follow(g *graph.Graph, of *contexts.Batch, news, deaf bool) {
	if r.Stores.Follow(g, of, news, deaf) {
		r.Step.Lasting.Drop()
	}
}

// Fresh tells whether a batch has been written since the last step began: what that one left is not of this batch.
func (r *Rows) Fresh() bool { return r.Followed != nil && r.Followed.fresh }

// Lasts says how many steps token sets serve, from now on.
func (r *Rows) Lasts(interval int) { r.Step.Lasting.Interval = interval }

// Unlearn drops what the layers did last. What is known of the store's tokens stays.
func (r *Rows) Unlearn() {
	r.Step.Lasting.Drop()
	r.Step.Chosen, r.reason = false, stats.ReasonDiscovery
}

// Unchosen drops the step's token sets: a layer that was to choose some is the host's after all.
func (r *Rows) Unchosen() {
	r.Step.Lasting.Drop()
	r.Step.Chosen, r.Step.Resumed = false, false
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
	t := r.Followed
	if t == nil || t.count != rows || n.Scan == nil {
		if rows > mostTaken {
			return stats.ReasonPrompt
		}
		return stats.ReasonUnknownRow
	}
	if rows > mostFollowed {
		return stats.ReasonPrompt
	}
	if len(t.last) != rows {
		return stats.ReasonUnknownRow
	}
	return stats.Offloaded
}

// Begin finds out what the rows of a batch see, and begins a step with so many groups of token sets.
func (r *Rows) Begin(n *graph.Node, groups int) stats.Reason {
	t := r.Followed
	t.fresh = false
	drafts := slices.Contains(r.kinds, draft)
	if drafts || r.drafted { // rows of one text, which may be taken back: each has sets of its own
		r.Step.Lasting.Drop()
	}
	r.drafted, r.slots = drafts, n.Store.Slots
	if err := r.Step.Begin(len(r.taken), int(n.NKV), r.config.Budget, groups); err != nil {
		return stats.ReasonMemory
	}
	r.own = append(r.own[:0], t.last...)
	r.seen.begin(n, len(r.taken))
	r.front = front{}
	for k, i := range r.taken {
		r.see(n, k, int(i), t)
		if r.kinds[i] == draft {
			r.counts.DraftRows++
		}
	}
	r.goOn(n)
	if r.Mixed() && !r.Step.Sparse() && !r.Always { // the host may as well compute all of them
		return stats.ReasonMixed
	}
	return stats.Offloaded
}

// goOn drops the token sets of the step before unless each row is of the text that the row of its number was of, a token on:
// slots are those of a row's stream, and another text may see as many, also in the same slots: a host may have put it there behind its graphs.
func (r *Rows) goOn(n *graph.Node) {
	if r.Step.Lasting.Interval <= 1 {
		return
	}
	same, changes := len(r.newest) == len(r.taken), r.changes
	for k, i := range r.taken {
		row := &r.Step.Rows[k]
		if row.SetLen > 0 && !r.ByCell {
			var slots []int32
			if row.Slots != nil {
				slots = unsafe.Slice((*int32)(row.Slots), row.Visible)
			}
			visible, own := int(row.Visible), r.Followed.slot(n, int(i))
			r.changes = r.Followed.Index.Changes(int(n.FirstStream+row.Stream), slots, visible, own)
			same = same && int64(n.FirstStream+row.Stream)*n.Store.Slots+int64(newest(slots, visible)) == r.newest[k]
		}
		if k == len(r.newest) {
			r.newest = append(r.newest, 0)
		}
		r.newest[k] = r.Followed.last[i]
	}
	r.newest = r.newest[:len(r.taken)]
	if !same || changes != r.changes {
		r.Step.Lasting.Drop()
	}
}

// Sees tells whether a row of the step sees a slot.
func (r *Rows) Sees(n *graph.Node, row int, slot int32) bool {
	at := &r.Step.Rows[row]
	return n.Sees(int(at.Stream), int(at.Token), int64(slot))
}

// Own is the slot of a row's own token.
func (r *Rows) Own(n *graph.Node, row int) int32 {
	return r.Followed.slot(n, int(r.taken[row]))
}

// Batch is how many rows the batch has.
func (r *Rows) Batch() int { return len(r.kinds) }

// Whole tells whether a step's rows are all of their batch, each of its own sequence, and which of them logits are wanted of.
func (r *Rows) Whole(g *graph.Graph) bool {
	return len(r.taken) == len(r.kinds) && !r.drafted && (g.Batch == 0 || g.Batch == len(r.kinds) && len(g.Outputs) > 0)
}

// Output is which of the rows that logits are wanted of a row of a whole step is; -1: none.
func (r *Rows) Output(g *graph.Graph, row int) int {
	if g.Batch == 0 { // of all
		return int(r.taken[row])
	}
	return slices.Index(g.Outputs, r.taken[row])
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
		row := &r.Step.Rows[i]
		visible, _ := cpu.Visible(n.Values(int(row.Stream), int(row.Token)), n.ScanType, int(n.NKV), nil)
		if visible != int(row.Visible) {
			return false
		}
	}
	return true
}
