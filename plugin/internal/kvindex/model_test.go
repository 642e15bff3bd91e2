package kvindex

import (
	"flag"
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Steps of each host that TestIndexAgainstAModel plays; `make soak` plays a million.
var modelSteps = flag.Int("steps", 8000, "operations of a model host")

// cell is what a slot really holds: a token of some text at a position. Its row is a number made of both.
type cell struct {
	text     uint64
	position int32
}

func (c cell) row() uint64 { return c.text<<32 | uint64(uint32(c.position)) }

// model is a host of sequences in one store of several streams, without an index: a map from sequences to slots, in order.
type model struct {
	t        *testing.T
	rng      *rand.Rand
	x        *KVIndex
	store    *fakeStore // of an index that reads rows; nil: a watched one
	numbered bool       // a model without positions: tokens are told by WriteNext
	size     int
	streams  int

	cells     []cell
	sequences map[int][]int // slots, by position; all of one stream
	saved     [][]cell      // states that were read out
	texts     uint64
	blurred   []bool // slots whose content was put there behind the graphs

	proven, asked, sure int
}

func newModel(t *testing.T, rng *rand.Rand, watched, numbered bool) *model {
	m := &model{t: t, rng: rng, numbered: numbered, size: 24 + rng.Intn(60), streams: 1 + rng.Intn(2), sequences: map[int][]int{}}
	if watched {
		m.x = NewWatched(Store{ID: 4096, Slots: int64(m.size), Streams: int32(m.streams), Stride: 8, Row: 8})
		m.x.Remember()
	} else {
		m.store = newFakeStore(t, m.size, m.streams)
		m.x = m.store.KVIndex
	}
	m.cells, m.blurred = make([]cell, m.size*m.streams), make([]bool, m.size*m.streams)
	return m
}

// put changes a slot; the index is told by the caller, or not at all.
func (m *model) put(slot int, c cell, behind bool) {
	m.cells[slot], m.blurred[slot] = c, behind
	if m.store != nil {
		m.store.rows[slot] = c.row()
	}
}

// free is a slot of a stream that no sequence holds, or -1.
func (m *model) free(stream int) int {
	used := map[int]bool{}
	for _, slots := range m.sequences {
		for _, s := range slots {
			used[s] = true
		}
	}
	first := stream * m.size
	start := 0
	if m.rng.Intn(3) == 0 { // hosts look from some place on
		start = m.rng.Intn(m.size)
	}
	for i := range m.size {
		if s := first + (start+i)%m.size; !used[s] {
			return s
		}
	}
	return -1
}

// pick is a sequence at random, or -1.
func (m *model) pick() int {
	if len(m.sequences) == 0 {
		return -1
	}
	ids := make([]int, 0, len(m.sequences))
	for id := range m.sequences {
		ids = append(ids, id)
	}
	slices.Sort(ids) // a map's order is another one each time, the seed's run must not be
	return ids[m.rng.Intn(len(ids))]
}

func (m *model) streamOf(id int) int {
	if slots := m.sequences[id]; len(slots) > 0 {
		return slots[0] / m.size
	}
	return id % m.streams
}

// graph tells the index of tokens that a graph writes, and computes it.
func (m *model) graph(id, tokens int, ask bool) {
	stream := m.streamOf(id)
	for i := range tokens {
		slot := m.free(stream)
		if slot < 0 {
			break
		}
		position := int32(0)
		if n := len(m.sequences[id]); n > 0 {
			position = m.cells[m.sequences[id][n-1]].position + 1
		}
		m.texts++
		if m.numbered {
			m.x.WriteNext(int64(slot), false)
		} else {
			m.x.Write(int64(slot), position, false)
		}
		m.sequences[id] = append(m.sequences[id], slot)
		c := cell{m.texts, position}
		if last := i == tokens-1; ask && last {
			m.cells[slot] = c // planned, not yet computed
			m.ask(id, stream)
		}
		m.put(slot, c, false)
		if ask {
			m.computed()
		}
	}
	m.computed()
}

func (m *model) computed() {
	if m.store != nil {
		m.store.computed()
	}
}

// ask wants the order of a sequence whose last token is being written: what the index proves has to be true.
func (m *model) ask(id, stream int) {
	want := make([]int32, 0, len(m.sequences[id]))
	known := true
	for _, s := range m.sequences[id] {
		want = append(want, int32(s-stream*m.size))
		known = known && !m.blurred[s]
	}
	n := len(want)
	w := Window{Own: want[n-1], SinkTokens: m.rng.Intn(5), Recent: m.rng.Intn(n + 1)}
	ascending, out := slices.Clone(want), make([]int32, n)
	slices.Sort(ascending)
	ok := m.x.Order(stream, ascending, w, out)
	m.asked++
	if ok {
		m.proven++
		require.Equal(m.t, want[n-w.Recent:], out[n-w.Recent:], "the newest %d of sequence %d", w.Recent, id)
		sorted := slices.Clone(out)
		slices.Sort(sorted)
		require.Equal(m.t, ascending, sorted, "out is not the slots that were asked for")
	}
	if known {
		m.sure++
		require.True(m.t, ok, "all %d tokens of sequence %d were written by graphs that the index was told of", n, id)
		require.Equal(m.t, want, out)
	}
	if int(ascending[n-1]) != n-1 { // other slots than the first n
		return
	}
	if m.x.Prefix(stream, n, w) {
		m.proven++
		require.Equal(m.t, ascending[n-w.Recent:], want[n-w.Recent:], "slots 0 .. %d are not in order", n-1)
	} else {
		require.False(m.t, known && slices.Equal(want, ascending) && !m.numbered, "slots 0 .. %d are in order", n-1)
	}
}

// step does one thing that hosts do.
func (m *model) step() {
	id := m.pick()
	switch m.rng.Intn(16) {
	case 0: // a new sequence and its prompt
		m.graph(m.rng.Intn(6), 1+m.rng.Intn(12), false)
	case 1: // truncated: the slots are free, what is in them stays
		if id >= 0 {
			m.sequences[id] = m.sequences[id][:m.rng.Intn(len(m.sequences[id])+1)]
		}
	case 2:
		delete(m.sequences, id)
	case 3: // a fork in the same stream shares the slots
		if to := m.rng.Intn(6); id >= 0 && m.sequences[to] == nil {
			m.sequences[to] = slices.Clone(m.sequences[id])
		}
	case 4:
		m.copyStream()
	case 5:
		m.shift()
	case 6:
		m.save(id)
	case 7:
		m.restore()
	case 8:
		m.rearrange(id)
	case 9: // something else lies there now, and nobody said so, or only that
		if slot := m.rng.Intn(len(m.cells)); m.rng.Intn(3) == 0 {
			m.texts++
			m.put(slot, cell{m.texts, m.cells[slot].position}, true)
			if m.store == nil {
				m.x.Wrote(int64(slot), 1, nil)
			}
		}
	case 10:
		if m.rng.Intn(20) == 0 {
			m.x.Forget()
			m.sequences = map[int][]int{} // a host that clears its cache
			for i := range m.blurred {
				m.blurred[i] = true
			}
		}
	default: // the common case: a token of a sequence is decoded
		if id >= 0 {
			m.graph(id, 1, true)
		}
	}
	for id, slots := range m.sequences {
		if len(slots) == 0 {
			delete(m.sequences, id)
		}
	}
}

// copyStream copies a whole stream to another one, as a host does for a second answer to the same prompt.
func (m *model) copyStream() {
	if m.streams < 2 {
		return
	}
	from := m.rng.Intn(m.streams)
	to := (from + 1) % m.streams
	for i := range m.size {
		m.put(to*m.size+i, m.cells[from*m.size+i], true)
	}
	if m.store == nil {
		m.x.Copied(int64(to*m.size), int64(from*m.size), int64(m.size))
	}
	for id := range m.sequences {
		if m.streamOf(id) == to {
			delete(m.sequences, id)
		}
	}
	for id := range 6 {
		if slots := m.sequences[id]; slots != nil && m.streamOf(id) == from {
			for other := range 6 {
				if m.sequences[other] == nil {
					for _, s := range slots {
						m.sequences[other] = append(m.sequences[other], s-from*m.size+to*m.size)
					}
					break
				}
			}
			break
		}
	}
}

// shift moves all positions of one stream by the same number, as far as none falls below zero.
func (m *model) shift() {
	if m.numbered {
		return
	}
	stream, by := m.rng.Intn(m.streams), int32(m.rng.Intn(7)-3)
	delta := make([]int32, len(m.cells))
	for i := stream * m.size; i < (stream+1)*m.size; i++ {
		if m.cells[i].position+by < 0 {
			return
		}
		delta[i] = by
	}
	m.x.Shift(delta)
	for i, d := range delta {
		m.put(i, cell{m.cells[i].text, m.cells[i].position + d}, m.blurred[i])
	}
	m.computed()
}

// rearrange moves a sequence's tokens about in its slots, as a host does that defragments, where no other one has them.
func (m *model) rearrange(id int) {
	slots := m.sequences[id]
	for other, theirs := range m.sequences {
		for _, s := range theirs {
			if other != id && slices.Contains(slots, s) {
				return
			}
		}
	}
	contents := make([]cell, len(slots))
	for i, s := range slots {
		contents[i] = m.cells[s]
	}
	m.rng.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
	for i, s := range slots {
		m.put(s, contents[i], true)
		if m.store == nil {
			m.x.Wrote(int64(s), 1, []uint64{contents[i].row()})
		}
	}
}

// save reads a sequence's rows out, as a host does before it gives its slot away.
func (m *model) save(id int) {
	if id < 0 {
		return
	}
	var state []cell
	for _, s := range m.sequences[id] {
		state = append(state, m.cells[s])
		if m.store == nil {
			m.x.ReadOut(int64(s), []uint64{m.cells[s].row()})
		}
	}
	if m.saved = append(m.saved, state); len(m.saved) > 4 {
		m.saved = m.saved[1:]
	}
}

// restore puts a state that was read out into whatever slots are free, behind the graphs.
func (m *model) restore() {
	to := m.rng.Intn(6)
	if len(m.saved) == 0 || m.sequences[to] != nil {
		return
	}
	stream := m.rng.Intn(m.streams)
	for _, c := range m.saved[m.rng.Intn(len(m.saved))] {
		slot := m.free(stream)
		if slot < 0 {
			delete(m.sequences, to)
			return
		}
		m.put(slot, c, true)
		if m.store == nil {
			m.x.Wrote(int64(slot), 1, []uint64{c.row()})
		}
		m.sequences[to] = append(m.sequences[to], slot)
	}
}

// Whatever a host does with its slots, what the index proves is true, and what it was told of it knows.
func TestIndexAgainstAModel(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	for name, kind := range map[string]struct{ watched, numbered bool }{
		"rows": {}, "watched": {watched: true}, "numbered": {numbered: true}, "watched and numbered": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewSource(seed))
			proven, asked, sure := 0, 0, 0
			for left := *modelSteps; left > 0; {
				m := newModel(t, rng, kind.watched, kind.numbered)
				for range min(left, 400) {
					m.step()
				}
				left -= 400
				proven, asked, sure = proven+m.proven, asked+m.asked, sure+m.sure
				m.x.Free()
			}
			t.Logf("%d asked, %d proven, %d of them sure", asked, proven, sure)
			require.Greater(t, asked, *modelSteps/8)
			require.Greater(t, sure, *modelSteps/100)
			require.Greater(t, proven, sure)
		})
	}
}
