package steps

import (
	"slices"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// lasting lets the token sets of a step serve the next ones too (Config.Interval): the tokens decoded since
// join them, and the selection layers attend to their own last set instead of everything. Each selection
// layer then keeps a set of its own, a group.
type lasting struct {
	Interval int  // steps that sets serve; 0 and 1: their own
	age      int  // steps that they have served before this one
	ready    bool // every selection layer has chosen, and nothing came between

	same    bool   // the memory of the sets is where it was
	at      *int32 // that memory
	n       int    // rows
	stride  int    // capacity of a set
	groups  int
	Chose   int     // selection layers that have chosen in this step
	visible []int32 // per row, of the step before
	length  []int32 // of its sets
}

// spare is how many tokens may join a set.
func (l *lasting) spare() int { return max(l.Interval, 1) - 1 }

// Drop makes the next step choose afresh.
func (l *lasting) Drop() { l.ready, l.Chose = false, 0 }

// before notes what a new step overwrites.
func (l *lasting) before(s *RowSets) {
	if l.Interval <= 1 {
		return
	}
	l.ready = l.ready || l.groups > 0 && l.Chose == l.groups
	l.Chose = 0
	l.visible, l.length = l.visible[:0], l.length[:0]
	for i := range s.Rows {
		l.visible = append(l.visible, s.Rows[i].Visible)
		l.length = append(l.length, s.Rows[i].SetLen)
	}
}

// after tells whether the sets' memory has stayed where it was.
func (l *lasting) after(s *RowSets) {
	if l.Interval <= 1 {
		return
	}
	at := unsafe.SliceData(s.sets)
	l.same = at == l.at && len(s.Rows) == l.n && s.budget == l.stride && s.Groups == l.groups
	l.at, l.n, l.stride, l.groups = at, len(s.Rows), s.budget, s.Groups
}

// Unwritten marks the sets that a layer's rows are to choose. A layer that is planned may never be computed: the host gives up, or fails.
func Unwritten(rows []cpu.Row) {
	for i := range rows {
		if r := &rows[i]; r.SetLen > 0 {
			*(*int32)(r.Set) = -1
		}
	}
}

// Resume decides whether the step goes on with the sets of the one before: if each row sees one token more
// than it did, its own, and all that its sets hold, which were chosen, and do not hold its own: a slot may have been another token's.
// sees tells of a slot, own is the row's.
func (l *lasting) Resume(s *RowSets, sees func(row int, slot int32) bool, own func(row int) int32) bool {
	if l.Interval <= 1 {
		return false
	}
	ready := l.ready && l.same && l.age+1 < l.Interval
	l.ready = false
	for i := 0; ready && i < len(s.Rows); i++ {
		r := &s.Rows[i]
		if ready = r.SetLen > 0 && l.length[i] > 0 && r.Visible == l.visible[i]+1; !ready {
			break
		}
		mine := own(i)
		for g := 0; ready && g < s.Groups; g++ {
			for _, slot := range s.setOf(g, i)[:l.length[i]] {
				if slot < 0 || slot == mine || !sees(i, slot) {
					ready = false
					break
				}
			}
		}
	}
	if !ready {
		l.age = 0
		return false
	}
	for i := range s.Rows {
		mine, n := own(i), l.length[i]
		for g := range s.Groups {
			set := s.setOf(g, i)[:n+1]
			at, _ := slices.BinarySearch(set[:n], mine)
			copy(set[at+1:], set[at:n])
			set[at] = mine
		}
		s.Rows[i].SetLen = n + 1
	}
	l.age++
	l.ready, s.Resumed = true, true
	return true
}

// setOf is the memory for row i's set of a group.
func (s *RowSets) setOf(g, i int) []int32 { return s.sets[(g*len(s.Rows)+i)*s.budget:][:s.budget] }

// Spread gives the later groups the rows of the first one, with sets of their own.
func (s *RowSets) Spread() {
	n := len(s.Rows)
	for k := range s.More {
		s.More[k] = s.Rows[k%n]
		if s.More[k].SetLen > 0 {
			s.More[k].Set = unsafe.Pointer(&s.sets[(n+k)*s.budget])
		}
	}
}

// Group is the rows of a group; of the last one, where a new choice has more of them than the step.
func (s *RowSets) Group(g int) []cpu.Row {
	if g = min(g, s.Groups-1); g == 0 {
		return s.Rows
	}
	return s.More[(g-1)*len(s.Rows):][:len(s.Rows)]
}
