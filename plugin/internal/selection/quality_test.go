package selection

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/settings"
)

// A profile that was measured without a target, and trials that others made, are what a host with that target finds and takes.
func TestProfileForQuality(t *testing.T) {
	m, _ := measured(t, targeted(0), ProfileFile{})
	text, err := json.Marshal(m.Learned())
	require.NoError(t, err)
	aim := func(text []byte, quality float64) *Profile {
		out, err := ForQuality(text, quality)
		require.NoError(t, err)
		p, err := parse(out)
		require.NoError(t, err)
		return p
	}
	p := aim(text, 0.01)
	assert.Empty(t, p.Choice)
	assert.Equal(t, leastMet, p.Tried.Least)
	assert.Len(t, p.Tried.Candidates, MostTried)
	cost := 0
	for _, c := range p.Tried.Candidates {
		assert.Zero(t, c.Trials)
		assert.GreaterOrEqual(t, c.cost(12, 300), cost)
		cost = c.cost(12, 300)
	}

	w := newWorld(t, map[int]float64{1: 0.8, 2: 0.004, 3: 0.003, 4: 0.003, 5: 0.002, 6: 0.001}, 0.2)
	for i := range p.Tried.Candidates {
		for range leastMet {
			p.Tried.Candidates[i].add(w.step(&p.Tried.Candidates[i]))
		}
	}
	tried, err := json.Marshal(p)
	require.NoError(t, err)
	assert.Empty(t, aim(tried, 0.0001).Choice)
	p = aim(tried, 0.01)
	require.Len(t, p.Choice, 2)

	folder := Profiles{Dir: t.TempDir()}
	file := folder.File(p.Fingerprint)
	file.Save(p, func(_ settings.LogLevel, text string) { t.Log(text) })
	config := targeted(0.01)
	about := Identity{Layers: 12, Heads: 2, Weights: "w"}
	found, err := NewModel(config, 12, about, folder.File(Fingerprint(about, SettingsOf(&config, 12))), func(_ settings.LogLevel, text string) { t.Log(text) })
	require.NoError(t, err)
	assert.NoError(t, found.Promised())
	assert.Equal(t, p.Choice, found.Roles.Selections())
}

func TestProfileForQualityRefuses(t *testing.T) {
	m, _ := measured(t, targeted(0), ProfileFile{})
	right, err := json.Marshal(m.Learned())
	require.NoError(t, err)
	for _, quality := range []float64{0, -1, 10.5, math.NaN(), math.Inf(1)} {
		_, err := ForQuality(right, quality)
		assert.ErrorContains(t, err, "quality = ")
	}
	for _, c := range []struct{ from, to, says string }{
		{string(right), "[1]", "it is no profile"},
		{string(right), "", "it is no profile"},
		{string(right), "{}", "its format is 0, not 1"},
		{`"layers":12`, `"layers":13`, "loss is not for 13 layers"},
		{`"heads":2`, `"heads":4`, "its fingerprint is"},
		{`"budget":128`, `"budget":256`, "its fingerprint is"},
		{`"steps":60`, `"steps":0`, "nothing was measured"},
		{`"choice":[`, `"choice":[7,`, "choice [7 2 7] is not ascending"},
	} {
		text := strings.Replace(string(right), c.from, c.to, 1)
		_, err := ForQuality([]byte(text), 0.01)
		assert.ErrorContains(t, err, "profile: "+c.says, c.to)
	}
}
