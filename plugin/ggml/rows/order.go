package rows

import (
	"math"
	"slices"
	"unsafe"

	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/steps"
)

// see fills row k of the step, row i of the batch, with what its mask leaves visible. Of a row with more tokens than the budget the newest
// must be known: it attends to everything where they are not, and where it belongs to a prompt.
func (r *Rows) see(n *graph.Node, k, i int, t *Track) {
	if r.kinds[i] == draft { // they are taken back, and written anew in any slots
		if r.behind(n, k, i, t) {
			return
		}
	} else if r.seen.goesOn(r, n, k, i, t) {
		return
	}
	stream, token := i/int(n.Tokens), i%int(n.Tokens)
	scan, config := n.Values(stream, token), r.config
	visible, flags := cpu.Visible(scan, n.ScanType, int(n.NKV), nil)
	prefix := flags&cpu.Prefix != 0
	var list, slots []int32 // slots nil: 0 .. visible-1
	if !prefix || visible > config.Budget {
		list = r.Step.List(k)
	}
	if !prefix {
		cpu.Visible(scan, n.ScanType, int(n.NKV), unsafe.Pointer(&list[0]))
		slots = list[:visible]
	}
	var split steps.Split
	if visible > config.Budget {
		split = steps.SplitBudget(visible, config.Budget, config.Recency, config.SinkTokens)
		storeStream := int(n.FirstStream) + stream
		w := kvindex.Window{Own: t.slot(n, i), SinkTokens: split.SinkTokens, Recent: split.Recent}
		known := r.ByCell
		switch {
		case known:
		case prefix && n.MaxBias == 0 && t.Index.Prefix(storeStream, visible, w):
			known = true
		default:
			if prefix {
				cpu.Visible(scan, n.ScanType, int(n.NKV), unsafe.Pointer(&list[0]))
			}
			if n.MaxBias > 0 {
				known = r.distances.order(scan, n.ScanType, list[:visible], w)
			} else {
				known = t.Index.Order(storeStream, list[:visible], w, list)
			}
			if known {
				slots = list[:visible]
			}
		}
		r.seen.note(n, k, i, t, visible, slots, known)
		r.front = front{row: k, slots: slots, known: known && !r.ByCell && flags&cpu.Plain != 0}
		if !r.decodes(k, i, t, storeStream, known, newest(slots, visible)) {
			split = steps.Split{}
		}
	}
	var mask unsafe.Pointer
	if flags&cpu.Plain == 0 {
		mask = unsafe.Add(n.Mask, int64(stream)*n.MaskStreamStride+int64(token)*n.MaskTokenStride)
	}
	r.Step.See(k, token, stream, visible, slots, mask, split)
}

// newest is the slot of the token before a row's own.
func newest(slots []int32, visible int) int32 {
	if slots == nil || visible < 2 {
		return int32(visible - 2)
	}
	return slots[visible-2]
}

// decodes tells whether a row may attend to a part of its tokens, and counts why not. A token that logits are wanted
// of, behind one that they were not wanted of, is the last one of a prompt; a draft behind such a token is a prompt's rest.
func (r *Rows) decodes(k, i int, t *Track, stream int, known bool, before int32) bool {
	switch {
	case r.ByCell:
		r.counts.CellOrder++
		return true
	case !known:
		r.counts.CellOrder++
		return false
	}
	r.counts.PositionOrder++
	if !t.told {
		r.counts.UntoldRows++
	}
	follows := before >= 0 && t.Index.Prompt(stream, before)
	if !follows && r.kinds[i] == draft && before >= 0 && slices.Contains(t.last, int64(stream)*r.slots+int64(before)) {
		follows = !r.sparse(stream, before, k, t)
	}
	if t.told && t.prompt[i] || follows {
		r.counts.PromptRows++
		return false
	}
	return true
}

// sparse tells whether the row of a token of the batch, before row k of the step, has a token set. A row of a draft may have
// one only if the one before it has: what is not known of that one is not known of this one.
func (r *Rows) sparse(stream int, slot int32, k int, t *Track) bool {
	for j := k - 1; j >= 0; j-- {
		if row := int(r.taken[j]); t.last[row] == int64(stream)*r.slots+int64(slot) {
			return r.Step.Rows[j].SetLen > 0 || int(r.Step.Rows[j].Visible) <= r.config.Budget
		}
	}
	return false
}

// distances orders a row's tokens by what its mask says of them: with ALiBi (arXiv 2108.12409) the mask holds how far
// each visible token is from the row's own, which no restored state and no copied sequence changes.
type distances struct{ keys []uint64 }

// exact is up to which distance f16 holds every whole number.
const exact = 2048

// order brings the slots, given ascending, into the order of their tokens. It succeeds if the newest are known.
func (d *distances) order(mask unsafe.Pointer, typ cpu.Type, slots []int32, w kvindex.Window) bool {
	d.keys = d.keys[:0]
	for _, slot := range slots {
		var far float32
		if typ == cpu.F16 {
			far = -(*(*float16.Float16)(unsafe.Add(mask, 2*int(slot)))).Float32()
		} else {
			far = -*(*float32)(unsafe.Add(mask, 4*int(slot)))
		}
		if !(far >= 0 && far < math.MaxInt32) {
			return false
		}
		d.keys = append(d.keys, uint64(math.MaxInt32-int32(far))<<32|uint64(slot))
	}
	slices.Sort(d.keys)
	n, recent := len(slots), min(w.Recent, len(slots))
	for i := max(n-recent, 1); i < n; i++ {
		if d.keys[i]>>32 == d.keys[i-1]>>32 {
			return false
		}
	}
	if n == 0 || int32(uint32(d.keys[n-1])) != w.Own || typ == cpu.F16 && recent > 0 && d.keys[n-recent]>>32 < math.MaxInt32-exact {
		return false
	}
	for i, k := range d.keys {
		slots[i] = int32(uint32(k))
	}
	return true
}
