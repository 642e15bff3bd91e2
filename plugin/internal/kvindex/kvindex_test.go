package kvindex

import (
	"math/rand"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/cpu"
)

// fakeStore is a K store whose rows are numbers, and the index of it.
type fakeStore struct {
	*KVIndex
	rows []uint64
}

func newFakeStore(t *testing.T, size, streams int) *fakeStore {
	memory := &cpu.Arena{}
	f := &fakeStore{rows: cpu.Slice[uint64](memory, size*streams)}
	f.KVIndex = NewKVIndex(Store{
		ID: uint64(uintptr(unsafe.Pointer(&f.rows[0]))), Slots: int64(size), Streams: int32(streams), Stride: 8, Row: 8,
	})
	f.Remember()
	t.Cleanup(func() { f.Free(); memory.Free() })
	return f
}

// computed is what happens once a graph is computed, up to the next one.
func (f *fakeStore) computed() {
	if note, any := f.Due(); any {
		note.Prints.Note(unsafe.Slice((*int64)(note.Slots), note.N))
	}
	f.Learn()
}

// token computes a token: its row holds a text that is its own.
func (f *fakeStore) token(slot int64, position int32, text uint64) {
	f.Write(slot, position, false)
	f.rows[slot] = text<<32 | uint64(uint32(position))
	f.computed()
}

func TestKVIndexFollowsAHost(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	for range 100 {
		size, streams := 1+rng.Intn(40), 1+rng.Intn(3)
		x := newFakeStore(t, size, streams)
		truth := make([]int32, size*streams)
		for i := range truth {
			truth[i] = Unknown
		}
		for step := range 200 {
			switch slot := rng.Intn(size * streams); rng.Intn(12) {
			case 0:
				delta := make([]int32, size*streams)
				for i := range delta {
					if delta[i] = int32(rng.Intn(3) - 1); truth[i] != Unknown {
						truth[i] += delta[i]
					}
				}
				x.Shift(delta)
				for i, d := range delta {
					x.rows[i] = x.rows[i]&^0xFFFFFFFF | uint64(uint32(int32(x.rows[i])+d))
				}
				x.computed()
			case 1, 2: // scattered
				truth[slot] = int32(rng.Intn(size))
				x.token(int64(slot), truth[slot], uint64(step+1))
			default: // in a run, as a host that appends
				truth[slot] = int32(slot % size)
				x.token(int64(slot), truth[slot], uint64(step+1))
			}
			require.Equal(t, truth, x.positions)
			s := rng.Intn(streams)
			cells := truth[s*size : (s+1)*size]
			n, unknown := runOf(cells)
			require.Equal(t, n, x.linear[s])
			w := func(n int) Window {
				return Window{Own: int32(n - 1), Recent: 1 + rng.Intn(size), SinkTokens: rng.Intn(5)}
			}
			of := w(n)
			require.Equal(t, max(min(of.Recent, n), 1) <= n-unknown, x.Prefix(s, n, of))
			require.False(t, n > 1 && x.Prefix(s, n, w(n-1)), "another own token")
			require.False(t, n < size && x.Prefix(s, n+1, w(n+1)))
		}
	}
}

// runOf is how many leading places are a run, and how many of these are unknown.
func runOf(cells []int32) (n, unknown int) {
	for unknown < len(cells) && cells[unknown] == Unknown {
		unknown++
	}
	n = min(unknown+1, len(cells))
	for n < len(cells) && cells[n] != Unknown && cells[n] == cells[n-1]+1 {
		n++
	}
	return n, unknown
}

func TestKVIndexOrdersByPosition(t *testing.T) {
	rng := rand.New(rand.NewSource(time.Now().UnixNano()))
	for range 500 {
		size := 2 + rng.Intn(100)
		n := 2 + rng.Intn(size-1)
		first := int32(rng.Intn(1000))
		x := newFakeStore(t, size, 2)
		slots := rng.Perm(size)[:n] // slots[i] holds position first+i
		want := make([]int32, n)
		for i, s := range slots {
			x.token(int64(size+s), first+int32(i), 1)
			want[i] = int32(s)
		}
		ascending := slices.Clone(want)
		slices.Sort(ascending)
		w := Window{Own: want[n-1], SinkTokens: rng.Intn(4), Recent: 1 + rng.Intn(n)}
		out := make([]int32, n)
		require.True(t, x.Order(1, ascending, w, out))
		require.Equal(t, want, out)
		require.False(t, x.Order(0, ascending, w, out), "of another stream")
		require.False(t, x.Order(2, ascending, w, out))
		require.False(t, x.Order(1, ascending, Window{Own: want[n-2], Recent: 1}, out), "the row's own token is not the newest")

		// A token among the newest is another one than was written; below them that is of no account.
		recent := 1 + rng.Intn(n-1)
		for i := range n - 1 {
			victim := size + slots[i]
			was := x.rows[victim]
			x.rows[victim] = 7777777
			require.Equal(t, i < n-recent, x.Order(1, ascending, Window{Own: want[n-1], Recent: recent}, out), "token %d of %d, %d recent", i, n, recent)
			x.rows[victim] = was
			require.True(t, x.Order(1, ascending, Window{Own: want[n-1], Recent: recent}, out), "recognised")
			require.Equal(t, want, out)
		}
	}
}

// A position twice, or one that is not there, tells nothing about the others.
func TestKVIndexWantsTheNewestWithoutGaps(t *testing.T) {
	x := newFakeStore(t, 32, 1)
	slots := make([]int32, 12)
	out := make([]int32, 12)
	for i := range slots {
		slots[i] = int32(i)
		x.token(int64(i), int32(i), 1)
	}
	w := Window{Own: 11, Recent: 4}
	require.True(t, x.Order(0, slots, w, out))
	x.token(3, 9, 2)
	require.False(t, x.Order(0, slots, w, out), "position 9 is there twice")
	x.token(3, 3, 3)
	x.token(9, 40, 4)
	require.False(t, x.Order(0, slots, w, out), "a visible token that is newer than the row's own")
	x.rows[9] = 99
	require.False(t, x.Order(0, slots, w, out), "slot 9 is not known: it may be any token")
	require.EqualValues(t, Unknown, x.positions[9])
	// A gap that a removal left: all others are known.
	gap := []int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11}
	require.True(t, x.Order(0, gap, w, out[:11]))
	require.Equal(t, gap, out[:11])
	x.rows[5] = 99
	require.False(t, x.Order(0, gap, w, out[:11]), "one of them is not: it may be in the gap")
}

// Tokens that nobody knows count as older than all others: where they lie in front, and the others behind them in order, no list is needed, and
// none is sorted. The newest have to be known, and still to be what was written.
func TestKVIndexKnowsAPrefixBehindUnknownTokens(t *testing.T) {
	for _, watched := range []bool{false, true} {
		var f *fakeStore
		x := NewWatched(Store{ID: 4096, Slots: 64, Streams: 2, Stride: 8, Row: 8})
		if !watched {
			f = newFakeStore(t, 64, 2)
			x = f.KVIndex
		}
		write := func(slot int64, position int32) {
			if watched {
				x.Write(slot, position, false)
				return
			}
			f.token(slot, position, 1)
		}
		const first = 64 // of the second stream
		for i := range int64(20) {
			write(first+i, Unknown)
		}
		for i := range int64(10) {
			write(first+20+i, int32(20+i))
		}
		ascending, out := make([]int32, 30), make([]int32, 30)
		for i := range ascending {
			ascending[i] = int32(i)
		}
		for n := 21; n <= 30; n++ {
			for recent := range n + 1 {
				w := Window{Own: int32(n - 1), SinkTokens: 4, Recent: recent}
				require.Equal(t, recent <= n-20, x.Prefix(1, n, w), "%d tokens, the newest %d", n, recent)
				require.Equal(t, recent <= n-20, x.Order(1, ascending[:n], w, out))
				if recent <= n-20 {
					require.Equal(t, ascending[:n], out[:n])
				}
			}
		}
		w := Window{Own: 29, SinkTokens: 4, Recent: 5}
		require.False(t, x.Prefix(1, 20, Window{Own: 19, SinkTokens: 4}), "the row's own is not known")
		require.False(t, x.Prefix(0, 30, w), "in the other stream none is")
		write(first+3, 3) // known among those that are not: Order puts it behind them
		require.False(t, x.Prefix(1, 30, w))
		write(first+3, Unknown)
		require.True(t, x.Order(1, ascending, w, out))
		x.Forget()
		for i := range int64(30) {
			write(first+i, map[bool]int32{true: Unknown, false: int32(i)}[i < 20])
		}
		require.True(t, x.Prefix(1, 30, w))
		if !watched {
			f.rows[first+27] = 99
			require.False(t, x.Prefix(1, 30, w), "one of the newest holds something else")
		}
	}
	x := NewWatched(Store{ID: 4096, Slots: 64, Streams: 1, Stride: 8, Row: 8})
	for i := range int64(10) {
		x.WriteNext(10+i, false)
	}
	require.False(t, x.Prefix(0, 20, Window{Own: 19, Recent: 5}), "numbers of writes tell nothing of a text whose beginning is not known")
}

// The leading run of each stream is what it is, whatever slots change.
func TestKVIndexKeepsRuns(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	for range 200 {
		size, streams := 1+rng.Intn(8), 1+rng.Intn(2)
		x := NewWatched(Store{ID: 4096, Slots: int64(size), Streams: int32(streams), Stride: 8, Row: 8})
		for range 200 {
			slot := rng.Intn(size * streams)
			switch what := rng.Intn(20); {
			case what == 0:
				x.Forget()
			case what == 1:
				x.Shift(make([]int32, size*streams))
			case what < 8:
				x.place(slot, Unknown)
			default:
				x.place(slot, int32(slot%size+rng.Intn(2)*rng.Intn(3)))
			}
			for s := range streams {
				cells := x.positions[s*size:][:size]
				n, _ := runOf(cells)
				require.Equal(t, n, x.linear[s], "%v", cells)
			}
		}
	}
}

// Several tokens of one graph: what it writes is not there yet, and is known all the same, while the rest has to hold; the same
// slots again, as after a draft that was taken back, and in an order that is not that of slots.
func TestKVIndexKnowsWhatTheGraphWrites(t *testing.T) {
	for _, backwards := range []bool{false, true} {
		slot := func(position int) int64 {
			if backwards {
				return int64(63 - position)
			}
			return int64(position)
		}
		x := newFakeStore(t, 64, 1)
		for i := range 20 {
			x.token(slot(i), int32(i), 1)
		}
		sees := func(position int) bool {
			w := Window{Own: int32(slot(position)), SinkTokens: 2, Recent: 6}
			if !backwards {
				return x.Prefix(0, position+1, w)
			}
			var slots []int32
			for i := range position + 1 {
				slots = append(slots, int32(slot(i)))
			}
			slices.Sort(slots)
			want := make([]int32, position+1)
			for i := range want {
				want[i] = int32(slot(i))
			}
			newest := position + 1 - w.Recent // what has changed may come first
			return x.Order(0, slots, w, slots) && slices.Equal(want[newest:], slots[newest:])
		}
		for text := range uint64(3) { // slots of what was taken back hold other keys until the graph is computed
			for i := 20; i < 28; i++ {
				x.Write(slot(i), int32(i), i == 21)
			}
			for i := 20; i < 28; i++ {
				require.True(t, sees(i), "text %d, position %d, backwards %t", text, i, backwards)
				require.True(t, x.Fresh(0, int32(slot(i))))
				require.Equal(t, i == 21, x.Prompt(0, int32(slot(i))))
			}
			require.False(t, x.Fresh(0, int32(slot(19))))
			was := x.rows[slot(19)]
			x.rows[slot(19)] = 99 // behind the graphs
			require.False(t, sees(20))
			require.True(t, sees(27), "of the newest six")
			x.rows[slot(19)] = was
			for i := 20; i < 28; i++ {
				x.rows[slot(i)] = (text+7)<<32 | uint64(i)
			}
			x.computed()
			require.False(t, x.Fresh(0, int32(slot(20))))
			require.True(t, sees(27))
		}
		x.rows[slot(26)] = 99
		require.False(t, sees(27), "once it is computed, it has to hold")
	}
}

func TestKVIndexRecognisesWhatMoves(t *testing.T) {
	x := newFakeStore(t, 64, 2)
	for i := range 20 {
		x.token(int64(i), int32(i), 1)
	}
	copy(x.rows[64:], x.rows[:20]) // a stream that is copied
	out := make([]int32, 20)
	slots := []int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}
	x.Write(64+20, 20, false)
	require.True(t, x.Order(1, append(slots, 20), Window{Own: 20, Recent: 8}, make([]int32, 21)))
	// The same tokens, in cells that they were not written to, in another order.
	for i, to := range rand.Perm(19) {
		x.rows[to] = 1<<32 | uint64(i)
	}
	x.token(19, 19, 1)
	require.True(t, x.Order(0, slots, Window{Own: 19, Recent: 8}, out))
	for i, s := range out {
		require.EqualValues(t, 1<<32|i, x.rows[s])
	}
}

func TestKVIndexIgnoresWhatIsNotThere(t *testing.T) {
	x := newFakeStore(t, 4, 1)
	for i := range 4 {
		x.token(int64(i), int32(i), 1)
	}
	x.Write(-1, 0, false)
	x.Write(4, 0, false)
	require.True(t, x.Prefix(0, 4, Window{Own: 3, Recent: 2}))
	x.Shift([]int32{1})
	require.False(t, x.Prefix(0, 1, Window{Own: 0, Recent: 1}), "a shift that does not fit makes everything unknown")
	require.False(t, x.Order(0, []int32{0, 1}, Window{Own: 1, Recent: 1}, make([]int32, 2)))
	// A store that does not show its rows: nothing is ever known.
	blind := NewKVIndex(Store{ID: 4096, Slots: 4, Streams: 1})
	defer blind.Free()
	blind.Write(0, 0, false)
	require.False(t, blind.Prefix(0, 1, Window{Recent: 1}))
}

// At least as many prints are remembered as were asked for, in bounded memory.
func TestPrintsRemember(t *testing.T) {
	const slots = 100
	var p prints
	p.make(slots)
	size := len(p.now)
	for i := range uint64(5000) {
		p.put(i*0x9E3779B97F4A7C15|1, int32(i), i%3 == 0)
		for k := uint64(0); k < slots && k <= i; k++ {
			position, prompt, ok := p.get((i-k)*0x9E3779B97F4A7C15 | 1)
			require.True(t, ok)
			require.EqualValues(t, i-k, position)
			require.Equal(t, (i-k)%3 == 0, prompt)
		}
	}
	_, _, ok := p.get(1)
	require.False(t, ok)
	require.Len(t, p.now, size)
	p.put(77, 1, false)
	p.put(77, 2, false)
	_, _, ok = p.get(77)
	require.False(t, ok, "rows of two positions")

	const words = 200 // whose keys begin with dimensions that are not rotated
	p.make(slots)
	for i := range int32(10 * words) {
		p.put(uint64(i%words)+1, i, false)
	}
	p.put(words+1, 1, false)
	_, _, ok = p.get(words + 1)
	require.False(t, ok, "what prints say of positions is not true")
}

// A host on a GPU whose every move is told: what the index says of a slot is true, or nothing.
func TestWatchedIndexFollowsAHost(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	known := 0
	for range 200 {
		size, streams := 1+rng.Intn(30), 1+rng.Intn(3)
		n := size * streams
		x := NewWatched(Store{ID: 4096, Slots: int64(size), Streams: int32(streams), Stride: 8, Row: 8})
		x.Remember()
		type row struct {
			text     uint64 // 0: nobody knows what lies there
			position int32
		}
		rows := make([]row, n)
		saved := map[uint64]row{}
		print := func(r row) uint64 { return r.text<<32 | uint64(uint32(r.position))<<1 | 1 }
		texts := uint64(1)
		for range 200 {
			first := rng.Intn(n)
			some := 1 + rng.Intn(n-first)
			switch rng.Intn(7) {
			case 0, 1, 2: // a graph writes a token
				r := row{texts, int32(rng.Intn(100))}
				texts++
				rows[first] = r
				x.Write(int64(first), r.position, false)
			case 3: // rows are read out; those of texts will be known again
				prints := make([]uint64, some)
				for i := range prints {
					prints[i] = print(rows[first+i])
					if rows[first+i].text != 0 {
						saved[prints[i]] = rows[first+i]
					}
				}
				x.ReadOut(int64(first), prints)
			case 4: // rows that were read out are put back, among others
				prints := make([]uint64, some)
				for i := range prints {
					rows[first+i] = row{}
					prints[i] = rng.Uint64() &^ 1
					for p, r := range saved {
						if rng.Intn(2) == 0 {
							rows[first+i], prints[i] = r, p
						}
						break
					}
				}
				if rng.Intn(4) == 0 {
					prints = nil
				}
				x.Wrote(int64(first), int64(some), prints)
			case 5: // a copy
				from := rng.Intn(n - some + 1)
				moved := slices.Clone(rows[from : from+some])
				copy(rows[first:], moved)
				if from+some <= first || first+some <= from { // no host copies a range over itself
					x.Copied(int64(first), int64(from), int64(some))
				} else {
					x.Wrote(int64(first), int64(some), nil)
				}
			case 6: // a K-shift: the rows' keys are turned, those that were read out are not
				delta := make([]int32, n)
				for i := range delta {
					delta[i] = int32(rng.Intn(5))
					rows[i].position += delta[i]
				}
				x.Shift(delta)
			}
			for slot := range rows {
				if p := x.positions[slot]; p != Unknown {
					known++
					require.Equal(t, rows[slot].position, p, "slot %d", slot)
				}
			}
		}
	}
	require.Positive(t, known)
}

// In a store whose changes are told nothing is read: the index's memory is its own alone.
func TestWatchedIndexOrders(t *testing.T) {
	x := NewWatched(Store{ID: 4096, Slots: 64, Streams: 1, Stride: 8, Row: 8})
	for i := range 40 {
		x.Write(int64(i), int32(i), false)
	}
	require.True(t, x.Prefix(0, 40, Window{Own: 39, SinkTokens: 4, Recent: 10}))
	_, any := x.Due()
	require.False(t, any)
	x.Wrote(35, 1, nil)
	require.False(t, x.Prefix(0, 40, Window{Own: 39, SinkTokens: 4, Recent: 10}))
	slots := make([]int32, 40)
	for i := range slots {
		slots[i] = int32(i)
	}
	out := make([]int32, 40)
	require.False(t, x.Order(0, slots, Window{Own: 39, SinkTokens: 4, Recent: 10}, out), "one of the newest is not known")
	require.True(t, x.Order(0, slots, Window{Own: 39, SinkTokens: 4, Recent: 4}, out))
	require.EqualValues(t, 35, out[0], "an unknown one counts as the oldest")
	require.False(t, NewWatched(Store{ID: 4096, Slots: 64, Streams: 1}).proves(), "a store whose changes are not seen")
}
