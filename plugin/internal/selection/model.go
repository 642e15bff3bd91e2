package selection

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"lessismore/plugin/internal/settings"
)

// Measuring, in numbers. docs/auto.md says where they come from.
const (
	leastRounds   = 64   // a measurement takes about so many steps, see measuredSteps
	ProbeShare    = 8    // a measured step chooses at most this part of what it sees …
	MostProbed    = 8192 // … and at most so many tokens, whatever the budget
	MostMeasured  = 1 << 22
	ProbeRatios   = 3 // a model is measured from 2, from 4 and from 8 times the budget on
	FirstMeasured = 2
)

// A measured step looks at every other layer, so that it costs less than half a step more. Which ones is a
// balanced design: layer l takes part in step s where the bits that l+1 and s share are odd in number.
// Over the steps 1 .. 2^k-1 of a round each layer is in half of them and each pair of layers in a quarter.
func InStep(layer, s int) bool { return bits.OnesCount(uint(layer+1)&uint(s))%2 == 1 }

// RoundOf is the number of steps of a round.
func RoundOf(layers int) int { return 1<<bits.Len(uint(layers)) - 1 }

// MeasuredSteps is how many steps a measurement takes: whole rounds. Each pair of layers is compared in at
// least 16 of them.
func MeasuredSteps(layers int) int {
	r := RoundOf(layers)
	return r * max(leastRounds/(r+1), 1)
}

// Ablation makes the steps that begin from now on dense, but for one layer. What the model says then, against what it
// says when all of its layers are dense, is the truth about a choice of selection layers: what a measurement is checked
// against (docs/auto.md).
type Ablation struct {
	Select int // the layer that chooses a token set; it attends to everything itself
	Sparse int // the layer above it that attends to that set; -1: none does

	Choice []int // instead of both: the selection layers, as if they were given
}

// Model is what the contexts of one model share: its measurement, and the choice that came of it. The
// lock is held for bookkeeping between steps, never while a kernel runs.
type Model struct {
	Ablation *atomic.Pointer[Ablation] // the engine's
	Config   settings.Config
	Log      func(settings.LogLevel, string)
	Layers   int
	About    Identity
	File     ProfileFile
	before   int // layers that come before the model's, where it is a part of one that is spread over devices

	Mu        sync.Mutex
	Heads     int
	Revision  uint64 // grows with every new choice
	Roles     Roles
	Budget    int    // tokens that a sparse layer attends to, by the choice; Config.Budget or less
	Source    string // where the roles come from
	Known     bool   // the roles are a choice; else everything is dense
	Fixed     bool   // they are given or by rule: nothing is measured or audited
	Reach     int    // measured from this many budgets on: 0, 2, 4 or 8
	Again     bool   // the guard wants it measured again; dense until it is
	measured  measurement
	truth     *Calibration // what the choice is by, where it was read from a profile that has one
	Trials    *Trials      // what it is by, with a quality target; nil: there is none, or nothing was tried
	trying    bool         // the candidates are being tried: dense until there is a choice
	tokens    int          // visible when that began
	untriable bool         // steps cannot be computed twice
	unsaved   bool         // trials were added since the last profile
	Sums      *Sums        // of the measurement under way
	Guard     guard
	Interval  int // steps that token sets serve; 1 once the guard has objected
}

// Part makes the model one of the later layers of another one, of which so many come before.
func (m *Model) Part(before int) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.before, m.measured.before = before, before
}

// measurement is what came of a number of measured steps.
type measurement struct {
	Losses
	steps  int
	tokens int // visible in the last of them
	budget int // of the sets that were compared
}

// Where a context's selection layers come from, as the statistics say it.
const (
	SourceGiven    = "given"
	SourceRule     = "rule"
	SourceNone     = "unmeasured"
	SourceMeasured = "measured"
	SourceProfile  = "profile"
)

// NewModel makes the state of a model. Its roles are those of the configuration where layers are given,
// of a profile where one fits, and otherwise measured.
func NewModel(config settings.Config, layers int, about Identity, file ProfileFile, log func(settings.LogLevel, string)) (*Model, error) {
	config.Selections = config.SelectionsFor(layers)
	m := &Model{Config: config, Log: log, Layers: layers, About: about, File: file, Heads: int(about.Heads), Budget: config.Budget, Interval: config.Interval}
	if config.Layers != nil || layers < LeastMeasured {
		roles, err := NewRoles(layers, config)
		if err != nil {
			return nil, err
		}
		m.Roles, m.Known, m.Fixed, m.Source = roles, true, true, SourceGiven
		if config.Layers == nil {
			m.Source = SourceRule
		}
		m.Guard.Expect(m, roles.Selections())
		m.tellIfIdle()
		return m, nil
	}
	config.Layers = []int{}
	m.Roles, _ = NewRoles(layers, config)
	m.Source = SourceNone
	m.Revision = 1
	if p := m.File.load(m); p != nil {
		m.measured, m.Reach = p.measurement(), p.Measured.Reach
		m.truth = p.Calibrated
		if m.Trials = p.Tried; m.Trials != nil {
			m.tokens = p.Measured.Tokens
			m.resume(p)
			return m, nil
		}
		m.adopt(p.Choice, config.Budget, SourceProfile)
		log(settings.LogInfo, fmt.Sprintf("selection layers %v: profile %s", p.Choice, m.File.Path))
		m.tellIfIdle()
	}
	return m, nil
}

// tellIfIdle says that no layer of the model attends to a token set.
func (m *Model) tellIfIdle() {
	if m.Roles.Sparse() {
		return
	}
	why := fmt.Sprintf("%d are needed", FirstSelection+2)
	if selections := m.Roles.Selections(); len(selections) > 0 {
		why = fmt.Sprintf("none comes after the layers that choose, %v", selections)
	}
	m.Log(settings.LogInfo, fmt.Sprintf("nothing to gain: %d of the model's layers can take part, %s; all of them attend to everything", m.Layers, why))
}

// rule gives up measuring, for a reason.
func (m *Model) rule(reason string) {
	config := m.Config
	config.Layers = nil
	m.Roles, _ = NewRoles(m.Layers, config)
	m.Known, m.Fixed, m.Source, m.Sums, m.Budget = true, true, SourceRule, nil, m.Config.Budget
	m.Revision++
	m.Log(settings.LogInfo, fmt.Sprintf("selection layers %v, by rule: %s", m.Roles.Selections(), reason))
}

// Learned is what was measured so far; nil: nothing.
func (m *Model) Learned() *Profile {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	if m.measured.steps == 0 || m.Fixed {
		return nil
	}
	return m.profile()
}

// adopt makes a choice the one in force.
func (m *Model) adopt(choice []int, budget int, source string) {
	config := m.Config
	config.Layers, m.Budget = choice, budget
	m.Roles, _ = NewRoles(m.Layers, config) // in range: checked where it was read or chosen
	m.Known, m.Again, m.Source = true, false, source
	m.Revision++
	m.Guard.Expect(m, choice)
}

// Due tells whether a row that sees n tokens should be measured.
func (m *Model) Due(n int) bool {
	if n < FirstMeasured*m.Config.Budget {
		return false
	}
	if m.Trials != nil && m.untriable { // another choice could not be tried
		return m.Again
	}
	return !m.trying && (m.Again || m.Reach < ReachOf(n, m.Config.Budget))
}

// ReachOf is the largest of 2, 4, 8 budgets that n tokens reach.
func ReachOf(n, budget int) int {
	reach := 0
	for r := FirstMeasured; r <= 1<<ProbeRatios; r *= 2 {
		if n >= r*budget {
			reach = r
		}
	}
	return reach
}

// Suits takes note of a layer's heads; false: this model cannot be measured.
func (m *Model) Suits(heads int) bool {
	if m.Heads == 0 {
		m.Heads = heads
	}
	switch {
	case m.Heads != heads:
		m.rule("its layers have different numbers of heads")
	case m.Layers*(m.Layers-1)/2*heads > MostMeasured:
		m.rule("it is too large to be measured")
	default:
		return true
	}
	return false
}

// Sums adds up measured losses: per pair of layers and per head, so that the worst head can be found.
type Sums struct {
	Reach  int
	Begun  int     // steps
	Steps  int     // whose results are in
	N      []int32 // per pair
	Sum    []float32
	Square []float32
}

func NewSums(layers, heads int) *Sums {
	pairs := layers * (layers - 1) / 2
	return &Sums{N: make([]int32, pairs), Sum: make([]float32, pairs*heads), Square: make([]float32, pairs*heads)}
}

// Add takes what the probe of a layer of a step measured, the rank-th of them: kept[k] for the set of the
// k-th layer, kept[rank] for its own.
func (s *Sums) Add(layers []int, rank, heads int, kept []float32, seen func(k int) bool) {
	own := kept[rank*heads : (rank+1)*heads]
	for k, i := range layers[:rank] {
		if !seen(k) {
			continue
		}
		p := Pair(i, layers[rank])
		s.N[p]++
		for h, k := range kept[k*heads : (k+1)*heads] {
			x := own[h] - k
			s.Sum[p*heads+h] += x
			s.Square[p*heads+h] += x * x
		}
	}
}

// finish makes losses of the sums. ok is false if some pair was never seen.
func (s *Sums) finish(layers, heads int) (l Losses, ok bool) {
	l = NewLosses(layers)
	for p := range l.Loss {
		n := float64(s.N[p])
		if n == 0 {
			return l, false
		}
		worst, square := math.Inf(-1), 0.0
		for h := range heads {
			x, xx := float64(s.Sum[p*heads+h])/n, float64(s.Square[p*heads+h])/n
			if x > worst {
				worst, square = x, xx
			}
			l.Square[p] += float32(xx / float64(heads))
		}
		l.Loss[p] = float32(worst)
		l.err[p] = float32(math.Sqrt(max(square-worst*worst, 0) / n))
	}
	return l, true
}

// Finish ends the measurement under way and chooses. It returns the profile to be saved.
func (m *Model) Finish(tokens, budget int) *Profile {
	found, ok := m.Sums.finish(m.Layers, m.Heads)
	reach, steps := m.Sums.Reach, m.Sums.Steps
	m.Sums = nil
	if !ok {
		m.rule("the host never showed all of its layers in one step")
		return nil
	}
	found.before = m.before
	m.measured, m.truth = measurement{found, steps, tokens, budget}, nil
	m.Reach = max(m.Reach, reach)
	tried := m.Trials != nil
	if m.Again {
		m.Trials = nil // what was tried is not what the guard sees
	}
	if tried && m.untriable {
		m.Log(settings.LogInfo, fmt.Sprintf("the quality of %v nats a token is not promised any more: steps cannot be computed twice here", m.Config.Quality))
	} else if m.Config.Quality > 0 && !m.untriable {
		m.Again = false
		return m.begin(tokens)
	}
	why := ""
	if m.Again {
		why = " again"
	}
	return m.choose(why)
}

// choose takes the choice that costs least into force, and returns the profile to be saved.
func (m *Model) choose(why string) *Profile {
	found := &m.measured.Losses
	choice, old := found.Choose(m.Config.Selections), m.Roles.Selections()
	// Near-equals take turns at being the best: what works stays.
	if m.Known && len(old) > 0 && len(old) <= m.Config.Selections && found.Cost(old) <= found.Cost(choice)+CostTolerance {
		choice = old
	}
	m.adopt(slices.Clone(choice), m.Config.Budget, SourceMeasured)
	m.Log(settings.LogInfo, fmt.Sprintf("selection layers %v: measured%s in %d steps at %d tokens; the worst head of a sparse layer loses %.2f of its attention",
		choice, why, m.measured.steps, m.measured.tokens, found.Worst(choice)))
	return m.profile()
}
