package ggml

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// maxWork bounds the kernels' work memory: logits of many rows over a long context. Beyond it the host
// computes the batch itself.
const maxWork = 1 << 30

// maxThreads is how many threads of a host can share one call. A host with more leaves the rest idle.
var maxThreads = max(16, runtime.NumCPU())

// onCPU has a session's calls run on the host's own threads.
type onCPU struct {
	*Session
	cal       *oncpu.Probes // once the layers are known
	work      cpu.Arena
	slopes    cpu.Arena
	slopesFor struct {
		heads int32
		bias  float32
	}
	timings steps.Timings
}

func (c *onCPU) index(store Store) *kvindex.KVIndex { return kvindex.NewKVIndex(store) }

func (c *onCPU) groups() int { return c.cal.Groups() }

func (c *onCPU) assigned(*Node) error {
	c.cal = oncpu.NewProbes(c.model)
	return nil
}

func (c *onCPU) called(*Graph) {}

func (c *onCPU) fits(*Node) stats.Reason { return stats.Offloaded }

func (c *onCPU) left(*Node) {}

func (c *onCPU) begin(n *Node) stats.Reason {
	s, t := c.Session, c.followed
	c.cal.Begin(&s.step, int(n.Call.Heads), &s.counts, func(row int, slot int32) bool {
		return n.sees(row/int(n.Tokens), row%int(n.Tokens), int64(slot))
	}, func(row int) int32 {
		return int32(t.last[row] - int64(n.FirstStream+int32(row/int(n.Tokens)))*n.Store.Slots)
	})
	s.step.Began(&s.counts, c.cal.Kind == calibrate.StepMeasure)
	return stats.Offloaded
}

func (c *onCPU) direct(n *Node, layer int) stats.Reason {
	n.MaxThreads = int32(maxThreads)
	call := &n.Call
	c.cal.Direct(&c.step, layer, call)
	call.Policy = cpu.Policy(c.engine.Settings.Policy)
	call.Timing = unsafe.Pointer(c.timings.Of(call.Mode))
	if n.MaxBias > 0 {
		if call.Slopes = c.alibi(call.Heads, n.MaxBias); call.Slopes == nil {
			return stats.ReasonMemory
		}
	}
	if call.Mode == cpu.Sparse && !c.engaged {
		c.engaged = true
		row := slices.IndexFunc(c.step.Rows, func(r cpu.Row) bool { return r.SetLen > 0 })
		c.log(settings.LogInfo, fmt.Sprintf("engaged: %d tokens of %d attended outside layers %v",
			c.step.Rows[row].SetLen, c.step.Rows[row].Visible, c.cal.Roles.Selections()))
	}
	return stats.Offloaded
}

// planned gives the calls their common work memory.
func (c *onCPU) planned(g *Graph) {
	need := 0
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Reason == stats.Offloaded {
			need = max(need, cpu.WorkSize(&n.Call, maxThreads))
		}
	}
	var work unsafe.Pointer
	if need <= maxWork {
		work = c.work.Bytes(need)
	}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		switch {
		case n.Reason != stats.Offloaded:
		case work == nil:
			n.Reason = stats.ReasonMemory
		default:
			n.Call.Work = work
			layer := c.ordinal[n.Layer]
			c.step.Planned(&c.counts, layer, c.cal.Role(layer), n.Call.Mode)
		}
	}
}

func (c *onCPU) unlearn() {
	if c.cal != nil {
		c.cal.Settle()
		c.cal.Free()
		c.cal = nil
	}
}

func (c *onCPU) report(to *stats.Stats) {
	if c.cal != nil {
		c.cal.Report(to)
	}
	c.timings.Read(to)
}

func (c *onCPU) close() {
	if c.cal != nil {
		c.cal.Settle()
		c.cal.Free()
	}
	c.work.Free()
	c.slopes.Free()
	c.timings.Free()
}

// alibi is the slope of each head's linear bias (ALiBi, arXiv 2108.12409), for any number of heads.
func (c *onCPU) alibi(heads int32, bias float32) unsafe.Pointer {
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
