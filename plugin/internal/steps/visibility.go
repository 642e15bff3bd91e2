package steps

import (
	"bytes"
	"math"
	"slices"
	"unsafe"

	"github.com/x448/float16"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/fault"
)

// MinusInfinity is what a mask holds for a slot that is not visible. Masks are compared by their bits.
var MinusInfinity = float16.Inf(-1)

// Visibility is which tokens a query sees, and where: the visible slots in position order. It keeps copies of
// the caller's arrays, so that a later layer can tell whether it sees the same.
type Visibility struct {
	Visible int
	Slots   []int32 // in C memory; nil: 0 .. visible-1
	Plain   bool    // the mask, if any, is zero for every visible token

	query     int64
	n         int // slots of the store, where positions or mask count; else visible
	positions []int32
	mask      []float16.Float16
	masked    bool // a mask was given
	placed    bool // positions were given

	memory  cpu.Arena
	scratch []uint64
}

// Sees is what a caller says of what one query token sees.
type Sees struct {
	Query     int64   // the logical position of the query token: later tokens are not visible
	Slots     int     // of the store that may be looked at
	Positions uintptr // [Slots] int32, or 0: slot i holds position i
	Mask      uintptr // [Slots] f16, or 0
}

// Prefix is how many of the slots are visible when slot i holds position i.
func (s *Sees) Prefix() int { return int(min(int64(s.Slots), s.Query+1)) }

// Any tells whether a token in one of the slots first .. end-1 is visible, by the positions and the mask, of which either
// may be nil.
func (s *Sees) Any(positions []int32, mask []float16.Float16, first, end int) bool {
	for i := first; i < end; i++ {
		if (positions == nil || positions[i] >= 0 && int64(positions[i]) <= s.Query) && (mask == nil || mask[i] != MinusInfinity) {
			return true
		}
	}
	return false
}

// Same tells whether a row of a call sees exactly what v holds. Without positions and mask it costs nothing.
func (v *Visibility) Same(a Sees) bool {
	if v.query != a.Query || v.placed != (a.Positions != 0) || v.masked != (a.Mask != 0) {
		return false
	}
	if !v.placed && !v.masked {
		return v.Visible == a.Prefix()
	}
	return v.n == a.Slots &&
		bytes.Equal(raw(v.positions), raw(At[int32](a.Positions, v.n))) &&
		bytes.Equal(raw(v.mask), raw(At[float16.Float16](a.Mask, v.n)))
}

// Look fills v. On an error v is of no use, until it looks again.
func (v *Visibility) Look(a Sees) error {
	v.query, v.placed, v.masked = a.Query, a.Positions != 0, a.Mask != 0
	v.Slots, v.Plain = nil, true
	if !v.placed && !v.masked {
		v.Visible = a.Prefix()
		v.n = v.Visible
		return nil
	}
	v.n = a.Slots
	v.positions = append(v.positions[:0], At[int32](a.Positions, v.n)...)
	v.mask = append(v.mask[:0], At[float16.Float16](a.Mask, v.n)...)
	list := cpu.Slice[int32](&v.memory, v.n)
	if list == nil {
		return &fault.Error{Kind: fault.NoMemory, Text: "no memory for the list of visible slots"}
	}
	if !v.placed {
		v.lookByMask(a.Mask, a.Prefix(), list)
		return nil
	}
	return v.lookByPosition(list)
}

// lookByMask is for stores in position order, with a mask.
func (v *Visibility) lookByMask(mask uintptr, prefix int, list []int32) {
	n, flags := cpu.Visible(*(*unsafe.Pointer)(unsafe.Pointer(&mask)), cpu.F16, prefix, unsafe.Pointer(&list[0]))
	v.Visible, v.Plain = n, flags&cpu.Plain != 0
	if flags&cpu.Prefix == 0 {
		v.Slots = list[:n]
	}
}

// lookByPosition collects the visible slots and, where the store is in another order, sorts them.
func (v *Visibility) lookByPosition(list []int32) error {
	n, ascending, last := 0, true, int32(-1)
	low, high := int32(math.MaxInt32), int32(-1)
	bias := float16.Float16(0) // the bits of all values but for their signs: 0 and -0 add nothing
	for i, p := range v.positions {
		if p < 0 || int64(p) > v.query {
			if p < -1 {
				return fault.Bad("positions[%d] = %d is less than -1", i, p)
			}
			continue
		}
		if v.masked {
			if v.mask[i] == MinusInfinity {
				continue
			}
			bias |= v.mask[i] << 1
		}
		if p <= last {
			ascending = false
		}
		last, low, high = p, min(low, p), max(high, p)
		list[n] = int32(i)
		n++
	}
	v.Visible, v.Plain = n, bias == 0
	if ascending {
		if n > 0 && int(list[n-1]) != n-1 {
			v.Slots = list[:n]
		}
		return nil
	}
	v.Slots = list[:n]
	return v.sort(int(low), int(high))
}

// sort brings the visible slots into position order: by one pass over the positions' range where that
// is not much larger than their number (a full store has one token per position), else by comparison.
func (v *Visibility) sort(low, high int) error {
	if reach := high - low + 1; reach <= 4*len(v.Slots) {
		v.scratch = slices.Grow(v.scratch[:0], reach)[:reach]
		clear(v.scratch)
		for _, slot := range v.Slots {
			cell := &v.scratch[int(v.positions[slot])-low]
			if *cell != 0 {
				return v.twice(int32(*cell-1), slot)
			}
			*cell = uint64(slot) + 1
		}
		n := 0
		for _, cell := range v.scratch {
			if cell != 0 {
				v.Slots[n] = int32(cell - 1)
				n++
			}
		}
		return nil
	}
	v.scratch = v.scratch[:0]
	for _, slot := range v.Slots {
		v.scratch = append(v.scratch, uint64(v.positions[slot])<<32|uint64(slot))
	}
	slices.Sort(v.scratch)
	for i, key := range v.scratch {
		v.Slots[i] = int32(key)
		if i > 0 && key>>32 == v.scratch[i-1]>>32 {
			return v.twice(int32(v.scratch[i-1]), int32(key))
		}
	}
	return nil
}

func (v *Visibility) twice(first, second int32) error {
	return fault.Bad("positions[%d] = %d is also positions[%d]", second, v.positions[second], first)
}

// Holds tells whether a slot is visible.
func (v *Visibility) Holds(slot int32) bool {
	p := v.Position(slot)
	return int(slot) < v.n && p >= 0 && p <= v.query && (!v.masked || v.mask[slot] != MinusInfinity)
}

// Position is what a slot of the store holds.
func (v *Visibility) Position(slot int32) int64 {
	if v.placed && int(slot) < v.n {
		return int64(v.positions[slot])
	}
	return int64(slot)
}

// Newest is the slot of the last visible token.
func (v *Visibility) Newest() int32 {
	if v.Slots != nil {
		return v.Slots[v.Visible-1]
	}
	return int32(v.Visible - 1)
}

func (v *Visibility) Free() { v.memory.Free() }

// raw is a slice's bytes.
func raw[T any](s []T) []byte {
	var t T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(t)))
}

// At is the caller's array at an address; nil at address 0.
func At[T any](address uintptr, n int) []T {
	if address == 0 {
		return nil
	}
	return unsafe.Slice(*(**T)(unsafe.Pointer(&address)), n)
}
