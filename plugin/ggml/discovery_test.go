package ggml

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// kind is what a layer of a made-up model is: which mask it reads, over a store of how many slots, and why the kernels do
// not take it.
type kind struct {
	mask   int
	slots  int64
	reason stats.Reason
}

const (
	wholeMask = iota // sees all 200 tokens
	windowMask
	otherMask // sees as much as wholeMask, and is another one
)

// discovered plans three passes of one token over such layers and returns the numbers of those that take part.
func discoveredIn(t *testing.T, config settings.Config, layers []kind) (*Session, []int32) {
	const nkv = 256
	h := newFakeHost(t, config, len(layers), nkv, 1)
	masks := [3][]float16.Float16{}
	for m := range masks {
		masks[m] = alloc[float16.Float16](h, nkv)
		for i := range masks[m] {
			if i >= 200 || m == windowMask && i < 100 {
				masks[m][i] = negInf
			}
		}
	}
	slot := alloc[int64](h, 1)
	slot[0] = 199
	for range 3 {
		g := &graph.Graph{Positions: []int32{199}}
		for l, k := range layers {
			n := graph.Node{Layer: int32(l), Store: kvindex.Store{ID: uint64(1000 + l), Slots: k.slots, Streams: 1}, Tokens: 1, Streams: 1, NKV: nkv,
				ScanType: cpu.F16, Reason: k.reason, Call: cpu.Call{Heads: 4, KVHeads: 2, DimK: 32, DimV: 32, Scale: 1}}
			n.Mask = unsafe.Pointer(&masks[k.mask][0])
			n.Scan = n.Mask
			if k.reason == stats.ReasonNoCache {
				n.Layer, n.Store = -1, kvindex.Store{}
			} else {
				g.Writes = append(g.Writes, graph.Write{Store: n.Store, Slots: unsafe.Pointer(&slot[0]), Wide: 1, N: 1})
			}
			g.Nodes = append(g.Nodes, n)
		}
		h.session.Plan(g)
	}
	require.True(t, h.session.layers.Surveyed())
	return h.session, h.session.layers.Participants()
}

func TestDiscovery(t *testing.T) {
	const whole, window = 4096, 512
	full, slides := kind{wholeMask, whole, stats.Offloaded}, kind{windowMask, window, stats.Offloaded}
	keeps := kind{windowMask, whole, stats.Offloaded} // --swa-full: the sliding layers' store is as large
	as := func(k kind, r stats.Reason) kind { k.reason = r; return k }
	for name, c := range map[string]struct {
		layers []kind
		want   []int32
	}{
		"plain":                                  {[]kind{full, full, full}, []int32{0, 1, 2}},
		"sliding":                                {[]kind{slides, full, slides, full}, []int32{1, 3}},
		"sliding, kept whole":                    {[]kind{keeps, full, keeps, full}, []int32{1, 3}},
		"full layers refused":                    {[]kind{slides, as(full, stats.ReasonShape), slides, as(full, stats.ReasonShape)}, nil},
		"full layers refused, kept whole":        {[]kind{keeps, as(full, stats.ReasonShape), keeps, as(full, stats.ReasonShape)}, nil},
		"full layers of MLA":                     {[]kind{slides, as(full, stats.ReasonMLA)}, nil},
		"some full layers of MLA":                {[]kind{slides, as(full, stats.ReasonMLA), full, as(full, stats.ReasonMLA), full}, []int32{2, 4}},
		"the first one refused":                  {[]kind{as(full, stats.ReasonShape), full, full}, []int32{1, 2}},
		"sliding layers refused":                 {[]kind{as(slides, stats.ReasonShape), full, as(slides, stats.ReasonShape), full}, []int32{1, 3}},
		"sliding layers refused, kept whole":     {[]kind{as(keeps, stats.ReasonShape), full, as(keeps, stats.ReasonShape), full}, []int32{1, 3}},
		"attention across sequences in between":  {[]kind{full, as(full, stats.ReasonNoCache), full, as(full, stats.ReasonNoCache)}, []int32{0, 2}},
		"two masks that nothing tells apart":     {[]kind{full, {otherMask, whole, stats.Offloaded}}, nil},
		"two masks and a window, not told apart": {[]kind{keeps, full, {otherMask, whole, stats.Offloaded}}, nil},
		"only sliding layers":                    {[]kind{slides, slides}, []int32{0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			config := settings.DefaultConfig()
			config.Layers = []int{0}
			_, got := discoveredIn(t, config, c.layers)
			require.Equal(t, c.want, got)
		})
	}
}

// Nothing takes part where only sliding layers are left, and the context says why.
func TestNoFullLayerLeft(t *testing.T) {
	config := settings.DefaultConfig()
	config.Layers = []int{0}
	s, _ := discoveredIn(t, config, []kind{{windowMask, 512, stats.Offloaded}, {wholeMask, 4096, stats.ReasonShape}, {windowMask, 512, stats.Offloaded}})
	require.Contains(t, s.Stats().Inert, "left to the host (shape: a shape that the kernels do not have), and sliding-window")
	require.Zero(t, s.Stats().Steps)
}

// Other adapters in a running context: its layers are learned again, as another model's; the store's tokens stay known.
func TestAdaptersChange(t *testing.T) {
	config := settings.DefaultConfig()
	config.Budget, config.Layers = 16, []int{0}
	h := newFakeHost(t, config, 4, 128, 1)
	position, asked := int32(0), false
	step := func(adapters uint64) []graph.Node {
		position++
		g := h.graph([]token{{0, int(position), 1, position}}, 0, 4)
		g.Adapters, g.Weights = adapters, 7
		h.run(g)
		asked = !g.KnowsWeights
		return g.Nodes
	}
	for range 40 {
		step(0)
	}
	require.Equal(t, cpu.Sparse, step(0)[3].Call.Mode)
	for _, adapters := range []uint64{5, 6, 0} {
		require.False(t, asked)
		require.Equal(t, stats.ReasonDiscovery, step(adapters)[3].Reason, "noticed")
		require.True(t, asked, "the next graph's weights are hashed")
		require.Equal(t, stats.ReasonDiscovery, step(adapters)[3].Reason, "learned")
		before := h.session.Stats().PositionOrder
		require.Equal(t, cpu.Sparse, step(adapters)[3].Call.Mode)
		require.Equal(t, before+1, h.session.Stats().PositionOrder)
		step(adapters)
	}
}

// An RPC server's backend serves one client after another. The next one's layers are learned from its own graphs, with its weights.
func TestNextClientOfAServer(t *testing.T) {
	config := settings.DefaultConfig()
	config.Budget, config.Layers = 16, []int{0}
	h := newFakeHost(t, config, 4, 128, 1)
	position, asked := int32(0), false
	step := func(first int32) stats.Reason {
		position++
		g := h.graph([]token{{0, int(position), 1, position}}, 0, 4)
		for i := range g.Nodes {
			g.Nodes[i].Layer += first
		}
		g.Weights, g.FirstBlock, g.LastBlock = 7, first, first+3
		h.run(g)
		asked = !g.KnowsWeights
		return g.Nodes[3].Reason
	}
	for _, first := range []int32{4, 8, 4} {
		if position > 0 {
			require.Equal(t, stats.ReasonDiscovery, step(first), "noticed")
			require.True(t, asked, "the next graph's weights are hashed")
		}
		require.Equal(t, stats.ReasonDiscovery, step(first), "learned")
		require.Equal(t, stats.Offloaded, step(first))
		require.Equal(t, stats.Offloaded, step(first))
		require.False(t, asked)
		require.NotContains(t, h.session.layers.Model.About.Weights, selection.UnknownWeights)
	}
}
