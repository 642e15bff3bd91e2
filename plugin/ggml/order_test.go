package ggml

import (
	"maps"
	"math/rand"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/stats"
)

// rowOf decodes one token and gives the row that the last layer attends with.
func (h *fakeHost) rowOf(tk token) *cpu.Row {
	nodes := h.plan(tk)
	n := &nodes[len(nodes)-1]
	require.Equal(h.t, stats.Offloaded, n.Reason)
	return &rowsOf(n)[0]
}

// clear empties the cells of a sequence.
func (h *fakeHost) clear(sequence int) {
	for stream := range h.cells {
		for c := range h.cells[stream] {
			if h.cells[stream][c].sequence == sequence {
				h.cells[stream][c].sequence = -1
			}
		}
	}
}

// A state is restored behind the graphs, out of order, and the library has never seen its tokens: nobody knows which
// of them is new. The row is dense until its newest tokens are known ones.
func TestRestoredTokensCountAsOlder(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 64, 1) // two of the budget's eight are for the newest
	h.discover()
	for i, c := range rand.Perm(20) {
		h.restore(0, c, cell{0, int32(i)})
	}
	row := h.rowOf(token{0, 40, 0, 20})
	require.Zero(t, row.SetLen, "a restored token may be the newest but one")
	row = h.rowOf(token{0, 30, 0, 21})
	require.NotZero(t, row.SetLen)
	want := []int32{}
	for c := range int32(20) {
		want = append(want, c)
	}
	require.Equal(t, append(want, 40, 30), slotsOf(row), "restored ones in the order of cells, then by position")
	require.EqualValues(t, 1, h.session.Stats().CellOrder)
	require.EqualValues(t, 1, h.session.Stats().PositionOrder)
	require.EqualValues(t, 1, h.session.Stats().RowsSparse)
}

// Exactly the cells that as many tokens were last written to in order, but with others in them: nothing in a mask or
// in what graphs write differs from the tokens that were there.
func TestRestoredIntoTheSameCells(t *testing.T) {
	for _, seen := range []bool{false, true} {
		h := newFakeHost(t, small(8, 1), 3, 64, 1)
		h.discover()
		cells := rand.Perm(20)
		if seen { // its tokens were written once, elsewhere
			for i := range 20 {
				h.plan(token{0, 40 + i%20, 1, int32(i)})
			}
			h.clear(1)
		}
		for i := range 20 {
			h.plan(token{0, i, 0, int32(i)})
		}
		h.clear(0)
		for i, c := range cells {
			h.restore(0, c, cell{1, int32(i)})
		}
		row := h.rowOf(token{0, 20, 1, 20})
		if !seen {
			require.Zero(t, row.SetLen)
			continue
		}
		require.NotZero(t, row.SetLen, "recognised by what the cells hold")
		want := []int32{}
		for _, c := range cells {
			want = append(want, int32(c))
		}
		require.Equal(t, append(want, 20), slotsOf(row))
	}
}

// Whatever a host does to its cells, a sparse row's newest tokens are its newest.
func TestSparseRowsKnowTheirNewest(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	sparse, rows := 0, 0
	for range 60 {
		const size, recent = 96, 5
		config := small(20, 1) // five of them for the newest, no sinks
		config.SinkTokens = 0
		h := newFakeHost(t, config, 3, size, 1+rng.Intn(2))
		h.ropes = rng.Intn(4) > 0
		h.discover()
		type state struct {
			cells []cell
			next  int32
		}
		sequence, saved := 0, []state{}
		next := [2]map[int]int32{{}, {}} // by stream and sequence
		stream := func() int { return rng.Intn(len(h.cells)) }
		free := func(s int) (out []int) {
			for c, x := range h.cells[s] {
				if x.sequence < 0 {
					out = append(out, c)
				}
			}
			if rng.Intn(3) == 0 {
				rng.Shuffle(len(out), func(i, k int) { out[i], out[k] = out[k], out[i] })
			}
			return out
		}
		live := func(s int) (out []int) {
			for _, x := range h.cells[s] {
				if x.sequence >= 0 && !slices.Contains(out, x.sequence) {
					out = append(out, x.sequence)
				}
			}
			slices.Sort(out)
			return out
		}
		for range 250 {
			s := stream()
			alive := live(s)
			switch op := rng.Intn(20); {
			case op == 0 || len(alive) == 0: // a prompt
				text := []token{}
				at := free(s)
				for i := range min(len(at), 10+rng.Intn(20)) {
					text = append(text, token{s, at[i], sequence, int32(i)})
				}
				if len(text) > 0 {
					h.plan(text...)
					next[s][sequence] = int32(len(text))
					sequence++
				}
			case op == 1: // ends
				h.clear(alive[rng.Intn(len(alive))])
			case op == 2: // is saved, and ends
				q := alive[rng.Intn(len(alive))]
				st := state{next: next[s][q]}
				for _, x := range h.cells[s] {
					if x.sequence == q {
						st.cells = append(st.cells, x)
					}
				}
				saved = append(saved, st)
				h.clear(q)
			case op == 3 && len(saved) > 0: // comes back, into whatever is free; or one of another process does
				st := saved[rng.Intn(len(saved))]
				if at := free(s); len(at) >= len(st.cells) && len(live(s)) == len(alive) && !slices.Contains(alive, st.cells[0].sequence) {
					foreign := rng.Intn(2) == 0
					for i, x := range st.cells {
						if foreign {
							x.sequence += 1000
						}
						next[s][x.sequence] = st.next
						h.restore(s, at[i], x)
					}
				}
			case op == 4 && h.ropes: // the beginning goes, the rest moves up
				q := alive[rng.Intn(len(alive))]
				drop := rng.Int31n(next[s][q])
				delta := alloc[int32](h, size*len(h.cells))
				for c := range h.cells[s] {
					switch x := &h.cells[s][c]; {
					case x.sequence != q:
					case x.position < drop:
						x.sequence = -1
					default:
						x.position -= drop
						delta[s*size+c] = -drop
					}
				}
				next[s][q] -= drop
				h.run(&graph.Graph{Shifts: []graph.Shift{
					{Store: h.store(0).ID, Delta: unsafe.Pointer(&delta[0]), N: int32(len(delta))},
				}})
			case op == 5 && len(h.cells) > 1: // a stream is copied
				copy(h.cells[1-s], h.cells[s])
				next[1-s] = maps.Clone(next[s])
				for l := range h.keys {
					copy(h.keys[l][(1-s)*size:(2-s)*size], h.keys[l][s*size:(s+1)*size])
				}
			default:
				q, at := alive[rng.Intn(len(alive))], free(s)
				if len(at) == 0 {
					h.clear(q)
					continue
				}
				row := h.rowOf(token{s, at[0], q, next[s][q]})
				next[s][q]++
				if row.Visible <= 20 {
					continue
				}
				if rows++; row.SetLen == 0 {
					continue
				}
				sparse++
				got := slotsOf(row)
				for i, slot := range got[len(got)-recent:] {
					require.Equal(t, cell{q, next[s][q] - int32(recent-i)}, h.cells[s][slot], "step by step: %v", got)
				}
			}
		}
	}
	t.Logf("%d of %d rows beyond the budget were sparse", sparse, rows)
	require.Greater(t, sparse, rows/2)
}

func TestSessionFollowsAKShift(t *testing.T) {
	h := newFakeHost(t, small(4, 1), 3, 32, 1)
	h.discover()
	for i := range 10 {
		h.plan(token{0, i, 0, int32(i)})
	}
	// Tokens 2 .. 4 are removed and the later ones move up.
	delta := alloc[int32](h, 32)
	for i := 5; i < 10; i++ {
		h.cells[0][i].position -= 3
		delta[i] = -3
	}
	for i := 2; i < 5; i++ {
		h.cells[0][i].sequence = -1
	}
	h.run(&graph.Graph{Shifts: []graph.Shift{{Store: h.store(0).ID, Delta: unsafe.Pointer(&delta[0]), N: 32}}})
	nodes := h.plan(token{0, 3, 0, 7})
	require.Equal(t, []int32{0, 1, 5, 6, 7, 8, 9, 3}, slotsOf(&rowsOf(&nodes[2])[0]))
	require.Zero(t, h.session.Stats().CellOrder)
}

// A store that is changed in a way that is not understood, and a shift of another length.
func TestRewrittenStoresAreNotKnown(t *testing.T) {
	for _, change := range []func(h *fakeHost, g *graph.Graph){
		func(h *fakeHost, g *graph.Graph) { g.Rewritten = []uint64{h.store(0).ID} },
		func(h *fakeHost, g *graph.Graph) {
			g.Shifts = []graph.Shift{{Store: h.store(0).ID, Delta: unsafe.Pointer(&alloc[int32](h, 8)[0]), N: 8}}
		},
	} {
		h := newFakeHost(t, small(8, 1), 3, 32, 1)
		h.discover()
		for i := range 12 {
			h.plan(token{0, i, 0, int32(i)})
		}
		require.Zero(t, h.session.Stats().CellOrder)
		g := &graph.Graph{}
		change(h, g)
		h.session.Plan(g)
		require.Zero(t, h.rowOf(token{0, 12, 0, 12}).SetLen)
		require.NotZero(t, h.rowOf(token{0, 13, 0, 13}).SetLen, "its two newest are known again")
	}
}

// What a host failed to compute is not known to be there.
func TestFailedGraphsWriteNothing(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 32, 1)
	h.discover()
	for i := range 12 {
		h.plan(token{0, i, 0, int32(i)})
	}
	h.session.Plan(h.graph([]token{{0, 12, 0, 12}}, 0, 3)) // and no print is taken
	require.Zero(t, h.rowOf(token{0, 13, 0, 13}).SetLen)
}

// Positions that are not the batch's: of another number of tokens, several in a graph, or an earlier batch's.
func TestPositionsAreTheBatchs(t *testing.T) {
	for _, change := range []func(g *graph.Graph){
		func(g *graph.Graph) { g.Positions = nil },
		func(g *graph.Graph) { g.Positions = append(slices.Clone(g.Positions), 7) },
		func(g *graph.Graph) { g.Positions, g.Rotations = nil, 0 },
	} {
		h := newFakeHost(t, small(8, 1), 3, 32, 1)
		h.discover()
		for i := range 12 {
			h.plan(token{0, i, 0, int32(i)})
		}
		g := h.graph([]token{{0, 12, 0, 12}}, 0, 3)
		change(g)
		h.run(g)
		require.Zero(t, rowsOf(&g.Nodes[2])[0].SetLen)
		h.rowOf(token{0, 13, 0, 13})
		require.NotZero(t, h.rowOf(token{0, 14, 0, 14}).SetLen)
	}
}

// A layer's keys may be rotated where the library does not see it, and a later layer's where it does: the positions that
// are read there are not those of the first layer's next batch.
func TestPositionsOfAnEarlierBatch(t *testing.T) {
	h := newFakeHost(t, small(8, 0), 3, 64, 1)
	h.discover()
	for i := range 12 {
		for sequence, cell := range []int{i, 40 - i} {
			batch := []token{{0, cell, sequence, int32(100*sequence + i)}}
			first, rest := h.graph(batch, 0, 1), h.graph(batch, 1, 3)
			first.Positions, first.Rotations = nil, 0
			h.run(first)
			h.run(rest)
			require.Zero(t, rowsOf(&first.Nodes[0])[0].SetLen)
		}
	}
}

// A step whose tokens were not seen to be written has no row of its own: an earlier step's token would be its newest.
func TestStepsBeginWithAWrite(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 32, 1)
	h.discover()
	for i := range 12 {
		h.plan(token{0, i, 0, int32(i)})
	}
	g := h.graph([]token{{0, 12, 0, 12}}, 0, 3)
	g.Writes = nil
	h.run(g)
	for _, n := range g.Nodes {
		require.Equal(t, stats.ReasonUnknownRow, n.Reason)
	}
}

// Without positions in its graphs a model's tokens are as new as their writes, if each of them was seen.
func TestOrderOfWrites(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 64, 1)
	h.ropes = false
	h.discover()
	cells := rand.Perm(40)
	want := []int32{}
	for i, c := range cells[:20] {
		h.plan(token{0, cells[20+i], 1, int32(i)}) // another sequence, in between
		want = append(want, int32(c))
		row := h.rowOf(token{0, c, 0, int32(i)})
		require.Equal(t, i >= 8, row.SetLen > 0)
		if i >= 8 {
			require.Equal(t, want, slotsOf(row))
		}
	}
	h.restore(0, cells[3], cell{0, 3})
	require.NotZero(t, h.rowOf(token{0, 50, 0, 20}).SetLen, "the same token")
	h.keys[0][cells[3]].text++
	require.Zero(t, h.rowOf(token{0, 51, 0, 21}).SetLen, "one that was not seen may be any")
	require.Zero(t, h.rowOf(token{0, 52, 0, 22}).SetLen)
}

// With ALiBi the mask tells how far away each token is.
func TestOrderOfDistances(t *testing.T) {
	for _, typ := range []cpu.Type{cpu.F16, cpu.F32} {
		h := newFakeHost(t, small(8, 1), 3, 4096, 1)
		h.ropes = false
		h.discover()
		order := rand.Perm(3000)
		for i, c := range order[:2999] {
			h.restore(0, c, cell{0, int32(i)})
		}
		g := h.graph([]token{{0, order[2999], 0, 2999}}, 0, 3)
		wide := alloc[float32](h, h.nkv)
		for c, x := range h.cells[0] {
			if x.sequence == 0 {
				h.mask[c] = float16.Fromfloat32(-float32(2999 - x.position))
			}
			wide[c] = h.mask[c].Float32()
		}
		for i := range g.Nodes {
			if g.Nodes[i].MaxBias = 8; typ == cpu.F32 {
				g.Nodes[i].Scan, g.Nodes[i].ScanType = unsafe.Pointer(&wide[0]), cpu.F32
			}
		}
		h.run(g)
		row := &rowsOf(&g.Nodes[2])[0]
		require.NotZero(t, row.SetLen)
		got := slotsOf(row)
		for i := range 2000 {
			require.EqualValues(t, order[2999-i], got[2999-i])
		}
	}
}

// The text behind an image has positions without gaps; the image's tokens share one.
func TestOrderBehindAnImage(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 64, 1)
	h.discover()
	four := func(g *graph.Graph) *graph.Graph {
		n := len(g.Positions)
		p := alloc[int32](h, 4*n)
		for i := range p {
			p[i] = g.Positions[i%n] + int32(i/n)
		}
		g.Positions = p
		return g
	}
	text, image := []token{}, []token{}
	for i := range 6 {
		text = append(text, token{0, 30 - i, 0, int32(i)})
	}
	for i := range 9 {
		image = append(image, token{0, i, 0, 6})
	}
	h.run(four(h.graph(text, 0, 3)))
	for i := range image { // each has keys of its own
		h.run(four(h.graph(image[i:i+1], 0, 3)))
		h.keys[0][i].text += int64(i)
	}
	for i := range 5 {
		g := four(h.graph([]token{{0, 50 - i, 0, int32(9 + i)}}, 0, 3))
		h.run(g)
		row := &rowsOf(&g.Nodes[2])[0]
		got := slotsOf(row)
		if row.SetLen > 0 {
			require.Equal(t, int32(50-i), got[len(got)-1])
			require.Equal(t, i > 0, got[len(got)-2] == int32(51-i))
		}
		require.Equal(t, i > 0, row.SetLen > 0, "token %d behind the image, which was changed behind the graphs", i)
	}
}

// A prompt that is fed token by token wants no logits but for its last token.
func TestPromptsTokenByToken(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 64, 1)
	h.wanting = true
	h.discover()
	for i := range 20 {
		for _, n := range h.plan(token{0, i, 0, int32(i)}) {
			require.Equal(t, stats.ReasonPrompt, n.Reason)
		}
	}
	h.wants = []int32{0}
	require.Zero(t, h.rowOf(token{0, 20, 0, 20}).SetLen, "the prompt's last token")
	require.NotZero(t, h.rowOf(token{0, 21, 0, 21}).SetLen)
	s := h.session.Stats()
	require.EqualValues(t, 1, s.PromptRows)
	require.Zero(t, s.UntoldRows)

	// Beside a row that decodes: one that wants no logits.
	for i := range 20 {
		h.plan(token{0, 30 + i, 1, int32(i)})
	}
	h.wants = []int32{1}
	nodes := h.plan(token{0, 22, 0, 22}, token{0, 50, 1, 20})
	rows := rowsOf(&nodes[2])
	require.Zero(t, rows[0].SetLen)
	require.NotZero(t, rows[1].SetLen)
	h.wanting = false // the graph does not tell: as if they were wanted
	require.NotZero(t, h.rowOf(token{0, 51, 1, 21}).SetLen)
	require.EqualValues(t, 1, h.session.Stats().UntoldRows)

	// A prompt in batches that leaves one token over.
	h = newFakeHost(t, small(8, 1), 3, 64, 1)
	h.wanting = true
	h.discover()
	text := []token{}
	for i := range 20 {
		text = append(text, token{0, i, 0, int32(i)})
	}
	h.plan(text...)
	h.wants = []int32{0}
	require.Zero(t, h.rowOf(token{0, 20, 0, 20}).SetLen)
	require.NotZero(t, h.rowOf(token{0, 21, 0, 21}).SetLen)
}
