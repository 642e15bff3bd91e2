package layers

import (
	"slices"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/stats"
)

// discovery learns, in a context's first pass over the layers, which of them can take part. Nothing of
// ggml's interface tells a plug-in how many layers a model has: a pass is over when a layer's number
// does not grow any more.
//
// It looks at every attention over a K/V cache, also at those that the kernels do not take: which layers see
// everything is decided by masks and caches, never by which layers are left.
type discovery struct {
	layers   []discovered
	complete bool // the first pass is over
	decided  bool // sliding-window layers are told apart
}

type discovered struct {
	layer  int32
	store  kvindex.Store
	scope  scope
	reason stats.Reason // why the kernels do not take it; Offloaded: they do
	why    string       // the same with the value that it is
	full   bool         // it is one of the layers that see everything
}

// participates tells whether a layer can take part.
func (d discovered) participates() bool { return d.full && d.reason == stats.Offloaded }

// scope is what tells layers that see the same tokens: one mask, read over as many slots of stores of one kind.
type scope struct {
	mask    uintptr
	nkv     int32
	slots   int64
	streams int32
}

func scopeOf(n *graph.Node) scope {
	return scope{uintptr(n.Mask), n.NKV, n.Store.Slots, n.Store.Streams}
}

// observe takes note of one attention over a K/V cache. It returns true once the first pass is over.
func (d *discovery) observe(n *graph.Node) bool {
	if d.complete {
		return true
	}
	if k := len(d.layers); k > 0 && n.Layer <= d.layers[k-1].layer {
		d.complete = true
		d.decide()
		return true
	}
	l := discovered{layer: n.Layer, store: n.Store, scope: scopeOf(n), reason: n.Reason}
	if l.reason != stats.Offloaded {
		l.why = n.Why()
	}
	d.layers = append(d.layers, l)
	return false
}

// knows tells whether a complete pass had this layer, with this store.
func (d *discovery) knows(n *graph.Node) bool {
	for _, l := range d.layers {
		if l.layer == n.Layer {
			return l.store == n.Store
		}
	}
	return false
}

// begins tells whether a graph whose first attention is of that layer still belongs to the first pass.
func (d *discovery) begins(layer int32) bool {
	return !d.complete && (len(d.layers) == 0 || layer > d.layers[len(d.layers)-1].layer)
}

// decide tells full from sliding-window layers where a model has both: they have two masks, and the
// sliding layers' store is smaller, unless the host keeps it whole. Then compare decides later.
func (d *discovery) decide() {
	var largest int64
	for _, l := range d.layers {
		largest = max(largest, l.store.Slots)
	}
	var full []scope // that may be those of the layers that see everything
	for _, l := range d.layers {
		if l.store.Slots == largest && !slices.Contains(full, l.scope) {
			full = append(full, l.scope)
		}
	}
	if len(full) == 1 {
		d.settle(full[0])
	}
}

// compare decides by what the layers of a whole graph see: those that see fewer tokens slide. Two kinds of layer
// that both see the most leave it undecided: they may part later.
func (d *discovery) compare(visible func(store uint64) (tokens int, ok bool)) {
	most, full, single := -1, scope{}, false
	for _, l := range d.layers {
		n, ok := visible(l.store.ID)
		switch {
		case !ok:
			return
		case n > most:
			most, full, single = n, l.scope, true
		case n == most && l.scope != full:
			single = false
		}
	}
	if single {
		d.settle(full)
	}
}

func (d *discovery) settle(full scope) {
	for i := range d.layers {
		d.layers[i].full = d.layers[i].scope == full
	}
	d.decided = true
}

// participants are the model's numbers of the layers that can take part, ascending.
func (d *discovery) participants() []int32 {
	var out []int32
	for _, l := range d.layers {
		if l.participates() {
			out = append(out, l.layer)
		}
	}
	return out
}

// apart is why a layer of a pass that is over does not take part.
func (d *discovery) apart(layer int32) stats.Reason {
	for _, l := range d.layers {
		if l.layer == layer && l.full {
			return l.reason // not offloaded then, though it could be now
		}
	}
	return stats.ReasonSliding
}

// kept is why the kernels take none of the layers that see everything.
func (d *discovery) kept() string {
	for _, l := range d.layers {
		if l.full && l.reason != stats.Offloaded {
			return l.why
		}
	}
	return ""
}
