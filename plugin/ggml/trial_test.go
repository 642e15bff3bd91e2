package ggml

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// trialHost is an autoHost that computes steps twice where it is asked to.
type trialHost struct {
	*autoHost
	nats   func(selects int) float64 // by number of layers that choose
	same   bool
	cannot string       // why it does not
	modes  [][]cpu.Mode // of the first computations
	sets   []int32      // how many tokens their sparse layers attend to; 0: there is none
}

func newTrialHost(t *testing.T, e *contexts.Engine) *trialHost {
	return &trialHost{autoHost: newAutoHostOf(t, e, 12), nats: func(selects int) float64 { return map[int]float64{1: 2.5}[selects] }, same: true}
}

func withTarget(t *testing.T, nats float64, profiles selection.Profiles) *contexts.Engine {
	c := auto(16)
	c.Guard, c.Quality = 0, nats
	engine, err := contexts.NewEngine(c)
	require.NoError(t, err)
	engine.Keep(profiles)
	return engine
}

// compute plays one graph, and returns the modes that its last result is of.
func (h *trialHost) compute(g *graph.Graph) []cpu.Mode {
	h.fakeHost.run(g)
	h.autoHost.run(g.Nodes)
	if !g.Trial {
		return modes(g.Nodes)
	}
	require.GreaterOrEqual(h.t, g.Output, 0)
	if h.cannot != "" {
		require.True(h.t, h.session.Untried(g.Nodes, h.cannot))
		return modes(g.Nodes)
	}
	first := modes(g.Nodes)
	h.modes, h.sets = append(h.modes, first), append(h.sets, setLength(g.Nodes))
	require.True(h.t, h.session.Again(g.Nodes))
	selects := 0
	for _, m := range first {
		if m == cpu.Select {
			selects++
		}
	}
	h.session.Tried(h.nats(selects), h.same)
	return modes(g.Nodes)
}

// setLength is how many tokens the sparse layers of a graph attend to; 0: there is none.
func setLength(nodes []graph.Node) int32 {
	for i := range nodes {
		if nodes[i].Call.Mode == cpu.Sparse {
			return (*cpu.Row)(nodes[i].Call.Rows).SetLen
		}
	}
	return 0
}

func (h *trialHost) decode(n int) (out [][]cpu.Mode) {
	for range n {
		g := h.graph([]token{{0, h.next, 0, int32(h.next)}}, 0, 12)
		h.next++
		out = append(out, h.compute(g))
	}
	return out
}

func TestStepsAreTriedTwice(t *testing.T) {
	h := newTrialHost(t, withTarget(t, 0.01, selection.Profiles{}))
	h.decode(91)
	require.EqualValues(t, 60, h.session.Stats().MeasuredSteps)
	for i, m := range h.decode(73) { // a rehearsal, 8 of one layer, which fails, 64 of two
		require.Equal(t, repeated(cpu.Full, 12), m, "trial %d: what the host gets is dense", i)
	}
	require.Len(t, h.modes, 73)
	require.Equal(t, repeated(cpu.Full, 12), h.modes[0], "first it is seen whether twice the same is the same")
	for i, m := range h.modes[1:9] {
		require.Equal(t, 1, len(slices.DeleteFunc(slices.Clone(m), func(x cpu.Mode) bool { return x != cpu.Select })), "trial %d", i)
	}
	for i, m := range h.modes[9:] {
		require.Equal(t, twoNine(), m, "trial %d", i)
	}
	s := h.session.Stats()
	require.EqualValues(t, 73, s.TrialSteps)
	require.Zero(t, s.TrialsRefused)
	require.Zero(t, s.RowsSparse)
	require.Equal(t, s.TokensVisible, s.TokensAttended)
	for _, m := range h.decode(60) {
		require.NotContains(t, m, cpu.Sparse, "measured again at eight budgets")
	}
	require.EqualValues(t, 73, h.session.Stats().TrialSteps, "what was tried counts")
	require.Equal(t, twoNine(), h.decode(1)[0])
	require.Equal(t, []int{2, 9}, h.session.Stats().SelectionLayers)
	require.Contains(t, strings.Join(*h.lines, "\n"), "selection layers [2 9]: 0 ± 0 nats a token over 64 steps, for a quality of 0.01")
}

// Where the target chooses the budget, each candidate's rows attend to its own, and so do those behind the choice.
func TestTrialsHaveTheirOwnBudget(t *testing.T) {
	profiles := selection.Profiles{Path: t.TempDir() + "/p.json"}
	choosing := func() *contexts.Engine {
		e := withTarget(t, 0.01, profiles)
		e.Settings.ChoosesBudget = true
		return e
	}
	h := newTrialHost(t, choosing())
	h.nats = func(selects int) float64 {
		if set := h.sets[len(h.sets)-1]; selects == 2 && set >= 8 || selects == 0 {
			return 0
		}
		return 2.5
	}
	h.decode(91 + 73 + 60) // and measured again at eight budgets
	require.Equal(t, []int{2, 9}, h.session.Stats().SelectionLayers)
	for _, set := range h.sets[1:] {
		require.EqualValues(t, 16, set, "first the largest")
	}
	plain := func() int32 { // what the rows of the next step that is no trial attend to
		for {
			if h.next == h.slots-1 { // in another context, which goes on with the profile
				h.session.Close()
				h.session = NewSession(choosing(), func(_ settings.LogLevel, text string) { *h.lines = append(*h.lines, text) })
				h.discover()
				h.next = 0
			}
			g := h.graph([]token{{0, h.next, 0, int32(h.next)}}, 0, 12)
			h.next++
			if h.compute(g); !g.Trial && slices.Contains(modes(g.Nodes), cpu.Sparse) {
				return setLength(g.Nodes)
			}
		}
	}
	steps := 0
	for require.EqualValues(t, 16, plain()); plain() != 8; steps++ {
		require.Less(t, steps, 20000, "two layers and 8 tokens suffice")
	}
	tries := map[int32]int{}
	for _, set := range h.sets {
		tries[set]++
	}
	require.GreaterOrEqual(t, tries[4], 8)
	require.GreaterOrEqual(t, tries[8], 8+64)
	t.Logf("%d steps, trials %v", steps, tries)
	require.Contains(t, strings.Join(*h.lines, "\n"), "selection layers [2 9] with 8 tokens: 0 ± 0 nats a token over 64 steps")
}

// Trials go on behind a choice, now and then.
func TestTrialsFollow(t *testing.T) {
	profiles := selection.Profiles{Path: t.TempDir() + "/p.json"}
	h := newTrialHost(t, withTarget(t, 0.01, profiles))
	h.decode(91 + 73 + 60) // and measured again at eight budgets
	for _, m := range h.decode(250) {
		require.True(t, slices.Equal(m, twoNine()) || !slices.Contains(m, cpu.Sparse))
	}
	more := len(h.modes) - 73
	require.Greater(t, more, 2)
	require.Less(t, more, 16)
	p := load(t, profiles.Path)
	require.Equal(t, 64, p.Tried.Candidates[1].Trials)
	h.session.Close()
	require.Equal(t, 64+more, load(t, profiles.Path).Tried.Candidates[1].Trials)
	h.session = NewSession(withTarget(t, 0.01, profiles), nil)
	h.discover()
	h.next = 0
	h.decode(40)
	require.Equal(t, selection.SourceProfile, h.session.Stats().LayersFrom)
	require.Equal(t, twoNine(), h.decode(1)[0])
}

func TestHostsThatCannotComputeTwice(t *testing.T) {
	for name, spoil := range map[string]func(h *trialHost){
		"cannot be computed twice here: for a reason":                      func(h *trialHost) { h.cannot = "for a reason" },
		"a step that is computed twice alike gives other logits":           func(h *trialHost) { h.same = false },
		"cannot be computed twice here: its layers come in several graphs": nil,
	} {
		t.Run(name, func(t *testing.T) {
			h := newTrialHost(t, withTarget(t, 0.01, selection.Profiles{}))
			h.decode(91)
			if spoil != nil {
				spoil(h)
				require.Equal(t, repeated(cpu.Full, 12), h.decode(1)[0])
			} else {
				tokens := []token{{0, h.next, 0, int32(h.next)}}
				for _, part := range [][2]int{{0, 5}, {5, 12}} {
					g := h.graph(tokens, part[0], part[1])
					require.Equal(t, repeated(cpu.Full, part[1]-part[0]), h.compute(g))
					require.False(t, g.Trial)
				}
				h.next++
			}
			require.Equal(t, twoNine(), h.decode(1)[0], "by the attention that is lost")
			require.Contains(t, strings.Join(*h.lines, "\n"), name)
			s := h.session.Stats()
			require.LessOrEqual(t, s.TrialSteps, uint64(1))
			if name != "a step that is computed twice alike gives other logits" {
				require.EqualValues(t, 1, s.TrialsRefused)
			}
			h.decode(200)
			require.Equal(t, s.TrialSteps, h.session.Stats().TrialSteps)
		})
	}
}

// A batch with a prompt's rows is no trial, and neither is one whose longest row's logits nobody wants.
func TestWhatIsNoTrial(t *testing.T) {
	h := newTrialHost(t, withTarget(t, 0.01, selection.Profiles{}))
	h.decode(91)
	g := h.graph([]token{{0, h.next, 0, int32(h.next)}, {0, h.next + 1, 0, int32(h.next + 1)}}, 0, 12)
	h.fakeHost.run(g)
	require.False(t, g.Trial)
	h.next += 2
	require.Empty(t, h.modes)
	h.decode(1)
	require.Len(t, h.modes, 1)
}

func TestTrialsAllocateNothing(t *testing.T) {
	h := newTrialHost(t, withTarget(t, 0.01, selection.Profiles{}))
	h.nats = func(int) float64 { return 0 }
	h.decode(91 + 1 + 64 + 70) // beyond eight budgets
	graphs := h.ahead(201)
	k, before := 0, h.session.Stats().TrialSteps
	require.Zero(t, testing.AllocsPerRun(200, func() {
		h.fakeHost.run(graphs[k])
		if graphs[k].Trial {
			h.session.Again(graphs[k].Nodes)
			h.session.Tried(0, true)
		}
		k++
	}))
	require.Greater(t, h.session.Stats().TrialSteps, before)
	require.Zero(t, h.session.Stats().Left[stats.ReasonFailed])
}
