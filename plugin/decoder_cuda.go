package plugin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"unsafe"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
)

// HasCUDA tells whether this build has the CUDA engine.
const HasCUDA = cuda.Built

const workAlign = 256 // of work memory, in bytes

// cudaDecoder attends on a GPU. What it computes is queued on the caller's stream; nothing is copied or waited for, and
// what changes from step to step is read by the kernels, so that a captured step can be replayed while the sequences grow.
type cudaDecoder struct {
	engine  *Engine
	params  DecoderParams
	count   int // layers
	cal     cudaProbes
	selects bool // rows can grow past the budget
	split   Split
	device  *cuda.Device
	memory  *cuda.Memory // nil: the caller's

	work, sets, positions, kept, counters uint64

	layers []cudaLayer
	call   cuda.Call  // of the attention that is being looked at
	places [12]uint64 // and its addresses
	tally  cuda.Tally
	step   step
	sees   cudaVisibility // what the step's token sets were chosen for
	taken  layerSet
}

// cudaLayer is a layer's plan, and the call that it was made from.
type cudaLayer struct {
	plan  *cuda.Plan
	call  cuda.Call
	ready bool
}

// cudaVisibility is what the rows of a call see, as far as the host knows.
type cudaVisibility struct {
	rows        int32
	lengths     uint64
	table       uint64
	tableStride int64
	pageShift   int32
}

// newCUDADecoder makes a decoder that the engine's report does not know.
func newCUDADecoder(engine *Engine, layers int, params DecoderParams) (*cudaDecoder, error) {
	d := &cudaDecoder{engine: engine, params: params}
	size, err := d.size(layers)
	if err != nil {
		return nil, err
	}
	switch {
	case params.Work == 0 && params.WorkSize != 0:
		return nil, bad("work_size = %d, but work = 0", params.WorkSize)
	case params.Work%workAlign != 0:
		return nil, bad("work = %#x is not a multiple of %d", params.Work, workAlign)
	case params.Work != 0 && params.WorkSize < size:
		return nil, bad("work_size = %d is less than the %d bytes needed", params.WorkSize, size)
	case params.Work != 0 && d.device.Foreign([]uint64{params.Work, params.Work + size - 1}) >= 0:
		return nil, bad("work = %#x does not point to %d bytes of CUDA device %d's memory", params.Work, size, params.Device)
	}
	if err = d.make(size); err != nil {
		d.free()
		return nil, deviceError(err)
	}
	return d, nil
}

// make gets what was laid out, and makes the layers' plans.
func (d *cudaDecoder) make(size uint64) (err error) {
	d.layers = make([]cudaLayer, d.count)
	for i := range d.layers {
		if d.layers[i].plan, err = cuda.NewPlan(); err != nil {
			return err
		}
	}
	if d.params.Work == 0 {
		if d.memory, err = d.device.Zeroed(int(size)); err != nil {
			return err
		}
		_, _ = d.place(d.memory.Address())
	}
	m, err := d.engine.model(identity{Layers: d.count, Weights: d.engine.about}, d.engine.said.add)
	if err != nil {
		return err
	}
	if err = d.cal.open(m, d.device, &d.params); err != nil {
		return err
	}
	d.reset()
	return d.load()
}

// load finds all entry points that the batch may need. The driver loads code when it is first asked for, which it may
// not do while a stream is being captured.
func (d *cudaDecoder) load() error {
	if err := d.device.Load(&d.call); err != nil {
		return err
	}
	plan, modes := d.layers[0].plan, []cuda.Mode{cuda.Full}
	if d.selects {
		modes = []cuda.Mode{cuda.Full, cuda.Sparse, cuda.Select}
	}
	for _, d.call.Mode = range modes {
		if _, err := d.device.Plan(&d.call, plan); err != nil {
			return err
		}
	}
	if d.cal.most > 0 {
		if _, err := d.device.PlanProbe(&d.call, &cuda.Probe{Own: lowest}, d.cal.plan); err != nil {
			return err
		}
	}
	if err := plan.Tally(d.device, &d.tally); err != nil {
		return err
	}
	return plan.Tally(d.device, nil)
}

// cudaWorkSize is the device memory that a decoder needs beside keys and values.
func cudaWorkSize(engine *Engine, layers int, params DecoderParams) (uint64, error) {
	d := &cudaDecoder{engine: engine, params: params}
	return d.size(layers)
}

// size checks what the decoder is for, opens its device and lays out the work memory.
func (d *cudaDecoder) size(layers int) (uint64, error) {
	if err := d.shape(layers); err != nil {
		return 0, err
	}
	var err error
	if d.device, err = openDevice(int(d.params.Device)); err != nil {
		return 0, err
	}
	return d.place(d.params.Work)
}

// shape checks what can be checked without a driver.
func (d *cudaDecoder) shape(layers int) error {
	p, config := &d.params, &d.engine.settings
	switch {
	case !cuda.Built:
		return notSupported("this build of the library has no CUDA")
	case p.Heads/p.KVHeads > cuda.MaxGroup:
		return notSupported("heads = %d is more than %d for each of kv_heads = %d", p.Heads, cuda.MaxGroup, p.KVHeads)
	case p.KeyDim < 1 || p.KeyDim > cpu.MaxDim:
		return bad("head_dim = %d is not in 1 .. %d", p.KeyDim, cpu.MaxDim)
	case p.ValueDim != p.KeyDim:
		return notSupported("value_dim = %d is not head_dim = %d, as on a GPU it has to be", p.ValueDim, p.KeyDim)
	case p.KeyDim != 64 && p.KeyDim != 128 && p.KeyDim != 256:
		return notSupported("head_dim = %d is not 64, 128 or 256", p.KeyDim)
	}
	switch cuda.Type(p.KVType) {
	case cuda.F16, cuda.BF16, cuda.Q8_0, cuda.FP8:
	case cuda.F32, cuda.Type(cpu.Q4_0):
		return notSupported("kv_dtype = %d (%s) is not f16, bf16, fp8 or q8_0", p.KVType, types[p.KVType].name)
	default:
		return bad("kv_dtype = %d is unknown", p.KVType)
	}
	if config.Interval > 1 {
		return notSupported("interval = %d: on a GPU, a token set serves one step", config.Interval)
	}
	if _, err := NewRoles(layers, *config); err != nil {
		return err
	}
	d.count = layers
	d.selects = int(p.Capacity) > config.Budget
	d.split = SplitBudget(config.Budget, config.Budget, config.Recency, config.SinkTokens)
	return nil
}

// place lays out the work memory from an address on and returns its size. It also tells whether the kernels can
// take any batch of this shape at all.
func (d *cudaDecoder) place(base uint64) (uint64, error) {
	c, p := &d.call, &d.params
	d.sets = lowest
	d.positions, d.work = d.sets, d.sets
	d.fill(c, &Attention{Rows: p.MaxRows, Slots: int64(p.Capacity), Lengths: lowest})
	row := int64(p.KeyDim) * workAlign // at least a row, and a multiple of what it has to be, for every type
	c.Query = cuda.Rows{Data: lowest, RowStride: row * int64(p.Heads), HeadStride: row, Type: cuda.F32}
	c.Output = c.Query
	c.Key = cuda.Store{Data: lowest, TokenStride: row * int64(p.KVHeads), HeadStride: row, PageStride: row * int64(p.KVHeads)}
	c.Value = c.Key
	c.Mode = cuda.Full
	if d.selects {
		c.Mode = cuda.Select
	}
	if err := d.device.Check(c); err != nil {
		return 0, deviceError(err)
	}
	used := base
	take := func(bytes int) uint64 {
		at := used
		used += (uint64(bytes) + workAlign - 1) / workAlign * workAlign
		return at
	}
	rows, budget := int(p.MaxRows), 0
	if d.selects {
		budget = d.engine.settings.Budget
	}
	d.work = take(d.device.WorkSize(c))
	d.sets = take(rows * budget * 4)
	d.positions = take(rows * budget * 4)
	d.kept = take((2 + rows) * 4)
	d.counters = take(cuda.Counters * 8)
	d.cal.place(&d.engine.settings, d.count, p, take)
	return used - base, nil
}

// fill states an attention for the kernels, all but its mode.
func (d *cudaDecoder) fill(c *cuda.Call, a *Attention) {
	p := &d.params
	scale := a.Scale
	if scale == 0 {
		scale = float32(1 / math.Sqrt(float64(p.KeyDim)))
	}
	*c = cuda.Call{
		Query: cudaRows(&a.Query), Output: cudaRows(&a.Output), Key: cudaStore(&a.Key), Value: cudaStore(&a.Value),
		Lengths: uint64(a.Lengths), Table: uint64(a.Table), TableStride: a.TableStride,
		Sinks: uint64(a.Sinks), Work: d.work,
		NRows: a.Rows, Heads: p.Heads, KVHeads: p.KVHeads, Dim: p.KeyDim, KVType: cuda.Type(p.KVType),
		Capacity: int32(a.Slots), Scale: scale * orOne(a.KeyScale), Softcap: a.Softcap, ValueScale: orOne(a.ValueScale),
		Policy: cuda.Policy(d.engine.settings.Policy),
	}
	if a.Table != 0 {
		c.PageShift = int32(bits.TrailingZeros32(uint32(a.PageSize)))
	}
	if d.selects { // also in calls that cannot outgrow the budget: the work memory's layout is one
		budget := int32(d.engine.settings.Budget)
		c.Set, c.Positions, c.SetStride = d.sets, d.positions, int64(budget)
		c.Budget, c.SinkTokens, c.TopK, c.Recent = budget, int32(d.split.Sinks), int32(d.split.Mid), int32(d.split.Recent)
	}
}

func cudaRows(v *RowView) cuda.Rows {
	return cuda.Rows{Data: uint64(v.Data), RowStride: v.RowStride, HeadStride: v.HeadStride, Type: cuda.Type(v.Type)}
}

func cudaStore(v *KVView) cuda.Store {
	return cuda.Store{Data: uint64(v.Data), TokenStride: v.TokenStride, HeadStride: v.HeadStride, PageStride: v.PageStride}
}

// check names the first argument that decoders on a GPU do not have.
func (d *cudaDecoder) check(a *Attention) error {
	for _, x := range [...]struct {
		name    string
		address uintptr
	}{{"query_positions", a.QueryPositions}, {"positions", a.Positions}, {"mask", a.Mask}, {"alibi_slopes", a.Slopes}} {
		if x.address != 0 {
			return notSupported("%s = %#x: on a GPU, lengths and table say what the rows see", x.name, x.address)
		}
	}
	a.Key.Type, a.Value.Type = d.params.KVType, d.params.KVType
	return nil
}

// accepts names what the kernels cannot take.
func (d *cudaDecoder) accepts(a *Attention) error {
	d.fill(&d.call, a)
	if d.call.Mode = cuda.Full; d.selects {
		d.call.Mode = cuda.Select
	}
	return deviceError(d.device.Check(&d.call))
}

func (d *cudaDecoder) progress() *step { return &d.step }

// attend queues a layer.
func (d *cudaDecoder) attend(a *Attention) (lost bool, err error) {
	layer, s := int(a.Layer), d.step
	if layer <= s.layer || s.layer < 0 {
		s = step{}
		if err := d.cal.begin(a, d.params.Heads); err != nil {
			return false, deviceError(err)
		}
	}
	c, l := &d.call, &d.layers[layer]
	d.fill(c, a)
	sees := cudaVisibility{a.Rows, c.Lengths, c.Table, a.TableStride, c.PageShift}
	s.chosen = s.chosen && sees == d.sees
	mode := d.cal.mode(&s, layer, d.selects && d.cal.chooses() && int(c.Capacity) > d.engine.settings.Budget)
	c.Mode = cuda.Mode(mode)
	if !l.ready || l.call != *c {
		if err := d.plan(l, c, a); err != nil {
			return false, err
		}
	}
	probed := d.cal.probed(layer, c, a.Stream)
	if probed {
		if mode == Sparse { // it attends to everything
			s.did.sparse--
			s.did.dense++
		}
		if _, err := d.device.PlanProbe(&d.cal.call, &d.cal.probe, d.cal.plan); err != nil {
			return false, deviceError(err)
		}
	}
	if layer == len(d.layers)-1 {
		d.tally = cuda.Tally{
			Lengths: c.Lengths, Counters: d.counters, Kept: d.kept, NRows: a.Rows, Budget: d.cal.bound(),
			Dense: s.did.dense, Select: s.did.chose, Sparse: s.did.sparse, NoSet: s.did.without,
		}
		if err := l.plan.Tally(d.device, &d.tally); err != nil {
			return false, deviceError(err)
		}
	}
	if probed {
		d.cal.plan.Tally(l.plan)
		err = d.cal.plan.Run(a.Stream)
	} else {
		err = l.plan.Run(a.Stream)
	}
	if err == nil {
		err = d.cal.queued(a, probed)
	}
	if err != nil {
		return true, deviceError(err) // some of it may be under way
	}
	if mode == Select {
		d.sees = sees
	}
	d.step = s
	d.taken.add(layer)
	return false, nil
}

// plan checks a call that differs from the layer's last one, and gets it ready.
func (d *cudaDecoder) plan(l *cudaLayer, c *cuda.Call, a *Attention) error {
	l.ready = false
	if err := a.checkShape(); err != nil {
		return err
	}
	v, err := a.checkViews()
	if err != nil {
		return err
	}
	if err := d.device.Check(c); err != nil {
		return deviceError(err)
	}
	if err := d.look(c, &v); err != nil {
		return err
	}
	if _, err := d.device.Plan(c, l.plan); err != nil {
		return deviceError(err)
	}
	l.call, l.ready = *c, true
	return nil
}

// look checks that what a call states is in the device's memory, as far as the host can know. The lengths and the table
// alone say which tokens and pages there are: the first one of the last row is looked at.
func (d *cudaDecoder) look(c *cuda.Call, v *views) error {
	last := func(s *cuda.Store) uint64 {
		at := s.Data + uint64(s.HeadStride)*uint64(c.KVHeads-1)
		if c.Table == 0 {
			at += uint64(s.PageStride) * uint64(c.NRows-1)
		}
		return at
	}
	d.places = [...]uint64{
		c.Query.Data, c.Output.Data, c.Key.Data, c.Value.Data, c.Lengths, c.Table, c.Sinks,
		uint64(v.query.end) - 1, uint64(v.output.end) - 1, last(&c.Key), last(&c.Value), c.Lengths + uint64(c.NRows-1)*4,
	}
	if i := d.device.Foreign(d.places[:]); i >= 0 {
		names := [...]string{
			"query", "output", "key", "value", "lengths", "table", "sinks",
			"the query's end", "the output's end", "the key of the last row", "the value of the last row", "the end of lengths",
		}
		return bad("%s = %#x is not in the memory of CUDA device %d", names[i], d.places[i], d.params.Device)
	}
	return nil
}

// reset forgets the current step: the next call starts a new one.
func (d *cudaDecoder) reset() { d.step = step{layer: -1} }

// tokenSet is that of the last finished step, as positions. It waits for the device.
func (d *cudaDecoder) tokenSet(row int) ([]int32, error) {
	head, length := make([]int32, 2), make([]int32, 1)
	if err := d.fetch(d.kept, head); err != nil {
		return nil, err
	}
	if int(head[0]) <= row {
		return nil, bad("row = %d, but the last finished step had %d", row, head[0])
	}
	if err := d.fetch(d.kept+uint64(2+row)*4, length); err != nil {
		return nil, err
	}
	budget := d.engine.settings.Budget
	if head[1] == 0 || int(length[0]) <= budget {
		return nil, nil
	}
	set := make([]int32, budget)
	return set, d.fetch(d.positions+uint64(row)*uint64(budget)*4, set)
}

func (d *cudaDecoder) fetch(from uint64, to []int32) error {
	return deviceError(d.device.Read(from, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(to))), 4*len(to))))
}

// read brings what was counted from the device, once all that was queued there is done.
func (d *cudaDecoder) read(s *Stats) error {
	var raw [cuda.Counters * 8]byte
	if err := d.device.Read(d.counters, raw[:]); err != nil {
		return deviceError(err)
	}
	counter := func(i int) uint64 { return binary.NativeEndian.Uint64(raw[i*8:]) }
	d.counted(s)
	s.Steps, s.Rows, s.RowsSparse = counter(cuda.Steps), counter(cuda.TallyRows), counter(cuda.RowsSparse)
	s.RowsFull, s.PositionOrder = s.Rows-s.RowsSparse, s.Rows
	s.TokensVisible, s.TokensAttended = counter(cuda.TokensVisible), counter(cuda.TokensAttended)
	s.SparseTokensVisible, s.SparseTokensAttended = counter(cuda.SparseTokensVisible), counter(cuda.SparseTokensAttended)
	s.DenseCalls, s.SelectCalls = counter(cuda.DenseCalls), counter(cuda.SelectCalls)
	s.SparseCalls, s.NoSetCalls = counter(cuda.SparseCalls), counter(cuda.NoSetCalls)
	return nil
}

// counted is the statistics without what is counted on the device.
func (d *cudaDecoder) counted(to *Stats) {
	*to = Stats{
		Device: fmt.Sprintf("cuda:%d %s", d.params.Device, d.device.Name()), taken: d.taken,
		MeasuredSteps: d.cal.measured, DenseSteps: d.cal.dense, Interventions: d.cal.ablations,
	}
}

func (d *cudaDecoder) poll() (generation uint64, eager bool, err error) { return d.cal.poll() }

func (d *cudaDecoder) found(s *Stats) { d.cal.report(s) }

// free gives back what the decoder has; nothing may be under way.
func (d *cudaDecoder) free() {
	d.cal.close()
	for i := range d.layers {
		if d.layers[i].plan != nil {
			d.layers[i].plan.Free()
		}
	}
	if d.memory != nil {
		d.memory.Free()
	}
}

func openDevice(ordinal int) (*cuda.Device, error) {
	d, err := cuda.Open(ordinal)
	if err != nil {
		return nil, &Error{Kind: DeviceFailed, Text: fmt.Sprintf("device = %d: %v", ordinal, err)}
	}
	return d, nil
}

// deviceError is an error of package cuda as one of the core's.
func deviceError(err error) error {
	if err == nil { // before what follows is allocated
		return nil
	}
	var refusal *cuda.Refusal
	var driver *cuda.DriverError
	switch {
	case errors.As(err, &refusal) && refusal.Kind == cuda.BadArgument:
		return &Error{Kind: BadArgument, Text: refusal.Text}
	case errors.As(err, &refusal):
		return &Error{Kind: Unsupported, Text: refusal.Text}
	case errors.As(err, &driver) && driver.Code == cuda.OutOfMemory, errors.Is(err, cuda.ErrMemory):
		return &Error{Kind: NoMemory, Text: err.Error()}
	}
	return &Error{Kind: DeviceFailed, Text: err.Error()}
}
