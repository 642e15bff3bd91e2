package oncuda

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"unsafe"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// HasCUDA tells whether this build has the CUDA engine.
const HasCUDA = cuda.Built

const WorkAlign = 256 // of work memory, in bytes

// Decoder attends on a GPU. What it computes is queued on the caller's stream; nothing is copied or waited for, and
// what changes from step to step is read by the kernels, so that a captured step can be replayed while the sequences grow.
type Decoder struct {
	engine  *contexts.Engine
	model   *selection.Model // nil: it is told by what the engine's decoders are of
	params  backend.Params
	count   int // layers
	Cal     Probes
	selects bool // rows can grow past the budget
	split   steps.Split
	Device  *cuda.Device
	memory  *cuda.Memory // nil: the caller's

	work, sets, positions, kept, counters, noSets uint64

	layers    []cudaLayer
	lasting   lasting
	join      cuda.Join
	call      cuda.Call  // of the attention that is being looked at
	places    [12]uint64 // and its addresses
	tally     cuda.Tally
	Step      steps.Step
	opening   steps.Step     // what a step begins with: whether other devices' layers come before it, and whether sets came from there
	sees      cudaVisibility // what the step's token sets were chosen for
	offloaded stats.LayerSet
}

// cudaLayer is a layer's plan, and the call that it was made from.
type cudaLayer struct {
	plan  *cuda.Plan
	call  cuda.Call
	ready bool
	ends  bool // the plan counts the step
}

// cudaVisibility is what the rows of a call see, as far as the host knows.
type cudaVisibility struct {
	rows        int32
	lengths     uint64
	table       uint64
	tableStride int64
	pageShift   int32
}

func visibility(a *backend.Attention) cudaVisibility {
	v := cudaVisibility{rows: a.Rows, lengths: uint64(a.Lengths), table: uint64(a.Table), tableStride: a.TableStride}
	if a.Table != 0 {
		v.pageShift = int32(bits.TrailingZeros32(uint32(a.PageSize)))
	}
	return v
}

// NewDecoder makes a decoder that the engine's report does not know. A model of nil is the engine's own.
func NewDecoder(engine *contexts.Engine, layers int, model *selection.Model, params backend.Params) (*Decoder, error) {
	d := &Decoder{engine: engine, model: model, params: params}
	size, err := d.size(layers)
	if err != nil {
		return nil, err
	}
	switch {
	case params.Work == 0 && params.WorkSize != 0:
		return nil, fault.Bad("work_size = %d, but work = 0", params.WorkSize)
	case params.Work%WorkAlign != 0:
		return nil, fault.Bad("work = %#x is not a multiple of %d", params.Work, WorkAlign)
	case params.Work != 0 && params.WorkSize < size:
		return nil, fault.Bad("work_size = %d is less than the %d bytes needed", params.WorkSize, size)
	case params.Work != 0 && d.Device.Foreign([]uint64{params.Work, params.Work + size - 1}) >= 0:
		return nil, fault.Bad("work = %#x does not point to %d bytes of CUDA device %d's memory", params.Work, size, params.Device)
	}
	if err = d.make(size); err != nil {
		d.Free()
		return nil, DeviceError(err)
	}
	return d, nil
}

// make gets what was laid out, and makes the layers' plans.
func (d *Decoder) make(size uint64) (err error) {
	d.layers = make([]cudaLayer, d.count)
	for i := range d.layers {
		if d.layers[i].plan, err = cuda.NewPlan(); err != nil {
			return err
		}
	}
	if d.params.Work == 0 {
		if d.memory, err = d.Device.Zeroed(int(size)); err != nil {
			return err
		}
		_, _ = d.place(d.memory.Address())
	}
	m := d.model
	if m == nil {
		if m, err = d.engine.Model(selection.Identity{Layers: d.count, Weights: d.engine.About}, d.engine.Said.Add); err != nil {
			return err
		}
		if err = m.Promised(); err != nil {
			return fault.Bad("%v", err)
		}
	} else {
		m.Once("on a GPU")
	}
	if err = d.Cal.open(m, d.Device, &d.params); err != nil {
		return err
	}
	d.Reset()
	return d.load()
}

// load finds all entry points that the batch may need. The driver loads code when it is first asked for, which it may
// not do while a stream is being captured.
func (d *Decoder) load() error {
	if err := d.Device.Load(&d.call); err != nil {
		return err
	}
	plan, modes := d.layers[0].plan, []cuda.Mode{cuda.Full}
	if d.selects {
		modes = []cuda.Mode{cuda.Full, cuda.Sparse, cuda.Select}
	}
	for _, d.call.Mode = range modes {
		if _, err := d.Device.Plan(&d.call, plan); err != nil {
			return err
		}
	}
	if d.Cal.Most > 0 {
		if _, err := d.Device.PlanProbe(&d.call, &cuda.Probe{Own: backend.Lowest}, d.Cal.plan); err != nil {
			return err
		}
	}
	if err := plan.Tally(d.Device, &d.tally); err != nil {
		return err
	}
	if d.lasting.spare > 0 {
		if err := d.Device.LoadJoin(); err != nil {
			return err
		}
	}
	return plan.Tally(d.Device, nil)
}

// WorkSize is the device memory that a decoder needs beside keys and values.
func WorkSize(engine *contexts.Engine, layers int, params backend.Params) (uint64, error) {
	d := &Decoder{engine: engine, params: params}
	return d.size(layers)
}

// size checks what the decoder is for, opens its device and lays out the work memory.
func (d *Decoder) size(layers int) (uint64, error) {
	if err := d.shape(layers); err != nil {
		return 0, err
	}
	var err error
	if d.Device, err = OpenDevice(int(d.params.Device)); err != nil {
		return 0, err
	}
	return d.place(d.params.Work)
}

// shape checks what can be checked without a driver.
func (d *Decoder) shape(layers int) error {
	p, config := &d.params, &d.engine.Settings
	switch {
	case !cuda.Built:
		return fault.NotSupported("this build of the library has no CUDA")
	case p.KVTokens > 0 && config.Layers == nil:
		return fault.NotSupported("kv_tokens = %d: name the layers that choose, they are not measured in memory that rows share", p.KVTokens)
	case p.Heads/p.KVHeads > cuda.MaxGroup:
		return fault.NotSupported("heads = %d is more than %d for each of kv_heads = %d", p.Heads, cuda.MaxGroup, p.KVHeads)
	case p.KeyDim < 1 || p.KeyDim > cpu.MaxDim:
		return fault.Bad("head_dim = %d is not in 1 .. %d", p.KeyDim, cpu.MaxDim)
	case p.ValueDim != p.KeyDim:
		return fault.NotSupported("value_dim = %d is not head_dim = %d, as on a GPU it has to be", p.ValueDim, p.KeyDim)
	}
	switch typ := cuda.Type(p.KVType); {
	case typ < 0 || int(typ) >= len(backend.Types):
		return fault.Bad("kv_dtype = %d is unknown", p.KVType)
	case typ == cuda.F32:
		return fault.NotSupported("kv_dtype = %d (f32) is not f16, bf16, fp8, q8_0 or q4_0", p.KVType)
	case typ.Takes(p.KeyDim):
	case typ == cuda.F16 || typ == cuda.BF16:
		return fault.NotSupported("head_dim = %d is not a multiple of %d up to %d", p.KeyDim, cuda.Step, cuda.MaxDim)
	case typ == cuda.FP8:
		return fault.NotSupported("head_dim = %d is not 64, 128 or 256, as it has to be with fp8", p.KeyDim)
	default:
		return fault.NotSupported("head_dim = %d is not 64, 96, 128 or 256, as on a GPU it has to be with %s", p.KeyDim, backend.Types[typ].Name)
	}
	if d.model == nil {
		if _, err := selection.NewRoles(layers, *config); err != nil {
			return err
		}
	}
	d.count = layers
	d.selects = int(p.Capacity) > config.Budget
	d.split = steps.SplitBudget(config.Budget, config.Budget, config.Recency, config.SinkTokens)
	d.lasting = newLasting(config, layers, d.selects)
	return nil
}

// place lays out the work memory from an address on and returns its size. It also tells whether the kernels can
// take any batch of this shape at all.
func (d *Decoder) place(base uint64) (uint64, error) {
	c, p := &d.call, &d.params
	d.sets = backend.Lowest
	d.positions, d.work = d.sets, d.sets
	d.fill(c, &backend.Attention{Rows: p.MaxRows, Slots: int64(p.Capacity), Lengths: backend.Lowest}, 0)
	row := int64(p.KeyDim) * WorkAlign // at least a row, and a multiple of what it has to be, for every type
	c.Query = cuda.Rows{Data: backend.Lowest, RowStride: row * int64(p.Heads), HeadStride: row, Type: cuda.F32}
	c.Output = c.Query
	c.Key = cuda.Store{Data: backend.Lowest, TokenStride: row * int64(p.KVHeads), HeadStride: row, PageStride: row * int64(p.KVHeads)}
	c.Value = c.Key
	c.Mode = cuda.Full
	if d.selects {
		c.Mode = cuda.Select
	}
	if err := d.Device.Check(c); err != nil {
		return 0, DeviceError(err)
	}
	used := base
	take := func(bytes int) uint64 {
		at := used
		used += (uint64(bytes) + WorkAlign - 1) / WorkAlign * WorkAlign
		return at
	}
	rows, budget := int(p.MaxRows), 0
	if d.selects {
		budget = d.engine.Settings.Budget
	}
	d.work = take(d.Device.WorkSize(c))
	c.Work = d.work
	d.noSets = d.Device.NoSets(c)
	sets := d.lasting.groups * rows * (budget + d.lasting.spare) * 4
	d.sets = take(sets)
	d.positions = take(sets)
	d.kept = take((2 + rows) * 4)
	d.counters = take(cuda.Counters * 8)
	d.Cal.place(&d.engine.Settings, d.count, p, take)
	return used - base, nil
}

// fill states an attention for the kernels, all but its mode. So many tokens have joined the token sets since they were chosen.
func (d *Decoder) fill(c *cuda.Call, a *backend.Attention, joined int32) {
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
		Capacity: int32(a.Slots), Scale: scale * backend.OrOne(a.KeyScale), Softcap: a.Softcap, ValueScale: backend.OrOne(a.ValueScale),
		Policy: cuda.Policy(d.engine.Settings.Policy),
	}
	c.PageShift = visibility(a).pageShift
	if d.selects { // also in calls that cannot outgrow the budget: the work memory's layout is one
		budget, first := int32(d.engine.Settings.Budget), uint64(4*d.setAt(d.group(int(a.Layer)), 0))
		c.Set, c.Positions, c.SetStride = d.sets+first, d.positions+first, d.setStride()
		c.KVTokens = d.params.KVTokens
		c.Budget, c.SinkTokens, c.TopK, c.Recent = budget+joined, int32(d.split.SinkTokens), int32(d.split.TopK), int32(d.split.Recent)+joined
		c.Lasting = int32(min(d.lasting.spare, 1))
	}
}

func cudaRows(v *backend.RowView) cuda.Rows {
	return cuda.Rows{Data: uint64(v.Data), RowStride: v.RowStride, HeadStride: v.HeadStride, Type: cuda.Type(v.Type)}
}

func cudaStore(v *backend.KVView) cuda.Store {
	return cuda.Store{Data: uint64(v.Data), TokenStride: v.TokenStride, HeadStride: v.HeadStride, PageStride: v.PageStride}
}

// Check names the first argument that decoders on a GPU do not have.
func (d *Decoder) Check(a *backend.Attention) error {
	for _, x := range [...]struct {
		name    string
		address uintptr
	}{{"query_positions", a.QueryPositions}, {"positions", a.Positions}, {"mask", a.Mask}, {"alibi_slopes", a.Slopes}} {
		if x.address != 0 {
			return fault.NotSupported("%s = %#x: on a GPU, lengths and table say what the rows see", x.name, x.address)
		}
	}
	a.Key.Type, a.Value.Type, a.Sequences = d.params.KVType, d.params.KVType, 0
	return nil
}

// Accepts names what the kernels cannot take.
func (d *Decoder) Accepts(a *backend.Attention) error {
	d.fill(&d.call, a, 0)
	if d.call.Mode = cuda.Full; d.selects {
		d.call.Mode = cuda.Select
	}
	return DeviceError(d.Device.Check(&d.call))
}

func (d *Decoder) Progress() *steps.Step { return &d.Step }

// Attend queues a layer.
func (d *Decoder) Attend(a *backend.Attention) (lost bool, err error) {
	layer, s, last := int(a.Layer), d.Step, d.lasting
	fresh := layer <= s.Layer || s.Layer < 0
	sees := visibility(a)
	switch {
	case fresh:
		s = d.opening
		if last, err = d.begin(a); err != nil {
			return false, DeviceError(err)
		}
		s.Resumed = last.joined > 0
	case sees != d.sees: // no layer goes on with the sets
		s.Chosen, s.Resumed, last.joined = false, false, 0
	}
	c, l := &d.call, &d.layers[layer]
	d.fill(c, a, last.joined)
	mode := d.Cal.Mode(&s, layer, d.selects && d.Cal.chooses() && int(c.Capacity) > d.engine.Settings.Budget)
	c.Mode = cuda.Mode(mode)
	if !l.ready || l.call != *c {
		if err := d.plan(l, c, a); err != nil {
			return false, err
		}
	}
	probed := d.Cal.probed(layer, c, a.Stream)
	if probed {
		if mode == steps.Sparse { // it attends to everything
			s.Did.Sparse--
			s.Did.Dense++
		}
		if _, err := d.Device.PlanProbe(&d.Cal.call, &d.Cal.probe, d.Cal.plan); err != nil {
			return false, DeviceError(err)
		}
	}
	ends := ends(a, len(d.layers))
	if ends {
		d.tally = cuda.Tally{
			Lengths: c.Lengths, Counters: d.counters, Kept: d.kept, NRows: a.Rows, Budget: d.Cal.bound(last.joined),
			NoSets: d.noSets, Dense: s.Did.Dense, Select: s.Did.Chose, Sparse: s.Did.Sparse, NoSet: s.Did.Without,
			Reused: min(last.joined, 1),
		}
		if err := l.plan.Tally(d.Device, &d.tally); err != nil {
			return false, DeviceError(err)
		}
	} else if l.ends {
		if err := l.plan.Tally(d.Device, nil); err != nil {
			return false, DeviceError(err)
		}
	}
	l.ends = ends
	if fresh && s.Resumed {
		if err := d.goOn(c, a.Stream); err != nil {
			return true, DeviceError(err)
		}
	}
	if probed {
		d.Cal.plan.Tally(l.plan)
		err = d.Cal.plan.Run(a.Stream, a.Attended)
	} else {
		err = l.plan.Run(a.Stream, a.Attended)
	}
	if err == nil {
		err = d.Cal.queued(a, probed)
	}
	if err != nil {
		return true, DeviceError(err) // some of it may be under way
	}
	if mode == steps.Select || s.Resumed || fresh && s.Chosen {
		d.sees = sees
	}
	last.whole = ends && d.hasAll(&s)
	d.Step, d.lasting = s, last
	d.offloaded.Add(layer)
	return false, nil
}

// ends tells whether a call is of the layer that a step of so many ends with.
func ends(a *backend.Attention, layers int) bool {
	if a.Last > 0 {
		return a.Layer == a.Last
	}
	return int(a.Layer) == layers-1
}

// plan checks a call that differs from the layer's last one, and gets it ready.
func (d *Decoder) plan(l *cudaLayer, c *cuda.Call, a *backend.Attention) error {
	l.ready = false
	if err := a.CheckShape(); err != nil {
		return err
	}
	v, err := a.CheckViews()
	if err != nil {
		return err
	}
	if err := d.Device.Check(c); err != nil {
		return DeviceError(err)
	}
	if err := d.look(c, &v); err != nil {
		return err
	}
	if _, err := d.Device.Plan(c, l.plan); err != nil {
		return DeviceError(err)
	}
	l.call, l.ready = *c, true
	return nil
}

// look checks that what a call states is in the device's memory, as far as the host can know. The lengths and the table
// alone say which tokens and pages there are: the first one of the last row is looked at.
func (d *Decoder) look(c *cuda.Call, v *backend.Views) error {
	last := func(s *cuda.Store) uint64 {
		at := s.Data + uint64(s.HeadStride)*uint64(c.KVHeads-1)
		if c.Table == 0 {
			at += uint64(s.PageStride) * uint64(c.NRows-1)
		}
		return at
	}
	d.places = [...]uint64{
		c.Query.Data, c.Output.Data, c.Key.Data, c.Value.Data, c.Lengths, c.Table, c.Sinks,
		uint64(v.Query.End) - 1, uint64(v.Output.End) - 1, last(&c.Key), last(&c.Value), c.Lengths + uint64(c.NRows-1)*4,
	}
	if i := d.Device.Foreign(d.places[:]); i >= 0 {
		names := [...]string{
			"query", "output", "key", "value", "lengths", "table", "sinks",
			"the query's end", "the output's end", "the key of the last row", "the value of the last row", "the end of lengths",
		}
		return fault.Bad("%s = %#x is not in the memory of CUDA device %d", names[i], d.places[i], d.params.Device)
	}
	return nil
}

// Reset forgets the current step: the next call starts a new one, with token sets of its own.
func (d *Decoder) Reset() { d.Step, d.lasting.whole = steps.Step{Layer: -1}, false }

// Follow is for the layers of a later device: in the steps from now on, sets have been handed to it, or its first layer that may be
// sparse chooses.
func (d *Decoder) Follow(handed bool) { d.opening = steps.Step{Later: true, Chosen: handed} }

// Sets is where the rows' token sets are; nowhere, where there are several groups of them, or none.
func (d *Decoder) Sets() cuda.Sets {
	if !d.selects || d.lasting.spare > 0 {
		return cuda.Sets{}
	}
	return cuda.Sets{Device: d.Device, Stream: d.params.Stream, Slots: d.sets, Stride: d.setStride()}
}

// TokenSet is that of the last finished step, as positions. It waits for the device.
func (d *Decoder) TokenSet(row int) ([]int32, error) {
	head, length := make([]int32, 2), make([]int32, 1)
	if err := d.fetch(d.kept, head); err != nil {
		return nil, err
	}
	if int(head[0]) <= row {
		return nil, fault.Bad("row = %d, but the last finished step had %d", row, head[0])
	}
	if err := d.fetch(d.kept+uint64(2+row)*4, length); err != nil {
		return nil, err
	}
	if head[1] == 0 || length[0] <= head[1] {
		return nil, nil
	}
	set := make([]int32, head[1])
	return set, d.fetch(d.positions+uint64(4*d.setAt(d.group(d.count-1), row)), set)
}

func (d *Decoder) fetch(from uint64, to []int32) error {
	return DeviceError(d.Device.Read(d.params.Stream, from, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(to))), 4*len(to))))
}

// Read brings what was counted from the device, once all that was queued for it there is done.
func (d *Decoder) Read(s *stats.Stats) error {
	var raw [cuda.Counters * 8]byte
	if err := d.Device.Read(d.params.Stream, d.counters, raw[:]); err != nil {
		return DeviceError(err)
	}
	counter := func(i int) uint64 { return binary.NativeEndian.Uint64(raw[i*8:]) }
	d.Counted(s)
	s.Steps, s.Rows, s.RowsSparse = counter(cuda.Steps), counter(cuda.TallyRows), counter(cuda.RowsSparse)
	s.RowsFull, s.PositionOrder = s.Rows-s.RowsSparse, s.Rows
	s.TokensVisible, s.TokensAttended = counter(cuda.TokensVisible), counter(cuda.TokensAttended)
	s.SparseTokensVisible, s.SparseTokensAttended = counter(cuda.SparseTokensVisible), counter(cuda.SparseTokensAttended)
	s.DenseCalls, s.SelectCalls = counter(cuda.DenseCalls), counter(cuda.SelectCalls)
	s.SparseCalls, s.NoSetCalls, s.ReusedSteps = counter(cuda.SparseCalls), counter(cuda.NoSetCalls), counter(cuda.ReusedSteps)
	return nil
}

// Counted is the statistics without what is counted on the device.
func (d *Decoder) Counted(to *stats.Stats) {
	*to = stats.Stats{
		Device: fmt.Sprintf("cuda:%d %s", d.params.Device, d.Device.Name()), Offloaded: d.offloaded,
		MeasuredSteps: d.Cal.Measured, DenseSteps: d.Cal.Dense, Ablations: d.Cal.ablations,
	}
}

func (d *Decoder) Poll() (generation uint64, eager bool, err error) { return d.Cal.poll() }

func (d *Decoder) Found(s *stats.Stats) { d.Cal.Report(s) }

// Free gives back what the decoder has; nothing may be under way.
func (d *Decoder) Free() {
	d.Cal.close()
	for i := range d.layers {
		if d.layers[i].plan != nil {
			d.layers[i].plan.Free()
		}
	}
	if d.memory != nil {
		d.memory.Free()
	}
}

func OpenDevice(ordinal int) (*cuda.Device, error) {
	d, err := cuda.Open(ordinal)
	if err != nil {
		return nil, &fault.Error{Kind: fault.DeviceFailed, Text: fmt.Sprintf("device = %d: %v", ordinal, err)}
	}
	return d, nil
}

// DeviceError is an error of package cuda as one of the core's.
func DeviceError(err error) error {
	if err == nil { // before what follows is allocated
		return nil
	}
	var refusal *cuda.Refusal
	var driver *cuda.DriverError
	switch {
	case errors.As(err, &refusal) && refusal.Kind == cuda.BadArgument:
		return &fault.Error{Kind: fault.BadArgument, Text: refusal.Text}
	case errors.As(err, &refusal):
		return &fault.Error{Kind: fault.Unsupported, Text: refusal.Text}
	case errors.As(err, &driver) && driver.Code == cuda.OutOfMemory, errors.Is(err, cuda.ErrMemory):
		return &fault.Error{Kind: fault.NoMemory, Text: err.Error()}
	}
	return &fault.Error{Kind: fault.DeviceFailed, Text: err.Error()}
}
