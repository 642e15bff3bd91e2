package ggml

import (
	"fmt"
	"sync"

	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// hostContext is what all sessions with a host that computes graphs have in common, wherever it computes: which of
// the model's layers can take part and with what roles, and what was counted.
type hostContext struct {
	engine *contexts.Engine
	number uint64 // of all the engine's contexts with hosts: an address would come again
	log    func(level settings.LogLevel, text string)

	mu        sync.Mutex // Plan against a reader of the statistics
	discovery discovery
	graphs    int              // since the layers' weights are hashed
	unhashed  bool             // the weights of the model that is served now were never hashed
	weights   uint64           // hash of the model's weights, as far as the first pass shows them
	adapters  map[int32]uint64 // that the graphs apply, by their first attention's layer
	blocks    blocks
	ordinal   map[int32]int    // model's layer number -> number among the layers that can take part
	model     *selection.Model // once the layers are known
	counts    stats.Stats
	engaged   bool // a sparse layer was offloaded
	attention bool // the host has shown attention that can be offloaded
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

// callbacks is what a host context asks of the session that it is a part of.
type callbacks interface {
	forget()                // the layers are not known any more
	unlearn()               // what the layers did last, and what they were to do, is void
	assigned(n *Node) error // they are, and have roles; an error keeps the library out of this context
}

func newHostContext(e *contexts.Engine, log func(level settings.LogLevel, text string)) hostContext {
	if log == nil {
		log = func(settings.LogLevel, string) {}
	}
	return hostContext{engine: e, number: e.Hosted.Add(1), log: log}
}

// flashless says once that the host computes attention in a way that the library cannot take part in.
func (g *hostContext) flashless(graph *Graph) bool {
	if g.attention || g.warned || graph.SoftMax == 0 {
		return false
	}
	g.warned = true
	g.log(settings.LogInfo, "nothing is offloaded: flash attention is off in this host. Turn it on: llama-server --flash-attn on, "+
		"llama-cpp-python flash_attn=True, node-llama-cpp flashAttention: true, xllamacpp flash_attn_type enabled")
	return true
}

// untakable says once which layers of a graph can never be offloaded, and why: of the whole graph, or of the first layer
// that is refused where others are offloaded.
func (g *hostContext) untakable(graph *Graph) {
	if g.warned {
		return
	}
	var refused *Node
	all, settled := true, true
	for i := range graph.Nodes {
		n := &graph.Nodes[i]
		switch n.Reason {
		case stats.ReasonNoCache, stats.ReasonMLA, stats.ReasonType, stats.ReasonShape, stats.ReasonSparseHint:
			if refused == nil {
				refused = n
			}
		case stats.ReasonSliding:
		case stats.Offloaded:
			all = false
		default:
			settled = false // what becomes of it will show
		}
	}
	switch {
	case refused == nil || !settled:
	case all:
		g.warned = true
		g.log(settings.LogInfo, "nothing is offloaded in this context: "+refused.why())
	case refused.Reason != stats.ReasonNoCache: // attention to an encoder's output is not the text's
		g.warned = true
		g.log(settings.LogInfo, fmt.Sprintf("layer %d is left to the host: %s", refused.Layer, refused.why()))
	}
}

// drafts says once that each call of a context has several query tokens, as of a host that checks drafts: it looks as
// if the library did nothing. begins tells whether a text may begin with the call's tokens; of is what they are of.
func (g *hostContext) drafts(n *Node, of string, begins func(n *Node) bool) {
	switch {
	case g.drafted:
	case n.Reason == stats.Offloaded:
		g.short = 0
	case n.Reason != stats.ReasonPrompt || n.Tokens < 2 || n.Tokens > mostDrafted || begins(n):
	default:
		if g.short++; g.short == shortCalls {
			g.drafted = true
			g.log(settings.LogInfo, fmt.Sprintf("nothing is offloaded: %d calls one after another had several query tokens of %s, which the host attends to",
				shortCalls, of))
		}
	}
}

// learn takes note of an attention, whether the kernels take it or not. It returns true once the model's layers are
// known, this one among them.
func (g *hostContext) learn(n *Node, v callbacks) bool {
	if g.discovery.observe(n) && !g.discovery.knows(n) {
		g.rediscover(v)
		g.discovery.observe(n)
	}
	return g.discovery.complete
}

// pass takes note of an attention that the kernels do not take: it is one of the model's layers all the same.
func (g *hostContext) pass(n *Node, v callbacks) {
	if n.Layer >= 0 && g.engine.Inert() == "" {
		g.learn(n, v)
	}
}

// place is the number of a node's layer among those that can take part, once the first pass has shown them.
func (g *hostContext) place(n *Node, v callbacks) (int, stats.Reason) {
	if g.engine.Inert() != "" {
		return 0, stats.ReasonInert
	}
	if !g.learn(n, v) {
		return 0, stats.ReasonDiscovery
	}
	if g.counts.Inert != "" {
		return 0, stats.ReasonInert
	}
	if g.ordinal == nil {
		if !g.discovery.decided {
			return 0, stats.ReasonUndecided
		}
		err := g.assign(n)
		if err == nil {
			err = v.assigned(n)
		}
		if err != nil { // another model in the process, such as the one that it drafts for, may fit
			g.refuse(err.Error())
			return 0, stats.ReasonInert
		}
	}
	layer, ok := g.ordinal[n.Layer]
	if !ok {
		return 0, g.discovery.apart(n.Layer)
	}
	return layer, stats.Offloaded
}

// refuse keeps the library out of this context.
func (g *hostContext) refuse(why string) {
	g.counts.Inert = why
	g.log(settings.LogInfo, "inert in this context: "+why)
}

// survey takes note of what a graph with attention shows of the model as a whole.
func (g *hostContext) survey(graph *Graph) {
	first := graph.Nodes[0].Layer
	if first < 0 || !g.discovery.begins(first) {
		return
	}
	g.weights += graph.Weights
	g.blocks.add(graph)
}

// adapted tells whether a graph with attention applies other adapters than the same part of the model did before: to
// the roles of its layers that is another model. The layers are forgotten then, and the next graph's weights asked for.
func (g *hostContext) adapted(graph *Graph, v callbacks) bool {
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
	g.restart(v)
	g.unhashed, g.weights, g.graphs = false, 0, 0
	graph.KnowsWeights = false
	return true
}

// asks tells whether the next graphs' weights are to be hashed.
func (g *hostContext) asks(graph *Graph) {
	g.graphs++
	graph.KnowsWeights = g.discovery.complete || g.graphs > maxHashed
}

// restart forgets the layers.
func (g *hostContext) restart(v callbacks) {
	v.unlearn()
	g.discovery, g.ordinal, g.blocks, g.model = discovery{}, nil, blocks{}, nil
	clear(g.adapters)
	g.counts.Inert = ""
}

// rediscover starts over: the first pass was not the whole model, or the backend serves another one now.
func (g *hostContext) rediscover(v callbacks) {
	g.restart(v)
	g.unhashed = true
	v.forget()
}

// assign gives the layers that can take part their numbers and roles.
func (g *hostContext) assign(n *Node) error {
	layers := g.discovery.participants()
	if len(layers) == 0 {
		return fmt.Errorf("the layers that see the whole context are left to the host (%s), and sliding-window layers gain nothing", g.discovery.kept())
	}
	var err error
	part := partOf(&g.blocks, g.discovery.layers[0].layer, layers)
	if g.model, err = g.engine.ModelWith(part.settings(g.engine.Settings), g.identity(n, layers), g.log); err != nil {
		if where := g.blocks.elsewhere(); where != "" {
			return fmt.Errorf("LESSISMORE_LAYERS: %w: %s", err, where)
		}
		return fmt.Errorf("LESSISMORE_LAYERS: %w", err)
	}
	if part.some {
		g.model.Part(int(part.first))
		g.log(settings.LogInfo, part.String())
	}
	g.ordinal = map[int32]int{}
	for i, l := range layers {
		g.ordinal[l] = i
	}
	g.model.Mu.Lock()
	choose, source := g.model.Roles.Selections(), g.model.Source
	g.model.Mu.Unlock()
	g.log(settings.LogDebug, fmt.Sprintf("%d layers can take part, %v choose (%s)", len(layers), choose, source))
	return nil
}

// identity is what the graphs show of the model.
func (g *hostContext) identity(n *Node, layers []int32) selection.Identity {
	c := &n.Call
	weights := fmt.Sprintf("%016x", g.weights)
	if g.unhashed { // this context alone knows the model
		weights = fmt.Sprintf("%s %d", selection.UnknownWeights, g.number)
	}
	return selection.Identity{
		Layers: len(layers), First: layers[0], Last: layers[len(layers)-1], Heads: c.Heads, KVHeads: c.KVHeads,
		KeyDim: c.DimK, ValueDim: c.DimV, Scale: c.Scale, Softcap: c.Softcap, MaxBias: n.MaxBias,
		Weights: weights,
	}
}
