package steps

import (
	"errors"
	"unsafe"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/stats"
)

var errMemory = errors.New("out of memory")

// Mode says how a layer attends. The engines' kernels have the same numbers.
type Mode int32

const (
	Full   Mode = iota // to every visible token
	Select             // the same, and it chooses each row's token set
	Sparse             // to each row's token set
)

// Step is one decode step of any number of rows: how far it has come, and what its layers did. Its layers share the
// token sets, also when the host computes the step in several calls.
type Step struct {
	Layer   int  // the last one; -1: the step is over, or there was none
	Chosen  bool // a selection layer has chosen sets, for what the rows see
	Resumed bool // the sets of the step before are gone on with
	Later   bool // layers come before it, on another device: where no set came from there, its first one that may be sparse chooses
	Did     did
}

// did is what the layers of a step did.
type did struct{ Dense, Chose, Sparse, Without int32 }

// Mode says how a layer of a role attends, and notes that it does; sparse: some row sees more tokens than the budget. A
// layer whose set was never chosen in this step (the host left the selection layer out) attends to everything, but for the first one of
// a later device, which chooses.
func (s *Step) Mode(role selection.Role, sparse bool) Mode {
	switch {
	case !sparse || role == selection.RoleFull:
	case s.Resumed:
		s.Chosen = true
		s.Did.Sparse++
		return Sparse
	case role == selection.RoleSelect, s.Later && !s.Chosen:
		s.Chosen = true
		s.Did.Chose++
		return Select
	case s.Chosen:
		s.Did.Sparse++
		return Sparse
	default:
		s.Did.Without++
	}
	s.Did.Dense++
	return Full
}

// RowSets is a step whose rows are in C memory: the host's threads read them. It has what each row sees, and its
// token sets.
type RowSets struct {
	Step
	Rows    []cpu.Row
	More    []cpu.Row // the same for the later groups of a step with several, see interval.go
	Groups  int
	slots   []int32 // visible slots of the rows that need a list, capacity per row
	sets    []int32 // token sets, budget per row
	visible int     // capacity of slots per row
	budget  int     // capacity of sets per row

	rowMemory, slotMemory, setMemory cpu.Arena

	Lasting lasting // how sets outlive their step, where they do
}

// Begin starts a new step of n rows, each of which sees at most visible tokens, with memory for its list of them where
// listed. There is one group of token sets, unless sets outlive their step: then there is one for each selection layer.
func (s *RowSets) Begin(n, visible, budget, groups int) error {
	s.Lasting.before(s)
	s.Step = Step{Layer: -1}
	s.visible, s.budget, s.Groups = visible, min(budget, visible)+s.Lasting.spare(), groups
	rows := cpu.Slice[cpu.Row](&s.rowMemory, n*groups)
	s.slots = cpu.Slice[int32](&s.slotMemory, n*visible)
	s.sets = cpu.Slice[int32](&s.setMemory, n*s.budget*groups)
	if rows == nil || s.slots == nil || s.sets == nil {
		s.Lasting.Drop()
		return errMemory
	}
	s.Rows, s.More = rows[:n], rows[n:n*groups]
	s.Lasting.after(s)
	return nil
}

// Set is row i's memory for its token set.
func (s *RowSets) Set(i int) unsafe.Pointer { return unsafe.Pointer(&s.sets[i*s.budget]) }

// List is row i's memory for its visible slots.
func (s *RowSets) List(i int) []int32 { return s.slots[i*s.visible : (i+1)*s.visible] }

// See fills row i: n tokens are visible, in the order of slots (nil: slots 0 .. n-1). The row attends to everything
// unless a budget is split among them.
func (s *RowSets) See(i int, token, stream, n int, slots []int32, mask unsafe.Pointer, split Split) {
	r := &s.Rows[i]
	*r = cpu.Row{Token: int32(token), Stream: int32(stream), Visible: int32(n), Mask: mask}
	if len(slots) > 0 {
		r.Slots = unsafe.Pointer(&slots[0])
	}
	if split.Len() > 0 {
		r.SinkTokens, r.TopK, r.Recent = int32(split.SinkTokens), int32(split.TopK), int32(split.Recent)
		r.SetLen = int32(split.Len())
		r.Set = s.Set(i)
	}
}

// Sparse tells whether any row has more visible tokens than the budget.
func (s *RowSets) Sparse() bool {
	for i := range s.Rows {
		if s.Rows[i].SetLen > 0 {
			return true
		}
	}
	return false
}

// Narrow has the rows with token sets attend to a smaller budget than they were split by.
func (s *RowSets) Narrow(budget int, recency float64, sinks int) {
	for i := range s.Rows {
		if r := &s.Rows[i]; r.SetLen > 0 {
			split := SplitBudget(int(r.Visible), budget, recency, sinks)
			r.SinkTokens, r.TopK, r.Recent, r.SetLen = int32(split.SinkTokens), int32(split.TopK), int32(split.Recent), int32(split.Len())
		}
	}
}

// Dense has every row attend to everything.
func (s *RowSets) Dense() {
	for i := range s.Rows {
		s.Rows[i].SetLen = 0
	}
}

func (s *RowSets) Free() {
	s.rowMemory.Free()
	s.slotMemory.Free()
	s.setMemory.Free()
}

// Planned counts one layer's call over the rows of a step.
func (st *RowSets) Planned(s *stats.Stats, layer int, role selection.Role, mode cpu.Mode) {
	s.Took(layer)
	switch {
	case mode == cpu.Select:
		s.SelectCalls++
		role = selection.RoleSelect // also where it chose because no other device's set had come
	case mode == cpu.Sparse:
		s.SparseCalls++
	default:
		s.DenseCalls++
		if role == selection.RoleSparse && st.Sparse() {
			s.NoSetCalls++
		}
	}
	for i := range st.Rows {
		visible, attended := uint64(st.Rows[i].Visible), uint64(st.Rows[i].Visible)
		if mode == cpu.Sparse && st.Rows[i].SetLen > 0 {
			attended = uint64(st.Rows[i].SetLen)
		}
		s.TokensVisible += visible
		s.TokensAttended += attended
		if role == selection.RoleSparse {
			s.SparseTokensVisible += visible
			s.SparseTokensAttended += attended
		}
	}
}

// Began counts the rows of a new step. In a measured one no row is sparse, though one has a set.
func (st *RowSets) Began(s *stats.Stats, measured bool) {
	s.Steps++
	for i := range st.Rows {
		s.Rows++
		if st.Rows[i].SetLen > 0 && !measured {
			s.RowsSparse++
		} else {
			s.RowsFull++
		}
	}
}
