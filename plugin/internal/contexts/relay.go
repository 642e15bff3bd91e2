package contexts

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/selection"
)

// Relay is where the devices that a host's model is spread over by layers find each other: several GPUs (llama.cpp's -sm layer),
// or the CPU and GPUs (a part of the layers off-loaded).
type Relay struct {
	HandsOver atomic.Bool // false: each device chooses for itself. A host may find its GPUs while others compute already

	mu      sync.Mutex
	legs    []*Leg
	batches map[uint64]*Batch // by the number of the host's context
	told    atomic.Uint64     // times that devices told something of a batch
}

// Leg is one device's part of such a model.
type Leg struct {
	relay *Relay
	shown Shown
	whole *Whole
	batch *Batch

	mu   sync.Mutex // of what the last step leaves
	left Left
}

// Shown is what a device's graphs have shown of its part.
type Shown struct {
	Host        uint64  // number of the host's context, as far as its devices have shown that they are of one; 0: not known
	First, Last int32   // blocks of the model
	Ends        bool    // what follows the last block is computed here, too
	Layers      []int32 // of these, those that can take part
	Slots       int64   // of a stream of their stores
	Weights     uint64
}

// Whole is a model whose parts are all known: its layers are numbered and have roles as if one device computed them.
type Whole struct {
	Layers []int32 // that can take part, by their numbers in the model, ascending
	Model  *selection.Model
	Err    error // why there is none
	legs   []*Leg
}

// Left is what a device's step leaves for the one that computes the next layers: which rows it had, and their token sets. Memory
// is that device's, and stays until its next step.
type Left struct {
	Chosen bool // there are sets
	Rows   []cpu.Row
	Own    []int64 // slots of the batch's own tokens
	Shape  Shape
	Masks  Masks
	OnGPU  cuda.Sets // where the sets are; no device: Rows have them
	Apart  int32     // slots from a row's stream to the next one's, as sets on a GPU count them
}

// Shape is how a batch lies in its store.
type Shape struct {
	Tokens, Streams, FirstStream, NKV int32
	Slots                             int64 // of a stream
}

// Masks are what says which slots the batch's tokens see.
type Masks struct {
	At                        unsafe.Pointer
	Type                      cpu.Type
	TokenStride, StreamStride int64
}

// Join begins with a device.
func (r *Relay) Join() *Leg {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &Leg{relay: r}
	r.legs = append(r.legs, l)
	return l
}

// Part ends with a device.
func (l *Leg) Part() {
	l.Forget()
	r := l.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	l.leaveBatch()
	r.legs = slices.DeleteFunc(r.legs, func(o *Leg) bool { return o == l })
}

// Show says what has been shown so far.
func (l *Leg) Show(s Shown) {
	l.relay.mu.Lock()
	defer l.relay.mu.Unlock()
	l.shown = s
}

// Forget drops it: the device's layers are not known any more.
func (l *Leg) Forget() {
	l.relay.mu.Lock()
	l.shown, l.whole = Shown{}, nil
	l.relay.mu.Unlock()
	l.Withdraw()
}

// Whole is the model that a device has a part of, whose layers in it are now known for good. Its first device makes the model,
// once all others have shown their parts in a first pass; nil: each device has layers with roles of their own, so far.
func (l *Leg) Whole(layers []int32, host uint64, model func(layers []int32, weights uint64) (*selection.Model, error)) *Whole {
	r := l.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	l.shown.Host = host
	if l.whole == nil && r.HandsOver.Load() {
		r.complete(l, model)
	}
	if l.whole != nil && !slices.Equal(l.shown.Layers, layers) {
		l.whole = nil
	}
	return l.whole
}

// Joined tells whether a device that has been by itself is part of a whole now: in a long prompt a host computes the CPU's layers on a
// GPU, so that the CPU's part shows itself only later.
func (l *Leg) Joined() bool {
	if !l.relay.HandsOver.Load() { // asked at every call: contexts that have nothing in common need not meet at one lock
		return false
	}
	l.relay.mu.Lock()
	defer l.relay.mu.Unlock()
	return l.whole != nil
}

// complete makes a whole of a device's part and those that follow it, if they are one.
func (r *Relay) complete(first *Leg, model func(layers []int32, weights uint64) (*selection.Model, error)) {
	var legs []*Leg
	for _, l := range r.legs {
		if l.shown.Host == first.shown.Host && l.shown.Host != 0 && len(l.shown.Layers) > 0 {
			legs = append(legs, l)
		}
	}
	slices.SortFunc(legs, func(a, b *Leg) int { return cmp.Compare(a.shown.First, b.shown.First) })
	if len(legs) < 2 || legs[0] != first || first.shown.First != 0 || !legs[len(legs)-1].shown.Ends {
		return
	}
	w := &Whole{legs: legs}
	var weights uint64
	for i, l := range legs {
		if l.whole != nil || l.shown.Slots != first.shown.Slots || i > 0 && l.shown.First != legs[i-1].shown.Last+1 {
			return
		}
		w.Layers = append(w.Layers, l.shown.Layers...)
		weights += l.shown.Weights
	}
	if w.Model, w.Err = model(w.Layers, weights); w.Model == nil && w.Err == nil {
		return
	}
	for _, l := range legs {
		l.whole = w
	}
}

// Before is the device that computes the layers before a device's; nil: none, or it is not known to be of the same whole.
func (w *Whole) Before(l *Leg) *Leg {
	if i := slices.Index(w.legs, l); i > 0 {
		return w.legs[i-1]
	}
	return nil
}

// Offer says what a step leaves that is planned: without token sets, for these are to be computed.
func (l *Leg) Offer(left Left) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left, l.left.Chosen = left, false
}

// Chose says whether the step offered leaves token sets, as far as it was computed.
func (l *Leg) Chose(sets bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left.Chosen = sets && l.left.Rows != nil
}

// Withdraw takes the offer back.
func (l *Leg) Withdraw() { l.Offer(Left{}) }

// Take is what the last step of a device of the whole leaves, once; false: nothing.
func (l *Leg) Take(of *Whole) (Left, bool) {
	l.relay.mu.Lock()
	same := l.whole == of
	l.relay.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.left
	l.left.Chosen = false
	return left, same && left.Chosen
}
