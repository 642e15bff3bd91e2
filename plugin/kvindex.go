package plugin

import "math"

// unknown marks a slot whose token was never seen being written.
const unknown = math.MinInt32

// KVIndex knows which logical position each slot of one K/V store holds. The host's slots are no order:
// after a removal, new tokens fill the holes. Recency needs the positions.
//
// A store may consist of several streams of equal size, one after the other; a slot's number is then
// stream*size + index.
type KVIndex struct {
	positions []int32
	size      int     // slots per stream
	linear    []int   // per stream: that many leading slots hold consecutive, ascending positions
	seen      []int32 // scratch of Order: seen[i] is the slot of the i-th position
}

// NewKVIndex is an index of streams*size slots, none of which is known.
func NewKVIndex(size, streams int) *KVIndex {
	x := &KVIndex{positions: make([]int32, size*streams), size: size, linear: make([]int, streams)}
	for i := range x.positions {
		x.positions[i] = unknown
	}
	return x
}

// Fits tells whether the index was made for such a store.
func (x *KVIndex) Fits(size, streams int) bool { return x.size == size && len(x.linear) == streams }

// Write notes that a slot now holds the token at a position. Slots outside the store are ignored.
func (x *KVIndex) Write(slot int64, position int32) {
	if slot < 0 || slot >= int64(len(x.positions)) {
		return
	}
	x.positions[slot] = position
	stream := int(slot) / x.size
	x.extend(stream, int(slot)%x.size)
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

// Shift adds a delta to each known slot's position (the host's K-shift). Shorter or longer lists than
// the store are not understood: everything is forgotten.
func (x *KVIndex) Shift(delta []int32) {
	if len(delta) != len(x.positions) {
		x.Forget()
		return
	}
	for i, d := range delta {
		if x.positions[i] != unknown {
			x.positions[i] += d
		}
	}
	for s := range x.linear {
		x.linear[s] = 0
		x.extend(s, 0)
	}
}

// Forget drops what is known.
func (x *KVIndex) Forget() {
	for i := range x.positions {
		x.positions[i] = unknown
	}
	clear(x.linear)
}

// Prefix tells whether slots 0 .. n-1 of a stream hold n consecutive positions that end at last: the
// slots are then in position order as they are.
func (x *KVIndex) Prefix(stream, n int, last int32) bool {
	return n > 0 && stream < len(x.linear) && n <= x.linear[stream] && x.positions[stream*x.size+n-1] == last
}

// Order writes the slots, given ascending, to out in position order. It succeeds only if their positions
// are known, unique, contiguous and end at last: the index can be stale after what a host does behind
// its graphs (a restored state, a copied sequence), and a wrong order must not pass for a right one.
// out may be slots itself.
func (x *KVIndex) Order(stream int, slots []int32, last int32, out []int32) bool {
	n := len(slots)
	if stream >= len(x.linear) || n == 0 || n > x.size {
		return false
	}
	cells := x.positions[stream*x.size : (stream+1)*x.size]
	if cap(x.seen) < n {
		x.seen = make([]int32, x.size)
	}
	seen := x.seen[:n]
	for i := range seen {
		seen[i] = -1
	}
	first := int64(last) - int64(n) + 1
	for _, s := range slots {
		if s < 0 || int(s) >= len(cells) || cells[s] == unknown {
			return false
		}
		i := int64(cells[s]) - first
		if i < 0 || i >= int64(n) || seen[i] >= 0 {
			return false
		}
		seen[i] = s
	}
	copy(out, seen)
	return true
}
