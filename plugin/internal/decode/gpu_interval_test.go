//go:build cuda

package decode

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/standin"
)

// does tells how a step's selection layers attended: "choose", or "resume", where a token joins the sets once, before all layers.
func (p *calibrated) does() string {
	words := p.step()
	selects := slices.ContainsFunc(words, func(w string) bool { return strings.HasSuffix(w, ":select") })
	require.Equal(p.t, !selects, strings.HasPrefix(words[0], "a:join"), "%v", words)
	require.Equal(p.t, !selects, strings.Contains(strings.Join(words, " "), "join"), "%v", words)
	if selects {
		return "choose"
	}
	return "resume"
}

// Sets serve as many steps as they may, unless the host knows better: the device checks the rest (tests/gpu/test_interval.py).
func TestGPUInterval(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, func(c *settings.Config) { c.Layers, c.Interval = []int{2, 9}, 3 })
	const eager, captured = uintptr(0xabc0), uintptr(0xc000)
	for i, c := range []struct {
		before func()
		want   string
	}{
		{nil, "choose"}, {nil, "resume"}, {nil, "resume"}, {nil, "choose"}, {nil, "resume"},
		{func() { p.Reset() }, "choose"}, {nil, "resume"},
		{func() { p.a.Rows = 2 }, "choose"}, {nil, "resume"}, // other rows
		{func() { p.a.Stream = captured }, "choose"}, {nil, "choose"}, // it may be replayed at any time
		{func() { p.a.Stream = eager }, "resume"}, {nil, "resume"}, {nil, "choose"},
		{func() { // a step that ends early
			for layer := range calLayers - 1 {
				p.a.Layer = int32(layer)
				require.NoError(t, p.Attend(&p.a))
			}
		}, "choose"},
	} {
		if c.before != nil {
			c.before()
		}
		require.Equal(t, c.want, p.does(), "step %d", i)
	}

	// A layer that sees other tokens than the step ends the going on: the layers behind it choose again, or have no set.
	require.Equal(t, "resume", p.does())
	p.a.Layer = 0
	require.NoError(t, p.Attend(&p.a))
	other := p.a
	other.Layer, other.Lengths = 3, p.a.Lengths+4
	require.NoError(t, p.Attend(&other))
	require.EqualValues(t, 1, p.cuda().Step.Did.Without)
	other.Layer = 9
	require.NoError(t, p.Attend(&other))
	require.EqualValues(t, 1, p.cuda().Step.Did.Chose)
	require.Equal(t, "choose", p.does())

	p.a.Key.Data += 1 << 20
	require.Zero(t, testing.AllocsPerRun(20, func() {
		for layer := range calLayers {
			p.a.Layer = int32(layer)
			if err := p.Attend(&p.a); err != nil {
				t.Fatal(err)
			}
		}
	}))
}

// Where layers are measured, the guard audits sets that last, the selection layers' too, and gives the interval up.
func TestGPUIntervalGuard(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, func(c *settings.Config) { c.Guard, c.Interval = 4, 3 })
	copy(p.lengths, []int32{40, 2000, 200})
	p.until(asTheReasoner)
	require.Equal(t, []int{2, 9}, p.Stats().SelectionLayers)
	shares := onDevice[float32](p.cal.Shares, 2*calHeads)
	resumed, own := 0, 0
	for range 2000 {
		for h := range calHeads { // what the next audit will find: half of the attention is lost
			shares[h], shares[calHeads+h] = 0.4, 0.9
		}
		words := strings.Join(p.step(), " ")
		if strings.HasPrefix(words, "a:join") {
			resumed++
			if strings.Contains(words, "c:select+probe") || strings.Contains(words, "j:select+probe") {
				own++
			}
		}
		if p.cal.Interval == 1 {
			break
		}
	}
	require.Positive(t, own, "audits of selection layers' own last sets")
	require.Greater(t, resumed, own)
	events := p.Stats().Events
	require.Equal(t, "interval", events[len(events)-1].What)
	for range 5 {
		require.NotContains(t, strings.Join(p.step(), " "), "join")
	}
}

// The memory of sets that last is each selection layer's own, and the caller's work memory has room for it.
func TestGPUIntervalMemory(t *testing.T) {
	if !standsIn(t) {
		return
	}
	size := func(interval int) uint64 {
		e := standin.Engine(t, func(c *settings.Config) { c.Interval = interval })
		n, err := WorkSize(e, gpuLayers, gpuShape)
		require.NoError(t, err)
		params := gpuShape
		params.Work, params.WorkSize = 0x1000000, n-1
		_, err = NewDecoder(e, gpuLayers, nil, params)
		require.ErrorContains(t, err, "bytes needed")
		return n
	}
	memory := func(groups, tokens int) int { // sets and positions of eight rows, each at a multiple of 256 bytes
		return 2 * ((groups*8*tokens*4 + 255) / 256 * 256)
	}
	require.EqualValues(t, 256+memory(2, 2051)-memory(1, 2048), size(4)-size(1), "a second group, three more tokens in each set, and a word")
	_, err := NewDecoder(standin.Engine(t, func(c *settings.Config) { c.Interval = 4 }), gpuLayers, nil, backend.Params{
		MaxRows: 1, Capacity: 2048, Heads: 8, KVHeads: 8, KeyDim: 64, ValueDim: 64, KVType: 1,
	})
	require.NoError(t, err, "nothing to choose")
}
