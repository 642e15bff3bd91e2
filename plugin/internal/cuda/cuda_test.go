//go:build cuda

package cuda

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
// stand-in driver (tests/gpu/standin) or with none.
func again(t *testing.T, env ...string) (log []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), "LIM_CHILD=1", "LIM_STANDIN_LOG="+path), env...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	text, _ := os.ReadFile(path)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func child() bool { return os.Getenv("LIM_CHILD") != "" }

func standin(t *testing.T) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	source := filepath.Join(filepath.Dir(file), "..", "..", "..", "tests", "gpu", "standin", "standin.c")
	library := filepath.Join(t.TempDir(), "libcuda.so.1")
	out, err := exec.Command("cc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source, "-lpthread").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return "LESSISMORE_LIBCUDA=" + library
}

// A page's tokens are an axis of the map, and pages another, as far as addresses reach.
func TestPagesAreAMap(t *testing.T) {
	if !child() {
		var maps []string
		for _, line := range again(t, standin(t)) {
			if after, found := strings.CutPrefix(line, "!cuTensorMapEncodeTiled "); found {
				maps = append(maps, after)
			}
		}
		require.Equal(t, []string{
			"0x100000 size/stride 64/2 8/256 16/2048 2/128 2147483648/32768", "0x200000 size/stride 64/2 8/256 16/2048 2/128 2147483648/32768",
			// vLLM's store, [page][token][head][K beside V], one head of it, and pages far apart.
			"0x100000 size/stride 64/2 8/512 16/4096 2/128 2147483648/65536", "0x100100 size/stride 64/2 8/512 16/4096 2/128 2147483648/65536",
			"0x100000 size/stride 64/2 1/256 128/256 2/128 128/1099511627760", "0x200000 size/stride 64/2 1/256 128/256 2/128 128/1099511627760",
		}, maps)
		return
	}
	d, err := Open(0)
	require.NoError(t, err)
	for _, change := range []func(*Call){
		func(*Call) {},
		func(c *Call) {
			c.Key = Store{Data: 0x100000, TokenStride: 4096, HeadStride: 512, PageStride: 65536}
			c.Value = Store{Data: 0x100100, TokenStride: 4096, HeadStride: 512, PageStride: 65536}
		},
		func(c *Call) {
			c.Heads, c.KVHeads, c.PageShift = 4, 1, 7
			c.Key = Store{Data: 0x100000, TokenStride: 256, PageStride: 1<<40 - 16}
			c.Value = Store{Data: 0x200000, TokenStride: 256, PageStride: 1<<40 - 16}
		},
		func(c *Call) { c.PageShift, c.TableStride = 3, 4096 }, // no map: a tile would lie in two pages
	} {
		c := call(Full)
		change(&c)
		p, err := d.Plan(&c, nil)
		require.NoError(t, err)
		p.Free()
	}
}

// What a captured stream may need is found before: no call like the one that was loaded looks anything up.
func TestLoad(t *testing.T) {
	if !child() {
		marked, log := 0, again(t, standin(t))
		for _, line := range log {
			if strings.HasPrefix(line, "cuPointerGetAttribute") { // the child sets a mark before and after
				marked++
			}
			require.False(t, marked == 1 && strings.HasPrefix(line, "!cuModuleGetFunction"), line)
		}
		require.Equal(t, 2, marked)
		return
	}
	d, err := Open(0)
	require.NoError(t, err)
	c := call(Full)
	require.NoError(t, d.Load(&c))
	_, err = OrdinalOf(0x10000)
	require.NoError(t, err)
	for _, mode := range []Mode{Full, Select, Sparse} {
		for _, rows := range []int32{1, 8} {
			for _, table := range []uint64{0, 0x40000} {
				for _, shift := range []int32{0, 4} {
					for _, policy := range []Policy{Union, Mass} {
						for _, capacity := range []int32{4096, 32768} {
							c := call(mode)
							c.NRows, c.Table, c.TableStride, c.PageShift, c.Policy, c.Capacity = rows, table, 1<<15, shift, policy, capacity
							p, err := d.Plan(&c, nil)
							require.NoError(t, err)
							p.Free()
						}
					}
				}
			}
		}
	}
	_, err = OrdinalOf(0x10000)
	require.NoError(t, err)
}

// call is Qwen3-8B's shape at 32K, batch 8, paged.
func call(mode Mode) Call {
	row := int64(128 * 2)
	return Call{
		Query:   Rows{Data: 0x10000, RowStride: 32 * row, HeadStride: row, Type: F16},
		Output:  Rows{Data: 0x20000, RowStride: 32 * row, HeadStride: row, Type: F16},
		Key:     Store{Data: 0x100000, TokenStride: 8 * row, HeadStride: row, PageStride: 16 * 8 * row},
		Value:   Store{Data: 0x200000, TokenStride: 8 * row, HeadStride: row, PageStride: 16 * 8 * row},
		Lengths: 0x30000, Table: 0x40000, TableStride: 2048, PageShift: 4, Set: 0x50000, SetStride: 2048, Work: 0x100000,
		NRows: 8, Heads: 32, KVHeads: 8, Dim: 128, KVType: F16, Capacity: 32768, Scale: 0.088, ValueScale: 1, Mode: mode,
		Budget: 2048, SinkTokens: 4, TopK: 1536, Recent: 508,
	}
}

func TestNoDriver(t *testing.T) {
	if !child() {
		again(t, "LESSISMORE_LIBCUDA=/nonexistent/libcuda.so.1")
		return
	}
	for range 2 {
		_, err := Open(0)
		require.ErrorContains(t, err, "no usable CUDA driver")
		require.ErrorContains(t, err, "/nonexistent/libcuda.so.1")
	}
}

func TestDriverThatFails(t *testing.T) {
	if child() {
		_, err := Open(0)
		require.Error(t, err)
		return
	}
	driver := standin(t)
	for _, f := range []string{"cuInit:999", "cuDeviceGetCount:3", "cuDevicePrimaryCtxRetain:2", "cuModuleLoadData:200"} {
		again(t, driver, "LIM_STANDIN_FAIL="+f)
	}
}

// The decode path: launches on the host's stream in the right order and nothing else. No allocation, no copy, no
// waiting, nothing that may not be called under capture.
func TestDecodePath(t *testing.T) {
	if !child() {
		log := again(t, standin(t))
		var marks []int
		for i, line := range log {
			if strings.HasPrefix(line, "cuPointerGetAttribute") { // the child sets a mark before and after
				marks = append(marks, i)
			}
		}
		require.Len(t, marks, 2)
		path := log[marks[0]+1 : marks[1]]
		var launches []string
		for _, line := range path {
			require.False(t, strings.HasPrefix(line, "!"), "not on the decode path: %s", line)
			switch name, _, _ := strings.Cut(line, " "); name {
			case "cuLaunchKernel", "cuLaunchKernelEx":
				if name == "cuLaunchKernelEx" {
					require.Contains(t, line, "grid 128,1,1 ")
					require.Contains(t, line, " cluster 2 pdl 1")
				}
				require.Contains(t, line, "stream 0xabc0 ")
				require.Contains(t, line, "query 10000 params 1")
				require.NotContains(t, line, "context (nil)")
				launches = append(launches, strings.Fields(line)[1])
			case "cuCtxGetCurrent", "cuCtxSetCurrent":
			default:
				t.Fatalf("not on the decode path: %s", line)
			}
		}
		step := []string{"lim_attend_f16_128_8_tma_paged", "lim_attend_f16_128_8_filtered_paged", "lim_select_filtered", "lim_short_f16_128_8_indexed"}
		require.Equal(t, append(append([]string{}, step...), step...), launches)
		return
	}
	d, err := Open(0)
	require.NoError(t, err)
	require.Equal(t, "stand-in", d.Name())
	again, err := Open(0)
	require.NoError(t, err)
	require.Same(t, d, again)
	_, err = Open(1)
	require.ErrorContains(t, err, "CUDA device 1 is not one of the 1")

	c := call(Select)
	work, err := d.Zeroed(d.WorkSize(&c))
	require.NoError(t, err)
	defer work.Free()
	var plans []*Plan
	for _, mode := range []Mode{Full, Select, Sparse} {
		c := call(mode)
		c.Work = work.Address()
		p, err := d.Plan(&c, nil)
		require.NoError(t, err)
		defer p.Free()
		plans = append(plans, p)
	}
	pinned, err := d.Pin(4096)
	require.NoError(t, err)
	require.Len(t, pinned.Bytes(), 4096)
	pinned.Free()

	_, err = OrdinalOf(0x10000)
	require.NoError(t, err)
	runtime.LockOSThread()
	for _, p := range plans {
		require.NoError(t, p.Run(0xabc0, 0))
	}
	// The same on a thread that never saw CUDA.
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		for _, p := range plans {
			err = errors.Join(err, p.Run(0xabc0, 0))
		}
		done <- err
	}()
	require.NoError(t, <-done)
	_, err = OrdinalOf(0x10000)
	require.NoError(t, err)
}

func TestRunAllocatesNothing(t *testing.T) {
	if !child() {
		again(t, standin(t), "LIM_STANDIN_LOG=")
		return
	}
	d, err := Open(0)
	require.NoError(t, err)
	c := call(Select)
	p, err := d.Plan(&c, nil)
	require.NoError(t, err)
	defer p.Free()
	require.Zero(t, testing.AllocsPerRun(100, func() { _ = p.Run(0xabc0, 0) }))
	require.Zero(t, testing.AllocsPerRun(100, func() { p, _ = d.Plan(&c, p) }), "planning again")
}

func TestRefusals(t *testing.T) {
	if !child() {
		again(t, standin(t))
		return
	}
	d, err := Open(0)
	require.NoError(t, err)
	good := call(Select)
	require.NoError(t, d.Check(&good))
	for _, bad := range []struct {
		change func(*Call)
		kind   Kind
		text   string
	}{
		{func(c *Call) { c.Dim = 72 }, Unsupported, "dim = 72"},
		{func(c *Call) { c.Dim, c.KVType = 192, Q4_0 }, Unsupported, "dim = 192"},
		{func(c *Call) { c.KVType = 6 }, Unsupported, "kv_type = 6"},
		{func(c *Call) { c.Heads = 33 }, BadArgument, "kv_heads = 8 does not divide heads = 33"},
		{func(c *Call) { c.KVHeads = 1 }, Unsupported, "heads = 32"},
		{func(c *Call) { c.Key.Data++ }, Unsupported, "key = 0x100001"},
		{func(c *Call) { c.Value.TokenStride = 8 }, BadArgument, "value's token_stride = 8"},
		{func(c *Call) { c.TopK = 7 }, BadArgument, "budget = 2048"},
		{func(c *Call) { c.Budget, c.TopK, c.SetStride = 20512, 20000, 20512 }, Unsupported, "top_k = 20000"},
		{func(c *Call) { c.Work = 0 }, BadArgument, "work = 0"},
		{func(c *Call) { c.TableStride = 1 }, BadArgument, "table_stride = 1"},
		{func(c *Call) { c.Capacity = 0 }, BadArgument, "capacity = 0"},
	} {
		c := good
		bad.change(&c)
		var refusal *Refusal
		_, err := d.Plan(&c, nil)
		require.True(t, errors.As(err, &refusal), "%v: %v", bad.text, err)
		require.Equal(t, bad.kind, refusal.Kind, bad.text)
		require.Contains(t, refusal.Text, bad.text)
	}
}
