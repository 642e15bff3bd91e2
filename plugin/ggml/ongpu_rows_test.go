//go:build cuda

package ggml

import (
	"math"
	"math/rand"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/rows"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/standin"
	"lessismore/plugin/internal/stats"
)

// gpuBatches is a fakeHost whose layers a GPU computes: their keys, values, queries and outputs are there, and the stand-in driver
// attends to all that a row sees.
type gpuBatches struct {
	*fakeHost
	gpu           *GPUSession
	rng           *rand.Rand
	stores        [2][][]float16.Float16 // keys, values: per layer [slot][KV head][dim]
	query, output []float32              // of the last layer that was planned, [row][head][dim]
	apart         int                    // numbers between streams' rows, beside the rows
	uploads       uint64                 // of masks
}

const batchHeads, batchKVHeads, batchDim, batchMost = 2, 1, 64, 1200

// untouched is what the host computes.
const untouched = float32(-7)

// attends has the test run in a process of its own, with a stand-in driver whose kernels attend; false: this one has only started it.
func attends(t *testing.T) bool {
	if !standin.Child() {
		standin.Again(t, "LIM_STANDIN_ATTEND=1", "LIM_STANDIN_LOG=")
		return false
	}
	return true
}

func newGPUBatches(t *testing.T, config settings.Config, slots, streams int, always bool) *gpuBatches {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	h := &gpuBatches{fakeHost: newFakeHost(t, config, 4, slots, streams), rng: rand.New(rand.NewSource(seed))}
	h.wanting = true
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	h.gpu = NewGPUSession(engine, nil, always)
	for which := range h.stores {
		for range h.layers {
			store := alloc[float16.Float16](h.fakeHost, slots*streams*batchKVHeads*batchDim)
			for i := range store {
				store[i] = float16.Fromfloat32(h.rng.Float32()*2 - 1)
			}
			h.stores[which] = append(h.stores[which], store)
		}
	}
	h.query, h.output = alloc[float32](h.fakeHost, 2*batchMost*batchHeads*batchDim), alloc[float32](h.fakeHost, 2*batchMost*batchHeads*batchDim)
	for i := range h.query {
		h.query[i] = h.rng.Float32()*2 - 1
	}
	t.Cleanup(h.gpu.Close)
	return h
}

// graphOf is a batch's graph: rows of a stream lie one behind the other, and streams' with `apart` numbers between.
func (h *gpuBatches) graphOf(tokens []token) *graph.Graph {
	const token, row = batchKVHeads * batchDim * 2, batchHeads * batchDim * 4
	before := h.mask
	g := h.graph(tokens, 0, h.layers)
	h.uploads++
	for i := range g.Nodes {
		n := &g.Nodes[i]
		n.Upload = h.uploads
		if len(before) == len(h.mask) {
			n.Before, n.UploadBefore = unsafe.Pointer(&before[0]), h.uploads-1
		}
		rowsOf := func(of []float32) cpu.Tensor {
			return cpu.Tensor{Data: unsafe.Pointer(&of[0]), TokenStride: row, HeadStride: batchDim * 4, StreamStride: int64(n.Tokens)*row + int64(4*h.apart), Type: cpu.F32}
		}
		store := func(of []float16.Float16) cpu.Tensor {
			first := int(n.FirstStream) * h.slots * batchKVHeads * batchDim
			return cpu.Tensor{Data: unsafe.Pointer(&of[first]), TokenStride: token, HeadStride: batchDim * 2, StreamStride: token * int64(h.slots), Type: cpu.F16}
		}
		n.Call = cpu.Call{
			Query: rowsOf(h.query), Output: rowsOf(h.output), Key: store(h.stores[0][i]), Value: store(h.stores[1][i]),
			Heads: batchHeads, KVHeads: batchKVHeads, DimK: batchDim, DimV: batchDim, Scale: 0.125,
		}
		n.Store = kvindex.Store{ID: uint64(uintptr(unsafe.Pointer(&h.stores[0][i][0]))), Slots: int64(h.slots), Stride: token, Streams: int32(h.streams), Row: token}
		g.Writes[i].Store = n.Store
		n.Divides = graph.Whole
		if len(tokens) > 1 {
			n.Divides = graph.Overlaid
		}
	}
	return g
}

// batch plans a batch and attends to what was offloaded.
func (h *gpuBatches) batch(tokens ...token) *graph.Graph {
	g := h.graphOf(tokens)
	h.gpu.Plan(g)
	for i := range g.Nodes {
		if g.Nodes[i].Reason != stats.Offloaded {
			continue
		}
		for k := range h.output {
			h.output[k] = untouched
		}
		require.NoError(h.t, h.gpu.Attend(&g.Nodes[i], 0xe1, 0xe2))
		h.compare(&g.Nodes[i], i, tokens)
	}
	return g
}

// compare holds each row's output against float64: it is right, or nothing was written. The rows that were attended to are one behind the other.
func (h *gpuBatches) compare(n *graph.Node, layer int, tokens []token) {
	at, first, last := int(n.Call.Output.StreamStride)/4, -1, -1
	perRow := batchHeads * batchDim
	for i := range tokens {
		row := i/int(n.Tokens)*at + i%int(n.Tokens)*perRow
		out := h.output[row : row+perRow]
		if out[0] == untouched {
			require.Equal(h.t, slices.Repeat([]float32{untouched}, perRow), out)
			continue
		}
		if first < 0 {
			first = i
		} else {
			require.Equal(h.t, last+1, i)
		}
		last = i
		want := h.attention(layer, tokens[i], h.query[row:row+perRow])
		for d := range want {
			require.InDelta(h.t, want[d], out[d], 1e-4, "row %d of %d", i, len(tokens))
		}
	}
	for k := range h.gpu.rows.Step.Rows { // in the order of their positions
		row := &h.gpu.rows.Step.Rows[k]
		if row.SetLen == 0 {
			continue
		}
		cells, slots := h.cells[int(n.FirstStream+row.Stream)], make([]int32, row.Visible)
		for i := range slots {
			slots[i] = int32(i)
		}
		if row.Slots != nil {
			copy(slots, unsafe.Slice((*int32)(row.Slots), row.Visible))
		}
		require.True(h.t, slices.IsSortedFunc(slots, func(a, b int32) int { return int(cells[a].position - cells[b].position) }))
		require.EqualValues(h.t, tokens[h.gpu.rows.First()+k].cell, slots[row.Visible-1])
	}
	require.Equal(h.t, h.gpu.rows.First(), first)
	require.Len(h.t, h.gpu.rows.Step.Rows, last-first+1)
}

// attention is a row's, in float64, to all cells of its sequence up to its own position.
func (h *gpuBatches) attention(layer int, of token, query []float32) []float64 {
	out := make([]float64, batchHeads*batchDim)
	for head := range batchHeads {
		sum := 0.0
		for c, cell := range h.cells[of.stream] {
			if cell.sequence != of.sequence || cell.position > of.position {
				continue
			}
			at, logit := (of.stream*h.slots+c)*batchDim, 0.0
			for d := range batchDim {
				logit += float64(query[head*batchDim+d]) * float64(h.stores[0][layer][at+d].Float32())
			}
			share := math.Exp(logit * 0.125)
			sum += share
			for d := range batchDim {
				out[head*batchDim+d] += share * float64(h.stores[1][layer][at+d].Float32())
			}
		}
		for d := range batchDim {
			out[head*batchDim+d] /= sum
		}
	}
	return out
}

// gpuSettings has layer 1 choose, and 2 and 3 follow.
func gpuSettings(budget int) settings.Config {
	config := settings.DefaultConfig()
	config.Budget, config.Recency, config.SinkTokens, config.Layers, config.Speculation = budget, 0.25, 2, []int{1}, true
	return config
}

// begin has the host compute the first pass, whose cell is emptied again.
func (h *gpuBatches) begin() {
	h.wants = []int32{0}
	for _, n := range h.batch(token{0, h.slots - 1, 99, 0}).Nodes {
		require.Equal(h.t, stats.ReasonDiscovery, n.Reason)
	}
	h.cells[0][h.slots-1].sequence = -1
}

// tokens of a sequence in a stream's cells of their positions, all of whose logits are wanted, or the last one's.
func (h *gpuBatches) feed(stream, sequence int, from, to int32, all bool) *graph.Graph {
	h.wants = nil
	for i := int32(0); i < to-from; i++ {
		if all || i == to-from-1 {
			h.wants = append(h.wants, i)
		}
	}
	return h.batch(text(stream, int(from), sequence, from, to)...)
}

// remove takes what is behind a position out of a sequence.
func (h *gpuBatches) remove(sequence int, from int32) {
	for _, cells := range h.cells {
		for c := range cells {
			if cells[c].sequence == sequence && cells[c].position >= from {
				cells[c].sequence = -1
			}
		}
	}
}

// Drafts are decode rows: each sees what it sees, also where the draft before was taken back. Layers that only attend to
// everything are the host's, which reads a text once for all of its rows.
func TestGPUSpeculation(t *testing.T) {
	if !attends(t) {
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 512, 1, true)
	h.begin()
	require.Equal(t, stats.ReasonPrompt, h.feed(0, 0, 0, 100, false).Nodes[0].Reason)
	drafted, at := uint64(0), int32(100)
	for range 30 {
		n := 1 + h.rng.Int31n(rows.MostDrafted)
		g := h.feed(0, 0, at, at+n, true)
		if n == 1 {
			require.Equal(t, stats.Offloaded, g.Nodes[0].Reason)
		} else {
			drafted += uint64(n)
			require.Equal(t, stats.ReasonNoGain, g.Nodes[0].Reason)
		}
		for _, node := range g.Nodes[1:] {
			require.Equal(t, stats.Offloaded, node.Reason)
			require.Zero(t, node.Rest)
		}
		at += 1 + h.rng.Int31n(n) // so many are right
		h.remove(0, at)
	}
	s := h.gpu.Stats()
	require.Equal(t, s.Rows, s.RowsSparse)
	require.Equal(t, drafted, s.DraftRows)
	require.Zero(t, s.CellOrder)
	require.Zero(t, s.PromptRows)
	require.Zero(t, s.MixedSteps)
}

// Without the setting a draft is the host's; so is a text that is evaluated.
func TestGPULeavesDrafts(t *testing.T) {
	if !attends(t) {
		return
	}
	config := gpuSettings(16)
	config.Speculation = false
	h := newGPUBatches(t, config, 512, 1, true)
	h.begin()
	h.feed(0, 0, 0, 100, false)
	require.Equal(t, stats.ReasonDraft, h.feed(0, 0, 100, 104, true).Nodes[0].Reason)
	h = newGPUBatches(t, gpuSettings(16), 512, 1, true)
	h.begin()
	h.feed(0, 0, 0, 100, false)
	require.Equal(t, stats.ReasonPrompt, h.feed(0, 0, 100, 101+rows.MostDrafted, true).Nodes[0].Reason)
	require.Equal(t, stats.ReasonDense, h.feed(0, 0, 101+rows.MostDrafted, 103+rows.MostDrafted, true).Nodes[0].Reason, "its rest")
}

// Drafts of several streams, each of as many tokens. Where streams' rows lie elsewhere than behind one another, the batch is the host's.
func TestGPUSpeculationInStreams(t *testing.T) {
	if !attends(t) {
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 256, 3, true)
	h.begin()
	for s := range 3 {
		require.Equal(t, stats.ReasonPrompt, h.feed(s, s, 0, 60+int32(s), false).Nodes[0].Reason)
	}
	drafts := func(n int32) *graph.Graph {
		var batch []token
		for s := range 3 {
			batch = append(batch, text(s, 60+s, s, 60+int32(s), 60+int32(s)+n)...)
		}
		h.wants = nil
		for i := range batch {
			h.wants = append(h.wants, int32(i))
		}
		return h.batch(batch...)
	}
	for n := range int32(5) {
		for _, node := range drafts(1 + n).Nodes[1:] {
			require.Equal(t, stats.Offloaded, node.Reason)
		}
	}
	h.wants = []int32{3, 4, 5, 6, 7, 8} // a prompt of three tokens in the first one
	h.remove(0, 0)
	g := h.batch(slices.Concat(text(0, 0, 0, 0, 3), text(1, 61, 1, 61, 64), text(2, 62, 2, 62, 65))...)
	require.Equal(t, stats.Offloaded, g.Nodes[1].Reason)
	require.Equal(t, graph.Rest{Tokens: 3, Streams: 3}, g.Nodes[1].Rest)
	require.Equal(t, 3, h.gpu.rows.First())
	h.apart = 4
	require.Equal(t, stats.ReasonShape, drafts(2).Nodes[1].Reason)
	require.Equal(t, stats.Offloaded, drafts(1).Nodes[1].Reason)
	s := h.gpu.Stats()
	require.EqualValues(t, 3*(1+2+3+4+5)+6+2, s.RowsSparse, "the first text is short again")
	require.EqualValues(t, 1, s.MixedSteps)
}

// A token of a prompt, in a stream of its own, attends to everything, and so is the host's; the longer run of others is not.
func TestGPULeavesDenseRows(t *testing.T) {
	if !attends(t) {
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 256, 4, true)
	h.begin()
	for s := range 4 {
		h.feed(s, s, 0, 60, false)
	}
	for i, c := range []struct {
		prompts     []int
		first, rows int // that are taken
	}{{nil, 0, 4}, {nil, 0, 4}, {[]int{1}, 2, 2}, {[]int{3}, 0, 1}, {[]int{0, 1, 2}, 0, 0}, {nil, 3, 1}, {nil, 0, 4}} {
		h.wants = nil
		var batch []token
		for s := range 4 {
			batch = append(batch, text(s, 60+i, s, int32(60+i), int32(61+i))...)
			if !slices.Contains(c.prompts, s) {
				h.wants = append(h.wants, int32(s))
			}
		}
		n := h.batch(batch...).Nodes[1]
		if c.rows == 0 { // each is a prompt's, or the token behind one
			require.Equal(t, stats.ReasonDense, n.Reason, i)
			continue
		}
		require.Equal(t, stats.Offloaded, n.Reason, i)
		require.Equal(t, c.rows < 4, n.Rest.Tokens > 0)
		require.Equal(t, c.first, h.gpu.rows.First())
		require.Len(t, h.gpu.rows.Step.Rows, c.rows)
	}
	require.EqualValues(t, 4+4+2+1+1+4, h.gpu.Stats().RowsSparse)
}

// Drafts of several streams in cells of chance: each row's order is put on the device, by its own stream's slots.
func TestGPUOrderInStreams(t *testing.T) {
	if !attends(t) {
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 256, 3, true)
	h.begin()
	free := [3][]int{h.rng.Perm(256), h.rng.Perm(256), h.rng.Perm(256)}
	batch := func(from, n int32, wanted bool) *graph.Graph {
		var all []token
		h.wants = nil
		for s := range 3 {
			for p := from; p < from+n; p++ {
				if wanted || p == from+n-1 {
					h.wants = append(h.wants, int32(len(all)))
				}
				all = append(all, token{s, free[s][0], s, p})
				free[s] = free[s][1:]
			}
		}
		return h.batch(all...)
	}
	batch(0, 60, false)
	for _, n := range []int32{1, 3, 3, 2, 1, 1} {
		require.Equal(t, stats.Offloaded, batch(h.position(), n, true).Nodes[2].Reason)
	}
	require.EqualValues(t, 3*11, h.gpu.Stats().RowsSparse)
}

// position is that of the text's next token.
func (h *gpuBatches) position() (next int32) {
	for _, c := range h.cells[0] {
		if c.sequence == 0 {
			next = max(next, c.position+1)
		}
	}
	return next
}

// A draft behind a text in the order of slots, whose own tokens are not: they lie before it, or change places when the draft is taken back.
func TestGPUOrderOfDrafts(t *testing.T) {
	if !attends(t) {
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 256, 1, true)
	h.begin()
	h.feed(0, 0, 0, 60, false)
	for _, cells := range [][]int{{60, 61, 62}, {60, 62, 61}, {62, 60, 61}, {60, 100, 61}, {200, 61, 60}} {
		h.wants = []int32{0, 1, 2}
		n := h.batch(token{0, cells[0], 0, 60}, token{0, cells[1], 0, 61}, token{0, cells[2], 0, 62}).Nodes[2]
		require.Equal(t, stats.Offloaded, n.Reason)
		h.remove(0, 60)
	}
	require.EqualValues(t, 15, h.gpu.Stats().RowsSparse)
}

// Where a row of the step before has another number in this one, its list is another row's.
func TestGPUListsOfOtherRows(t *testing.T) {
	if !attends(t) {
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 256, 1, true)
	h.begin()
	free := h.rng.Perm(256)
	at := func(sequence int, position int32) token {
		free = free[1:]
		return token{0, free[0], sequence, position}
	}
	for q := range 2 {
		var all []token
		for p := range int32(40) {
			all = append(all, at(q, p))
		}
		h.wants = []int32{39}
		h.batch(all...)
	}
	h.wants = []int32{2, 3}
	require.Equal(t, stats.Offloaded, h.batch(at(2, 0), at(2, 1), at(0, 40), at(1, 40)).Nodes[2].Reason)
	require.Equal(t, stats.Offloaded, h.batch(at(2, 2), at(2, 3), at(0, 41), at(1, 41)).Nodes[2].Reason)
	h.wants = []int32{1, 2}
	require.Equal(t, stats.Offloaded, h.batch(at(2, 4), at(1, 42), at(0, 42), at(2, 5)).Nodes[2].Reason)
	h.wants = []int32{0, 1, 2, 3}
	require.Equal(t, stats.Offloaded, h.batch(at(3, 0), at(1, 43), at(0, 43), at(4, 0)).Nodes[2].Reason)
	require.EqualValues(t, 8, h.gpu.Stats().RowsSparse)
}

// The mask before a step's is not always that of the step before: here a token of another text's prompt came in between, which is no step.
// Its text is as long as the first one, so that the next token of it has the place behind the first one's. That token sees its own text.
func TestGPUMaskOfABatchThatWasNoStep(t *testing.T) {
	if !attends(t) {
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 256, 1, true)
	h.begin()
	free := h.rng.Perm(256)
	batch := func(sequence int, from, to int32, wanted bool) stats.Reason {
		var all []token
		h.wants = nil
		for p := from; p < to; p++ {
			all, free = append(all, token{0, free[0], sequence, p}), free[1:]
		}
		if wanted {
			h.wants = []int32{to - from - 1}
		}
		return h.batch(all...).Nodes[2].Reason
	}
	for sequence := range 2 {
		require.Equal(t, stats.ReasonPrompt, batch(sequence, 0, 60, true))
	}
	require.Equal(t, stats.Offloaded, batch(0, 60, 61, true))
	require.Equal(t, stats.Offloaded, batch(0, 61, 62, true), "by the mask of the step before")
	require.Equal(t, stats.ReasonPrompt, batch(1, 60, 62, false))
	require.Equal(t, stats.Offloaded, batch(0, 62, 63, true))
	require.Equal(t, stats.ReasonPrompt, batch(1, 62, 63, false), "fed alone")
	require.Equal(t, stats.ReasonDense, batch(1, 63, 64, true), "the last one of a prompt")
	require.Equal(t, stats.Offloaded, batch(1, 64, 65, true))
	require.EqualValues(t, 4, h.gpu.Stats().RowsSparse)
}

// Random batches of prompts, drafts and decode rows in one stream, in holes of the store: the rows that are taken are decode rows and
// drafts, as many as lie one behind the other, each with what it sees; the others are not written.
func TestGPUBatchesOfAllKinds(t *testing.T) {
	if !attends(t) {
		return
	}
	mixed, drafts := uint64(0), uint64(0)
	for range 6 {
		h := newGPUBatches(t, gpuSettings(16), 2048, 1, true)
		h.begin()
		next := make([]int32, 5)
		free := h.rng.Perm(h.slots)
		for range 12 {
			var batch []token
			var hosts []bool
			h.wants = nil
			for _, q := range h.rng.Perm(len(next)) {
				n, logits := int32(1), true
				switch kind := h.rng.Intn(5); {
				case next[q] == 0 || kind == 0:
					n, logits = 2+h.rng.Int31n(60), false
				case kind == 1:
					n = 2 + h.rng.Int31n(rows.MostDrafted-1)
				case kind == 2:
					continue
				}
				for p := next[q]; p < next[q]+n; p++ {
					if logits || p == next[q]+n-1 {
						h.wants = append(h.wants, int32(len(batch)))
					}
					batch, hosts = append(batch, token{0, free[0], q, p}), append(hosts, !logits)
					free = free[1:]
				}
				next[q] += n
			}
			if len(batch) == 0 {
				continue
			}
			g := h.batch(batch...)
			most, run := 0, 0
			for _, host := range hosts {
				if run++; host {
					run = 0
				}
				most = max(most, run)
			}
			taken := g.Nodes[2].Reason == stats.Offloaded
			switch {
			case taken:
				require.Len(t, h.gpu.rows.Step.Rows, most)
				require.Equal(t, slices.Contains(hosts, true), g.Nodes[2].Rest.Tokens > 0)
			case most == 0:
				require.Equal(t, stats.ReasonPrompt, g.Nodes[2].Reason)
			default: // no row is beyond the budget, or one has to attend to everything: behind a prompt, or with newest tokens that are not known
				require.Contains(t, []stats.Reason{stats.ReasonMixed, stats.ReasonDense, stats.ReasonWithin}, g.Nodes[2].Reason)
			}
		}
		s := h.gpu.Stats()
		mixed, drafts = mixed+s.MixedSteps, drafts+s.DraftRows
		require.Zero(t, s.CellOrder)
	}
	require.Greater(t, mixed, uint64(10))
	require.Greater(t, drafts, uint64(50))
}

// Where a step is taken for its gain alone, a mixed batch is the host's.
func TestGPUMixedGainsNothing(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 1024, 1, false)
	h.begin()
	h.feed(0, 0, 0, 1000, false)
	h.wants = []int32{0, 5}
	g := h.batch(append(text(0, 1000, 0, 1000, 1001), text(0, 1001, 1, 0, 5)...)...)
	for _, n := range g.Nodes {
		require.Equal(t, stats.ReasonMixed, n.Reason)
	}
	require.Zero(t, h.gpu.Stats().MixedSteps)
	require.False(t, g.Mixes, "masks of larger ones are not kept")
}

// Once its memory is there, a step of drafts beside a prompt allocates nothing.
func TestGPUBatchesAllocateNothing(t *testing.T) {
	if !standin.Child() {
		standin.Again(t, "LIM_STANDIN_LOG=")
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 1024, 1, true)
	h.begin()
	h.feed(0, 0, 0, 100, false)
	h.wants = []int32{0, 1, 2, 3}
	g := h.graphOf(append(text(0, 100, 0, 100, 104), text(0, 200, 1, 0, 500)...))
	step := func() {
		for i := range g.Nodes {
			g.Nodes[i].Reason = stats.Offloaded
		}
		h.gpu.Plan(g)
		for i := range g.Nodes {
			if g.Nodes[i].Reason == stats.Offloaded && h.gpu.Attend(&g.Nodes[i], 0xe1, 0xe2) != nil {
				panic("refused")
			}
		}
	}
	step()
	require.Equal(t, graph.Rest{Tokens: 504, Streams: 1}, g.Nodes[2].Rest)
	require.Zero(t, testing.AllocsPerRun(50, step))
	require.Equal(t, stats.Offloaded, g.Nodes[2].Reason)
}

// Rows of drafts are not got memory for without end.
func TestGPUDraftsMemory(t *testing.T) {
	if !attends(t) {
		return
	}
	h := newGPUBatches(t, gpuSettings(16), 512, 1, true)
	h.gpu.gpu.DraftMemory = 512 * (8*batchHeads + 4) * 8
	h.begin()
	h.feed(0, 0, 0, 100, false)
	require.Equal(t, stats.Offloaded, h.feed(0, 0, 100, 108, true).Nodes[1].Reason)
	require.Equal(t, stats.ReasonMemory, h.feed(0, 0, 108, 108+rows.MostDrafted, true).Nodes[1].Reason)
	require.Equal(t, stats.Offloaded, h.feed(0, 0, 108+rows.MostDrafted, 112+rows.MostDrafted, true).Nodes[1].Reason)
	require.Empty(t, h.gpu.Stats().Inert)
}
