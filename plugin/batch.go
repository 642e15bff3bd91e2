package plugin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"sync"
	"unsafe"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
)

// Bounds of a batch.
const (
	MaxRows    = cuda.MaxRows
	MaxPage    = 1 << 24
	MaxOrdinal = 1 << 10
	workAlign  = 256 // of work memory, in bytes
)

// FP8 is the element type that batches have beyond the others: e4m3, for key and value.
const FP8 = int32(cuda.FP8)

// BatchParams is what a batch is made for (lim_batch_params in the public header).
type BatchParams struct {
	Device   int32 // the GPU's number
	MaxRows  int32
	Capacity int32 // no row will see more tokens
	Heads    int32
	KVHeads  int32
	HeadDim  int32
	KVType   int32
	Work     uint64 // device memory of WorkSize zeros; 0: the batch has its own
	WorkSize uint64
}

// BatchAttention is one layer's attention for a batch of rows, in device memory (lim_batch_attention in the
// public header). Addresses are numbers: Go follows none of them.
type BatchAttention struct {
	Layer, Rows   int32
	Query, Output DeviceRows
	Key, Value    DeviceStore
	Capacity      int32  // no row sees more tokens; 0: the batch's
	Lengths       uint64 // int32 [Rows]
	Table         uint64 // int32 [Rows][TableStride], or 0
	TableStride   int64  // elements
	PageSize      int32  // tokens, a power of two; read with a table only
	Sinks         uint64 // float32 [Heads], or 0
	Scale         float32
	Softcap       float32
	KeyScale      float32
	ValueScale    float32
	Stream        uint64
}

// DeviceRows is a query or output [row][head][dim]; strides in bytes.
type DeviceRows struct {
	Data                  uint64
	RowStride, HeadStride int64
	Type                  int32
}

// DeviceStore is K or V: pages of tokens of heads; without a table, each row is one page. Strides in bytes.
type DeviceStore struct {
	Data                                uint64
	TokenStride, HeadStride, PageStride int64
}

// Batch decodes sequences side by side on a GPU, one query token each, for callers that hand over each layer's
// tensors. What it computes is queued on the caller's stream; nothing is copied or waited for, and what changes
// from step to step is read by the kernels, so that a captured step can be replayed while the sequences grow.
// It belongs to one thread at a time.
type Batch struct {
	engine  *Engine
	params  BatchParams
	count   int // layers
	pilot   batchPilot
	selects bool // rows can grow past the budget
	split   Split
	device  *cuda.Device
	memory  *cuda.Memory // nil: the caller's

	work, sets, positions, kept, counters uint64

	layers []batchLayer
	call   cuda.Call  // of the attention that is being looked at
	places [12]uint64 // and its addresses
	tally  cuda.Tally
	step   batchStep
	taken  layerSet

	mu        sync.Mutex
	published Stats // as last read
}

// batchLayer is a layer's plan, and the call that it was made from.
type batchLayer struct {
	plan  *cuda.Plan
	call  cuda.Call
	ready bool
}

// batchStep is one decode step: what its layers did, and the sight that the token sets were chosen for.
type batchStep struct {
	layer                         int
	dense, chose, sparse, without int32
	chosen                        bool
	sight                         batchSight
}

// batchSight is what the rows of a batch see, as far as the host knows.
type batchSight struct {
	rows        int32
	lengths     uint64
	table       uint64
	tableStride int64
	pageShift   int32
}

// NewBatch makes a batch on an engine, of a model with that many layers.
func NewBatch(engine *Engine, layers int, params BatchParams) (*Batch, error) {
	b, err := newBatch(engine, layers, params)
	if err == nil {
		engine.started(b)
	}
	return b, err
}

// newBatch makes a batch that the engine's report does not know; free ends it.
func newBatch(engine *Engine, layers int, params BatchParams) (*Batch, error) {
	b := &Batch{engine: engine, params: params}
	if err := b.shape(layers); err != nil {
		return nil, err
	}
	var err error
	if b.device, err = openDevice(int(params.Device)); err != nil {
		return nil, err
	}
	size, err := b.place(params.Work)
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
	case params.Work != 0 && b.device.Foreign([]uint64{params.Work, params.Work + size - 1}) >= 0:
		return nil, bad("work = %#x is no %d bytes of CUDA device %d's memory", params.Work, size, params.Device)
	}
	b.layers = make([]batchLayer, layers)
	for i := range b.layers {
		if b.layers[i].plan, err = cuda.NewPlan(); err != nil {
			b.free()
			return nil, deviceError(err)
		}
	}
	if params.Work == 0 {
		if b.memory, err = b.device.Zeroed(int(size)); err != nil {
			b.free()
			return nil, deviceError(err)
		}
		b.place(b.memory.Address())
	}
	if err = b.pilot.open(b); err != nil {
		b.free()
		return nil, deviceError(err)
	}
	if err = b.load(); err != nil {
		b.free()
		return nil, deviceError(err)
	}
	b.Reset()
	b.published = b.describe()
	engine.said.flush()
	return b, nil
}

// load finds all entry points that the batch may need. The driver loads code when it is first asked for, which it may
// not do while a stream is being captured.
func (b *Batch) load() error {
	if err := b.device.Load(&b.call); err != nil {
		return err
	}
	plan, modes := b.layers[0].plan, []cuda.Mode{cuda.Full}
	if b.selects {
		modes = []cuda.Mode{cuda.Full, cuda.Sparse, cuda.Select}
	}
	for _, b.call.Mode = range modes {
		if _, err := b.device.Plan(&b.call, plan); err != nil {
			return err
		}
	}
	if b.pilot.most > 0 {
		if _, err := b.device.PlanProbe(&b.call, &cuda.Probe{Own: lowest}, b.pilot.plan); err != nil {
			return err
		}
	}
	if err := plan.Tally(b.device, &b.tally); err != nil {
		return err
	}
	return plan.Tally(b.device, nil)
}

// BatchWorkSize is the device memory that a batch needs beside keys and values.
func BatchWorkSize(engine *Engine, layers int, params BatchParams) (uint64, error) {
	b := &Batch{engine: engine, params: params}
	if err := b.shape(layers); err != nil {
		return 0, err
	}
	var err error
	if b.device, err = openDevice(int(params.Device)); err != nil {
		return 0, err
	}
	return b.place(0)
}

// shape checks what can be checked without a driver.
func (b *Batch) shape(layers int) error {
	p, config := &b.params, &b.engine.config
	switch {
	case !cuda.Built:
		return &Error{Unsupported, "this build of the library has no CUDA"}
	case p.Device < 0 || p.Device >= MaxOrdinal:
		return bad("device = %d is not in 0 .. %d", p.Device, MaxOrdinal-1)
	case p.MaxRows < 1 || p.MaxRows > MaxRows:
		return bad("max_rows = %d is not in 1 .. %d", p.MaxRows, MaxRows)
	case p.Capacity < 1 || p.Capacity > MaxSlots:
		return bad("capacity = %d is not in 1 .. %d", p.Capacity, MaxSlots)
	case p.Heads < 1 || p.Heads > cuda.MaxHeads:
		return bad("heads = %d is not in 1 .. %d", p.Heads, cuda.MaxHeads)
	case p.KVHeads < 1 || p.KVHeads > p.Heads:
		return bad("kv_heads = %d is not in 1 .. %d, the number of heads", p.KVHeads, p.Heads)
	case p.Heads%p.KVHeads != 0:
		return bad("kv_heads = %d does not divide heads = %d", p.KVHeads, p.Heads)
	case p.Heads/p.KVHeads > cuda.MaxGroup:
		return &Error{Unsupported, fmt.Sprintf("heads = %d is more than %d for each of kv_heads = %d", p.Heads, cuda.MaxGroup, p.KVHeads)}
	case p.HeadDim < 1 || p.HeadDim > cpu.MaxDim:
		return bad("head_dim = %d is not in 1 .. %d", p.HeadDim, cpu.MaxDim)
	case p.HeadDim != 64 && p.HeadDim != 128 && p.HeadDim != 256:
		return &Error{Unsupported, fmt.Sprintf("head_dim = %d is not 64, 128 or 256", p.HeadDim)}
	}
	switch cuda.Type(p.KVType) {
	case cuda.F16, cuda.BF16, cuda.Q8_0, cuda.FP8:
	case cuda.F32, cuda.Type(cpu.Q4_0):
		return &Error{Unsupported, fmt.Sprintf("kv_dtype = %d (%s) is not f16, bf16, fp8 or q8_0", p.KVType, types[p.KVType].name)}
	default:
		return bad("kv_dtype = %d is unknown", p.KVType)
	}
	if config.Interval > 1 {
		return &Error{Unsupported, fmt.Sprintf("interval = %d: the token sets of a batch serve one step", config.Interval)}
	}
	if _, err := NewRoles(layers, *config); err != nil {
		return err
	}
	b.count = layers
	b.selects = int(p.Capacity) > config.Budget
	b.split = SplitBudget(config.Budget, config.Budget, config.Recency, config.SinkTokens)
	return nil
}

// place lays out the work memory from an address on and returns its size. It also tells whether the kernels can
// take any batch of this shape at all.
func (b *Batch) place(base uint64) (uint64, error) {
	c, p := &b.call, &b.params
	b.sets = lowest
	b.positions, b.work = b.sets, b.sets
	b.fill(c, &BatchAttention{Rows: p.MaxRows, Lengths: lowest})
	row := int64(p.HeadDim) * workAlign // at least a row, and a multiple of what it has to be, for every type
	c.Query = cuda.Rows{Data: lowest, RowStride: row * int64(p.Heads), HeadStride: row, Type: cuda.F32}
	c.Output = c.Query
	c.Key = cuda.Store{Data: lowest, TokenStride: row * int64(p.KVHeads), HeadStride: row, PageStride: row * int64(p.KVHeads)}
	c.Value = c.Key
	c.Mode = cuda.Full
	if b.selects {
		c.Mode = cuda.Select
	}
	if err := b.device.Check(c); err != nil {
		return 0, deviceError(err)
	}
	used := base
	take := func(bytes int) uint64 {
		at := used
		used += (uint64(bytes) + workAlign - 1) / workAlign * workAlign
		return at
	}
	rows, budget := int(p.MaxRows), 0
	if b.selects {
		budget = b.engine.config.Budget
	}
	b.work = take(b.device.WorkSize(c))
	b.sets = take(rows * budget * 4)
	b.positions = take(rows * budget * 4)
	b.kept = take((2 + rows) * 4)
	b.counters = take(cuda.Counters * 8)
	b.pilot.place(b, take)
	return used - base, nil
}

// fill states an attention for the kernels, all but its mode.
func (b *Batch) fill(c *cuda.Call, a *BatchAttention) {
	p := &b.params
	scale := a.Scale
	if scale == 0 {
		scale = float32(1 / math.Sqrt(float64(p.HeadDim)))
	}
	*c = cuda.Call{
		Query:   cuda.Rows{Data: a.Query.Data, RowStride: a.Query.RowStride, HeadStride: a.Query.HeadStride, Type: cuda.Type(a.Query.Type)},
		Output:  cuda.Rows{Data: a.Output.Data, RowStride: a.Output.RowStride, HeadStride: a.Output.HeadStride, Type: cuda.Type(a.Output.Type)},
		Key:     cuda.Store(a.Key),
		Value:   cuda.Store(a.Value),
		Lengths: a.Lengths, Table: a.Table, TableStride: a.TableStride,
		Sinks: a.Sinks, Work: b.work,
		NRows: a.Rows, Heads: p.Heads, KVHeads: p.KVHeads, Dim: p.HeadDim, KVType: cuda.Type(p.KVType),
		Capacity: b.capacity(a), Scale: scale * orOne(a.KeyScale), Softcap: a.Softcap, ValueScale: orOne(a.ValueScale),
		Policy: cuda.Policy(b.engine.config.Policy),
	}
	if a.Table != 0 {
		c.PageShift = int32(bits.TrailingZeros32(uint32(a.PageSize)))
	}
	if b.selects { // also in calls that cannot outgrow the budget: the work memory's layout is one
		budget := int32(b.engine.config.Budget)
		c.Set, c.Positions, c.SetStride = b.sets, b.positions, int64(budget)
		c.Budget, c.SinkTokens, c.TopK, c.Recent = budget, int32(b.split.Sinks), int32(b.split.Mid), int32(b.split.Recent)
	}
}

// capacity is the most tokens that a row of an attention may see.
func (b *Batch) capacity(a *BatchAttention) int32 {
	if a.Capacity != 0 {
		return a.Capacity
	}
	return b.params.Capacity
}

func orOne(x float32) float32 {
	if x == 0 {
		return 1
	}
	return x
}

// Check tells whether Attend could take one layer of a step.
func (b *Batch) Check(a *BatchAttention) error {
	if err := b.check(a); err != nil {
		return err
	}
	b.fill(&b.call, a)
	if b.call.Mode = cuda.Full; b.selects {
		b.call.Mode = cuda.Select
	}
	if err := b.device.Check(&b.call); err != nil {
		return deviceError(err)
	}
	return nil
}

// Attend queues one layer of a step (lim_batch_attend in the public header says how).
func (b *Batch) Attend(a *BatchAttention) error {
	if err := b.check(a); err != nil {
		return err
	}
	layer := int(a.Layer)
	step := b.step
	if layer <= step.layer || step.layer < 0 {
		step = batchStep{}
		if err := b.pilot.begin(a); err != nil {
			return deviceError(err)
		}
	}
	step.layer = layer
	c, l := &b.call, &b.layers[layer]
	b.fill(c, a)
	c.Mode = b.mode(&step, layer, batchSight{a.Rows, a.Lengths, a.Table, a.TableStride, c.PageShift})
	if !l.ready || l.call != *c {
		if err := b.plan(l, c); err != nil {
			return err
		}
	}
	probed := b.pilot.probes(b, layer, c, uintptr(a.Stream))
	if probed {
		if step.sparse > 0 && c.Mode == cuda.Sparse { // it attends to everything
			step.sparse--
			step.dense++
		}
		if _, err := b.device.PlanProbe(&b.pilot.call, &b.pilot.probe, b.pilot.plan); err != nil {
			return deviceError(err)
		}
	}
	if layer == len(b.layers)-1 {
		b.tally = cuda.Tally{
			Lengths: a.Lengths, Counters: b.counters, Kept: b.kept, NRows: a.Rows, Budget: b.pilot.bound(),
			Dense: step.dense, Select: step.chose, Sparse: step.sparse, NoSet: step.without,
		}
		if err := l.plan.Tally(b.device, &b.tally); err != nil {
			return deviceError(err)
		}
	}
	var err error
	if probed {
		b.pilot.plan.Tally(l.plan)
		err = b.pilot.plan.Run(uintptr(a.Stream))
	} else {
		err = l.plan.Run(uintptr(a.Stream))
	}
	if err == nil {
		err = b.pilot.queued(a, probed)
	}
	if err != nil {
		b.Reset() // some of it may be under way
		return deviceError(err)
	}
	b.step = step
	b.taken.add(layer)
	b.engine.said.flush()
	return nil
}

// mode says how a layer attends, and notes in the step that it does.
func (b *Batch) mode(step *batchStep, layer int, sight batchSight) cuda.Mode {
	if kind := b.pilot.kind; kind == stepDense || kind == stepMeasure {
		step.dense++
		return cuda.Full
	}
	role := b.pilot.role(layer)
	chooses := b.selects && b.pilot.chooses() && int(b.call.Capacity) > b.engine.config.Budget
	if sight != step.sight {
		step.chosen = false
	}
	switch {
	case chooses && role == RoleSelect:
		step.chose++
		step.chosen, step.sight = true, sight
		return cuda.Select
	case chooses && role == RoleSparse && step.chosen:
		step.sparse++
		return cuda.Sparse
	case chooses && role == RoleSparse:
		step.without++
	}
	step.dense++
	return cuda.Full
}

// check names the first argument that is wrong whatever the kernels can take.
func (b *Batch) check(a *BatchAttention) error {
	switch {
	case a.Layer < 0 || int(a.Layer) >= len(b.layers):
		return bad("layer = %d is not in 0 .. %d", a.Layer, len(b.layers)-1)
	case a.Rows < 1 || a.Rows > b.params.MaxRows:
		return bad("n_rows = %d is not in 1 .. %d, the batch's max_rows", a.Rows, b.params.MaxRows)
	case a.Capacity < 0 || a.Capacity > b.params.Capacity:
		return bad("capacity = %d is not in 1 .. %d, the batch's", a.Capacity, b.params.Capacity)
	case !finite(a.Scale):
		return bad("scale = %v is not a finite number", a.Scale)
	case !finite(a.KeyScale):
		return bad("key_scale = %v is not a finite number", a.KeyScale)
	case !finite(a.ValueScale):
		return bad("value_scale = %v is not a finite number", a.ValueScale)
	case a.Table != 0 && (a.PageSize < 1 || a.PageSize > MaxPage || a.PageSize&(a.PageSize-1) != 0):
		return bad("page_size = %d is not a power of two in 1 .. %d", a.PageSize, MaxPage)
	}
	return nil
}

// plan checks a call that differs from the layer's last one, and gets it ready.
func (b *Batch) plan(l *batchLayer, c *cuda.Call) error {
	l.ready = false
	if err := b.device.Check(c); err != nil {
		return deviceError(err)
	}
	if err := b.look(c); err != nil {
		return err
	}
	if _, err := b.device.Plan(c, l.plan); err != nil {
		return deviceError(err)
	}
	l.call, l.ready = *c, true
	return nil
}

// maxAddress is beyond every address that a processor has.
const maxAddress = 1 << 57

// reach is one dimension of an array: its steps, and how often one is taken.
type reach struct {
	name   string
	stride int64
	count  int64
}

// last is the address of an array's last row; the strides are known to be positive where they are used.
func last(name string, data uint64, dims ...reach) (uint64, error) {
	if data >= maxAddress {
		return 0, bad("%s = %#x is no address", name, data)
	}
	for _, d := range dims {
		if d.count <= 1 {
			continue
		}
		if uint64(d.stride) > (maxAddress-data)/uint64(d.count) {
			return 0, bad("%s's %s = %d times %d leaves the address space", name, d.name, d.stride, d.count)
		}
		data += uint64(d.stride) * uint64(d.count-1)
	}
	return data, nil
}

// look checks that what a call states is in the device's memory, as far as the host can know, and that the output is
// apart from the query.
func (b *Batch) look(c *cuda.Call) error {
	rows, heads := int64(c.NRows), int64(c.Heads)
	query, err := last("query", c.Query.Data, reach{"row_stride", c.Query.RowStride, rows}, reach{"head_stride", c.Query.HeadStride, heads})
	if err != nil {
		return err
	}
	output, err := last("output", c.Output.Data, reach{"row_stride", c.Output.RowStride, rows}, reach{"head_stride", c.Output.HeadStride, heads})
	if err != nil {
		return err
	}
	query += uint64(int64(c.Dim)*types[c.Query.Type].bytes) - 1
	output += uint64(int64(c.Dim)*types[c.Output.Type].bytes) - 1
	if c.Query.Data <= output && c.Output.Data <= query {
		return bad("output = %#x overlaps query = %#x", c.Output.Data, c.Query.Data)
	}
	// The lengths and the table alone say which tokens and pages there are: the first of the last row are looked at.
	pages := rows
	if c.Table != 0 {
		pages = 1
	}
	var stores [2]uint64
	for i, s := range [...]*cuda.Store{&c.Key, &c.Value} {
		stores[i], err = last([...]string{"key", "value"}[i], s.Data, reach{"page_stride", s.PageStride, pages},
			reach{"head_stride", s.HeadStride, int64(c.KVHeads)})
		if err != nil {
			return err
		}
		// A token's stride must not leave the address space either, wherever the tokens are.
		if _, err = last([...]string{"key", "value"}[i], stores[i], reach{"token_stride", s.TokenStride, 2}); err != nil {
			return err
		}
	}
	b.places = [...]uint64{
		c.Query.Data, c.Output.Data, c.Key.Data, c.Value.Data, c.Lengths, c.Table, c.Sinks,
		query, output, stores[0], stores[1], c.Lengths + uint64(rows-1)*4,
	}
	if i := b.device.Foreign(b.places[:]); i >= 0 {
		names := [...]string{
			"query", "output", "key", "value", "lengths", "table", "sinks",
			"the query's end", "the output's end", "the key of the last row", "the value of the last row", "the end of lengths",
		}
		return bad("%s = %#x is not in the memory of CUDA device %d", names[i], b.places[i], b.params.Device)
	}
	return nil
}

// Reset forgets the current step: the next call starts a new one.
func (b *Batch) Reset() { b.step = batchStep{layer: -1} }

// TokenSet is the token set of a row in the last finished step, as positions, ascending; empty if none was chosen, or
// if the row saw no more tokens than the budget. It waits for the device.
func (b *Batch) TokenSet(row int) ([]int32, error) {
	if row < 0 || row >= int(b.params.MaxRows) {
		return nil, bad("row = %d is not in 0 .. %d", row, b.params.MaxRows-1)
	}
	head, length := make([]int32, 2), make([]int32, 1)
	if err := b.read(b.kept, head); err != nil {
		return nil, err
	}
	if int(head[0]) <= row {
		return nil, bad("row = %d, but the last finished step had %d", row, head[0])
	}
	if err := b.read(b.kept+uint64(2+row)*4, length); err != nil {
		return nil, err
	}
	budget := b.engine.config.Budget
	if head[1] == 0 || int(length[0]) <= budget {
		return nil, nil
	}
	set := make([]int32, budget)
	return set, b.read(b.positions+uint64(row)*uint64(budget)*4, set)
}

func (b *Batch) read(from uint64, to []int32) error {
	return deviceError(b.device.Read(from, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(to))), 4*len(to))))
}

// Read brings what was counted from the device, once all that was queued there is done.
func (b *Batch) Read() (Stats, error) {
	var raw [cuda.Counters * 8]byte
	if err := b.device.Read(b.counters, raw[:]); err != nil {
		return Stats{}, deviceError(err)
	}
	counter := func(i int) uint64 { return binary.NativeEndian.Uint64(raw[i*8:]) }
	s := b.describe()
	s.Steps, s.Rows, s.RowsSparse = counter(cuda.Steps), counter(cuda.TallyRows), counter(cuda.RowsSparse)
	s.RowsFull, s.PositionOrder = s.Rows-s.RowsSparse, s.Rows
	s.TokensVisible, s.TokensAttended = counter(cuda.TokensVisible), counter(cuda.TokensAttended)
	s.SparseTokensVisible, s.SparseTokensAttended = counter(cuda.SparseTokensVisible), counter(cuda.SparseTokensAttended)
	s.DenseCalls, s.SelectCalls = counter(cuda.DenseCalls), counter(cuda.SelectCalls)
	s.SparseCalls, s.NoSetCalls = counter(cuda.SparseCalls), counter(cuda.NoSetCalls)
	b.mu.Lock()
	b.published = s
	b.mu.Unlock()
	b.pilot.report(&s)
	return s, nil
}

// describe is the statistics of a batch that has counted nothing.
func (b *Batch) describe() Stats {
	return Stats{
		Device: fmt.Sprintf("cuda:%d %s", b.params.Device, b.device.Name()), taken: b.taken,
		MeasuredSteps: b.pilot.measured, DenseSteps: b.pilot.dense, Interventions: b.pilot.intervened,
	}
}

// stats is what was last read: another thread may ask while a stream is being captured.
func (b *Batch) stats() Stats {
	b.mu.Lock()
	s := b.published
	b.mu.Unlock()
	b.pilot.report(&s)
	return s
}

// Free ends the batch; the engine keeps its counts. It waits for the device.
func (b *Batch) Free() {
	_, _ = b.Read() // what cannot be read stays as last read
	b.engine.finished(b)
	b.free()
}

func (b *Batch) free() {
	b.pilot.close()
	for i := range b.layers {
		if b.layers[i].plan != nil {
			b.layers[i].plan.Free()
		}
	}
	if b.memory != nil {
		b.memory.Free()
	}
}

func openDevice(ordinal int) (*cuda.Device, error) {
	d, err := cuda.Open(ordinal)
	if err != nil {
		return nil, &Error{DeviceFailed, fmt.Sprintf("device = %d: %v", ordinal, err)}
	}
	return d, nil
}

// deviceError is an error of package cuda as one of the core's.
func deviceError(err error) error {
	var refusal *cuda.Refusal
	var driver *cuda.DriverError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refusal) && refusal.Kind == cuda.BadArgument:
		return &Error{BadArgument, refusal.Text}
	case errors.As(err, &refusal):
		return &Error{Unsupported, refusal.Text}
	case errors.As(err, &driver) && driver.Code == cuda.OutOfMemory, errors.Is(err, cuda.ErrMemory):
		return &Error{NoMemory, err.Error()}
	}
	return &Error{DeviceFailed, err.Error()}
}
