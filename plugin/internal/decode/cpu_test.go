package decode

import (
	"math"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/steps"
)

// tensors are one layer's, in C memory as a caller's are.
type tensors struct {
	memory    [8]cpu.Arena
	output    []float32
	positions []int32
	mask      []float16.Float16
	query     []int32 // its position
	slopes    []float32
	args      backend.Attention
}

const (
	testHeads   = 4
	testKVHeads = 2
	testDim     = 32
	testLayers  = 6
)

func address[T any](s []T) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(s))) }

// bias is a mask's value of a slot: -1/512 to -2 over 400 of them.
func bias(slot int) float16.Float16 {
	return float16.Fromfloat32(-float32(math.Exp2(float64(slot)/40 - 9)))
}

func newTensors(t testing.TB, rng *rand.Rand, slots int) *tensors {
	x := new(tensors)
	row := int64(testDim * 4)
	floats := func(arena, rows int) []float32 {
		s := cpu.Slice[float32](&x.memory[arena], rows*testDim)
		for i := range s {
			s[i] = float32(rng.NormFloat64())
		}
		return s
	}
	query, key, value := floats(0, testHeads), floats(1, slots*testKVHeads), floats(2, slots*testKVHeads)
	x.output = floats(3, testHeads)
	x.positions, x.mask = cpu.Slice[int32](&x.memory[4], slots), cpu.Slice[float16.Float16](&x.memory[5], slots)
	x.query, x.slopes = cpu.Slice[int32](&x.memory[6], 1), cpu.Slice[float32](&x.memory[7], testHeads)
	for h := range x.slopes {
		x.slopes[h] = 0.25 * float32(h+1)
	}
	x.query[0] = int32(slots - 1)
	for i := range x.positions {
		x.positions[i] = int32(i)
	}
	x.args = backend.Attention{
		Heads: testHeads, KVHeads: testKVHeads, KeyDim: testDim, ValueDim: testDim,
		Rows: 1, Slots: int64(slots), QueryPositions: address(x.query),
		Query:  backend.RowView{Data: address(query), HeadStride: row},
		Key:    backend.KVView{Data: address(key), TokenStride: testKVHeads * row, HeadStride: row},
		Value:  backend.KVView{Data: address(value), TokenStride: testKVHeads * row, HeadStride: row},
		Output: backend.RowView{Data: address(x.output), HeadStride: row},
	}
	t.Cleanup(func() {
		for i := range x.memory {
			x.memory[i].Free()
		}
	})
	return x
}

// onCPU makes a decoder on the CPU, of one row.
func onCPU(engine *contexts.Engine, layers int, workers *oncpu.Workers) (*Decoder, error) {
	return NewDecoder(engine, layers, workers, backend.Params{Device: backend.CPU, MaxRows: 1})
}

// cpu is what a decoder attends on.
func (d *Decoder) cpu() *oncpu.Decoder { return d.on.(*oncpu.Decoder) }

func newTestCPU(t testing.TB, budget, threads int) *Decoder {
	config := settings.DefaultConfig()
	config.Budget, config.Layers = budget, []int{1, 3}
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	workers := oncpu.NewWorkers(threads)
	s, err := onCPU(engine, testLayers, workers)
	require.NoError(t, err)
	t.Cleanup(func() {
		s.Free()
		workers.Free()
	})
	return s
}

func TestCPUAllocatesNothingPerToken(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	const slots = 2000
	for name, prepare := range map[string]func(*tensors){
		"in order": func(x *tensors) {},
		"placed":   func(x *tensors) { x.args.Positions = address(x.positions) },
		"out of order": func(x *tensors) {
			rng.Shuffle(slots, func(i, j int) { x.positions[i], x.positions[j] = x.positions[j], x.positions[i] })
			x.args.Positions = address(x.positions)
		},
		"masked": func(x *tensors) {
			x.mask[5] = steps.MinusInfinity
			x.args.Mask = address(x.mask)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, x := newTestCPU(t, 256, 2), newTensors(t, rng, slots)
			prepare(x)
			token := func() {
				x.query[0] = int32(slots - 2 + int(s.cpu().Counts.Steps)%2)
				for layer := range int32(testLayers) {
					x.args.Layer = layer
					if err := s.Attend(&x.args); err != nil {
						t.Fatal(err)
					}
				}
			}
			token()
			token()
			require.Zero(t, testing.AllocsPerRun(100, token))
			require.Zero(t, s.Stats().NoSetCalls)
			require.NotZero(t, s.Stats().SparseCalls)
		})
	}
}

// Sets that last are audited where the layers are given, too. A mask that is no mere yes or no counts in every row that the kernels get: of sets that last, and of an audited layer.
func TestMaskCountsInEveryLayer(t *testing.T) {
	config := settings.DefaultConfig()
	config.Budget, config.Layers, config.Interval, config.Guard = 32, []int{1, 3}, 2, 2
	biased, err := contexts.NewEngine(config)
	require.NoError(t, err)
	config.Budget, config.Interval = settings.MaxBudget, 1
	full, err := contexts.NewEngine(config)
	require.NoError(t, err)
	workers := oncpu.NewWorkers(1)
	defer workers.Free()
	s, err := onCPU(biased, testLayers, workers)
	require.NoError(t, err)
	defer s.Free()
	exact, err := onCPU(full, testLayers, workers)
	require.NoError(t, err)
	defer exact.Free()
	x := newTensors(t, rand.New(rand.NewSource(7)), 400)
	for i := range x.mask {
		x.mask[i] = bias(i)
	}
	x.args.Mask, x.args.Slopes = address(x.mask), address(x.slopes)
	compared := 0
	for p := int32(300); p < 340; p++ {
		for layer := range int32(testLayers) {
			x.args.Layer, x.query[0] = layer, p
			require.NoError(t, s.Attend(&x.args))
			if got := slices.Clone(x.output); s.cpu().Call.Mode != cpu.Sparse {
				require.NoError(t, exact.Attend(&x.args))
				require.Equal(t, x.output, got, "position %d, layer %d", p, layer)
				compared++
			}
		}
	}
	require.Greater(t, compared, 20*(testLayers-2))
	require.NotZero(t, s.Stats().Audits)
}

// TestVisibilityIsLiteral has a visibility agree with a plain reading of positions and mask.
func TestVisibilityIsLiteral(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	s, before := new(steps.Visibility), new(steps.Visibility)
	zero, minusZero := float16.Fromfloat32(0), float16.Fromfloat32(float32(math.Copysign(0, -1)))
	defer s.Free()
	defer before.Free()
	for range 3000 {
		slots := 1 + rng.Intn(100)
		positions, mask := make([]int32, slots), make([]float16.Float16, slots)
		stretch := []int{1, 1, 3, 1000}[rng.Intn(4)]
		for i, p := range rng.Perm(slots) {
			if positions[i] = int32(p * stretch); rng.Intn(2) == 0 {
				positions[i] = int32(i * stretch)
			}
			if rng.Intn(8) == 0 {
				positions[i] = -1
			}
			mask[i] = []float16.Float16{zero, zero, zero, minusZero, steps.MinusInfinity, float16.Fromfloat32(1)}[rng.Intn(4+2*rng.Intn(2))]
		}
		query := []int32{int32(rng.Intn(slots * stretch))}
		a := backend.Attention{Rows: 1, Slots: int64(slots), QueryPositions: address(query)}
		if rng.Intn(3) > 0 {
			a.Positions = address(positions)
		}
		if rng.Intn(3) > 0 {
			a.Mask = address(mask)
		}

		type token struct{ position, slot int32 }
		var want []token
		taken, twice, plain := map[int32]bool{}, false, true
		for i := range int32(slots) {
			p := i
			if a.Positions != 0 {
				p = positions[i]
			}
			if p < 0 || p > query[0] || a.Mask != 0 && mask[i] == steps.MinusInfinity {
				continue
			}
			twice = twice || taken[p]
			taken[p] = true
			plain = plain && (a.Mask == 0 || mask[i].Float32() == 0)
			want = append(want, token{p, i})
		}
		err := s.Look(a.Sees(0))
		if twice {
			require.ErrorContains(t, err, "is also positions[")
			continue
		}
		require.NoError(t, err)
		slices.SortFunc(want, func(a, b token) int { return int(a.position) - int(b.position) })
		require.Equal(t, len(want), s.Visible)
		require.Equal(t, plain, s.Plain)
		for i, w := range want {
			slot := int32(i)
			if s.Slots != nil {
				slot = s.Slots[i]
			}
			require.Equal(t, w.slot, slot)
		}

		// The same arrays elsewhere are the same; any difference that counts is one.
		require.True(t, s.Same(a.Sees(0)))
		other := a
		copies, masks := slices.Clone(positions), slices.Clone(mask)
		if a.Positions != 0 {
			other.Positions = address(copies)
		}
		if a.Mask != 0 {
			other.Mask = address(masks)
		}
		require.True(t, s.Same(other.Sees(0)))
		i := rng.Intn(slots)
		if a.Positions != 0 {
			copies[i]++
			require.False(t, s.Same(other.Sees(0)))
			copies[i]--
		}
		if a.Mask != 0 {
			masks[i] ^= 1
			require.False(t, s.Same(other.Sees(0)))
			masks[i] ^= 1
		}
		query[0]++
		require.False(t, s.Same(other.Sees(0)))
	}
}

func TestCPUsAttendInParallel(t *testing.T) {
	config := settings.DefaultConfig()
	config.Budget, config.Layers = 64, []int{1, 3}
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	workers := oncpu.NewWorkers(2)
	defer workers.Free()
	const sequences, tokens = 4, 50
	var wait sync.WaitGroup
	inputs := make([]*tensors, sequences)
	for i := range inputs {
		inputs[i] = newTensors(t, rand.New(rand.NewSource(5)), 500) // all the same
	}
	for i := range sequences {
		wait.Add(1)
		go func() {
			defer wait.Done()
			s, err := onCPU(engine, testLayers, workers)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Free()
			for range tokens {
				for layer := range int32(testLayers) {
					inputs[i].args.Layer = layer
					if err := s.Attend(&inputs[i].args); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	for range 100 {
		engine.Total()
	}
	wait.Wait()
	for _, x := range inputs {
		require.Equal(t, inputs[0].output, x.output)
	}
	require.LessOrEqual(t, len(workers.Idle), sequences)
	require.EqualValues(t, sequences*tokens, engine.Total().Steps)
	require.EqualValues(t, sequences*tokens*2, engine.Total().SelectCalls)
}

func TestAttentionArgumentsNeverPanic(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	x := newTensors(t, rng, 64)
	extremes := []int64{0, 1, -1, 2, 16, 31, 32, 64, 256, 257, 4096, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64, 1 << 40, 1 << 62}
	accepted := 0
	d := newTestCPU(t, 16, 1)
	for range 200000 {
		a := x.args
		for range 1 + rng.Intn(3) {
			v := extremes[rng.Intn(len(extremes))]
			rows, store := []*backend.RowView{&a.Query, &a.Output}[rng.Intn(2)], []*backend.KVView{&a.Key, &a.Value}[rng.Intn(2)]
			switch rng.Intn(17) {
			case 0:
				a.Layer = int32(v)
			case 1:
				a.Heads = int32(v)
			case 2:
				a.KVHeads = int32(v)
			case 3:
				a.KeyDim = int32(v)
			case 4:
				a.ValueDim = int32(v)
			case 5:
				a.Slots = v
			case 6:
				x.query[0] = int32(v)
			case 7:
				rows.Data = uintptr(v)
			case 8:
				store.TokenStride = v
			case 9:
				rows.HeadStride = v
			case 10:
				rows.Type = int32(v)
			case 11:
				a.Scale, a.Softcap = float32(v), math.Float32frombits(uint32(v))
			case 12:
				store.Data = uintptr(v)
			case 13:
				store.HeadStride = v
			case 14:
				store.Type = int32(v)
			case 15:
				rows.RowStride, store.PageStride = v, v
			case 16:
				a.PositionsStride, a.MaskStride = v, v
			}
		}
		if err := d.check(&a); err == nil {
			accepted++
			for i, v := range []backend.KVView{a.Key, a.Value, {Data: a.Query.Data, HeadStride: a.Query.HeadStride}, {Data: a.Output.Data, HeadStride: a.Output.HeadStride}} {
				heads := []int32{a.KVHeads, a.KVHeads, a.Heads, a.Heads}[i]
				top := int64(v.Data) + oncpu.StrideOf(v.TokenStride, a.Slots)*(a.Slots-1) + oncpu.StrideOf(v.HeadStride, int64(heads))*int64(heads-1)
				require.True(t, v.Data >= backend.Lowest && top >= int64(v.Data), "%+v", a) // the last row has an address
			}
		}
		x.query[0] = 63
	}
	require.NotZero(t, accepted)
}
