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

// sight is which tokens a query sees, and where: the visible slots in position order. It keeps copies of
// the caller's arrays, so that a later layer can tell whether it sees the same.
type sight struct {
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

// same tells whether a call sees exactly what s holds. Without positions and mask it costs nothing.
func (s *sight) same(a *Attention) bool {
	if s.query != a.QueryPosition || s.placed != (a.Positions != 0) || s.masked != (a.Mask != 0) {
		return false
	}
	if !s.placed && !s.masked {
		return s.visible == prefix(a)
	}
	return s.n == int(a.Slots) &&
		bytes.Equal(raw(s.positions), raw(at[int32](a.Positions, s.n))) &&
		bytes.Equal(raw(s.mask), raw(at[uint16](a.Mask, s.n)))
}

// prefix is how many of the slots are visible when slot i holds position i.
func prefix(a *Attention) int { return int(min(a.Slots, a.QueryPosition+1)) }

// look fills s from a call. On an error s is of no use, until it looks again.
func (s *sight) look(a *Attention) error {
	s.query, s.placed, s.masked = a.QueryPosition, a.Positions != 0, a.Mask != 0
	s.slots, s.plain = nil, true
	if !s.placed && !s.masked {
		s.visible = prefix(a)
		s.n = s.visible
		return nil
	}
	s.n = int(a.Slots)
	s.positions = append(s.positions[:0], at[int32](a.Positions, s.n)...)
	s.mask = append(s.mask[:0], at[uint16](a.Mask, s.n)...)
	list := cpu.Slice[int32](&s.memory, s.n)
	if list == nil {
		return &Error{NoMemory, "no memory for the list of visible slots"}
	}
	if !s.placed {
		s.lookByMask(a, list)
		return nil
	}
	return s.lookByPosition(list)
}

// lookByMask is for stores in position order, with a mask.
func (s *sight) lookByMask(a *Attention, list []int32) {
	n, flags := cpu.Visible(*(*unsafe.Pointer)(unsafe.Pointer(&a.Mask)), cpu.F16, prefix(a), unsafe.Pointer(&list[0]))
	s.visible, s.plain = n, flags&cpu.Plain != 0
	if flags&cpu.Prefix == 0 {
		s.slots = list[:n]
	}
}

// lookByPosition collects the visible slots and, where the store is in another order, sorts them.
func (s *sight) lookByPosition(list []int32) error {
	n, ascending, last := 0, true, int32(-1)
	low, high := int32(math.MaxInt32), int32(-1)
	for i, p := range s.positions {
		if p < 0 || int64(p) > s.query {
			if p < -1 {
				return bad("positions[%d] = %d is less than -1", i, p)
			}
			continue
		}
		if s.masked {
			switch s.mask[i] {
			case minusInfinity:
				continue
			case 0, 0x8000:
			default:
				s.plain = false
			}
		}
		if p <= last {
			ascending = false
		}
		last, low, high = p, min(low, p), max(high, p)
		list[n] = int32(i)
		n++
	}
	s.visible = n
	if ascending {
		if n > 0 && int(list[n-1]) != n-1 {
			s.slots = list[:n]
		}
		return nil
	}
	s.slots = list[:n]
	return s.sort(int(low), int(high))
}

// sort brings the visible slots into position order: by one pass over the positions' range where that
// is not much larger than their number (a full store has one token per position), else by comparison.
func (s *sight) sort(low, high int) error {
	if reach := high - low + 1; reach <= 4*len(s.slots) {
		s.scratch = slices.Grow(s.scratch[:0], reach)[:reach]
		clear(s.scratch)
		for _, slot := range s.slots {
			cell := &s.scratch[int(s.positions[slot])-low]
			if *cell != 0 {
				return s.twice(int32(*cell-1), slot)
			}
			*cell = uint64(slot) + 1
		}
		n := 0
		for _, cell := range s.scratch {
			if cell != 0 {
				s.slots[n] = int32(cell - 1)
				n++
			}
		}
		return nil
	}
	s.scratch = s.scratch[:0]
	for _, slot := range s.slots {
		s.scratch = append(s.scratch, uint64(s.positions[slot])<<32|uint64(slot))
	}
	slices.Sort(s.scratch)
	for i, key := range s.scratch {
		s.slots[i] = int32(key)
		if i > 0 && key>>32 == s.scratch[i-1]>>32 {
			return s.twice(int32(s.scratch[i-1]), int32(key))
		}
	}
	return nil
}

func (s *sight) twice(first, second int32) error {
	return bad("positions[%d] = %d is also positions[%d]", second, s.positions[second], first)
}

// holds tells whether a slot is visible.
func (s *sight) holds(slot int32) bool {
	p := s.position(slot)
	return int(slot) < s.n && p >= 0 && p <= s.query && (!s.masked || s.mask[slot] != minusInfinity)
}

// position is what a slot of the store holds.
func (s *sight) position(slot int32) int64 {
	if s.placed && int(slot) < s.n {
		return int64(s.positions[slot])
	}
	return int64(slot)
}

// newest is the slot of the last visible token.
func (s *sight) newest() int32 {
	if s.slots != nil {
		return s.slots[s.visible-1]
	}
	return int32(s.visible - 1)
}

func (s *sight) free() { s.memory.Free() }

// raw is a slice's bytes.
func raw[T any](s []T) []byte {
	var t T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(t)))
}
