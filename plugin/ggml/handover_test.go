//go:build cuda

package ggml

import (
	"fmt"
	"math"
	"math/rand"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/standin"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// relayHost is a host whose model is spread over devices, with real keys and values: GPUs are the stand-in's, which attends and
// chooses by the same rules. Logits are whole numbers of eighths: every engine has the same ones, to the bit.
type relayHost struct {
	t      *testing.T
	random *rand.Rand
	engine *contexts.Engine
	lines  []string
	memory []*cpu.Arena
	pool   *cpu.Pool
	legs   []*leg
	apart  bool // each sequence has a stream of its own
	wants  bool // logits of a prompt's last token are wanted
	loads  bool // a GPU computes the CPU's layers of a prompt, all but what lies in the CPU's stores

	sequences [][]int // slots of each one's tokens, in the order of their positions
	cells     []relayCell
	query     []float32 // of the layer and step that is computed
	out       [relayLayers][]float32
	host      uint64 // number of the host's context; 0: its devices have not shown that they are of one
	positions []int32
	last      []int                             // slots of the last batch's tokens
	change    func(l *leg, g *graph.Graph) bool // see compute
}

type relayCell struct{ sequence, position int } // sequence -1: empty

// leg is one of its devices, with its layers.
type leg struct {
	gpu      *GPUSession
	cpu      *Session
	from, to int
	ends     bool
	key      [relayLayers][]float16.Float16
	value    [relayLayers][]float16.Float16
	mask     []float16.Float16
	slots    []int64
	queries  []float32
	outputs  []float32
}

const (
	relayLayers, relayHeads, relayKV, relayDim, relaySlots = 6, 4, 2, 64, 512
	relayBudget, relayRows                                 = 64, 256
)

// relayOf is memory of a device's, which is the heap; nil: the CPU's.
func relayOf[T any](h *relayHost, on *cuda.Device, n int) []T {
	if on == nil {
		a := &cpu.Arena{}
		h.memory = append(h.memory, a)
		s := cpu.Slice[T](a, n)[:n]
		clear(s)
		return s
	}
	var x T
	m, err := on.Zeroed(n * int(unsafe.Sizeof(x)))
	require.NoError(h.t, err)
	at := m.Address()
	return unsafe.Slice(*(**T)(unsafe.Pointer(&at)), n)
}

// newRelayHost makes one with a device for each text: "cpu 0-2", "gpu0 3-5"; "auto0 3-5": which takes steps only where it pays.
func newRelayHost(t *testing.T, layers []int, devices ...string) *relayHost {
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	config := settings.DefaultConfig()
	config.Layers, config.Budget = layers, relayBudget
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	engine.Relay.HandsOver.Store(true)
	return newRelayHostOn(t, engine, 7, seed, devices)
}

func newRelayHostOn(t *testing.T, engine *contexts.Engine, number uint64, seed int64, devices []string) *relayHost {
	h := &relayHost{t: t, random: rand.New(rand.NewSource(seed)), engine: engine, host: number, pool: cpu.NewPool(2)}
	for range relaySlots {
		h.cells = append(h.cells, relayCell{-1, 0})
	}
	log := func(_ settings.LogLevel, text string) { h.lines = append(h.lines, text) }
	for i, d := range devices {
		l := &leg{ends: i == len(devices)-1}
		kind := ""
		_, err := fmt.Sscanf(d, "%s %d-%d", &kind, &l.from, &l.to)
		require.NoError(t, err)
		var on *cuda.Device
		if kind == "cpu" {
			l.cpu = NewSession(engine, log)
		} else {
			on, err = cuda.Open(int(kind[len(kind)-1] - '0'))
			require.NoError(t, err)
			l.gpu = NewGPUSession(engine, log, strings.HasPrefix(kind, "gpu"))
			l.cpu = &l.gpu.Session
		}
		for k := l.from; k <= l.to; k++ {
			l.key[k], l.value[k] = relayOf[float16.Float16](h, on, relaySlots*relayKV*relayDim), relayOf[float16.Float16](h, on, relaySlots*relayKV*relayDim)
		}
		l.mask, l.slots = relayOf[float16.Float16](h, on, relayRows*relaySlots), relayOf[int64](h, nil, relaySlots)
		l.queries, l.outputs = relayOf[float32](h, on, relayRows*relayHeads*relayDim), relayOf[float32](h, on, relayRows*relayHeads*relayDim)
		h.legs = append(h.legs, l)
	}
	t.Cleanup(h.close)
	return h
}

func (h *relayHost) close() {
	for _, l := range h.legs {
		l.cpu.Close()
	}
	h.pool.Free()
	for _, a := range h.memory {
		a.Free()
	}
}

// write puts one more token of a sequence into a slot.
func (h *relayHost) write(sequence, slot int) {
	for len(h.sequences) <= sequence {
		h.sequences = append(h.sequences, nil)
	}
	h.cells[slot] = relayCell{sequence, len(h.sequences[sequence])}
	h.sequences[sequence] = append(h.sequences[sequence], slot)
	for k := range relayLayers {
		for i := range relayKV * relayDim {
			x, y := float32(h.random.Intn(5)-2), float32(h.random.NormFloat64())
			for _, l := range h.legs {
				if l.key[k] != nil {
					l.key[k][slot*relayKV*relayDim+i], l.value[k][slot*relayKV*relayDim+i] = float16.Fromfloat32(x), float16.Fromfloat32(y)
				}
			}
		}
	}
}

// compute has a batch of tokens, which lie in these slots, computed by all devices in turn. Before each of them, change may change what it
// is told; false: it computes nothing.
func (h *relayHost) compute(slots []int, change func(l *leg, g *graph.Graph) bool) {
	h.positions, h.last = h.positions[:0], slots
	for _, slot := range slots {
		h.positions = append(h.positions, int32(h.cells[slot].position))
	}
	h.query = nil
	for range len(slots) * relayHeads * relayDim * relayLayers {
		h.query = append(h.query, float32(h.random.Intn(3)-1))
	}
	for _, l := range h.legs {
		h.leg(l, slots, change)
	}
}

// leg has one device compute its layers of a batch.
func (h *relayHost) leg(l *leg, slots []int, change func(l *leg, g *graph.Graph) bool) {
	n := len(slots)
	nkv := h.slotsOf()
	for i, slot := range slots {
		l.slots[i] = int64(slot)
		for c := range nkv {
			cell := h.cells[slot/nkv*nkv+c]
			if l.mask[i*nkv+c] = 0; cell.sequence != h.cells[slot].sequence || cell.position > h.cells[slot].position {
				l.mask[i*nkv+c] = negInf
			}
		}
	}
	g := &graph.Graph{Positions: h.positions, Rotations: 1, Weights: uint64(1 + l.from), FirstBlock: int32(l.from), LastBlock: int32(l.to), Host: h.host}
	if l.ends {
		g.Ends, g.Batch, g.Outputs = 1, n, []int32{}
		if h.wants {
			g.Outputs = []int32{int32(n - 1)}
		}
		if n < 16 {
			g.Outputs = []int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}[:n]
		}
	}
	for k := l.from; k <= l.to; k++ {
		g.Nodes = append(g.Nodes, h.node(l, k, slots))
		g.Writes = append(g.Writes, graph.Write{Store: g.Nodes[k-l.from].Store, Slots: unsafe.Pointer(&l.slots[0]), Wide: 1, N: int32(n)})
	}
	if change == nil {
		change = h.change
	}
	if change != nil && !change(l, g) {
		return
	}
	if h.loads && l.gpu == nil && n >= 32 {
		h.offload(l, g)
		return
	}
	l.cpu.Plan(g)
	for i := range g.Nodes {
		k := l.from + i
		copy(l.queries, h.query[k*n*relayHeads*relayDim:][:n*relayHeads*relayDim])
		switch {
		case g.Nodes[i].Reason != stats.Offloaded:
			copy(l.outputs, h.reference(k, slots, nil))
		case l.gpu != nil:
			if l.gpu.Attend(&g.Nodes[i], 0xe1, 0xe2) != nil { // the host does the rest
				for j := i; j < len(g.Nodes); j++ {
					g.Nodes[j].Reason = stats.ReasonFailed
				}
				copy(l.outputs, h.reference(k, slots, nil))
			}
		default:
			h.pool.Attend(&g.Nodes[i].Call)
		}
		h.out[k] = slices.Clone(l.outputs[:n*relayHeads*relayDim])
	}
	for _, n := range g.Notes {
		n.Prints.Note(unsafe.Slice((*int64)(n.Slots), n.N))
	}
}

// offload has the first GPU compute a prompt's graph of the CPU's, layer by layer: it rotates, the CPU keeps the keys, it attends to a copy of them.
func (h *relayHost) offload(l *leg, g *graph.Graph) {
	gpu := h.legs[slices.IndexFunc(h.legs, func(l *leg) bool { return l.gpu != nil })]
	for i := range g.Nodes {
		gpu.cpu.Plan(&graph.Graph{Positions: g.Positions, Rotations: 2, Host: h.host, FirstBlock: -1})
		write := &graph.Graph{Writes: g.Writes[i : i+1], Host: h.host, FirstBlock: -1}
		l.cpu.Plan(write)
		for _, n := range write.Notes {
			n.Prints.Note(unsafe.Slice((*int64)(n.Slots), n.N))
		}
		attends := graph.Node{Layer: -1, Tokens: g.Nodes[i].Tokens, Reason: stats.ReasonNoCache, What: unsafe.Pointer(unsafe.StringData("elsewhere\x00"))}
		gpu.cpu.Plan(&graph.Graph{Nodes: []graph.Node{attends}, Host: h.host, FirstBlock: -1})
	}
}

// slotsOf is how many slots a stream has.
func (h *relayHost) slotsOf() int {
	if h.apart {
		return relaySlots / 2
	}
	return relaySlots
}

func (h *relayHost) node(l *leg, k int, slots []int) graph.Node {
	const token = 2 * relayKV * relayDim
	n, nkv := int32(len(slots)), h.slotsOf()
	tokens, streams, first := n, int32(1), slots[0]/nkv // of one stream, or one of each
	if h.apart && len(slots) == 2 {
		tokens, streams = 1, n
	}
	store := func(s []float16.Float16) cpu.Tensor {
		return cpu.Tensor{Data: unsafe.Pointer(&s[first*nkv*relayKV*relayDim]), TokenStride: token, HeadStride: 2 * relayDim, StreamStride: int64(nkv * token), Type: cpu.F16}
	}
	rows := func(s []float32) cpu.Tensor {
		const row = 4 * relayHeads * relayDim
		return cpu.Tensor{Data: unsafe.Pointer(&s[0]), TokenStride: row, HeadStride: 4 * relayDim, StreamStride: int64(tokens) * row, Type: cpu.F32}
	}
	mask := unsafe.Pointer(&l.mask[0])
	return graph.Node{
		Call: cpu.Call{
			Query: rows(l.queries), Output: rows(l.outputs), Key: store(l.key[k]), Value: store(l.value[k]),
			Heads: relayHeads, KVHeads: relayKV, DimK: relayDim, DimV: relayDim, Scale: 0.125,
		},
		Store: kvindex.Store{ID: uint64(uintptr(unsafe.Pointer(&l.key[k][0]))), Slots: int64(nkv), Stride: token, Streams: int32(relaySlots / nkv), Row: token},
		Layer: int32(k), FirstStream: int32(first), Tokens: tokens, Streams: streams, NKV: int32(nkv),
		Mask: mask, MaskTokenStride: int64(2 * nkv), MaskStreamStride: int64(2*nkv) * int64(tokens),
		Scan: mask, ScanType: cpu.F16, ScanTokenStride: int64(2 * nkv), ScanStreamStride: int64(2*nkv) * int64(tokens), Reason: stats.Offloaded,
	}
}

// sets are the token sets that a layer's rows choose, as slots in the order of their positions, by the rule in float64; nil for a row
// with no more tokens than the budget.
func (h *relayHost) sets(k int, slots []int) [][]int {
	out := make([][]int, len(slots))
	for row, slot := range slots {
		all := h.sequences[h.cells[slot].sequence][:h.cells[slot].position+1]
		if len(all) <= relayBudget {
			continue
		}
		c := h.engine.Settings
		split := steps.SplitBudget(len(all), c.Budget, c.Recency, c.SinkTokens)
		key := map[int]int{}
		for head := range relayHeads {
			logits, order := h.logits(k, len(slots), row, head, all), []int{}
			for i := split.SinkTokens; i < len(all)-split.Recent; i++ {
				order = append(order, i)
			}
			slices.SortStableFunc(order, func(a, b int) int {
				return int(math.Copysign(1, logits[b]-logits[a])) * min(1, int(math.Ceil(math.Abs(logits[b]-logits[a]))))
			})
			for rank, i := range order {
				if mine, ok := key[i]; !ok || rank*relayHeads+head < mine {
					key[i] = rank*relayHeads + head
				}
			}
		}
		middle := []int{}
		for i := range key {
			middle = append(middle, i)
		}
		slices.SortFunc(middle, func(a, b int) int { return key[a] - key[b] })
		middle = middle[:split.TopK]
		for i, s := range all {
			if i < split.SinkTokens || i >= len(all)-split.Recent || slices.Contains(middle, i) {
				out[row] = append(out[row], s)
			}
		}
	}
	return out
}

func (h *relayHost) logits(k, n, row, head int, slots []int) []float64 {
	var keys []float16.Float16
	for _, l := range h.legs {
		if l.key[k] != nil {
			keys = l.key[k]
		}
	}
	q := h.query[((k*n+row)*relayHeads+head)*relayDim:][:relayDim]
	out := make([]float64, len(slots))
	for i, slot := range slots {
		for d, x := range keys[slot*relayKV*relayDim+head/(relayHeads/relayKV)*relayDim:][:relayDim] {
			out[i] += float64(x.Float32()) * float64(q[d]) * 0.125
		}
	}
	return out
}

// reference is a layer's output in float64, with sets: over those.
func (h *relayHost) reference(k int, slots []int, sets [][]int) []float32 {
	var values []float16.Float16
	for _, l := range h.legs {
		if l.value[k] != nil {
			values = l.value[k]
		}
	}
	out := make([]float32, len(slots)*relayHeads*relayDim)
	for row, slot := range slots {
		all := h.sequences[h.cells[slot].sequence][:h.cells[slot].position+1]
		if sets != nil && sets[row] != nil {
			all = sets[row]
		}
		for head := range relayHeads {
			var sum float64
			o := make([]float64, relayDim)
			for i, logit := range h.logits(k, len(slots), row, head, all) {
				share := math.Exp(logit)
				sum += share
				for d, x := range values[all[i]*relayKV*relayDim+head/(relayHeads/relayKV)*relayDim:][:relayDim] {
					o[d] += share * float64(x.Float32())
				}
			}
			for d := range o {
				out[(row*relayHeads+head)*relayDim+d] = float32(o[d] / sum)
			}
		}
	}
	return out
}

// chosenFrom tells that in the last step a later device's layers, from this one on, attended to the set that its first one chose.
func (h *relayHost) chosenFrom(first int) {
	h.t.Helper()
	sets := h.sets(first, h.last)
	for k := first; k < relayLayers; k++ {
		want := h.reference(k, h.last, nil)
		if k > first {
			want = h.reference(k, h.last, sets)
		}
		h.equal(k, want)
	}
}

func (h *relayHost) equal(k int, want []float32) {
	h.t.Helper()
	for i := range want {
		require.InDelta(h.t, want[i], h.out[k][i], 2e-3, "layer %d, value %d", k, i)
	}
}

// chosenBy tells that the last batch was computed with token sets that these layers chose, each for those up to the next one.
func (h *relayHost) chosenBy(slots []int, layers ...int) {
	h.t.Helper()
	var sets [][]int
	for k := range relayLayers {
		want := h.reference(k, slots, sets)
		if slices.Contains(layers, k) {
			want = h.reference(k, slots, nil)
			sets = h.sets(k, slots)
		}
		h.equal(k, want)
	}
}

// text begins sequences of so many tokens each, in prompts. Of two lengths below zero they have streams of their own.
func (h *relayHost) text(lengths ...int) {
	slot := 0
	for s, n := range lengths {
		if h.apart = n < 0; h.apart {
			slot = s * h.slotsOf()
		}
		first := slot
		var prompt []int
		for range max(n, -n) {
			h.write(s, slot)
			prompt = append(prompt, slot)
			slot++
		}
		h.compute(prompt[:slot-first], nil)
	}
}

// decode has one more token of each sequence computed, in the next free slots.
func (h *relayHost) decode(change func(l *leg, g *graph.Graph) bool) []int {
	var slots []int
	for s := range h.sequences {
		from := 0
		if h.apart {
			from = s * h.slotsOf()
		}
		slot := from + slices.IndexFunc(h.cells[from:], func(c relayCell) bool { return c.sequence < 0 })
		h.write(s, slot)
		slots = append(slots, slot)
	}
	h.compute(slots, change)
	return slots
}

func (h *relayHost) stats() []stats.Stats {
	var out []stats.Stats
	for _, l := range h.legs {
		out = append(out, l.cpu.Stats())
	}
	return out
}

// onDevices runs a test with two devices in the stand-in.
func onDevices(t *testing.T, env ...string) (child bool, log []string) {
	if standin.Child() {
		return true, nil
	}
	return false, standin.Again(t, append([]string{"LIM_STANDIN_DEVICES=3", "LIM_STANDIN_ATTEND=sets"}, env...)...)
}

// settled has the first passes behind it: from the next step on, the layers have their roles. lengths: see text.
func settled(t *testing.T, layers []int, devices []string, lengths ...int) *relayHost {
	h := newRelayHost(t, layers, devices...)
	h.text(lengths...)
	h.decode(nil)
	return h
}

// Two devices, or three, have one set of roles, and the token sets of one go to the next: what is computed is what the method
// computes on one device, to the float64 reference.
func TestSetsAreHandedOver(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	for _, c := range []struct {
		layers  []int
		devices []string
		lengths []int
	}{
		{[]int{1, 4}, []string{"gpu0 0-2", "gpu1 3-5"}, []int{150, 30, 90}},
		{[]int{0}, []string{"gpu0 0-1", "gpu1 2-3", "gpu2 4-5"}, []int{150, 30, 90}},
		{[]int{1}, []string{"cpu 0-2", "gpu0 3-5"}, []int{150, 30, 90}},
		{[]int{1, 3}, []string{"cpu 0-1", "gpu1 2-3", "gpu0 4-5"}, []int{150, 30, 90}},
		{[]int{1, 3}, []string{"cpu 0-4", "gpu0 5-5"}, []int{150, 30, 90}},
		{[]int{1}, []string{"cpu 0-1", "gpu0 2-5"}, []int{150, 30, 90}},
		{[]int{2, 4}, []string{"gpu1 0-3", "gpu0 4-5"}, []int{150, 30, 90}}, // nothing is needed from there
		{[]int{2, 4}, []string{"cpu 0-0", "gpu0 1-5"}, []int{150, 30, 90}},
		{[]int{2}, []string{"gpu0 0-2", "gpu1 3-5"}, []int{150, 30, 90}}, // for the other one alone
		{[]int{2, 4}, []string{"gpu0 0-2", "gpu1 3-4", "gpu2 5-5"}, []int{150, 30, 90}},
		{[]int{1, 4}, []string{"gpu0 0-2", "gpu1 3-5"}, []int{-150, -90}},
		{[]int{1}, []string{"cpu 0-2", "gpu1 3-5"}, []int{-150, -90}},
		{[]int{1}, []string{"cpu 0-2", "gpu0 3-4", "gpu1 5-5"}, []int{-40, -160}},
		{[]int{1}, []string{"gpu1 0-2", "gpu0 3-5"}, []int{200}},
		{[]int{1}, []string{"cpu 0-2", "gpu0 3-5"}, []int{200}},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			h := settled(t, c.layers, c.devices, c.lengths...)
			before := h.stats()
			for range 6 {
				h.chosenBy(h.decode(nil), c.layers...)
			}
			for i, s := range h.stats() {
				require.Equal(t, relayLayers, s.Layers)
				require.Equal(t, c.layers, s.SelectionLayers)
				require.Zero(t, s.UnhandedSteps)
				require.Zero(t, s.NoSetCalls)
				inherits := i > 0 && h.legs[i].from > c.layers[0] && !slices.Contains(c.layers, h.legs[i].from)
				require.EqualValues(t, map[bool]int{true: 6}[inherits], s.HandedSteps-before[i].HandedSteps, "device %d", i)
			}
			require.Contains(t, strings.Join(h.lines, "\n"), fmt.Sprintf("layers %v of all 6 choose token sets, which go from device to device", c.layers))
		})
	}
}

// So they are where each device takes the steps that pay, as far as the one before took them, too.
func TestSetsAreHandedOverWhereItPays(t *testing.T) {
	if child, log := onDevices(t, "LIM_STANDIN_CLOCK=1"); !child { // a slow memory: it always pays
		require.NotEmpty(t, log)
		return
	}
	for _, first := range []string{"auto0", "cpu"} {
		h := settled(t, []int{1}, []string{first + " 0-2", "auto1 3-5"}, 150, 90)
		before := h.stats()[1]
		for range 4 {
			h.chosenBy(h.decode(nil), 1)
		}
		after := h.stats()[1]
		require.EqualValues(t, 4, after.HandedSteps-before.HandedSteps, first)
		require.Zero(t, after.UnhandedSteps)
	}
	h := settled(t, []int{1}, []string{"auto0 0-2", "auto1 3-5"}, 150, 90)
	h.decode(func(l *leg, g *graph.Graph) bool { // the first one leaves a step
		g.Computed = l == h.legs[0]
		return true
	})
	h.chosenFrom(3)
	require.EqualValues(t, 1, h.stats()[1].UnhandedSteps)
	h.chosenBy(h.decode(nil), 1)
}

// Slots are filled again, so that tokens do not lie in the order of their slots: sets are handed over all the same.
func TestSetsOfHolesAreHandedOver(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	for _, first := range []string{"gpu0", "cpu"} {
		h := settled(t, []int{1}, []string{first + " 0-2", "gpu1 3-5"}, 30, 90, 40)
		h.decode(nil)
		for i := range h.cells { // the first sequence ends, the others go on in its cells
			if h.cells[i].sequence--; h.cells[i].sequence < 0 {
				h.cells[i].sequence = -1
			}
		}
		h.sequences = h.sequences[1:]
		before := h.stats()[1].HandedSteps
		for range 30 {
			h.decode(nil)
		}
		require.EqualValues(t, 30, h.stats()[1].HandedSteps-before)
		h.chosenBy(h.last, 1)
		require.False(t, slices.IsSorted(h.sequences[0]))
	}
}

// What is not proven to be of the same step is not handed over: the later device chooses for itself, and says so.
func TestSetsAreNotHandedOver(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	second := func(change func(h *relayHost, l *leg, g *graph.Graph)) func(h *relayHost) func(*leg, *graph.Graph) bool {
		return func(h *relayHost) func(*leg, *graph.Graph) bool {
			return func(l *leg, g *graph.Graph) bool {
				if l == h.legs[1] {
					change(h, l, g)
				}
				return true
			}
		}
	}
	for name, change := range map[string]func(h *relayHost) func(*leg, *graph.Graph) bool{
		"the first device computes nothing": func(h *relayHost) func(*leg, *graph.Graph) bool {
			return func(l *leg, g *graph.Graph) bool { return l != h.legs[0] }
		},
		"the first one's selection layer is the host's": func(h *relayHost) func(*leg, *graph.Graph) bool {
			return func(l *leg, g *graph.Graph) bool {
				if l == h.legs[0] {
					g.Nodes[1].Reason = stats.ReasonType
				}
				return true
			}
		},
		"the first one takes the step for a prompt's": func(h *relayHost) func(*leg, *graph.Graph) bool {
			return func(l *leg, g *graph.Graph) bool {
				if l == h.legs[0] {
					g.Batch = len(h.positions)
				}
				return true
			}
		},
		"the first device fails behind its layers": second(func(h *relayHost, _ *leg, _ *graph.Graph) { h.legs[0].cpu.layers.Refuse("gone") }),
		"the slots are others":                     second(func(_ *relayHost, l *leg, _ *graph.Graph) { l.slots[0], l.slots[1] = l.slots[1], l.slots[0] }),
		"a slot less is seen":                      second(func(_ *relayHost, l *leg, _ *graph.Graph) { l.mask[7] = negInf }),
		"another slot is seen": second(func(h *relayHost, l *leg, _ *graph.Graph) { // as many, one of them of another text
			l.mask[7], l.mask[160] = negInf, 0
		}),
		"fewer slots are looked at": second(func(_ *relayHost, _ *leg, g *graph.Graph) {
			for i := range g.Nodes {
				g.Nodes[i].NKV -= 8
			}
		}),
	} {
		for _, first := range []string{"gpu0", "cpu"} {
			t.Run(first+", "+name, func(t *testing.T) {
				h := settled(t, []int{1}, []string{first + " 0-2", "gpu1 3-5"}, 150, 90)
				h.chosenBy(h.decode(nil), 1)
				before := h.stats()[1]
				require.EqualValues(t, 1, before.HandedSteps)
				h.decode(change(h))
				after := h.stats()[1]
				require.EqualValues(t, 1, after.HandedSteps)
				require.LessOrEqual(t, after.UnhandedSteps, uint64(1)) // or the step was left to the host
				if strings.Contains(name, "first") {
					require.EqualValues(t, 1, after.UnhandedSteps)
					require.Equal(t, before.SelectCalls+1, after.SelectCalls, "its first layer chooses")
					h.chosenFrom(3)
				}
				if strings.Contains(name, "first one") {
					h.decode(nil) // the first device may take this one for a prompt's, too
					h.chosenBy(h.decode(nil), 1)
					require.Greater(t, h.stats()[1].HandedSteps, uint64(1))
				}
			})
		}
	}
}

// Sets that nobody took are of their own step alone: not of the next one, whose first device leaves it to the host, though its token has
// taken the last one's place and sees the same.
func TestSetsThatWereNotTaken(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	for _, first := range []string{"gpu0", "cpu"} {
		h := settled(t, []int{1}, []string{first + " 0-2", "gpu1 3-5"}, 150)
		h.chosenBy(h.decode(nil), 1)
		before := h.stats()[1]
		refused := func(which int) func(l *leg, g *graph.Graph) bool {
			return func(l *leg, g *graph.Graph) bool {
				for i := range g.Nodes {
					if l == h.legs[which] {
						g.Nodes[i].Reason = stats.ReasonType
					}
				}
				return true
			}
		}
		slots := h.decode(refused(1))
		h.compute(slots, refused(0))
		h.chosenFrom(3)
		after := h.stats()[1]
		require.Equal(t, before.HandedSteps, after.HandedSteps)
		require.Equal(t, before.UnhandedSteps+1, after.UnhandedSteps)
	}
}

// Devices that have not shown that they are of one context of the host's, or whose parts are not one model's, are each by themselves.
func TestPartsThatAreNoWhole(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	for name, c := range map[string]struct {
		devices []string
		change  func(l *leg, g *graph.Graph) bool
		own     []int
	}{
		"not known to be of one context": {[]string{"gpu0 0-2", "gpu1 3-5"}, func(l *leg, g *graph.Graph) bool { g.Host = 0; return true }, []int{1, 3}},
		"of two contexts":                {[]string{"cpu 0-2", "gpu1 3-5"}, func(l *leg, g *graph.Graph) bool { g.Host = uint64(1 + l.from); return true }, []int{1, 3}},
		"the end is elsewhere":           {[]string{"cpu 0-2", "gpu1 3-5"}, func(l *leg, g *graph.Graph) bool { g.Ends = 0; return true }, []int{1, 3}},
		"a layer is elsewhere": {[]string{"gpu0 0-2", "gpu1 3-5"}, func(l *leg, g *graph.Graph) bool {
			for i := range g.Nodes {
				g.Nodes[i].Layer += int32(l.from) / 3
			}
			g.FirstBlock, g.LastBlock = g.Nodes[0].Layer, g.Nodes[2].Layer
			return true
		}, []int{1, 3}},
		"another store": {[]string{"gpu0 0-2", "gpu1 3-5"}, func(l *leg, g *graph.Graph) bool {
			for i := range g.Nodes {
				g.Nodes[i].Store.Slots += int64(l.from)
			}
			return true
		}, []int{1, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newRelayHost(t, []int{1}, c.devices...)
			h.change = c.change
			h.text(150, 90)
			h.decode(nil)
			for range 3 {
				h.chosenBy(h.decode(nil), c.own...)
			}
			require.Contains(t, strings.Join(h.lines, "\n"), "the others are on another device: token sets are chosen on each of them")
			for _, s := range h.stats() {
				require.Zero(t, s.HandedSteps+s.UnhandedSteps)
			}
		})
	}
}

// A layer that the model does not have is named on all of its devices.
func TestLayersThatTheWholeHasNot(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	h := settled(t, []int{1, 6}, []string{"gpu0 0-2", "gpu1 3-5"}, 150)
	h.chosenBy(h.decode(nil))
	for _, s := range h.stats() {
		require.Contains(t, s.Inert, "layers names layer 6, but the model has 6 layers that can take part (0 .. 5)")
	}
}

// Nor does handing over allocate anything.
func TestHandingOverAllocatesNothing(t *testing.T) {
	if child, log := onDevices(t, "LIM_STANDIN_LOG="); !child {
		require.NotNil(t, log)
		return
	}
	for _, first := range []string{"gpu0", "cpu"} {
		h := settled(t, []int{1}, []string{first + " 0-2", "gpu1 3-5"}, 150)
		h.decode(nil)
		handed := h.stats()[1].HandedSteps
		var graphs [2]*graph.Graph
		h.decode(func(l *leg, g *graph.Graph) bool { graphs[l.from/3] = g; return false })
		require.Zero(t, testing.AllocsPerRun(50, func() {
			for i, g := range graphs {
				l := h.legs[i]
				for k := range g.Nodes {
					g.Nodes[k].Reason = stats.Offloaded
				}
				l.cpu.Plan(g)
				for k := range g.Nodes {
					switch {
					case g.Nodes[k].Reason != stats.Offloaded:
					case l.gpu != nil:
						_ = l.gpu.Attend(&g.Nodes[k], 0xe1, 0xe2)
					default:
						h.pool.Attend(&g.Nodes[k].Call)
					}
				}
			}
		}), first)
		require.Greater(t, h.stats()[1].HandedSteps, handed)
	}
}

// The driver fails where sets are handed over: the later device's layers are the host's from then on, one line says so.
func TestHandingOverFails(t *testing.T) {
	fails := map[string][]string{"gpu0": {"cuMemcpyPeerAsync:700:2", "cuEventCreate:2:4"}, "cpu": {"cuMemcpyHtoDAsync_v2:700:2", "cuEventQuery:700:2", "cuMemHostAlloc:2:4"}}
	if !standin.Child() {
		for first, calls := range fails {
			for _, call := range calls {
				onDevices(t, "LIM_STANDIN_FAIL="+call, "LIM_FIRST="+first)
			}
		}
		return
	}
	h := newRelayHost(t, []int{1}, os.Getenv("LIM_FIRST")+" 0-2", "gpu1 3-5")
	h.text(150)
	h.decode(nil)
	inert := -1
	for step := range 6 {
		slots := h.decode(nil)
		if inert < 0 && h.stats()[1].Inert != "" {
			inert = step
		}
		var sets [][]int
		for k := range relayLayers {
			want := h.reference(k, slots, nil)
			if k > 1 && (k < 3 || inert < 0) {
				want = h.reference(k, slots, sets)
			}
			if k == 1 {
				sets = h.sets(k, slots)
			}
			h.equal(k, want)
		}
	}
	require.GreaterOrEqual(t, inert, 0, "%s", os.Getenv("LIM_STANDIN_FAIL"))
	require.Equal(t, 1, strings.Count(strings.Join(h.lines, "\n"), "inert in this context: "), "%v", h.lines)
	require.Empty(t, h.stats()[0].Inert)
}

// A host computes the CPU's layers of a long prompt on a GPU: the CPU's part shows itself with the first steps, when the GPUs' have had roles of
// their own.
func TestPartsThatJoinLater(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	for _, c := range []struct {
		devices []string
		lengths []int
	}{
		{[]string{"cpu 0-2", "gpu0 3-5"}, []int{150, 90}},
		{[]string{"cpu 0-2", "gpu0 3-5"}, []int{150}}, // a row that needs no list
		{[]string{"cpu 0-1", "gpu0 2-3", "gpu1 4-5"}, []int{150, 90}},
	} {
		h := newRelayHost(t, []int{1}, c.devices...)
		h.change = func(l *leg, _ *graph.Graph) bool { return l.gpu != nil }
		h.text(c.lengths...)
		h.change = nil
		for range 24 { // until the CPU knows the order of the newest tokens
			h.decode(nil)
		}
		before := h.stats()[1]
		for range 4 {
			h.chosenBy(h.decode(nil), 1)
		}
		after := h.stats()[1]
		require.EqualValues(t, 4, after.HandedSteps-before.HandedSteps)
		require.EqualValues(t, 4, after.Steps-before.Steps)
		require.Equal(t, []int{1}, after.SelectionLayers)
		require.Equal(t, relayLayers, after.Layers)
	}
}

// So it is with each prompt: the CPU knows where its tokens are all the same, for the GPU that rotates their keys tells. Sets are chosen and handed
// over from the first step on whose layers have roles.
func TestPromptsThatAGPUComputes(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	for _, c := range []struct {
		devices []string
		lengths []int
	}{
		{[]string{"cpu 0-2", "gpu0 3-5"}, []int{150}},
		{[]string{"cpu 0-2", "gpu0 3-5"}, []int{150, 90}},
		{[]string{"cpu 0-2", "gpu1 3-5"}, []int{-150, -90}},
		{[]string{"cpu 0-1", "gpu0 2-3", "gpu1 4-5"}, []int{120, 40}},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			h := newRelayHost(t, []int{1}, c.devices...)
			h.loads, h.wants = true, true
			h.text(c.lengths...)
			for range 2 { // the CPU's first pass, and what is known of the whole then
				h.decode(nil)
			}
			require.NotContains(t, strings.Join(h.lines, "\n"), "nothing is offloaded in this context")
			before := h.stats()
			require.Zero(t, before[0].CellOrder)
			for range 4 {
				h.chosenBy(h.decode(nil), 1)
			}
			if !h.apart { // another text, in cells of one that has ended
				h.end(0)
				h.begin(100)
				h.sequences = h.sequences[1:]
				for i := range h.cells {
					h.cells[i].sequence = max(h.cells[i].sequence-1, -1)
				}
				for range 4 {
					h.chosenBy(h.decode(nil), 1)
				}
			}
			for i, s := range h.stats() {
				require.Zero(t, s.CellOrder, "device %d", i)
				require.Zero(t, s.UnhandedSteps-before[i].UnhandedSteps, "device %d", i)
				if i > 0 {
					require.EqualValues(t, map[bool]int{true: 4, false: 8}[h.apart], s.HandedSteps-before[i].HandedSteps, "device %d", i)
				}
			}
		})
	}
}

// Two contexts of one model, with texts of equal lengths in equal slots, take turns on one thread, also in the middle of a step: each has its
// own sets.
func TestSetsOfTwoContexts(t *testing.T) {
	if child, log := onDevices(t); !child {
		require.NotEmpty(t, log)
		return
	}
	for _, devices := range [][]string{{"gpu0 0-2", "gpu1 3-5"}, {"cpu 0-2", "gpu0 3-5"}} {
		one := newRelayHost(t, []int{1}, devices...)
		other := newRelayHostOn(t, one.engine, 8, one.random.Int63(), devices)
		for _, h := range []*relayHost{one, other} {
			h.text(120, 90)
			h.decode(nil)
		}
		for range 4 {
			one.decode(func(l *leg, _ *graph.Graph) bool {
				if l == one.legs[1] {
					other.decode(nil)
				}
				return true
			})
			one.chosenBy(one.last, 1)
			other.chosenBy(other.last, 1)
		}
		for _, h := range []*relayHost{one, other} {
			require.EqualValues(t, 4, h.stats()[1].HandedSteps)
		}
	}
}

// Sequences come and go, in slots that others have left, some of them wait: whatever a step is, each row of each layer attends to everything or
// to the set that it should, and most steps are handed over.
func TestHandingOverByChance(t *testing.T) {
	if child, log := onDevices(t, "LIM_STANDIN_LOG="); !child {
		require.NotNil(t, log)
		return
	}
	for _, devices := range [][]string{{"gpu0 0-2", "gpu1 3-5"}, {"cpu 0-2", "gpu0 3-5"}, {"cpu 0-1", "gpu1 2-3", "gpu0 4-5"}} {
		t.Run(strings.Join(devices, ", "), func(t *testing.T) {
			h := settled(t, []int{1}, devices, 100, 70)
			h.wants = true
			handed, steps := h.handed(), 0
			for range 60 {
				switch what := h.random.Intn(12); {
				case what == 0 && len(h.alive()) > 1:
					h.end(h.alive()[h.random.Intn(len(h.alive()))])
				case what == 1 && len(h.alive()) < 5 && h.free() > 200:
					h.begin(20 + h.random.Intn(80))
				default:
					alive := h.alive()
					h.random.Shuffle(len(alive), func(i, j int) { alive[i], alive[j] = alive[j], alive[i] })
					some := alive[:max(1, len(alive)-h.random.Intn(2))]
					var slots []int
					for _, s := range some {
						slot := h.next()
						h.write(s, slot)
						slots = append(slots, slot)
					}
					h.compute(slots, nil)
					h.isAllowed(slots)
					steps++
				}
			}
			require.Greater(t, h.handed()-handed, uint64(steps/3), "of %d steps", steps)
		})
	}
}

// alive are the sequences that have tokens.
func (h *relayHost) alive() (out []int) {
	for s := range h.sequences {
		if len(h.sequences[s]) > 0 {
			out = append(out, s)
		}
	}
	return out
}

func (h *relayHost) end(sequence int) {
	for _, slot := range h.sequences[sequence] {
		h.cells[slot].sequence = -1
	}
	h.sequences[sequence] = nil
}

// begin has a new sequence's prompt computed.
func (h *relayHost) begin(n int) {
	var prompt []int
	sequence := len(h.sequences)
	for range n {
		slot := h.next()
		h.write(sequence, slot)
		prompt = append(prompt, slot)
	}
	h.compute(prompt, nil)
}

func (h *relayHost) next() int {
	return slices.IndexFunc(h.cells, func(c relayCell) bool { return c.sequence < 0 })
}

func (h *relayHost) free() (n int) {
	for _, c := range h.cells {
		if c.sequence < 0 {
			n++
		}
	}
	return n
}

func (h *relayHost) handed() (n uint64) {
	for _, s := range h.stats() {
		n = max(n, s.HandedSteps)
	}
	return n
}

// isAllowed tells that each layer of the last step attended to everything, or to the set that layer 1 chose, or the first one of its device.
func (h *relayHost) isAllowed(slots []int) {
	for _, l := range h.legs {
		own := h.sets(max(l.from, 1), slots)
		for k := l.from; k <= l.to; k++ {
			near := func(want []float32) bool {
				for i := range want {
					if math.Abs(float64(want[i]-h.out[k][i])) > 2e-3 {
						return false
					}
				}
				return true
			}
			require.True(h.t, near(h.reference(k, slots, nil)) || k > 1 && near(h.reference(k, slots, h.sets(1, slots))) || k > l.from && near(h.reference(k, slots, own)), "layer %d", k)
		}
	}
}
