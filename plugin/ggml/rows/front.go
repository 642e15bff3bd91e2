package rows

import (
	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/kvindex"
)

// front is the row of the step that was looked at last, beyond the budget. The rows of a draft each see one token more than the one before:
// where their masks say so, the order of a row is that of the row in front with its own token behind.
type front struct {
	row   int     // of the step
	slots []int32 // in the order of tokens; nil: 0 .. visible-1
	known bool    // that they are, and that the mask says nothing else of them
}

// behind fills row k of the step, row i of the batch, if it is a token behind the row in front.
func (r *Rows) behind(n *graph.Node, k, i int, t *Track) bool {
	f := &r.front
	stream, token := i/int(n.Tokens), i%int(n.Tokens)
	if !f.known || f.row+1 != k || int(r.taken[f.row])+1 != i || token == 0 || n.MaxBias != 0 || t.Index.Tied {
		return false
	}
	own, last, visible := t.slot(n, i), t.slot(n, i-1), int(r.Step.Rows[f.row].Visible)
	place, _ := t.Index.Place(int(n.FirstStream)+stream, own)
	before, _ := t.Index.Place(int(n.FirstStream)+stream, last)
	if place == kvindex.Unknown || place != before+1 || own < 0 || own >= n.NKV || visible >= int(n.NKV) || f.slots == nil && int(own) != visible {
		return false
	}
	if !adds(n.ValueBytes(stream, token), n.ValueBytes(stream, token-1), int(own), n.ValueSize()) {
		return false
	}
	if f.slots != nil {
		list := r.Step.List(k)
		copy(list, f.slots[:visible])
		list[visible] = own
		f.slots = list[:visible+1]
	}
	f.row = k
	r.further(n, k, i, t, visible+1, f.slots, last)
	return true
}
