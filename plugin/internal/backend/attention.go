package backend

import (
	"math"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/steps"
)

// Bounds of what a decoder takes.
const (
	// MaxSlots bounds a K/V store: far above any context that exists, and low enough for 32-bit counts.
	MaxSlots = 1 << 24
	MaxRows  = cuda.MaxRows
	MaxPage  = 1 << 24
	// FP8 is the element type that only GPUs have: e4m3, for key and value.
	FP8 = int32(cuda.FP8)
)

// Attention is one layer's attention for some rows, each of which is one query token, as a caller states it
// (lim_attention in the public header). Addresses are numbers, in the decoder's memory: a wrong one must not upset Go's
// collector.
type Attention struct {
	Layer, Rows int32

	Query, Output RowView
	Key, Value    KVView

	Heads, KVHeads   int32
	KeyDim, ValueDim int32
	Slots            int64   // of a row's K/V that may be looked at; no row sees more tokens
	Lengths          uintptr // int32 [Rows]: a row sees slots 0 .. its length - 1
	Table            uintptr // int32 [Rows][TableStride]: pages in position order, or 0
	TableStride      int64   // elements
	PageSize         int32   // tokens, a power of two; read with a table only
	QueryPositions   uintptr // int32 [Rows], or 0
	Positions        uintptr // int32 [Rows][PositionsStride], by slot, or 0
	PositionsStride  int64   // elements; 0: one for all rows
	Mask             uintptr // f16 [Rows][MaskStride], by slot, or 0
	MaskStride       int64   // elements; 0: one for all rows
	Slopes           uintptr // float32 [Heads], or 0
	Sinks            uintptr // float32 [Heads], or 0
	Scale, Softcap   float32
	KeyScale         float32
	ValueScale       float32
	Stream           uintptr

	// On a GPU: the layer that a step ends with, where the model's later ones are attended to elsewhere; 0: the model's last one.
	Last int32
	// On a GPU: an event of the driver's that is recorded once the output is there and the query is not read any more, while a
	// selection goes on; 0: none.
	Attended uintptr

	// On the CPU.
	Pages     int64   // of key and value; 0: as many as the table names
	Sequences uintptr // uint64 [Rows]: which text each row is of, or 0

	pages int64 // those that there are at least, once CheckTable has looked
}

// RowView is a query or output [row][head][dim]; strides in bytes.
type RowView struct {
	Data                  uintptr
	RowStride, HeadStride int64
	Type                  int32
}

// KVView is K or V: pages of tokens of heads; without a table, each row is one page. Strides in bytes.
type KVView struct {
	Data                                uintptr
	PageStride, TokenStride, HeadStride int64
	Type                                int32
}

// Addresses that can be one are not in the first page, which is never mapped, and not beyond what processors have.
const (
	Lowest     = 4096
	maxAddress = 1 << 57
)

// typeInfo describes an element type: rows are whole blocks, addresses multiples of align.
type typeInfo struct {
	Name                string
	block, bytes, align int64
}

var Types = [...]typeInfo{
	cpu.F32:  {"f32", 1, 4, 4},
	cpu.F16:  {"f16", 1, 2, 2},
	cpu.BF16: {"bf16", 1, 2, 2},
	cpu.Q8_0: {"q8_0", 32, 34, 2},
	cpu.Q4_0: {"q4_0", 32, 18, 2},
	FP8:      {"fp8", 1, 1, 1},
}

// RowSize is how many bytes a row of so many elements takes; 0 if the type is unknown.
func RowSize(typ, elements int32) int64 {
	if typ < 0 || int(typ) >= len(Types) {
		return 0
	}
	return int64(elements) / Types[typ].block * Types[typ].bytes
}

// CheckShape names the first wrong number of heads or of their elements.
func (a *Attention) CheckShape() error {
	if err := checkHeads(a.Heads, a.KVHeads); err != nil {
		return err
	}
	for _, v := range [...]struct {
		name, dim string
		typ       int32
		elements  int32
	}{
		{"query", "head_dim", a.Query.Type, a.KeyDim}, {"key", "head_dim", a.Key.Type, a.KeyDim},
		{"value", "value_dim", a.Value.Type, a.ValueDim}, {"output", "value_dim", a.Output.Type, a.ValueDim},
	} {
		if v.typ < 0 || int(v.typ) >= len(Types) {
			return fault.Bad("%s_dtype = %d is unknown", v.name, v.typ)
		}
		t := Types[v.typ]
		switch {
		case (v.name == "query" || v.name == "output") && (t.block > 1 || v.typ == FP8):
			return fault.NotSupported("%s_dtype = %d (%s) is for key and value only", v.name, v.typ, t.Name)
		}
		if unit := max(16, int32(t.block)); v.elements < unit || v.elements > cpu.MaxDim || v.elements%unit != 0 {
			return fault.Bad("%s = %d is not a multiple of %d up to %d, as %s in %s has to be",
				v.dim, v.elements, unit, cpu.MaxDim, v.name, t.Name)
		}
	}
	return nil
}

// checkHeads names the first wrong number of heads.
func checkHeads(heads, kvHeads int32) error {
	switch {
	case heads < 1 || heads > cpu.MaxHeads:
		return fault.Bad("heads = %d is not in 1 .. %d", heads, cpu.MaxHeads)
	case kvHeads < 1 || kvHeads > heads:
		return fault.Bad("kv_heads = %d is not in 1 .. %d, the number of heads", kvHeads, heads)
	case heads%kvHeads != 0:
		return fault.Bad("kv_heads = %d does not divide heads = %d", kvHeads, heads)
	}
	return nil
}

// CheckNumbers names the first number that is wrong on every engine.
func (a *Attention) CheckNumbers(layers int, maxRows int32) error {
	switch {
	case a.Layer < 0 || int(a.Layer) >= layers:
		return fault.Bad("layer = %d is not in 0 .. %d", a.Layer, layers-1)
	case a.Rows < 1 || a.Rows > maxRows:
		return fault.Bad("n_rows = %d is not in 1 .. %d, the decoder's max_rows", a.Rows, maxRows)
	case a.Table != 0 && (a.PageSize < 1 || a.PageSize > MaxPage || a.PageSize&(a.PageSize-1) != 0):
		return fault.Bad("page_size = %d is not a power of two in 1 .. %d", a.PageSize, MaxPage)
	case !finite(a.Softcap) || a.Softcap < 0:
		return fault.Bad("softcap = %v is not a finite number of 0 or more", a.Softcap)
	}
	for _, x := range [...]struct {
		name  string
		value float32
	}{{"scale", a.Scale}, {"key_scale", a.KeyScale}, {"value_scale", a.ValueScale}} {
		if !finite(x.value) {
			return fault.Bad("%s = %v is not a finite number", x.name, x.value)
		}
	}
	return nil
}

// span is the memory that a view takes.
type span struct{ first, End uintptr }

func (s span) Overlaps(o span) bool { return s.first < o.End && o.first < s.End }

// Views are the memory of query, key, value and output.
type Views struct{ Query, Key, Value, Output span }

// CheckViews names the first wrong address or stride, and returns where the views are. A K/V store is taken to have a page
// for each row, or those that a table names, of which on a GPU nothing is known.
func (a *Attention) CheckViews() (v Views, err error) {
	rows, heads, kvHeads := int64(a.Rows), int64(a.Heads), int64(a.KVHeads)
	pages, tokens := rows, a.Slots
	if a.Table != 0 {
		pages, tokens = max(a.pages, 1), int64(a.PageSize)
	}
	if v.Query, err = checkView("query", a.Query.Data, a.Query.Type, a.KeyDim, [3]extent{
		{"_row_stride", "rows", a.Query.RowStride, rows}, {"_head_stride", "heads", a.Query.HeadStride, heads}}); err != nil {
		return v, err
	}
	if v.Key, err = checkStore("key", &a.Key, a.KeyDim, a.Table != 0, pages, tokens, kvHeads); err != nil {
		return v, err
	}
	if v.Value, err = checkStore("value", &a.Value, a.ValueDim, a.Table != 0, pages, tokens, kvHeads); err != nil {
		return v, err
	}
	if v.Output, err = checkView("output", a.Output.Data, a.Output.Type, a.ValueDim, [3]extent{
		{"_row_stride", "rows", a.Output.RowStride, rows}, {"_head_stride", "heads", a.Output.HeadStride, heads}}); err != nil {
		return v, err
	}
	if v.Output.Overlaps(v.Query) {
		return v, fault.Bad("output = %#x overlaps query = %#x", a.Output.Data, a.Query.Data)
	}
	size := RowSize(a.Output.Type, a.ValueDim)
	if rowsMeet(size, extent{stride: a.Output.RowStride, count: rows}, extent{stride: a.Output.HeadStride, count: heads}) {
		return v, fault.Bad("output_row_stride = %d and output_head_stride = %d: of %d rows of %d heads with %d bytes each, some overlap",
			a.Output.RowStride, a.Output.HeadStride, rows, heads, size)
	}
	return v, a.checkArrays(v.Output)
}

// checkArrays names the first array that output overlaps: they are read while it is written, or by a later layer. Of the last row,
// only what is read counts.
func (a *Attention) checkArrays(output span) error {
	rows, pages := int64(a.Rows), int64(0)
	if a.Table != 0 {
		pages = (a.Slots + int64(a.PageSize) - 1) / int64(a.PageSize)
	}
	for _, x := range [...]struct {
		name                   string
		data                   uintptr
		rows, stride, of, size int64 // rows of elements, whose strides are in elements, too
	}{
		{"lengths", a.Lengths, 1, 0, rows, 4}, {"query_positions", a.QueryPositions, 1, 0, rows, 4},
		{"positions", a.Positions, rows, a.PositionsStride, a.Slots, 4}, {"mask", a.Mask, rows, a.MaskStride, a.Slots, 2},
		{"table", a.Table, rows, a.TableStride, pages, 4},
		{"alibi_slopes", a.Slopes, 1, 0, int64(a.Heads), 4}, {"sinks", a.Sinks, 1, 0, int64(a.Heads), 4},
		{"sequences", a.Sequences, 1, 0, rows, 8},
	} {
		size := ((x.rows-1)*x.stride + x.of) * x.size
		if x.data != 0 && output.Overlaps(span{x.data, x.data + uintptr(size)}) {
			return fault.Bad("output = %#x overlaps %s = %#x, of %d bytes", a.Output.Data, x.name, x.data, size)
		}
	}
	return nil
}

// rowsMeet says whether two rows of so many bytes share memory, where neither stride is shorter than a row.
func rowsMeet(size int64, far, near extent) bool {
	if far.count <= 1 || near.count <= 1 {
		return false
	}
	if far.stride < near.stride {
		far, near = near, far
	}
	// One run of near rows against each later run, until it is passed: mostly at once.
	for x, run := far.stride, near.stride*(near.count-1)+size; x < run && x <= far.stride*(far.count-1); x += far.stride {
		before := x / near.stride * near.stride
		if x-before < size || before+near.stride-x < size && before+near.stride < run {
			return true
		}
	}
	return false
}

func checkStore(name string, s *KVView, elements int32, paged bool, pages, tokens, heads int64) (span, error) {
	if s.PageStride == 0 && !paged { // rows share one store
		pages = 1
	}
	return checkView(name, s.Data, s.Type, elements, [3]extent{
		{"_page_stride", "pages", s.PageStride, pages}, {"_head_stride", "heads", s.HeadStride, heads}, {"_token_stride", "tokens", s.TokenStride, tokens}})
}

// extent is one dimension of a view: a stride, and how many elements there are.
type extent struct {
	name, what    string
	stride, count int64
}

// checkView checks one view, of rows of so many elements; where the view ends is the caller's word. Strides that are never
// taken are not looked at.
func checkView(name string, data uintptr, typ, elements int32, extents [3]extent) (span, error) {
	t := Types[typ]
	if err := checkAddress(name, data, uintptr(t.align), t.Name); err != nil {
		return span{}, err
	}
	row := RowSize(typ, elements)
	end := int64(data) + row
	for _, x := range extents {
		switch {
		case x.count <= 1:
			continue
		case x.stride < row:
			return span{}, fault.Bad("%s%s = %d is less than a row of %d bytes", name, x.name, x.stride, row)
		case x.stride%t.align != 0:
			return span{}, fault.Bad("%s%s = %d is not a multiple of %d, as %s has to be", name, x.name, x.stride, t.align, t.Name)
		case x.stride > (maxAddress-end)/(x.count-1):
			return span{}, fault.Bad("%s%s = %d times %d %s leaves the address space", name, x.name, x.stride, x.count, x.what)
		}
		end += x.stride * (x.count - 1)
	}
	return span{data, uintptr(end)}, nil
}

// checkAddress checks where something of elements of a type begins.
func checkAddress(name string, data, align uintptr, typ string) error {
	switch {
	case data == 0:
		return fault.Bad("%s = NULL", name)
	case data < Lowest || data >= maxAddress-1<<32:
		return fault.Bad("%s = %#x is no address", name, data)
	case data%align != 0:
		return fault.Bad("%s = %#x is not a multiple of %d, as %s has to be", name, data, align, typ)
	}
	return nil
}

func finite(x float32) bool { return !math.IsNaN(float64(x)) && !math.IsInf(float64(x), 0) }

func OrOne(x float32) float32 {
	if x == 0 {
		return 1
	}
	return x
}

// CheckVisible names the first wrong argument of those that say what the rows see, and of those by head.
func (a *Attention) CheckVisible() error {
	rows := uintptr(a.Rows)
	switch {
	case a.QueryPositions == 0 && a.Lengths == 0:
		return fault.Bad("lengths = NULL, query_positions = NULL: one of them has to say what the rows see")
	case a.QueryPositions != 0 && a.Lengths != 0:
		return fault.Bad("lengths = %#x, but query_positions is not NULL", a.Lengths)
	case a.Positions != 0 && a.QueryPositions == 0:
		return fault.Bad("positions = %#x, but query_positions = NULL", a.Positions)
	case a.Slopes != 0 && a.Mask == 0:
		return fault.Bad("alibi_slopes = %#x has no mask to multiply: mask = NULL", a.Slopes)
	}
	for _, s := range [...]struct {
		name   string
		stride int64
	}{{"positions_row_stride", a.PositionsStride}, {"mask_row_stride", a.MaskStride}} {
		if s.stride != 0 && rows > 1 && (s.stride < a.Slots || s.stride > maxAddress/MaxRows) {
			return fault.Bad("%s = %d is not 0 and not in n_slots = %d .. %d", s.name, s.stride, a.Slots, maxAddress/MaxRows)
		}
	}
	for _, v := range [...]struct {
		name        string
		data, align uintptr
	}{
		{"lengths", a.Lengths, 4}, {"query_positions", a.QueryPositions, 4}, {"positions", a.Positions, 4}, {"mask", a.Mask, 2},
		{"alibi_slopes", a.Slopes, 4}, {"sinks", a.Sinks, 4}, {"table", a.Table, 4}, {"sequences", a.Sequences, 8},
	} {
		switch {
		case v.data == 0:
		case v.data < Lowest || v.data >= maxAddress:
			return fault.Bad("%s = %#x is no address", v.name, v.data)
		case v.data%v.align != 0:
			return fault.Bad("%s = %#x is not a multiple of %d, the size of its elements", v.name, v.data, v.align)
		}
	}
	for i, n := range steps.At[int32](a.Lengths, int(rows)) {
		if n < 0 || int64(n) > a.Slots {
			return fault.Bad("lengths[%d] = %d is not in 0 .. n_slots = %d", i, n, a.Slots)
		}
	}
	for i, p := range steps.At[int32](a.QueryPositions, int(rows)) {
		if p < 0 || p > math.MaxInt32-1 {
			return fault.Bad("query_positions[%d] = %d is not in 0 .. %d", i, p, math.MaxInt32-1)
		}
	}
	for i, x := range steps.At[float32](a.Slopes, int(a.Heads)) {
		if !finite(x) {
			return fault.Bad("alibi_slopes[%d] = %v is not a finite number", i, x)
		}
	}
	for i, x := range steps.At[float32](a.Sinks, int(a.Heads)) {
		if x != x || math.IsInf(float64(x), 1) {
			return fault.Bad("sinks[%d] = %v is not a number below infinity", i, x)
		}
	}
	return nil
}

// QueryPosition is the logical position of a row's query token.
func (a *Attention) QueryPosition(row int) int64 {
	if a.QueryPositions != 0 {
		return int64(steps.At[int32](a.QueryPositions, int(a.Rows))[row])
	}
	return int64(steps.At[int32](a.Lengths, int(a.Rows))[row]) - 1
}

// positionsOf and maskOf are a row's arrays by slot.
func (a *Attention) positionsOf(row int) uintptr {
	if a.Positions == 0 {
		return 0
	}
	return a.Positions + uintptr(4*a.PositionsStride)*uintptr(row)
}

func (a *Attention) MaskOf(row int) uintptr {
	if a.Mask == 0 {
		return 0
	}
	return a.Mask + uintptr(2*a.MaskStride)*uintptr(row)
}

// Sees is what a row of a call sees.
func (a *Attention) Sees(row int) steps.Sees {
	return steps.Sees{Query: a.QueryPosition(row), Slots: int(a.Slots), Positions: a.positionsOf(row), Mask: a.MaskOf(row)}
}
