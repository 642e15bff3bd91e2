package kvindex

import (
	"math"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// Unknown marks a slot whose token's place in its sequence is not known. It sorts before every place.
const Unknown = math.MinInt32

// Store is one layer's K store in the host.
type Store struct {
	ID      uint64 // its address
	Slots   int64  // per stream
	Stride  int64  // bytes from slot to slot, through all streams; 0: they do not lie like that
	Streams int32
	Row     int32 // bytes of a slot's keys
}

// Note asks for the prints of a store's slots, to be taken once the graph is computed.
type Note struct {
	Prints cpu.Prints
	Slots  unsafe.Pointer // [N] int64
	N      int64
}

// KVIndex knows which place in its sequence the token in each slot of one K/V store has. The host's slots are no
// order: after a removal, new tokens fill the holes. Recency needs the places.
//
// Places follow from what graphs write. What a host does behind its graphs (a restored state, a copied stream) shows
// in the keys: each row that a graph wrote has a print, and a place counts for a row that still has the print. Places
// are positions, or, of a model that has none in its graphs, numbers of writes.
//
// A store on a device cannot be read; there the host's own writes, copies and reads are seen instead (NewWatched). What
// is written is unknown, unless it was read before; a copy takes its places along.
//
// A store may consist of several streams of equal size, one after the other; a slot's number is then
// stream*size + index.
type KVIndex struct {
	positions []int32
	prompt    []bool // no logits were wanted of the slot's token
	size      int    // slots per stream
	linear    []int  // per stream: that many leading slots are a run: unknown ones, and behind them consecutive, ascending positions
	byWrites  bool   // places are numbers of writes
	writes    int32
	Tied      bool // tokens may share a position: those of an image do

	changes uint64 // of places and rows in other ways than by a graph's writes, as far as they were looked at
	watched bool   // changes behind the graphs are told: what was written holds until then

	prints cpu.Prints
	noted  []uint64 // prints of the rows that graphs wrote
	due    []int64  // slots whose prints are taken once the graph is computed
	nDue   int
	fresh  []bool // slots that this graph writes: their rows are not there yet, and will be what is written
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
	n, x := int(store.Slots)*int(store.Streams), newIndex(store)
	x.noted, x.due = cpu.Slice[uint64](&x.notedMemory, n), cpu.Slice[int64](&x.dueMemory, n)
	x.fresh = make([]bool, n)
	if store.Stride > 0 && store.ID != 0 && x.noted != nil && x.due != nil {
		x.prints = cpu.Prints{
			Rows: *(*unsafe.Pointer)(unsafe.Pointer(&store.ID)), Stride: store.Stride, Bytes: store.Row,
			Slots: int64(n), Noted: unsafe.Pointer(&x.noted[0]),
		}
	}
	return x
}

// NewWatched is an index of a store of which every change is told: by Write and its kind what graphs do, by Wrote, Copied
// and ReadOut what the host does behind them. Without a layout that tells its slots apart, none will be known.
func NewWatched(store Store) *KVIndex {
	x := newIndex(store)
	x.watched = store.Stride > 0 && store.ID != 0
	return x
}

func newIndex(store Store) *KVIndex {
	n := int(store.Slots) * int(store.Streams)
	x := &KVIndex{positions: make([]int32, n), prompt: make([]bool, n), size: int(store.Slots), linear: make([]int, store.Streams)}
	x.blank()
	return x
}

// blank makes all slots' places unknown.
func (x *KVIndex) blank() {
	for i := range x.positions {
		x.positions[i] = Unknown
	}
	for i := range x.linear {
		x.linear[i] = x.size
	}
}

// proves tells whether there is anything that places are proven by.
func (x *KVIndex) proves() bool { return x.watched || x.prints.Rows != nil }

// hold is how many of n slots, counted from the first one, hold what was written to them.
func (x *KVIndex) hold(base int, list []int32, n int) int {
	if x.watched {
		return n
	}
	return x.prints.Hold(base, list, n)
}

// Free gives the index's memory back.
func (x *KVIndex) Free() {
	x.notedMemory.Free()
	x.dueMemory.Free()
	x.prints, x.watched = cpu.Prints{}, false
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
	if slot < 0 || slot >= int64(len(x.positions)) || !x.proves() {
		return
	}
	x.prompt[slot] = prompt
	x.place(int(slot), position)
	if x.watched {
		return
	}
	x.noted[slot] = cpu.NoPrint
	if position != Unknown && x.nDue < len(x.due) {
		x.due[x.nDue] = slot
		x.nDue++
		x.fresh[slot] = true
	}
}

// old is how many of n slots, base + list[i] or base + i, come before the last ones, which this graph writes: several tokens
// of one sequence see one another.
func (x *KVIndex) old(base int, list []int32, n int) int {
	for ; n > 0 && !x.watched; n-- {
		slot := base + n - 1
		if list != nil {
			slot = base + int(list[n-1])
		}
		if !x.fresh[slot] {
			break
		}
	}
	return n
}

// place sets a slot's place.
func (x *KVIndex) place(slot int, position int32) {
	x.positions[slot] = position
	x.extend(slot/x.size, slot%x.size)
}

// follows tells whether a place in a run may be the one behind another.
func follows(place, before int32) bool {
	return before == Unknown || place != Unknown && place == before+1
}

// extend brings a stream's run up to date after slot i of it changed.
func (x *KVIndex) extend(stream, i int) {
	cells := x.positions[stream*x.size : (stream+1)*x.size]
	n := &x.linear[stream]
	switch {
	case i > *n:
		return
	case i > 0 && !follows(cells[i], cells[i-1]):
		*n = i
		return
	case i+1 < *n:
		if !follows(cells[i+1], cells[i]) {
			*n = i + 1
		}
		return
	}
	for *n = max(*n, i+1); *n < len(cells) && follows(cells[*n], cells[*n-1]); {
		*n++
	}
}

// Due is what has to be noted once the graph is computed whose writes and shifts the index was told; false: nothing.
func (x *KVIndex) Due() (Note, bool) {
	return Note{Prints: x.prints, Slots: unsafe.Pointer(unsafe.SliceData(x.due)), N: int64(x.nDue)}, x.nDue > 0
}

// Learn remembers what was noted. It must be called before the index is told of the next graph.
func (x *KVIndex) Learn() {
	for _, slot := range x.due[:x.nDue] {
		x.remember(int(slot))
		if x.fresh != nil {
			x.fresh[slot] = false
		}
	}
	x.nDue = 0
}

// Remember makes the index recognise rows by their prints, in whichever slot they turn up.
func (x *KVIndex) Remember() {
	if x.told.now == nil {
		x.told.make(min(max(2*len(x.positions), minPrints/2), maxPrints/2))
	}
	if x.watched { // by what the host reads out of it
		return
	}
	for slot := range x.positions {
		x.remember(slot)
	}
}

// Wrote notes that a host has put rows of these prints into slots from `first` on, behind its graphs. No prints: it is not
// known what they are.
func (x *KVIndex) Wrote(first, n int64, prints []uint64) {
	x.changes++
	for i := max(-first, 0); i < n && first+i < int64(len(x.positions)); i++ {
		position, prompt := int32(Unknown), false
		if i < int64(len(prints)) && !x.byWrites {
			if p, of, ok := x.told.get(prints[i]); ok {
				position, prompt = p, of
			}
		}
		x.prompt[first+i] = prompt
		x.place(int(first+i), position)
	}
}

// Copied notes that a host has copied slots.
func (x *KVIndex) Copied(first, from, n int64) {
	x.changes++
	if x.byWrites || from < 0 || from+n > int64(len(x.positions)) || first < 0 {
		x.Wrote(first, n, nil)
		return
	}
	for i := int64(0); i < n && first+i < int64(len(x.positions)); i++ {
		x.prompt[first+i] = x.prompt[from+i]
		x.place(int(first+i), x.positions[from+i])
	}
}

// ReadOut notes that a host has read rows of these prints: it may put them back, wherever it likes.
func (x *KVIndex) ReadOut(first int64, prints []uint64) {
	for i, print := range prints {
		if slot := first + int64(i); slot >= 0 && slot < int64(len(x.positions)) && x.positions[slot] != Unknown && !x.byWrites {
			x.told.put(print, x.positions[slot], x.prompt[slot])
		}
	}
}

func (x *KVIndex) remember(slot int) {
	if x.positions[slot] != Unknown && x.noted[slot] != cpu.NoPrint && !x.byWrites {
		x.told.put(x.noted[slot], x.positions[slot], x.prompt[slot])
	}
}

// Shift adds a delta to each known slot's position (the host's K-shift). Shorter or longer lists than
// the store are not understood: everything is forgotten.
func (x *KVIndex) Shift(delta []int32) {
	x.changes++
	if len(delta) != len(x.positions) || x.byWrites || !x.proves() {
		x.Forget()
		return
	}
	x.renew(0, nil, len(delta), -1)
	x.nDue = 0
	for i, d := range delta {
		if x.positions[i] != Unknown {
			x.positions[i] += d
		}
		if x.watched {
			continue
		}
		x.noted[i] = cpu.NoPrint // every row is written
		if x.positions[i] != Unknown {
			x.due[x.nDue] = int64(i)
			x.nDue++
		}
	}
	for s := range x.linear {
		x.linear[s] = 0
		x.extend(s, 0)
	}
}

// Forget drops what is known of the slots.
func (x *KVIndex) Forget() {
	x.changes++
	x.blank()
	clear(x.fresh)
	x.nDue, x.writes, x.byWrites, x.Tied = 0, 0, false, false
}

// renew looks at n slots' rows, slots base + list[i] or base + i, but for one, and corrects the places of those that
// have changed.
func (x *KVIndex) renew(base int, list []int32, n, but int) {
	if x.watched {
		return
	}
	x.read = slices.Grow(x.read[:0], n)[:n]
	x.prints.Read(base, list, x.read)
	for i, print := range x.read {
		slot := base + i
		if list != nil {
			slot = base + int(list[i])
		}
		if slot == but || x.fresh[slot] || x.noted[slot] == print {
			continue
		}
		if x.noted[slot] != cpu.NoPrint {
			x.changes++
		}
		position, prompt, ok := x.told.get(print)
		if !ok || x.byWrites {
			print, position = cpu.NoPrint, Unknown
		}
		x.noted[slot], x.prompt[slot] = print, prompt
		if position != x.positions[slot] {
			x.place(slot, position)
		}
	}
}

// Window is what a row wants to know of its order: which tokens are its first ones, and above all which its newest.
type Window struct {
	Own                int32 // the slot of the row's own token, which the graph writes
	SinkTokens, Recent int
}

// Prefix tells whether slots 0 .. n-1 of a stream are in the order of their tokens as they are, the row's own last, the newest known: Order would
// then leave them as they are.
func (x *KVIndex) Prefix(stream, n int, w Window) bool {
	if stream >= len(x.linear) || n == 0 || n > x.linear[stream] || int(w.Own) != n-1 || !x.proves() {
		return false
	}
	cells := x.positions[stream*x.size:][:n]
	if cells[n-max(min(w.Recent, n), 1)] == Unknown || x.byWrites && cells[0] == Unknown {
		return false
	}
	if x.byWrites { // nothing tells that no other token is among the newest, but that all are known
		n = x.old(stream*x.size, nil, n-1)
		return x.hold(stream*x.size, nil, n) == n
	}
	base, first := stream*x.size, n-1-max(min(w.Recent, n)-1, 0)
	before, sinks, unknown := x.old(base+first, nil, n-1-first), x.old(base, nil, min(w.SinkTokens, n-1)), 0
	for unknown < sinks && cells[unknown] == Unknown {
		unknown++
	}
	return x.hold(base+first, nil, before) == before && x.hold(base+unknown, nil, sinks-unknown) == sinks-unknown
}

// Order writes the slots that a row sees, given ascending, to out in the order of their tokens: those of unknown
// places first, in the order of slots. It succeeds if the newest are known to be the newest, that is if they hold the
// positions up to the row's own without a gap, no other slot holds one of these, and each row is what was written for
// that position; or if all of that is true of every slot, with gaps. out may be slots itself.
func (x *KVIndex) Order(stream int, slots []int32, w Window, out []int32) bool {
	if stream >= len(x.linear) || len(slots) == 0 || !x.proves() || x.positions[stream*x.size+int(w.Own)] == Unknown {
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
		if cells[order[0]] == Unknown || !x.Tied && !unique(cells, order) {
			return false
		}
		check = order[:n-1]
	}
	sinks := order[:min(w.SinkTokens, n-1)]
	for len(sinks) > 0 && cells[sinks[0]] == Unknown {
		sinks = sinks[1:]
	}
	base := stream * x.size
	check, sinks = check[:x.old(base, check, len(check))], sinks[:x.old(base, sinks, len(sinks))]
	return x.hold(base, check, len(check)) == len(check) && x.hold(base, sinks, len(sinks)) == len(sinks)
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
	low, high := int32(math.MaxInt32), int32(Unknown)
	for _, s := range slots {
		if p := cells[s]; p != Unknown {
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
		if p := cells[s]; p != Unknown {
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
	return i < len(x.prompt) && x.prompt[i] && x.proves() && (x.Fresh(stream, slot) || x.hold(i, nil, 1) == 1)
}

// OfPrompt notes that a slot's token is of a prompt, though a graph that wrote it did not tell, or of a text that is evaluated as one: what follows
// may be the rest of it.
func (x *KVIndex) OfPrompt(slot int64) {
	if slot < 0 || slot >= int64(len(x.prompt)) {
		return
	}
	x.prompt[slot] = true
	if x.noted != nil {
		x.remember(int(slot))
	}
}

// Fresh tells whether this graph writes a slot's token. Of a store on a device that is not kept.
func (x *KVIndex) Fresh(stream int, slot int32) bool {
	i := stream*x.size + int(slot)
	return !x.watched && i < len(x.fresh) && x.fresh[i]
}

// lookedAt is how many of a row's newest tokens tell whether it is the text that it was.
const lookedAt = 16

// Changes looks at the newest of the n slots that a row sees, in the order of tokens, its own last; slots nil: 0 .. n-1. What it returns has
// grown where tokens, as far as they were looked at, have come to the store in other ways than by a graph's writes.
func (x *KVIndex) Changes(stream int, slots []int32, n int, own int32) uint64 {
	base, first := stream*x.size, max(n-lookedAt, 0)
	switch {
	case stream >= len(x.linear) || n > x.size || !x.proves():
	case slots != nil:
		x.renew(base, slots[first:n], n-first, base+int(own))
	default:
		x.renew(base+first, nil, n-first, base+int(own))
	}
	return x.changes
}

// Place is the place of a slot's token, or Unknown; changes grows where places change in other ways than by a graph's writes.
func (x *KVIndex) Place(stream int, slot int32) (place int32, changes uint64) {
	if i := stream*x.size + int(slot); slot >= 0 && i < len(x.positions) {
		return x.positions[i], x.changes
	}
	return Unknown, x.changes
}
