package plugin

import (
	"math"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// unknown marks a slot whose token's place in its sequence is not known. It sorts before every place.
const unknown = math.MinInt32

// KVIndex knows which place in its sequence the token in each slot of one K/V store has. The host's slots are no
// order: after a removal, new tokens fill the holes. Recency needs the places.
//
// Places follow from what graphs write. What a host does behind its graphs (a restored state, a copied stream) shows
// in the keys: each row that a graph wrote has a print, and a place counts for a row that still has the print. Places
// are positions, or, of a model that has none in its graphs, numbers of writes.
//
// A store may consist of several streams of equal size, one after the other; a slot's number is then
// stream*size + index.
type KVIndex struct {
	positions []int32
	prompt    []bool // no logits were wanted of the slot's token
	size      int    // slots per stream
	linear    []int  // per stream: that many leading slots hold consecutive, ascending positions
	byWrites  bool   // places are numbers of writes
	writes    int32
	tied      bool // tokens may share a position: those of an image do

	prints cpu.Prints
	noted  []uint64 // prints of the rows that graphs wrote
	due    []int64  // slots whose prints are taken once the graph is computed
	nDue   int
	told   prints // what rows held wherever they lay

	notedMemory, dueMemory cpu.Arena

	sorted []int32  // scratch of Order
	counts []int32  // scratch of sort
	keys   []uint64 // scratch of sort
	read   []uint64 // scratch of renew
}

// NewKVIndex is an index of a store none of whose tokens is known. Without a layout that shows its rows, or without
// memory, none ever will be.
func NewKVIndex(store Store) *KVIndex {
	n := int(store.Slots) * int(store.Streams)
	x := &KVIndex{positions: make([]int32, n), prompt: make([]bool, n), size: int(store.Slots), linear: make([]int, store.Streams)}
	for i := range x.positions {
		x.positions[i] = unknown
	}
	x.noted, x.due = cpu.Slice[uint64](&x.notedMemory, n), cpu.Slice[int64](&x.dueMemory, n)
	if store.Stride > 0 && store.ID != 0 && x.noted != nil && x.due != nil {
		x.prints = cpu.Prints{
			Rows: *(*unsafe.Pointer)(unsafe.Pointer(&store.ID)), Stride: store.Stride, Bytes: store.Row,
			Slots: int64(n), Noted: unsafe.Pointer(&x.noted[0]),
		}
	}
	return x
}

// Free gives the index's memory back.
func (x *KVIndex) Free() {
	x.notedMemory.Free()
	x.dueMemory.Free()
	x.prints = cpu.Prints{}
}

// Fits tells whether the index was made for such a store.
func (x *KVIndex) Fits(store Store) bool {
	return x.size == int(store.Slots) && len(x.linear) == int(store.Streams) &&
		(x.prints.Rows == nil || x.prints.Stride == store.Stride && x.prints.Bytes == store.Row)
}

// Write notes that the graph puts the token of a position in a slot. Slots outside the store are ignored.
func (x *KVIndex) Write(slot int64, position int32, prompt bool) {
	if x.byWrites {
		x.Forget()
	}
	x.write(slot, position, prompt)
}

// WriteNext is Write for a token without a position: it is newer than those that were written before.
func (x *KVIndex) WriteNext(slot int64, prompt bool) {
	if !x.byWrites || x.writes == math.MaxInt32 {
		x.Forget()
	}
	x.byWrites = true
	x.write(slot, x.writes, prompt)
	x.writes++
}

func (x *KVIndex) write(slot int64, position int32, prompt bool) {
	if slot < 0 || slot >= int64(len(x.positions)) || x.prints.Rows == nil {
		return
	}
	x.noted[slot], x.prompt[slot] = cpu.NoPrint, prompt
	x.place(int(slot), position)
	if position != unknown && x.nDue < len(x.due) {
		x.due[x.nDue] = slot
		x.nDue++
	}
}

// place sets a slot's place.
func (x *KVIndex) place(slot int, position int32) {
	x.positions[slot] = position
	x.extend(slot/x.size, slot%x.size)
}

// extend brings a stream's linear prefix up to date after slot i of it changed.
func (x *KVIndex) extend(stream, i int) {
	cells := x.positions[stream*x.size : (stream+1)*x.size]
	n := &x.linear[stream]
	switch {
	case i == 0:
		*n = 0 // the base of the whole run changed
	case i < *n && cells[i] != cells[i-1]+1:
		*n = i
		return
	case i != *n:
		return
	}
	for *n < len(cells) && cells[*n] != unknown && (*n == 0 || cells[*n] == cells[*n-1]+1) {
		*n++
	}
}

// Due is what has to be noted once the graph is computed whose writes and shifts the index was told; false: nothing.
func (x *KVIndex) Due() (Note, bool) {
	return Note{x.prints, unsafe.Pointer(unsafe.SliceData(x.due)), int64(x.nDue)}, x.nDue > 0
}

// Learn remembers what was noted. It must be called before the index is told of the next graph.
func (x *KVIndex) Learn() {
	for _, slot := range x.due[:x.nDue] {
		x.remember(int(slot))
	}
	x.nDue = 0
}

// Remember makes the index recognise rows by their prints, in whichever slot they turn up.
func (x *KVIndex) Remember() {
	x.told.make(min(max(2*len(x.positions), minPrints/2), maxPrints/2))
	for slot := range x.positions {
		x.remember(slot)
	}
}

func (x *KVIndex) remember(slot int) {
	if x.positions[slot] != unknown && x.noted[slot] != cpu.NoPrint && !x.byWrites {
		x.told.put(x.noted[slot], x.positions[slot], x.prompt[slot])
	}
}

// Shift adds a delta to each known slot's position (the host's K-shift). Shorter or longer lists than
// the store are not understood: everything is forgotten.
func (x *KVIndex) Shift(delta []int32) {
	if len(delta) != len(x.positions) || x.byWrites || x.prints.Rows == nil {
		x.Forget()
		return
	}
	x.renew(0, nil, len(delta), -1)
	x.nDue = 0
	for i, d := range delta {
		x.noted[i] = cpu.NoPrint // every row is written
		if x.positions[i] != unknown {
			x.positions[i] += d
			x.due[x.nDue] = int64(i)
			x.nDue++
		}
	}
	for s := range x.linear {
		x.extend(s, 0)
	}
}

// Forget drops what is known of the slots.
func (x *KVIndex) Forget() {
	for i := range x.positions {
		x.positions[i] = unknown
	}
	clear(x.linear)
	x.nDue, x.writes, x.byWrites, x.tied = 0, 0, false, false
}

// renew looks at n slots' rows, slots base + list[i] or base + i, but for one, and corrects the places of those that
// have changed.
func (x *KVIndex) renew(base int, list []int32, n, but int) {
	x.read = slices.Grow(x.read[:0], n)[:n]
	x.prints.Read(base, list, x.read)
	for i, print := range x.read {
		slot := base + i
		if list != nil {
			slot = base + int(list[i])
		}
		if slot == but || x.noted[slot] == print {
			continue
		}
		position, prompt, ok := x.told.get(print)
		if !ok || x.byWrites {
			print, position = cpu.NoPrint, unknown
		}
		x.noted[slot], x.prompt[slot] = print, prompt
		if position != x.positions[slot] {
			x.place(slot, position)
		}
	}
}

// Window is what a row wants to know of its order: which tokens are its first ones, and above all which its newest.
type Window struct {
	Own           int32 // the slot of the row's own token, which the graph writes
	Sinks, Recent int
}

// Prefix tells whether slots 0 .. n-1 of a stream are in the order of their tokens as they are, the row's own last.
func (x *KVIndex) Prefix(stream, n int, w Window) bool {
	if stream >= len(x.linear) || n == 0 || n > x.linear[stream] || int(w.Own) != n-1 || x.prints.Rows == nil {
		return false
	}
	if x.byWrites { // nothing tells that no other token is among the newest, but that all are known
		return x.prints.Hold(stream*x.size, nil, n-1) == n-1
	}
	base, before, sinks := stream*x.size, max(min(w.Recent, n)-1, 0), min(w.Sinks, n-1)
	return x.prints.Hold(base+n-1-before, nil, before) == before && x.prints.Hold(base, nil, sinks) == sinks
}

// Order writes the slots that a row sees, given ascending, to out in the order of their tokens: those of unknown
// places first, in the order of slots. It succeeds if the newest are known to be the newest, that is if they hold the
// positions up to the row's own without a gap, no other slot holds one of these, and each row is what was written for
// that position; or if all of that is true of every slot, with gaps. out may be slots itself.
func (x *KVIndex) Order(stream int, slots []int32, w Window, out []int32) bool {
	if stream >= len(x.linear) || len(slots) == 0 || x.prints.Rows == nil || x.positions[stream*x.size+int(w.Own)] == unknown {
		return false
	}
	for range 2 {
		x.sort(stream, slots, w.Own)
		if x.proven(stream, x.sorted, w) {
			copy(out, x.sorted)
			return true
		}
		x.renew(stream*x.size, slots, len(slots), stream*x.size+int(w.Own))
	}
	return false
}

// proven is Order's test of a sorted list.
func (x *KVIndex) proven(stream int, order []int32, w Window) bool {
	cells := x.positions[stream*x.size:][:x.size]
	n, recent := len(order), min(w.Recent, len(order))
	if order[n-1] != w.Own {
		return false
	}
	check := order[n-recent : max(n-1, n-recent)]
	if x.byWrites || !contiguous(cells, order, recent) {
		if cells[order[0]] == unknown || !x.tied && !unique(cells, order) {
			return false
		}
		check = order[:n-1]
	}
	sinks := order[:min(w.Sinks, n-1)]
	for len(sinks) > 0 && cells[sinks[0]] == unknown {
		sinks = sinks[1:]
	}
	base := stream * x.size
	return x.prints.Hold(base, check, len(check)) == len(check) && x.prints.Hold(base, sinks, len(sinks)) == len(sinks)
}

// contiguous tells whether the last tokens of a sorted list hold consecutive positions, which no other one holds.
func contiguous(cells, order []int32, recent int) bool {
	n := len(order)
	last := cells[order[n-1]]
	for i := n - recent; i < n; i++ {
		if cells[order[i]] != last-int32(n-1-i) {
			return false
		}
	}
	return recent == n || recent == 0 || cells[order[n-recent-1]] < cells[order[n-recent]]
}

// unique tells whether no two tokens of a sorted list have one place.
func unique(cells, order []int32) bool {
	for i := 1; i < len(order); i++ {
		if cells[order[i]] == cells[order[i-1]] {
			return false
		}
	}
	return true
}

// spread is sort for slots that hold consecutive positions up to last, as nearly all rows do. False: they do not.
func (x *KVIndex) spread(cells, slots []int32, last int32) bool {
	for i := range x.sorted {
		x.sorted[i] = -1
	}
	first := int64(last) - int64(len(slots)) + 1
	for _, s := range slots {
		i := int64(cells[s]) - first
		if i < 0 || i >= int64(len(slots)) || x.sorted[i] >= 0 {
			return false
		}
		x.sorted[i] = s
	}
	return true
}

// sort puts the slots in the order of their places; equal places in the order of slots.
func (x *KVIndex) sort(stream int, slots []int32, own int32) {
	cells, n := x.positions[stream*x.size:][:x.size], len(slots)
	x.sorted = slices.Grow(x.sorted[:0], n)[:n]
	if x.spread(cells, slots, cells[own]) {
		return
	}
	low, high := int32(math.MaxInt32), int32(unknown)
	for _, s := range slots {
		if p := cells[s]; p != unknown {
			low, high = min(low, p), max(high, p)
		}
	}
	if reach := int64(high) - int64(low); reach > 4*int64(n) {
		x.keys = x.keys[:0]
		for _, s := range slots {
			x.keys = append(x.keys, uint64(uint32(cells[s])^1<<31)<<32|uint64(s))
		}
		slices.Sort(x.keys)
		for i, k := range x.keys {
			x.sorted[i] = int32(uint32(k))
		}
		return
	}
	// By counting: place p comes behind all of places below it.
	rank := func(s int32) int32 {
		if p := cells[s]; p != unknown {
			return p - low + 1
		}
		return 0
	}
	size := int(max(int64(high)-int64(low), 0)) + 3
	x.counts = slices.Grow(x.counts[:0], size)[:size]
	clear(x.counts)
	for _, s := range slots {
		x.counts[rank(s)+1]++
	}
	for i := 1; i < size; i++ {
		x.counts[i] += x.counts[i-1]
	}
	for _, s := range slots {
		r := rank(s)
		x.sorted[x.counts[r]] = s
		x.counts[r]++
	}
}

// Prompt tells whether a slot holds a token that no logits were wanted of.
func (x *KVIndex) Prompt(stream int, slot int32) bool {
	i := stream*x.size + int(slot)
	return i < len(x.prompt) && x.prompt[i] && x.prints.Rows != nil && x.prints.Hold(i, nil, 1) == 1
}
