package plugin

import (
	"bytes"
	"math"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// minusInfinity is f16 -inf: what a mask holds for a slot that is not visible.
const minusInfinity = 0xFC00

// visibility is which tokens a query sees, and where: the visible slots in position order. It keeps copies of
// the caller's arrays, so that a later layer can tell whether it sees the same.
type visibility struct {
	visible int
	slots   []int32 // in C memory; nil: 0 .. visible-1
	plain   bool    // the mask, if any, is zero for every visible token

	query     int64
	n         int // slots of the store, where positions or mask count; else visible
	positions []int32
	mask      []uint16
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

// prefix is how many of the slots are visible when slot i holds position i.
func (s *Sees) prefix() int { return int(min(int64(s.Slots), s.Query+1)) }

// same tells whether a row of a call sees exactly what v holds. Without positions and mask it costs nothing.
func (v *visibility) same(a Sees) bool {
	if v.query != a.Query || v.placed != (a.Positions != 0) || v.masked != (a.Mask != 0) {
		return false
	}
	if !v.placed && !v.masked {
		return v.visible == a.prefix()
	}
	return v.n == a.Slots &&
		bytes.Equal(raw(v.positions), raw(at[int32](a.Positions, v.n))) &&
		bytes.Equal(raw(v.mask), raw(at[uint16](a.Mask, v.n)))
}

// look fills v. On an error v is of no use, until it looks again.
func (v *visibility) look(a Sees) error {
	v.query, v.placed, v.masked = a.Query, a.Positions != 0, a.Mask != 0
	v.slots, v.plain = nil, true
	if !v.placed && !v.masked {
		v.visible = a.prefix()
		v.n = v.visible
		return nil
	}
	v.n = a.Slots
	v.positions = append(v.positions[:0], at[int32](a.Positions, v.n)...)
	v.mask = append(v.mask[:0], at[uint16](a.Mask, v.n)...)
	list := cpu.Slice[int32](&v.memory, v.n)
	if list == nil {
		return &Error{Kind: NoMemory, Text: "no memory for the list of visible slots"}
	}
	if !v.placed {
		v.lookByMask(a.Mask, a.prefix(), list)
		return nil
	}
	return v.lookByPosition(list)
}

// lookByMask is for stores in position order, with a mask.
func (v *visibility) lookByMask(mask uintptr, prefix int, list []int32) {
	n, flags := cpu.Visible(*(*unsafe.Pointer)(unsafe.Pointer(&mask)), cpu.F16, prefix, unsafe.Pointer(&list[0]))
	v.visible, v.plain = n, flags&cpu.Plain != 0
	if flags&cpu.Prefix == 0 {
		v.slots = list[:n]
	}
}

// lookByPosition collects the visible slots and, where the store is in another order, sorts them.
func (v *visibility) lookByPosition(list []int32) error {
	n, ascending, last := 0, true, int32(-1)
	low, high := int32(math.MaxInt32), int32(-1)
	for i, p := range v.positions {
		if p < 0 || int64(p) > v.query {
			if p < -1 {
				return bad("positions[%d] = %d is less than -1", i, p)
			}
			continue
		}
		if v.masked {
			switch v.mask[i] {
			case minusInfinity:
				continue
			case 0, 0x8000:
			default:
				v.plain = false
			}
		}
		if p <= last {
			ascending = false
		}
		last, low, high = p, min(low, p), max(high, p)
		list[n] = int32(i)
		n++
	}
	v.visible = n
	if ascending {
		if n > 0 && int(list[n-1]) != n-1 {
			v.slots = list[:n]
		}
		return nil
	}
	v.slots = list[:n]
	return v.sort(int(low), int(high))
}

// sort brings the visible slots into position order: by one pass over the positions' range where that
// is not much larger than their number (a full store has one token per position), else by comparison.
func (v *visibility) sort(low, high int) error {
	if reach := high - low + 1; reach <= 4*len(v.slots) {
		v.scratch = slices.Grow(v.scratch[:0], reach)[:reach]
		clear(v.scratch)
		for _, slot := range v.slots {
			cell := &v.scratch[int(v.positions[slot])-low]
			if *cell != 0 {
				return v.twice(int32(*cell-1), slot)
			}
			*cell = uint64(slot) + 1
		}
		n := 0
		for _, cell := range v.scratch {
			if cell != 0 {
				v.slots[n] = int32(cell - 1)
				n++
			}
		}
		return nil
	}
	v.scratch = v.scratch[:0]
	for _, slot := range v.slots {
		v.scratch = append(v.scratch, uint64(v.positions[slot])<<32|uint64(slot))
	}
	slices.Sort(v.scratch)
	for i, key := range v.scratch {
		v.slots[i] = int32(key)
		if i > 0 && key>>32 == v.scratch[i-1]>>32 {
			return v.twice(int32(v.scratch[i-1]), int32(key))
		}
	}
	return nil
}

func (v *visibility) twice(first, second int32) error {
	return bad("positions[%d] = %d is also positions[%d]", second, v.positions[second], first)
}

// holds tells whether a slot is visible.
func (v *visibility) holds(slot int32) bool {
	p := v.position(slot)
	return int(slot) < v.n && p >= 0 && p <= v.query && (!v.masked || v.mask[slot] != minusInfinity)
}

// position is what a slot of the store holds.
func (v *visibility) position(slot int32) int64 {
	if v.placed && int(slot) < v.n {
		return int64(v.positions[slot])
	}
	return int64(slot)
}

// newest is the slot of the last visible token.
func (v *visibility) newest() int32 {
	if v.slots != nil {
		return v.slots[v.visible-1]
	}
	return int32(v.visible - 1)
}

func (v *visibility) free() { v.memory.Free() }

// raw is a slice's bytes.
func raw[T any](s []T) []byte {
	var t T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(t)))
}

// at is the caller's array at an address; nil at address 0.
func at[T any](address uintptr, n int) []T {
	if address == 0 {
		return nil
	}
	return unsafe.Slice(*(**T)(unsafe.Pointer(&address)), n)
}
