package ggml

import (
	"math/rand"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/stats"
)

// choose stands for the kernels: rows of layers that select get sinks, the newest, and any of those between.
func (h *fakeHost) choose(nodes []graph.Node) {
	for i := range nodes {
		n := &nodes[i]
		if n.Reason != stats.Offloaded || n.Call.Mode != cpu.Select {
			continue
		}
		for k := range rowsOf(n) {
			r := &rowsOf(n)[k]
			if r.SetLen == 0 {
				continue
			}
			set, between, wanted := unsafe.Slice((*int32)(r.Set), r.SetLen)[:0], r.Visible-r.SinkTokens-r.Recent, r.TopK
			for p := range r.Visible {
				switch {
				case p < r.SinkTokens || p >= r.Visible-r.Recent:
					set = append(set, p)
				default:
					if rand.Int31n(between) < wanted {
						set = append(set, p)
						wanted--
					}
					between--
				}
			}
			if r.Slots != nil {
				for j := range set {
					set[j] = unsafe.Slice((*int32)(r.Slots), r.Visible)[set[j]]
				}
				slices.Sort(set)
			}
		}
	}
}

// lastingText is one of two texts of one host, of which one is there at a time.
type lastingText struct {
	*fakeHost
	rng   *rand.Rand
	text  int      // that is there
	next  int32    // its next token's position
	known [2]int32 // tokens of each that a graph has written
	hole  int      // cell that the next token goes to; -1: any
}

func (h *lastingText) of(position int32) int {
	return slices.Index(h.cells[0], cell{h.text, position})
}

func (h *lastingText) free() int {
	if at := h.hole; at >= 0 {
		h.hole = -1
		return at
	}
	for {
		if at := h.rng.Intn(len(h.cells[0])); h.cells[0][at].sequence < 0 {
			return at
		}
	}
}

// prompts writes both texts' first tokens; the second one stays.
func (h *lastingText) prompts(n int32) {
	for h.text = range 2 {
		h.clear(1 - h.text)
		batch := []token{}
		for p := range n {
			batch = append(batch, token{0, int(p), h.text, p})
		}
		h.plan(batch...)
		h.known[h.text] = n
	}
	h.next = n
}

// meddle does something behind the graphs, or has one fail.
func (h *lastingText) meddle() {
	switch h.rng.Intn(8) {
	case 0: // a token is taken away, and comes back in another cell, as another sequence's copy: seq_rm, seq_cp
		p := h.rng.Int31n(h.next - 8)
		from := h.of(p)
		h.restore(0, h.free(), cell{h.text, p})
		h.cells[0][from].sequence = -1
		h.hole = from
	case 1, 2: // the other text comes back, in the cells of this one
		if h.known[1-h.text] >= h.next {
			for c, x := range h.cells[0] {
				if x.sequence == h.text {
					h.restore(0, c, cell{1 - h.text, x.position})
				}
			}
			h.text = 1 - h.text
		}
	case 3, 4: // some tokens are taken back
		for range 1 + h.rng.Intn(6) {
			if h.next > 40 {
				h.next--
				h.cells[0][h.of(h.next)].sequence = -1
			}
		}
	case 5: // a step is given up before a layer is computed: its keys are there, its sets are not
		h.session.Plan(h.graph([]token{{0, h.free(), h.text, h.next}}, 0, h.layers))
		for l := range h.keys {
			h.keys[l][h.of(h.next)] = h.keyOf(cell{h.text, h.next})
		}
		h.known[h.text] = max(h.known[h.text], h.next+1)
		h.next++
	}
}

// Whatever a host does, a set that serves a later step holds the tokens that were chosen, each once, and all that have come since.
func TestLastingSetsHoldTheirTokens(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	reused := 0
	for range 60 {
		config := small(12, 1) // three of them for the newest
		config.Interval, config.Guard = 2+rng.Intn(4), 0
		if rng.Intn(4) == 0 {
			config.Recency = 0
		}
		h := &lastingText{fakeHost: newFakeHost(t, config, 3, 400, 1), rng: rng, hole: -1}
		h.discover()
		h.prompts(50)
		held, last := map[int32]cell{}, int32(0) // what the set held, and its newest token
		for range 200 {
			if h.next > 200 {
				break
			}
			if rng.Intn(3) == 0 {
				h.meddle()
			}
			before := h.session.Stats().ReusedSteps
			row := h.rowOf(token{0, h.free(), h.text, h.next})
			h.next++
			h.known[h.text] = max(h.known[h.text], h.next)
			if row.SetLen == 0 {
				continue
			}
			set := unsafe.Slice((*int32)(row.Set), row.SetLen)
			for i := range set[1:] {
				require.Less(t, set[i], set[i+1], "%v", set)
			}
			if config.Recency > 0 {
				for p := h.next - 3; p < h.next; p++ {
					require.Contains(t, set, int32(h.of(p)), "position %d of %d", p, h.next)
				}
			}
			now := map[int32]cell{}
			for _, slot := range set {
				now[slot] = h.cells[0][slot]
			}
			if h.session.Stats().ReusedSteps > before {
				reused++
				for p := last + 1; p < h.next; p++ { // with those of steps that were given up
					held[int32(h.of(p))] = cell{h.text, p}
				}
				require.Equal(t, held, now)
			}
			held, last = now, h.next-1
		}
	}
	t.Logf("%d steps went on with older sets", reused)
	require.Greater(t, reused, 500)
}
