package plugin_test

import (
	"encoding/binary"
	"math"
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin"
)

// element is one value of a tensor, in float64.
type element func(page, token, head, i int) float64

// fill makes a random tensor of a layout of chance, with what lies between its rows set to NaN, and reads it.
func fill(rng *rand.Rand, typ int32, pages, tokens, heads, dim int) (plugin.View, element) {
	block, bytes := 1, map[int32]int{plugin.F32: 4, plugin.F16: 2, plugin.BF16: 2, plugin.Q8_0: 34, plugin.Q4_0: 18}[typ]
	if bytes > 4 {
		block = 32
	}
	row := dim/block*bytes + rng.Intn(2)*bytes
	headStride, tokenStride := row, row*heads
	if rng.Intn(2) == 0 {
		tokenStride, headStride = row, row*tokens
	}
	pageStride := row*heads*tokens + rng.Intn(2)*bytes
	data := make([]byte, pageStride*pages) // ends behind the last row, at most by what lies between rows
	for i := 0; i+2 <= len(data); i += 2 {
		binary.LittleEndian.PutUint16(data[i:], float16.NaN().Bits())
	}
	if typ == plugin.F32 {
		for i := 0; i < len(data); i += 4 {
			binary.LittleEndian.PutUint32(data[i:], math.Float32bits(float32(math.NaN())))
		}
	}
	at := func(page, token, head, i int) []byte {
		return data[page*pageStride+token*tokenStride+head*headStride+i/block*bytes:]
	}
	for page := range pages {
		for token := range tokens {
			for head := range heads {
				for i := 0; i < dim; i += block {
					put(rng, typ, at(page, token, head, i))
				}
			}
		}
	}
	v := plugin.BytesView(data, typ, tokens, heads, dim)
	switch typ { // the typed views of the same memory
	case plugin.F32:
		floats := make([]float32, len(data)/4)
		for i := range floats {
			floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
		v = plugin.Float32View(floats, tokens, heads, dim)
	case plugin.F16:
		halves := make([]float16.Float16, len(data)/2)
		for i := range halves {
			halves[i] = float16.Frombits(binary.LittleEndian.Uint16(data[2*i:]))
		}
		v = plugin.Float16View(halves, tokens, heads, dim)
	}
	v.HeadStride, v.TokenStride, v.Pages, v.PageStride = int64(headStride), int64(tokenStride), pages, int64(pageStride)
	values := make([]float64, 0, pages*tokens*heads*dim)
	for n := range cap(values) {
		i, head, token, page := n%dim, n/dim%heads, n/dim/heads%tokens, n/dim/heads/tokens
		values = append(values, get(typ, at(page, token, head, i), i%block))
	}
	return v, func(page, token, head, i int) float64 {
		return values[((page%pages*tokens+token)*heads+head)*dim+i]
	}
}

// put writes a random element, or block of them.
func put(rng *rand.Rand, typ int32, to []byte) {
	x := float32(rng.NormFloat64())
	switch typ {
	case plugin.F32:
		binary.LittleEndian.PutUint32(to, math.Float32bits(x))
	case plugin.F16:
		binary.LittleEndian.PutUint16(to, float16.Fromfloat32(x).Bits())
	case plugin.BF16:
		binary.LittleEndian.PutUint16(to, uint16(math.Float32bits(x)>>16))
	case plugin.Q8_0:
		rng.Read(to[:34])
		binary.LittleEndian.PutUint16(to, float16.Fromfloat32(x/128).Bits())
	case plugin.Q4_0:
		rng.Read(to[:18])
		binary.LittleEndian.PutUint16(to, float16.Fromfloat32(x/8).Bits())
	}
}

// get reads element i of a block.
func get(typ int32, from []byte, i int) float64 {
	half := float64(float16.Frombits(binary.LittleEndian.Uint16(from)).Float32())
	switch typ {
	case plugin.F32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(from)))
	case plugin.BF16:
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(from)) << 16))
	case plugin.Q8_0:
		return half * float64(int8(from[2+i]))
	case plugin.Q4_0:
		return half * float64(int(from[2+i%16]>>(i/16*4)&15)-8)
	}
	return half
}

// problem is a call of chance and what there is to read of it.
type problem struct {
	plugin.Tensors
	query, key, value element
	floats            []float32
	halves            []float16.Float16
}

func newProblem(rng *rand.Rand) *problem {
	p := new(problem)
	rows, slots, kvHeads := 1+rng.Intn(4), 1+rng.Intn(150), 1+rng.Intn(3)
	heads := kvHeads * (1 + rng.Intn(4))
	types := []int32{plugin.F32, plugin.F16, plugin.F32, plugin.F16, plugin.BF16, plugin.Q8_0, plugin.Q4_0}
	kt, vt := types[rng.Intn(len(types))], types[rng.Intn(len(types))]
	dims := func(typ int32) int {
		if typ == plugin.Q8_0 || typ == plugin.Q4_0 {
			return 32 * (1 + rng.Intn(3))
		}
		return 16 * (1 + rng.Intn(6))
	}
	dim, valueDim := dims(kt), dims(vt)
	pages := []int{1, rows}[rng.Intn(2)]
	p.Query, p.query = fill(rng, types[rng.Intn(5)], 1, rows, heads, dim)
	p.Key, p.key = fill(rng, kt, pages, slots, kvHeads, dim)
	p.Value, p.value = fill(rng, vt, []int{1, rows}[rng.Intn(2)], slots, kvHeads, valueDim)
	if rng.Intn(2) == 0 {
		p.floats = make([]float32, rows*heads*valueDim)
		p.Output = plugin.Float32View(p.floats, rows, heads, valueDim)
	} else {
		p.halves = make([]float16.Float16, rows*heads*valueDim)
		p.Output = plugin.Float16View(p.halves, rows, heads, valueDim)
	}
	p.see(rng, rows, slots)
	if p.Scale = float32(rng.Intn(2)) * 0.1; rng.Intn(3) == 0 {
		p.Softcap = 5
	}
	headwise := func() []float32 {
		x := make([]float32, heads)
		for h := range x {
			x[h] = rng.Float32()
		}
		return x
	}
	if p.Mask != nil && rng.Intn(2) == 0 {
		p.Slopes = headwise()
	}
	if rng.Intn(3) == 0 {
		p.Sinks = headwise()
	}
	return p
}

// see says what the rows see, in any of the ways that there are.
func (p *problem) see(rng *rand.Rand, rows, slots int) {
	numbers := make([]int32, rows)
	for r := range numbers {
		numbers[r] = int32(rng.Intn(slots + 1))
	}
	if rng.Intn(3) == 0 {
		p.Lengths = numbers
	} else {
		p.QueryPositions = numbers
		if rng.Intn(2) == 0 {
			for range []int{1, rows}[rng.Intn(2)] {
				for _, position := range rng.Perm(slots) {
					if rng.Intn(8) == 0 {
						position = -1
					}
					p.Positions = append(p.Positions, int32(position))
				}
			}
		}
	}
	if rng.Intn(2) == 0 {
		values := []float16.Float16{0, float16.Fromfloat32(float32(math.Copysign(0, -1))), float16.Inf(-1), float16.Fromfloat32(-2.5)}
		values = values[:1+rng.Intn(len(values))]
		p.Mask = make([]float16.Float16, []int{1, rows}[rng.Intn(2)]*slots)
		for i := range p.Mask {
			if p.Mask[i] = values[rng.Intn(len(values))]; len(values) == 4 && p.Mask[i].IsFinite() {
				p.Mask[i] = float16.Fromfloat32(-4 * rng.Float32())
			}
		}
	}
}

// of is an element of an array by slot that may be one for all rows.
func of[T any](list []T, row, slot, slots int) (x T) {
	if len(list) > 0 {
		x = list[(row*slots+slot)%len(list)]
	}
	return x
}

// visible are the slots that a row sees, in the order of their positions.
func (p *problem) visible(row int) []int {
	slots, newest := p.Key.Tokens, 0
	if p.Lengths != nil {
		newest = int(p.Lengths[row]) - 1
	} else {
		newest = int(p.QueryPositions[row])
	}
	position := func(slot int) int {
		if p.Positions == nil {
			return slot
		}
		return int(of(p.Positions, row, slot, slots))
	}
	var seen []int
	for slot := range slots {
		if at := position(slot); at >= 0 && at <= newest && !of(p.Mask, row, slot, slots).IsInf(-1) {
			seen = append(seen, slot)
		}
	}
	slices.SortFunc(seen, func(a, b int) int { return position(a) - position(b) })
	return seen
}

// attend is the definition, in float64, of a head of a row over some slots.
func (p *problem) attend(row, head int, slots []int) []float64 {
	kvHead := head / (p.Query.Heads / p.Key.Heads)
	scale := float64(p.Scale)
	if scale == 0 {
		scale = 1 / math.Sqrt(float64(p.Key.Dim))
	}
	logits, top := make([]float64, len(slots)), math.Inf(-1)
	for j, slot := range slots {
		x := 0.0
		for i := range p.Key.Dim {
			x += p.query(0, row, head, i) * p.key(row, slot, kvHead, i)
		}
		if x *= scale; p.Softcap > 0 {
			x = float64(p.Softcap) * math.Tanh(x/float64(p.Softcap))
		}
		bias := float64(of(p.Mask, row, slot, p.Key.Tokens).Float32())
		if p.Slopes != nil {
			bias *= float64(p.Slopes[head])
		}
		logits[j] = x + bias
		top = max(top, logits[j])
	}
	output, sum := make([]float64, p.Value.Dim), 0.0
	if p.Sinks != nil {
		top = max(top, float64(p.Sinks[head]))
		sum = math.Exp(float64(p.Sinks[head]) - top)
	}
	for j, slot := range slots {
		weight := math.Exp(logits[j] - top)
		sum += weight
		for i := range output {
			output[i] += weight * p.value(row, slot, kvHead, i)
		}
	}
	for i := range output {
		if len(slots) > 0 {
			output[i] /= sum
		}
	}
	return output
}

// agree compares a row of the output with the definition over some slots. f16 keeps 11 bits, a query for keys in blocks 16.
func (p *problem) agree(t *testing.T, row int, slots []int) {
	exact := 2e-5
	if p.Key.Type == plugin.Q8_0 || p.Key.Type == plugin.Q4_0 {
		exact = 2e-4
	}
	for head := range p.Query.Heads {
		for i, want := range p.attend(row, head, slots) {
			at, got, limit := (row*p.Query.Heads+head)*p.Value.Dim+i, 0.0, exact
			if p.floats != nil {
				got = float64(p.floats[at])
			} else {
				got, limit = float64(p.halves[at].Float32()), limit+math.Abs(want)/2048
			}
			require.InDelta(t, want, got, limit, "layer %d, row %d, head %d, element %d, of %d slots: %+v", p.Layer, row, head, i, len(slots), p.Tensors)
		}
	}
}

// Calls of chance agree with attention's definition in float64, in layers that attend to everything, that choose, and that
// attend to what was chosen.
func TestTensorsAgreeWithTheDefinition(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	const layers, maxRows = 4, 4
	workers := plugin.NewWorkers(2)
	defer workers.Free()
	sparse := 0
	for range 150 {
		config := plugin.DefaultConfig()
		config.Budget, config.Layers, config.Recency, config.SinkTokens = 1+rng.Intn(60), []int{1}, rng.Float64(), rng.Intn(5)
		config.Policy = []plugin.Policy{plugin.Union, plugin.Mass}[rng.Intn(2)]
		engine, err := plugin.NewEngine(config)
		require.NoError(t, err)
		decoder, err := plugin.NewDecoder(engine, layers, workers, plugin.DecoderParams{Device: plugin.CPU, MaxRows: maxRows})
		require.NoError(t, err)
		p := newProblem(rng)
		for p.Layer = range int32(layers) {
			require.NoError(t, p.Attend(decoder), "%+v", p.Tensors)
			for row := range p.Query.Tokens {
				seen := p.visible(row)
				if p.Layer >= 2 && len(seen) > config.Budget {
					set, err := decoder.TokenSet(row)
					require.NoError(t, err)
					require.Len(t, set, config.Budget)
					at := map[int]bool{}
					for _, slot := range set {
						at[int(slot)] = true
					}
					seen = slices.DeleteFunc(seen, func(slot int) bool { return !at[slot] })
					require.Len(t, seen, config.Budget, "a set holds slots that its row does not see, or one twice")
					sparse++
				}
				p.agree(t, row, seen)
			}
		}
		decoder.Free()
	}
	require.NotZero(t, sparse)
}
