package layers

import (
	"fmt"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// A short call has at most so many query tokens of a sequence, and so many calls are no accident.
const (
	mostShort  = 32
	ShortCalls = 32
)

// Flashless says once that the host computes attention in a way that the library cannot take part in.
func (c *Context) Flashless(g *graph.Graph) bool {
	if c.attention || c.warned || g.SoftMax == 0 {
		return false
	}
	c.warned = true
	c.Log(settings.LogInfo, "nothing is offloaded: flash attention is off in this host. Turn it on: llama-server --flash-attn on, "+
		"llama-cpp-python flash_attn=True, node-llama-cpp flashAttention: true, xllamacpp flash_attn_type enabled")
	return true
}

// Untakable says once which layers of a graph can never be offloaded, and why: of the whole graph, or of the first layer
// that is refused where others are offloaded.
func (c *Context) Untakable(g *graph.Graph) {
	if c.warned {
		return
	}
	var refused *graph.Node
	all, settled := true, true
	for i := range g.Nodes {
		n := &g.Nodes[i]
		switch n.Reason {
		case stats.ReasonNoCache, stats.ReasonMLA, stats.ReasonType, stats.ReasonShape, stats.ReasonSparseHint:
			if n.Reason == stats.ReasonNoCache && n.What != nil && n.Tokens > 1 {
				settled = false // a host computes layers of a long prompt elsewhere than those of its steps
			}
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
		c.warned = true
		c.Log(settings.LogInfo, "nothing is offloaded in this context: "+refused.Why())
	case refused.Reason != stats.ReasonNoCache: // attention to an encoder's output is not the text's
		c.warned = true
		c.Log(settings.LogInfo, fmt.Sprintf("layer %d is left to the host: %s", refused.Layer, refused.Why()))
	}
}

// Drafts says once that calls of a context have several query tokens of a sequence, as of a host that checks drafts: it looks
// as if the library did nothing. begins tells whether a text may begin with the call's tokens.
func (c *Context) Drafts(n *graph.Node, begins func(n *graph.Node) bool) {
	what := ""
	switch {
	case c.drafted:
		return
	case n.Reason == stats.Offloaded:
		c.short = 0
	case n.Tokens < 2 || n.Tokens > mostShort || begins(n):
	case n.Reason == stats.ReasonDraft:
		if c.checks++; c.checks == ShortCalls {
			what = fmt.Sprintf("the host attends to everything in %d calls so far that check a draft (a few tokens of a sequence, whose logits are all wanted): "+
				"LESSISMORE_SPECULATION=on decodes them sparsely", ShortCalls)
		}
	case n.Reason == stats.ReasonPrompt:
		if c.short++; c.short == ShortCalls {
			what = fmt.Sprintf("nothing is offloaded: %d calls one after another had several query tokens of a sequence (a prompt in small pieces), which the host attends to",
				ShortCalls)
		}
	}
	if what != "" {
		c.drafted = true
		c.Log(settings.LogInfo, what)
	}
}
