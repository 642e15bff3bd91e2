package plugin

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// Measuring, in numbers. docs/auto.md says where they come from.
const (
	leastRounds   = 64   // a measurement takes about so many steps, see measuredSteps
	probeShare    = 8    // a measured step chooses at most this part of what it sees …
	mostProbed    = 8192 // … and at most so many tokens, whatever the budget
	mostMeasured  = 1 << 22
	probeRatios   = 3 // a model is measured from 2, from 4 and from 8 times the budget on
	firstMeasured = 2
)

// A measured step looks at every other layer, so that it costs less than half a step more. Which ones is a
// balanced design: layer l takes part in step s where the bits that l+1 and s share are odd in number.
// Over the steps 1 .. 2^k-1 of a round each layer is in half of them and each pair of layers in a quarter.
func inStep(layer, s int) bool { return bits.OnesCount(uint(layer+1)&uint(s))%2 == 1 }

// roundOf is the number of steps of a round.
func roundOf(layers int) int { return 1<<bits.Len(uint(layers)) - 1 }

// measuredSteps is how many steps a measurement takes: whole rounds. Each pair of layers is compared in at
// least 16 of them.
func measuredSteps(layers int) int {
	r := roundOf(layers)
	return r * max(leastRounds/(r+1), 1)
}

// model is what the contexts of one model share: its measurement, and the choice that came of it. The
// lock is held for bookkeeping between steps, never while a kernel runs.
type model struct {
	intervention *atomic.Pointer[Intervention] // the engine's
	config       Config
	log          func(LogLevel, string)
	layers       int
	about        identity
	file         profileFile

	mu       sync.Mutex
	heads    int
	revision uint64 // grows with every new choice
	roles    Roles
	source   string // where the roles come from
	known    bool   // the roles are a choice; else everything is dense
	fixed    bool   // they are given or by rule: nothing is measured or audited
	reach    int    // measured from this many budgets on: 0, 2, 4 or 8
	again    bool   // the guard wants it measured again; dense until it is
	measured measurement
	truth    *Calibration // what the choice is by, where it was read from a profile that has one
	sums     *sums        // of the measurement under way
	guard    guard
	interval int // steps that token sets serve; 1 once the guard has objected
}

// measurement is what came of a number of measured steps.
type measurement struct {
	losses
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

// newModel makes the state of a model. Its roles are those of the configuration where layers are given,
// of a profile where one fits, and otherwise measured.
func newModel(config Config, layers int, about identity, file profileFile, log func(LogLevel, string)) (*model, error) {
	m := &model{config: config, log: log, layers: layers, about: about, file: file, heads: int(about.Heads), interval: config.Interval}
	if config.Layers != nil || layers < leastMeasured {
		roles, err := NewRoles(layers, config)
		if err != nil {
			return nil, err
		}
		m.roles, m.known, m.fixed, m.source = roles, true, true, SourceGiven
		if config.Layers == nil {
			m.source = SourceRule
		}
		m.guard.expect(m, roles.Selections())
		m.tellIfIdle()
		return m, nil
	}
	config.Layers = []int{}
	m.roles, _ = NewRoles(layers, config)
	m.source = SourceNone
	m.revision = 1
	if p := m.file.load(m); p != nil {
		m.measured, m.reach = p.measurement(), p.Measured.Reach
		m.truth = p.Calibrated
		m.adopt(p.Choice, SourceProfile)
		log(LogInfo, fmt.Sprintf("selection layers %v: profile %s", p.Choice, m.file.path))
		m.tellIfIdle()
	}
	return m, nil
}

// tellIfIdle says that no layer of the model attends to a token set.
func (m *model) tellIfIdle() {
	if m.roles.Sparse() {
		return
	}
	why := fmt.Sprintf("%d are needed", firstSelection+2)
	if selections := m.roles.Selections(); len(selections) > 0 {
		why = fmt.Sprintf("none comes after the layers that choose, %v", selections)
	}
	m.log(LogInfo, fmt.Sprintf("nothing to gain: %d of the model's layers can take part, %s; all of them attend to everything", m.layers, why))
}

// rule gives up measuring, for a reason.
func (m *model) rule(reason string) {
	config := m.config
	config.Layers = nil
	m.roles, _ = NewRoles(m.layers, config)
	m.known, m.fixed, m.source, m.sums = true, true, SourceRule, nil
	m.revision++
	m.log(LogInfo, fmt.Sprintf("selection layers %v, by rule: %s", m.roles.Selections(), reason))
}

// learned is what was measured so far; nil: nothing.
func (m *model) learned() *Profile {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.measured.steps == 0 || m.fixed {
		return nil
	}
	return m.profile()
}

// adopt makes a choice the one in force.
func (m *model) adopt(choice []int, source string) {
	config := m.config
	config.Layers = choice
	m.roles, _ = NewRoles(m.layers, config) // in range: checked where it was read or chosen
	m.known, m.again, m.source = true, false, source
	m.revision++
	m.guard.expect(m, choice)
}

// due tells whether a row that sees n tokens should be measured.
func (m *model) due(n int) bool {
	if n < firstMeasured*m.config.Budget {
		return false
	}
	return m.again || m.reach < reachOf(n, m.config.Budget)
}

// reachOf is the largest of 2, 4, 8 budgets that n tokens reach.
func reachOf(n, budget int) int {
	reach := 0
	for r := firstMeasured; r <= 1<<probeRatios; r *= 2 {
		if n >= r*budget {
			reach = r
		}
	}
	return reach
}

// suits takes note of a layer's heads; false: this model cannot be measured.
func (m *model) suits(heads int) bool {
	if m.heads == 0 {
		m.heads = heads
	}
	switch {
	case m.heads != heads:
		m.rule("its layers have different numbers of heads")
	case m.layers*(m.layers-1)/2*heads > mostMeasured:
		m.rule("it is too large to be measured")
	default:
		return true
	}
	return false
}

// sums adds up measured losses: per pair of layers and per head, so that the worst head can be found.
type sums struct {
	reach  int
	begun  int     // steps
	steps  int     // whose results are in
	n      []int32 // per pair
	sum    []float32
	square []float32
}

func newSums(layers, heads int) *sums {
	pairs := layers * (layers - 1) / 2
	return &sums{n: make([]int32, pairs), sum: make([]float32, pairs*heads), square: make([]float32, pairs*heads)}
}

// add takes what the probe of a layer of a step measured, the rank-th of them: kept[k] for the set of the
// k-th layer, kept[rank] for its own.
func (s *sums) add(layers []int, rank, heads int, kept []float32, seen func(k int) bool) {
	own := kept[rank*heads : (rank+1)*heads]
	for k, i := range layers[:rank] {
		if !seen(k) {
			continue
		}
		p := pair(i, layers[rank])
		s.n[p]++
		for h, k := range kept[k*heads : (k+1)*heads] {
			x := own[h] - k
			s.sum[p*heads+h] += x
			s.square[p*heads+h] += x * x
		}
	}
}

// finish makes losses of the sums. ok is false if some pair was never seen.
func (s *sums) finish(layers, heads int) (l losses, ok bool) {
	l = newLosses(layers)
	for p := range l.loss {
		n := float64(s.n[p])
		if n == 0 {
			return l, false
		}
		worst, square := math.Inf(-1), 0.0
		for h := range heads {
			if x := float64(s.sum[p*heads+h]) / n; x > worst {
				worst, square = x, float64(s.square[p*heads+h])/n
			}
		}
		l.loss[p] = float32(worst)
		l.err[p] = float32(math.Sqrt(max(square-worst*worst, 0) / n))
	}
	return l, true
}

// finish ends the measurement under way and chooses. It returns the profile to be saved.
func (m *model) finish(tokens, budget int) *Profile {
	found, ok := m.sums.finish(m.layers, m.heads)
	reach, steps := m.sums.reach, m.sums.steps
	m.sums = nil
	if !ok {
		m.rule("the host never showed all of its layers in one step")
		return nil
	}
	m.measured, m.truth = measurement{found, steps, tokens, budget}, nil
	m.reach = max(m.reach, reach)
	choice, old := found.choose(m.config.Selections), m.roles.Selections()
	// Near-equals take turns at being the best: what works stays.
	if m.known && len(old) <= m.config.Selections && found.worst(old) <= found.worst(choice)+lossTolerance {
		choice = old
	}
	why := ""
	if m.again {
		why = " again"
	}
	m.adopt(slices.Clone(choice), SourceMeasured)
	m.log(LogInfo, fmt.Sprintf("selection layers %v: measured%s in %d steps at %d tokens; the worst head of a sparse layer loses %.2f of its attention",
		choice, why, steps, tokens, found.worst(choice)))
	return m.profile()
}
