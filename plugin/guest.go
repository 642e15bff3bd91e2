package plugin

import (
	"fmt"
	"sync"
)

// guest is what all sessions with a host that computes graphs have in common, wherever it computes: which of
// the model's layers can take part and with what roles, and what was counted.
type guest struct {
	engine *Engine
	number uint64 // of all the engine's guests: an address would come again
	log    func(level LogLevel, text string)

	mu        sync.Mutex // Plan against a reader of the statistics
	discovery discovery
	graphs    int              // since the layers' weights are hashed
	unhashed  bool             // the weights of the model that is served now were never seen
	weights   uint64           // hash of the model's weights, as far as the first pass shows them
	adapters  map[int32]uint64 // that the graphs apply, by their first attention's layer
	blocks    blocks
	ordinal   map[int32]int // model's layer number -> number among the layers that can take part
	pilot     *pilot        // once the layers are known
	counts    Stats
	engaged   bool // a sparse layer has been taken
	attention bool // the host has shown attention that can be taken
	warned    bool // why layers are refused was said
	short     int  // calls of several query tokens, one after another
	drafted   bool // that there are no others was said
}

// A call that may check a draft has at most so many query tokens of a sequence, and so many calls are no accident.
const (
	mostDrafted = 32
	shortCalls  = 32
)

// blocks are those of the model whose weights this device's graphs have shown; none before any has.
type blocks struct {
	shown       bool
	first, last int32
	ends        bool // what follows the last block is computed here, too
}

func (b *blocks) add(g *Graph) {
	b.ends = b.ends || g.Ends != 0
	switch {
	case g.Weights == 0 || g.FirstBlock < 0:
	case !b.shown:
		b.shown, b.first, b.last = true, g.FirstBlock, g.LastBlock
	default:
		b.first, b.last = min(b.first, g.FirstBlock), max(b.last, g.LastBlock)
	}
}

// elsewhere says which layers this device computes, where it shows that others are computed elsewhere: a model that is
// spread over several GPUs, or off-loaded in part.
func (b *blocks) elsewhere() string {
	if !b.shown || b.first == 0 && b.ends {
		return ""
	}
	return fmt.Sprintf("this device computes layers %d to %d of the model, the others are on another device", b.first, b.last)
}

// visitor is the session that a guest is a part of.
type visitor interface {
	forget()                // the layers are not known any more
	suits() error           // whether the layers that were found can be taken part in here
	assigned(n *Node) error // they are, and have roles; an error keeps the library out of this context
}

func newGuest(e *Engine, log func(level LogLevel, text string)) guest {
	if log == nil {
		log = func(LogLevel, string) {}
	}
	return guest{engine: e, number: e.guests.Add(1), log: log}
}

// flashless says once that the host computes attention in a way that the library cannot take part in.
func (g *guest) flashless(graph *Graph) bool {
	if g.attention || g.warned || graph.SoftMax == 0 {
		return false
	}
	g.warned = true
	g.log(LogInfo, "nothing is taken: flash attention is off in this host. Turn it on: llama-server --flash-attn on, "+
		"llama-cpp-python flash_attn=True, node-llama-cpp flashAttention: true, xllamacpp flash_attn_type enabled")
	return true
}

// untakable says once which layers of a graph can never be taken, and why: of the whole graph, or of the first layer
// that is refused where others are taken.
func (g *guest) untakable(graph *Graph) {
	if g.warned {
		return
	}
	var refused *Node
	all, settled := true, true
	for i := range graph.Nodes {
		n := &graph.Nodes[i]
		switch n.Reason {
		case ReasonNoCache, ReasonMLA, ReasonType, ReasonShape, ReasonSparseHint:
			if refused == nil {
				refused = n
			}
		case ReasonSliding:
		case Taken:
			all = false
		default:
			settled = false // what becomes of it will show
		}
	}
	switch {
	case refused == nil || !settled:
	case all:
		g.warned = true
		g.log(LogInfo, "nothing is taken in this context: "+refused.why())
	case refused.Reason != ReasonNoCache: // attention to an encoder's output is not the text's
		g.warned = true
		g.log(LogInfo, fmt.Sprintf("layer %d is left to the host: %s", refused.Layer, refused.why()))
	}
}

// drafts says once that each call of a context has several query tokens, as of a host that checks drafts: it looks as
// if the library did nothing. begins tells whether a text may begin with the call's tokens; of is what they are of.
func (g *guest) drafts(n *Node, of string, begins func(n *Node) bool) {
	switch {
	case g.drafted:
	case n.Reason == Taken:
		g.short = 0
	case n.Reason != ReasonPrompt || n.Tokens < 2 || n.Tokens > mostDrafted || begins(n):
	default:
		if g.short++; g.short == shortCalls {
			g.drafted = true
			g.log(LogInfo, fmt.Sprintf("nothing is taken: %d calls one after another had several query tokens of %s, which the host attends to",
				shortCalls, of))
		}
	}
}

// learn takes note of an attention, whether the kernels take it or not. It returns true once the model's layers are
// known, this one among them.
func (g *guest) learn(n *Node, v visitor) bool {
	if g.discovery.observe(n) && !g.discovery.knows(n) {
		g.rediscover(v)
		g.discovery.observe(n)
	}
	return g.discovery.complete
}

// pass takes note of an attention that the kernels do not take: it is one of the model's layers all the same.
func (g *guest) pass(n *Node, v visitor) {
	if n.Layer >= 0 && g.engine.Inert() == "" {
		g.learn(n, v)
	}
}

// place is the number of a node's layer among those that can take part, once the first pass has shown them.
func (g *guest) place(n *Node, v visitor) (int, Reason) {
	if g.engine.Inert() != "" {
		return 0, ReasonInert
	}
	if !g.learn(n, v) {
		return 0, ReasonDiscovery
	}
	if g.counts.Inert != "" {
		return 0, ReasonInert
	}
	if g.ordinal == nil {
		if !g.discovery.decided {
			return 0, ReasonUndecided
		}
		err := v.suits()
		if err == nil {
			err = g.assign(n)
		}
		if err == nil {
			err = v.assigned(n)
		}
		if err != nil { // another model in the process, such as the one that it drafts for, may fit
			g.refuse(err.Error())
			return 0, ReasonInert
		}
	}
	layer, ok := g.ordinal[n.Layer]
	if !ok {
		return 0, g.discovery.apart(n.Layer)
	}
	return layer, Taken
}

// refuse keeps the library out of this context.
func (g *guest) refuse(why string) {
	g.counts.Inert = why
	g.log(LogInfo, "inert in this context: "+why)
}

// survey takes note of what a graph with attention shows of the model as a whole.
func (g *guest) survey(graph *Graph) {
	first := graph.Nodes[0].Layer
	if first < 0 || !g.discovery.begins(first) {
		return
	}
	g.weights += graph.Weights
	g.blocks.add(graph)
}

// adapted tells whether a graph with attention applies other adapters than the same part of the model did before: to
// the roles of its layers that is another model. The layers are forgotten then, and the next graph's weights asked for.
func (g *guest) adapted(graph *Graph) bool {
	part := graph.Nodes[0].Layer
	if was, ok := g.adapters[part]; !ok {
		if g.adapters == nil {
			g.adapters = map[int32]uint64{}
		}
		g.adapters[part] = graph.Adapters
		return false
	} else if was == graph.Adapters {
		return false
	}
	g.restart()
	g.unhashed, g.weights, g.graphs = false, 0, 0
	graph.KnowsWeights = false
	return true
}

// asks tells whether the next graphs' weights are to be hashed.
func (g *guest) asks(graph *Graph) {
	g.graphs++
	graph.KnowsWeights = g.discovery.complete || g.graphs > maxHashed
}

// restart forgets the layers.
func (g *guest) restart() {
	g.discovery, g.ordinal, g.blocks = discovery{}, nil, blocks{}
	clear(g.adapters)
	if g.pilot != nil {
		g.pilot.settle()
		g.pilot.free()
		g.pilot = nil
	}
	g.counts.Inert = ""
}

// rediscover starts over: the first pass was not the whole model, or the backend serves another one now.
func (g *guest) rediscover(v visitor) {
	g.restart()
	g.unhashed = true
	v.forget()
}

// assign gives the layers that can take part their numbers and roles.
func (g *guest) assign(n *Node) error {
	layers := g.discovery.participants()
	if len(layers) == 0 {
		return fmt.Errorf("the layers that see the whole context are left to the host (%s), and sliding-window layers gain nothing", g.discovery.kept())
	}
	model, err := g.engine.model(g.identity(n, layers), g.log)
	if err != nil {
		if where := g.blocks.elsewhere(); where != "" {
			return fmt.Errorf("LESSISMORE_LAYERS: %w: %s", err, where)
		}
		return fmt.Errorf("LESSISMORE_LAYERS: %w", err)
	}
	g.pilot, g.ordinal = newPilot(model, g.log), map[int32]int{}
	for i, l := range layers {
		g.ordinal[l] = i
	}
	g.log(LogDebug, fmt.Sprintf("%d layers can take part, %v choose (%s)", len(layers), g.pilot.roles.Selections(), g.pilot.source))
	return nil
}

// identity is what the graphs show of the model.
func (g *guest) identity(n *Node, layers []int32) identity {
	c := &n.Call
	weights := fmt.Sprintf("%016x", g.weights)
	if g.unhashed { // this context alone knows the model
		weights = fmt.Sprintf("%s %d", unknownWeights, g.number)
	}
	return identity{
		Layers: len(layers), First: layers[0], Last: layers[len(layers)-1], Heads: c.Heads, KVHeads: c.KVHeads,
		KeyDim: c.DimK, ValueDim: c.DimV, Scale: c.Scale, Softcap: c.Softcap, MaxBias: n.MaxBias,
		Weights: weights,
	}
}
