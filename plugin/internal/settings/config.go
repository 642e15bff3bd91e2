package settings

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"strconv"
	"strings"

	"lessismore/plugin/internal/files"
)

// Policy is how a selection layer ranks candidates.
type Policy int32

const (
	// Union merges the heads' rankings, rank by rank: the method of the paper.
	Union Policy = 0
	// Mass ranks by the softmax probability summed over the heads.
	Mass Policy = 1
)

// String is the name that ParsePolicy takes.
func (p Policy) String() string {
	switch p {
	case Union:
		return "union"
	case Mass:
		return "mass"
	}
	return fmt.Sprintf("policy(%d)", int32(p))
}

// MarshalText is the policy's name.
func (p Policy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// LogLevel is how much the library says on standard error.
type LogLevel int32

const (
	LogOff LogLevel = iota
	LogInfo
	LogDebug
)

// Limits of the configuration. MaxBudget is far above any context that exists; it keeps sums in range.
const (
	MaxBudget     = 1 << 24
	MaxLayer      = 4095
	MaxSelections = 64
	MaxGuard      = 1 << 20
	MaxInterval   = 64
	MaxTrace      = 1 << 16
	MaxQuality    = 10   // nats: as far as the worst of choices goes
	DefaultTrace  = 1024 // where it is just on
	DefaultGuard  = 16   // steps between audits
)

// Config is what a user may choose, as the statistics show it. The zero value is not valid; start from DefaultConfig.
type Config struct {
	Budget     int     `json:"budget"`      // tokens that a sparse layer attends to
	Layers     []int   `json:"layers"`      // selection layers, ascending, counted among the layers that can take part; nil: found by measuring
	Recency    float64 `json:"recency"`     // share of the budget kept for the newest tokens, 0 to 1
	SinkTokens int     `json:"sink_tokens"` // first tokens that are always kept, out of the recency share
	Policy     Policy  `json:"policy"`
	Selections int     `json:"selections"` // at most so many selection layers are chosen where Layers is nil; 0: see SelectionsFor
	Quality    float64 `json:"quality"`    // nats a token that a choice may lose, which then says how many layers select; 0: Selections does
	Guard      int     `json:"guard"`      // steps between two audits of a choice; 0: none
	// Where no budget is given, a quality target chooses it among Budgets; Budget is the largest of them.
	ChoosesBudget bool `json:"chooses_budget,omitempty"`

	Interval int `json:"interval"` // steps that a token set serves; 1: it is chosen afresh in each
	Trace    int `json:"trace"`    // steps of a context whose token sets the statistics keep, at most; 0: none

	HugePages   bool `json:"huge_pages"`  // in a ggml host, on CPUs: K/V are moved to huge pages
	Speculation bool `json:"speculation"` // in a ggml host: the tokens of a draft are decode rows; callers of the C ABI say what their rows are
}

// whole are the settings that are whole numbers: their names, what they count, and their bounds. usual is what "on" stands
// for in the environment, of those that may be off.
var whole = []struct {
	name, unit       string
	of               func(c *Config) *int
	low, high, usual int
}{
	{"budget", " tokens", func(c *Config) *int { return &c.Budget }, 1, MaxBudget, 0},
	{"sink_tokens", "", func(c *Config) *int { return &c.SinkTokens }, 0, MaxBudget, 0},
	{"selections", "", func(c *Config) *int { return &c.Selections }, 0, MaxSelections, 0},
	{"guard", " steps", func(c *Config) *int { return &c.Guard }, 0, MaxGuard, DefaultGuard},
	{"interval", " steps", func(c *Config) *int { return &c.Interval }, 1, MaxInterval, 0},
	{"trace", " steps", func(c *Config) *int { return &c.Trace }, 0, MaxTrace, DefaultTrace},
}

// Numbers are the settings that are whole numbers, by name.
func (c *Config) Numbers() iter.Seq2[string, *int] {
	return func(yield func(string, *int) bool) {
		for _, w := range whole {
			if !yield(w.name, w.of(c)) {
				return
			}
		}
	}
}

// LayersASelection is how many layers of a model go to each that may be chosen to select, where Selections is 0; docs/auto.md says
// where it comes from.
const LayersASelection = 6

// SelectionsFor is how many selection layers may be chosen of a model with that many layers.
func (c *Config) SelectionsFor(layers int) int {
	if c.Selections > 0 {
		return c.Selections
	}
	return min(max(layers/LayersASelection, 2), MaxSelections)
}

// Budgets are those that a choice of selection layers may have, the largest first.
func (c *Config) Budgets() []int {
	if !c.ChoosesBudget {
		return []int{c.Budget}
	}
	return []int{c.Budget, c.Budget / 2, c.Budget / 4}
}

// DefaultConfig is the paper's setting, with layers found by measuring.
func DefaultConfig() Config {
	return Config{Budget: 2048, Recency: 0.25, SinkTokens: 4, Policy: Union, Guard: DefaultGuard, Interval: 1, HugePages: true}
}

// Validate returns an error that names the first field with a bad value.
func (c Config) Validate() error {
	for _, w := range whole {
		if n := *w.of(&c); n < w.low || n > w.high {
			return fmt.Errorf("%s %d is not in %d .. %d%s", w.name, n, w.low, w.high, w.unit)
		}
	}
	switch {
	case math.IsNaN(c.Recency) || c.Recency < 0 || c.Recency > 1:
		return fmt.Errorf("recency %v is not in 0 .. 1", c.Recency)
	case c.Policy != Union && c.Policy != Mass:
		return fmt.Errorf("policy %d is unknown (0 is union, 1 is mass)", int32(c.Policy))
	case math.IsNaN(c.Quality) || c.Quality < 0 || c.Quality > MaxQuality:
		return fmt.Errorf("quality %v is not in 0 .. %d nats a token", c.Quality, MaxQuality)
	case c.Quality > 0 && c.Layers != nil:
		return fmt.Errorf("quality %v chooses the selection layers, but layers names %v", c.Quality, c.Layers)
	case c.ChoosesBudget && (c.Quality == 0 || c.Budget < 4):
		return fmt.Errorf("budget %d is chosen by a quality target, but quality is %v", c.Budget, c.Quality)
	case c.Quality > 0 && c.Interval > 1:
		return fmt.Errorf("quality %v with interval %d: what older sets lose is not measured", c.Quality, c.Interval)
	case len(c.Layers) > MaxSelections:
		return fmt.Errorf("layers has %d entries, at most %d are possible", len(c.Layers), MaxSelections)
	}
	for i, l := range c.Layers {
		if l < 0 || l > MaxLayer {
			return fmt.Errorf("layers names layer %d, which is not in 0 .. %d", l, MaxLayer)
		}
		if i > 0 && l <= c.Layers[i-1] {
			return fmt.Errorf("layers is not ascending: %d follows %d", l, c.Layers[i-1])
		}
	}
	return nil
}

// Environment is a configuration as the environment states it.
type Environment struct {
	Config
	Enabled   bool
	Log       LogLevel
	StatsPath string // "" : none is written
	Profiles  bool   // what is learned about models is kept in files
	Profile   string // in this file; "": in the user's cache directory
	CUDA      CUDAUse
	NoCUDA    string // why CUDA devices are left alone, though that was not asked for; "": they are not
}

// CUDAUse is when a host's CUDA devices are hooked.
type CUDAUse int

const (
	CUDAOff  CUDAUse = iota
	CUDAAuto         // where the library's kernels have passed a test on the card, in steps that gain by it
	CUDAOn           // in all steps with rows beyond the budget
)

// FromEnvironment reads the LESSISMORE_* variables through lookup. A wrong value gives an error that
// names the variable and the value: the library then stays inert, it never guesses. hasCUDA tells whether this build has
// the CUDA engine.
func FromEnvironment(lookup func(name string) (string, bool), hasCUDA bool) (Environment, error) {
	env := Environment{Config: DefaultConfig(), Enabled: true, Log: LogInfo, Profiles: true, CUDA: CUDAAuto}
	var first error // the others are read all the same: the log and the statistics tell what is wrong
	for _, v := range variables {
		s, ok := lookup(v.name)
		if !ok || s == "" {
			continue
		}
		before := env
		if err := v.set(&env, s); err != nil {
			env = before
			if first == nil {
				first = fmt.Errorf("%s=%q: %w", v.name, s, err)
			}
		}
	}
	budget, _ := lookup("LESSISMORE_BUDGET")
	env.ChoosesBudget = env.Quality > 0 && budget == ""
	if err := env.Validate(); err != nil && first == nil { // each is in range: two do not go together
		first = fmt.Errorf("LESSISMORE_QUALITY=%q: %w", fmt.Sprint(env.Quality), err)
	}
	if err := env.onCUDA(hasCUDA); err != nil {
		switch env.CUDA {
		case CUDAOn:
			if first == nil {
				first = fmt.Errorf("LESSISMORE_CUDA=\"on\": %w", err)
			}
		case CUDAAuto:
			env.NoCUDA = err.Error()
		}
	}
	return env, first
}

// onCUDA names what the other settings lack for a host's CUDA devices.
func (env *Environment) onCUDA(built bool) error {
	switch {
	case !built:
		return errors.New("this build of the library has no CUDA engine")
	case env.Interval > 1:
		return fmt.Errorf("LESSISMORE_INTERVAL=%d: on a host's GPU a token set serves one step", env.Interval)
	case env.Trace > 0:
		return errors.New("LESSISMORE_TRACE: what is attended to on a GPU is not kept")
	}
	return nil
}

type variable struct {
	name string
	set  func(env *Environment, s string) error
}

var variables = append(numbers(), []variable{
	{"LESSISMORE_LOG", func(env *Environment, s string) (err error) {
		env.Log, err = choice(s, map[string]LogLevel{"off": LogOff, "info": LogInfo, "debug": LogDebug}, "off, info or debug")
		return err
	}},
	{"LESSISMORE_STATS", func(env *Environment, s string) error {
		env.StatsPath = files.ExpandPID(s)
		return usable(env.StatsPath)
	}},
	{"LESSISMORE", func(env *Environment, s string) (err error) {
		env.Enabled, err = onOrOff(s)
		return err
	}},
	{"LESSISMORE_CUDA", func(env *Environment, s string) (err error) {
		env.CUDA, err = choice(s, map[string]CUDAUse{"auto": CUDAAuto, "on": CUDAOn, "1": CUDAOn, "off": CUDAOff, "0": CUDAOff}, "auto, on or off")
		return err
	}},
	{"LESSISMORE_HUGE_PAGES", func(env *Environment, s string) (err error) {
		env.HugePages, err = onOrOff(s)
		return err
	}},
	{"LESSISMORE_SPECULATION", func(env *Environment, s string) (err error) {
		env.Speculation, err = onOrOff(s)
		return err
	}},
	{"LESSISMORE_LAYERS", func(env *Environment, s string) (err error) {
		if strings.EqualFold(s, "auto") {
			env.Layers = nil
			return nil
		}
		env.Layers, err = layers(s)
		return err
	}},
	{"LESSISMORE_PROFILE", func(env *Environment, s string) error {
		if strings.EqualFold(s, "off") {
			env.Profile, env.Profiles = "", false
			return nil
		}
		env.Profile = s
		return usable(s)
	}},
	{"LESSISMORE_RECENCY", func(env *Environment, s string) (err error) {
		env.Recency, err = fraction(s)
		return err
	}},
	{"LESSISMORE_QUALITY", func(env *Environment, s string) (err error) {
		env.Quality, err = quality(s)
		return err
	}},
	{"LESSISMORE_POLICY", func(env *Environment, s string) (err error) {
		env.Policy, err = choice(s, map[string]Policy{"union": Union, "mass": Mass}, "union or mass")
		return err
	}},
}...)

// numbers are the variables of the settings that are whole numbers.
func numbers() (out []variable) {
	for _, w := range whole {
		out = append(out, variable{"LESSISMORE_" + strings.ToUpper(w.name), func(env *Environment, s string) (err error) {
			if w.usual > 0 {
				*w.of(&env.Config), err = switched(s, w.high, w.usual)
			} else {
				*w.of(&env.Config), err = integer(s, w.low, w.high)
			}
			return err
		}})
	}
	return out
}

func choice[T any](s string, values map[string]T, want string) (T, error) {
	v, ok := values[strings.ToLower(s)]
	if !ok {
		return v, fmt.Errorf("must be %s", want)
	}
	return v, nil
}

func onOrOff(s string) (bool, error) {
	return choice(s, map[string]bool{"on": true, "1": true, "off": false, "0": false}, "on or off")
}

func integer(s string, low, high int) (int, error) {
	v, err := strconv.Atoi(s)
	if err != nil || v < low || v > high {
		return 0, fmt.Errorf("must be a whole number in %d .. %d", low, high)
	}
	return v, nil
}

// usable tells what is wrong with the name of a file that is written later, when it is too late to choose another.
func usable(file string) error {
	if len(file) > 4000 || strings.ContainsRune(file, 0) {
		return errors.New("is not a usable file name")
	}
	if files.IsFolder(file) {
		return errors.New("is a folder: name a file in it")
	}
	return nil
}

// switched is a number of steps, or on (that many: usual) or off (0).
func switched(s string, high, usual int) (int, error) {
	if steps, e := integer(s, 0, high); e == nil {
		return steps, nil
	}
	on, err := choice(s, map[string]bool{"on": true, "off": false},
		fmt.Sprintf("on, off, or a number of steps in 0 .. %d", high))
	if !on {
		return 0, err
	}
	return usual, err
}

func fraction(s string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) || v < 0 || v > 1 {
		return 0, fmt.Errorf("must be a number in 0 .. 1")
	}
	return v, nil
}

func quality(s string) (float64, error) {
	if strings.EqualFold(s, "off") {
		return 0, nil
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v > 0 && v <= MaxQuality) {
		return 0, fmt.Errorf("must be off, or nats a token above 0, up to %d", MaxQuality)
	}
	return v, nil
}

func layers(s string) ([]int, error) {
	var out []int
	for _, part := range strings.Split(s, ",") {
		l, err := integer(strings.TrimSpace(part), 0, MaxLayer)
		if err != nil {
			return nil, fmt.Errorf("must be auto, or layer numbers in 0 .. %d with commas between, such as 2,12", MaxLayer)
		}
		if len(out) > 0 && l <= out[len(out)-1] {
			return nil, fmt.Errorf("must name each layer once, in ascending order")
		}
		out = append(out, l)
	}
	if len(out) > MaxSelections {
		return nil, fmt.Errorf("names %d layers, at most %d are possible", len(out), MaxSelections)
	}
	return out, nil
}
