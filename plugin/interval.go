package plugin

import (
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// lasting lets the token sets of a step serve the next ones too (Config.Interval): the tokens decoded since
// join them, and the selection layers attend to their own last set instead of everything. Each selection
// layer then keeps a set of its own, a group.
type lasting struct {
	interval int  // steps that sets serve; 0 and 1: their own
	age      int  // steps that they have served before this one
	ready    bool // every selection layer has chosen, and nothing came between
	resumed  bool // this step uses the sets of the one before

	same    bool   // the memory of the sets is where it was
	at      *int32 // that memory
	n       int    // rows
	stride  int    // capacity of a set
	groups  int
	chose   int     // selection layers that have chosen in this step
	visible []int32 // per row, of the step before
	length  []int32 // of its sets
}

// spare is how many tokens may join a set.
func (l *lasting) spare() int { return max(l.interval, 1) - 1 }

// drop makes the next step choose afresh.
func (l *lasting) drop() { l.ready, l.chose = false, 0 }

// before notes what a new step overwrites.
func (l *lasting) before(s *step) {
	l.resumed = false
	if l.interval <= 1 {
		return
	}
	l.ready = l.ready || l.groups > 0 && l.chose == l.groups
	l.chose = 0
	l.visible, l.length = l.visible[:0], l.length[:0]
	for i := range s.rows {
		l.visible = append(l.visible, s.rows[i].Visible)
		l.length = append(l.length, s.rows[i].SetLen)
	}
}

// after tells whether the sets' memory has stayed where it was.
func (l *lasting) after(s *step) {
	if l.interval <= 1 {
		return
	}
	at := unsafe.SliceData(s.sets)
	l.same = at == l.at && len(s.rows) == l.n && s.budget == l.stride && s.groups == l.groups
	l.at, l.n, l.stride, l.groups = at, len(s.rows), s.budget, s.groups
}

// resume decides whether the step goes on with the sets of the one before: if each row sees one token more
// than it did, its own, and all that its sets hold. sees tells of a slot, own is the row's.
func (l *lasting) resume(s *step, sees func(row int, slot int32) bool, own func(row int) int32) bool {
	if l.interval <= 1 {
		return false
	}
	ready := l.ready && l.same && l.age+1 < l.interval
	l.ready = false
	for i := 0; ready && i < len(s.rows); i++ {
		r := &s.rows[i]
		ready = r.SetLen > 0 && l.length[i] > 0 && r.Visible == l.visible[i]+1
		for g := 0; ready && g < s.groups; g++ {
			for _, slot := range s.sets[(g*len(s.rows)+i)*s.budget:][:l.length[i]] {
				if !sees(i, slot) {
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
	for i := range s.rows {
		for g := range s.groups {
			s.sets[(g*len(s.rows)+i)*s.budget+int(l.length[i])] = own(i)
		}
		s.rows[i].SetLen = l.length[i] + 1
	}
	l.age++
	l.ready, l.resumed = true, true
	return true
}

// spread gives the later groups the rows of the first one, with sets of their own.
func (s *step) spread() {
	n := len(s.rows)
	for k := range s.more {
		s.more[k] = s.rows[k%n]
		if s.more[k].SetLen > 0 {
			s.more[k].Set = unsafe.Pointer(&s.sets[(n+k)*s.budget])
		}
	}
}

// group is the rows of a group; of the last one, where a new choice has more of them than the step.
func (s *step) group(g int) []cpu.Row {
	if g = min(g, s.groups-1); g == 0 {
		return s.rows
	}
	return s.more[(g-1)*len(s.rows):][:len(s.rows)]
}
