package ggml

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/layers"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// listen keeps what a fake host's session says.
func listen(h *fakeHost) func() string {
	var said []string
	h.session.layers.Log = func(level settings.LogLevel, text string) {
		if level <= settings.LogInfo {
			said = append(said, text)
		}
	}
	return func() string {
		out := strings.Join(said, "\n")
		said = nil
		return out
	}
}

// ctext is a text as the shim has it.
func ctext(h *fakeHost, text string) unsafe.Pointer {
	p := alloc[byte](h, len(text)+1)
	copy(p, text+"\x00")
	return unsafe.Pointer(&p[0])
}

func TestEveryReasonHasAMeaning(t *testing.T) {
	for r := stats.Reason(1); r < stats.Reasons; r++ {
		require.NotEmpty(t, r.String())
		require.NotEmpty(t, stats.Meanings[r], r.String())
		n := graph.Node{Reason: r}
		require.Equal(t, r.String()+": "+stats.Meanings[r], n.Why())
	}
}

// What the shim refuses is said once, in its words; of one layer where others are offloaded.
func TestRefusalsAreSaid(t *testing.T) {
	for _, c := range []struct {
		reason             stats.Reason
		what, kind, remedy string
		value              int64
		layers             []int
		says               string
	}{
		{stats.ReasonType, "K/V type", "q5_1", "f16 is supported", 7, []int{0, 1, 2, 3}, "nothing is offloaded in this context: type: K/V type q5_1; f16 is supported"},
		{stats.ReasonShape, "head_dim", "", "16 to 256", 512, []int{0, 1, 2, 3}, "nothing is offloaded in this context: shape: head_dim 512; 16 to 256"},
		{stats.ReasonMLA, "", "", "", 0, []int{0, 1, 2, 3}, "nothing is offloaded in this context: mla: " + stats.Meanings[stats.ReasonMLA]},
		{stats.ReasonShape, "head_dim", "", "16 to 256", 512, []int{2}, "layer 2 is left to the host: shape: head_dim 512; 16 to 256"},
		{stats.ReasonNoCache, "", "", "", 0, []int{2}, ""}, // attention to an encoder's output
	} {
		h := newFakeHost(t, small(8, 0), 4, 64, 1)
		said := listen(h)
		all := ""
		for i := range 5 {
			g := h.graph([]token{{0, i, 0, int32(i)}}, 0, 4)
			for _, l := range c.layers {
				n := &g.Nodes[l]
				n.Reason, n.Value = c.reason, c.value
				if c.what != "" {
					n.What, n.Remedy = ctext(h, c.what), ctext(h, c.remedy)
				}
				if c.kind != "" {
					n.Type = ctext(h, c.kind)
				}
			}
			h.session.Plan(g)
			all += said()
		}
		require.Equal(t, c.says, all)
	}
}

// A context in which nothing was offloaded does not end without a word.
func TestOutcome(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 64, 1)
	s := h.session.Stats()
	require.Empty(t, s.Outcome(), "there was no attention")
	h.discover()
	s = h.session.Stats()
	require.Empty(t, s.Outcome())
	h.plan(token{0, 0, 0, 0}, token{0, 1, 0, 1})
	h.plan(token{0, 2, 0, 2}, token{0, 3, 1, 0}, token{0, 4, 1, 1})
	h.plan(token{0, 5, 1, 2}, token{0, 6, 1, 3})
	s = h.session.Stats()
	require.Equal(t, "nothing was offloaded; attentions left to the host: prompt 6 (several query tokens of one sequence: a prompt), "+
		"mixed 3 (prompt and decode rows in one batch, which could not be taken apart)", s.Outcome())
	h.plan(token{0, 7, 0, 3})
	s = h.session.Stats()
	require.Equal(t, "1 steps, 100.0% of the tokens attended", s.Outcome())
}

// A host that feeds a few tokens in every call looks as if the library did nothing; one that checks drafts could be helped.
func TestShortCallsAreSaid(t *testing.T) {
	for _, c := range []struct {
		logits bool
		says   string
	}{{false, "a prompt in small pieces"}, {true, "LESSISMORE_SPECULATION=on decodes them"}} {
		h := newFakeHost(t, small(8, 1), 3, 256, 1)
		h.wanting = c.logits
		said := listen(h)
		h.discover()
		position := int32(0)
		next := func(tokens int) {
			h.wants = nil
			var batch []token
			for i := range int32(tokens) {
				batch = append(batch, token{0, int(position), 0, position})
				h.wants = append(h.wants, i)
				position++
			}
			h.plan(batch...)
		}
		for range layers.ShortCalls - 1 {
			next(2)
		}
		require.NotContains(t, said(), c.says)
		if !c.logits { // they are not one after another
			next(1)
		}
		for range layers.ShortCalls {
			next(2)
		}
		require.Equal(t, 1, strings.Count(said(), c.says), c)
		for range 2 * layers.ShortCalls {
			next(1)
		}
		require.NotContains(t, said(), "calls")
	}
}

// Short texts, one after another, are no drafts.
func TestShortPromptsAreNoDrafts(t *testing.T) {
	h := newFakeHost(t, small(8, 1), 3, 256, 1)
	said := listen(h)
	h.discover()
	for i := range int32(2 * layers.ShortCalls) {
		h.plan(token{0, int(2 * i), int(i), 0}, token{0, int(2*i + 1), int(i), 1})
	}
	require.Empty(t, said())
}

// With no layer behind the ones that choose nothing can be sparse: no row counts as if it were, and a line says so.
func TestModelsWithNothingToGain(t *testing.T) {
	for _, c := range []struct {
		layers int
		config settings.Config
		says   string
	}{
		{3, small(8), "nothing to gain: 3 of the model's layers can take part, 4 are needed"},
		{1, small(8), "nothing to gain: 1 of the model's layers can take part, 4 are needed"},
		{6, small(8, 5), "none comes after the layers that choose, [5]"},
		{4, small(8), ""},
	} {
		if len(c.config.Layers) == 0 {
			c.config.Layers = nil
		}
		h := newFakeHost(t, c.config, c.layers, 64, 1)
		said := listen(h)
		h.discover()
		for i := range 20 {
			for _, n := range h.plan(token{0, i, 0, int32(i)}) {
				require.True(t, n.Reason == stats.Offloaded && (c.says == "" || n.Call.Mode == cpu.Full))
			}
		}
		s, text := h.session.Stats(), said()
		if c.says == "" {
			require.EqualValues(t, 12, s.RowsSparse)
			require.NotContains(t, text, "nothing to gain")
			continue
		}
		require.Equal(t, 1, strings.Count(text, c.says), text)
		require.Zero(t, s.RowsSparse)
		require.EqualValues(t, 20, s.RowsFull)
		require.EqualValues(t, s.TokensVisible, s.TokensAttended)
	}
}
