package rows

import (
	"slices"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/stats"
)

// mostTaken bounds the rows of a step.
const mostTaken = 256

// MostDrafted is how many rows a draft has at most: the sequence's last token, and what was drafted behind it. More tokens of
// one sequence are a text that is evaluated.
const MostDrafted = 16

// kind is what a row of a batch is. Two rows belong to one sequence if and only if one's own token is visible to the other.
type kind uint8

const (
	single    kind = iota // the only row of its sequence
	draft                 // of a sequence with few rows, whose logits are all wanted
	evaluated             // of a sequence with more rows, whose logits are all wanted
	prompt                // of a sequence with rows whose logits are not wanted, or are not known to be
	unknown               // its own token is not where it was written
)

// Decode tells decode rows, of tokens that are new, from others, and whether the batch can be taken.
func (r *Rows) Decode(n *graph.Node) stats.Reason {
	t := r.Followed
	if t.told && !slices.Contains(t.prompt, false) {
		return stats.ReasonPrompt // fed token by token, or the beginnings of several
	}
	var counts [unknown + 1]int
	r.kinds = r.kinds[:0]
	for stream := range int(n.Streams) {
		for i := range int(n.Tokens) {
			k := kindOf(n, t, stream, i)
			r.kinds = append(r.kinds, k)
			counts[k]++
			if k == evaluated && r.Speculates {
				t.Index.OfPrompt(t.last[stream*int(n.Tokens)+i])
			}
		}
	}
	if counts[unknown] > 0 {
		return stats.ReasonUnknownRow
	}
	if reason := r.take(n, counts[prompt]+counts[evaluated]); reason != stats.Offloaded {
		return reason
	}
	if !t.fresh { // its tokens' slots are those of an earlier step
		return stats.ReasonUnknownRow
	}
	return stats.Offloaded
}

// kindOf tells what one row is.
func kindOf(n *graph.Node, t *Track, stream, i int) kind {
	tokens := int(n.Tokens)
	first := int64(n.FirstStream+int32(stream)) * n.Store.Slots
	own, unwanted := t.last[stream*tokens:][:tokens], t.prompt[stream*tokens:][:tokens]
	slot := own[i] - first
	if slot < 0 || slot >= int64(n.NKV) || !n.Sees(stream, i, slot) {
		return unknown
	}
	others := 0
	for d := 1; d < tokens; d++ { // the others of a sequence are near, as a rule
		for _, j := range [2]int{i - d, i + d} {
			if j < 0 || j >= tokens {
				continue
			}
			of := own[j] - first
			if of < 0 || of >= int64(n.NKV) {
				return unknown
			}
			if !n.Sees(stream, j, slot) && !n.Sees(stream, i, of) {
				continue
			}
			if !t.told || unwanted[i] || unwanted[j] {
				return prompt
			}
			if others++; others == MostDrafted {
				return evaluated
			}
		}
	}
	if others > 0 {
		return draft
	}
	return single
}

// take settles which rows of a batch are the step's, and which ones are left to the host.
func (r *Rows) take(n *graph.Node, prompts int) stats.Reason {
	r.taken, r.rest = r.taken[:0], graph.Rest{}
	for i, k := range r.kinds {
		if k == single || k == draft && r.Speculates {
			r.taken = append(r.taken, int32(i))
		}
	}
	switch {
	case len(r.taken) > mostTaken || len(r.taken) == 0 && prompts > 0:
		return stats.ReasonPrompt
	case len(r.taken) == 0:
		return stats.ReasonDraft
	case len(r.taken) == len(r.kinds):
		return stats.Offloaded
	case n.Divides == graph.Whole, n.Divides == graph.Overlaid && !r.Mixes:
		return stats.ReasonMixed
	case n.Divides == graph.Overlaid:
		r.overlay(n)
		return stats.Offloaded
	}
	r.leave(n)
	if len(r.taken) == 0 {
		return stats.ReasonMixed
	}
	return stats.Offloaded
}

// leave leaves the host the smallest part of the batch that it can compute by itself and that has all rows that are not taken:
// tokens of the one stream, or whole streams. Rows between them become the host's.
func (r *Rows) leave(n *graph.Node) {
	unit := 1 // rows that go together
	if n.Streams > 1 {
		unit = int(n.Tokens)
	}
	low, high, next := len(r.kinds), 0, 0
	for i := range r.kinds {
		if next < len(r.taken) && int(r.taken[next]) == i {
			next++
			continue
		}
		low, high = min(low, i/unit), i/unit+1
	}
	if n.Streams > 1 {
		r.rest = graph.Rest{Tokens: n.Tokens, Stream: int32(low), Streams: int32(high - low)}
	} else {
		r.rest = graph.Rest{Token: int32(low), Tokens: int32(high - low), Streams: 1}
	}
	r.taken = slices.DeleteFunc(r.taken, func(i int32) bool { return int(i)/unit >= low && int(i)/unit < high })
}

// overlay leaves the host all rows of the batch, and the step those that the library computes once more: the most that lie one
// behind the other. A server's batches begin with them.
func (r *Rows) overlay(n *graph.Node) {
	r.keep(n, func(int) bool { return true })
}

// keep leaves the step the most rows that are fit and lie one behind the other, if there are any, and the host all rows of the batch.
func (r *Rows) keep(n *graph.Node, fit func(k int) bool) (first, most int) {
	for from, to := 0, 0; from < len(r.taken); from = max(to, from+1) {
		for to = from; to < len(r.taken) && fit(to) && (to == from || r.taken[to] == r.taken[to-1]+1); {
			to++
		}
		if to-from > most {
			first, most = from, to-from
		}
	}
	if most > 0 {
		r.taken = r.taken[:copy(r.taken, r.taken[first:first+most])]
		r.rest = graph.Rest{Tokens: n.Tokens, Streams: n.Streams}
	}
	return first, most
}

// LeaveDense leaves the host those rows of a step that have begun to attend to everything, though they are beyond the budget, as those of a
// prompt have to: the step has the most of the others that lie one behind the other. False: it has none, or the node is not such a one.
func (r *Rows) LeaveDense(n *graph.Node) bool {
	if n.Divides != graph.Overlaid || !r.Mixes {
		return false
	}
	first, most := r.keep(n, func(k int) bool { return r.Step.Rows[k].SetLen > 0 || int(r.Step.Rows[k].Visible) <= r.config.Budget })
	if most == 0 {
		return false
	}
	r.Step.Rows = r.Step.Rows[first:][:most]
	return r.Step.Sparse()
}

// Divide leaves the host its part of a node of the step. False: that node cannot be divided.
func (r *Rows) Divide(n *graph.Node) bool {
	n.Rest = r.rest
	return r.rest.Tokens == 0 || n.Divides != graph.Whole
}

// Mixed tells whether the batch has rows that are not the step's.
func (r *Rows) Mixed() bool { return r.rest.Tokens > 0 }

// Drafted tells whether rows of the step are of drafts.
func (r *Rows) Drafted() bool { return r.drafted }

// First is the batch's row that is the step's first one.
func (r *Rows) First() int { return int(r.taken[0]) }

// Follows tells whether row k of the step is of the text of the one before it, a token further on in a draft.
func (r *Rows) Follows(n *graph.Node, k int) bool {
	return k > 0 && r.kinds[r.taken[k]] == draft && r.Step.Rows[k].Stream == r.Step.Rows[k-1].Stream && r.Sees(n, k, r.Own(n, k-1))
}
