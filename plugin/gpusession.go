package plugin

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
)

// GPUSession takes part in one context of a host that computes graphs on a GPU. Plan decides which attentions
// of a compute call the library takes; where the host's stream has come to one of them, Attend queues it on the
// library's own. What rows see is worked out on the device: nothing of a step is ever copied to the host.
//
// Recency goes by slot number: which position a slot holds is written in device memory only.
type GPUSession struct {
	guest

	batch  *Batch
	turn   *cuda.Bridge
	memory *cuda.Memory // the rows' lengths and slots
	odd    *cuda.Pinned // set by the device: a mask is not what the kernels take it for
	sight  cuda.Visibility
	call   BatchAttention // of the node that is being looked at

	stride   stride // through the first pass
	key      stepKey
	layer    int  // the last one that was taken in the compute call
	look     bool // the masks have not been looked at in it
	forgot   bool // the layers were not known after all: what was decided before holds no more
	rejected bool // why layers are left to the host was said
}

// NewGPUSession starts taking part in a context. log may be nil.
func (e *Engine) NewGPUSession(log func(level LogLevel, text string)) *GPUSession {
	s := &GPUSession{guest: newGuest(e, log)}
	s.unhashed = true // they are in device memory
	e.started(s)
	return s
}

// Close ends the session; the host's context is gone. What it counted stays with the engine.
func (s *GPUSession) Close() {
	s.engine.finished(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.engine.lockstep.leave(&s.stride)
	s.forget()
}

func (s *GPUSession) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.counts
	s.counted(&out)
	return out
}

// counted adds what was counted on the device.
func (s *GPUSession) counted(to *Stats) {
	if s.batch == nil {
		return
	}
	c, err := s.batch.Read()
	if err != nil { // the process ends, or the device is lost
		c = s.batch.stats()
	}
	c.PositionOrder = 0
	to.add(&c)
	to.Device, to.Layers, to.SelectionLayers, to.LayersFrom = c.Device, c.Layers, c.SelectionLayers, c.LayersFrom
}

// Stats is what the session has counted so far. It waits for the device.
func (s *GPUSession) Stats() Stats { return s.stats() }

// Plan decides about each node of a compute call.
func (s *GPUSession) Plan(g *Graph) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks(g)
	if len(g.Nodes) == 0 {
		s.flashless(g)
		return
	}
	s.attention = true
	if s.odd != nil && s.counts.Inert == "" && atomic.LoadUint32((*uint32)(unsafe.Pointer(&s.odd.Bytes()[0]))) != 0 {
		s.refuse("a mask holds other values than 0 and -inf, which the kernels for GPUs do not add; earlier steps went without them")
	}
	s.layer, s.look, s.forgot = -1, false, false
	s.survey(g)
	s.stepped(g)
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Reason == Taken {
			n.Reason = s.node(n)
		} else {
			s.pass(n, s)
		}
	}
	s.untakable(g)
	s.drafts(&g.Nodes[0], "a K/V stream (speculative decoding, short prompts, or several sequences in one stream: --no-kv-unified)",
		func(*Node) bool { return false }) // the mask that tells is on the device
	for i := range g.Nodes {
		n := &g.Nodes[i]
		if n.Reason == Taken && s.forgot { // by a later node, and learned anew by another one
			n.Reason = ReasonDiscovery
		}
		s.counts.decline(n.Reason)
	}
}

// stepped looks, in the first pass, for other devices that compute a share of the same layers.
func (s *GPUSession) stepped(g *Graph) {
	first, last := g.Nodes[0].Layer, g.Nodes[len(g.Nodes)-1].Layer
	if first < 0 || last < first {
		return
	}
	if !s.discovery.begins(first) {
		if s.stride.call != 0 {
			s.engine.lockstep.leave(&s.stride)
		}
		return
	}
	const why = "its heads are spread over several GPUs (-sm tensor), which is left to the host"
	if spread, news := s.engine.lockstep.see(&s.stride, syscall.Gettid(), first, last); news {
		s.refuse(why)
	} else if spread {
		s.counts.Inert = why
	}
}

// node decides about one node that the kernels could take.
func (s *GPUSession) node(n *Node) Reason {
	layer, reason := s.place(n, s)
	switch {
	case reason != Taken:
		return reason
	case n.Tokens != 1: // of one sequence, or of several in one store: the masks, which tell, are on the device
		return ReasonPrompt
	case int(n.Streams) > int(s.batch.params.MaxRows):
		return ReasonShape
	case s.layer >= 0 && layer <= s.layer:
		return ReasonShared
	}
	key := stepKey{uintptr(n.Mask), n.NKV, n.Tokens, n.Streams, n.FirstStream}
	if s.layer >= 0 && key != s.key {
		return ReasonUnknownRow // a second step in one call would overwrite what the first one's layers read
	}
	if reason := s.fits(n); reason != Taken {
		return reason
	}
	s.state(n, layer)
	if err := s.batch.Check(&s.call); err != nil {
		return s.reject(ReasonShape, n, err.Error())
	}
	if s.layer < 0 {
		if key != s.key { // else the host goes on with a step that an earlier call began, or begins the next one
			s.batch.Reset()
		}
		s.key, s.look = key, true
		s.sight.Mask, s.sight.MaskStride = uint64(uintptr(n.Mask)), n.MaskStreamStride
		s.sight.NRows, s.sight.NSlots, s.sight.SlotsApart = n.Streams, n.NKV, apart(n.Streams, &n.Call.Key)
		s.turn.Look(&s.sight)
	}
	s.layer = layer
	return Taken
}

// fits tells whether a node is of the kind that the session was made for.
func (s *GPUSession) fits(n *Node) Reason {
	c, p := &n.Call, &s.batch.params
	switch {
	case int32(c.Key.Type) != p.KVType || c.Value.Type != c.Key.Type:
		return s.reject(ReasonType, n, "another element type than the first layer's")
	case c.Heads != p.Heads || c.KVHeads != p.KVHeads || c.DimK != p.HeadDim || c.DimV != p.HeadDim:
		return s.reject(ReasonShape, n, "other heads than the first layer's")
	case n.MaxBias != 0:
		return s.reject(ReasonShape, n, "a bias by distance (ALiBi)")
	case uintptr(n.Mask)%cuda.VisibilityAlign != 0 || n.MaskStreamStride%cuda.VisibilityAlign != 0 || n.NKV%cuda.VisibilityStep != 0:
		return s.reject(ReasonShape, n, "a mask that is not laid out in whole groups of 8 slots")
	case n.NKV > p.Capacity:
		return s.reject(ReasonShape, n, "a store with more slots than the first layer's")
	case apart(n.Streams, &c.Key) < 0 || apart(n.Streams, &c.Key) != apart(n.Streams, &c.Value):
		return s.reject(ReasonShape, n, "streams that are no whole number of tokens apart")
	}
	return Taken
}

// reject says once why a layer is left to the host.
func (s *GPUSession) reject(reason Reason, n *Node, why string) Reason {
	if !s.rejected {
		s.rejected = true
		c := &n.Call
		s.log(LogInfo, fmt.Sprintf("layer %d is left to the host: %s (%d heads, %d KV heads of %d and %d, K %s, V %s, %d slots)",
			n.Layer, why, c.Heads, c.KVHeads, c.DimK, c.DimV, types[c.Key.Type].name, types[c.Value.Type].name, n.NKV))
	}
	return reason
}

// apart is how many slots there are from a stream of the store to the next; -1: no whole number.
func apart(streams int32, t *cpu.Tensor) int32 {
	switch {
	case streams == 1:
		return 0
	case t.StreamStride%t.TokenStride != 0 || t.StreamStride/t.TokenStride > MaxSlots:
		return -1
	}
	return int32(t.StreamStride / t.TokenStride)
}

// state says what a node attends to: pages of one token, numbered through all streams.
func (s *GPUSession) state(n *Node, layer int) {
	c := &n.Call
	rows := func(t *cpu.Tensor) DeviceRows {
		return DeviceRows{Data: uint64(uintptr(t.Data)), RowStride: t.StreamStride, HeadStride: t.HeadStride, Type: int32(t.Type)}
	}
	store := func(t *cpu.Tensor) DeviceStore {
		return DeviceStore{Data: uint64(uintptr(t.Data)), TokenStride: t.TokenStride, HeadStride: t.HeadStride, PageStride: t.TokenStride}
	}
	s.call = BatchAttention{
		Layer: int32(layer), Rows: n.Streams, Capacity: n.NKV,
		Query: rows(&c.Query), Output: rows(&c.Output), Key: store(&c.Key), Value: store(&c.Value),
		Lengths: s.sight.Lengths, Table: s.sight.Table, TableStride: s.sight.TableStride, PageSize: 1,
		Sinks: uint64(uintptr(c.Sinks)), Scale: c.Scale, Softcap: c.Softcap, Stream: uint64(s.turn.Stream()),
	}
}

// Attend queues a taken node between two events of the driver's: what the host queued before the first one is
// done when it runs, and it is done when the second one is. After an error nothing is under way any more.
func (s *GPUSession) Attend(n *Node, before, after uintptr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.attend(n, before, after)
	if err != nil {
		_ = s.turn.Wait()
		if s.counts.Inert == "" {
			s.refuse(err.Error())
		}
	}
	return err
}

func (s *GPUSession) attend(n *Node, before, after uintptr) error {
	if err := s.turn.Begin(before, s.look); err != nil {
		return deviceError(err)
	}
	if s.look {
		s.look = false
		s.counts.CellOrder += uint64(n.Streams)
	}
	s.state(n, s.ordinal[n.Layer])
	if err := s.batch.Attend(&s.call); err != nil {
		return err
	}
	if !s.engaged && s.batch.step.sparse > 0 {
		s.engaged = true
		s.log(LogInfo, fmt.Sprintf("engaged on %s: at most %d tokens of up to %d attended outside layers %v",
			s.batch.device.Name(), s.engine.config.Budget, n.NKV, s.pilot.roles.Selections()))
	}
	if err := s.turn.End(after); err != nil {
		return deviceError(err)
	}
	return nil
}

// suits leaves a GPU alone that computes the later layers of a model: the set that they would attend to is chosen elsewhere.
func (s *GPUSession) suits() error {
	first := s.discovery.layers[0].layer
	if s.blocks.shown { // a model's first layers may have no attention
		first = s.blocks.first
	}
	if first == 0 {
		return nil
	}
	where := s.blocks.elsewhere()
	if where == "" {
		where = fmt.Sprintf("the first attention on this GPU is of layer %d", first)
	}
	return fmt.Errorf("%s: a model that is spread over devices is left alone", where)
}

// assigned gets ready what decoding needs, for as many streams and slots as the host's store has: nothing is
// allocated later.
func (s *GPUSession) assigned(n *Node) error {
	c := &n.Call
	if c.DimK != c.DimV {
		return fmt.Errorf("head_dim = %d for keys and %d for values: kernels for GPUs want the same", c.DimK, c.DimV)
	}
	ordinal, err := cuda.OrdinalOf(uint64(uintptr(c.Key.Data)))
	if err != nil {
		return err
	}
	slots := (n.Store.Slots + cuda.VisibilityStep - 1) / cuda.VisibilityStep * cuda.VisibilityStep
	if slots > MaxSlots {
		return fmt.Errorf("a store of %d slots is more than %d", n.Store.Slots, MaxSlots)
	}
	s.batch, err = newBatch(s.engine, len(s.ordinal), BatchParams{
		Device: int32(ordinal), MaxRows: n.Store.Streams, Capacity: int32(slots),
		Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.DimK, KVType: int32(c.Key.Type),
	})
	if err != nil {
		return err
	}
	if err := s.allocate(int(n.Store.Streams), int(slots)); err != nil {
		s.forget()
		return err
	}
	return nil
}

func (s *GPUSession) allocate(rows, slots int) (err error) {
	d := s.batch.device
	if s.turn, err = d.NewBridge(); err != nil {
		return err
	}
	if s.odd, err = d.Pin(workAlign); err != nil {
		return err
	}
	clear(s.odd.Bytes())
	lengths := (rows*4 + workAlign - 1) / workAlign * workAlign
	if s.memory, err = d.Zeroed(lengths + rows*slots*4); err != nil {
		return err
	}
	s.sight = cuda.Visibility{
		Lengths: s.memory.Address(), Table: s.memory.Address() + uint64(lengths), TableStride: int64(slots),
		Odd: uint64(uintptr(unsafe.Pointer(&s.odd.Bytes()[0]))),
	}
	return nil
}

// forget gives back what was got for the layers that were known, once the device is done with it.
func (s *GPUSession) forget() {
	s.forgot = true
	if s.turn != nil {
		s.turn.Free()
		s.turn = nil
	}
	if s.memory != nil {
		s.memory.Free()
		s.memory = nil
	}
	if s.odd != nil {
		s.odd.Free()
		s.odd = nil
	}
	if s.batch != nil {
		s.counted(&s.counts)
		s.batch.free()
		s.batch = nil
	}
	s.key = stepKey{}
}
