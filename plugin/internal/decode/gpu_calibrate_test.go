//go:build cuda

package decode

import (
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/backend/oncuda"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/standin"
)

// The kernels of the stand-in driver do nothing, and its device memory is the heap: a test writes what they would have.
const calLayers, calHeads = 12, 8

type calibrated struct {
	*Decoder
	cal     *oncuda.Probes
	t       *testing.T
	lengths []int32
	a       backend.Attention
	log     string
	at      int // of the log, read so far
}

func onDevice[T any](address uint64, n int) []T {
	return unsafe.Slice(*(**T)(unsafe.Pointer(&address)), n)
}

func newCalibrated(t *testing.T, change func(*settings.Config)) *calibrated {
	config := settings.DefaultConfig()
	config.Budget, config.Layers = 128, nil
	if change != nil {
		change(&config)
	}
	e, err := contexts.NewEngine(config)
	require.NoError(t, err)
	return join(t, e)
}

func join(t *testing.T, e *contexts.Engine) *calibrated {
	b, err := NewDecoder(e, calLayers, nil, backend.Params{MaxRows: 3, Capacity: 4096, Heads: calHeads, KVHeads: 2, KeyDim: 64, ValueDim: 64, KVType: 1})
	require.NoError(t, err)
	memory, err := b.cuda().Device.Zeroed(3 * 4)
	require.NoError(t, err)
	p := &calibrated{Decoder: b, cal: &b.cuda().Cal, t: t, lengths: onDevice[int32](memory.Address(), 3), log: os.Getenv("LIM_STANDIN_LOG")}
	row, store := int64(64*2), backend.KVView{TokenStride: 2 * 64 * 2, HeadStride: 64 * 2, PageStride: 4096 * 2 * 64 * 2}
	p.a = backend.Attention{
		Rows: 3, Query: backend.RowView{Data: 0x10000, RowStride: calHeads * row, HeadStride: row, Type: 1},
		Output: backend.RowView{Data: 0x40000, RowStride: calHeads * row, HeadStride: row, Type: 1},
		Key:    store, Value: store, Lengths: uintptr(memory.Address()), Stream: 0xabc0,
	}
	p.a.Key.Data, p.a.Value.Data = 0x100000, 0x300000
	return p
}

// step decodes one step and returns what was asked of the driver: launches by kind, copies and events; one word
// for each layer that shows anything but full attention. What must not be on the decode path fails the test.
func (p *calibrated) step() []string {
	p.read()
	var out []string
	for layer := range calLayers {
		p.a.Layer = int32(layer)
		require.NoError(p.t, p.Attend(&p.a))
		var what []string
		for _, line := range p.read() {
			words := strings.Fields(line)
			require.False(p.t, strings.HasPrefix(line, "!"), "not on the decode path: %s", line)
			switch name := words[0]; name {
			case "cuLaunchKernel", "cuLaunchKernelEx":
				require.Contains(p.t, line, "stream "+p.stream())
				switch {
				case strings.HasSuffix(words[1], "_indexed"):
					what = append(what, "list")
				case strings.HasPrefix(words[1], "lim_select"):
					what = append(what, "select")
				case words[1] == "lim_probe":
					what = append(what, "probe")
				case words[1] == "lim_join":
					what = append(what, "join")
				}
			case "cuMemcpyDtoHAsync_v2":
				require.Contains(p.t, line, "stream "+p.stream())
				what = append(what, "fetch")
			case "cuMemsetD8Async":
				what = append(what, "clear")
			case "cuCtxGetCurrent", "cuCtxSetCurrent", "cuPointerGetAttribute", "cuEventRecord", "cuEventQuery", "cuStreamIsCapturing":
			default:
				p.t.Fatalf("not on the decode path: %s", line)
			}
		}
		if len(what) > 0 {
			out = append(out, string(rune('a'+layer))+":"+strings.Join(what, "+"))
		}
	}
	return out
}

func (p *calibrated) stream() string {
	if p.a.Stream == 0xc000 {
		return "0xc000 "
	}
	return "0xabc0"
}

// read is what is new in the log, but for the entry points that are looked up once.
func (p *calibrated) read() []string {
	text, err := os.ReadFile(p.log)
	require.NoError(p.t, err)
	var out []string
	for _, line := range strings.Split(strings.TrimSpace(string(text[p.at:])), "\n") {
		if line != "" && !strings.HasPrefix(line, "!cuModuleGetFunction") && !strings.HasPrefix(line, "!cuFuncSetAttribute") {
			out = append(out, line)
		}
	}
	p.at = len(text)
	return out
}

// measure writes the sums of n steps in which layer j loses loss(i, j) on the set of layer i, in its worst head.
func (p *calibrated) measure(n int, loss func(i, j int) float64) {
	pairs := calLayers * (calLayers - 1) / 2
	counts := onDevice[int32](p.cal.Sums, pairs)
	all := onDevice[float32](p.cal.Sums+uint64(4*pairs), 2*pairs*calHeads)
	for j := range calLayers {
		for i := range j {
			at := selection.Pair(i, j)
			counts[at] = int32(n)
			for h := range calHeads {
				x := float32(0)
				if h == at%calHeads {
					x = float32(loss(i, j))
				}
				all[at*calHeads+h], all[(pairs+at)*calHeads+h] = float32(n)*x, float32(n)*x*x
			}
		}
	}
}

// asTheReasoner is what docs/auto.md has of the test model.
func asTheReasoner(i, j int) float64 {
	switch {
	case j == 9:
		return 0.75
	case j == 10 && i < 9:
		return 0.62
	case j == 10:
		return 0.35
	}
	return 0.12
}

// until measures: it runs dense steps up to the last measured one, whose sums it writes before they are fetched.
func (p *calibrated) until(loss func(i, j int) float64) (measured int) {
	for range 500 {
		if p.cal.Measuring && !p.cal.Clear && p.cal.Begun+1 == p.cal.Wanted {
			p.measure(16, loss)
		}
		before := p.cal.Measured
		p.step()
		measured += int(p.cal.Measured - before)
		if p.cal.Fetching {
			p.step()
			return measured
		}
	}
	p.t.Fatal("nothing was measured")
	return 0
}

func standsIn(t *testing.T, env ...string) bool {
	t.Helper()
	if !standin.Child() {
		standin.Again(t, env...)
		return false
	}
	return true
}

// From knowing nothing to the choice that the CPU makes of the same losses, and nothing waits.
func TestGPUCalibrationFindsItsLayers(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, nil)
	copy(p.lengths, []int32{40, 1000, 200})
	require.Equal(t, []string{"a:fetch"}, p.step(), "dense; the lengths are looked at")
	require.Equal(t, "unmeasured", p.Stats().LayersFrom)
	require.EqualValues(t, 1, p.cal.Dense)

	first := p.step()
	require.Equal(t, "a:clear+select+probe", first[0])
	require.Len(t, first, 6, "half of the layers")
	for _, word := range first[1:] {
		require.Contains(t, word, ":select+probe")
	}
	require.Equal(t, 1, p.cal.Target.Row, "the longest")
	require.Equal(t, 1000/selection.ProbeShare, p.cal.Target.Budget)
	met := map[[2]int]int{}
	for range selection.MeasuredSteps(calLayers) - 2 {
		var ranks []int
		for _, word := range p.step() {
			if strings.Contains(word, ":select+probe") {
				ranks = append(ranks, int(word[0]-'a'))
			}
		}
		for i := range ranks {
			for j := range i {
				met[[2]int{ranks[j], ranks[i]}]++
			}
		}
	}
	require.Len(t, met, calLayers*(calLayers-1)/2, "every pair of layers")
	p.measure(16, asTheReasoner)
	last := p.step()
	require.Contains(t, last[len(last)-1], "l:", "the sums are fetched behind the last layer")
	require.Contains(t, last[len(last)-1], "fetch")
	require.True(t, p.cal.Fetching)

	found := selection.NewLosses(calLayers)
	for j := range calLayers {
		for i := range j {
			found.Square[selection.Pair(i, j)] = float32(asTheReasoner(i, j) * asTheReasoner(i, j))
		}
	}
	require.Equal(t, []string{"c:select", "d:list", "e:list", "f:list", "g:list", "h:list", "i:list", "j:select", "k:list", "l:list"}, p.step())
	s := p.Stats()
	require.Equal(t, found.Choose(p.engine.Settings.SelectionsFor(calLayers)), s.SelectionLayers)
	require.Equal(t, []int{2, 9}, s.SelectionLayers)
	require.Equal(t, "measured", s.LayersFrom)
	require.EqualValues(t, selection.MeasuredSteps(calLayers), p.cal.Measured)
	require.Len(t, s.Events, 1)
	require.Equal(t, "measured", s.Events[0].What)
	require.InDelta(t, 0.35, s.Events[0].Loss, 1e-3)
	unused, err := onCPU(p.engine, calLayers, nil)
	require.NoError(t, err)
	defer unused.Free()
	report := p.engine.Report()
	require.Equal(t, "cuda", report.Engine)
	require.Len(t, report.Models, 1)
	require.InDelta(t, 0.62, report.Models[0].Loss[9][3], 1e-3)
}

// Results that are late: steps go on, dense, until they are there.
func TestGPUCalibrationDoesNotWait(t *testing.T) {
	if !standsIn(t, "LIM_STANDIN_PENDING=25") {
		return
	}
	p := newCalibrated(t, nil)
	copy(p.lengths, []int32{40, 1000, 200})
	for range 25 {
		p.step()
		require.Zero(t, p.cal.Measured, "the lengths are not known")
	}
	p.step()
	require.EqualValues(t, 0, p.cal.Measured)
	p.step()
	require.EqualValues(t, 1, p.cal.Measured)
}

// Rows come and go: what the sums say counts, not how many steps were run.
func TestGPUCalibrationMeasuresOn(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, nil)
	copy(p.lengths, []int32{40, 1000, 200})
	require.Equal(t, selection.MeasuredSteps(calLayers), p.until(func(i, j int) float64 { return 0 }))
	require.Equal(t, "measured", p.Stats().LayersFrom)

	p = newCalibrated(t, nil)
	copy(p.lengths, []int32{40, 1000, 200})
	for !p.cal.Fetching { // the device added up nothing
		p.step()
	}
	require.Equal(t, selection.MeasuredSteps(calLayers), p.cal.Begun)
	p.step()
	require.True(t, p.cal.Measuring)
	require.Equal(t, 2*selection.MeasuredSteps(calLayers), p.cal.Wanted)
	p.lengths[1] = 100 // too short by now: another row is measured
	p.lengths[2] = 1100
	for range oncuda.LookSteps + 2 {
		p.step()
	}
	require.Equal(t, 2, p.cal.Target.Row)
	p.a.Rows = 2 // and now there is none
	require.NotContains(t, strings.Join(p.step(), " "), "probe")
	p.a.Rows = 3
	require.Equal(t, "unmeasured", p.Stats().LayersFrom)
	p.until(asTheReasoner)
	require.Equal(t, []int{2, 9}, p.Stats().SelectionLayers)
}

// The guard audits sparse layers, one at a time, and alarms if one of them loses what was not to be expected.
func TestGPUCalibrationGuards(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, func(c *settings.Config) { c.Guard = 4 })
	copy(p.lengths, []int32{40, 2000, 200})
	wrong := func(i, j int) float64 { // layers 2 and 6, it says
		if j == 6 {
			return 0.9
		}
		return 0.1
	}
	p.until(wrong)
	require.Equal(t, []int{2, 6}, p.Stats().SelectionLayers)
	before := p.cal.Revision

	shares := onDevice[float32](p.cal.Shares, 2*calHeads)
	audits := map[byte]int{}
	for range 400 {
		for h := range calHeads { // what the next audit will find: layer 9 loses
			shares[h], shares[calHeads+h] = 0.5, 0.55
		}
		if guardNext(p.cal) == 9 {
			shares[3], shares[calHeads+3] = 0.1, 0.9
		}
		words := p.step()
		if p.cal.Model.Again {
			break
		}
		for _, word := range words {
			if strings.Contains(word, "probe") {
				require.Equal(t, "select+probe+fetch", word[2:])
				audits[word[0]]++
			}
		}
	}
	require.True(t, p.cal.Model.Again)
	require.NotContains(t, audits, byte('c'), "a layer that chooses")
	require.NotContains(t, audits, byte('g'))
	require.GreaterOrEqual(t, audits['j'], selection.LeastAudits)
	s := p.Stats()
	require.EqualValues(t, 1, s.Alarms)
	require.Equal(t, "drift", s.Events[len(s.Events)-1].What)
	require.Equal(t, []int{9}, s.Events[len(s.Events)-1].Layers)
	require.Greater(t, s.Audits, uint64(selection.LeastAudits))

	require.NotContains(t, strings.Join(p.step(), " "), "list", "dense until measured again")
	p.until(asTheReasoner)
	require.Equal(t, []int{2, 9}, p.Stats().SelectionLayers)
	require.Greater(t, p.cal.Revision, before)

	shares[0] = -1 // a row that had become too short: no audit
	count := p.Stats().Audits
	for range 40 {
		p.step()
	}
	require.Equal(t, count, p.Stats().Audits)
}

// guardNext is the layer that the next audit will be of.
func guardNext(p *oncuda.Probes) int {
	g := p.Model.Guard
	return g.Next(false)
}

// A captured step goes by the roles in force, asks for nothing that a graph must not hold, and Poll says what to do.
func TestGPUCalibrationCaptures(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, func(c *settings.Config) { c.Guard = 8 })
	copy(p.lengths, []int32{40, 1000, 200})
	poll := func() (uint64, bool) {
		generation, eager, err := p.Poll()
		require.NoError(t, err)
		for _, line := range p.read() {
			name := strings.Fields(line)[0]
			require.True(t, name == "cuEventQuery", "a poll asks for more than events: %s", line)
		}
		return generation, eager
	}
	p.read()
	none, eager := poll()
	require.True(t, eager, "the rows have to be looked at")
	p.a.Stream = 0xc000
	require.Empty(t, p.step(), "dense, and nothing but kernels")
	p.a.Stream = 0xabc0
	steps, captured := 0, none
	for range 1000 {
		generation, eager := poll()
		if generation != captured {
			captured = generation
			break
		}
		if eager {
			if p.cal.Measuring && p.cal.Begun+1 == p.cal.Wanted {
				p.measure(16, asTheReasoner)
			}
			p.step()
			steps++
		}
	}
	require.NotEqual(t, none, captured)
	require.Equal(t, 1+selection.MeasuredSteps(calLayers), steps, "a look, and the measured ones")
	p.a.Stream = 0xc000
	require.Equal(t, "c:select", p.step()[0])
	// The graph is replayed from now on; the guard wants a step now and then.
	wants := 0
	for range 80 {
		generation, eager := poll()
		require.Equal(t, captured, generation)
		if eager {
			wants++
			p.a.Stream = 0xabc0
			p.step()
		}
	}
	require.InDelta(t, 80/8, wants, 7)
	require.Positive(t, wants)
	require.Positive(t, p.Stats().Audits)
}

// An ablation holds for batches, too, and for hosts that capture.
func TestGPUCalibrationAblates(t *testing.T) {
	if !standsIn(t) {
		return
	}
	for _, layers := range [][]int{nil, {2, 9}} {
		p := newCalibrated(t, func(c *settings.Config) { c.Layers = layers })
		copy(p.lengths, []int32{40, 1000, 200})
		p.engine.Ablate(&selection.Ablation{Select: 3, Sparse: 7})
		_, eager, err := p.Poll()
		require.NoError(t, err)
		require.True(t, eager)
		require.Equal(t, []string{"d:select", "h:list"}, p.step())
		p.engine.Ablate(&selection.Ablation{Select: 3, Sparse: -1})
		require.Equal(t, []string{"d:select"}, p.step())
		p.engine.Ablate(nil)
		require.NotContains(t, p.step(), "d:select")
		s, err := p.Read()
		require.NoError(t, err)
		require.EqualValues(t, 2, s.Ablations)
	}
}

// A step whose first layer is refused, and then asked for again as it should be, is one step.
func TestGPUCalibrationCountsAStepOnce(t *testing.T) {
	if !standsIn(t) {
		return
	}
	for _, x := range []*selection.Ablation{nil, {Select: 3, Sparse: 7}} {
		p := newCalibrated(t, nil)
		copy(p.lengths, []int32{40, 1000, 200})
		p.engine.Ablate(x)
		p.a.Layer = 0
		wrong := p.a
		wrong.Query.Data++
		for range 3 {
			require.Error(t, p.Attend(&wrong))
		}
		p.step()
		s, err := p.Read()
		require.NoError(t, err)
		require.EqualValues(t, 1, s.DenseSteps+s.Ablations)
		require.Equal(t, x == nil, p.cal.Steps == 1)
	}
}

// The engine's contexts share the model: what one batch has measured another one uses.
func TestGPUCalibrationShares(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, nil)
	other := join(t, p.engine)
	copy(p.lengths, []int32{40, 1000, 200})
	require.Empty(t, other.step()[1:])
	p.until(asTheReasoner)
	require.Equal(t, "c:select", other.step()[0])
	require.Equal(t, []int{2, 9}, other.Stats().SelectionLayers)
}

// Where there is nothing to find out there is no memory for it, and no question.
func TestGPUCalibrationWithNothingToFind(t *testing.T) {
	if !standsIn(t) {
		return
	}
	given := newCalibrated(t, func(c *settings.Config) { c.Layers = []int{2, 9} })
	require.Zero(t, given.cal.Most)
	require.Equal(t, "c:select", given.step()[0])
	require.Equal(t, "given", given.Stats().LayersFrom)
	short := newCalibrated(t, func(c *settings.Config) { c.Budget = 4000 })
	require.Zero(t, short.cal.Most, "the rows never see twice the budget")
	for range 40 {
		require.Empty(t, short.step())
	}
	_, eager, err := short.Poll()
	require.NoError(t, err)
	require.False(t, eager)
	for _, line := range short.read() {
		require.NotContains(t, line, "cuStreamIsCapturing")
	}
}

// In the steady state a step allocates nothing, in a measured one neither.
func TestGPUCalibrationAllocatesNothing(t *testing.T) {
	if !standsIn(t, "LIM_STANDIN_LOG=") {
		return
	}
	config := settings.DefaultConfig()
	config.Budget, config.Guard = 128, 2
	e, err := contexts.NewEngine(config)
	require.NoError(t, err)
	p := join(t, e)
	copy(p.lengths, []int32{40, 1000, 200})
	step := func() {
		for layer := range calLayers {
			p.a.Layer = int32(layer)
			if err := p.Attend(&p.a); err != nil {
				t.Fatal(err)
			}
		}
	}
	step()
	step()
	require.True(t, p.cal.Measuring)
	require.Zero(t, testing.AllocsPerRun(20, step), "measured steps")
	p.measure(16, asTheReasoner)
	for p.cal.Measuring || p.cal.Fetching {
		step()
	}
	require.Equal(t, []int{2, 9}, p.Stats().SelectionLayers)
	for range 60 {
		step()
	}
	require.Positive(t, p.Stats().Audits)
	require.Zero(t, testing.AllocsPerRun(60, step), "audited steps")
}

func TestGPUCalibrationReportsTheDriver(t *testing.T) {
	if !standin.Child() {
		for _, f := range []string{"cuEventCreate:2", "cuMemHostAlloc:2", "cuEventQuery:700", "cuMemcpyDtoHAsync_v2:700"} {
			standin.Again(t, "LIM_STANDIN_FAIL="+f)
		}
		return
	}
	config := settings.DefaultConfig()
	config.Budget = 128
	e, err := contexts.NewEngine(config)
	require.NoError(t, err)
	params := backend.Params{MaxRows: 3, Capacity: 4096, Heads: calHeads, KVHeads: 2, KeyDim: 64, ValueDim: 64, KVType: 1}
	if b, err := NewDecoder(e, calLayers, nil, params); err == nil {
		b.Free()
		p := join(t, e)
		p.a.Layer = 0
		if err = p.Attend(&p.a); err == nil {
			err = p.Attend(&p.a)
		}
		var failed *fault.Error
		require.ErrorAs(t, err, &failed)
		require.Equal(t, fault.DeviceFailed, failed.Kind)
	} else {
		var failed *fault.Error
		require.ErrorAs(t, err, &failed)
		require.Equal(t, fault.NoMemory, failed.Kind)
	}
}

// A copy that the driver refuses brings nothing: what an older one left must not be read as its result.
func TestGPUCalibrationCopyThatFails(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, nil)
	copy(p.lengths, []int32{40, 1000, 200})
	attend := func() (err error) {
		for layer := range calLayers {
			p.a.Layer = int32(layer)
			if err = p.Attend(&p.a); err != nil {
				break
			}
		}
		return err
	}
	fail := func() {
		t.Setenv("LIM_STANDIN_FAIL", "cuMemcpyDtoHAsync_v2:700")
		var failed *fault.Error
		require.ErrorAs(t, attend(), &failed)
		require.Equal(t, fault.DeviceFailed, failed.Kind)
		os.Unsetenv("LIM_STANDIN_FAIL")
		require.False(t, p.cal.Looking || p.cal.Fetching, "nothing is on its way")
	}
	fail() // the first look at the rows
	require.NoError(t, attend())
	require.False(t, p.cal.Measuring)
	require.Empty(t, p.step(), "nothing has arrived")
	last := func() bool { return p.cal.Measuring && !p.cal.Clear && p.cal.Begun+1 == p.cal.Wanted }
	for range 200 {
		if last() {
			break
		}
		p.step()
	}
	require.True(t, last())
	fail() // the sums
	require.NoError(t, attend())
	require.Empty(t, p.Stats().Events, "sums that never came are no measurement")
	p.until(asTheReasoner)
	require.Len(t, p.Stats().Events, 1)
}

// Where a host captures its last layer alone, the copy of what was measured waits for the next step.
func TestGPUCalibrationCopiesOutsideOfGraphs(t *testing.T) {
	if !standsIn(t) {
		return
	}
	p := newCalibrated(t, nil)
	copy(p.lengths, []int32{40, 1000, 200})
	for !(p.cal.Measuring && !p.cal.Clear && p.cal.Begun+1 == p.cal.Wanted) {
		p.step()
	}
	p.measure(16, asTheReasoner)
	p.read()
	for layer := range calLayers {
		if p.a.Layer = int32(layer); layer == calLayers-1 {
			p.a.Stream = 0xc000
		}
		require.NoError(t, p.Attend(&p.a))
	}
	for _, line := range p.read() {
		require.NotContains(t, line, "cuMemcpy")
	}
	p.a.Stream = 0xabc0
	p.step()
	p.step()
	require.Len(t, p.Stats().Events, 1)
}
