package plugin

import (
	"errors"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

var errMemory = errors.New("out of memory")

// Mode says how a layer attends. The engines' kernels have the same numbers.
type Mode int32

const (
	Full   Mode = iota // to every visible token
	Select             // the same, and it chooses each row's token set
	Sparse             // to each row's token set
)

// step is one decode step of any number of rows: how far it has come, and what its layers did. Its layers share the
// token sets, also when the host computes the step in several calls.
type step struct {
	layer   int  // the last one; -1: the step is over, or there was none
	chosen  bool // a selection layer has chosen sets, for what the rows see
	resumed bool // the sets of the step before are gone on with
	did     did
}

// did is what the layers of a step did.
type did struct{ dense, chose, sparse, without int32 }

// mode says how a layer of a role attends, and notes that it does; sparse: some row sees more tokens than the budget. A
// layer whose set was never chosen in this step (the host left the selection layer out) attends to everything.
func (s *step) mode(role Role, sparse bool) Mode {
	switch {
	case !sparse || role == RoleFull:
	case s.resumed:
		s.chosen = true
		s.did.sparse++
		return Sparse
	case role == RoleSelect:
		s.chosen = true
		s.did.chose++
		return Select
	case s.chosen:
		s.did.sparse++
		return Sparse
	default:
		s.did.without++
	}
	s.did.dense++
	return Full
}

// rowSets is a step whose rows are in C memory: the host's threads read them. It has what each row sees, and its
// token sets.
type rowSets struct {
	step
	rows    []cpu.Row
	more    []cpu.Row // the same for the later groups of a step with several, see interval.go
	groups  int
	slots   []int32 // visible slots of the rows that need a list, capacity per row
	sets    []int32 // token sets, budget per row
	visible int     // capacity of slots per row
	budget  int     // capacity of sets per row

	rowMemory, slotMemory, setMemory cpu.Arena

	lasting lasting // how sets outlive their step, where they do
}

// begin starts a new step of n rows, each of which sees at most visible tokens, with memory for its list of them where
// listed. There is one group of token sets, unless sets outlive their step: then there is one for each selection layer.
func (s *rowSets) begin(n, visible, budget, groups int) error {
	s.lasting.before(s)
	s.step = step{layer: -1}
	s.visible, s.budget, s.groups = visible, min(budget, visible)+s.lasting.spare(), groups
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
func (s *rowSets) set(i int) unsafe.Pointer { return unsafe.Pointer(&s.sets[i*s.budget]) }

// list is row i's memory for its visible slots.
func (s *rowSets) list(i int) []int32 { return s.slots[i*s.visible : (i+1)*s.visible] }

// see fills row i: n tokens are visible, in the order of slots (nil: slots 0 .. n-1). The row attends to everything
// unless a budget is split among them.
func (s *rowSets) see(i int, token, stream, n int, slots []int32, mask unsafe.Pointer, split Split) {
	r := &s.rows[i]
	*r = cpu.Row{Token: int32(token), Stream: int32(stream), Visible: int32(n), Mask: mask}
	if len(slots) > 0 {
		r.Slots = unsafe.Pointer(&slots[0])
	}
	if split.Len() > 0 {
		r.Sinks, r.Mid, r.Recent = int32(split.Sinks), int32(split.Mid), int32(split.Recent)
		r.SetLen = int32(split.Len())
		r.Set = s.set(i)
	}
}

// sparse tells whether any row has more visible tokens than the budget.
func (s *rowSets) sparse() bool {
	for i := range s.rows {
		if s.rows[i].SetLen > 0 {
			return true
		}
	}
	return false
}

// dense has every row attend to everything.
func (s *rowSets) dense() {
	for i := range s.rows {
		s.rows[i].SetLen = 0
	}
}

func (s *rowSets) free() {
	s.rowMemory.Free()
	s.slotMemory.Free()
	s.setMemory.Free()
}

// planned counts one layer's call over the rows of a step.
func (st *rowSets) planned(s *Stats, layer int, role Role, mode cpu.Mode) {
	s.Took(layer)
	switch {
	case mode == cpu.Select:
		s.SelectCalls++
	case mode == cpu.List:
		s.SparseCalls++
	default:
		s.DenseCalls++
		if role == RoleSparse && st.sparse() {
			s.NoSetCalls++
		}
	}
	for i := range st.rows {
		visible, attended := uint64(st.rows[i].Visible), uint64(st.rows[i].Visible)
		if mode == cpu.List && st.rows[i].SetLen > 0 {
			attended = uint64(st.rows[i].SetLen)
		}
		s.TokensVisible += visible
		s.TokensAttended += attended
		if role == RoleSparse {
			s.SparseTokensVisible += visible
			s.SparseTokensAttended += attended
		}
	}
}

// began counts the rows of a new step. In a measured one no row is sparse, though one has a set.
func (st *rowSets) began(s *Stats, measured bool) {
	s.Steps++
	for i := range st.rows {
		s.Rows++
		if st.rows[i].SetLen > 0 && !measured {
			s.RowsSparse++
		} else {
			s.RowsFull++
		}
	}
}
