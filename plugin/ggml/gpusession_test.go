//go:build cuda

package ggml

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/standin"
	"lessismore/plugin/internal/stats"
)

// gpuHost is a host's model on a GPU whose memory is the heap.
type gpuHost struct {
	nodes []Node
	mask  []float16.Float16
	pins  runtime.Pinner
}

const gpuLayers, gpuSlots = 6, 4096

func gpuEngine(t *testing.T, change func(*settings.Config)) *contexts.Engine {
	config := settings.DefaultConfig()
	config.Layers = []int{2, 4}
	if change != nil {
		change(&config)
	}
	e, err := contexts.NewEngine(config)
	require.NoError(t, err)
	return e
}

func newGPUHost(t *testing.T, rows int, visible int) *gpuHost {
	h := &gpuHost{mask: make([]float16.Float16, rows*gpuSlots+8)}
	t.Cleanup(h.pins.Unpin)
	h.pins.Pin(&h.mask[0])
	mask := unsafe.Pointer(&h.mask[0])
	mask = unsafe.Add(mask, -uintptr(mask)&15)
	values := unsafe.Slice((*float16.Float16)(mask), rows*gpuSlots)
	for i := range values {
		if i%gpuSlots >= visible {
			values[i] = negInf
		}
	}
	at := func(address uint64) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
	for l := range gpuLayers {
		base := uint64(l+1) << 32
		rowsOf := func(place uint64) cpu.Tensor {
			return cpu.Tensor{Data: at(base + place), HeadStride: 512, StreamStride: 512 * 16, Type: cpu.F32}
		}
		store := func(place uint64) cpu.Tensor {
			return cpu.Tensor{Data: at(base + place), TokenStride: 2048, HeadStride: 256, StreamStride: 2048 * gpuSlots, Type: cpu.F16}
		}
		h.nodes = append(h.nodes, Node{
			Call: cpu.Call{
				Query: rowsOf(0), Output: rowsOf(1 << 24), Key: store(1 << 26), Value: store(1 << 30),
				Heads: 16, KVHeads: 8, DimK: 128, DimV: 128, Scale: 0.088,
			},
			Store: kvindex.Store{ID: base, Slots: gpuSlots, Streams: int32(rows)}, Layer: int32(l), Tokens: 1, Streams: int32(rows),
			NKV: gpuSlots, Mask: mask, MaskTokenStride: 2 * gpuSlots, MaskStreamStride: 2 * gpuSlots,
		})
	}
	return h
}

// step plans a compute call and attends to what was offloaded, as the hook does. It tells how many that were.
func (h *gpuHost) step(t *testing.T, s *GPUSession, g *Graph) int {
	for i := range h.nodes {
		h.nodes[i].Reason = stats.Offloaded
	}
	g.Nodes = h.nodes
	s.Plan(g)
	offloaded := 0
	for i := range h.nodes {
		if h.nodes[i].Reason == stats.Offloaded {
			if err := s.Attend(&h.nodes[i], 0xe1, 0xe2); err != nil {
				t.Fatal(err)
			}
			offloaded++
		}
	}
	return offloaded
}

func TestGPUSession(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	s := NewGPUSession(gpuEngine(t, func(c *settings.Config) { c.Budget = 100 }), nil)
	h, g := newGPUHost(t, 3, 300), &Graph{}
	require.Zero(t, h.step(t, s, g), "the first pass is the host's")
	for range 4 {
		require.Equal(t, gpuLayers, h.step(t, s, g))
	}
	// What this context cannot take, node by node; the others are offloaded all the same.
	for _, change := range []func(*Node){
		func(n *Node) { n.Call.DimV = 64 },
		func(n *Node) { n.Call.Heads = 8 },
		func(n *Node) { n.Call.Key.Type = cpu.BF16 },
		func(n *Node) { n.MaxBias = 8 },
		func(n *Node) { n.NKV -= 4 },
		func(n *Node) { n.Mask = unsafe.Add(n.Mask, 2) },
		func(n *Node) { n.Tokens = 2 },
		func(n *Node) { n.Call.Key.StreamStride += 2 },
		func(n *Node) { n.Call.Softcap = -1 },
		func(n *Node) { n.Layer = h.nodes[0].Layer; n.Store = h.nodes[0].Store },
	} {
		was := h.nodes[3]
		change(&h.nodes[3])
		require.Equal(t, gpuLayers-1, h.step(t, s, g))
		h.nodes[3] = was
	}
	c := s.Stats()
	require.EqualValues(t, 4*3, c.CellOrder-10*3)
	require.EqualValues(t, 14, c.Steps)
	require.EqualValues(t, 14*3, c.RowsSparse)
	s.Close()
	require.Equal(t, c.Steps, s.Stats().Steps, "what was counted outlives the device's memory")
}

func TestGPUAllocatesNothing(t *testing.T) {
	if !standin.Child() {
		standin.Again(t, "LIM_STANDIN_LOG=")
		return
	}
	s := NewGPUSession(gpuEngine(t, nil), nil)
	h, g := newGPUHost(t, 1, 3000), &Graph{}
	h.step(t, s, g)
	h.step(t, s, g)
	require.Zero(t, testing.AllocsPerRun(100, func() { h.step(t, s, g) }))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		for i := range h.nodes {
			h.nodes[i].NKV ^= 4096 ^ 3840 // planning again
		}
		h.step(t, s, g)
	}))
}

// A compute call that shows another model half-way, and twice the same layer of it: what was decided before that
// holds for the old one's layers and memory.
func TestGPUSessionForgetsWithinACall(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	s := NewGPUSession(gpuEngine(t, func(c *settings.Config) { c.Budget, c.Layers = 100, []int{0} }), nil)
	h, g := newGPUHost(t, 1, 300), &Graph{}
	h.step(t, s, g)
	require.Equal(t, gpuLayers, h.step(t, s, g))
	for i := 3; i < gpuLayers; i++ {
		h.nodes[i].Layer, h.nodes[i].Store.ID = 0, 1
	}
	require.Zero(t, h.step(t, s, g))
	require.NotNil(t, s.ordinal, "the other model is known")
}
