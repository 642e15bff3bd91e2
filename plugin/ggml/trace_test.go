package ggml

import (
	"encoding/json"
	"math/rand"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// numbersOf reads what ranges wrote.
func numbersOf(t *testing.T, text string) (out []int32) {
	for _, part := range strings.Fields(text) {
		from, to, more := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		require.NoError(t, err)
		b := a
		if more {
			b, err = strconv.Atoi(to)
			require.NoError(t, err)
		}
		for x := a; x <= b; x++ {
			out = append(out, int32(x))
		}
	}
	return out
}

func TestRangesAreRead(t *testing.T) {
	require.Equal(t, "", calibrate.Ranges(nil))
	require.Equal(t, "0-3 17 40-41", calibrate.Ranges([]int32{0, 1, 2, 3, 17, 40, 41}))
	rng := rand.New(rand.NewSource(rand.Int63()))
	for range 100 {
		var set []int32
		for x := range int32(200) {
			if rng.Intn(3) == 0 {
				set = append(set, x)
			}
		}
		require.Equal(t, set, numbersOf(t, calibrate.Ranges(set)))
	}
}

func TestTraceKeepsWhatWasAttended(t *testing.T) {
	c := auto(16)
	c.Trace, c.Guard = 500, 2
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	rng := rand.New(rand.NewSource(rand.Int63()))
	var want []string
	for range 200 { // the kernels choose at random
		nodes := h.plan(token{0, h.next, 0, int32(h.next)})
		h.next++
		h.run(nodes)
		text := ""
		if r := rowsOf(&nodes[9])[0]; r.SetLen > 0 && h.cal().Kind != calibrate.StepMeasure {
			set := unsafe.Slice((*int32)(r.Set), r.SetLen)
			for i, x := range rng.Perm(h.next)[:len(set)] {
				set[i] = int32(x)
			}
			slices.Sort(set)
			text = calibrate.Ranges(set)
		}
		want = append(want, text)
	}
	h.plan(token{0, h.next, 0, int32(h.next)})
	trace := h.session.Stats().Trace
	require.EqualValues(t, 1, trace.Every)
	require.Len(t, trace.Steps, 200)
	seen := map[string]int{}
	for i, s := range trace.Steps {
		require.Equal(t, want[i], s.Set)
		require.EqualValues(t, i+1, s.Step)
		require.Equal(t, i+1, s.Tokens)
		require.Equal(t, s.What == "sparse", s.Layer == 9)
		seen[s.What]++
	}
	require.Equal(t, 2*60, seen["measured"])
	require.Equal(t, 200-2*60-31, seen["sparse"])
	require.EqualValues(t, h.session.Stats().Audits, len(trace.Audits))
}

func TestTraceIsBounded(t *testing.T) {
	c := auto(16)
	c.Trace, c.Layers, c.Guard = 20, []int{2, 9}, 0
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	h.decode(400)
	h.session.Close()
	trace := h.session.layers.Engine.Report().Contexts[0].Trace
	require.LessOrEqual(t, len(trace.Steps), 20)
	require.GreaterOrEqual(t, len(trace.Steps), 10)
	for i, s := range trace.Steps {
		require.EqualValues(t, 1+uint64(i)*trace.Every, s.Step, "evenly")
	}
	require.Greater(t, trace.Steps[len(trace.Steps)-1].Step, uint64(400)-trace.Every-1)

	p := h.cal()
	p.Model.Config.Trace = settings.MaxTrace
	for range 4 * calibrate.MostTracedAudits {
		p.Mu.Lock()
		p.RecordAudit(stats.TraceAudit{})
		p.Mu.Unlock()
	}
	require.LessOrEqual(t, len(p.Traced.Audits.Of), calibrate.MostTracedAudits)
}

// Contexts come and go: the statistics do not grow with them.
func TestOldTracesGo(t *testing.T) {
	c := auto(16)
	c.Trace, c.Layers = 20, []int{2, 9}
	engine, err := contexts.NewEngine(c)
	require.NoError(t, err)
	for range contexts.MaxTraces + 3 {
		h := newAutoHostOf(t, engine, 12)
		h.decode(20)
		h.session.Close()
	}
	kept := 0
	for _, s := range engine.Report().Contexts {
		if s.Trace != nil && len(s.Trace.Steps) > 0 {
			kept++
		}
	}
	require.LessOrEqual(t, kept, contexts.MaxTraces)
	require.GreaterOrEqual(t, kept, contexts.MaxTraces/2)
}

func TestNoTraceUnlessAsked(t *testing.T) {
	c := auto(16)
	c.Layers = []int{2, 9}
	h := newAutoHost(t, c, selection.Profiles{}, 12)
	h.decode(40)
	require.Nil(t, h.session.Stats().Trace)
	require.Zero(t, h.cal().Traced.Steps.Turn)
	require.NotContains(t, string(h.session.layers.Engine.Report().JSON()), `"every"`)
	text, err := json.Marshal(h.session.Stats())
	require.NoError(t, err)
	require.NotContains(t, string(text), "trace")
}

// What the kernels never wrote is no token set.
func TestPlaceTakesVisibleSlotsOnly(t *testing.T) {
	visible := []int32{3, 5, 9}
	row := &cpu.Row{Slots: unsafe.Pointer(&visible[0]), Visible: 3}
	var p oncpu.Probes
	at := make([]int32, 2)
	place := func(set ...int32) bool { return p.Place(at, unsafe.Pointer(&set[0]), row) }
	require.True(t, place(9, 3))
	require.Equal(t, []int32{2, 0}, at)
	for _, slot := range []int32{-1, 4, 10} {
		require.False(t, place(3, slot), slot)
	}
	require.Equal(t, []int32{0, 0}, at)
}
