package decode

import (
	"math/rand"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/steps"
)

func auto(budget int) settings.Config {
	config := settings.DefaultConfig()
	config.Budget = budget
	return config
}

func repeated(mode cpu.Mode, n int) []cpu.Mode { return slices.Repeat([]cpu.Mode{mode}, n) }

func decoderOf(t *testing.T, config settings.Config, layers int, profiles selection.Profiles, about string, said *[]string) *Decoder {
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	engine.Keep(profiles)
	engine.Serve(about, func(_ settings.LogLevel, text string) {
		engine.Report() // a logger may call the library
		*said = append(*said, text)
	})
	workers := oncpu.NewWorkers(1)
	s, err := onCPU(engine, layers, workers)
	require.NoError(t, err)
	t.Cleanup(func() {
		s.Free()
		workers.Free()
	})
	return s
}

// walk attends at positions first .. first+n-1.
func walk(t *testing.T, s *Decoder, x *tensors, first, n int) (out [][]cpu.Mode) {
	for p := first; p < first+n; p++ {
		var m []cpu.Mode
		for layer := range int32(s.layers) {
			x.args.Layer, x.query[0] = layer, int32(p)
			require.NoError(t, s.Attend(&x.args))
			m = append(m, s.cpu().Call.Mode)
		}
		out = append(out, m)
	}
	return out
}

func TestCPUKeepProfiles(t *testing.T) {
	dir, x := t.TempDir(), newTensors(t, rand.New(rand.NewSource(rand.Int63())), 500)
	var said []string
	s := decoderOf(t, auto(32), testLayers, selection.Profiles{Dir: dir}, "m", &said)
	walk(t, s, x, 300, 80)
	require.Equal(t, selection.SourceMeasured, s.Stats().LayersFrom)
	require.Contains(t, strings.Join(said, "\n"), "measured in 56 steps")
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)

	said = nil
	again := decoderOf(t, auto(32), testLayers, selection.Profiles{Dir: dir}, "m", &said)
	require.Contains(t, strings.Join(said, "\n"), files[0])
	require.Contains(t, walk(t, again, x, 300, 1)[0], cpu.Sparse)
	for about, profiles := range map[string]selection.Profiles{"other": {Dir: dir}, "": {Dir: dir}, "n": {Path: files[0]}} {
		said = nil
		other := decoderOf(t, auto(32), testLayers, profiles, about, &said)
		require.NotContains(t, walk(t, other, x, 300, 1)[0], cpu.Sparse, about)
		require.Equal(t, about == "n", strings.Contains(strings.Join(said, "\n"), "is not used"), about)
	}
}

// What tells models apart may be the bytes of a hash, which are no text: each has a profile of its own, and finds it.
func TestCPUProfilesOfBytes(t *testing.T) {
	dir, x := t.TempDir(), newTensors(t, rand.New(rand.NewSource(rand.Int63())), 500)
	for _, about := range []string{"\xfe\x01", "\xff\x01"} {
		var said []string
		walk(t, decoderOf(t, auto(32), testLayers, selection.Profiles{Dir: dir}, about, &said), x, 300, 80)
		require.Contains(t, strings.Join(said, "\n"), "measured in 56 steps")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	require.Len(t, files, 2)
	for _, about := range []string{"\xfe\x01", "\xff\x01"} {
		again := decoderOf(t, auto(32), testLayers, selection.Profiles{Dir: dir}, about, new([]string))
		require.Contains(t, walk(t, again, x, 300, 1)[0], cpu.Sparse)
	}
}

func tokenSet(t *testing.T, d *Decoder) []int32 {
	set, err := d.TokenSet(0)
	require.NoError(t, err)
	return set
}

func TestCPUIntervalReusesSets(t *testing.T) {
	config := auto(32)
	config.Layers, config.Interval, config.Guard = []int{1, 3}, 3, 0
	x := newTensors(t, rand.New(rand.NewSource(rand.Int63())), 500)
	fresh := []cpu.Mode{cpu.Full, cpu.Select, cpu.Sparse, cpu.Select, cpu.Sparse, cpu.Sparse}
	reused := append(repeated(cpu.Full, 1), repeated(cpu.Sparse, 5)...)
	for name, prepare := range map[string]func(){
		"in order": func() {},
		"placed":   func() { x.args.Positions = address(x.positions) },
		"masked":   func() { x.mask[7], x.args.Mask = steps.MinusInfinity, address(x.mask) },
	} {
		t.Run(name, func(t *testing.T) {
			x.args.Positions, x.args.Mask = 0, 0
			prepare()
			s := decoderOf(t, config, testLayers, selection.Profiles{}, "", new([]string))
			require.Equal(t, fresh, walk(t, s, x, 300, 1)[0])
			chosen := slices.Clone(tokenSet(t, s))
			require.Len(t, chosen, 32)
			require.Equal(t, [][]cpu.Mode{reused, reused, fresh, reused}, walk(t, s, x, 301, 4))
			require.EqualValues(t, 3, s.Stats().ReusedSteps)
			p := 304
			require.Zero(t, testing.AllocsPerRun(20, func() {
				p++
				x.query[0] = int32(p)
				for layer := range int32(testLayers) {
					x.args.Layer = layer
					if s.Attend(&x.args) != nil {
						panic("refused")
					}
				}
			}))
			s.Reset()
			require.Equal(t, [][]cpu.Mode{fresh, reused, reused, fresh, reused}, walk(t, s, x, 300, 5))
			require.Equal(t, int32(304), tokenSet(t, s)[32], "the new token joins")
			s.Reset()
			require.Equal(t, fresh, walk(t, s, x, 305, 1)[0])
			require.Equal(t, [][]cpu.Mode{fresh, reused}, walk(t, s, x, 303, 2), "after a roll-back")
			require.Equal(t, fresh, walk(t, s, x, 306, 1)[0], "a token is missing")
			if name == "placed" { // the set's slots hold other tokens
				set := tokenSet(t, s)
				x.positions[set[9]], x.positions[set[10]] = x.positions[set[10]], x.positions[set[9]]
				require.Equal(t, fresh, walk(t, s, x, 307, 1)[0])
			}
		})
	}
}

// One token more, which is not the row's own: that one is in the set already, and counts once.
func TestCPUIntervalTakesNoTokenTwice(t *testing.T) {
	config := auto(32)
	config.Layers, config.Interval, config.Guard = []int{1, 3}, 3, 0
	x := newTensors(t, rand.New(rand.NewSource(rand.Int63())), 500)
	x.args.Mask, x.mask[50] = address(x.mask), steps.MinusInfinity
	s := decoderOf(t, config, testLayers, selection.Profiles{}, "", new([]string))
	first := walk(t, s, x, 300, 1)
	x.mask[50] = 0
	require.Equal(t, first, walk(t, s, x, 300, 1), "chosen afresh")
	requireAscending(t, tokenSet(t, s))
	require.Zero(t, s.Stats().ReusedSteps)
	walk(t, s, x, 301, 1)
	require.EqualValues(t, 1, s.Stats().ReusedSteps)
	requireAscending(t, tokenSet(t, s))
}

// What a caller is told of a set is what the layers attend to: where sets last, and where an ablation has one for all layers.
func TestCPUTokenSets(t *testing.T) {
	config := auto(32)
	config.Layers, config.Interval, config.Guard = []int{1, 3}, 3, 0
	x := newTensors(t, rand.New(rand.NewSource(rand.Int63())), 500)
	for i := range x.positions { // the newest token has the lowest slot
		x.positions[i] = int32(len(x.positions) - 1 - i)
	}
	x.args.Positions = address(x.positions)
	s := decoderOf(t, config, testLayers, selection.Profiles{}, "", new([]string))
	for p := 300; p < 303; p++ {
		walk(t, s, x, p, 1)
		set := tokenSet(t, s)
		require.Len(t, set, 32+p-300)
		requireAscending(t, set)
		require.EqualValues(t, 499-p, set[0])
	}
	s.engine.Ablate(&selection.Ablation{Choice: []int{0, 2, 4}})
	walk(t, s, x, 303, 1)
	set := tokenSet(t, s)
	require.Len(t, set, 32)
	requireAscending(t, set)
	require.EqualValues(t, 499-303, set[0])
}

func requireAscending(t *testing.T, set []int32) {
	t.Helper()
	for i := range set[1:] {
		require.Less(t, set[i], set[i+1], "%v", set)
	}
}

// With the kernels: measured steps give what full attention gives, sequences share what they measure, and
// the choice is used.
func TestCPUMeasureTogether(t *testing.T) {
	engine, err := contexts.NewEngine(auto(32))
	require.NoError(t, err)
	full, err := contexts.NewEngine(auto(1 << 20))
	require.NoError(t, err)
	workers := oncpu.NewWorkers(2)
	defer workers.Free()
	const sequences, first = 3, 300
	var wait sync.WaitGroup
	for k := range sequences {
		x := newTensors(t, rand.New(rand.NewSource(int64(k))), 500)
		if k == 1 { // a bias by distance
			for i := range x.mask {
				x.mask[i] = bias(i)
			}
			x.args.Mask, x.args.Slopes = address(x.mask), address(x.slopes)
		}
		wait.Add(1)
		go func() {
			defer wait.Done()
			s, err := onCPU(engine, testLayers, workers)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Free()
			exact, err := onCPU(full, testLayers, workers)
			if err != nil {
				t.Error(err)
				return
			}
			defer exact.Free()
			for p := int32(first); p < 400; p++ {
				for layer := range int32(testLayers) {
					x.args.Layer, x.query[0] = layer, p
					if err := s.Attend(&x.args); err != nil {
						t.Error(err)
					}
					got := slices.Clone(x.output)
					if s.cpu().Call.Mode == cpu.Sparse {
						continue
					}
					if err := exact.Attend(&x.args); err != nil {
						t.Error(err)
					}
					if !slices.Equal(got, x.output) {
						t.Errorf("position %d, layer %d: not what full attention gives", p, layer)
						return
					}
				}
			}
		}()
	}
	for range 50 {
		engine.Report().JSON()
	}
	wait.Wait()
	total := engine.Total()
	require.GreaterOrEqual(t, total.MeasuredSteps, uint64(selection.MeasuredSteps(testLayers)))
	require.Less(t, total.MeasuredSteps, uint64(selection.MeasuredSteps(testLayers)+2*sequences))
	require.NotZero(t, total.SparseCalls)
	require.NotZero(t, total.Audits)
	require.Equal(t, selection.SourceMeasured, total.LayersFrom)
	require.Len(t, engine.Report().Models, 1)
	require.Equal(t, "cpu", engine.Report().Engine)
}
