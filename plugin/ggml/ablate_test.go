package ggml

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
)

func TestAblationIsDenseButForOneLayer(t *testing.T) {
	for name, config := range map[string]settings.Config{"auto": auto(16), "given": func() settings.Config {
		c := auto(16)
		c.Layers, c.Interval = []int{3, 8}, 4
		return c
	}()} {
		t.Run(name, func(t *testing.T) {
			h := newAutoHost(t, config, selection.Profiles{}, 12)
			h.decode(40)
			before := h.session.Stats()
			want := repeated(cpu.Full, 12)
			want[2], want[9] = cpu.Select, cpu.Sparse
			h.session.layers.Engine.Ablate(&selection.Ablation{Select: 2, Sparse: 9})
			for _, m := range h.decode(5) {
				require.Equal(t, want, m)
			}
			want[9] = cpu.Full
			h.session.layers.Engine.Ablate(&selection.Ablation{Select: 2, Sparse: -1})
			for _, m := range h.decode(5) {
				require.Equal(t, want, m)
			}
			s := h.session.Stats()
			require.EqualValues(t, 10, s.Ablations)
			require.Equal(t, before.MeasuredSteps, s.MeasuredSteps)
			require.Equal(t, before.NoSetCalls, s.NoSetCalls)
			require.LessOrEqual(t, s.Audits, before.Audits+1, "one was under way")
			h.session.layers.Engine.Ablate(nil)
			h.decode(200)
			require.EqualValues(t, 10, h.session.Stats().Ablations)
			if name == "auto" {
				require.EqualValues(t, 2*60, h.session.Stats().MeasuredSteps)
				require.Equal(t, twoNine(), h.decode(1)[0])
			} else {
				require.NotZero(t, h.session.Stats().ReusedSteps)
			}
		})
	}
}

// A choice that ablations were for stands, though the losses speak against it; and goes when more is lost.
func TestCalibratedProfileIsTrusted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "profile.json")
	newAutoHost(t, auto(16), selection.Profiles{Path: path}, 12).decode(200)
	edit(t, path, func(p *selection.Profile) {
		p.Choice = []int{2, 6}
		p.Calibrated = &selection.Calibration{Positions: 24, Tokens: 200}
		for j := 1; j < 12; j++ {
			p.Calibrated.Nats = append(p.Calibrated.Nats, make([]float32, j))
			p.Calibrated.Error = append(p.Calibrated.Error, make([]float32, j))
		}
	})
	h := newAutoHost(t, auto(16), selection.Profiles{Path: path}, 12)
	h.decode(400)
	s := h.session.Stats()
	require.Zero(t, s.Alarms, s.Events)
	require.NotZero(t, s.Audits)
	require.Zero(t, s.MeasuredSteps)
	require.Equal(t, []int{2, 6}, s.SelectionLayers)
	require.NotNil(t, h.session.layers.Engine.Report().Models[0].Calibrated)

	h = newAutoHost(t, auto(16), selection.Profiles{Path: path}, 12)
	h.loss = func(i, j int) float64 { return min(1, reasonerLoss(i, j)+0.3) }
	h.decode(400)
	s = h.session.Stats()
	require.EqualValues(t, 1, s.Alarms)
	require.Nil(t, load(t, path).Calibrated, "what was measured since is not by ablation")
}
