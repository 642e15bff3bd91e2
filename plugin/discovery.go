package plugin

// discovery learns, in a context's first pass over the layers, which of them can take part. Nothing of
// ggml's interface tells a plug-in how many layers a model has: a pass is over when a layer's number
// does not grow any more.
type discovery struct {
	layers   []discovered
	complete bool // the first pass is over
	decided  bool // sliding-window layers are told apart
}

type discovered struct {
	layer int32
	store Store
	mask  uintptr // identity of the mask in the first pass: layers with one mask see the same tokens
	full  bool
}

// observe takes note of one attention over a K/V cache. It returns true once the first pass is over.
func (d *discovery) observe(n *Node) bool {
	if d.complete {
		return true
	}
	if k := len(d.layers); k > 0 && n.Layer <= d.layers[k-1].layer {
		d.complete = true
		d.decide()
		return true
	}
	d.layers = append(d.layers, discovered{layer: n.Layer, store: n.Store, mask: uintptr(n.Mask)})
	return false
}

// knows tells whether a complete pass had this layer, with this store.
func (d *discovery) knows(n *Node) bool {
	for _, l := range d.layers {
		if l.layer == n.Layer {
			return l.store.ID == n.Store.ID
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
	masks := map[uintptr]int64{}
	for _, l := range d.layers {
		masks[l.mask] = l.store.Slots
		largest = max(largest, l.store.Slots)
	}
	smaller := 0
	for _, slots := range masks {
		if slots < largest {
			smaller++
		}
	}
	if len(masks)-smaller > 1 {
		return
	}
	for i := range d.layers {
		d.layers[i].full = d.layers[i].store.Slots == largest
	}
	d.decided = true
}

// compare decides by what the layers of a whole graph see: those that see fewer tokens slide.
func (d *discovery) compare(visible func(store uint64) (tokens int, ok bool)) {
	most, least := -1, -1
	counts := make([]int, len(d.layers))
	for i, l := range d.layers {
		n, ok := visible(l.store.ID)
		if !ok {
			return
		}
		counts[i] = n
		most = max(most, n)
		if least < 0 || n < least {
			least = n
		}
	}
	if most == least {
		return
	}
	for i := range d.layers {
		d.layers[i].full = counts[i] == most
	}
	d.decided = true
}

// participants are the model's numbers of the layers that can take part, ascending.
func (d *discovery) participants() []int32 {
	var out []int32
	for _, l := range d.layers {
		if l.full {
			out = append(out, l.layer)
		}
	}
	return out
}
