//go:build cuda

package plugin

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The driver is opened once per process, so each test is a process of its own: it runs itself again, with the
// stand-in driver (tests/gpu/standin), whose memory is the heap and whose kernels do nothing.
func batchChild() bool { return os.Getenv("LIM_CHILD") != "" }

func batchAgain(t *testing.T, env ...string) (log []string) {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	source := filepath.Join(filepath.Dir(file), "..", "tests", "gpu", "standin", "standin.c")
	library, path := filepath.Join(t.TempDir(), "libcuda.so.1"), filepath.Join(t.TempDir(), "log")
	out, err := exec.Command("cc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source, "-lpthread").CombinedOutput()
	require.NoError(t, err, "%s", out)
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), "LIM_CHILD=1", "LESSISMORE_LIBCUDA="+library, "LIM_STANDIN_LOG="+path), env...)
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	text, _ := os.ReadFile(path)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

const batchLayers = 6

var batchShape = BatchParams{MaxRows: 8, Capacity: 32768, Heads: 32, KVHeads: 8, HeadDim: 128, KVType: 1}

func batchEngine(t *testing.T, change func(*Config)) *Engine {
	config := DefaultConfig()
	config.Layers = []int{2, 4}
	if change != nil {
		change(&config)
	}
	e, err := NewEngine(config)
	require.NoError(t, err)
	return e
}

func makeBatch(t *testing.T, change func(*BatchParams)) *Batch {
	params := batchShape
	if change != nil {
		change(&params)
	}
	b, err := NewBatch(batchEngine(t, nil), batchLayers, params)
	require.NoError(t, err)
	return b
}

// batchCall is Qwen3-8B's shape, batch 8, without a table.
func batchCall(layer int) BatchAttention {
	row := int64(128 * 2)
	store := DeviceStore{TokenStride: 8 * row, HeadStride: row, PageStride: 32768 * 8 * row}
	a := BatchAttention{
		Layer: int32(layer), Rows: 8,
		Query:  DeviceRows{Data: 0x10000, RowStride: 32 * row, HeadStride: row, Type: 1},
		Output: DeviceRows{Data: 0x40000, RowStride: 32 * row, HeadStride: row, Type: 1},
		Key:    store, Value: store, Lengths: 0x70000, Stream: 0xabc0,
	}
	a.Key.Data, a.Value.Data = 0x100000, 0x200000
	return a
}

func TestBatchDecodePath(t *testing.T) {
	if batchChild() {
		b := makeBatch(t, nil)
		for step := range 3 {
			b.device.Foreign([]uint64{4096}) // a mark in the log
			for layer := range batchLayers {
				a := batchCall(layer)
				require.NoError(t, b.Attend(&a), "step %d", step)
			}
		}
		b.device.Foreign([]uint64{4096})
		return
	}
	log := batchAgain(t)
	var launches []string
	marks := 0
	for _, line := range log {
		name, _, _ := strings.Cut(line, " ")
		if name == "cuPointerGetAttribute" {
			marks++
		}
		// The first step plans each layer: twelve addresses but the table and the sinks are looked at.
		if marks <= 1+batchLayers*10 {
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
	require.Equal(t, 4+batchLayers*10, marks)
	full, filter, indexed, choose := "lim_attend_f16_128_8_tma", "lim_attend_f16_128_8_filtered", "lim_short_f16_128_8_indexed", "lim_select_filtered"
	step := []string{full, full, filter, choose, indexed, filter, choose, indexed, "lim_tally"}
	require.Equal(t, append(append([]string{}, step...), step...), launches)
}

func TestBatchAllocatesNothing(t *testing.T) {
	if !batchChild() {
		batchAgain(t, "LIM_STANDIN_LOG=")
		return
	}
	b := makeBatch(t, nil)
	a := batchCall(0)
	step := func() {
		for layer := range batchLayers {
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
func TestBatchSteps(t *testing.T) {
	if !batchChild() {
		batchAgain(t)
		return
	}
	b := makeBatch(t, nil)
	does := func(layer int, change func(*BatchAttention)) string {
		a := batchCall(layer)
		if change != nil {
			change(&a)
		}
		before := b.step
		if layer <= before.layer {
			before = batchStep{}
		}
		require.NoError(t, b.Attend(&a))
		switch s := b.step; {
		case s.chose > before.chose:
			return "select"
		case s.sparse > before.sparse:
			return "sparse"
		case s.without > before.without:
			return "no set"
		case s.dense > before.dense:
			return "dense"
		}
		return "?"
	}
	other := func(a *BatchAttention) { a.Lengths = 0x71000 }
	fewer := func(a *BatchAttention) { a.Rows = 7 }
	paged := func(a *BatchAttention) {
		a.Table, a.TableStride, a.PageSize = 0x80000, 2048, 16
		a.Key.PageStride, a.Value.PageStride = 16*2048, 16*2048
	}
	for _, c := range []struct {
		layer  int
		change func(*BatchAttention)
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
	small := func(a *BatchAttention) { a.Capacity = 2048 }
	require.Equal(t, "dense", does(2, small))
	require.Equal(t, "dense", does(3, small))
	require.Equal(t, "no set", does(5, nil))
	a := batchCall(0)
	a.Capacity = 32769
	require.ErrorContains(t, b.Attend(&a), "capacity = 32769 is not in 1 .. 32768")

	// Rows that cannot outgrow the budget have nothing to choose.
	b = makeBatch(t, func(p *BatchParams) { p.Capacity = 2048 })
	for layer := range batchLayers {
		require.Equal(t, "dense", does(layer, nil))
	}
}

func TestBatchRefusals(t *testing.T) {
	if !batchChild() {
		batchAgain(t)
		return
	}
	b := makeBatch(t, nil)
	good := batchCall(2)
	require.NoError(t, b.Attend(&good))
	require.NoError(t, b.Attend(&BatchAttention{Layer: 3, Rows: good.Rows, Query: good.Query, Output: good.Output, Key: good.Key,
		Value: good.Value, Lengths: good.Lengths}))
	for _, bad := range []struct {
		change func(*BatchAttention)
		kind   Kind
		text   string
	}{
		{func(a *BatchAttention) { a.Layer = -1 }, BadArgument, "layer = -1"},
		{func(a *BatchAttention) { a.Layer = 6 }, BadArgument, "layer = 6 is not in 0 .. 5"},
		{func(a *BatchAttention) { a.Rows = 0 }, BadArgument, "n_rows = 0"},
		{func(a *BatchAttention) { a.Rows = 9 }, BadArgument, "n_rows = 9 is not in 1 .. 8"},
		{func(a *BatchAttention) { a.Query.Data = 0 }, BadArgument, "query = NULL"},
		{func(a *BatchAttention) { a.Query.Data = 12 }, BadArgument, "query = 0xc is not in the memory of CUDA device 0"},
		{func(a *BatchAttention) { a.Query.Data += 2 }, Unsupported, "query = 0x10002"},
		{func(a *BatchAttention) { a.Query.Type = 3 }, BadArgument, "query's type = 3"},
		{func(a *BatchAttention) { a.Query.RowStride = 128 }, BadArgument, "query's row_stride = 128"},
		{func(a *BatchAttention) { a.Query.RowStride = 1 << 62 }, BadArgument, "query's row_stride = 4611686018427387904 times 8 leaves"},
		{func(a *BatchAttention) { a.Output.HeadStride = -256 }, BadArgument, "output's head_stride = -256"},
		{func(a *BatchAttention) { a.Output.Data = a.Query.Data + 4 }, BadArgument, "overlaps query"},
		{func(a *BatchAttention) { a.Key.Data += 8 }, Unsupported, "key = 0x100008"},
		{func(a *BatchAttention) { a.Value.TokenStride = 16 }, BadArgument, "value's token_stride = 16"},
		{func(a *BatchAttention) { a.Value.PageStride = 1 << 61 }, BadArgument, "value's page_stride = 2305843009213693952 times 8 leaves"},
		{func(a *BatchAttention) { a.Lengths = 0 }, BadArgument, "lengths = 0"},
		{func(a *BatchAttention) { a.Lengths = 3 }, BadArgument, "lengths = 0x3"},
		{func(a *BatchAttention) { a.Lengths = 8 }, BadArgument, "lengths = 0x8 is not in the memory"},
		{func(a *BatchAttention) { a.Table = 0x80000; a.TableStride = 2048 }, BadArgument, "page_size = 0"},
		{func(a *BatchAttention) { a.Table, a.PageSize, a.TableStride = 0x80000, 24, 2048 }, BadArgument, "page_size = 24"},
		{func(a *BatchAttention) { a.Table, a.PageSize, a.TableStride = 0x80000, 16, 2047 }, BadArgument, "table_stride = 2047"},
		{func(a *BatchAttention) { a.Table, a.PageSize, a.TableStride = 0x80001, 16, 2048 }, BadArgument, "table = 0x80001"},
		{func(a *BatchAttention) { a.Sinks = 2 }, BadArgument, "sinks = 0x2"},
		{func(a *BatchAttention) { a.Scale = nan() }, BadArgument, "scale = NaN"},
		{func(a *BatchAttention) { a.KeyScale = nan() }, BadArgument, "key_scale = NaN"},
		{func(a *BatchAttention) { a.ValueScale = nan() }, BadArgument, "value_scale = NaN"},
		{func(a *BatchAttention) { a.Softcap = -1 }, BadArgument, "softcap = -1"},
	} {
		before, a := b.step, batchCall(3)
		bad.change(&a)
		var refusal *Error
		err := b.Attend(&a)
		require.True(t, errors.As(err, &refusal), "%v: %v", bad.text, err)
		require.Contains(t, refusal.Text, bad.text)
		require.Equal(t, bad.kind, refusal.Kind, refusal.Text)
		require.Equal(t, before, b.step, bad.text)
	}
	_, err := b.TokenSet(8)
	require.ErrorContains(t, err, "row = 8")
	_, err = b.TokenSet(0)
	require.ErrorContains(t, err, "row = 0, but the last finished step had 0")
	s, err := b.Read()
	require.NoError(t, err)
	require.Equal(t, "cuda:0 stand-in", s.Device)

	for _, bad := range []struct {
		change func(*BatchParams)
		kind   Kind
		text   string
	}{
		{func(p *BatchParams) { p.Device = 1 }, DeviceFailed, "device = 1: CUDA device 1 is not one of the 1"},
		{func(p *BatchParams) { p.Work = 4096 * 3 }, BadArgument, "work_size = 0 is less than"},
		{func(p *BatchParams) { p.Work, p.WorkSize = 4100, 1<<40 }, BadArgument, "work = 0x1004"},
		{func(p *BatchParams) { p.Work, p.WorkSize = 256, 1<<40 }, BadArgument, "of CUDA device 0's memory"},
		{func(p *BatchParams) { p.WorkSize = 4096 }, BadArgument, "work_size = 4096, but work = 0"},
		{func(p *BatchParams) { p.Capacity = 1<<20 + 1 }, Unsupported, "capacity = 1048577"},
	} {
		params := batchShape
		bad.change(&params)
		var refusal *Error
		_, err := NewBatch(batchEngine(t, nil), batchLayers, params)
		require.True(t, errors.As(err, &refusal), "%v: %v", bad.text, err)
		require.Contains(t, refusal.Text, bad.text)
		require.Equal(t, bad.kind, refusal.Kind, refusal.Text)
	}
	_, err = NewBatch(batchEngine(t, func(c *Config) { c.Budget = 30000 }), batchLayers, batchShape)
	require.ErrorContains(t, err, "top_k = 22500 is more than")
}

func requireKind(t *testing.T, kind Kind, err error) {
	t.Helper()
	var refusal *Error
	require.True(t, errors.As(err, &refusal))
	require.Equal(t, kind, refusal.Kind)
}

func nan() float32 { z := float32(0); return z / z }

// A launch that fails may have left half a layer: the step is forgotten.
func TestBatchLaunchThatFails(t *testing.T) {
	if !batchChild() {
		batchAgain(t, "LIM_STANDIN_FAIL=cuLaunchKernel:700")
		return
	}
	b := makeBatch(t, nil)
	a := batchCall(2)
	err := b.Attend(&a)
	requireKind(t, DeviceFailed, err)
	require.ErrorContains(t, err, "launching lim_attend_f16_128_8_filtered: CUDA_ERROR (700)")
	require.Equal(t, batchStep{layer: -1}, b.step)
}

// K and V are described to TMA when a call is planned, by a driver that wants a context for it.
func TestBatchMapThatFails(t *testing.T) {
	if !batchChild() {
		batchAgain(t, "LIM_STANDIN_FAIL=cuTensorMapEncodeTiled:700")
		return
	}
	_, err := NewBatch(batchEngine(t, nil), batchLayers, batchShape)
	requireKind(t, DeviceFailed, err)
	require.ErrorContains(t, err, "making the tensor maps of K and V: CUDA_ERROR (700)")
}

func TestBatchOutOfMemory(t *testing.T) {
	if !batchChild() {
		batchAgain(t, "LIM_STANDIN_FAIL=cuMemAlloc_v2:2")
		return
	}
	_, err := NewBatch(batchEngine(t, nil), batchLayers, batchShape)
	requireKind(t, NoMemory, err)
	require.ErrorContains(t, err, "CUDA_ERROR_OUT_OF_MEMORY")
}
