// Package layers finds out which layers of a host's model can take part, by what its graphs show in a first pass, and with
// what roles.
package layers

import (
	"fmt"
	"slices"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// Context is what all sessions with a host that computes graphs have in common, wherever it computes: which of
// the model's layers can take part and with what roles, and what was counted.
type Context struct {
	Engine  *contexts.Engine
	Log     func(level settings.LogLevel, text string)
	Ordinal map[int32]int    // model's layer number -> number among the layers that can take part; nil: not known
	Model   *selection.Model // once the layers are known
	Counts  stats.Stats
	Engaged bool // a sparse layer was offloaded

	then      Then
	number    uint64 // of all the engine's contexts with hosts: an address would come again
	discovery discovery
	graphs    int              // since the layers' weights are hashed
	unhashed  bool             // the weights of the model that is served now were never hashed
	asked     bool             // they are asked for, since the layers turned out to be others
	weights   uint64           // hash of the model's weights, as far as the first pass shows them
	adapters  map[int32]uint64 // that the graphs apply, by their first attention's layer
	blocks    blocks
	host      uint64 // number of the host's context, see graph.Graph
	leg       *contexts.Leg
	whole     *contexts.Whole // what this device has a part of; nil: all, or that is not known
	before    *contexts.Leg   // the device that computes the layers before these; nil: none does, or none that is known
	first     int             // the least number among the layers that can take part …
	last      int             // … and the largest, of this device's
	attention bool            // the host has shown attention that can be offloaded
	warned    bool            // why layers are refused was said
	short     int             // calls of several query tokens, one after another
	checks    int             // calls that check a draft
	drafted   bool            // that there are no others was said
}

// maxHashed is how many compute calls are waited for the model's layers, hashing weights. A host that calls
// back after each node makes many; one whose attention never shows would hash for ever.
const maxHashed = 4096

// Then is what follows for those who use the layers.
type Then struct {
	Forget   func()                    // the layers are not known any more
	Unlearn  func()                    // what the layers did last, and what they were to do, is void
	Assigned func(n *graph.Node) error // they are, and have roles; an error keeps the library out of this context
}

// Init begins a context. log may be nil.
func (c *Context) Init(e *contexts.Engine, log func(level settings.LogLevel, text string), then Then) {
	if log == nil {
		log = func(settings.LogLevel, string) {}
	}
	c.Engine, c.number, c.Log, c.then = e, e.Hosted.Add(1), log, then
	c.leg = e.Relay.Join()
}

// Close ends it: other devices do not find it any more.
func (c *Context) Close() { c.leg.Part() }

// learn takes note of an attention, whether the kernels take it or not. It returns true once the model's layers are
// known, this one among them.
func (c *Context) learn(n *graph.Node) bool {
	if c.discovery.observe(n) && !c.discovery.knows(n) {
		c.rediscover()
		c.discovery.observe(n)
	}
	return c.discovery.complete
}

// Pass takes note of an attention that the kernels do not take: it is one of the model's layers all the same.
func (c *Context) Pass(n *graph.Node) {
	if n.Layer >= 0 && c.Engine.Inert() == "" {
		c.learn(n)
	}
}

// Place is the number of a node's layer among those that can take part, once the first pass has shown them.
func (c *Context) Place(n *graph.Node) (int, stats.Reason) {
	if c.Engine.Inert() != "" {
		return 0, stats.ReasonInert
	}
	if !c.learn(n) {
		return 0, stats.ReasonDiscovery
	}
	if c.Counts.Inert != "" {
		return 0, stats.ReasonInert
	}
	if c.Ordinal == nil {
		if !c.discovery.decided {
			return 0, stats.ReasonUndecided
		}
		err := c.assign(n)
		if err == nil {
			err = c.then.Assigned(n)
		}
		if err != nil { // another model in the process, such as the one that it drafts for, may fit
			c.Refuse(err.Error())
			return 0, stats.ReasonInert
		}
	}
	layer, ok := c.Ordinal[n.Layer]
	if !ok {
		return 0, c.discovery.apart(n.Layer)
	}
	return layer, stats.Offloaded
}

// Leave keeps the library out of this context. Nor does the device behind this one get anything from it any more.
func (c *Context) Leave(why string) {
	c.Counts.Inert = why
	c.Withdraw()
}

// Refuse is Leave, and says why.
func (c *Context) Refuse(why string) {
	c.Leave(why)
	c.Log(settings.LogInfo, "inert in this context: "+why)
}

// Survey takes note of what a graph with attention shows of the model as a whole.
func (c *Context) Survey(g *graph.Graph) {
	c.host = g.Host
	if first := g.Nodes[0].Layer; first >= 0 && c.discovery.begins(first) {
		c.weights += g.Weights
		c.blocks.add(g)
	}
	if c.discovery.complete && !c.discovery.decided {
		c.tell(g)
	}
}

// tell decides which layers slide by comparing what they see in this graph.
func (c *Context) tell(g *graph.Graph) {
	c.discovery.compare(func(store uint64) (int, bool) {
		for i := range g.Nodes {
			if n := &g.Nodes[i]; n.Store.ID == store && n.Scan != nil {
				visible, _ := cpu.Visible(n.Values(0, 0), n.ScanType, int(n.NKV), nil)
				return visible, true
			}
		}
		return 0, false
	})
}

// Begins tells whether a graph whose first attention is of that layer belongs to the first pass.
func (c *Context) Begins(layer int32) bool { return c.discovery.begins(layer) }

// Idle tells whether nothing of the model will be offloaded: its stores need not be followed.
func (c *Context) Idle() bool {
	return c.Counts.Inert != "" || c.Engine.Inert() != "" ||
		c.discovery.decided && !slices.ContainsFunc(c.discovery.layers, discovered.participates)
}

// Deaf tells whether flash attention is off in the host: nothing will ask what its stores hold.
func (c *Context) Deaf() bool { return c.warned && !c.attention }

// Shown notes that the host has attention that can be offloaded.
func (c *Context) Shown() { c.attention = true }

// First is the store of the first of the layers that can take part.
func (c *Context) First() uint64 {
	return c.discovery.layers[slices.IndexFunc(c.discovery.layers, discovered.participates)].store.ID
}

// Surveyed tells whether the first pass is over.
func (c *Context) Surveyed() bool { return c.discovery.complete }

// Participants are the model's numbers of the layers that can take part, ascending, as far as the first pass has shown them.
func (c *Context) Participants() []int32 { return c.discovery.participants() }

// Adapted tells whether a graph with attention applies other adapters than the same part of the model did before: to
// the roles of its layers that is another model. The layers are forgotten then, and the next graph's weights asked for.
func (c *Context) Adapted(g *graph.Graph) bool {
	part := g.Nodes[0].Layer
	if was, ok := c.adapters[part]; !ok {
		if c.adapters == nil {
			c.adapters = map[int32]uint64{}
		}
		c.adapters[part] = g.Adapters
		return false
	} else if was == g.Adapters {
		return false
	}
	c.again(g)
	return true
}

// Anew tells whether a graph with attention begins with a layer that the first pass did not have: the backend serves another
// model or another part of one, as an RPC server's does when its next client comes. The layers are forgotten then, and the next
// graph's weights asked for; once, for a host may compute its graphs in pieces of any size.
func (c *Context) Anew(g *graph.Graph) bool {
	n := &g.Nodes[0]
	if n.Layer < 0 || !c.discovery.complete || c.asked || c.discovery.knows(n) {
		return false
	}
	c.asked = true
	c.again(g)
	c.then.Forget()
	return true
}

// again forgets the layers, and asks for the next graph's weights.
func (c *Context) again(g *graph.Graph) {
	c.restart()
	c.unhashed, c.weights, c.graphs = false, 0, 0
	g.KnowsWeights = false
}

// Asks tells whether the next graphs' weights are to be hashed.
func (c *Context) Asks(g *graph.Graph) {
	c.graphs++
	g.KnowsWeights = c.discovery.complete || c.graphs > maxHashed
}

// restart forgets the layers.
func (c *Context) restart() {
	c.then.Unlearn()
	c.discovery, c.Ordinal, c.blocks, c.Model = discovery{}, nil, blocks{}, nil
	c.whole, c.before = nil, nil
	c.leg.Forget()
	clear(c.adapters)
	c.Counts.Inert = ""
}

// rediscover starts over: the first pass was not the whole model, or the backend serves another one now.
func (c *Context) rediscover() {
	c.restart()
	c.unhashed = true
	c.then.Forget()
}

// assign gives the layers that can take part their numbers and roles.
func (c *Context) assign(n *graph.Node) error {
	layers := c.discovery.participants()
	if len(layers) == 0 {
		return fmt.Errorf("the layers that see the whole context are left to the host (%s), and sliding-window layers gain nothing", c.discovery.kept())
	}
	c.Ordinal = map[int32]int{}
	whole, err := c.join(n, layers)
	if err == nil && !whole {
		err = c.stand(n, layers)
	}
	if err != nil {
		c.Ordinal = nil
		return err
	}
	c.asked = false
	c.first, c.last = c.Ordinal[layers[0]], c.Ordinal[layers[len(layers)-1]]
	c.Model.Mu.Lock()
	choose, source := c.Model.Roles.Selections(), c.Model.Source
	c.Model.Mu.Unlock()
	c.Log(settings.LogDebug, fmt.Sprintf("%d layers can take part, %v choose (%s)", len(layers), choose, source))
	return nil
}

// stand makes the layers a model of their own.
func (c *Context) stand(n *graph.Node, layers []int32) (err error) {
	part := partOf(&c.blocks, c.discovery.layers[0].layer, layers)
	if l, missing := part.missing(c.Engine.Settings.Layers, &c.blocks); missing {
		return fmt.Errorf("LESSISMORE_LAYERS: layers names layer %d, but the model's last one is %d: %s", l, c.blocks.last, part.where)
	}
	if c.Model, err = c.Engine.ModelWith(part.settings(c.Engine.Settings), c.identity(n, layers, c.weights), c.Log); err != nil {
		if where := c.blocks.elsewhere(); where != "" {
			return fmt.Errorf("LESSISMORE_LAYERS: %w: %s", err, where)
		}
		return fmt.Errorf("LESSISMORE_LAYERS: %w", err)
	}
	if part.some {
		c.Model.Part(int(part.first))
		c.Log(settings.LogInfo, part.String())
	}
	for i, l := range layers {
		c.Ordinal[l] = i
	}
	return nil
}

// identity is what the graphs show of the model.
func (c *Context) identity(n *graph.Node, layers []int32, hash uint64) selection.Identity {
	call := &n.Call
	weights := fmt.Sprintf("%016x", hash)
	if c.unhashed || hash == 0 { // this context alone knows the model
		weights = fmt.Sprintf("%s %d", selection.UnknownWeights, c.number)
	}
	return selection.Identity{
		Layers: len(layers), First: layers[0], Last: layers[len(layers)-1], Heads: call.Heads, KVHeads: call.KVHeads,
		KeyDim: call.DimK, ValueDim: call.DimV, Scale: call.Scale, Softcap: call.Softcap, MaxBias: n.MaxBias,
		Weights: weights,
	}
}
