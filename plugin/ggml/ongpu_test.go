//go:build cuda

package ggml

import (
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/ongpu"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/standin"
	"lessismore/plugin/internal/stats"
)

// gpuHost is a host's model on a GPU whose memory is the heap: a stream of as many tokens for each row.
type gpuHost struct {
	nodes     []graph.Node
	mask      []float16.Float16
	pins      runtime.Pinner
	rows      int
	visible   int
	writes    []graph.Write
	slots     []int64
	positions []int32
}

const gpuLayers, gpuSlots = 6, 4096

func newGPUHost(t *testing.T, rows int, visible int) *gpuHost {
	h := &gpuHost{
		mask: make([]float16.Float16, rows*gpuSlots+8), rows: rows, visible: visible,
		slots: make([]int64, rows*visible), positions: make([]int32, rows*visible),
	}
	t.Cleanup(h.pins.Unpin)
	h.pins.Pin(&h.mask[0])
	h.pins.Pin(&h.slots[0])
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
		h.nodes = append(h.nodes, graph.Node{
			Call: cpu.Call{
				Query: rowsOf(0), Output: rowsOf(1 << 24), Key: store(1 << 26), Value: store(1 << 30),
				Heads: 16, KVHeads: 8, DimK: 128, DimV: 128, Scale: 0.088,
			},
			Store: kvindex.Store{ID: base, Slots: gpuSlots, Stride: 2048, Streams: int32(rows), Row: 2048}, Layer: int32(l), Tokens: 1, Streams: int32(rows),
			NKV: gpuSlots, Mask: mask, MaskTokenStride: 2 * gpuSlots, MaskStreamStride: 2 * gpuSlots,
			Scan: mask, ScanType: cpu.F16, ScanTokenStride: 2 * gpuSlots, ScanStreamStride: 2 * gpuSlots,
		})
	}
	h.writes = []graph.Write{{Store: h.nodes[0].Store, Slots: unsafe.Pointer(&h.slots[0]), Wide: 1}}
	return h
}

// writing has a graph write tokens [from, to) of each stream; at says where.
func (h *gpuHost) writing(g *graph.Graph, from, to int, at func(i int) int) {
	n := 0
	for row := range h.rows {
		for i := from; i < to; i++ {
			h.slots[n], h.positions[n] = int64(row*gpuSlots+at(i)), int32(i)
			n++
		}
	}
	h.writes[0].N = int32(n)
	g.Writes, g.Positions, g.Rotations = h.writes, h.positions[:n], 1
}

// inOrder: a token lies in the slot of its position.
func inOrder(i int) int { return i }

// prompt has all but the last tokens computed.
func (h *gpuHost) prompt(s *GPUSession) {
	g := &graph.Graph{}
	h.writing(g, 0, h.visible-1, inOrder)
	s.Plan(g)
}

// step plans a compute call and attends to what was offloaded, as the hook does. It tells how many that were.
func (h *gpuHost) step(t *testing.T, s *GPUSession, g *graph.Graph) int {
	h.writing(g, h.visible-1, h.visible, inOrder)
	return h.attend(t, s, g)
}

func (h *gpuHost) attend(t *testing.T, s *GPUSession, g *graph.Graph) int {
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
	s := NewGPUSession(standin.Engine(t, func(c *settings.Config) { c.Budget = 100 }), nil, true)
	h, g := newGPUHost(t, 3, 300), &graph.Graph{}
	h.prompt(s)
	require.Zero(t, h.step(t, s, g), "the first pass is the host's")
	for range 4 {
		require.Equal(t, gpuLayers, h.step(t, s, g))
	}
	// What this context cannot take, node by node; the others are offloaded all the same.
	for _, change := range []func(*graph.Node){
		func(n *graph.Node) { n.Call.DimV = 64 },
		func(n *graph.Node) { n.Call.Heads = 8 },
		func(n *graph.Node) { n.Call.Key.Type = cpu.BF16 },
		func(n *graph.Node) { n.MaxBias = 8 },
		func(n *graph.Node) { n.NKV -= 4 },
		func(n *graph.Node) { n.Mask = unsafe.Add(n.Mask, 2) },
		func(n *graph.Node) { n.Call.Key.StreamStride += 2 },
		func(n *graph.Node) { n.Call.Softcap = -1 },
		func(n *graph.Node) { n.Layer = h.nodes[0].Layer; n.Store = h.nodes[0].Store },
	} {
		was := h.nodes[3]
		change(&h.nodes[3])
		require.Equal(t, gpuLayers-1, h.step(t, s, g))
		h.nodes[3] = was
	}
	c := s.Stats()
	require.Zero(t, c.CellOrder)
	require.EqualValues(t, 13*3, c.PositionOrder)
	require.EqualValues(t, 13, c.Steps)
	require.EqualValues(t, 13*3, c.RowsSparse)
	s.Close()
	require.Equal(t, c.Steps, s.Stats().Steps, "what was counted outlives the device's memory")
}

// Statistics are read while the host has other work on the device, or another context's steps are being recorded: they wait for
// the context's own stream alone.
func TestGPUStatsWaitForTheirStream(t *testing.T) {
	if !standin.Child() {
		log := standin.Again(t)
		read := -1
		for i, call := range log {
			require.NotContains(t, call, "cuCtxSynchronize")
			if strings.HasPrefix(call, "cuMemcpyDtoHAsync_v2 ") {
				read = i
				stream := call[strings.LastIndex(call, " ")+1:]
				require.NotEqual(t, "(nil)", stream)
				require.Equal(t, "!cuStreamSynchronize "+stream, log[i+1])
			}
		}
		require.Positive(t, read, "nothing was read")
		return
	}
	engine := standin.Engine(t, func(c *settings.Config) { c.Budget = 100 })
	s := NewGPUSession(engine, nil, true)
	h, g := newGPUHost(t, 1, 300), &graph.Graph{}
	h.prompt(s)
	for range 3 {
		h.step(t, s, g)
	}
	require.EqualValues(t, 2, s.Stats().Steps)
	s.Close()
}

// A report that is wanted at once is given while no device counts, and reads none: not even where contexts begin to count, and end,
// as it is made.
func TestGPUReportsAtOnceWaitForNothing(t *testing.T) {
	const asks = "LIM_ASKS"
	if !standin.Child() {
		reads := map[string]int{}
		for _, ask := range []string{"", "1"} {
			for _, call := range standin.Again(t, asks+"="+ask) {
				if strings.HasPrefix(call, "cuMemcpyDtoHAsync_v2 ") {
					reads[ask]++
				}
			}
		}
		require.Positive(t, reads[""], "at the contexts' ends")
		require.Equal(t, reads[""], reads["1"])
		return
	}
	engine := standin.Engine(t, func(c *settings.Config) { c.Budget = 100 })
	at := func() bool {
		_, ok := engine.ReportAtOnce()
		return ok
	}
	var given, refused, ended atomic.Int64
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for os.Getenv(asks) != "" && ended.Load() == 0 {
			if at() {
				given.Add(1)
			} else {
				refused.Add(1)
			}
		}
	}()
	for range 100 {
		s := NewGPUSession(engine, nil, true)
		h, g := newGPUHost(t, 1, 300), &graph.Graph{}
		h.prompt(s)
		require.True(t, at())
		for range 3 {
			h.step(t, s, g)
		}
		require.False(t, at())
		s.Close()
		require.True(t, at())
	}
	ended.Store(1)
	<-asked
	if os.Getenv(asks) != "" {
		require.Positive(t, given.Load())
		require.Positive(t, refused.Load())
	}
}

// Whoever asks for statistics while a step is recorded gets those that were last read: waiting for the stream would end the recording.
func TestGPUStatsLeaveARecordingAlone(t *testing.T) {
	if !standin.Child() {
		begun, ended := -1, -1
		for i, call := range standin.Again(t) {
			switch {
			case strings.HasPrefix(call, "cuStreamBeginCapture_v2 "):
				begun = i
			case strings.HasPrefix(call, "cuStreamEndCapture "):
				ended = i
			case begun >= 0 && ended < 0:
				require.NotContains(t, call, "cuMemcpyDtoHAsync_v2")
				require.NotContains(t, call, "cuStreamSynchronize")
			}
		}
		require.Positive(t, ended)
		return
	}
	engine := standin.Engine(t, func(c *settings.Config) { c.Budget = 100 })
	s := NewGPUSession(engine, nil, true)
	h, g := newGPUHost(t, 1, 300), &graph.Graph{Records: true}
	h.prompt(s)
	for range 3 {
		h.step(t, s, g)
	}
	require.EqualValues(t, 2, engine.Total().Steps)
	h.step(t, s, g)
	require.NoError(t, s.Capture())
	require.EqualValues(t, 2, engine.Total().Steps)
	require.NoError(t, s.Captured(0, 0xe1))
	require.EqualValues(t, 3, engine.Total().Steps)
	s.Close()
}

func TestGPUAllocatesNothing(t *testing.T) {
	if !standin.Child() {
		standin.Again(t, "LIM_STANDIN_LOG=")
		return
	}
	s := NewGPUSession(standin.Engine(t, nil), nil, true)
	h, g := newGPUHost(t, 1, 3000), &graph.Graph{}
	h.prompt(s)
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
	s := NewGPUSession(standin.Engine(t, func(c *settings.Config) { c.Budget, c.Layers = 100, []int{0} }), nil, true)
	h, g := newGPUHost(t, 1, 300), &graph.Graph{}
	h.prompt(s)
	h.step(t, s, g)
	require.Equal(t, gpuLayers, h.step(t, s, g))
	for i := 3; i < gpuLayers; i++ {
		h.nodes[i].Layer, h.nodes[i].Store.ID = 0, 1
	}
	require.Zero(t, h.step(t, s, g))
	require.NotNil(t, s.layers.Ordinal, "the other model is known")
}

// A row whose tokens are not in the order of slots has its own put on the device, oldest token first.
func TestGPUOrder(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	s := NewGPUSession(standin.Engine(t, func(c *settings.Config) { c.Budget = 100 }), nil, true)
	h, g := newGPUHost(t, 1, 300), &graph.Graph{}
	back := func(i int) int { return 299 - i } // the newest token lies in slot 0
	h.writing(g, 0, 299, back)
	s.Plan(g)
	one := func() int {
		h.writing(g, 299, 300, back)
		return h.attend(t, s, g)
	}
	require.Zero(t, one(), "the first pass is the host's")
	for range 5 {
		require.Equal(t, gpuLayers, one())
		at := s.on.(*ongpu.Device).Table()
		table := unsafe.Slice(*(**int32)(unsafe.Pointer(&at)), 300)
		for i, slot := range table {
			require.EqualValues(t, 299-i, slot)
		}
	}
	require.EqualValues(t, 5, s.Stats().RowsSparse)
}

// Steps that gain nothing are left to the host whole, and counted.
func TestGPULeavesShortRows(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	s := NewGPUSession(standin.Engine(t, func(c *settings.Config) { c.Budget = 300 }), nil, true)
	h, g := newGPUHost(t, 2, 300), &graph.Graph{}
	h.prompt(s)
	h.step(t, s, g)
	for range 3 {
		require.Zero(t, h.step(t, s, g))
	}
	c := s.Stats()
	require.EqualValues(t, 3, c.Steps)
	require.EqualValues(t, 6, c.RowsFull)
	require.EqualValues(t, 3*gpuLayers, c.Left[stats.ReasonWithin])
	require.EqualValues(t, 3*gpuLayers*2*300, c.TokensAttended)
	require.Equal(t, c.TokensVisible, c.TokensAttended)
	require.EqualValues(t, 3*2*2*300, c.SparseTokensAttended, "two of six layers choose, and two come before them")
}

// A step that the host computes in several calls is not recorded: what is replayed leaves no token sets to go on with.
func TestGPURecordsWholeStepsOnly(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	s := NewGPUSession(standin.Engine(t, func(c *settings.Config) { c.Budget = 100 }), nil, true)
	h := newGPUHost(t, 2, 300)
	h.prompt(s)
	h.step(t, s, &graph.Graph{})
	whole := &graph.Graph{Records: true}
	h.step(t, s, whole)
	require.NotZero(t, whole.Form)
	all := h.nodes
	for _, first := range []int{3, 5} {
		part, rest := &graph.Graph{Records: true}, &graph.Graph{Records: true}
		h.nodes = all[:first]
		h.step(t, s, part)
		require.Zero(t, part.Form, "%d of %d layers", first, gpuLayers)
		h.nodes = all[first:]
		h.attend(t, s, rest)
		require.Zero(t, rest.Form)
	}
	h.nodes = all
	h.step(t, s, whole)
	require.NotZero(t, whole.Form)
	require.Zero(t, s.Stats().NoSetCalls)
}

// Where the model's last layers have other heads than its first ones they are the host's: a step is counted with the last of the
// others, once.
func TestGPUCountsStepsThatEndEarly(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	s := NewGPUSession(standin.Engine(t, func(c *settings.Config) { c.Budget, c.Layers = 100, []int{1, 3} }), nil, true)
	h, g := newGPUHost(t, 2, 300), &graph.Graph{}
	for l := 4; l < gpuLayers; l++ {
		h.nodes[l].Call.Heads = 8
	}
	h.prompt(s)
	require.Zero(t, h.step(t, s, g), "the first pass is the host's")
	for range 3 {
		require.Equal(t, 4, h.step(t, s, g))
	}
	c := s.Stats()
	require.EqualValues(t, 3, c.Steps)
	require.EqualValues(t, 6, c.RowsSparse)
	require.EqualValues(t, 3*(gpuLayers-4), c.Left[stats.ReasonShape])
}
