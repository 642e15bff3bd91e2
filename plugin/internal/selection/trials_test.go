package selection

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/settings"
)

// world is a model whose candidates' divergences are known: their means, and how unequal steps are.
type world struct {
	*rand.Rand
	mean map[int]float64 // by number of selection layers
	tail float64         // standard deviation of a step's logarithm
}

func newWorld(t *testing.T, mean map[int]float64, tail float64) *world {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return &world{rand.New(rand.NewPCG(seed, 0)), mean, tail}
}

// step is one step's divergence: most lose little, a few a lot.
func (w *world) step(c *Candidate) float64 {
	return w.mean[len(c.Layers)] * math.Exp(w.tail*w.NormFloat64()-w.tail*w.tail/2)
}

func targeted(quality float64) settings.Config {
	config := settings.DefaultConfig()
	config.Budget, config.Quality = 128, quality
	return config
}

// measured is a model of twelve layers whose losses were measured just now.
func measured(t *testing.T, config settings.Config, file ProfileFile) (*Model, *[]string) {
	lines := &[]string{}
	m, err := NewModel(config, 12, Identity{Layers: 12, Heads: 2, Weights: "w"}, file, func(_ settings.LogLevel, text string) { *lines = append(*lines, text) })
	require.NoError(t, err)
	if m.Known || m.Tries() {
		return m, lines
	}
	measure(m)
	return m, lines
}

func measure(m *Model) *Profile {
	m.Sums = NewSums(12, 2)
	m.Sums.Reach, m.Sums.Steps = 2, 60
	for p := range m.Sums.N {
		m.Sums.N[p] = 60
	}
	for j := 1; j < 12; j++ { // what lies further back serves less well
		for i := range j {
			for h := range 2 {
				x := 0.05 * float32(j-i)
				m.Sums.Sum[2*Pair(i, j)+h], m.Sums.Square[2*Pair(i, j)+h] = 60*x, 60*x*x
			}
		}
	}
	return m.Finish(300, 32)
}

// try goes on until there is a choice; it returns how many trials that took.
func (w *world) try(t *testing.T, m *Model) (trials int, saved *Profile) {
	for ; m.Tries(); trials++ {
		require.Less(t, trials, MostTried*mostAtOnce+1, "trials do not end")
		c, ok := m.NextTrial()
		require.True(t, ok)
		saved = m.Tried(&c, w.step(&c))
	}
	return trials, saved
}

func TestCheapestThatMeetsTheTarget(t *testing.T) {
	w := newWorld(t, map[int]float64{1: 0.8, 2: 0.07, 3: 0.004, 4: 0.003, 5: 0.002, 6: 0.001}, 0.7)
	for range 50 {
		m, lines := measured(t, targeted(0.01), ProfileFile{})
		assert.True(t, m.Tries())
		trials, saved := w.try(t, m)
		assert.Len(t, m.Roles.Selections(), 3)
		assert.LessOrEqual(t, trials, 2*mostAtOnce+leastMet, "two that fail, and one that is taken")
		require.NotNil(t, saved)
		assert.Equal(t, m.Roles.Selections(), saved.Choice)
		assert.Contains(t, (*lines)[len(*lines)-1], "nats a token over 64 steps, for a quality of 0.01")
		for _, c := range m.Trials.Candidates[3:] {
			assert.Zero(t, c.Trials, "it costs more than one that is good enough")
		}
	}
}

// Random means, falling with the number of layers, and any spread: what is chosen seldom loses more than the target, and is not more
// than one whose mean is far below.
func TestChoiceKeepsTheTarget(t *testing.T) {
	w := newWorld(t, map[int]float64{}, 0)
	over, dear, most, runs := 0, 0, 0.0, 400
	for range runs {
		nats := math.Exp(w.Float64()*4 - 4)
		for k := 1; k <= MostTried; k++ {
			w.mean[k] = nats
			nats *= 0.1 + 0.8*w.Float64()
		}
		w.tail = w.Float64()
		target := math.Exp(w.Float64()*5 - 6)
		m, _ := measured(t, targeted(target), ProfileFile{})
		w.try(t, m)
		k := len(m.Roles.Selections())
		if k > 0 && w.mean[k] > target {
			over++
			most = max(most, w.mean[k]/target)
		}
		for better := 1; better < k || k == 0 && better <= MostTried; better++ {
			if w.mean[better] < target/2 {
				dear++
				break
			}
		}
	}
	t.Logf("%d of %d lose more than they may, at most %.2f times; %d cost more than need be", over, runs, most, dear)
	assert.LessOrEqual(t, over, runs/10)
	assert.LessOrEqual(t, dear, runs/20)
}

func TestNothingMeetsTheTarget(t *testing.T) {
	w := newWorld(t, map[int]float64{1: 1, 2: 1, 3: 1, 4: 1, 5: 0.5, 6: 1}, 0.2)
	path := filepath.Join(t.TempDir(), "p.json")
	m, lines := measured(t, targeted(0.001), ProfileFile{Path: path})
	_, saved := w.try(t, m)
	assert.True(t, m.Known)
	assert.Empty(t, m.Roles.Selections())
	assert.False(t, m.Roles.Sparse())
	assert.Contains(t, (*lines)[len(*lines)-1], "everything is attended to. The best, ")
	m.File.Save(saved, m.Log)

	again, _ := measured(t, targeted(0.001), ProfileFile{Path: path})
	assert.True(t, again.Known)
	assert.Empty(t, again.Roles.Selections())
	better, _ := measured(t, targeted(0.7), ProfileFile{Path: path})
	require.True(t, better.Tries(), "five layers were tried too seldom to say")
	w.try(t, better)
	assert.Len(t, better.Roles.Selections(), 5)
}

// What is measured adds up over contexts and processes.
func TestTrialsAddUp(t *testing.T) {
	w := newWorld(t, map[int]float64{1: 0.8, 2: 0.004, 3: 0.003, 4: 0.003, 5: 0.002, 6: 0.001}, 0.5)
	path := filepath.Join(t.TempDir(), "p.json")
	m, _ := measured(t, targeted(0.01), ProfileFile{Path: path})
	_, saved := w.try(t, m)
	m.File.Save(saved, m.Log)
	assert.Nil(t, m.Unsaved())

	for range 2 {
		m, lines := measured(t, targeted(0.01), ProfileFile{Path: path})
		assert.False(t, m.Tries())
		assert.Contains(t, (*lines)[0], path)
		before := m.Trials.Candidates[m.Trials.chosen].Trials
		for range 30 {
			require.True(t, m.Follows())
			c, ok := m.NextTrial()
			require.True(t, ok)
			assert.Nil(t, m.Tried(&c, w.step(&c)), "the choice stays")
		}
		assert.Greater(t, m.Trials.Candidates[m.Trials.chosen].Trials, before)
		m.File.Save(m.Unsaved(), m.Log)
		p, err := ReadProfile(path, true)
		require.NoError(t, err)
		assert.Equal(t, m.Trials.Candidates, p.Tried.Candidates)
	}
}

// A choice that turns out to lose more than it may is left.
func TestChoiceThatTurnsBad(t *testing.T) {
	w := newWorld(t, map[int]float64{1: 0.8, 2: 0.004, 3: 0.003, 4: 0.003, 5: 0.002, 6: 0.001}, 0.2)
	m, lines := measured(t, targeted(0.01), ProfileFile{})
	w.try(t, m)
	require.Len(t, m.Roles.Selections(), 2)
	w.mean[2] = 0.5
	for i := 0; len(m.Roles.Selections()) == 2; i++ {
		require.Less(t, i, 20)
		c, _ := m.NextTrial()
		m.Tried(&c, w.step(&c))
	}
	assert.Empty(t, m.Roles.Selections())
	assert.True(t, m.Tries(), "nothing else was tried: dense until it is, at once")
	assert.Contains(t, (*lines)[len(*lines)-1], "too much for a quality of 0.01: others are tried")
	trials, _ := w.try(t, m)
	assert.LessOrEqual(t, trials, mostAtOnce+leastMet)
	assert.Len(t, m.Roles.Selections(), 3)
}

func TestWhatCannotBeAddedUp(t *testing.T) {
	m, _ := measured(t, targeted(0.01), ProfileFile{})
	c, _ := m.NextTrial()
	now := func() Candidate {
		c, _ := m.NextTrial()
		return c
	}
	for _, nats := range []float64{math.NaN(), math.Inf(1), 1e9} {
		m.Tried(&c, nats)
	}
	m.Tried(&Candidate{Budget: 64, Layers: c.Layers}, 1)
	assert.Zero(t, now().Trials)
	m.Tried(&c, -1e-17)
	assert.Equal(t, 1, now().Trials)
	assert.Zero(t, now().Nats)
}

func TestStepsThatCannotBeComputedTwice(t *testing.T) {
	m, lines := measured(t, targeted(0.01), ProfileFile{})
	require.NotNil(t, m.GiveUp("for a reason"))
	assert.True(t, m.Known)
	assert.NotEmpty(t, m.Roles.Selections())
	assert.LessOrEqual(t, len(m.Roles.Selections()), 2)
	assert.Contains(t, strings.Join(*lines, "\n"), "cannot be measured: steps cannot be computed twice here: for a reason")
	_, ok := m.NextTrial()
	assert.False(t, ok)
	n := len(*lines)
	assert.Nil(t, m.GiveUp("for a reason"))
	assert.Len(t, *lines, n, "it is said once")
}

func TestTargetIsRefusedWithoutAProfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.json")
	fresh := func(quality float64) *Model {
		m, err := NewModel(targeted(quality), 12, Identity{Layers: 12, Heads: 2, Weights: "w"}, ProfileFile{Path: path}, func(settings.LogLevel, string) {})
		require.NoError(t, err)
		return m
	}
	assert.ErrorContains(t, fresh(0.01).Promised(), "quality 0.01 needs a profile")
	assert.NoError(t, fresh(0).Promised())

	w := newWorld(t, map[int]float64{1: 0.8, 2: 0.004, 3: 0.003, 4: 0.003, 5: 0.002, 6: 0.001}, 0.2)
	m, _ := measured(t, targeted(0.01), ProfileFile{Path: path})
	_, saved := w.try(t, m)
	m.File.Save(saved, m.Log)
	kept := fresh(0.01)
	assert.NoError(t, kept.Promised())
	assert.Len(t, kept.Roles.Selections(), 2)
	assert.False(t, kept.Due(100000), "another choice could not be tried")
	assert.ErrorContains(t, fresh(0.0001).Promised(), "too few trials")

	kept.Again = true // the guard's alarm: what was promised is not any more, and that is said
	lines := &[]string{}
	kept.Log = func(_ settings.LogLevel, text string) { *lines = append(*lines, text) }
	require.NotNil(t, measure(kept))
	assert.Contains(t, (*lines)[0], "the quality of 0.01 nats a token is not promised any more")
	assert.False(t, kept.Tries())

	require.NoError(t, os.WriteFile(path, []byte("{}"), 0o600))
	assert.Error(t, fresh(0.01).Promised())
}

// Without a budget the cheapest of layers and budgets that meets the target is chosen; a profile keeps it, for hosts with a budget as well.
func TestTargetChoosesTheBudget(t *testing.T) {
	file := ProfileFile{Path: filepath.Join(t.TempDir(), "p.json")}
	config := targeted(0.01)
	config.ChoosesBudget = true
	lost := map[int]map[int]float64{ // by budget, then by number of selection layers
		32:  {1: 1, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1, 6: 0.05},
		64:  {1: 0.9, 2: 0.03, 3: 0.004, 4: 0.003, 5: 0.002, 6: 0.001},
		128: {1: 0.8, 2: 0.003, 3: 0.002, 4: 0.002, 5: 0.001, 6: 0.001},
	}
	try := func(m *Model, trials int) (saved *Profile, tried map[int]int) {
		w := newWorld(t, nil, 0.2)
		tried = map[int]int{}
		for range trials {
			c, ok := m.NextTrial()
			require.True(t, ok)
			tried[c.Budget]++
			w.mean = lost[c.Budget]
			if p := m.Tried(&c, w.step(&c)); p != nil {
				saved = p
			}
		}
		return saved, tried
	}
	m, lines := measured(t, config, file)
	saved, tried := try(m, leastFailed+leastMet)
	require.False(t, m.Tries())
	require.Equal(t, map[int]int{128: leastFailed + leastMet}, tried, "trials that follow each other do not show what a small budget loses")
	require.Len(t, m.Roles.Selections(), 2)
	require.Equal(t, 128, m.Budget)
	require.Zero(t, saved.Attends)
	saved, tried = try(m, 600)
	require.Len(t, m.Roles.Selections(), 3)
	require.Equal(t, 64, m.Budget)
	require.Equal(t, 64, saved.Attends)
	require.Contains(t, (*lines)[len(*lines)-1], "with 64 tokens")
	require.GreaterOrEqual(t, tried[32], leastFailed)
	require.GreaterOrEqual(t, tried[64], leastMet)
	cost := 0
	for _, c := range m.Trials.Candidates {
		require.GreaterOrEqual(t, c.cost(12, 300), cost)
		cost = c.cost(12, 300)
	}
	file.Save(saved, m.Log)

	again, _ := measured(t, config, file)
	require.Equal(t, SourceProfile, again.Source)
	require.Equal(t, m.Roles.Selections(), again.Roles.Selections())
	require.Equal(t, 64, again.Budget)

	given, _ := measured(t, targeted(0.01), file) // 128 tokens, and none else
	require.False(t, given.Tries(), "these were tried")
	require.Len(t, given.Roles.Selections(), 2)
	require.Equal(t, 128, given.Budget)
	_, tried = try(given, 10)
	require.Equal(t, map[int]int{128: 10}, tried)
	file.Save(given.Unsaved(), m.Log)

	both, _ := measured(t, config, file) // what both have tried is kept
	require.Equal(t, 64, both.Budget)
	require.Len(t, both.Roles.Selections(), 3)
}
