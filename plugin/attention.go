package plugin

import (
	"fmt"
	"math"
	"unsafe"

	"lessismore/plugin/internal/cpu"
)

// MaxSlots bounds a K/V store: far above any context that exists, and low enough for 32-bit counts.
const MaxSlots = 1 << 24

// Attention is one layer's attention for one query token, as a caller states it (lim_attention in the
// public header). Addresses are numbers, not pointers: a wrong one must not upset Go's collector.
type Attention struct {
	Layer         int32
	Heads         int32
	KVHeads       int32
	KeyDim        int32
	ValueDim      int32
	Slots         int64
	QueryPosition int64

	Query, Key, Value, Output View

	Positions uintptr // [Slots] int32, or 0
	Mask      uintptr // [Slots] f16, or 0
	Slopes    uintptr // [Heads] float32, or 0
	Sinks     uintptr // [Heads] float32, or 0

	Scale, Softcap float32
}

// View is a strided tensor; strides in bytes. Query and output have no slots.
type View struct {
	Data       uintptr
	SlotStride int64
	HeadStride int64
	Type       int32
}

// Kind is what is wrong with a call.
type Kind int32

const (
	BadArgument  Kind = iota + 1 // never right
	Unsupported                  // right, but not possible in this version
	NoMemory                     // no memory or no threads
	DeviceFailed                 // no GPU or driver to be used, or the driver failed
)

// Error is a refused call. Its text names the argument and the value.
type Error struct {
	Kind Kind
	Text string
}

func (e *Error) Error() string { return e.Text }

func bad(format string, args ...any) error {
	return &Error{BadArgument, fmt.Sprintf(format, args...)}
}

// lowest is the lowest address that can be one: the first page is never mapped.
const lowest = 4096

// typeInfo describes an element type: rows are whole blocks, addresses multiples of align.
type typeInfo struct {
	name                string
	block, bytes, align int64
}

var types = [...]typeInfo{
	cpu.F32:  {"f32", 1, 4, 4},
	cpu.F16:  {"f16", 1, 2, 2},
	cpu.BF16: {"bf16", 1, 2, 2},
	cpu.Q8_0: {"q8_0", 32, 34, 2},
	cpu.Q4_0: {"q4_0", 32, 18, 2},
}

// span is the memory that a view takes.
type span struct{ first, end uintptr }

func (s span) overlaps(o span) bool { return s.first < o.end && o.first < s.end }

// check returns an error that names the first wrong argument, for a model with that many layers. It
// puts zero where a stride is never taken, and the default where the scale is zero.
func (a *Attention) check(layers int) error {
	switch {
	case a.Layer < 0 || int(a.Layer) >= layers:
		return bad("layer = %d is not in 0 .. %d", a.Layer, layers-1)
	case a.Heads < 1 || a.Heads > cpu.MaxHeads:
		return bad("heads = %d is not in 1 .. %d", a.Heads, cpu.MaxHeads)
	case a.KVHeads < 1 || a.KVHeads > a.Heads:
		return bad("kv_heads = %d is not in 1 .. %d, the number of heads", a.KVHeads, a.Heads)
	case a.Heads%a.KVHeads != 0:
		return bad("kv_heads = %d does not divide heads = %d", a.KVHeads, a.Heads)
	case a.Slots < 1 || a.Slots > MaxSlots:
		return bad("n_slots = %d is not in 1 .. %d", a.Slots, MaxSlots)
	case a.QueryPosition < 0 || a.QueryPosition > math.MaxInt32-1:
		return bad("query_position = %d is not in 0 .. %d", a.QueryPosition, math.MaxInt32-1)
	case !finite(a.Scale):
		return bad("scale = %v is not a finite number", a.Scale)
	case !finite(a.Softcap) || a.Softcap < 0:
		return bad("softcap = %v is not a finite number of 0 or more", a.Softcap)
	}
	if a.Scale == 0 && a.KeyDim > 0 {
		a.Scale = float32(1 / math.Sqrt(float64(a.KeyDim)))
	}

	var spans [4]span
	for i, v := range [...]struct {
		name, dim string
		view      *View
		elements  int32
		heads     int32
		slots     int64
	}{
		{"query", "key_dim", &a.Query, a.KeyDim, a.Heads, 0},
		{"key", "key_dim", &a.Key, a.KeyDim, a.KVHeads, a.Slots},
		{"value", "value_dim", &a.Value, a.ValueDim, a.KVHeads, a.Slots},
		{"output", "value_dim", &a.Output, a.ValueDim, a.Heads, 0},
	} {
		var err error
		if spans[i], err = v.view.check(v.name, v.dim, v.elements, v.heads, v.slots); err != nil {
			return err
		}
	}
	for i, name := range [...]string{"query", "key", "value"} {
		if spans[3].overlaps(spans[i]) {
			return bad("output = %#x overlaps %s = %#x", a.Output.Data, name, spans[i].first)
		}
	}

	if a.Slopes != 0 && a.Mask == 0 {
		return bad("alibi_slopes = %#x has no mask to multiply: mask = NULL", a.Slopes)
	}
	for _, v := range [...]struct {
		name   string
		data   uintptr
		align  uintptr
		length uintptr
	}{
		{"positions", a.Positions, 4, 4 * uintptr(a.Slots)},
		{"mask", a.Mask, 2, 2 * uintptr(a.Slots)},
		{"alibi_slopes", a.Slopes, 4, 4 * uintptr(a.Heads)},
		{"sinks", a.Sinks, 4, 4 * uintptr(a.Heads)},
	} {
		switch {
		case v.data == 0:
		case v.data < lowest || v.data > math.MaxInt64-v.length:
			return bad("%s = %#x is no address", v.name, v.data)
		case v.data%v.align != 0:
			return bad("%s = %#x is not a multiple of %d, the size of its elements", v.name, v.data, v.align)
		}
	}
	for i, x := range at[float32](a.Slopes, int(a.Heads)) {
		if !finite(x) {
			return bad("alibi_slopes[%d] = %v is not a finite number", i, x)
		}
	}
	for i, x := range at[float32](a.Sinks, int(a.Heads)) {
		if x != x || math.IsInf(float64(x), 1) {
			return bad("sinks[%d] = %v is not a number below infinity", i, x)
		}
	}
	return nil
}

// check checks one view: slots is 0 for a query or output.
func (v *View) check(name, dim string, elements, heads int32, slots int64) (span, error) {
	if v.Type == FP8 {
		return span{}, &Error{Unsupported, fmt.Sprintf("%s_dtype = %d (fp8) is for batches only", name, v.Type)}
	}
	if v.Type < 0 || int(v.Type) >= len(types) {
		return span{}, bad("%s_dtype = %d is unknown", name, v.Type)
	}
	t := types[v.Type]
	if slots == 0 && t.block > 1 {
		return span{}, &Error{Unsupported, fmt.Sprintf("%s_dtype = %d (%s) is for key and value only", name, v.Type, t.name)}
	}
	if unit := max(16, int32(t.block)); elements < unit || elements > cpu.MaxDim || elements%unit != 0 {
		return span{}, bad("%s = %d is not a multiple of %d up to %d, as %s in %s has to be",
			dim, elements, unit, cpu.MaxDim, name, t.name)
	}
	switch {
	case v.Data == 0:
		return span{}, bad("%s = NULL", name)
	case v.Data < lowest || v.Data > math.MaxInt64:
		return span{}, bad("%s = %#x is no address", name, v.Data)
	case int64(v.Data)%t.align != 0:
		return span{}, bad("%s = %#x is not a multiple of %d, as %s has to be", name, v.Data, t.align, t.name)
	}

	row := int64(elements) / t.block * t.bytes
	end := int64(v.Data) + row
	if end < 0 {
		return span{}, bad("%s = %#x is no address", name, v.Data)
	}
	for _, s := range [...]struct {
		name   string
		stride *int64
		count  int64
		what   string
	}{
		{"_head_stride", &v.HeadStride, int64(heads), "heads"},
		{"_slot_stride", &v.SlotStride, max(slots, 1), "slots"},
	} {
		switch {
		case s.count == 1:
			*s.stride = 0
			continue
		case *s.stride < row:
			return span{}, bad("%s%s = %d is less than a row of %d bytes", name, s.name, *s.stride, row)
		case *s.stride%t.align != 0:
			return span{}, bad("%s%s = %d is not a multiple of %d, as %s has to be", name, s.name, *s.stride, t.align, t.name)
		case *s.stride > (math.MaxInt64-end)/(s.count-1):
			return span{}, bad("%s%s = %d times %d %s leaves the address space", name, s.name, *s.stride, s.count, s.what)
		}
		end += *s.stride * (s.count - 1)
	}
	return span{v.Data, uintptr(end)}, nil
}

func finite(x float32) bool { return !math.IsNaN(float64(x)) && !math.IsInf(float64(x), 0) }

// at is the caller's array at an address; nil at address 0.
func at[T any](address uintptr, n int) []T {
	if address == 0 {
		return nil
	}
	return unsafe.Slice(*(**T)(unsafe.Pointer(&address)), n)
}
