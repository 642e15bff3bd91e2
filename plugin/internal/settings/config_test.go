package settings

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/cuda"
)

func environment(pairs ...string) func(string) (string, bool) {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(name string) (string, bool) {
		s, ok := m[name]
		return s, ok
	}
}

func TestEnvironmentDefaults(t *testing.T) {
	for _, lookup := range []func(string) (string, bool){
		environment(),
		environment("LESSISMORE_BUDGET", "", "LESSISMORE_LAYERS", "", "LESSISMORE", "", "LESSISMORE_STATS", ""), // empty is unset
	} {
		env, err := FromEnvironment(lookup, cuda.Built)
		require.NoError(t, err)
		want := Environment{Config: Config{Budget: 2048, Recency: 0.25, SinkTokens: 4, Policy: Union, Guard: DefaultGuard, Interval: 1, HugePages: true},
			Enabled: true, Log: LogInfo, Profiles: true, CUDA: CUDAAuto}
		if !cuda.Built {
			want.NoCUDA = "this build of the library has no CUDA engine"
		}
		require.Equal(t, want, env)
	}
}

func TestEnvironmentValues(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        func(*Environment)
	}{
		{"LESSISMORE", "off", func(e *Environment) { e.Enabled = false }},
		{"LESSISMORE", "0", func(e *Environment) { e.Enabled = false }},
		{"LESSISMORE", "ON", func(e *Environment) {}},
		{"LESSISMORE_BUDGET", "1", func(e *Environment) { e.Budget = 1 }},
		{"LESSISMORE_BUDGET", "16777216", func(e *Environment) { e.Budget = MaxBudget }},
		{"LESSISMORE_LAYERS", "0", func(e *Environment) { e.Layers = []int{0} }},
		{"LESSISMORE_LAYERS", "2, 12", func(e *Environment) { e.Layers = []int{2, 12} }},
		{"LESSISMORE_LAYERS", "0,1,4095", func(e *Environment) { e.Layers = []int{0, 1, 4095} }},
		{"LESSISMORE_LAYERS", "auto", func(e *Environment) {}},
		{"LESSISMORE_SELECTIONS", "3", func(e *Environment) { e.Selections = 3 }},
		{"LESSISMORE_SELECTIONS", "0", func(e *Environment) {}},
		{"LESSISMORE_QUALITY", "0.01", func(e *Environment) { e.Quality, e.ChoosesBudget = 0.01, true }},
		{"LESSISMORE_QUALITY", "1e-4", func(e *Environment) { e.Quality, e.ChoosesBudget = 1e-4, true }},
		{"LESSISMORE_QUALITY", "10", func(e *Environment) { e.Quality, e.ChoosesBudget = MaxQuality, true }},
		{"LESSISMORE_QUALITY", "Off", func(e *Environment) {}},
		{"LESSISMORE_GUARD", "off", func(e *Environment) { e.Guard = 0 }},
		{"LESSISMORE_GUARD", "0", func(e *Environment) { e.Guard = 0 }},
		{"LESSISMORE_GUARD", "On", func(e *Environment) {}},
		{"LESSISMORE_GUARD", "1", func(e *Environment) { e.Guard = 1 }},
		{"LESSISMORE_TRACE", "1", func(e *Environment) { e.Trace = 1 }},
		{"LESSISMORE_TRACE", "0", func(e *Environment) {}},
		{"LESSISMORE_TRACE", "on", func(e *Environment) { e.Trace = DefaultTrace }},
		{"LESSISMORE_GUARD", "64", func(e *Environment) { e.Guard = 64 }},
		{"LESSISMORE_HUGE_PAGES", "off", func(e *Environment) { e.HugePages = false }},
		{"LESSISMORE_HUGE_PAGES", "on", func(e *Environment) {}},
		{"LESSISMORE_INTERVAL", "4", func(e *Environment) { e.Interval = 4 }},
		{"LESSISMORE_PROFILE", "/tmp/p.json", func(e *Environment) { e.Profile = "/tmp/p.json" }},
		{"LESSISMORE_PROFILE", "Off", func(e *Environment) { e.Profiles = false }},
		{"LESSISMORE_RECENCY", "0", func(e *Environment) { e.Recency = 0 }},
		{"LESSISMORE_RECENCY", "1", func(e *Environment) { e.Recency = 1 }},
		{"LESSISMORE_RECENCY", "1e-3", func(e *Environment) { e.Recency = 0.001 }},
		{"LESSISMORE_SINK_TOKENS", "0", func(e *Environment) { e.SinkTokens = 0 }},
		{"LESSISMORE_POLICY", "mass", func(e *Environment) { e.Policy = Mass }},
		{"LESSISMORE_POLICY", "Union", func(e *Environment) {}},
		{"LESSISMORE_LOG", "debug", func(e *Environment) { e.Log = LogDebug }},
		{"LESSISMORE_LOG", "off", func(e *Environment) { e.Log = LogOff }},
		{"LESSISMORE_STATS", "/tmp/stats.json", func(e *Environment) { e.StatsPath = "/tmp/stats.json" }},
		{"LESSISMORE_STATS", "/tmp/%p.json", func(e *Environment) { e.StatsPath = fmt.Sprintf("/tmp/%d.json", os.Getpid()) }},
	} {
		want, err := FromEnvironment(environment(), cuda.Built)
		require.NoError(t, err)
		c.want(&want)
		if err := want.onCUDA(cuda.Built); err != nil {
			want.NoCUDA = err.Error()
		}
		got, err := FromEnvironment(environment(c.name, c.value), cuda.Built)
		require.NoError(t, err, "%s=%s", c.name, c.value)
		require.Equal(t, want, got, "%s=%s", c.name, c.value)
	}
}

// The switch for CUDA devices asks for what is possible there, and for a build that can.
func TestEnvironmentCUDA(t *testing.T) {
	for _, c := range []struct {
		pairs []string
		want  string
	}{
		{[]string{"LESSISMORE_CUDA", "on", "LESSISMORE_LAYERS", "2,12"}, ""},
		{[]string{"LESSISMORE_CUDA", "1", "LESSISMORE_LAYERS", "2,12"}, ""},
		{[]string{"LESSISMORE_CUDA", "on"}, ""},
		{[]string{"LESSISMORE_CUDA", "on", "LESSISMORE_LAYERS", "2", "LESSISMORE_INTERVAL", "2"}, "LESSISMORE_INTERVAL=2"},
		{[]string{"LESSISMORE_CUDA", "on", "LESSISMORE_LAYERS", "2", "LESSISMORE_TRACE", "on"}, "LESSISMORE_TRACE"},
	} {
		env, err := FromEnvironment(environment(c.pairs...), cuda.Built)
		switch {
		case !cuda.Built:
			require.ErrorContains(t, err, "no CUDA engine")
		case c.want != "":
			require.ErrorContains(t, err, c.want)
		default:
			require.NoError(t, err)
			require.Equal(t, CUDAOn, env.CUDA)
		}
	}
	env, err := FromEnvironment(environment(), cuda.Built)
	require.NoError(t, err)
	require.Equal(t, CUDAAuto, env.CUDA, "where nothing is said")
	require.Equal(t, cuda.Built, env.NoCUDA == "", "a build without the engine leaves GPUs alone, and says so")
	env, err = FromEnvironment(environment("LESSISMORE_CUDA", "off", "LESSISMORE_INTERVAL", "2"), cuda.Built)
	require.NoError(t, err)
	require.Equal(t, CUDAOff, env.CUDA)
	require.Empty(t, env.NoCUDA)
	env, err = FromEnvironment(environment("LESSISMORE_CUDA", "auto", "LESSISMORE_INTERVAL", "2"), cuda.Built)
	require.NoError(t, err, "what a GPU cannot do is asked for, a GPU need not be")
	require.Equal(t, CUDAAuto, env.CUDA)
	require.NotEmpty(t, env.NoCUDA)
}

func TestEnvironmentErrorsNameVariableAndValue(t *testing.T) {
	for name, values := range map[string][]string{
		"LESSISMORE":             {"2", "yes", " on", "true"},
		"LESSISMORE_CUDA":        {"yes", "2"},
		"LESSISMORE_BUDGET":      {"0", "-1", "16777217", "2k", "1.5", "1e3", " 5", "99999999999999999999", "0x10", "none"},
		"LESSISMORE_LAYERS":      {"-1", "4096", "2,", ",2", "12,2", "2,2", "2;12", "a", "1.0", ",", "0,0,1"},
		"LESSISMORE_RECENCY":     {"-0.1", "1.01", "NaN", "nan", "inf", "-Inf", "25%", "a"},
		"LESSISMORE_SINK_TOKENS": {"-1", "16777217", "four", "4.0"},
		"LESSISMORE_POLICY":      {"0", "sum", "union,mass"},
		"LESSISMORE_LOG":         {"1", "verbose", "warn"},
		"LESSISMORE_SELECTIONS":  {"-1", "65", "two", "auto"},
		"LESSISMORE_QUALITY":     {"0", "-0.1", "10.1", "NaN", "inf", "1%", "high"},
		"LESSISMORE_GUARD":       {"-1", "1.5", "maybe", "1048577"},
		"LESSISMORE_HUGE_PAGES":  {"yes", "2", "auto"},
		"LESSISMORE_INTERVAL":    {"0", "-1", "65", "off"},
		"LESSISMORE_PROFILE":     {strings.Repeat("x", 4001), "a\x00b", "/", "."},
		"LESSISMORE_STATS":       {strings.Repeat("x", 4001), "a\x00b", "/", "."},
	} {
		for _, value := range values {
			_, err := FromEnvironment(environment(name, value), cuda.Built)
			require.Error(t, err, "%s=%q", name, value)
			require.Contains(t, err.Error(), name+"=")
			if len(value) < 100 && !strings.ContainsRune(value, 0) {
				require.Contains(t, err.Error(), value)
			}
		}
	}
	ascending := make([]string, MaxSelections+1)
	for i := range ascending {
		ascending[i] = strconv.Itoa(i)
	}
	_, err := FromEnvironment(environment("LESSISMORE_LAYERS", strings.Join(ascending, ",")), cuda.Built)
	require.ErrorContains(t, err, "65 layers")
}

// A wrong value must not hide what the log level says about how to complain.
func TestEnvironmentReadsTheLogLevelFirst(t *testing.T) {
	env, err := FromEnvironment(environment("LESSISMORE_BUDGET", "x", "LESSISMORE_LOG", "off", "LESSISMORE", "?"), cuda.Built)
	require.Error(t, err)
	require.Equal(t, LogOff, env.Log)
}

func TestValidateNamesFieldAndValue(t *testing.T) {
	for _, c := range []struct {
		spoil func(*Config)
		text  []string
	}{
		{func(c *Config) { c.Budget = 0 }, []string{"budget", "0"}},
		{func(c *Config) { c.Budget = MaxBudget + 1 }, []string{"budget", "16777217"}},
		{func(c *Config) { c.Quality = math.NaN() }, []string{"quality", "NaN"}},
		{func(c *Config) { c.Quality = -1 }, []string{"quality", "-1"}},
		{func(c *Config) { c.Quality = 11 }, []string{"quality", "11"}},
		{func(c *Config) { c.Quality, c.Layers = 0.01, []int{2, 9} }, []string{"quality 0.01", "layers names [2 9]"}},
		{func(c *Config) { c.Quality, c.Interval = 0.01, 3 }, []string{"quality 0.01", "interval 3"}},
		{func(c *Config) { c.Recency = math.NaN() }, []string{"recency", "NaN"}},
		{func(c *Config) { c.Recency = -1 }, []string{"recency", "-1"}},
		{func(c *Config) { c.Recency = math.Inf(1) }, []string{"recency", "+Inf"}},
		{func(c *Config) { c.SinkTokens = -1 }, []string{"sink_tokens", "-1"}},
		{func(c *Config) { c.Selections = -1 }, []string{"selections", "-1"}},
		{func(c *Config) { c.ChoosesBudget = true }, []string{"budget 2048", "quality is 0"}},
		{func(c *Config) { c.Guard = -1 }, []string{"guard", "-1"}},
		{func(c *Config) { c.Interval = 0 }, []string{"interval", "0"}},
		{func(c *Config) { c.Policy = 2 }, []string{"policy", "2"}},
		{func(c *Config) { c.Layers = []int{-1} }, []string{"layers", "-1"}},
		{func(c *Config) { c.Layers = []int{4096} }, []string{"layers", "4096"}},
		{func(c *Config) { c.Layers = []int{3, 3} }, []string{"layers", "3 follows 3"}},
		{func(c *Config) { c.Layers = make([]int, 65) }, []string{"layers", "65"}},
	} {
		config := DefaultConfig()
		require.NoError(t, config.Validate())
		c.spoil(&config)
		err := config.Validate()
		require.Error(t, err)
		for _, text := range c.text {
			require.Contains(t, err.Error(), text)
		}
	}
}

// A quality target and what it cannot go with, as the environment states them.
func TestEnvironmentOfATarget(t *testing.T) {
	for _, other := range [][2]string{{"LESSISMORE_LAYERS", "2,9"}, {"LESSISMORE_INTERVAL", "2"}} {
		_, err := FromEnvironment(environment("LESSISMORE_QUALITY", "0.01", other[0], other[1]), cuda.Built)
		require.ErrorContains(t, err, "LESSISMORE_QUALITY=\"0.01\"")
	}
}

// One layer for six of the model's, at least two, unless a number is given.
func TestSelectionsForAModel(t *testing.T) {
	config := DefaultConfig()
	for layers, most := range map[int]int{5: 2, 12: 2, 17: 2, 18: 3, 30: 5, 36: 6, 80: 13, MaxLayer + 1: MaxSelections} {
		require.Equal(t, most, config.SelectionsFor(layers), "%d layers", layers)
	}
	config.Selections = 5
	require.Equal(t, 5, config.SelectionsFor(12))
}

// A budget that is given stays; where none is, a quality target chooses among three.
func TestBudgetsOfATarget(t *testing.T) {
	for _, c := range []struct {
		of   []string
		want []int
	}{
		{nil, []int{2048}},
		{[]string{"LESSISMORE_QUALITY", "0.005"}, []int{2048, 1024, 512}},
		{[]string{"LESSISMORE_QUALITY", "0.005", "LESSISMORE_BUDGET", ""}, []int{2048, 1024, 512}},
		{[]string{"LESSISMORE_QUALITY", "0.005", "LESSISMORE_BUDGET", "2048"}, []int{2048}},
		{[]string{"LESSISMORE_QUALITY", "off"}, []int{2048}},
	} {
		env, err := FromEnvironment(environment(c.of...), cuda.Built)
		require.NoError(t, err)
		require.Equal(t, c.want, env.Budgets(), "%v", c.of)
	}
}
