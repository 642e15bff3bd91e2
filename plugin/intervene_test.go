package plugin

import (
	"math/rand"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/cpu"
)

func TestInterventionIsDenseButForOneLayer(t *testing.T) {
	for name, config := range map[string]Config{"auto": auto(16), "given": func() Config {
		c := auto(16)
		c.Layers, c.Interval = []int{3, 8}, 4
		return c
	}()} {
		t.Run(name, func(t *testing.T) {
			h := newAutoHost(t, config, Profiles{}, 12)
			h.decode(40)
			before := h.session.Stats()
			want := repeated(cpu.Full, 12)
			want[2], want[9] = cpu.Select, cpu.List
			h.session.engine.Ablate(&Ablation{Select: 2, Sparse: 9})
			for _, m := range h.decode(5) {
				require.Equal(t, want, m)
			}
			want[9] = cpu.Full
			h.session.engine.Ablate(&Ablation{Select: 2, Sparse: -1})
			for _, m := range h.decode(5) {
				require.Equal(t, want, m)
			}
			s := h.session.Stats()
			require.EqualValues(t, 10, s.Interventions)
			require.Equal(t, before.MeasuredSteps, s.MeasuredSteps)
			require.Equal(t, before.NoSetCalls, s.NoSetCalls)
			require.LessOrEqual(t, s.Audits, before.Audits+1, "one was under way")
			h.session.engine.Ablate(nil)
			h.decode(200)
			require.EqualValues(t, 10, h.session.Stats().Interventions)
			if name == "auto" {
				require.EqualValues(t, 2*60, h.session.Stats().MeasuredSteps)
				require.Equal(t, twoNine(), h.decode(1)[0])
			} else {
				require.NotZero(t, h.session.Stats().ReusedSteps)
			}
		})
	}
}

// A choice that interventions were for stands, though the losses speak against it; and goes when more is lost.
func TestCalibratedProfileIsTrusted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "profile.json")
	newAutoHost(t, auto(16), Profiles{Path: path}, 12).decode(200)
	edit(t, path, func(p *Profile) {
		p.Choice = []int{2, 6}
		p.Calibrated = &Calibration{Positions: 24, Tokens: 200}
		for j := 1; j < 12; j++ {
			p.Calibrated.Nats = append(p.Calibrated.Nats, make([]float32, j))
			p.Calibrated.Error = append(p.Calibrated.Error, make([]float32, j))
		}
	})
	h := newAutoHost(t, auto(16), Profiles{Path: path}, 12)
	h.decode(400)
	s := h.session.Stats()
	require.Zero(t, s.Alarms, s.Events)
	require.NotZero(t, s.Audits)
	require.Zero(t, s.MeasuredSteps)
	require.Equal(t, []int{2, 6}, s.SelectionLayers)
	require.NotNil(t, h.session.engine.Report().Models[0].Calibrated)

	h = newAutoHost(t, auto(16), Profiles{Path: path}, 12)
	h.loss = func(i, j int) float64 { return min(1, reasonerLoss(i, j)+0.3) }
	h.decode(400)
	s = h.session.Stats()
	require.EqualValues(t, 1, s.Alarms)
	require.Nil(t, load(t, path).Calibrated, "what was measured since is not by intervention")
}

func sequenceOf(t *testing.T, config Config, layers int, profiles Profiles, about string, said *[]string) *Decoder {
	engine, err := NewEngine(config)
	require.NoError(t, err)
	engine.Keep(profiles)
	engine.Serve(about, func(_ LogLevel, text string) {
		engine.Report() // a logger may call the library
		*said = append(*said, text)
	})
	workers := NewWorkers(1)
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
			m = append(m, s.cpu().call.Mode)
		}
		out = append(out, m)
	}
	return out
}

func TestSequencesKeepProfiles(t *testing.T) {
	dir, x := t.TempDir(), newTensors(t, rand.New(rand.NewSource(rand.Int63())), 500)
	var said []string
	s := sequenceOf(t, auto(32), testLayers, Profiles{Dir: dir}, "m", &said)
	walk(t, s, x, 300, 80)
	require.Equal(t, SourceMeasured, s.stats().LayersFrom)
	require.Contains(t, strings.Join(said, "\n"), "measured in 56 steps")
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)

	said = nil
	again := sequenceOf(t, auto(32), testLayers, Profiles{Dir: dir}, "m", &said)
	require.Contains(t, strings.Join(said, "\n"), files[0])
	require.Contains(t, walk(t, again, x, 300, 1)[0], cpu.List)
	for about, profiles := range map[string]Profiles{"other": {Dir: dir}, "": {Dir: dir}, "n": {Path: files[0]}} {
		said = nil
		other := sequenceOf(t, auto(32), testLayers, profiles, about, &said)
		require.NotContains(t, walk(t, other, x, 300, 1)[0], cpu.List, about)
		require.Equal(t, about == "n", strings.Contains(strings.Join(said, "\n"), "is not used"), about)
	}
}

func tokenSet(t *testing.T, d *Decoder) []int32 {
	set, err := d.TokenSet(0)
	require.NoError(t, err)
	return set
}

func TestSequenceIntervalReusesSets(t *testing.T) {
	config := auto(32)
	config.Layers, config.Interval, config.Guard = []int{1, 3}, 3, 0
	x := newTensors(t, rand.New(rand.NewSource(rand.Int63())), 500)
	fresh := []cpu.Mode{cpu.Full, cpu.Select, cpu.List, cpu.Select, cpu.List, cpu.List}
	reused := append(repeated(cpu.Full, 1), repeated(cpu.List, 5)...)
	for name, prepare := range map[string]func(){
		"in order": func() {},
		"placed":   func() { x.args.Positions = address(x.positions) },
		"masked":   func() { x.mask[7], x.args.Mask = minusInfinity, address(x.mask) },
	} {
		t.Run(name, func(t *testing.T) {
			x.args.Positions, x.args.Mask = 0, 0
			prepare()
			s := sequenceOf(t, config, testLayers, Profiles{}, "", new([]string))
			require.Equal(t, fresh, walk(t, s, x, 300, 1)[0])
			chosen := slices.Clone(tokenSet(t, s))
			require.Len(t, chosen, 32)
			require.Equal(t, [][]cpu.Mode{reused, reused, fresh, reused}, walk(t, s, x, 301, 4))
			require.EqualValues(t, 3, s.stats().ReusedSteps)
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
