//go:build cuda

package cuda

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func probe() Probe {
	return Probe{
		Own: 0x60000, Sets: 0x70000, SetStride: 512, Stamps: 0x80000, Kept: 0x90000, Count: 0xa0000, Sum: 0xb0000, Square: 0xc0000,
		Row: 3, NSets: 5, SetBudget: 512, Least: 4096, Stamp: 7,
	}
}

// A measured call, and results on their way: launches, one copy and one event on the host's stream.
func TestProbePath(t *testing.T) {
	if !child() {
		log := again(t, standin(t), "LIM_STANDIN_PENDING=2")
		var marks []int
		for i, line := range log {
			if strings.HasPrefix(line, "cuPointerGetAttribute") { // the child sets a mark before and after
				marks = append(marks, i)
			}
		}
		require.Len(t, marks, 2)
		var path []string
		for _, line := range log[marks[0]+1 : marks[1]] {
			require.False(t, strings.HasPrefix(line, "!"), "not on the decode path: %s", line)
			switch words := strings.Fields(line); words[0] {
			case "cuLaunchKernel", "cuLaunchKernelEx":
				require.Contains(t, line, "stream 0xabc0 ")
				if launch := words[1]; strings.HasPrefix(launch, "lim_attend") {
					path = append(path, launch)
				} else {
					path = append(path, strings.Join(words[1:4], " "))
				}
			case "cuMemcpyDtoHAsync_v2", "cuEventRecord":
				require.Contains(t, line, "stream 0xabc0")
				path = append(path, words[0])
			case "cuEventQuery":
				path = append(path, words[0])
			case "cuCtxGetCurrent", "cuCtxSetCurrent", "cuMemsetD8Async", "cuStreamIsCapturing":
			default:
				t.Fatalf("not on the decode path: %s", line)
			}
		}
		require.Equal(t, []string{
			"lim_attend_f16_128_8_tma_paged", "lim_select_union grid 32,1,1", "lim_probe grid 32,6,1",
			"cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuEventQuery", "cuEventQuery", "cuEventQuery",
		}, path)
		return
	}
	d, err := Open(0)
	require.NoError(t, err)
	c, p := call(Select), probe()
	plan, err := d.PlanProbe(&c, &p, nil)
	require.NoError(t, err)
	defer plan.Free()
	results, err := d.Zeroed(64)
	require.NoError(t, err)
	defer results.Free()
	fetch, err := d.NewFetch(64)
	require.NoError(t, err)
	defer fetch.Free()

	_, err = OrdinalOf(0x10000)
	require.NoError(t, err)
	runtime.LockOSThread()
	require.False(t, d.Capturing(0xabc0))
	require.True(t, d.Capturing(0xcab0))
	require.NoError(t, d.Clear(results.Address(), 64, 0xabc0))
	require.NoError(t, plan.Run(0xabc0, 0))
	// The device's part: what a kernel would have written.
	at := results.Address()
	*(*uint32)(*(*unsafe.Pointer)(unsafe.Pointer(&at))) = 42
	require.NoError(t, fetch.Start(results.Address(), 4, 0xabc0))
	for _, expect := range []bool{false, false, true} {
		ready, err := fetch.Ready()
		require.NoError(t, err)
		require.Equal(t, expect, ready)
	}
	require.EqualValues(t, 42, binary.NativeEndian.Uint32(fetch.Bytes()))
	_, err = OrdinalOf(0x10000)
	require.NoError(t, err)
}

func TestProbeAllocatesNothing(t *testing.T) {
	if !child() {
		again(t, standin(t), "LIM_STANDIN_LOG=")
		return
	}
	d, err := Open(0)
	require.NoError(t, err)
	c, p := call(Select), probe()
	plan, err := d.PlanProbe(&c, &p, nil)
	require.NoError(t, err)
	fetch, err := d.NewFetch(64)
	require.NoError(t, err)
	memory, err := d.Zeroed(64)
	require.NoError(t, err)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		_, _ = d.PlanProbe(&c, &p, plan)
		_ = plan.Run(0xabc0, 0)
		_ = fetch.Start(memory.Address(), 64, 0xabc0)
		_, _ = fetch.Ready()
		_ = d.Clear(memory.Address(), 64, 0xabc0)
		_ = d.Capturing(0xabc0)
	}))
}

func TestProbeRefusals(t *testing.T) {
	if !child() {
		again(t, standin(t))
		return
	}
	d, err := Open(0)
	require.NoError(t, err)
	c := call(Select)
	for text, spoil := range map[string]func(*Probe){
		"row = 8":          func(p *Probe) { p.Row = 8 },
		"n_sets = -1":      func(p *Probe) { p.NSets = -1 },
		"own = NULL":       func(p *Probe) { p.Own = 0 },
		"sum = 0xb0001":    func(p *Probe) { p.Sum++ },
		"set_stride = 511": func(p *Probe) { p.SetStride-- },
	} {
		p := probe()
		spoil(&p)
		_, err := d.PlanProbe(&c, &p, nil)
		var refusal *Refusal
		require.True(t, errors.As(err, &refusal), "%s: %v", text, err)
		require.Equal(t, BadArgument, refusal.Kind)
		require.Contains(t, refusal.Text, text)
	}
	p := probe()
	c.Mode = Full
	_, err = d.PlanProbe(&c, &p, nil)
	require.ErrorContains(t, err, "mode = 0")
}
