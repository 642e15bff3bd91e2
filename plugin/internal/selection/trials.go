package selection

import (
	"fmt"
	"iter"
	"math"
	"slices"

	"lessismore/plugin/internal/settings"
)

// Trying, in numbers. docs/auto.md says where they come from.
const (
	MostTried   = 6    // selection layers that are tried, at most
	leastFailed = 8    // trials of a candidate before it can fail
	leastMet    = 64   // trials before it can be taken
	mostAtOnce  = 96   // trials of one candidate while the context attends to everything
	oftenTried  = 256  // trials behind which a choice is tried less often
	remembered  = 1024 // trials whose weight in a mean is the full one: twice as many are halved
	sureness    = 1.0  // standard errors that a mean has to stay below the target
	certain     = 2.0  // standard errors above it that a candidate has failed by
)

// Candidate is a choice of selection layers, and what was seen of it in steps that were computed twice: how far the next token's
// probabilities are from those of the dense model.
type Candidate struct {
	Budget int     `json:"budget"`
	Layers []int   `json:"layers"`
	Trials int     `json:"trials"`
	Nats   float64 `json:"nats"`    // sum of the divergences
	Square float64 `json:"squares"` // sum of their squares
}

// Mean is the divergence a token, and its standard error.
func (c *Candidate) Mean() (nats, err float64) {
	if c.Trials < 2 {
		return c.Nats, math.Inf(1)
	}
	n := float64(c.Trials)
	mean := c.Nats / n
	return mean, math.Sqrt(max(c.Square/n-mean*mean, 0) / (n - 1))
}

func (c *Candidate) met(target float64) bool {
	mean, err := c.Mean()
	return c.Trials >= leastMet && mean+sureness*err <= target
}

func (c *Candidate) failed(target float64) bool {
	mean, err := c.Mean()
	return c.Trials >= leastFailed && mean-certain*err > target
}

func (c *Candidate) add(nats float64) {
	c.Trials++
	c.Nats += nats
	c.Square += nats * nats
	if c.Trials >= 2*remembered {
		c.Trials, c.Nats, c.Square = c.Trials/2, c.Nats/2, c.Square/2
	}
}

// Says is the mean for people.
func (c *Candidate) Says() string {
	mean, err := c.Mean()
	return fmt.Sprintf("%.2g ± %.1g nats a token over %d steps", mean, err, c.Trials)
}

// cost is how many tokens a step of n tokens attends to in all layers.
func (c *Candidate) cost(layers, n int) int {
	dense := layers
	if len(c.Layers) > 0 {
		dense = c.Layers[0] + len(c.Layers)
	}
	return dense*n + (layers-dense)*min(n, c.Budget)
}

// Trials are the candidates for a quality target, the cheapest first. They are tried in that order: one that fails, or whose
// trials do not suffice to tell, is followed by the next one, which costs more; the first that meets the target is the choice.
type Trials struct {
	Measure    string      `json:"measure"`
	Target     float64     `json:"target"`       // nats a token, when it was written; the candidates serve any
	Least      int         `json:"least_trials"` // of a candidate before it can be taken
	Candidates []Candidate `json:"candidates"`

	budgets []int // of the candidates that may be chosen here
	chosen  int   // candidate in force; -1: none is, everything is dense
	turn    int   // of the trials that follow a choice
}

const trialMeasure = "Kullback-Leibler divergence of the next token's probabilities from the dense model's, in nats, of steps computed both ways"

// newTrials makes the candidates of a measurement, each choice with each budget. What was tried of them before counts.
func newTrials(found *Losses, config *settings.Config, tokens int, before *Trials) *Trials {
	t := &Trials{Measure: trialMeasure, Target: config.Quality, Least: leastMet, chosen: -1}
	for _, layers := range found.nested(MostTried) {
		t.Candidates = append(t.Candidates, Candidate{Budget: config.Budget, Layers: layers})
	}
	t.serve(config, found.layers, tokens)
	if before != nil {
		for i := range t.Candidates {
			if j := before.find(t.Candidates[i].Budget, t.Candidates[i].Layers); j >= 0 {
				t.Candidates[i] = before.Candidates[j]
			}
		}
	}
	return t
}

// serve has every choice among the candidates with each budget of a configuration, and admits these alone. The others, which another
// configuration tried, stay for it.
func (t *Trials) serve(config *settings.Config, layers, tokens int) {
	t.budgets = config.Budgets()
	for i := range t.Candidates {
		for _, budget := range t.budgets {
			if of := t.Candidates[i].Layers; t.find(budget, of) < 0 {
				t.Candidates = append(t.Candidates, Candidate{Budget: budget, Layers: of})
			}
		}
	}
	slices.SortStableFunc(t.Candidates, func(a, b Candidate) int { return a.cost(layers, tokens) - b.cost(layers, tokens) })
}

// admitted are the candidates that may be chosen here, by number, the cheapest first.
func (t *Trials) admitted() iter.Seq2[int, *Candidate] {
	return func(yield func(int, *Candidate) bool) {
		for i := range t.Candidates {
			if c := &t.Candidates[i]; slices.Contains(t.budgets, c.Budget) && !yield(i, c) {
				return
			}
		}
	}
}

func (t *Trials) find(budget int, layers []int) int {
	return slices.IndexFunc(t.Candidates, func(c Candidate) bool { return c.Budget == budget && slices.Equal(c.Layers, layers) })
}

// next is the candidate that the next trial before a choice is of; -1: what is known suffices for one. These trials follow each other,
// on one passage of a text, which does not show what a small budget loses in others: so smaller ones than the largest are tried
// behind a choice, where trials lie far apart.
func (t *Trials) next(target float64) int {
	for i, c := range t.admitted() {
		switch {
		case c.met(target):
			return -1
		case c.Budget == t.budgets[0] && !c.failed(target) && c.Trials < mostAtOnce:
			return i
		}
	}
	return -1
}

// choose is the cheapest candidate that meets the target; -1: none does. What is in force stays while its mean does.
func (t *Trials) choose(target float64) int {
	for i, c := range t.admitted() {
		if c.met(target) {
			return i
		}
		if mean, _ := c.Mean(); i == t.chosen && mean <= target {
			return i
		}
	}
	return -1
}

// follow is the candidate of a trial behind a choice: what is in force, and in turn the cheapest that may still turn
// out to meet the target. -1: nothing can be learned.
func (t *Trials) follow(target float64) int {
	t.turn++
	if t.turn%2 == 0 || t.chosen < 0 {
		for i, c := range t.admitted() {
			if i == t.chosen {
				break
			}
			if !c.failed(target) && (t.chosen >= 0 || c.Budget == t.budgets[0]) {
				return i
			}
		}
	}
	return t.chosen
}

// sound tells what is wrong with trials that may have been edited.
func (t *Trials) sound(layers int) error {
	if len(t.Candidates) == 0 || len(t.Candidates) > 16*MostTried {
		return fmt.Errorf("tried has %d candidates", len(t.Candidates))
	}
	if !(t.Target > 0 && t.Target <= settings.MaxQuality) {
		return fmt.Errorf("tried is for a target of %v nats", t.Target)
	}
	for i := range t.Candidates {
		c := &t.Candidates[i]
		if c.Budget < 1 || c.Budget > settings.MaxBudget || len(c.Layers) == 0 || !ascending(c.Layers, layers) {
			return fmt.Errorf("tried names a budget of %d and layers %v", c.Budget, c.Layers)
		}
		mean := c.Nats / float64(max(c.Trials, 1))
		if c.Trials < 0 || c.Trials > 2*remembered || !(mean >= -1 && mean <= mostNats) || !(c.Square >= 0 && c.Square <= mostNats*mostNats) {
			return fmt.Errorf("tried has no divergences of layers %v", c.Layers)
		}
	}
	return nil
}

// ascending tells whether a choice is layers of a model, each once and in order.
func ascending(choice []int, layers int) bool {
	for i, l := range choice {
		if l < 0 || l >= layers || i > 0 && l <= choice[i-1] {
			return false
		}
	}
	return true
}

// Tries tells whether candidates are tried before there is a choice. Under the model's lock, as all that follows.
func (m *Model) Tries() bool { return m.trying }

// Follows tells whether trials go on behind a choice.
func (m *Model) Follows() bool { return m.Trials != nil && !m.trying && m.Known && !m.Again }

// Sure tells whether what is in force was tried often.
func (m *Model) Sure() bool {
	i := m.Trials.chosen
	return i >= 0 && m.Trials.Candidates[i].Trials >= oftenTried
}

// NextTrial is the candidate of the next trial, as it is now; false: there is none to try.
func (m *Model) NextTrial() (c Candidate, ok bool) {
	i := -1
	switch {
	case m.trying:
		i = m.Trials.next(m.Config.Quality)
	case m.Follows():
		i = m.Trials.follow(m.Config.Quality)
	}
	if i < 0 {
		return Candidate{}, false
	}
	return m.Trials.Candidates[i], true
}

// begin starts trying the candidates of a measurement that is over. It returns the profile to be saved, where what was tried before
// suffices.
func (m *Model) begin(tokens int) *Profile {
	m.Trials = newTrials(&m.measured.Losses, &m.Config, tokens, m.Trials)
	m.Trials.chosen = m.Trials.find(m.Budget, m.Roles.Selections())
	m.trying, m.tokens = true, tokens
	if m.Trials.next(m.Config.Quality) < 0 {
		return m.settle(SourceMeasured)
	}
	return nil
}

// resume goes on with what a profile says of its candidates: a choice for the target, or more trials.
func (m *Model) resume(p *Profile) {
	t, target := m.Trials, m.Config.Quality
	t.serve(&m.Config, m.Layers, m.tokens)
	t.chosen = -1
	if i := t.find(p.attends(), p.Choice); i >= 0 && slices.Contains(t.budgets, p.attends()) {
		t.chosen = i
	}
	if t.choose(target) < 0 && t.next(target) >= 0 {
		t.chosen, m.trying = -1, true
		m.Log(settings.LogInfo, fmt.Sprintf("profile %s: more trials are needed for a quality of %v", m.File.Path, target))
		return
	}
	m.settle(SourceProfile)
}

// Tried takes the outcome of a trial. It returns the profile to be saved, if a choice follows.
func (m *Model) Tried(of *Candidate, nats float64) *Profile {
	if m.Trials == nil {
		return nil
	}
	t, target := m.Trials, m.Config.Quality
	i := t.find(of.Budget, of.Layers)
	if i < 0 || math.IsNaN(nats) || nats > mostNats { // measured anew meanwhile; or nothing that could be added up
		return nil
	}
	t.Candidates[i].add(max(nats, 0))
	m.unsaved = true
	if m.trying {
		if t.next(target) >= 0 {
			return nil
		}
		return m.settle(SourceMeasured)
	}
	now := t.choose(target)
	if now == t.chosen {
		return nil
	}
	if now < 0 && t.next(target) >= 0 { // what was in force is left, and others may do
		left := &t.Candidates[t.chosen]
		m.Log(settings.LogInfo, fmt.Sprintf("selection layers %v: %s, too much for a quality of %v: others are tried", left.Layers, left.Says(), target))
		m.adopt([]int{}, m.Config.Budget, SourceMeasured)
		t.chosen, m.trying = -1, true
		return nil
	}
	return m.settle(SourceMeasured)
}

// settle takes what the candidates' trials say into force.
func (m *Model) settle(source string) *Profile {
	t, target := m.Trials, m.Config.Quality
	m.trying, m.unsaved = false, false
	t.chosen, t.Target = t.choose(target), target
	if t.chosen < 0 {
		best := t.closest()
		m.adopt([]int{}, m.Config.Budget, source)
		m.Log(settings.LogInfo, fmt.Sprintf("no choice of up to %d selection layers keeps the quality of %v nats a token with %d tokens: everything is attended to. "+
			"The best, %v, loses %s", MostTried, target, best.Budget, best.Layers, best.Says()))
		return m.profile()
	}
	c := &t.Candidates[t.chosen]
	m.adopt(slices.Clone(c.Layers), c.Budget, source)
	share := float64(c.cost(m.Layers, max(m.tokens, 2*c.Budget))) / float64(m.Layers*max(m.tokens, 2*c.Budget))
	with, from := "", ""
	if m.Config.ChoosesBudget {
		with = fmt.Sprintf(" with %d tokens", c.Budget)
	}
	if source == SourceProfile {
		from = " profile " + m.File.Path + ":"
	}
	m.Log(settings.LogInfo, fmt.Sprintf("selection layers %v%s:%s %s, for a quality of %v; %.0f %% of the tokens attended at %d",
		c.Layers, with, from, c.Says(), target, 100*share, max(m.tokens, 2*c.Budget)))
	return m.profile()
}

// closest is the candidate that loses least, of those that were tried.
func (t *Trials) closest() (best Candidate) {
	least := math.Inf(1)
	for _, c := range t.admitted() {
		if mean, _ := c.Mean(); best.Layers == nil || c.Trials > 0 && mean < least {
			best = *c
			if c.Trials > 0 {
				least = mean
			}
		}
	}
	return best
}

// Unsaved is the profile with the trials since it was last saved; nil: there were none.
func (m *Model) Unsaved() *Profile {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	if !m.unsaved || !m.Follows() {
		return nil
	}
	m.unsaved = false
	return m.profile()
}

// GiveUp ends trying for good: steps cannot be computed twice here. Without a choice, one is made by the losses.
func (m *Model) GiveUp(why string) *Profile {
	if m.untriable {
		return nil
	}
	m.untriable = true
	if m.Trials != nil && !m.trying && m.Known {
		m.Log(settings.LogInfo, fmt.Sprintf("the quality of %v nats a token is the profile's: steps cannot be computed twice here: %s", m.Config.Quality, why))
		return nil
	}
	m.Log(settings.LogInfo, fmt.Sprintf("the quality of %v nats a token cannot be measured: steps cannot be computed twice here: %s. "+
		"The layers are chosen by the attention that is lost", m.Config.Quality, why))
	if !m.trying {
		return nil
	}
	m.trying, m.Trials = false, nil
	return m.choose("")
}

// Once says that steps are computed once here, though they may be decoded by a profile that has a target: see GiveUp.
func (m *Model) Once(why string) {
	if m.Config.Quality > 0 {
		m.Mu.Lock()
		defer m.Mu.Unlock()
		m.GiveUp(why)
	}
}

// Promised is asked where steps are never computed twice: why a quality target cannot be kept. nil: it can, by the profile.
func (m *Model) Promised() error {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.untriable = true
	if m.Config.Quality == 0 || m.Trials != nil && m.Known {
		return nil
	}
	where := "no profile is kept"
	switch {
	case m.trying:
		where = m.File.Path + " has too few trials for that target"
	case m.File.Path != "":
		where = m.File.Path + " is none"
	}
	return fmt.Errorf("quality %v needs a profile that was measured in nats (lessismore calibrate --quality, or a ggml host on CPUs, makes one): %s", m.Config.Quality, where)
}
