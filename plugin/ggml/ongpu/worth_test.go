package ongpu

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/layers"
	"lessismore/plugin/ggml/rows"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// seconds that a step of the last tokens of texts saves, in a model of 36 layers of which two choose and 32 are sparse: of `texts` texts of n
// tokens each, side by side in one stream, so many tokens of each.
func seconds(t *testing.T, texts, n, tokens int) float64 {
	config := settings.DefaultConfig()
	config.Budget, config.Speculation = 2048, true
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	l, r := &layers.Context{Engine: engine, Ordinal: map[int32]int{}}, &rows.Rows{}
	for i := range int32(36) {
		l.Ordinal[i] = int(i)
	}
	r.Speculates = true
	r.Init(&engine.Settings, &l.Counts, kvindex.NewWatched)
	defer r.Free()
	store := kvindex.Store{ID: 4096, Slots: int64(texts * n), Stride: 2048, Streams: 1, Row: 2048}
	var slots [2][]int64 // of the prompts, and of the step
	var positions [2][]int32
	var outputs []int32
	for text := range texts {
		for i := range n {
			part := 0
			if i >= n-tokens {
				part = 1
				outputs = append(outputs, int32(len(outputs)))
			}
			slots[part], positions[part] = append(slots[part], int64(text*n+i)), append(positions[part], int32(i))
		}
	}
	write := func(part int, outputs []int32) *graph.Graph {
		return &graph.Graph{
			Writes:    []graph.Write{{Store: store, Slots: unsafe.Pointer(&slots[part][0]), Wide: 1, N: int32(len(slots[part]))}},
			Positions: positions[part], Rotations: 1, Outputs: outputs, Batch: len(slots[part]),
		}
	}
	batch := new(contexts.Relay).Join().Batch(0)
	r.Follow(write(0, []int32{int32(len(slots[0]) - 1)}), batch, true, false)
	r.Keep(store.ID)
	r.Follow(write(1, outputs), batch, false, false)
	mask := make([]float16.Float16, len(outputs)*texts*n)
	for i := range mask {
		row, slot := i/(texts*n), i%(texts*n)
		if own := slots[1][row]; slot/n != int(own)/n || int64(slot) > own {
			mask[i] = float16.Inf(-1)
		}
	}
	node := &graph.Node{
		Store: store, Tokens: int32(len(outputs)), Streams: 1, NKV: int32(texts * n), Scan: unsafe.Pointer(&mask[0]), ScanType: cpu.F16,
		ScanTokenStride: int64(2 * texts * n), Call: cpu.Call{KVHeads: 8, DimK: 128, DimV: 128},
	}
	node.Call.Key.Type, node.Call.Value.Type = cpu.F16, cpu.F16
	require.Equal(t, stats.Offloaded, r.Known(node))
	require.Equal(t, stats.Offloaded, r.Decode(node))
	require.Equal(t, stats.Offloaded, r.Begin(node, 1))
	require.Equal(t, tokens > 1, r.Drafted())
	d := New(l, r, false)
	d.reads, d.choosing, d.sparseLayers = 2.4e12, 2, make([]bool, 36)
	for i := 4; i < 36; i++ {
		d.sparseLayers[i] = true
	}
	return d.saved(node)
}

// A step of single tokens saves what is beyond the budget, in each sparse layer. For a draft the host reads a text once: what its
// rows have in their sets, and what layers that choose read once more for each row, is lost.
func TestWhatAStepSaves(t *testing.T) {
	const token, reads = 8 * 2 * 128 * 2, 2.4e12 // bytes
	one := seconds(t, 1, 16384, 1)
	require.InDelta(t, 32*(16384-2048)*token/reads, one, 1e-9)
	require.InDelta(t, 4*one, seconds(t, 4, 16384, 1), 1e-9)
	draft := seconds(t, 1, 32768, 6)
	require.InDelta(t, float64(32*(32763-6*2048)-2*(5*32768-10))*token/reads, draft, 2e-9)
	require.Greater(t, seconds(t, 1, 32768, 2), draft)
	require.Less(t, seconds(t, 1, 8192, 6), 0.0)
	require.InDelta(t, 2*draft, seconds(t, 2, 32768, 6), 1e-9)
}
