//go:build cuda

package decode

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/backend/oncuda"
	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/standin"
	"lessismore/plugin/internal/steps"
)

const gpuLayers = 6

var gpuShape = backend.Params{MaxRows: 8, Capacity: 32768, Heads: 32, KVHeads: 8, KeyDim: 128, ValueDim: 128, KVType: 1}

// cuda is what a decoder attends on.
func (d *Decoder) cuda() *oncuda.Decoder { return d.on.(*oncuda.Decoder) }

func makeDecoder(t *testing.T, change func(*backend.Params)) *Decoder {
	params := gpuShape
	if change != nil {
		change(&params)
	}
	b, err := NewDecoder(standin.Engine(t, nil), gpuLayers, nil, params)
	require.NoError(t, err)
	return b
}

// gpuCall is Qwen3-8B's shape, batch 8, without a table.
func gpuCall(layer int) backend.Attention {
	row := int64(128 * 2)
	store := backend.KVView{TokenStride: 8 * row, HeadStride: row, PageStride: 32768 * 8 * row}
	a := backend.Attention{
		Layer: int32(layer), Rows: 8,
		Query:  backend.RowView{Data: 0x10000, RowStride: 32 * row, HeadStride: row, Type: 1},
		Output: backend.RowView{Data: 0x40000, RowStride: 32 * row, HeadStride: row, Type: 1},
		Key:    store, Value: store, Lengths: 0x70000, Stream: 0xabc0,
	}
	a.Key.Data, a.Value.Data = 0x100000, 0x200000
	return a
}

func TestGPUDecodePath(t *testing.T) {
	if standin.Child() {
		runtime.LockOSThread() // a driver's context is a thread's
		b := makeDecoder(t, nil)
		for step := range 3 {
			b.cuda().Device.Foreign([]uint64{4096}) // a mark in the log
			for layer := range gpuLayers {
				a := gpuCall(layer)
				require.NoError(t, b.Attend(&a), "step %d", step)
			}
		}
		b.cuda().Device.Foreign([]uint64{4096})
		return
	}
	log := standin.Again(t)
	var launches []string
	marks := 0
	for _, line := range log {
		name, _, _ := strings.Cut(line, " ")
		if name == "cuPointerGetAttribute" {
			marks++
		}
		// The first step plans each layer: twelve addresses but the table and the sinks are looked at.
		if marks <= 1+gpuLayers*10 {
			continue
		}
		switch name {
		case "cuLaunchKernel", "cuLaunchKernelEx":
			require.Contains(t, line, "stream 0xabc0 ")
			require.NotContains(t, line, "context (nil)")
			launches = append(launches, strings.Fields(line)[1])
		case "cuCtxGetCurrent", "cuPointerGetAttribute":
		default:
			t.Fatalf("not on the decode path: %s", line)
		}
	}
	require.Equal(t, 4+gpuLayers*10, marks)
	full, filter, indexed, choose := "lim_attend_f16_128_8_tma", "lim_attend_f16_128_8_filtered", "lim_short_f16_128_8_indexed", "lim_select_filtered"
	step := []string{full, full, filter, choose, indexed, filter, choose, indexed, "lim_tally"}
	require.Equal(t, append(append([]string{}, step...), step...), launches)
}

func TestGPUAllocatesNothing(t *testing.T) {
	if !standin.Child() {
		standin.Again(t, "LIM_STANDIN_LOG=")
		return
	}
	b := makeDecoder(t, nil)
	a := gpuCall(0)
	step := func() {
		for layer := range gpuLayers {
			a.Layer = int32(layer)
			if err := b.Attend(&a); err != nil {
				t.Fatal(err)
			}
		}
	}
	step()
	require.Zero(t, testing.AllocsPerRun(100, step))
	require.Zero(t, testing.AllocsPerRun(100, func() { a.Key.Data += 1 << 20; step() }), "planning again")
}

// What a layer does follows from its role, from whether a set was chosen in this step, and for which rows.
func TestGPUSteps(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	b := makeDecoder(t, nil)
	does := func(layer int, change func(*backend.Attention)) string {
		a := gpuCall(layer)
		if change != nil {
			change(&a)
		}
		before := b.cuda().Step
		if layer <= before.Layer {
			before = steps.Step{}
		}
		require.NoError(t, b.Attend(&a))
		switch s, before := b.cuda().Step.Did, before.Did; {
		case s.Chose > before.Chose:
			return "select"
		case s.Sparse > before.Sparse:
			return "sparse"
		case s.Without > before.Without:
			return "no set"
		case s.Dense > before.Dense:
			return "dense"
		}
		return "?"
	}
	other := func(a *backend.Attention) { a.Lengths = 0x71000 }
	fewer := func(a *backend.Attention) { a.Rows = 7 }
	paged := func(a *backend.Attention) {
		a.Table, a.TableStride, a.PageSize = 0x80000, 2048, 16
		a.Key.PageStride, a.Value.PageStride = 16*2048, 16*2048
	}
	for _, c := range []struct {
		layer  int
		change func(*backend.Attention)
		want   string
	}{
		{0, nil, "dense"}, {1, nil, "dense"}, {2, nil, "select"}, {3, nil, "sparse"}, {4, nil, "select"}, {5, nil, "sparse"},
		{0, nil, "dense"}, {3, nil, "no set"}, {4, nil, "select"}, {5, nil, "sparse"}, // a selection layer left out
		{3, nil, "no set"},                       // a new step: the old set is not its own
		{2, nil, "select"}, {3, other, "no set"}, // other lengths
		{5, nil, "no set"}, // and so the layers after it
		{2, nil, "select"}, {3, fewer, "no set"}, {4, nil, "select"}, {5, nil, "sparse"},
		{2, paged, "select"}, {3, paged, "sparse"}, {5, nil, "no set"},
		{2, nil, "select"}, {2, nil, "select"}, {3, nil, "sparse"}, {3, nil, "no set"},
	} {
		require.Equal(t, c.want, does(c.layer, c.change), "layer %d", c.layer)
	}
	b.Reset()
	require.Equal(t, "no set", does(5, nil))

	// A call whose rows cannot outgrow the budget has nothing to choose, nor has the one after it.
	small := func(a *backend.Attention) { a.Slots = 2048 }
	require.Equal(t, "dense", does(2, small))
	require.Equal(t, "dense", does(3, small))
	require.Equal(t, "no set", does(5, nil))
	a := gpuCall(0)
	a.Slots = 32769
	require.ErrorContains(t, b.Attend(&a), "n_slots = 32769 is not in 1 .. 32768")

	// Rows that cannot outgrow the budget have nothing to choose.
	b = makeDecoder(t, func(p *backend.Params) { p.Capacity = 2048 })
	for layer := range gpuLayers {
		require.Equal(t, "dense", does(layer, nil))
	}
}

func TestGPURefusals(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	b := makeDecoder(t, nil)
	good := gpuCall(2)
	require.NoError(t, b.Attend(&good))
	require.NoError(t, b.Attend(&backend.Attention{Layer: 3, Rows: good.Rows, Query: good.Query, Output: good.Output, Key: good.Key,
		Value: good.Value, Lengths: good.Lengths}))
	for _, bad := range []struct {
		change func(*backend.Attention)
		kind   fault.Kind
		text   string
	}{
		{func(a *backend.Attention) { a.Layer = -1 }, fault.BadArgument, "layer = -1"},
		{func(a *backend.Attention) { a.Layer = 6 }, fault.BadArgument, "layer = 6 is not in 0 .. 5"},
		{func(a *backend.Attention) { a.Rows = 0 }, fault.BadArgument, "n_rows = 0"},
		{func(a *backend.Attention) { a.Rows = 9 }, fault.BadArgument, "n_rows = 9 is not in 1 .. 8"},
		{func(a *backend.Attention) { a.Query.Data = 0 }, fault.BadArgument, "query = NULL"},
		{func(a *backend.Attention) { a.Query.Data = 12 }, fault.BadArgument, "query = 0xc is no address"},
		{func(a *backend.Attention) { a.Query.Data = 0x3000 }, fault.BadArgument, "query = 0x3000 is not in the memory of CUDA device 0"},
		{func(a *backend.Attention) { a.Query.Data += 2 }, fault.Unsupported, "query = 0x10002"},
		{func(a *backend.Attention) { a.Query.Type = 3 }, fault.Unsupported, "query_dtype = 3 (q8_0) is for key and value only"},
		{func(a *backend.Attention) { a.Query.RowStride = 128 }, fault.BadArgument, "query_row_stride = 128 is less than a row of 256 bytes"},
		{func(a *backend.Attention) { a.Query.RowStride = 1 << 62 }, fault.BadArgument, "query_row_stride = 4611686018427387904 times 8 rows leaves"},
		{func(a *backend.Attention) { a.Output.HeadStride = -256 }, fault.BadArgument, "output_head_stride = -256"},
		{func(a *backend.Attention) { a.Output.Data = a.Query.Data + 4 }, fault.BadArgument, "overlaps query"},
		{func(a *backend.Attention) { a.Key.Data += 8 }, fault.Unsupported, "key = 0x100008"},
		{func(a *backend.Attention) { a.Value.TokenStride = 16 }, fault.BadArgument, "value_token_stride = 16"},
		{func(a *backend.Attention) { a.Value.PageStride = 1 << 61 }, fault.BadArgument, "value_page_stride = 2305843009213693952 times 8 pages leaves"},
		{func(a *backend.Attention) { a.Lengths = 0 }, fault.BadArgument, "lengths = 0"},
		{func(a *backend.Attention) { a.Lengths = 3 }, fault.BadArgument, "lengths = 0x3"},
		{func(a *backend.Attention) { a.Lengths = 8 }, fault.BadArgument, "lengths = 0x8 is not in the memory"},
		{func(a *backend.Attention) { a.Table = 0x80000; a.TableStride = 2048 }, fault.BadArgument, "page_size = 0"},
		{func(a *backend.Attention) { a.Table, a.PageSize, a.TableStride = 0x80000, 24, 2048 }, fault.BadArgument, "page_size = 24"},
		{func(a *backend.Attention) { a.Table, a.PageSize, a.TableStride = 0x80000, 16, 2047 }, fault.BadArgument, "table_stride = 2047"},
		{func(a *backend.Attention) { a.Table, a.PageSize, a.TableStride = 0x80001, 16, 2048 }, fault.BadArgument, "table = 0x80001"},
		{func(a *backend.Attention) { a.Sinks = 2 }, fault.BadArgument, "sinks = 0x2"},
		{func(a *backend.Attention) { a.Scale = nan() }, fault.BadArgument, "scale = NaN"},
		{func(a *backend.Attention) { a.KeyScale = nan() }, fault.BadArgument, "key_scale = NaN"},
		{func(a *backend.Attention) { a.ValueScale = nan() }, fault.BadArgument, "value_scale = NaN"},
		{func(a *backend.Attention) { a.Softcap = -1 }, fault.BadArgument, "softcap = -1"},
	} {
		before, a := b.cuda().Step, gpuCall(3)
		bad.change(&a)
		var refusal *fault.Error
		err := b.Attend(&a)
		require.True(t, errors.As(err, &refusal), "%v: %v", bad.text, err)
		require.Contains(t, refusal.Text, bad.text)
		require.Equal(t, bad.kind, refusal.Kind, refusal.Text)
		require.Equal(t, before, b.cuda().Step, bad.text)
	}
	_, err := b.TokenSet(8)
	require.ErrorContains(t, err, "row = 8")
	_, err = b.TokenSet(0)
	require.ErrorContains(t, err, "row = 0, but the last finished step had 0")
	s, err := b.Read()
	require.NoError(t, err)
	require.Equal(t, "cuda:0 stand-in", s.Device)

	for _, bad := range []struct {
		change func(*backend.Params)
		kind   fault.Kind
		text   string
	}{
		{func(p *backend.Params) { p.Device = 1 }, fault.DeviceFailed, "device = 1: CUDA device 1 is not one of the 1"},
		{func(p *backend.Params) { p.Work = 4096 * 3 }, fault.BadArgument, "work_size = 0 is less than"},
		{func(p *backend.Params) { p.Work, p.WorkSize = 4100, 1<<40 }, fault.BadArgument, "work = 0x1004"},
		{func(p *backend.Params) { p.Work, p.WorkSize = 256, 1<<40 }, fault.BadArgument, "of CUDA device 0's memory"},
		{func(p *backend.Params) { p.WorkSize = 4096 }, fault.BadArgument, "work_size = 4096, but work = 0"},
		{func(p *backend.Params) { p.Capacity = 1<<20 + 1 }, fault.Unsupported, "capacity = 1048577"},
		{func(p *backend.Params) { p.KeyDim, p.ValueDim = 72, 72 }, fault.Unsupported, "head_dim = 72 is not a multiple of 16 up to 256"},
		{func(p *backend.Params) { p.KeyDim, p.ValueDim, p.KVType = 192, 192, 4 }, fault.Unsupported, "head_dim = 192 is not 64, 96, 128 or 256, as on a GPU it has to be with q4_0"},
		{func(p *backend.Params) { p.KeyDim, p.ValueDim, p.KVType = 96, 96, 5 }, fault.Unsupported, "head_dim = 96 is not 64, 128 or 256, as it has to be with fp8"},
		{func(p *backend.Params) { p.KeyDim, p.ValueDim, p.KVType, p.Heads = 96, 96, 3, 128 }, fault.Unsupported, "dim = 96 with heads = 128"},
		{func(p *backend.Params) { p.KVType = 0 }, fault.Unsupported, "kv_dtype = 0 (f32)"},
		{func(p *backend.Params) { p.KVType = 6 }, fault.BadArgument, "kv_dtype = 6 is unknown"},
		{func(p *backend.Params) { p.KVTokens = -1 }, fault.BadArgument, "kv_tokens = -1"},
		{func(p *backend.Params) { p.KVTokens = int64(p.MaxRows)*int64(p.Capacity) + 1 }, fault.BadArgument, "max_rows * capacity"},
		{func(p *backend.Params) { *p = backend.Params{Device: backend.CPU, MaxRows: 1, KVTokens: 7} }, fault.Unsupported, "kv_tokens = 7"},
	} {
		params := gpuShape
		bad.change(&params)
		var refusal *fault.Error
		_, err := NewDecoder(standin.Engine(t, nil), gpuLayers, nil, params)
		require.True(t, errors.As(err, &refusal), "%v: %v", bad.text, err)
		require.Contains(t, refusal.Text, bad.text)
		require.Equal(t, bad.kind, refusal.Kind, refusal.Text)
	}
	for _, good := range []struct{ dim, typ int32 }{{80, 1}, {96, 2}, {112, 1}, {192, 1}, {16, 2}, {64, 4}, {96, 4}, {256, 4}, {96, 3}} {
		params := gpuShape
		params.KeyDim, params.ValueDim, params.KVType = good.dim, good.dim, good.typ
		_, err := WorkSize(standin.Engine(t, nil), gpuLayers, params)
		require.NoError(t, err)
	}
	_, err = NewDecoder(standin.Engine(t, func(c *settings.Config) { c.Budget = 30000 }), gpuLayers, nil, gpuShape)
	require.ErrorContains(t, err, "top_k = 22500 is more than")
	shared := gpuShape
	shared.KVTokens = 10000
	_, err = NewDecoder(standin.Engine(t, func(c *settings.Config) { c.Layers = nil }), gpuLayers, nil, shared)
	require.ErrorContains(t, err, "kv_tokens = 10000: name the layers that choose")
	apart, err := WorkSize(standin.Engine(t, nil), gpuLayers, gpuShape)
	require.NoError(t, err)
	together, err := WorkSize(standin.Engine(t, nil), gpuLayers, shared)
	require.NoError(t, err)
	require.Less(t, 4*together, apart)
}

func requireKind(t *testing.T, kind fault.Kind, err error) {
	t.Helper()
	var refusal *fault.Error
	require.True(t, errors.As(err, &refusal))
	require.Equal(t, kind, refusal.Kind)
}

func nan() float32 { z := float32(0); return z / z }

// A launch that fails may have left half a layer: the step is forgotten.
func TestGPULaunchThatFails(t *testing.T) {
	if !standin.Child() {
		standin.Again(t, "LIM_STANDIN_FAIL=cuLaunchKernel:700")
		return
	}
	b := makeDecoder(t, nil)
	a := gpuCall(2)
	err := b.Attend(&a)
	requireKind(t, fault.DeviceFailed, err)
	require.ErrorContains(t, err, "launching lim_attend_f16_128_8_filtered: CUDA_ERROR (700)")
	require.Equal(t, steps.Step{Layer: -1}, b.cuda().Step)
}

// K and V are described to TMA when a call is planned, by a driver that wants a context for it.
func TestGPUMapThatFails(t *testing.T) {
	if !standin.Child() {
		standin.Again(t, "LIM_STANDIN_FAIL=cuTensorMapEncodeTiled:700")
		return
	}
	_, err := NewDecoder(standin.Engine(t, nil), gpuLayers, nil, gpuShape)
	requireKind(t, fault.DeviceFailed, err)
	require.ErrorContains(t, err, "making the tensor maps of K and V: CUDA_ERROR (700)")
}

func TestGPUOutOfMemory(t *testing.T) {
	if !standin.Child() {
		standin.Again(t, "LIM_STANDIN_FAIL=cuMemAlloc_v2:2")
		return
	}
	_, err := NewDecoder(standin.Engine(t, nil), gpuLayers, nil, gpuShape)
	requireKind(t, fault.NoMemory, err)
	require.ErrorContains(t, err, "CUDA_ERROR_OUT_OF_MEMORY")
}
