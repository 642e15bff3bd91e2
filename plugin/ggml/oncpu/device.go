// Package oncpu has the attentions of a host's CPU graphs run on the host's own threads.
package oncpu

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/layers"
	"lessismore/plugin/ggml/rows"
	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/hugepages"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// maxWork bounds the kernels' work memory: logits of many rows over a long context. Beyond it the host
// computes the batch itself.
const maxWork = 1 << 30

// maxThreads is how many threads of a host can share one call. A host with more leaves the rest idle.
var maxThreads = max(16, runtime.NumCPU())

// Device is the CPU, for one context.
type Device struct {
	Probes *oncpu.Probes // once the layers are known

	layers    *layers.Context
	rows      *rows.Rows
	work      cpu.Arena
	slopes    cpu.Arena
	slopesFor struct {
		heads int32
		bias  float32
	}
	timings steps.Timings
	pages   *hugepages.Mover // of K and V of each layer; nil: stays where it is
	graph   *graph.Graph     // of the compute call that is planned
}

// New is the CPU for a context's layers and rows.
func New(l *layers.Context, r *rows.Rows) *Device { return &Device{layers: l, rows: r} }

func (c *Device) Groups() int { return c.Probes.Groups() }

func (c *Device) Assigned(*graph.Node) error {
	c.Probes = oncpu.NewProbes(c.layers.Model)
	if c.pages == nil && c.layers.Engine.Settings.HugePages {
		c.pages = hugepages.Start(2 * c.layers.Model.Layers)
	}
	return nil
}

func (c *Device) Called(g *graph.Graph) { c.graph = g }

func (c *Device) Fits(*graph.Node) stats.Reason { return stats.Offloaded }

func (c *Device) Left(*graph.Node) {}

func (c *Device) Begin(n *graph.Node) stats.Reason {
	r := c.rows
	c.Probes.Begin(&r.Step, int(n.Call.Heads), r.Whole(c.graph), &c.layers.Counts,
		func(row int, slot int32) bool { return r.Sees(n, row, slot) },
		func(row int) int32 { return r.Own(n, row) })
	if r.Step.Later = c.layers.Later(); r.Step.Later && r.Step.Sparse() {
		c.layers.Counts.UnhandedSteps++
	}
	r.Step.Began(&c.layers.Counts, c.Probes.Kind == calibrate.StepMeasure || c.Probes.Kind == calibrate.StepTrial)
	return stats.Offloaded
}

// Ended keeps the step that has ended, where its token sets are asked for.
func (c *Device) Ended() {
	if c.layers.Engine.Settings.Trace > 0 && c.Probes != nil {
		c.Probes.Record(&c.rows.Step)
	}
}

func (c *Device) Direct(n *graph.Node, layer int) stats.Reason {
	n.MaxThreads = int32(maxThreads)
	call := &n.Call
	c.Probes.Direct(&c.rows.Step, layer, call)
	call.Policy = cpu.Policy(c.layers.Engine.Settings.Policy)
	call.Timing = unsafe.Pointer(c.timings.Of(call.Mode))
	c.read(n, layer)
	if n.MaxBias > 0 {
		if call.Slopes = c.alibi(call.Heads, n.MaxBias); call.Slopes == nil {
			c.rows.Unchosen()
			return stats.ReasonMemory
		}
	}
	if call.Mode == cpu.Sparse && !c.layers.Engaged && c.Probes.Kind != calibrate.StepTrial {
		c.layers.Engaged = true
		row := slices.IndexFunc(c.rows.Step.Rows, func(r cpu.Row) bool { return r.SetLen > 0 })
		c.layers.Log(settings.LogInfo, fmt.Sprintf("engaged: %d tokens of %d attended outside layers %v",
			c.rows.Step.Rows[row].SetLen, c.rows.Step.Rows[row].Visible, c.Probes.Roles.Selections()))
	}
	return stats.Offloaded
}

// read says which memory of K and V the node reads, and so the later steps.
func (c *Device) read(n *graph.Node, layer int) {
	if c.pages == nil {
		return
	}
	for i, t := range [...]*cpu.Tensor{&n.Call.Key, &n.Call.Value} {
		begin := uintptr(t.Data) - uintptr(int64(n.FirstStream)*t.StreamStride)
		bytes := int64(n.FirstStream+n.Streams-1)*t.StreamStride + int64(n.NKV)*t.TokenStride
		c.pages.Ranges[2*layer+i].Use(begin, begin+uintptr(bytes))
	}
}

// Planned gives the calls their common work memory.
func (c *Device) Planned(g *graph.Graph) {
	c.share(g.Nodes)
	trial := c.announce(g)
	for i := range g.Nodes {
		n := &g.Nodes[i]
		if n.Reason != stats.Offloaded {
			continue
		}
		layer := c.layers.Ordinal[n.Layer]
		if trial { // what the host gets is the dense result
			c.rows.Step.Planned(&c.layers.Counts, layer, selection.RoleFull, cpu.Full)
		} else {
			c.rows.Step.Planned(&c.layers.Counts, layer, c.Probes.Role(layer), n.Call.Mode)
		}
	}
	c.layers.Chose(c.leaves())
}

// leaves tells whether the step will have left its rows' token sets once it is computed.
func (c *Device) leaves() bool {
	p := c.Probes
	return p != nil && c.rows.Step.Chosen && c.rows.Step.Groups == 1 && (p.Kind == calibrate.StepPlain || p.Kind == calibrate.StepAudit)
}

// Leaves has nothing to add: the rows have their sets.
func (c *Device) Leaves(*contexts.Left) {}

// share gives calls their common work memory; where there is none, their nodes stay with the host.
func (c *Device) share(nodes []graph.Node) {
	need := 0
	for i := range nodes {
		if n := &nodes[i]; n.Reason == stats.Offloaded {
			need = max(need, cpu.WorkSize(&n.Call, maxThreads))
		}
	}
	var work unsafe.Pointer
	if need <= maxWork {
		work = c.work.Bytes(need)
	}
	for i := range nodes {
		n := &nodes[i]
		switch {
		case n.Reason != stats.Offloaded:
		case work == nil:
			n.Reason = stats.ReasonMemory
			c.rows.Unchosen()
		default:
			n.Call.Work = work
		}
	}
}

func (c *Device) Unlearn() {
	c.leave()
	if c.Probes != nil {
		c.Probes.Settle()
		c.Probes.Free()
		c.Probes = nil
	}
}

func (c *Device) Report(to *stats.Stats) {
	if c.Probes != nil {
		c.Probes.Report(to)
	}
	c.timings.Read(to)
	if c.pages != nil {
		to.HugePageBytes = c.pages.Bytes()
	}
}

// leave stops the mover: other layers, other memory.
func (c *Device) leave() {
	if c.pages != nil {
		c.pages.Stop()
		c.layers.Counts.HugePageBytes = c.pages.Bytes()
		c.pages = nil
	}
}

func (c *Device) Close() {
	c.leave()
	if c.Probes != nil {
		c.Probes.Settle()
		c.Probes.Remember()
		c.Probes.Free()
	}
	c.work.Free()
	c.slopes.Free()
	c.timings.Free()
}

// alibi is the slope of each head's linear bias (ALiBi, arXiv 2108.12409), for any number of heads.
func (c *Device) alibi(heads int32, bias float32) unsafe.Pointer {
	slopes := cpu.Slice[float32](&c.slopes, int(heads))
	if slopes == nil {
		return nil
	}
	if c.slopesFor.heads != heads || c.slopesFor.bias != bias {
		c.slopesFor.heads, c.slopesFor.bias = heads, bias
		power := 1 << int(math.Floor(math.Log2(float64(heads)))) // the largest power of two within heads
		base := math.Exp2(-float64(bias) / float64(power))
		half := math.Exp2(-float64(bias) / 2 / float64(power))
		for h := range slopes[:heads] {
			if h < power {
				slopes[h] = float32(math.Pow(base, float64(h+1)))
			} else {
				slopes[h] = float32(math.Pow(half, float64(2*(h-power)+1)))
			}
		}
	}
	return unsafe.Pointer(&slopes[0])
}
