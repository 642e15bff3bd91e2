// Package ongpu has the attentions of a host's GPU graphs queued on a stream of the library's.
package ongpu

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"syscall"
	"unsafe"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/layers"
	"lessismore/plugin/ggml/rows"
	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/backend/oncuda"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/decode"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// Device is a GPU, for one context: attentions are queued on a stream of the library's, between two events of the host's. What rows
// see and in which order is known before the graph runs, as on the CPU, for the host's inputs are seen on their way to
// the device; lengths and slots are made there from the same masks. Nothing of a step is ever waited for.
//
// A step that gains nothing, or whose rows have to attend to everything, is left to the host as a whole: its own graph is
// faster than one in parts. Of a batch with a prompt's rows the host computes all, and then the decode rows are attended to once more.
type Device struct {
	DraftMemory int // at most for drafts' rows, in bytes

	layers *layers.Context
	rows   *rows.Rows

	decoder    *decode.Decoder
	device     *cuda.Device
	bridge     *cuda.Bridge
	memory     *cuda.Memory // the rows' lengths and slots
	table      uint64       // the slots in it
	odd        *cuda.Pinned // set by the device: a mask is not what the kernels take it for
	visibility cuda.Visibility
	call       backend.Attention // of the node that is being looked at

	always bool    // also in steps that do not gain by it
	reads  float64 // bytes a second that the host's attention is taken to read

	orders  [2]*cuda.Fetch // slots of rows whose tokens are not in the order of slots, on their way to the device
	turn    int            // the one of this step
	ordered []ordered      // rows of this step in it

	visible      uint64 // tokens that the rows of the step see
	sparseLayers []bool // by the roles of a revision of the model's
	choosing     int    // layers, by the same
	revision     uint64

	stride   contexts.Stride // through the first pass
	computed bool            // the graph was, by the host
	later    bool            // the next one may be, before it is planned
	unseen   bool            // the step's masks have not been looked at
	eager    bool            // the step may be measured or audited
	form     uint64          // number of the step's; 0: it cannot be recorded
	forgot   bool            // the layers were not known after all: what was decided before holds no more
	rejected bool            // why layers are left to the host was said
	others   []bool          // layers of other heads or types than the first one's: the host's

	inherits bool     // the first layers that may be sparse attend to another device's sets, by their roles
	gives    bool     // the last one chooses, and the next device's first ones attend to that
	handover handover // of these

	records   bool // steps that are alike are recorded
	capturing bool // a recording is under way
	decoders  uint64
	forms     forms
	chosen    [cuda.Recordings]bool // by number: what was recorded leaves token sets
}

// ordered is one row's slots in the order of their tokens, in pinned memory.
type ordered struct{ row, offset, n int }

// mostGPURows bounds the rows of a step. Masks of larger batches are kept only where decode rows are taken out of these (Rows.Mixes,
// bindings/ggml/transfers.cc). Memory for rows is got as they come, by powers of two.
const mostGPURows = 64

// mostDraftMemory bounds what is got for drafts' rows, each of which may see the whole store: logits of all heads, and slots. Where more
// would be needed they are the host's.
const mostDraftMemory = 1 << 30

// New is the GPU for a context's layers and rows; always: steps are taken wherever rows are beyond the budget, also where the
// host alone would be faster.
func New(l *layers.Context, r *rows.Rows, always bool) *Device {
	return &Device{DraftMemory: mostDraftMemory, layers: l, rows: r, always: always}
}

func (d *Device) Groups() int { return 1 }

func (d *Device) Close() {
	d.layers.Engine.Lockstep.Leave(&d.stride)
	d.free()
}

func (d *Device) Report(to *stats.Stats) { d.counted(to) }

// Counts tells whether anything is counted on the device.
func (d *Device) Counts() bool { return d.decoder != nil }

// counted adds what was counted on the device.
func (d *Device) counted(to *stats.Stats) {
	if d.decoder == nil {
		return
	}
	c := d.read()
	c.PositionOrder = 0
	to.Add(&c)
	to.Device, to.Layers, to.SelectionLayers, to.LayersFrom = c.Device, c.Layers, c.SelectionLayers, c.LayersFrom
	to.Audited, to.Events = c.Audited, c.Events
}

// read is what the decoder has counted. A recording that is under way would be lost with a wait for the device: then it is what
// was last read, as where the process ends or the device is lost.
func (d *Device) read() stats.Stats {
	if !d.capturing {
		if c, err := d.decoder.Read(); err == nil {
			return c
		}
	}
	return d.decoder.Stats()
}

// Called looks, in the first pass, for other devices that compute a share of the same layers.
func (d *Device) Called(g *graph.Graph) {
	d.forgot, d.computed, d.later, d.form, d.records = false, g.Computed, false, 0, g.Records
	if d.odd != nil && d.layers.Counts.Inert == "" && atomic.LoadUint32((*uint32)(unsafe.Pointer(&d.odd.Bytes()[0]))) != 0 {
		d.layers.Refuse("a mask holds other values than 0 and -inf, which the kernels for GPUs do not add; earlier steps went without them")
	}
	first, last := g.Nodes[0].Layer, g.Nodes[len(g.Nodes)-1].Layer
	if first < 0 || last < first {
		return
	}
	if !d.layers.Begins(first) {
		if d.stride.Call != 0 {
			d.layers.Engine.Lockstep.Leave(&d.stride)
		}
		return
	}
	const why = "its heads are spread over several GPUs (-sm tensor), which is left to the host"
	if spread, news := d.layers.Engine.Lockstep.See(&d.stride, syscall.Gettid(), first, last); news {
		d.layers.Refuse(why)
	} else if spread {
		d.layers.Leave(why)
	}
}

// Fits tells whether a node is of the kind that the session was made for.
func (d *Device) Fits(n *graph.Node) stats.Reason {
	c, p := &n.Call, &d.decoder.Params
	switch {
	case n.Tokens*n.Streams > mostGPURows && n.Scan == nil:
		return stats.ReasonPrompt
	case int32(c.Key.Type) != p.KVType || c.Value.Type != c.Key.Type:
		return d.other(stats.ReasonType, n, "another element type than the first layer's")
	case c.Heads != p.Heads || c.KVHeads != p.KVHeads || c.DimK != p.KeyDim || c.DimV != p.KeyDim:
		return d.other(stats.ReasonShape, n, "other heads than the first layer's")
	case n.MaxBias != 0:
		return d.reject(stats.ReasonShape, n, "a bias by distance (ALiBi)")
	case rowStride(n, &c.Query) < 0 || rowStride(n, &c.Output) < 0:
		return d.reject(stats.ReasonShape, n, "rows of several streams that do not lie at one stride")
	case uintptr(n.Mask)%cuda.VisibilityAlign != 0 || n.NKV%cuda.VisibilityStep != 0 ||
		n.Tokens > 1 && n.MaskTokenStride%cuda.VisibilityAlign != 0 || n.Streams > 1 && n.MaskStreamStride%cuda.VisibilityAlign != 0:
		return d.reject(stats.ReasonShape, n, "a mask that is not laid out in whole groups of 8 slots")
	case n.NKV > p.Capacity:
		return d.reject(stats.ReasonShape, n, "a store with more slots than the first layer's")
	case apart(n.Streams, &c.Key) < 0 || apart(n.Streams, &c.Key) != apart(n.Streams, &c.Value):
		return d.reject(stats.ReasonShape, n, "streams that are no whole number of tokens apart")
	}
	return stats.Offloaded
}

// rowStride is how far rows of a batch lie apart, token by token through all streams; -1: not at one stride.
func rowStride(n *graph.Node, t *cpu.Tensor) int64 {
	switch {
	case n.Streams == 1 || t.StreamStride == int64(n.Tokens)*t.TokenStride:
		return t.TokenStride
	case n.Tokens == 1:
		return t.StreamStride
	}
	return -1
}

// Begin looks whether a step is worth it, and gets ready what its rows see.
func (d *Device) Begin(n *graph.Node) stats.Reason {
	s := d.rows
	if len(s.Step.Rows) > mostGPURows {
		return stats.ReasonPrompt
	}
	reason := d.beyond()
	if reason == stats.ReasonDense && s.LeaveDense(n) {
		reason = d.beyond()
	}
	d.sumUp()
	if reason == stats.Offloaded && !d.always && d.saved(n) < d.price() {
		reason = stats.ReasonNoGain
	}
	d.later = reason == stats.ReasonWithin || reason == stats.ReasonNoGain // as the next step will, most probably
	switch {
	case reason != stats.Offloaded:
	case d.computed: // it was not foreseen
		reason = stats.ReasonNoGain
	default:
		reason = d.taken(n)
	}
	if reason != stats.Offloaded {
		d.layers.Counts.Steps++
		d.layers.Counts.Rows += uint64(len(s.Step.Rows))
		d.layers.Counts.RowsFull += uint64(len(s.Step.Rows))
	}
	return reason
}

// beyond tells whether rows of the step are beyond the budget, and whether one of these has to attend to everything.
func (d *Device) beyond() stats.Reason {
	reason := stats.ReasonWithin
	for i := range d.rows.Step.Rows {
		if r := &d.rows.Step.Rows[i]; r.SetLen > 0 && reason == stats.ReasonWithin {
			reason = stats.Offloaded
		} else if r.SetLen == 0 && int(r.Visible) > d.layers.Engine.Settings.Budget {
			reason = stats.ReasonDense
		}
	}
	return reason
}

// taken tells whether a step that has sparse rows is taken, and gets it ready.
func (d *Device) taken(n *graph.Node) stats.Reason {
	rows := len(d.rows.Step.Rows)
	if rows > int(d.decoder.Params.MaxRows) {
		if d.rows.Drafted() && rowBytes(&d.decoder.Params)*powerOfTwo(rows) > d.DraftMemory {
			return stats.ReasonMemory
		}
		if err := d.grow(n, rows); err != nil {
			d.layers.Refuse(err.Error())
			return stats.ReasonInert
		}
	}
	generation, eager, err := d.decoder.Poll()
	if err != nil {
		d.layers.Refuse(err.Error())
		return stats.ReasonInert
	}
	if !eager && !d.sparse() {
		d.layers.Counts.DenseSteps++
		return stats.ReasonDense
	}
	v := &d.visibility
	v.Mask, v.TokenStride, v.StreamStride = uint64(uintptr(n.Mask)), n.MaskTokenStride, n.MaskStreamStride
	v.NRows, v.NSlots, v.SlotsApart = int32(rows), n.NKV, apart(n.Streams, &n.Call.Key)
	v.Tokens, v.First, v.Table = n.Tokens, int32(d.rows.First()), d.table
	if d.unlisted(n) {
		v.Table = 0
	}
	if !d.arrange() {
		return stats.ReasonDense
	}
	handed, reason := d.follow(n)
	if reason != stats.Offloaded {
		return reason
	}
	d.decoder.Reset()
	d.bridge.Look(v)
	d.unseen, d.eager = true, eager
	if !eager && !d.rows.Mixed() { // what the host computes of a mixed step is in no recording
		d.form = d.forms.number(form{generation, d.decoders, *v, d.rows.Drafted(), handed})
	}
	return stats.Offloaded
}

// unlisted tells whether each row sees the first slots of its own stream, in their order: kernels then need no table, and
// read whole tiles of the store.
func (d *Device) unlisted(n *graph.Node) bool {
	if n.Tokens > 1 || d.rows.Mixed() {
		return false // they share a stream, or it begins elsewhere
	}
	for i := range d.rows.Step.Rows {
		if d.rows.Step.Rows[i].Slots != nil {
			return false
		}
	}
	return true
}

// arrange puts the slots of rows whose tokens are not in the order of slots where the device can get them; false: it has
// not got the last ones yet.
func (d *Device) arrange() bool {
	d.ordered = d.ordered[:0]
	used := 0
	for i := range d.rows.Step.Rows {
		r := &d.rows.Step.Rows[i]
		if r.Slots == nil || r.SetLen == 0 {
			continue
		}
		slots := unsafe.Slice((*int32)(r.Slots), r.Visible)
		if d.rows.InOrderOfSlots(i, slots) {
			continue
		}
		if used == 0 {
			d.turn = 1 - d.turn
			if free, err := d.orders[d.turn].Ready(); err != nil || !free {
				return false
			}
		}
		apart := d.visibility.SlotsApart * r.Stream
		to := unsafe.Slice((*int32)(unsafe.Pointer(&d.orders[d.turn].Bytes()[used])), len(slots))
		for k, slot := range slots {
			to[k] = slot + apart
		}
		d.ordered = append(d.ordered, ordered{i, used, len(slots)})
		used += 4 * len(slots)
	}
	return true
}

func (d *Device) Direct(n *graph.Node, layer int) stats.Reason {
	d.rows.Step.Layer = layer
	if d.computed {
		return stats.ReasonNoGain
	}
	if d.full(layer) && (layer == 0 && d.form != 0 && d.records || !d.eager && (d.rows.Drafted() || d.rows.Mixed())) {
		// The host's device is busy with it while the rest of the step is planned. Rows of one text it attends to at once, and those of
		// a mixed batch it computes in any case.
		return stats.ReasonNoGain
	}
	d.state(n, layer)
	if err := d.decoder.Check(&d.call); err != nil {
		return d.reject(stats.ReasonShape, n, err.Error())
	}
	return stats.Offloaded
}

// Ended has nothing to keep: token sets are on the device.
func (d *Device) Ended() {}

func (d *Device) Planned(g *graph.Graph) {
	g.Later, g.Form = d.later, d.form
	if d.forgot { // what was decided before holds no more
		g.Undecide()
	}
	if d.forgot || !d.ends(g) {
		g.Form = 0
	}
}

// ends tells whether a call has the step's last layer. Where layers are computed by other calls, they go on with the token sets
// of this one's, which a replayed recording does not tell of.
func (d *Device) ends(g *graph.Graph) bool {
	for i := len(g.Nodes) - 1; i >= 0; i-- {
		if layer, ok := d.layers.Ordinal[g.Nodes[i].Layer]; ok {
			_, last := d.layers.Bounds()
			return layer == last
		}
	}
	return false
}

// Left counts a node of a decode step that the host computes: it attends to everything.
func (d *Device) Left(n *graph.Node) {
	layer, ok := d.layers.Ordinal[n.Layer]
	if !ok {
		return
	}
	d.layers.Counts.TokensVisible += d.visible
	d.layers.Counts.TokensAttended += d.visible
	if layer < len(d.sparseLayers) && d.sparseLayers[layer] {
		d.layers.Counts.SparseTokensVisible += d.visible
		d.layers.Counts.SparseTokensAttended += d.visible
	}
}

// reject says once why a layer is left to the host.
func (d *Device) reject(reason stats.Reason, n *graph.Node, why string) stats.Reason {
	if !d.rejected {
		d.rejected = true
		c := &n.Call
		d.layers.Log(settings.LogInfo, fmt.Sprintf("layer %d is left to the host: %s (%d heads, %d KV heads of %d and %d, K %s, V %s, %d slots)",
			n.Layer, why, c.Heads, c.KVHeads, c.DimK, c.DimV, backend.Types[c.Key.Type].Name, backend.Types[c.Value.Type].Name, n.NKV))
	}
	return reason
}

// other is reject of a layer that the decoder was not made for: a step may end before it.
func (d *Device) other(reason stats.Reason, n *graph.Node, why string) stats.Reason {
	if layer, ok := d.layers.Ordinal[n.Layer]; ok {
		if d.others == nil {
			d.others = make([]bool, d.layers.Model.Layers)
		}
		d.others[layer] = true
	}
	return d.reject(reason, n, why)
}

// last is the layer that a step ends with here; 0: the model's last one.
func (d *Device) last() int32 {
	_, last := d.layers.Bounds()
	for d.others != nil && last > 0 && d.others[last] {
		last--
	}
	return int32(last)
}

// apart is how many slots there are from a stream of the store to the next; -1: no whole number.
func apart(streams int32, t *cpu.Tensor) int32 {
	switch {
	case streams == 1:
		return 0
	case t.StreamStride%t.TokenStride != 0 || t.StreamStride/t.TokenStride > backend.MaxSlots:
		return -1
	}
	return int32(t.StreamStride / t.TokenStride)
}

// state says what a node attends to: pages of one token, numbered through all streams, or a stream for each row.
func (d *Device) state(n *graph.Node, layer int) {
	c, v := &n.Call, &d.visibility
	rows := func(t *cpu.Tensor) backend.RowView {
		stride := rowStride(n, t)
		first := uintptr(t.Data) + uintptr(stride)*uintptr(d.visibility.First)
		return backend.RowView{Data: first, RowStride: stride, HeadStride: t.HeadStride, Type: int32(t.Type)}
	}
	store := func(t *cpu.Tensor) backend.KVView {
		view := backend.KVView{Data: uintptr(t.Data), TokenStride: t.TokenStride, HeadStride: t.HeadStride, PageStride: t.TokenStride}
		if v.Table == 0 {
			view.PageStride = int64(v.SlotsApart) * t.TokenStride
		}
		return view
	}
	d.call = backend.Attention{
		Layer: int32(layer), Rows: d.visibility.NRows, Slots: int64(n.NKV),
		Query: rows(&c.Query), Output: rows(&c.Output), Key: store(&c.Key), Value: store(&c.Value),
		Lengths: uintptr(v.Lengths), Table: uintptr(v.Table), TableStride: v.TableStride, PageSize: 1,
		Sinks: uintptr(c.Sinks), Scale: c.Scale, Softcap: c.Softcap, Stream: d.bridge.Stream(), Last: d.last(),
	}
}

// Table is where the device has the slots that the rows see.
func (d *Device) Table() uint64 { return d.table }

// Attend queues an offloaded node between two events of the driver's: what the host queued before the first one is done when it
// runs, and its output is there when the second one is. After an error nothing is under way any more. In a recording the first event may
// be 0.
func (d *Device) Attend(n *graph.Node, before, after uintptr) error {
	return d.gone(d.attend(n, before, after))
}

// gone refuses to go on after an error.
func (d *Device) gone(err error) error {
	if err == nil {
		return nil
	}
	if !d.capturing { // nothing of it runs
		_ = d.bridge.Wait()
	}
	if d.layers.Counts.Inert == "" {
		d.layers.Refuse(err.Error())
	}
	return err
}

// begin has the stream wait for the host, and gets there what the step's rows see: once, before its first layer, and never in a
// recording.
func (d *Device) begin(before uintptr) error {
	look := d.unseen && !d.capturing
	if look { // while the host comes to the first layer
		if err := d.bring(); err != nil {
			return oncuda.DeviceError(err)
		}
	}
	if err := d.bridge.Begin(before, look); err != nil || !look {
		return oncuda.DeviceError(err)
	}
	d.unseen = false
	for _, o := range d.ordered {
		to := d.table + uint64(o.row)*uint64(d.visibility.TableStride)*4
		if err := d.orders[d.turn].Put(to, o.offset, 4*o.n, d.bridge.Stream()); err != nil {
			return oncuda.DeviceError(err)
		}
	}
	return nil
}

func (d *Device) attend(n *graph.Node, before, after uintptr) error {
	if err := d.begin(before); err != nil {
		return err
	}
	d.state(n, d.layers.Ordinal[n.Layer])
	d.call.Attended = after
	if err := d.decoder.Attend(&d.call); err != nil {
		return err
	}
	if !d.capturing {
		d.layers.Chose(d.decoder.Chosen())
	}
	if !d.layers.Engaged && d.decoder.Sparse() {
		d.layers.Engaged = true
		d.layers.Model.Mu.Lock()
		choose := d.layers.Model.Roles.Selections()
		d.layers.Model.Mu.Unlock()
		d.layers.Log(settings.LogInfo, fmt.Sprintf("engaged on %s: at most %d tokens of up to %d attended outside layers %v",
			d.device.Name(), d.layers.Engine.Settings.Budget, n.NKV, choose))
	}
	return nil
}

// Assigned gets ready what decoding needs, for as many slots as the host's store has and rows as it has streams: nothing
// is allocated later, but for more rows.
func (d *Device) Assigned(n *graph.Node) error { return d.grow(n, int(n.Store.Streams)) }

// grow makes the decoder for so many rows, rounded up.
func (d *Device) grow(n *graph.Node, rows int) error {
	d.free()
	c := &n.Call
	if c.DimK != c.DimV {
		return fmt.Errorf("head_dim = %d for keys and %d for values: kernels for GPUs want the same", c.DimK, c.DimV)
	}
	ordinal, err := cuda.OrdinalOf(uint64(uintptr(c.Key.Data)))
	if err != nil {
		return err
	}
	slots := (n.Store.Slots + cuda.VisibilityStep - 1) / cuda.VisibilityStep * cuda.VisibilityStep
	if slots > backend.MaxSlots {
		return fmt.Errorf("a store of %d slots is more than %d", n.Store.Slots, backend.MaxSlots)
	}
	params := backend.Params{
		Device: int32(ordinal), MaxRows: int32(powerOfTwo(rows)), Capacity: int32(slots),
		Heads: c.Heads, KVHeads: c.KVHeads, KeyDim: c.DimK, ValueDim: c.DimV, KVType: int32(c.Key.Type),
	}
	if d.device, err = oncuda.OpenDevice(ordinal); err != nil {
		return err
	}
	d.reads = hostReads * d.device.Bandwidth()
	if err := d.allocate(params); err != nil {
		d.free()
		return err
	}
	return nil
}

// powerOfTwo is the least that is not below n.
func powerOfTwo(n int) int { return 1 << bits.Len(uint(n-1)) }

// rowBytes is about what a row takes of the device's memory: two numbers for each logit of each head, and its slots.
func rowBytes(p *backend.Params) int { return int(p.Capacity) * (int(p.Heads)*8 + 4) }

func (d *Device) allocate(params backend.Params) (err error) {
	rows, slots := int(params.MaxRows), int(params.Capacity)
	if d.bridge, err = d.device.NewBridge(); err != nil {
		return err
	}
	params.Stream = d.bridge.Stream()
	if d.decoder, err = decode.BuildOf(d.layers.Engine, d.layers.Model, params); err != nil {
		return err
	}
	d.decoders++
	if d.odd, err = d.device.Pin(oncuda.WorkAlign); err != nil {
		return err
	}
	clear(d.odd.Bytes())
	for i := range d.orders {
		if d.orders[i], err = d.device.NewFetch(4 * rows * slots); err != nil {
			return err
		}
	}
	if err = d.makeRoom(rows); err != nil {
		return err
	}
	d.ordered = make([]ordered, 0, rows)
	lengths := (rows*4 + oncuda.WorkAlign - 1) / oncuda.WorkAlign * oncuda.WorkAlign
	if d.memory, err = d.device.Zeroed(lengths + rows*slots*4); err != nil {
		return err
	}
	d.table = d.memory.Address() + uint64(lengths)
	d.visibility = cuda.Visibility{
		Lengths: d.memory.Address(), TableStride: int64(slots),
		Odd: uint64(uintptr(unsafe.Pointer(&d.odd.Bytes()[0]))),
	}
	return nil
}

func (d *Device) Unlearn() {
	d.forgot, d.sparseLayers, d.others = true, nil, nil
	d.free()
}

// free gives back what was got for the layers that were known, once the device is done with it.
func (d *Device) free() {
	d.counted(&d.layers.Counts)
	if d.bridge != nil {
		d.bridge.Free()
		d.bridge = nil
	}
	d.handover.leave()
	if d.memory != nil {
		d.memory.Free()
		d.memory = nil
	}
	for i := range d.orders {
		if d.orders[i] != nil {
			d.orders[i].Free()
			d.orders[i] = nil
		}
	}
	if d.odd != nil {
		d.odd.Free()
		d.odd = nil
	}
	if d.decoder != nil {
		d.decoder.Close()
		d.decoder = nil
	}
	d.rows.Abandon()
}
