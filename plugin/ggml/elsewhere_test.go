package ggml

import (
	"math/rand"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/stats"
)

// shared is a context whose keys lie on this device, and are rotated on another one: a host that computes the CPU's layers of a prompt on a GPU,
// or has a layer's weights elsewhere than its K and V.
type shared struct {
	*fakeHost
	other *Session // of the other device
	host  uint64   // number of the host's context
}

func newShared(t *testing.T, layers, slots, streams int) *shared {
	return newSharedOn(t, nil, 7, layers, slots, streams)
}

// newSharedOn makes one with that number in an engine; nil: one of its own.
func newSharedOn(t *testing.T, engine *contexts.Engine, number uint64, layers, slots, streams int) *shared {
	h := &shared{fakeHost: newFakeHost(t, small(8, 1), layers, slots, streams), host: number}
	if engine != nil {
		h.session.Close()
		h.session = NewSession(engine, nil)
	}
	h.other = NewSession(h.session.layers.Engine, nil)
	t.Cleanup(func() { h.other.Close() })
	return h
}

// prompt has tokens' keys written layer by layer, each layer's behind what the other device is told of it.
func (h *shared) prompt(tell func(layer int, g *graph.Graph) bool, tokens ...token) {
	g := h.graph(tokens, 0, h.layers)
	for l := range h.layers {
		rotation := &graph.Graph{Host: h.host, Rotations: 2, Positions: g.Positions, FirstBlock: -1}
		if tell == nil || tell(l, rotation) {
			h.other.Plan(rotation)
		}
		h.run(&graph.Graph{Host: h.host, Writes: g.Writes[l : l+1], FirstBlock: -1})
	}
}

// compute has tokens computed here alone, all layers, and gives the last one.
func (h *shared) compute(tokens ...token) *graph.Node {
	g := h.graph(tokens, 0, h.layers)
	g.Host = h.host
	h.run(g)
	return &g.Nodes[h.layers-1]
}

// discover is the first pass, of one token, whose cell is emptied again.
func (h *shared) discover() {
	require.Equal(h.t, stats.ReasonDiscovery, h.compute(token{0, h.slots - 1, 99, 0}).Reason)
	h.cells[0][h.slots-1].sequence = -1
}

// step gives the row of a token that is decoded.
func (h *shared) step(tk token) *cpu.Row {
	n := h.compute(tk)
	require.Equal(h.t, stats.Offloaded, n.Reason)
	return &rowsOf(n)[0]
}

// A prompt's positions are known where another device rotates its keys, from the first prompt on, in each stream, in any slots: the steps behind
// it are sparse at once, in position order.
func TestPositionsThatAnotherDeviceTells(t *testing.T) {
	for _, streams := range []int{1, 2} {
		h := newShared(t, 3, 128, streams)
		for s := range streams {
			h.prompt(nil, text(s, 0, s, 0, 40)...)
		}
		h.discover()
		for s := range streams {
			require.EqualValues(t, 8, h.step(token{s, 40, s, 40}).SetLen)
		}
		h.clear(0)
		at := rand.Perm(40)
		var tokens []token
		for i, c := range at {
			tokens = append(tokens, token{0, c, 9, int32(i)})
		}
		h.prompt(nil, tokens[:25]...) // only one store is followed by now
		h.prompt(nil, tokens[25:]...)
		row := h.step(token{0, 90, 9, 40})
		require.EqualValues(t, 8, row.SetLen)
		want := []int32{}
		for _, c := range at {
			want = append(want, int32(c))
		}
		require.Equal(t, append(want, 90), slotsOf(row))
		require.Zero(t, h.session.Stats().CellOrder)
	}
}

// What is not told of these very keys is not known: rows attend to everything, and are counted, until their newest tokens are known.
func TestPositionsThatNobodyTells(t *testing.T) {
	some := func(g *graph.Graph, n int) *graph.Graph {
		g.Positions = make([]int32, n)
		for i := range g.Positions {
			g.Positions[i] = int32(20 + i)
		}
		return g
	}
	for name, tell := range map[string]func(h *shared, layer int, g *graph.Graph) bool{
		"none":                func(*shared, int, *graph.Graph) bool { return false },
		"unreadable ones":     func(_ *shared, _ int, g *graph.Graph) bool { g.Positions = nil; return true },
		"fewer":               func(_ *shared, _ int, g *graph.Graph) bool { g.Positions = g.Positions[:19]; return true },
		"of another context":  func(_ *shared, _ int, g *graph.Graph) bool { g.Host++; return true },
		"of no known context": func(_ *shared, _ int, g *graph.Graph) bool { g.Host = 0; return true },
		"for keys that the other device keeps": func(h *shared, _ int, g *graph.Graph) bool { // those of the last layers, in the batch before
			g.Writes = h.graph(spare(20), 0, 1).Writes
			return true
		},
		"and then unreadable ones": func(h *shared, _ int, g *graph.Graph) bool {
			h.other.Plan(some(&graph.Graph{Host: h.host, Rotations: 1}, 20))
			g.Positions = nil
			return true
		},
		"before a shift": func(h *shared, _ int, g *graph.Graph) bool {
			h.other.Plan(some(&graph.Graph{Host: h.host, Rotations: 1}, 20))
			*g = graph.Graph{Host: h.host, Rewritten: []uint64{17}}
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newShared(t, 3, 128, 1)
			h.prompt(nil, text(0, 0, 0, 0, 20)...)
			h.prompt(func(layer int, g *graph.Graph) bool { return tell(h, layer, g) }, text(0, 20, 0, 20, 40)...)
			h.discover()
			require.EqualValues(t, 0, h.step(token{0, 40, 0, 40}).SetLen)
			require.EqualValues(t, 1, h.session.Stats().CellOrder)
			require.EqualValues(t, 8, h.step(token{0, 41, 0, 41}).SetLen, "two of the budget's eight are for the newest")
		})
	}
}

// spare is a batch of so many tokens in the last slots of a stream.
func spare(n int) (out []token) {
	for i := range n {
		out = append(out, token{0, 100 + i, 98, int32(20 + i)})
	}
	return out
}

// Positions are those of the keys that are kept next, once: not of a later batch's, which as many tokens of another text are.
func TestPositionsAreToldOnce(t *testing.T) {
	h := newShared(t, 3, 128, 1)
	h.discover()
	h.prompt(nil, text(0, 0, 0, 0, 20)...)
	h.prompt(func(layer int, _ *graph.Graph) bool { return layer > 0 }, text(0, 20, 1, 0, 20)...)
	require.EqualValues(t, 0, h.step(token{0, 40, 1, 20}).SetLen)
	require.EqualValues(t, 8, h.step(token{0, 41, 0, 20}).SetLen)
	require.EqualValues(t, 1, h.session.Stats().CellOrder)
}

// The last token of a prompt, alone in its batch, is no decode row where another device tells whose logits were wanted of the batch before.
func TestLogitsThatAnotherDeviceTells(t *testing.T) {
	for _, wanted := range [][]int32{{}, {39}} {
		h := newShared(t, 3, 128, 1)
		h.discover()
		h.prompt(nil, text(0, 0, 0, 0, 40)...)
		h.other.Plan(&graph.Graph{Host: h.host, Batch: 40, Outputs: wanted, Rotations: 1, FirstBlock: -1})
		require.EqualValues(t, 8*len(wanted), h.step(token{0, 40, 0, 40}).SetLen)
		require.EqualValues(t, 1-len(wanted), h.session.Stats().PromptRows)
		require.EqualValues(t, 8, h.step(token{0, 41, 0, 41}).SetLen)
	}
}

// A host's contexts take turns, also in the middle of a batch: each has its own positions.
func TestPositionsOfTwoContexts(t *testing.T) {
	one := newShared(t, 3, 128, 1)
	two := newSharedOn(t, one.session.layers.Engine, 8, 3, 128, 1)
	one.prompt(func(layer int, _ *graph.Graph) bool {
		if layer == 1 {
			two.prompt(nil, text(0, 30, 0, 0, 20)...)
		}
		return true
	}, text(0, 0, 0, 0, 20)...)
	for _, h := range []*shared{one, two} {
		h.discover()
		require.EqualValues(t, 8, h.step(token{0, 60, 0, 20}).SetLen)
	}
}

// Telling allocates nothing.
func TestTellingAllocatesNothing(t *testing.T) {
	h := newShared(t, 3, 128, 1)
	h.prompt(nil, text(0, 0, 0, 0, 40)...)
	h.discover()
	h.step(token{0, 40, 0, 40})
	g := h.graph([]token{{0, 41, 0, 41}}, 0, h.layers)
	rotation := &graph.Graph{Host: h.host, Rotations: 1, Positions: g.Positions, Batch: 1, Outputs: []int32{0}}
	g.Host, g.Rotations, g.Positions = h.host, 0, nil
	require.Zero(t, testing.AllocsPerRun(50, func() {
		h.other.Plan(rotation)
		for i := range g.Nodes {
			g.Nodes[i].Reason = stats.Offloaded
		}
		h.session.Plan(g)
	}))
	require.Zero(t, h.session.Stats().CellOrder)
}
