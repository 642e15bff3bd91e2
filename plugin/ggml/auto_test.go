package ggml

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// The reasoner's losses (docs/auto.md): layer 9 needs a set of its own.
func reasonerLoss(i, j int) float64 {
	rows := map[int]float64{9: 0.74, 10: 0.70}
	if j == 10 && i == 9 {
		return 0.36
	}
	if x, ok := rows[j]; ok {
		return x
	}
	return 0.15
}

func lossesOf(layers int, loss func(i, j int) float64) *selection.Losses {
	l := selection.NewLosses(layers)
	for j := range layers {
		for i := range j {
			x := float32(loss(i, j))
			l.Loss[selection.Pair(i, j)], l.Square[selection.Pair(i, j)] = x, x*x
		}
	}
	return &l
}

func TestChoiceOfTheReasoner(t *testing.T) {
	l := lossesOf(12, reasonerLoss)
	require.Equal(t, []int{2, 9}, l.Choose(2))
	require.InDelta(t, 0.36, l.Worst([]int{2, 9}), 1e-6)
	require.InDelta(t, 0.74, l.Worst([]int{2, 6}), 1e-6)
	require.Equal(t, []int{2}, lossesOf(12, func(i, j int) float64 { return 0.1 }).Choose(2), "one is enough")
	require.Equal(t, []int{2, 9, 10}, l.Choose(3), "layer 10 as well, when asked for more")
}

// Every pair of layers is compared equally often, and often enough.
func TestMeasuredStepsAreBalanced(t *testing.T) {
	for _, layers := range []int{5, 6, 7, 8, 12, 28, 32, 36, 48, 64, 80, 126} {
		steps := selection.MeasuredSteps(layers)
		require.LessOrEqual(t, steps, max(64, 2*layers+1))
		for j := range layers {
			alone := 0
			for i := range j + 1 {
				n := 0
				for s := range steps {
					if selection.InStep(i, 1+s%selection.RoundOf(layers)) && selection.InStep(j, 1+s%selection.RoundOf(layers)) {
						n++
					}
				}
				if i == j {
					alone = n
				} else {
					require.GreaterOrEqual(t, n, 14)
					require.InDelta(t, steps/4, n, 4)
				}
			}
			require.InDelta(t, steps/2, alone, 5)
		}
	}
}

// autoHost is a fakeHost whose kernels are played too: probes are answered from a table of losses.
type autoHost struct {
	*fakeHost
	loss  func(i, j int) float64
	lines *[]string
	next  int
}

func newAutoHost(t *testing.T, config settings.Config, profiles selection.Profiles, layers int) *autoHost {
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	engine.Keep(profiles)
	return newAutoHostOf(t, engine, layers)
}

func newAutoHostOf(t *testing.T, engine *contexts.Engine, layers int) *autoHost {
	h := newFakeHost(t, small(4, 1), layers, 512, 1)
	h.session.Close()
	a := &autoHost{fakeHost: h, loss: reasonerLoss, lines: &[]string{}}
	h.session = NewSession(engine, func(_ settings.LogLevel, text string) { *a.lines = append(*a.lines, text) })
	h.discover()
	return a
}

// run plays the kernels of a step.
func (h *autoHost) run(nodes []graph.Node) {
	for l := range nodes {
		call := &nodes[l].Call
		if nodes[l].Reason != stats.Offloaded || call.Probe == nil {
			continue
		}
		p := (*cpu.Probe)(call.Probe)
		if p.Kept == nil {
			continue
		}
		kept := unsafe.Slice((*float32)(p.Kept), (p.Count+1)*call.Heads)
		for s := range p.Count {
			var i int
			if h.cal().Kind == calibrate.StepMeasure {
				i = h.cal().Layers[s]
			} else {
				i = h.cal().Roles.Selections()[h.cal().Roles.Group(l)]
			}
			for head := range call.Heads {
				kept[s*call.Heads+head] = 0.95
				if head == 1 && i != l { // the worst head
					kept[s*call.Heads+head] -= float32(h.loss(i, l))
				}
			}
		}
		for head := range call.Heads {
			kept[p.Count*call.Heads+head] = 0.95
		}
	}
}

// decode plays n steps; each gets the modes of its layers.
func (h *autoHost) decode(n int) (out [][]cpu.Mode) {
	for range n {
		nodes := h.plan(token{0, h.next, 0, int32(h.next)})
		h.next++
		h.run(nodes)
		out = append(out, modes(nodes))
	}
	return out
}

func auto(budget int) settings.Config {
	c := settings.DefaultConfig()
	c.Budget = budget
	return c
}

func repeated(mode cpu.Mode, n int) []cpu.Mode { return slices.Repeat([]cpu.Mode{mode}, n) }

func twoNine() []cpu.Mode {
	want := repeated(cpu.Sparse, 12)
	want[0], want[1], want[2], want[9] = cpu.Full, cpu.Full, cpu.Select, cpu.Select
	return want
}

func TestAutoMeasuresThenChooses(t *testing.T) {
	c := auto(16)
	c.Guard = 0
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	for i, m := range h.decode(31) { // up to 31 tokens: less than twice the budget
		require.Equal(t, repeated(cpu.Full, 12), m, "token %d", i)
	}
	require.EqualValues(t, 15, h.session.Stats().DenseSteps)
	require.Equal(t, selection.SourceNone, h.session.Stats().LayersFrom)
	selects := make([]int, 12)
	for i, m := range h.decode(60) {
		require.NotContains(t, m, cpu.Sparse, "measured step %d", i)
		for l := range m {
			selects[l] += int(m[l])
		}
	}
	for l, n := range selects {
		require.Equal(t, 32, n, "of 60 measured steps, layer %d is in half", l)
	}
	s := h.session.Stats()
	require.EqualValues(t, 60, s.MeasuredSteps)
	require.Zero(t, s.RowsSparse)
	for i, m := range h.decode(36) { // four budgets were reached while it was being measured
		require.Equal(t, twoNine(), m, "sparse step %d", i)
	}
	s = h.session.Stats()
	require.Equal(t, []int{2, 9}, s.SelectionLayers)
	require.Equal(t, selection.SourceMeasured, s.LayersFrom)
	require.Len(t, s.Events, 1)
	require.Equal(t, "measured", s.Events[0].What)
	require.InDelta(t, 0.36, s.Events[0].Loss, 1e-3)
	require.Equal(t, 127, h.next)
	for _, m := range h.decode(60) {
		require.NotContains(t, m, cpu.Sparse, "again at eight budgets")
	}
	for _, m := range h.decode(100) {
		require.Equal(t, twoNine(), m)
	}
}

// The probe budget is at most an eighth of what is seen, and probes hold the sets of all layers before.
func TestAutoProbes(t *testing.T) {
	h := newAutoHost(t, auto(16), selection.Profiles{}, 12)
	h.decode(39)
	nodes := h.plan(token{0, h.next, 0, int32(h.next)})
	var first *cpu.Probe
	rank := 0
	for l := range nodes {
		if nodes[l].Call.Mode == cpu.Full {
			require.Nil(t, nodes[l].Call.Probe)
			continue
		}
		r, p := rowsOf(&nodes[l])[0], (*cpu.Probe)(nodes[l].Call.Probe)
		if first == nil {
			first = p
		}
		require.EqualValues(t, 5, r.SetLen)
		require.EqualValues(t, 5, r.SinkTokens+r.TopK+r.Recent)
		require.EqualValues(t, rank, p.Count)
		require.EqualValues(t, 5, p.SetStride)
		require.Equal(t, first.Own, p.Sets)
		require.Equal(t, unsafe.Add(first.Own, 4*5*rank), p.Own)
		rank++
	}
	require.Contains(t, []int{5, 6, 7, 8}, rank)
}

func TestAutoContextsShareWhatWasLearned(t *testing.T) {
	engine, err := contexts.NewEngine(auto(16))
	require.NoError(t, err)
	a, b := newAutoHostOf(t, engine, 12), newAutoHostOf(t, engine, 12)
	a.decode(200)
	b.decode(16)
	require.Equal(t, twoNine(), b.decode(1)[0], "sparse from the budget on")
	require.Zero(t, b.session.Stats().MeasuredSteps)
	c := newAutoHostOf(t, engine, 13) // another model
	c.decode(16)
	require.Equal(t, repeated(cpu.Full, 13), c.decode(1)[0])
}

func TestGuardFindsDriftAndMeasuresAgain(t *testing.T) {
	c := auto(16)
	c.Guard = 2
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	h.decode(200)
	require.Equal(t, []int{2, 9}, h.session.Stats().SelectionLayers)
	h.loss = func(i, j int) float64 { // the text has changed: layer 6 looks things up now
		if i < 6 && j == 6 {
			return 0.8
		}
		return 0.1
	}
	h.decode(250)
	s := h.session.Stats()
	require.EqualValues(t, 1, s.Alarms)
	require.Contains(t, strings.Join(*h.lines, "\n"), "guard: the worst head of layer 6")
	i := slices.IndexFunc(s.Events, func(e stats.Event) bool { return e.What == "drift" })
	require.Equal(t, []int{6}, s.Events[i].Layers)
	require.Equal(t, "measured", s.Events[i+1].What)
	require.EqualValues(t, 60, s.Events[i+1].Step-s.Events[i].Step)
	require.Equal(t, []int{2, 6}, s.SelectionLayers)
}

func TestGuardIsSilentAboutWhatItExpects(t *testing.T) {
	rng := rand.New(rand.NewSource(rand.Int63()))
	c := auto(16)
	c.Guard = 2
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	h.loss = func(i, j int) float64 { // as noisy as a share can be
		if rng.Float64() < reasonerLoss(i, j) {
			return 1
		}
		return 0
	}
	h.decode(450)
	s := h.session.Stats()
	require.Greater(t, s.Audits, uint64(80))
	require.Zero(t, s.Alarms, "%+v", s.Events)
}

func TestAuditedStep(t *testing.T) {
	c := auto(16)
	c.Guard = 2
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	h.decode(200)
	seen := map[int]bool{}
	for range 120 {
		nodes := h.plan(token{0, h.next, 0, int32(h.next)})
		h.next++
		p := h.cal()
		if p.Kind == calibrate.StepAudit {
			want := twoNine()
			want[p.Layer] = cpu.Select
			require.Equal(t, want, modes(nodes))
			seen[p.Layer] = true
			row, others := rowsOf(&nodes[p.Layer])[0], rowsOf(&nodes[2])[0]
			require.NotEqual(t, others.Set, row.Set, "the step's set is not replaced")
			require.Equal(t, others.SetLen, row.SetLen)
			probe := (*cpu.Probe)(nodes[p.Layer].Call.Probe)
			require.EqualValues(t, 1, probe.Count)
			for _, l := range []int{2, 9} {
				if l < p.Layer {
					require.Equal(t, probe.Sets, (*cpu.Probe)(nodes[l].Call.Probe).Own)
				} else {
					require.Nil(t, nodes[l].Call.Probe)
				}
			}
		}
		h.run(nodes)
	}
	require.Len(t, seen, 8)
}

func TestProfileIsWrittenAndRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	h := newAutoHost(t, auto(16), selection.Profiles{Dir: dir}, 12)
	h.decode(200)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 1)
	text, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	require.NoError(t, err)
	var p selection.Profile
	require.NoError(t, json.Unmarshal(text, &p))
	require.Equal(t, []int{2, 9}, p.Choice)
	require.Equal(t, p.Fingerprint+".json", files[0].Name())
	require.Equal(t, 8, p.Measured.Reach)
	require.InDelta(t, 0.36, p.Worst, 1e-3)
	require.Len(t, p.Loss, 11)

	h = newAutoHost(t, auto(16), selection.Profiles{Dir: dir}, 12)
	h.decode(16)
	require.Equal(t, twoNine(), h.decode(1)[0])
	h.decode(200)
	s := h.session.Stats()
	require.Zero(t, s.MeasuredSteps)
	require.Zero(t, s.Alarms)
	require.Equal(t, selection.SourceProfile, s.LayersFrom)

	// Other settings are another profile.
	h = newAutoHost(t, auto(17), selection.Profiles{Dir: dir}, 12)
	require.Equal(t, repeated(cpu.Full, 12), h.decode(20)[19])
}

func TestProfileWithWrongLayers(t *testing.T) {
	for _, consistent := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "profile.json")
		newAutoHost(t, auto(16), selection.Profiles{Path: path}, 12).decode(200)
		edit(t, path, func(p *selection.Profile) {
			p.Choice = []int{2, 6}
			if consistent { // the measurements lie as well
				for j := 7; j < 12; j++ {
					p.Loss[j-1][6] = 0.15
				}
			}
		})
		h := newAutoHost(t, auto(16), selection.Profiles{Path: path}, 12)
		h.decode(17)
		require.Equal(t, []int{2, 6}, h.session.Stats().SelectionLayers)
		h.decode(340)
		s := h.session.Stats()
		require.EqualValues(t, 1, s.Alarms)
		require.Contains(t, []int{9, 10}, s.Events[0].Layers[0])
		require.Equal(t, []int{2, 9}, s.SelectionLayers)
		require.Equal(t, []int{2, 9}, load(t, path).Choice, "the profile is mended")
	}
}

func load(t *testing.T, path string) *selection.Profile {
	p, err := selection.ReadProfile(path, true)
	require.NoError(t, err)
	return p
}

func edit(t *testing.T, path string, change func(*selection.Profile)) {
	p := load(t, path)
	change(p)
	text, err := json.Marshal(p)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o600))
}

func TestProfileThatDoesNotFitIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "profile.json")
	newAutoHost(t, auto(16), selection.Profiles{Path: path}, 12).decode(200)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		change func(*selection.Profile)
		says   string
	}{
		"layers":     {func(p *selection.Profile) { p.Model.Layers = 36 }, "layers 36, here it is 12"},
		"heads":      {func(p *selection.Profile) { p.Model.Heads = 5 }, "heads 5, here it is 4"},
		"weights":    {func(p *selection.Profile) { p.Model.Weights = "x" }, "weights x"},
		"budget":     {func(p *selection.Profile) { p.Settings.Budget = 2048 }, "budget 2048, here it is 16"},
		"format":     {func(p *selection.Profile) { p.Format = 9 }, "format is 9"},
		"choice":     {func(p *selection.Profile) { p.Choice = []int{9, 2} }, "not ascending"},
		"beyond":     {func(p *selection.Profile) { p.Choice = []int{2, 12} }, "0 .. 11"},
		"none":       {func(p *selection.Profile) { p.Choice = nil }, "choice has 0"},
		"triangle":   {func(p *selection.Profile) { p.Loss[4] = p.Loss[4][:2] }, "loss of layer 5"},
		"no losses":  {func(p *selection.Profile) { p.Loss = nil }, "loss is not for 12"},
		"divergence": {func(p *selection.Profile) { p.Calibrated = &selection.Calibration{} }, "calibrated is not for 12"},
		"no share":   {func(p *selection.Profile) { p.Loss[4][0] = 7 }, "not a share"},
	} {
		require.NoError(t, os.WriteFile(path, good, 0o600))
		edit(t, path, c.change)
		bad, err := os.ReadFile(path)
		require.NoError(t, err)
		h := newAutoHost(t, auto(16), selection.Profiles{Path: path}, 12)
		require.Equal(t, repeated(cpu.Full, 12), h.decode(20)[19], name)
		require.Contains(t, strings.Join(*h.lines, "\n"), "is not used", name)
		require.Contains(t, strings.Join(*h.lines, "\n"), c.says, name)
		h.decode(100)
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, bad, after, "a file that the user named is not overwritten")
	}
	for name, text := range map[string]string{"empty": "", "no JSON": "{", "array": "[]", "types": `{"choice":"2,9"}`} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		h := newAutoHost(t, auto(16), selection.Profiles{Path: path}, 12)
		h.decode(20)
		require.Contains(t, strings.Join(*h.lines, "\n"), "is not used", name)
	}
}

func TestProfileFilesAreHandledWithCare(t *testing.T) {
	dir := t.TempDir()
	h := newAutoHost(t, auto(16), selection.Profiles{Dir: dir}, 12)
	h.decode(1)
	name := h.session.layers.Engine.Profiles.File(selection.Fingerprint(h.cal().Model.About, selection.SettingsOf(&h.session.layers.Engine.Settings, h.cal().Model.Layers))).Path
	// A link in its place is neither read nor written through.
	target := filepath.Join(t.TempDir(), "target")
	require.NoError(t, os.WriteFile(target, []byte("precious"), 0o600))
	require.NoError(t, os.Symlink(target, name))
	h = newAutoHost(t, auto(16), selection.Profiles{Dir: dir}, 12)
	h.decode(200)
	text, err := os.ReadFile(target)
	require.NoError(t, err)
	require.Equal(t, "precious", string(text))
	about, err := os.Lstat(name)
	require.NoError(t, err)
	require.NotZero(t, about.Mode()&os.ModeSymlink, "and stays")
	require.Contains(t, strings.Join(*h.lines, "\n"), "profile is not saved: "+name)
	// Too large, a directory.
	require.NoError(t, os.Remove(name))
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	require.NoError(t, os.Truncate(name, selection.ProfileCap+1))
	_, err = selection.ReadProfile(name, false)
	require.ErrorContains(t, err, "regular file")
	_, err = selection.ReadProfile(dir, false)
	require.Error(t, err)
	// A place that cannot be written is a line, no more.
	h = newAutoHost(t, auto(16), selection.Profiles{Path: filepath.Join(dir, "none", "p.json")}, 12)
	h.decode(200)
	require.Contains(t, strings.Join(*h.lines, "\n"), "profile is not saved")
	require.Equal(t, []int{2, 9}, h.session.Stats().SelectionLayers)
}

func TestGivenLayersAreNotMeasured(t *testing.T) {
	c := auto(16)
	c.Layers = []int{2, 6}
	dir := t.TempDir()
	h := newAutoHost(t, c, selection.Profiles{Dir: dir}, 12)
	h.decode(300)
	s := h.session.Stats()
	require.Zero(t, s.MeasuredSteps+s.DenseSteps+s.Audits)
	require.Equal(t, selection.SourceGiven, s.LayersFrom)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestSmallModelsGoByRule(t *testing.T) {
	h := newAutoHost(t, auto(16), selection.Profiles{}, 4)
	h.decode(20)
	require.Equal(t, []cpu.Mode{cpu.Full, cpu.Full, cpu.Select, cpu.Sparse}, h.decode(1)[0])
	require.Equal(t, selection.SourceRule, h.session.Stats().LayersFrom)
}

func TestLayersOfDifferentHeadsGoByRule(t *testing.T) {
	h := newAutoHost(t, auto(16), selection.Profiles{}, 12)
	for range 60 {
		g := h.graph([]token{{0, h.next, 0, int32(h.next)}}, 0, 12)
		h.next++
		g.Nodes[5].Call.Heads = 2
		h.fakeHost.run(g)
		for _, n := range g.Nodes {
			require.Equal(t, stats.Offloaded, n.Reason)
		}
		h.run(g.Nodes)
	}
	require.Equal(t, selection.SourceRule, h.session.Stats().LayersFrom)
	require.Equal(t, []int{2, 4}, h.session.Stats().SelectionLayers)
}

// ahead makes the graphs of the next steps of one row, each with a mask of its own that shows what is there by then.
func (h *autoHost) ahead(count int) []*graph.Graph {
	var graphs []*graph.Graph
	for range count {
		graphs = append(graphs, h.graph([]token{{0, h.next, 0, int32(h.next)}}, 0, 12))
		h.next++
	}
	mask := slices.Clone(h.mask)
	for i, g := range graphs {
		row := unsafe.Slice((*float16.Float16)(g.Nodes[0].Scan), h.nkv)
		copy(row, mask)
		for c := range h.cells[0] {
			row[c] = negInf
			if c <= h.next-len(graphs)+i {
				row[c] = 0
			}
		}
	}
	return graphs
}

func TestAutoAllocatesNothingPerToken(t *testing.T) {
	for _, interval := range []int{1, 3} {
		c := auto(16)
		c.Guard, c.Interval = 2, interval
		h := newAutoHost(t, c, selection.Profiles{}, 12)
		h.loss = func(i, j int) float64 { return 0 }
		h.decode(300)
		graphs := h.ahead(101)
		k := 0
		require.Zero(t, testing.AllocsPerRun(100, func() {
			h.fakeHost.run(graphs[k])
			h.run(graphs[k].Nodes)
			k++
		}), "interval %d", interval)
		require.Greater(t, h.session.Stats().Audits, uint64(50))
		if interval > 1 {
			require.Greater(t, h.session.Stats().ReusedSteps, uint64(100))
		}
	}
}

func TestIntervalReusesSets(t *testing.T) {
	c := auto(16)
	c.Layers, c.Interval, c.Guard = []int{2, 9}, 3, 0
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	h.decode(16)
	set := func(nodes []graph.Node, layer int) []int32 {
		r := rowsOf(&nodes[layer])[0]
		return unsafe.Slice((*int32)(r.Set), r.SetLen)
	}
	reused := append(repeated(cpu.Full, 2), repeated(cpu.Sparse, 10)...)
	step := func() []graph.Node {
		nodes := h.plan(token{0, h.next, 0, int32(h.next)})
		h.next++
		for _, l := range []int{2, 9} { // the kernels choose: the newest, and for layer 9 the first
			if nodes[l].Call.Mode == cpu.Select {
				s := set(nodes, l)
				for i := range s {
					s[i] = int32(i)
					if l == 2 {
						s[i] = int32(h.next - len(s) + i)
					}
				}
			}
		}
		return nodes
	}
	for round := range 5 {
		nodes := step()
		require.Equal(t, twoNine(), modes(nodes), "round %d", round)
		require.NotEqual(t, &set(nodes, 2)[0], &set(nodes, 9)[0])
		chosen := h.next
		for age := range 2 {
			nodes = step()
			require.Equal(t, reused, modes(nodes), "round %d", round)
			for _, l := range []int{2, 5, 9, 11} {
				s := set(nodes, l)
				require.Len(t, s, 16+age+1)
				require.Equal(t, int32(h.next-1), s[len(s)-1], "the new token is in")
				if l < 9 {
					require.Equal(t, int32(chosen-16), s[0])
				} else {
					require.EqualValues(t, 0, s[0])
				}
			}
		}
	}
	require.EqualValues(t, 10, h.session.Stats().ReusedSteps)

	step() // afresh; then the sequence is rolled back: no set of before may serve
	h.next -= 3
	for i := h.next; i < h.next+3; i++ {
		h.cells[0][i].sequence = -1
	}
	require.Equal(t, twoNine(), modes(step()))
	// Another batch comes between.
	require.Equal(t, reused, modes(step()))
	h.plan(token{0, 300, 1, 0}, token{0, 301, 1, 1}, token{0, 302, 1, 2})
	require.Equal(t, twoNine(), modes(step()))
	// A token of the set goes away.
	h.cells[0][0].sequence = -1
	h.cells[0][400] = cell{0, 0}
	require.Equal(t, twoNine(), modes(step()))
}

func TestIntervalIsGivenUpWhereItHurts(t *testing.T) {
	c := auto(16)
	c.Layers, c.Interval, c.Guard = []int{2, 9}, 2, 2
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	h.decode(17)
	for range 200 {
		nodes := h.plan(token{0, h.next, 0, int32(h.next)})
		h.next++
		h.run(nodes)
		if p := h.cal(); p.Kind == calibrate.StepAudit && p.Waiting && p.Layer == 9 {
			kept := unsafe.Slice((*float32)(p.Probes[0].Kept), 2*h.heads)
			kept[1] = 0.1 // an old set of layer 9 loses most
		}
	}
	s := h.session.Stats()
	require.EqualValues(t, 1, s.Alarms)
	require.Equal(t, "interval", s.Events[0].What)
	require.Equal(t, []int{9}, s.Events[0].Layers)
	for _, m := range h.decode(10) {
		require.Equal(t, twoNine(), m)
	}
}

// A host whose models cannot be told apart may make contexts without end.
func TestUnknownModelsAreForgotten(t *testing.T) {
	engine, err := contexts.NewEngine(settings.DefaultConfig())
	require.NoError(t, err)
	about := selection.Identity{Layers: 6, Last: 6 - 1, Heads: 8, KVHeads: 2, KeyDim: 64, ValueDim: 64, Weights: "known"}
	known, err := engine.Model(about, nil)
	require.NoError(t, err)
	for i := range 3 * contexts.MaxEnded {
		about.Weights = fmt.Sprint(selection.UnknownWeights, " ", i)
		_, err := engine.Model(about, nil)
		require.NoError(t, err)
	}
	require.Len(t, engine.Models, 1+contexts.MaxEnded)
	about.Weights = "known"
	again, err := engine.Model(about, nil)
	require.NoError(t, err)
	require.Same(t, known, again)
}
