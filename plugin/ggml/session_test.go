package ggml

import (
	"math/rand"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/oncpu"
	probes "lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// fakeHost plays a ggml host: one K/V store per layer, a mask that only it understands, several
// sequences in one unified store or one stream each. It lives in C memory, as a host's tensors do.
type fakeHost struct {
	t       *testing.T
	session *Session
	memory  []*cpu.Arena

	layers  int
	slots   int // per stream
	streams int
	nkv     int
	cells   [][]cell // per stream
	mask    []float16.Float16

	heads, kvHeads, dim int
	softMax             int

	keys    [][]key // per layer, by global slot
	ropes   bool    // the model's graphs have positions
	wants   []int32 // numbers of a batch's tokens that logits are wanted of
	wanting bool    // the graphs show wants
	divides bool    // nodes can be left to the host in part
}

// key is what a host computes for a token: it follows from the token and its position, as the keys of a first layer do.
type key struct{ text, position int64 }

type cell struct {
	sequence int // -1: empty
	position int32
}

var negInf = float16.Inf(-1)

func newFakeHost(t *testing.T, config settings.Config, layers, slots, streams int) *fakeHost {
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	h := &fakeHost{t: t, session: NewSession(engine, nil), layers: layers, slots: slots, nkv: slots, streams: streams, heads: 4, kvHeads: 2, dim: 32, ropes: true}
	for range layers {
		h.keys = append(h.keys, alloc[key](h, slots*streams))
	}
	for range streams {
		row := make([]cell, slots)
		for i := range row {
			row[i].sequence = -1
		}
		h.cells = append(h.cells, row)
	}
	t.Cleanup(func() {
		h.session.Close()
		for _, a := range h.memory {
			a.Free()
		}
	})
	return h
}

// cal is the session's calibrator.
func (h *fakeHost) cal() *probes.Probes { return h.session.on.(*oncpu.Device).Probes }

func alloc[T any](h *fakeHost, n int) []T {
	a := &cpu.Arena{}
	h.memory = append(h.memory, a)
	return cpu.Slice[T](a, n)[:n]
}

// token is one query token of a batch: it goes to a cell of the stream.
type token struct {
	stream, cell int
	sequence     int
	position     int32
}

// graph is what the hook reads out of one compute call: layers [from, to) of a batch of tokens, the
// same number for every stream. firstStream is that of the batch.
func (h *fakeHost) graph(tokens []token, from, to int) *graph.Graph {
	streams := 0
	for _, tk := range tokens {
		streams = max(streams, tk.stream-tokens[0].stream+1)
	}
	perStream := len(tokens) / streams
	h.mask = alloc[float16.Float16](h, len(tokens)*h.nkv)
	slots := alloc[int64](h, len(tokens))
	positions := alloc[int32](h, len(tokens))
	for i, tk := range tokens {
		h.cells[tk.stream][tk.cell] = cell{tk.sequence, tk.position}
		slots[i] = int64(tk.stream*h.slots + tk.cell)
		positions[i] = tk.position
	}
	for i, tk := range tokens {
		for c := range h.nkv {
			v := negInf
			if x := h.cells[tk.stream][c]; x.sequence == tk.sequence && x.position <= tk.position {
				v = 0
			}
			h.mask[i*h.nkv+c] = v
		}
	}
	g := &graph.Graph{SoftMax: h.softMax, Weights: 1, FirstBlock: -1}
	if h.ropes {
		g.Positions, g.Rotations = positions, 2*h.layers
	}
	if h.wanting {
		g.Outputs, g.Batch = h.wants, len(tokens)
	}
	divides := graph.Whole
	if h.divides {
		divides = graph.Divided
	}
	for l := from; l < to; l++ {
		store := h.store(l)
		g.Writes = append(g.Writes, graph.Write{Store: store, Slots: unsafe.Pointer(&slots[0]), Wide: 1, N: int32(len(tokens))})
		g.Nodes = append(g.Nodes, graph.Node{
			Store: store, Layer: int32(l), FirstStream: int32(tokens[0].stream), Tokens: int32(perStream), Streams: int32(streams),
			NKV: int32(h.nkv), ScanType: cpu.F16, Scan: unsafe.Pointer(&h.mask[0]), ScanTokenStride: int64(2 * h.nkv),
			ScanStreamStride: int64(2 * h.nkv * perStream), Mask: unsafe.Pointer(&h.mask[0]), MaskTokenStride: int64(2 * h.nkv),
			MaskStreamStride: int64(2 * h.nkv * perStream), Divides: divides,
			Call: cpu.Call{Heads: int32(h.heads), KVHeads: int32(h.kvHeads), DimK: int32(h.dim), DimV: int32(h.dim), Scale: 1},
		})
	}
	return g
}

// store is a layer's K store.
func (h *fakeHost) store(layer int) kvindex.Store {
	return kvindex.Store{
		ID: uint64(uintptr(unsafe.Pointer(&h.keys[layer][0]))), Slots: int64(h.slots), Streams: int32(h.streams),
		Stride: int64(unsafe.Sizeof(key{})), Row: int32(unsafe.Sizeof(key{})),
	}
}

// run plans a compute call and computes it: the keys are written and sets chosen, then the hook takes the prints.
func (h *fakeHost) run(g *graph.Graph) {
	h.session.Plan(g)
	for i := range g.Writes {
		for l := range h.keys {
			for k := range int(g.Writes[i].N) {
				if slot := int(g.Writes[i].Slot(k)); h.store(l).ID == g.Writes[i].Store.ID && slot < h.slots*h.streams {
					c := h.cells[slot/h.slots][slot%h.slots]
					h.keys[l][slot] = h.keyOf(c)
				}
			}
		}
	}
	for i := range g.Shifts {
		for l := range h.keys {
			for slot, d := range unsafe.Slice((*int32)(g.Shifts[i].Delta), g.Shifts[i].N) {
				if h.store(l).ID == g.Shifts[i].Store && h.keys[l][slot] != (key{}) {
					h.keys[l][slot].position += int64(d)
				}
			}
		}
	}
	h.choose(g.Nodes)
	for _, n := range g.Notes {
		n.Prints.Note(unsafe.Slice((*int64)(n.Slots), n.N))
	}
}

// keyOf is the key of a cell's token: the texts of sequences differ.
func (h *fakeHost) keyOf(c cell) key {
	k := key{int64(c.sequence+1)<<32 | int64(c.position+1), 0}
	if h.ropes {
		k.position = int64(c.position)
	}
	return k
}

// restore puts a token into a cell behind the graphs.
func (h *fakeHost) restore(stream, at int, c cell) {
	h.cells[stream][at] = c
	for l := range h.keys {
		h.keys[l][stream*h.slots+at] = h.keyOf(c)
	}
}

// plan runs a whole pass and returns the nodes.
func (h *fakeHost) plan(tokens ...token) []graph.Node {
	g := h.graph(tokens, 0, h.layers)
	h.run(g)
	return g.Nodes
}

// discover runs the pass that the library leaves to the host: one token, whose cell is emptied again.
func (h *fakeHost) discover() {
	for _, n := range h.plan(token{0, h.slots - 1, 99, 0}) {
		require.Equal(h.t, stats.ReasonDiscovery, n.Reason)
	}
	h.cells[0][h.slots-1].sequence = -1
}

func rowsOf(n *graph.Node) []cpu.Row { return unsafe.Slice((*cpu.Row)(n.Call.Rows), n.Call.NRows) }

func slotsOf(r *cpu.Row) []int32 {
	if r.Slots == nil {
		out := make([]int32, r.Visible)
		for i := range out {
			out[i] = int32(i)
		}
		return out
	}
	return slices.Clone(unsafe.Slice((*int32)(r.Slots), r.Visible))
}

func modes(nodes []graph.Node) (out []cpu.Mode) {
	for _, n := range nodes {
		out = append(out, n.Call.Mode)
	}
	return out
}

func small(budget int, layers ...int) settings.Config {
	c := settings.DefaultConfig()
	c.Budget, c.Layers = budget, layers
	return c
}

func TestSessionAssignsRoles(t *testing.T) {
	h := newFakeHost(t, small(8, 1, 3), 5, 64, 1)
	h.discover()
	for i := range 20 {
		nodes := h.plan(token{0, i, 0, int32(i)})
		want := []cpu.Mode{cpu.Full, cpu.Full, cpu.Full, cpu.Full, cpu.Full}
		if i+1 > 8 {
			want = []cpu.Mode{cpu.Full, cpu.Select, cpu.Sparse, cpu.Select, cpu.Sparse}
		}
		require.Equal(t, want, modes(nodes), "token %d", i)
		for _, n := range nodes {
			require.Equal(t, stats.Offloaded, n.Reason)
			require.Equal(t, i+1, int(rowsOf(&n)[0].Visible))
		}
	}
	s := h.session.Stats()
	require.EqualValues(t, 20, s.Rows)
	require.EqualValues(t, 12, s.RowsSparse)
	require.EqualValues(t, 24, s.SparseCalls)
	require.EqualValues(t, 12, s.PositionOrder)
}

func TestSessionLeavesPromptsAndMixedBatches(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 64, 1)
	h.discover()
	for _, n := range h.plan(token{0, 0, 0, 0}, token{0, 1, 0, 1}, token{0, 2, 0, 2}) {
		require.Equal(t, stats.ReasonPrompt, n.Reason)
	}
	for _, n := range h.plan(token{0, 3, 0, 3}, token{0, 4, 1, 0}, token{0, 5, 1, 1}) {
		require.Equal(t, stats.ReasonMixed, n.Reason)
	}
	for _, n := range h.plan(token{0, 6, 0, 4}, token{0, 7, 1, 2}) {
		require.Equal(t, stats.Offloaded, n.Reason)
		require.Equal(t, []int32{0, 1, 2, 3, 6}, slotsOf(&rowsOf(&n)[0]))
		require.Equal(t, []int32{4, 5, 7}, slotsOf(&rowsOf(&n)[1]))
	}
	s := h.session.Stats()
	require.EqualValues(t, 3, s.Left[stats.ReasonPrompt])
	require.EqualValues(t, 3, s.Left[stats.ReasonMixed])
}

// Random traffic: sequences grow, are truncated, removed and refilled, in one or several streams; the
// order of every row must be that of the positions.
func TestSessionOrdersRowsByPosition(t *testing.T) {
	rng := rand.New(rand.NewSource(rand.Int63()))
	for range 30 {
		streams := 1 + rng.Intn(3)
		unified := streams == 1
		sequences := streams
		if unified {
			sequences = 1 + rng.Intn(3)
		}
		h := newFakeHost(t, small(6, 1), 3, 48, streams)
		h.discover()
		next := make([]int32, sequences) // position of each sequence's next token
		for range 60 {
			q := rng.Intn(sequences)
			stream := 0
			if !unified {
				stream = q
			}
			if next[q] > 3 && rng.Intn(8) == 0 { // roll back
				next[q] -= 1 + rng.Int31n(next[q]-1)
				for c := range h.cells[stream] {
					if x := &h.cells[stream][c]; x.sequence == q && x.position >= next[q] {
						x.sequence = -1
					}
				}
			}
			free := []int{}
			for c, x := range h.cells[stream] {
				if x.sequence < 0 {
					free = append(free, c)
				}
			}
			if len(free) == 0 {
				break
			}
			nodes := h.plan(token{stream, free[rng.Intn(len(free))], q, next[q]})
			next[q]++
			want := make([]int32, next[q])
			for c, x := range h.cells[stream] {
				if x.sequence == q {
					want[x.position] = int32(c)
				}
			}
			require.Equal(t, stats.Offloaded, nodes[2].Reason)
			row := &rowsOf(&nodes[2])[0]
			if len(want) <= 6 { // within the budget the order is of no account
				slices.Sort(want)
			}
			require.Equal(t, want, slotsOf(row))
			require.Equal(t, len(want) > 6, row.SetLen > 0)
		}
		require.Zero(t, h.session.Stats().CellOrder)
	}
}

func TestSessionKeepsTheSetAcrossSplitCalls(t *testing.T) {
	h := newFakeHost(t, small(4, 1, 3), 6, 32, 1)
	h.discover()
	for i := range 9 {
		h.plan(token{0, i, 0, int32(i)})
	}
	before := h.session.Stats()
	g := h.graph([]token{{0, 9, 0, 9}}, 0, 6)
	var got []cpu.Mode
	for l := range 6 { // one layer a call, as with an evaluation callback
		part := &graph.Graph{Nodes: g.Nodes[l : l+1], Writes: g.Writes[l : l+1]}
		if l == 0 {
			part.Positions, part.Rotations = g.Positions, g.Rotations
		}
		h.run(part)
		require.Equal(t, stats.Offloaded, g.Nodes[l].Reason)
		got = append(got, g.Nodes[l].Call.Mode)
	}
	require.Equal(t, []cpu.Mode{cpu.Full, cpu.Select, cpu.Sparse, cpu.Select, cpu.Sparse, cpu.Sparse}, got)
	after := h.session.Stats()
	require.EqualValues(t, 1, after.Steps-before.Steps)
	require.EqualValues(t, 1, after.PositionOrder-before.PositionOrder)

	// The next step skips the selection layers: no set of an earlier step may serve.
	g = h.graph([]token{{0, 10, 0, 10}}, 0, 6)
	h.run(&graph.Graph{Nodes: g.Nodes[4:5], Writes: g.Writes[0:1], Positions: g.Positions, Rotations: 1})
	require.Equal(t, cpu.Full, g.Nodes[4].Call.Mode)
	require.EqualValues(t, 1, h.session.Stats().NoSetCalls)
}

func TestSessionTellsSlidingLayers(t *testing.T) {
	for _, smaller := range []bool{true, false} {
		h := newFakeHost(t, small(4, 0), 6, 32, 1)
		slide := func(g *graph.Graph) {
			window := alloc[float16.Float16](h, len(h.mask))
			copy(window, h.mask)
			seen := 0 // only the newest six are
			for i := len(window) - 1; i >= 0; i-- {
				if window[i] == 0 {
					if seen++; seen > 6 {
						window[i] = negInf
					}
				}
			}
			for _, l := range []int{0, 1, 3, 4} {
				n := &g.Nodes[l]
				n.Mask, n.Scan = unsafe.Pointer(&window[0]), unsafe.Pointer(&window[0])
				if smaller {
					n.Store.Slots = 16
					g.Writes[l].Store.Slots = 16
				}
			}
		}
		for i := range 12 {
			g := h.graph([]token{{0, i, 0, int32(i)}}, 0, 6)
			slide(g)
			h.run(g)
			for l, n := range g.Nodes {
				switch {
				case i == 0:
					require.Equal(t, stats.ReasonDiscovery, n.Reason)
				case !smaller && i < 6:
					require.Equal(t, stats.ReasonUndecided, n.Reason, "both masks still show the same")
				case l == 2 || l == 5:
					require.Equal(t, stats.Offloaded, n.Reason)
				default:
					require.Equal(t, stats.ReasonSliding, n.Reason)
				}
			}
		}
		require.Equal(t, 2, h.session.Stats().Layers)
	}
}

// A first pass that a callback ended early is not taken for the whole model.
func TestSessionStartsOverAfterAShortFirstPass(t *testing.T) {
	h := newFakeHost(t, small(4, 1), 6, 32, 1)
	g := h.graph([]token{{0, 31, 99, 0}}, 0, 3)
	h.run(g)
	h.cells[0][31].sequence = -1
	for i := range 8 {
		nodes := h.plan(token{0, i, 0, int32(i)})
		if i >= 4 { // sooner, but not later
			for _, n := range nodes {
				require.Equal(t, stats.Offloaded, n.Reason)
			}
		}
	}
	require.Equal(t, 6, h.session.Stats().Layers)
	require.Equal(t, []int{1}, h.session.Stats().SelectionLayers)
}

func TestSessionRefusesLayersThatAreNotThere(t *testing.T) {
	h := newFakeHost(t, small(4, 2, 7), 5, 32, 1)
	h.discover()
	for _, n := range h.plan(token{0, 0, 0, 0}) {
		require.Equal(t, stats.ReasonInert, n.Reason)
	}
	require.Contains(t, h.session.Stats().Inert, "LESSISMORE_LAYERS")
	require.Contains(t, h.session.Stats().Inert, "layer 7")
	require.Contains(t, h.session.Stats().Inert, "5 layers")
	require.Empty(t, h.session.layers.Engine.Inert(), "other contexts go on")
}

// Where nothing will be taken, no store is followed: that takes memory, and time in every step.
func TestSessionFollowsNothingInVain(t *testing.T) {
	for reason, config := range map[stats.Reason]settings.Config{stats.ReasonType: small(8, 1), stats.Offloaded: small(8, 7)} {
		h := newFakeHost(t, config, 3, 32, 1)
		for i := range 4 {
			g := h.graph([]token{{0, i, 0, int32(i)}}, 0, 3)
			for k := range g.Nodes {
				g.Nodes[k].Reason = reason
			}
			h.run(g)
		}
		require.Zero(t, h.session.rows.Len())
	}
}

func TestSessionSaysThatFlashAttentionIsOff(t *testing.T) {
	engine, err := contexts.NewEngine(settings.DefaultConfig())
	require.NoError(t, err)
	var lines []string
	s := NewSession(engine, func(_ settings.LogLevel, text string) { lines = append(lines, text) })
	defer s.Close()
	slot := int64(0)
	g := &graph.Graph{SoftMax: 28, Writes: []graph.Write{{Store: kvindex.Store{ID: 1, Slots: 8, Streams: 1}, Slots: unsafe.Pointer(&slot), Wide: 1, N: 1}}}
	s.Plan(g)
	s.Plan(g)
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], "flash attention is off")
}

func TestSessionAllocatesNothingPerToken(t *testing.T) {
	h := newFakeHost(t, small(16, 1, 3), 6, 4096, 1)
	h.discover()
	text := make([]token, 2048)
	for i := range text {
		text[i] = token{0, i, 0, int32(i)}
	}
	h.plan(text...)
	g := h.graph([]token{{0, 2048, 0, 2048}}, 0, 6)
	step := func() {
		for i := range g.Nodes {
			g.Nodes[i].Reason = stats.Offloaded
		}
		h.run(g)
	}
	step()
	require.Equal(t, stats.Offloaded, g.Nodes[5].Reason)
	require.Zero(t, testing.AllocsPerRun(200, step))
}

// A context that ends while others compute writes the statistics of all.
func TestReportWhileSessionsPlan(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 64, 1)
	h.discover()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2000 {
			h.session.layers.Engine.Report()
			h.session.layers.Engine.Disable("")
		}
	}()
	for i := range 2000 {
		h.session.Plan(&graph.Graph{Nodes: []graph.Node{{Reason: stats.ReasonMLA, Layer: int32(i)}}})
		h.session.layers.Engine.Inert()
	}
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("deadlock")
	}
}

// A store at the address of an earlier one, but of another shape, is another model's or another cache.
func TestSessionStartsOverWithAStoreOfAnotherShape(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 64, 1)
	h.discover()
	for i := range 12 {
		h.plan(token{0, i, 0, int32(i)})
	}
	h.slots, h.nkv = 32, 32
	for i := range 2 { // it shows, then its layers are learned
		for _, n := range h.plan(token{0, 12 + i, 0, int32(12 + i)}) {
			require.Equal(t, stats.ReasonDiscovery, n.Reason)
		}
	}
	require.NotZero(t, h.rowOf(token{0, 14, 0, 14}).SetLen)
	require.True(t, h.session.rows.Followed.Index.Fits(h.store(0)), "of the new shape")
}
