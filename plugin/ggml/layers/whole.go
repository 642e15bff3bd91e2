package layers

import (
	"fmt"
	"slices"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
)

// Where all parts of a model that is spread over devices are known, their layers are numbered and have roles as on one device, and
// token sets may go from one to the next: see contexts.Relay. Else each part is by itself, see part.

// Show has the other devices know what the first pass has shown of this one's part so far, once a graph's layers were learned.
func (c *Context) Show(g *graph.Graph) {
	if c.discovery.complete || len(c.discovery.layers) == 0 {
		return
	}
	d := discovery{layers: slices.Clone(c.discovery.layers)}
	d.decide()
	layers := d.participants()
	if !d.decided || len(layers) == 0 {
		return
	}
	// Of some devices no weights are seen: in a long prompt the host has a GPU multiply with those of the CPU's layers.
	first, last := d.layers[0].layer, d.layers[len(d.layers)-1].layer
	if c.blocks.shown {
		first, last = min(first, c.blocks.first), max(last, c.blocks.last)
	}
	c.leg.Show(contexts.Shown{
		Host: g.Host, First: first, Last: last, Ends: c.blocks.ends,
		Layers: layers, Slots: d.layers[slices.IndexFunc(d.layers, discovered.participates)].store.Slots, Weights: c.weights,
	})
}

// join makes the layers part of a model that all devices have together. False: they are not, or it is not known.
func (c *Context) join(n *graph.Node, layers []int32) (bool, error) {
	w := c.leg.Whole(layers, c.host, func(all []int32, weights uint64) (*selection.Model, error) {
		if c.Engine.Settings.Layers == nil { // a measurement compares layers of one device
			return nil, nil
		}
		return c.Engine.Model(c.identity(n, all, weights), c.Log)
	})
	if w == nil {
		return false, nil
	}
	if w.Err != nil {
		return false, fmt.Errorf("LESSISMORE_LAYERS: %w: %s", w.Err, c.where(layers))
	}
	c.whole, c.before, c.Model = w, w.Before(c.leg), w.Model
	for i, l := range w.Layers {
		if slices.Contains(layers, l) {
			c.Ordinal[l] = i
		}
	}
	c.Log(settings.LogInfo, fmt.Sprintf("%s: layers %v of all %d choose token sets, which go from device to device",
		c.where(layers), w.Model.Roles.Selections(), len(w.Layers)))
	return true, nil
}

// Regroup has the layers get their numbers and roles anew, where other devices have made a whole of this one's part and theirs since.
func (c *Context) Regroup() {
	if c.Ordinal == nil || c.whole != nil || c.Counts.Inert != "" || !c.leg.Joined() {
		return
	}
	c.then.Unlearn()
	c.Ordinal, c.Model = nil, nil
}

// where says which layers this device has of a model that others have parts of.
func (c *Context) where(layers []int32) string {
	if where := c.blocks.elsewhere(); where != "" {
		return where
	}
	b := blocks{shown: true, first: layers[0], last: layers[len(layers)-1]}
	return b.elsewhere()
}

// Batch is where this device and the others of the host's context tell each other of their batch, whether the model is known to be spread or not.
func (c *Context) Batch(g *graph.Graph) *contexts.Batch { return c.leg.Batch(g.Host) }

// Spread tells whether other devices have parts of the same model, whose layers are numbered and have roles together with these.
func (c *Context) Spread() bool { return c.whole != nil }

// Later tells whether layers of the same model come before this device's, on another one whose token sets may come here.
func (c *Context) Later() bool { return c.before != nil }

// Take is what the step of the device before this one leaves.
func (c *Context) Take() (contexts.Left, bool) { return c.before.Take(c.whole) }

// Offer, Chose and Withdraw are for the device behind this one, where the model is spread.
func (c *Context) Offer(left contexts.Left) { c.leg.Offer(left) }

func (c *Context) Chose(sets bool) {
	if c.whole != nil {
		c.leg.Chose(sets)
	}
}

func (c *Context) Withdraw() {
	if c.whole != nil {
		c.leg.Withdraw()
	}
}

// Bounds are the numbers of this device's first and last layer among those that can take part.
func (c *Context) Bounds() (first, last int) { return c.first, c.last }
