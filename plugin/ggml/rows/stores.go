// Package rows finds out what the rows of a host's batch are: where their tokens' keys lie, what each of them sees, in
// position order, and which of them are decode rows.
package rows

import (
	"unsafe"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
)

// mostFollowed bounds the rows of a batch that is looked at closely; a larger one is a prompt.
const mostFollowed = 4096

// Stores is what is known of the K stores that a context's graphs write to: of all of them while the model's layers are not
// known, then of the one that the rows are ordered by.
type Stores struct {
	Followed *Track // that one, once it is known

	index     func(store kvindex.Store) *kvindex.KVIndex
	tracks    map[uint64]*Track
	positions contexts.Told // of the tokens whose keys are kept
	wanted    contexts.Told // whose logits were wanted of the batch before, where that was told behind it
	rotates   bool          // the model's graphs have positions

	Speculates bool // a draft's tokens are decode rows
	Mixes      bool // decode rows are taken out of a device's batches with a prompt's, which gains nothing there: the host computes them in any case
	notes      cpu.Arena
}

// Track is what is known of one K store.
type Track struct {
	Index *kvindex.KVIndex
	last  []int64 // global slots of the last batch that was written; none if there were more than mostFollowed

	id        uint64 // the store's
	prompt    []bool // of the last batch's tokens: no logits are wanted
	told      bool   // prompt is known
	count     int    // tokens of that batch
	positions uint64 // number of those that went to the index last
	wanted    uint64 // number of what was told of logits before that batch
	fresh     bool   // no step has begun since that batch was written
}

// slot is where the token of a row of the batch is, in its stream.
func (t *Track) slot(n *graph.Node, i int) int32 {
	return int32(t.last[i] - int64(n.FirstStream+int32(i/int(n.Tokens)))*n.Store.Slots)
}

// Len is the number of stores that are followed.
func (s *Stores) Len() int { return len(s.tracks) }

// Follow keeps the K/V index up to date: what the last graph wrote, then this one's shifts, positions and writes, and has the context's other
// devices know what is theirs of it. Stores that are not followed so far are where they are new; deaf: nothing will ask what is written.
// moved: tokens have changed their places.
func (s *Stores) Follow(g *graph.Graph, of *contexts.Batch, news, deaf bool) (moved bool) {
	for _, t := range s.tracks {
		t.Index.Learn()
		if g.Lost {
			t.Index.Forget()
		}
	}
	for i := range g.Changes {
		s.changed(&g.Changes[i])
	}
	for _, id := range g.Rewritten {
		if t := s.tracks[id]; t != nil {
			t.Index.Forget()
		}
	}
	for i := range g.Shifts {
		if t := s.tracks[g.Shifts[i].Store]; t != nil {
			t.Index.Shift(unsafe.Slice((*int32)(g.Shifts[i].Delta), g.Shifts[i].N))
		}
	}
	moved = len(g.Shifts)+len(g.Rewritten) > 0
	if g.Rotations > 0 {
		of.Rotate(g.Positions)
	}
	if len(g.Writes) > 0 || moved {
		s.rotates = of.Keep(&s.positions)
	}
	for i := range g.Writes {
		if !deaf {
			s.wrote(&g.Writes[i], g, of, news)
		}
	}
	if g.Batch > 0 {
		of.Want(g.Batch, g.Outputs)
	}
	return moved
}

// changed follows what the host did behind its graphs.
func (s *Stores) changed(c *graph.Change) {
	if c.Kind == graph.Cleared {
		for id, t := range s.tracks {
			if id >= c.Store && id-c.Store < uint64(c.N) {
				t.Index.Forget()
			}
		}
		return
	}
	t := s.tracks[c.Store]
	if t == nil {
		return
	}
	prints := unsafe.Slice((*uint64)(c.Prints), c.NPrints)
	switch c.Kind {
	case graph.Written:
		t.Index.Wrote(c.First, c.N, prints)
	case graph.Copied:
		t.Index.Copied(c.First, c.From, c.N)
	case graph.ReadOut:
		t.Index.ReadOut(c.First, prints)
	}
}

// presume marks tokens of a text that is evaluated as a prompt's, while nothing is known but their positions: more of them, one
// behind the other, than a draft has, whose logits are all wanted. What follows a draft is decoded, what follows these may be
// their rest.
func presume(prompt []bool, positions []int32) {
	for from := 0; from < len(prompt); {
		to := from + 1
		for to < len(prompt) && !prompt[to-1] && !prompt[to] && positions[to] == positions[to-1]+1 {
			to++
		}
		for i := from; to-from > MostDrafted && i < to; i++ {
			prompt[i] = true
		}
		from = to
	}
}

// Note asks for the prints of what the graph writes to the stores that are followed, and says which these are; idle: none.
func (s *Stores) Note(g *graph.Graph, idle bool) {
	switch {
	case idle:
		g.Followed = graph.NoStore
	case s.Followed != nil:
		g.Followed, g.Mixes = s.Followed.id, s.Mixes
	default:
		g.Followed = graph.AnyStore
	}
	notes, n := cpu.Slice[kvindex.Note](&s.notes, len(s.tracks)), 0
	for _, t := range s.tracks {
		if due, any := t.Index.Due(); any && notes != nil {
			notes[n] = due
			n++
		}
	}
	g.Notes = notes[:n]
}

// Keep stops following stores, but for one: that of the layer that the rows are ordered by.
func (s *Stores) Keep(id uint64) {
	s.Followed = s.tracks[id]
	s.drop(s.Followed)
	if s.Followed != nil {
		s.Followed.Index.Remember()
	}
}

// Drop stops following stores.
func (s *Stores) Drop() {
	s.Followed = nil
	s.drop(nil)
}

func (s *Stores) drop(but *Track) {
	for id, t := range s.tracks {
		if t != but {
			t.Index.Free()
			delete(s.tracks, id)
		}
	}
}

// hear marks the tokens of a store's last batch that no logits were wanted of, where a later graph told that: the one that computes the last
// layer, on another device or in a later call.
func (s *Stores) hear(t *Track, of *contexts.Batch) {
	if !of.Wanted(t.wanted, &s.wanted) {
		return
	}
	t.wanted = s.wanted.Number
	if t.told || s.wanted.Tokens != len(t.last) {
		return
	}
	for i := range s.wanted.Unwanted {
		t.Index.OfPrompt(t.last[i])
	}
}

func (s *Stores) wrote(w *graph.Write, g *graph.Graph, of *contexts.Batch, news bool) {
	t := s.tracks[w.Store.ID]
	if t == nil || !t.Index.Fits(w.Store) {
		if !news {
			return // the layers are known, and this one's store is not the one that is followed
		}
		if t != nil {
			t.Index.Free()
		}
		t = &Track{id: w.Store.ID, Index: s.index(w.Store), last: make([]int64, 0, mostTaken), prompt: make([]bool, 0, mostTaken)}
		s.tracks[w.Store.ID] = t
	}
	s.hear(t, of)
	n := int(w.N)
	t.count, t.last, t.prompt, t.told, t.fresh = n, t.last[:0], t.prompt[:0], g.Batch == n, true
	// M-RoPE has four positions per token; the first one is its place in the text.
	positions := s.positions.Of
	known := t.positions != s.positions.Number && (len(positions) == n || len(positions) == 4*n)
	t.positions = s.positions.Number
	for range n {
		t.prompt = append(t.prompt, t.told)
	}
	if t.told {
		for _, i := range g.Outputs {
			if i >= 0 && int(i) < n {
				t.prompt[i] = false
			}
		}
		if s.Speculates && known && news {
			presume(t.prompt, positions)
		}
	}
	for i := range n {
		slot, prompt := w.Slot(i), t.prompt[i]
		switch {
		case known:
			t.Index.Write(slot, positions[i], prompt)
		case s.rotates:
			t.Index.Write(slot, kvindex.Unknown, prompt)
		default:
			t.Index.WriteNext(slot, prompt)
		}
		if n <= mostFollowed {
			t.last = append(t.last, slot)
		}
	}
	t.Index.Tied = t.Index.Tied || known && len(positions) > n
}
