package ggml

import (
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/rows"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/stats"
)

func speculating(t *testing.T, layers, slots, streams int) *fakeHost {
	config := small(8, 1)
	config.Speculation = true
	h := newFakeHost(t, config, layers, slots, streams)
	h.wanting = true
	h.discover()
	return h
}

// text is the tokens [from, to) of a sequence, from a cell of a stream on.
func text(stream, cell, sequence int, from, to int32) (out []token) {
	for p := from; p < to; p++ {
		out = append(out, token{stream, cell + int(p-from), sequence, p})
	}
	return out
}

// feed plans a batch of one sequence, in the cells of its positions; all: all its logits are wanted, or else the last one's.
func feed(h *fakeHost, from, to int32, all bool) graph.Node {
	h.wants = nil
	for i := int32(0); i < to-from; i++ {
		if all || i == to-from-1 {
			h.wants = append(h.wants, i)
		}
	}
	return h.plan(text(0, int(from), 0, from, to)...)[2]
}

// lengths are the token sets' sizes of a node's rows.
func lengths(n *graph.Node) (out []int) {
	for _, r := range rowsOf(n) {
		out = append(out, int(r.SetLen))
	}
	return out
}

// The rows of a draft are decode rows, with what each of them sees, and sets of their own; those of a prompt are not.
func TestSpeculation(t *testing.T) {
	h := speculating(t, 3, 256, 1)
	require.Equal(t, stats.ReasonPrompt, feed(h, 0, 40, false).Reason)
	for i, from := range []int32{40, 41, 43, 43, 42} { // drafts are taken back in between
		to := from + 2 + int32(i)
		for c := range h.cells[0] {
			if h.cells[0][c].position >= from {
				h.cells[0][c].sequence = -1
			}
		}
		n := feed(h, from, to, true)
		require.Equal(t, stats.Offloaded, n.Reason)
		require.Equal(t, cpu.Sparse, n.Call.Mode)
		sets := map[*int32]bool{}
		for k, r := range rowsOf(&n) {
			require.EqualValues(t, k, r.Token)
			require.EqualValues(t, from+int32(k)+1, r.Visible)
			require.EqualValues(t, 8, r.SetLen)
			sets[(*int32)(r.Set)] = true
		}
		require.Len(t, sets, int(to-from))
	}
	s := h.session.Stats()
	require.EqualValues(t, s.Rows, s.RowsSparse)
	require.EqualValues(t, s.Rows, s.DraftRows)
	require.EqualValues(t, 2+3+4+5+6, s.DraftRows)
	require.Zero(t, s.CellOrder)
	require.Zero(t, s.PromptRows)
}

// What is evaluated is no draft: many tokens at once, and what follows them.
func TestSpeculationLeavesEvaluationDense(t *testing.T) {
	h := speculating(t, 3, 256, 1)
	require.Equal(t, stats.ReasonPrompt, feed(h, 0, 40, true).Reason)
	rest := feed(h, 40, 45, true)
	require.Equal(t, stats.Offloaded, rest.Reason)
	require.Equal(t, []int{0, 0, 0, 0, 0}, lengths(&rest), "the rest of the prompt")
	decoded := feed(h, 45, 48, true)
	require.Equal(t, []int{8, 8, 8}, lengths(&decoded))
	require.Equal(t, stats.ReasonPrompt, feed(h, 48, 48+rows.MostDrafted+1, true).Reason)
	rest = feed(h, 48+rows.MostDrafted+1, 48+rows.MostDrafted+2, true)
	require.Equal(t, []int{0}, lengths(&rest))
	most := feed(h, 100, 100+rows.MostDrafted, true)
	require.Equal(t, slices.Repeat([]int{8}, rows.MostDrafted), lengths(&most))
	tail := feed(h, 100+rows.MostDrafted, 100+rows.MostDrafted+4, false)
	require.Equal(t, stats.ReasonPrompt, tail.Reason, "logits are wanted of the last one only")
}

// Without the setting, drafts are dense, and counted as what they are.
func TestDraftsWithoutSpeculation(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 256, 1)
	h.wanting = true
	h.discover()
	require.Equal(t, stats.ReasonPrompt, feed(h, 0, 40, false).Reason)
	require.Equal(t, stats.ReasonDraft, feed(h, 40, 44, true).Reason)
	one := feed(h, 44, 45, true)
	require.Equal(t, []int{8}, lengths(&one))
	require.Equal(t, stats.ReasonPrompt, feed(h, 45, 49, false).Reason)
	require.Equal(t, stats.ReasonPrompt, feed(h, 49, 49+rows.MostDrafted+1, true).Reason)
}

// An interval serves no drafts: what they chose from may be taken back.
func TestSpeculationChoosesInEachStep(t *testing.T) {
	config := small(8, 1)
	config.Speculation, config.Interval = true, 4
	h := newFakeHost(t, config, 3, 256, 1)
	h.wanting = true
	h.discover()
	feed(h, 0, 40, false)
	for from := int32(40); from < 60; from++ {
		feed(h, from, from+3, true)
	}
	require.Zero(t, h.session.Stats().ReusedSteps)
	for from := int32(63); from < 73; from++ {
		feed(h, from, from+1, true)
	}
	require.NotZero(t, h.session.Stats().ReusedSteps, "one token at a time")
}

// part is a sequence's share of a random batch.
type part struct {
	sequence int
	from, to int32
	logits   bool // of all its tokens
}

// Random batches of prompts, drafts and decode rows in one stream: the rows that are taken are decode rows and drafts, each with
// what it sees, and the others are the host's, in one piece.
func TestBatchesOfAllKinds(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	mixed := uint64(0)
	for round := range 40 {
		h := speculating(t, 3, 2048, 1)
		h.divides = true
		next, cells := make([]int32, 5), 0
		for range 25 {
			var parts []part
			for q := range next {
				p := part{sequence: q, from: next[q], to: next[q] + 1, logits: true}
				switch kind := rng.Intn(5); {
				case next[q] == 0 || kind == 0:
					p.to, p.logits = p.from+2+rng.Int31n(30), false
				case kind == 1:
					p.to = p.from + 2 + rng.Int31n(rows.MostDrafted-1)
				case kind == 2:
					continue
				}
				next[q] = p.to
				parts = append(parts, p)
			}
			if rng.Intn(2) == 0 {
				rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			}
			var batch []token
			var hosts []bool
			h.wants = nil
			for _, p := range parts {
				for _, tk := range text(0, cells, p.sequence, p.from, p.to) {
					if p.logits || tk.position == p.to-1 {
						h.wants = append(h.wants, int32(len(batch)))
					}
					batch, hosts = append(batch, tk), append(hosts, !p.logits)
				}
				cells += int(p.to - p.from)
			}
			if len(batch) == 0 {
				continue
			}
			n := h.plan(batch...)[2]
			low, high := slices.Index(hosts, true), len(hosts)
			if low >= 0 {
				for ; !hosts[high-1]; high-- {
				}
			} else {
				low, high = 0, 0
			}
			var want []int32
			for i := range hosts {
				if i < low || i >= high {
					want = append(want, int32(i))
				}
			}
			if n.Reason != stats.Offloaded {
				require.True(t, high > low, "round %d: a batch of decode rows is taken", round)
				if n.Reason == stats.ReasonMixed { // no row is beyond the budget
					for _, i := range want {
						require.LessOrEqual(t, batch[i].position, int32(8), "round %d", round)
					}
				} else {
					require.Equal(t, stats.ReasonPrompt, n.Reason)
				}
				continue
			}
			var got []int32
			for _, r := range rowsOf(&n) {
				got = append(got, r.Token)
				require.EqualValues(t, batch[r.Token].position+1, r.Visible)
				require.Equal(t, r.Visible > 8, r.SetLen > 0, "round %d: %v", round, r)
			}
			require.Equal(t, want, got, "round %d", round)
			require.EqualValues(t, high-low, n.Rest.Tokens)
			if high > low {
				require.EqualValues(t, low, n.Rest.Token)
			}
		}
		s := h.session.Stats()
		mixed += s.MixedSteps
		require.Zero(t, s.CellOrder)
	}
	require.Greater(t, mixed, uint64(100))
}

// With a stream for each sequence whole streams are left to the host.
func TestMixedStreams(t *testing.T) {
	h := speculating(t, 3, 128, 3)
	h.divides = true
	for s := range 3 {
		h.wants = []int32{19}
		h.plan(text(s, 0, s, 0, 20)...)
	}
	h.wants = []int32{0, 1, 5, 6, 7, 8}
	n := h.plan(slices.Concat(text(0, 20, 0, 20, 23), text(1, 20, 1, 20, 23), text(2, 20, 2, 20, 23))...)[2]
	require.Equal(t, stats.Offloaded, n.Reason)
	require.Equal(t, graph.Rest{Tokens: 3, Stream: 0, Streams: 2}, n.Rest)
	require.Equal(t, []int{8, 8, 8}, lengths(&n))
	for i, r := range rowsOf(&n) {
		require.EqualValues(t, 2, r.Stream)
		require.EqualValues(t, i, r.Token)
		require.EqualValues(t, 21+i, r.Visible)
	}
}

// A layer that cannot be divided is the host's as a whole, and so is a batch whose decode rows lie among a prompt's.
func TestWhatCannotBeDivided(t *testing.T) {
	h := speculating(t, 4, 256, 1)
	h.divides = true
	feed(h, 0, 20, false)
	h.wants = []int32{0, 3}
	g := h.graph(append(text(0, 20, 0, 20, 21), text(0, 30, 1, 0, 3)...), 0, 4)
	g.Nodes[2].Divides = 0
	h.run(g)
	for i, n := range g.Nodes {
		if i == 2 {
			require.Equal(t, stats.ReasonMixed, n.Reason)
			continue
		}
		require.Equal(t, stats.Offloaded, n.Reason)
		require.Equal(t, graph.Rest{Token: 1, Tokens: 3, Streams: 1}, n.Rest)
	}
	h.wants = []int32{2}
	n := h.plan(slices.Concat(text(0, 40, 1, 3, 5), text(0, 42, 0, 21, 22), text(0, 43, 1, 5, 7))...)[2]
	require.Equal(t, stats.ReasonMixed, n.Reason)
	require.EqualValues(t, 1, h.session.Stats().MixedSteps)
}

// A large batch is looked at, too: a server's prompts come by the hundreds.
func TestLargeMixedBatch(t *testing.T) {
	h := speculating(t, 3, 2048, 1)
	h.divides = true
	feed(h, 0, 40, false)
	h.wants = []int32{0}
	n := h.plan(append(text(0, 40, 0, 40, 41), text(0, 100, 1, 0, 1000)...)...)[2]
	require.Equal(t, stats.Offloaded, n.Reason)
	require.Equal(t, graph.Rest{Token: 1, Tokens: 1000, Streams: 1}, n.Rest)
	require.Equal(t, []int{8}, lengths(&n))
}

// Once its memory is there, a step of drafts beside a prompt allocates nothing.
func TestBatchesAllocateNothing(t *testing.T) {
	h := speculating(t, 3, 1024, 1)
	h.divides = true
	feed(h, 0, 40, false)
	h.wants = []int32{0, 1, 2, 3}
	g := h.graph(append(text(0, 40, 0, 40, 44), text(0, 100, 1, 0, 500)...), 0, 3)
	h.run(g)
	require.Equal(t, graph.Rest{Token: 4, Tokens: 500, Streams: 1}, g.Nodes[2].Rest)
	require.Zero(t, testing.AllocsPerRun(50, func() { h.session.Plan(g) }))
	require.Equal(t, stats.Offloaded, g.Nodes[2].Reason)
}

// A selection layer that there is no memory for, as it has more heads than others, has chosen nothing, also where the host
// computes layer by layer: the layers behind it attend to everything.
func TestNothingIsChosenWithoutMemory(t *testing.T) {
	const slots = 1 << 19
	h := newFakeHost(t, small(8, 1), 3, slots+64, 1)
	h.session.OrderByCell()
	h.discover()
	for c := range slots {
		h.cells[0][c] = cell{0, int32(c)}
	}
	batch := []token{{0, slots, 0, slots}}
	var nodes []graph.Node
	for l := range 3 {
		g := h.graph(batch, l, l+1)
		if l > 0 { // one mask for all layers
			g.Nodes[0].Mask, g.Nodes[0].Scan = nodes[0].Mask, nodes[0].Scan
			g.Writes, g.Positions, g.Rotations = nil, nil, 0
		}
		if l == 1 {
			g.Nodes[0].Call.Heads = 512
		}
		h.run(g)
		nodes = append(nodes, g.Nodes...)
	}
	require.Equal(t, stats.Offloaded, nodes[0].Reason)
	require.Equal(t, stats.ReasonMemory, nodes[1].Reason)
	require.Equal(t, stats.Offloaded, nodes[2].Reason)
	require.Equal(t, cpu.Full, nodes[2].Call.Mode)
}

// Token sets are their row's text's: another one with a token more, in the same slots of another stream, chooses its own.
func TestIntervalIsOfOneText(t *testing.T) {
	config := small(8, 1)
	config.Interval, config.Guard = 4, 0
	h := newFakeHost(t, config, 3, 128, 3)
	h.wanting = true
	h.discover()
	for s, n := range []int32{40, 40, 42} {
		h.wants = []int32{n - 1}
		h.plan(text(s, 0, s, 0, n)...)
	}
	h.wants = []int32{0, 1}
	mode := func(tokens ...token) cpu.Mode { return h.plan(tokens...)[1].Call.Mode }
	at := func(s int, position int32) token { return token{s, int(position), s, position} }
	require.Equal(t, cpu.Select, mode(at(0, 40), at(1, 40)))
	require.Equal(t, cpu.Sparse, mode(at(0, 41), at(1, 41)), "one token more")
	require.Equal(t, cpu.Select, mode(at(1, 42), at(2, 42)), "other texts, which see one token more than those of their rows did")
	require.Equal(t, cpu.Sparse, mode(at(1, 43), at(2, 43)))
}
