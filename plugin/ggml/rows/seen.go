package rows

import (
	"unsafe"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
)

// seen is what the rows of the step before saw. A decode step adds one token to each row: where a row's mask differs from
// that step's in that token alone, its order is the old one with that token behind. On a GPU, where the last upload of a mask is
// kept and changes of the store are told, that is proof; many rows in a long store then cost next to nothing. That upload is not
// the step's where a batch came in between that was none, such as a prompt's: uploads have numbers.
type seen struct {
	rows    []seenRow
	step    uint64 // number of the one that is looked at
	upload  uint64 // number of its mask's upload …
	before  uint64 // … and of that of the step before
	nkv     int32  // of all rows
	tokens  int32
	streams int32
	taken   int // rows of the step: with others, lists lie elsewhere
}

type seenRow struct {
	known     bool
	step      uint64 // that this is of
	visible   int
	own       int32 // slot of the newest token
	stream    int   // of the store
	place     int32 // of the newest token
	changes   uint64
	row       int  // of the step …
	listed    bool // … which has a list, in the step's memory
	ascending bool // the order is that of slots
	index     *kvindex.KVIndex
}

// begin begins a step of so many rows.
func (s *seen) begin(n *graph.Node, rows int) {
	s.step++
	s.before, s.upload = s.upload, n.Upload
	if s.taken != rows {
		s.taken = rows
		clear(s.rows)
	}
}

// note keeps what was found out of row i of the batch, row k of the step.
func (s *seen) note(n *graph.Node, k, i int, t *Track, visible int, slots []int32, known bool) {
	if n.Before == nil && len(s.rows) == 0 {
		return
	}
	rows := int(n.Tokens) * int(n.Streams)
	if s.nkv != n.NKV || s.tokens != n.Tokens || s.streams != n.Streams || len(s.rows) != rows {
		s.nkv, s.tokens, s.streams = n.NKV, n.Tokens, n.Streams
		if cap(s.rows) < rows {
			s.rows = make([]seenRow, rows, max(rows, mostTaken))
		}
		s.rows = s.rows[:rows]
		clear(s.rows)
	}
	stream := int(n.FirstStream) + i/int(n.Tokens)
	own := t.slot(n, i)
	place, changes := t.Index.Place(stream, own)
	s.rows[i] = seenRow{
		known: known, step: s.step, visible: visible, own: own, stream: stream, place: place, changes: changes,
		row: k, listed: slots != nil, ascending: slots == nil || ascending(slots), index: t.Index,
	}
}

// goesOn fills row k of the step, row i of the batch, if it is the one of the step before with one token more.
func (s *seen) goesOn(of *Rows, n *graph.Node, k, i int, t *Track) bool {
	if n.Before == nil || n.UploadBefore != s.before || n.ScanType != cpu.F16 || s.nkv != n.NKV || s.tokens != n.Tokens || s.streams != n.Streams || i >= len(s.rows) {
		return false
	}
	r := &s.rows[i]
	stream := int(n.FirstStream) + i/int(n.Tokens)
	own := t.slot(n, i)
	place, changes := t.Index.Place(stream, own)
	if !r.known || r.row != k || r.step+1 != s.step || r.index != t.Index || r.stream != stream || r.changes != changes || place == kvindex.Unknown || place != r.place+1 ||
		own < 0 || own >= n.NKV || r.visible >= int(n.NKV) || t.Index.Tied {
		return false
	}
	if !r.listed && int(own) != r.visible {
		return false // the row needs a list from now on
	}
	row, token := i/int(n.Tokens), i%int(n.Tokens)
	now := n.ValueBytes(row, token)
	before := unsafe.Slice((*byte)(unsafe.Add(n.Before, int64(row)*n.ScanStreamStride+int64(token)*n.ScanTokenStride)), len(now))
	if !adds(now, before, int(own), n.ValueSize()) {
		return false
	}
	last := r.own
	r.step, r.visible, r.own, r.place = s.step, r.visible+1, own, place
	var slots []int32
	if r.listed {
		list := of.Step.List(k)
		list[r.visible-1] = own
		slots = list[:r.visible]
		r.ascending = r.ascending && own > last
	}
	of.further(n, k, i, t, r.visible, slots, last)
	return true
}

// InOrderOfSlots tells whether row k of the step, which has a list, sees its tokens in the order of slots.
func (r *Rows) InOrderOfSlots(k int, slots []int32) bool {
	s, i := &r.seen, int(r.taken[k])
	if i < len(s.rows) && s.rows[i].step == s.step && s.rows[i].known && s.rows[i].visible == len(slots) && s.rows[i].listed {
		return s.rows[i].ascending
	}
	return ascending(slots)
}

func ascending(slots []int32) bool {
	for i := 1; i < len(slots); i++ {
		if slots[i] < slots[i-1] {
			return false
		}
	}
	return true
}
