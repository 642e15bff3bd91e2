package plugin

import (
	"errors"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

var errMemory = errors.New("out of memory")

// step is one decode step of a batch: its rows, what each of them sees, and the token set of each. The
// layers of the step share it, also when the host computes the step in several calls.
type step struct {
	rows    []cpu.Row // in C memory: the host's threads read them
	more    []cpu.Row // the same for the later groups of a step with several, see interval.go
	groups  int
	slots   []int32 // visible slots of the rows that need a list, capacity per row
	sets    []int32 // token sets, budget per row
	visible int     // capacity of slots per row
	budget  int     // capacity of sets per row

	rowMemory, slotMemory, setMemory cpu.Arena

	lasting lasting // how sets outlive their step, where they do

	chosen bool // a selection layer of this step has chosen the sets
	layer  int  // the last layer that was planned
}

// begin starts a new step of n rows, each of which sees at most visible tokens. There is one group of
// token sets, unless sets outlive their step: then there is one for each selection layer.
func (s *step) begin(n, visible, budget, groups int) error {
	s.lasting.before(s)
	s.chosen, s.layer, s.visible, s.budget, s.groups = false, -1, visible, min(budget, visible)+s.lasting.spare(), groups
	rows := cpu.Slice[cpu.Row](&s.rowMemory, n*groups)
	s.slots = cpu.Slice[int32](&s.slotMemory, n*visible)
	s.sets = cpu.Slice[int32](&s.setMemory, n*s.budget*groups)
	if rows == nil || s.slots == nil || s.sets == nil {
		s.lasting.drop()
		return errMemory
	}
	s.rows, s.more = rows[:n], rows[n:n*groups]
	s.lasting.after(s)
	return nil
}

// set is row i's memory for its token set.
func (s *step) set(i int) unsafe.Pointer { return unsafe.Pointer(&s.sets[i*s.budget]) }

// list is row i's memory for its visible slots.
func (s *step) list(i int) []int32 { return s.slots[i*s.visible : (i+1)*s.visible] }

// see fills row i: n tokens are visible, in the order of slots (nil: slots 0 .. n-1). The row attends to everything
// unless a budget is split among them.
func (s *step) see(i int, token, stream, n int, slots []int32, mask unsafe.Pointer, split Split) {
	r := &s.rows[i]
	*r = cpu.Row{Token: int32(token), Stream: int32(stream), Visible: int32(n), Mask: mask}
	if slots != nil {
		r.Slots = unsafe.Pointer(&slots[0])
	}
	if split.Len() > 0 {
		r.Sinks, r.Mid, r.Recent = int32(split.Sinks), int32(split.Mid), int32(split.Recent)
		r.SetLen = int32(split.Len())
		r.Set = s.set(i)
	}
}

// sparse tells whether any row has more visible tokens than the budget.
func (s *step) sparse() bool {
	for i := range s.rows {
		if s.rows[i].SetLen > 0 {
			return true
		}
	}
	return false
}

// mode says how a layer attends, and notes that it does. A layer whose set was never chosen in this
// step (the host left the selection layer out) attends fully.
func (s *step) mode(role Role, layer int) cpu.Mode {
	s.layer = layer
	switch {
	case !s.sparse():
		return cpu.Full
	case role != RoleFull && s.lasting.resumed:
		s.chosen = true
		return cpu.List
	case role == RoleSelect:
		s.chosen = true
		s.lasting.chose++
		return cpu.Select
	case role == RoleSparse && s.chosen:
		return cpu.List
	}
	return cpu.Full
}

func (s *step) free() {
	s.rowMemory.Free()
	s.slotMemory.Free()
	s.setMemory.Free()
}
