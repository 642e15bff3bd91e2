package oncpu

import (
	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/stats"
)

// announce has a graph computed twice, if its step is a trial. All of the model's layers have to be in it.
func (c *Device) announce(g *graph.Graph) bool {
	if c.Probes == nil || c.Probes.Kind != calibrate.StepTrial {
		return false
	}
	taken := 0
	for i := range g.Nodes {
		if g.Nodes[i].Reason == stats.Offloaded {
			taken++
		}
	}
	if taken != c.Probes.Model.Layers {
		_ = c.Untried(g.Nodes, "its layers come in several graphs")
		return false
	}
	row, _ := c.Probes.Longest()
	g.Trial, g.Output, g.Rows = true, c.rows.Output(g, row), c.rows.Batch()
	return true
}

// Again has the nodes of a trial attend to everything, as far as there is memory for it.
func (c *Device) Again(nodes []graph.Node) bool {
	return c.everything(nodes)
}

// Tried takes a trial's outcome.
func (c *Device) Tried(nats float64, same bool) {
	c.Probes.Tried(nats, same)
	c.Probes.Keep()
}

// Untried has a trial's graph computed once, attending to everything.
func (c *Device) Untried(nodes []graph.Node, why string) bool {
	c.Probes.Untried(why)
	c.Probes.Keep()
	c.layers.Counts.TrialSteps--
	c.layers.Counts.TrialsRefused++
	return c.everything(nodes)
}

// everything has nodes that were taken attend to everything.
func (c *Device) everything(nodes []graph.Node) bool {
	c.Probes.Kind = calibrate.StepDense
	c.rows.Step.Dense()
	for i := range nodes {
		if n := &nodes[i]; n.Reason == stats.Offloaded {
			c.Direct(n, c.layers.Ordinal[n.Layer])
		}
	}
	c.share(nodes)
	for i := range nodes {
		if nodes[i].Reason == stats.ReasonMemory {
			return false
		}
	}
	return true
}
