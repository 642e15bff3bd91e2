package plugin

import (
	"cmp"
	"runtime"
	"unsafe"

	"github.com/x448/float16"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/fault"
)

// View is a tensor in this program's memory: [token][head][dim]. The tokens of a query or output are the call's rows, those
// of a key or value the slots of a K/V store. The elements of a [dim] row are contiguous; everything else lies as the strides
// say. What makes a view sets them for [token][head][dim] without gaps; for another layout change them. A view refers to the
// slice as it is, not to what is appended later.
type View struct {
	Type                    int32 // F32, F16, BF16; for key and value also Q8_0, Q4_0
	Tokens, Heads, Dim      int
	TokenStride, HeadStride int64 // bytes, from one to the next

	// Of a key or value: 1, all rows read the same store; or a store of Tokens slots for each row. With a table: any number of
	// pages of Tokens slots.
	Pages      int
	PageStride int64 // bytes; read with several pages only

	data unsafe.Pointer
	size int64 // bytes
}

// Float32View is a view of f32.
func Float32View(data []float32, tokens, heads, dim int) View {
	return view(unsafe.Pointer(unsafe.SliceData(data)), 4*len(data), F32, tokens, heads, dim)
}

// Float16View is a view of f16.
func Float16View(data []float16.Float16, tokens, heads, dim int) View {
	return view(unsafe.Pointer(unsafe.SliceData(data)), 2*len(data), F16, tokens, heads, dim)
}

// BytesView is a view of elements of any type as they lie in memory, at an address that is a multiple of 2 (F32: of 4).
func BytesView(data []byte, typ int32, tokens, heads, dim int) View {
	return view(unsafe.Pointer(unsafe.SliceData(data)), len(data), typ, tokens, heads, dim)
}

func view(data unsafe.Pointer, size int, typ int32, tokens, heads, dim int) View {
	row := backend.RowSize(typ, int32(dim))
	return View{Type: typ, Tokens: tokens, Heads: heads, Dim: dim, HeadStride: row, TokenStride: row * int64(heads),
		Pages: 1, PageStride: row * int64(heads) * int64(tokens), data: data, size: int64(size)}
}

// check names a view whose slice is too short for it; pages: how many it may have besides one, 0: any number. Strides that are
// too small are left to the decoder.
func (v *View) check(name string, pages int) error {
	for _, x := range [...]struct {
		name  string
		count int
	}{{"tokens", v.Tokens}, {"heads", v.Heads}, {"dim", v.Dim}} {
		if x.count < 1 || x.count > MaxSlots {
			return fault.Bad("%s has %d %s, which is not in 1 .. %d", name, x.count, x.name, MaxSlots)
		}
	}
	if v.Pages != 1 && v.Pages != pages && (pages != 0 || v.Pages < 1) {
		return fault.Bad("%s has %d pages, which is neither 1 nor %d", name, v.Pages, pages)
	}
	left := v.size - backend.RowSize(v.Type, int32(v.Dim))
	for _, x := range [...]struct {
		count  int
		stride int64
	}{{v.Pages, v.PageStride}, {v.Tokens, v.TokenStride}, {v.Heads, v.HeadStride}} {
		if steps := int64(x.count - 1); steps > 0 && x.stride > 0 {
			if left < 0 || steps > left/x.stride {
				left = -1
				break
			}
			left -= steps * x.stride
		}
	}
	if left < 0 {
		return fault.Bad("%s has %d bytes, which is too short for %d pages of %d tokens of %d heads of %d elements with strides of %d, %d and %d bytes",
			name, v.size, v.Pages, v.Tokens, v.Heads, v.Dim, v.PageStride, v.TokenStride, v.HeadStride)
	}
	return nil
}

// Tensors is one layer's attention on the CPU for some rows, each of which is one query token, in slices of this program:
// what Attention states by addresses. Query, Key, Value and Output are required, and Lengths or QueryPositions; what is empty
// is not there. The shape follows from the views: as many rows as the query has tokens, as many slots as the key has, and
// query head h reads KV head h / (query heads / KV heads).
//
// Tensors may be used again, by one goroutine at a time.
type Tensors struct {
	Layer         int32 // counted among the decoder's, from 0
	Query, Output View  // [row][head][dim]; the output's dim is the value's
	Key, Value    View  // [slot][head][dim]

	Table          []int32           // [rows][any] each row's pages in the order of its slots, of Key.Tokens tokens, a power of two
	Sequences      []uint64          // [rows] which text each row is of: any number that no other text gets
	Lengths        []int32           // [rows] a row sees slots 0 .. its length - 1
	QueryPositions []int32           // [rows] instead: the query tokens' positions; a row sees no token after its own
	Positions      []int32           // [slots], or [rows][slots]: which position each slot holds, -1 for none; empty: its number
	Mask           []float16.Float16 // [slots], or [rows][slots]: added to the logits; -inf: not visible
	Slopes         []float32         // [query heads] factors of the mask (ALiBi)
	Sinks          []float32         // [query heads] a further logit in the softmax's denominator
	Scale          float32           // of the logits; 0: 1 / sqrt(the key's dim)
	Softcap        float32           // c > 0: c * tanh(logit / c)

	attention Attention
}

// Attend computes the layer with a decoder on the CPU, as Decoder.Attend does; the output is complete on return. The slices
// stay where they are and alive until then, and none is referred to afterwards. An error names the field. Up to five
// slices are pinned without an allocation, more with a small one.
func (t *Tensors) Attend(d *Decoder) error {
	if d.Params.Device != CPU {
		return fault.NotSupported("device = %d: slices are for decoders on the CPU; an Attention states a GPU's memory", d.Params.Device)
	}
	if err := t.check(); err != nil {
		return err
	}
	var pins runtime.Pinner // the kernels' threads read the addresses from C memory
	defer pins.Unpin()
	if err := t.state(&pins); err != nil {
		return err
	}
	return d.Attend(&t.attention)
}

// check names the first view that is too short, or of another shape than those before it.
func (t *Tensors) check() error {
	rows := t.Query.Tokens
	stores := rows
	if len(t.Table) > 0 {
		stores = 0
	}
	for _, x := range [...]struct {
		name  string
		view  *View
		pages int
	}{{"query", &t.Query, 1}, {"output", &t.Output, 1}, {"key", &t.Key, stores}, {"value", &t.Value, stores}} {
		if err := x.view.check(x.name, x.pages); err != nil {
			return err
		}
	}
	for _, x := range [...]struct {
		name, what, other string
		count, others     int
	}{
		{"output", "tokens", "query", t.Output.Tokens, rows}, {"output", "heads", "query", t.Output.Heads, t.Query.Heads},
		{"key", "elements in a head", "query", t.Key.Dim, t.Query.Dim},
		{"value", "tokens", "key", t.Value.Tokens, t.Key.Tokens}, {"value", "heads", "key", t.Value.Heads, t.Key.Heads},
		{"output", "elements in a head", "value", t.Output.Dim, t.Value.Dim},
	} {
		if x.count != x.others {
			return fault.Bad("%s has %d %s, but %s has %d", x.name, x.count, x.what, x.other, x.others)
		}
	}
	switch {
	case len(t.Table)%rows != 0:
		return fault.Bad("table has %d elements, not as many for each of %d rows", len(t.Table), rows)
	case len(t.Table) > 0 && t.Value.Pages != t.Key.Pages:
		return fault.Bad("value has %d pages, but key has %d", t.Value.Pages, t.Key.Pages)
	}
	return nil
}

// state fills in the Attention; its addresses are valid while they are pinned.
func (t *Tensors) state(pins *runtime.Pinner) error {
	rows, slots, heads := t.Query.Tokens, t.Key.Tokens, t.Query.Heads
	a := &t.attention
	*a = Attention{Layer: t.Layer, Rows: int32(rows), Slots: int64(slots),
		Heads: int32(heads), KVHeads: int32(t.Key.Heads), KeyDim: int32(t.Key.Dim), ValueDim: int32(t.Value.Dim),
		Query: t.Query.rows(pins), Output: t.Output.rows(pins), Key: t.Key.store(pins), Value: t.Value.store(pins),
		Scale: t.Scale, Softcap: t.Softcap}
	if len(t.Table) > 0 {
		width := len(t.Table) / rows
		slots *= width
		a.Slots, a.TableStride, a.PageSize, a.Pages = int64(slots), int64(width), int32(t.Key.Tokens), int64(t.Key.Pages)
		a.Key.PageStride, a.Value.PageStride = t.Key.PageStride, t.Value.PageStride
	}
	return cmp.Or(
		list(pins, &a.Table, "table", t.Table, len(t.Table)),
		list(pins, &a.Sequences, "sequences", t.Sequences, rows),
		list(pins, &a.Lengths, "lengths", t.Lengths, rows),
		list(pins, &a.QueryPositions, "query_positions", t.QueryPositions, rows),
		bySlot(pins, &a.Positions, &a.PositionsStride, "positions", t.Positions, rows, slots),
		bySlot(pins, &a.Mask, &a.MaskStride, "mask", t.Mask, rows, slots),
		list(pins, &a.Slopes, "alibi_slopes", t.Slopes, heads),
		list(pins, &a.Sinks, "sinks", t.Sinks, heads),
	)
}

func (v *View) rows(pins *runtime.Pinner) RowView {
	return RowView{Data: pin(pins, v.data), RowStride: v.TokenStride, HeadStride: v.HeadStride, Type: v.Type}
}

func (v *View) store(pins *runtime.Pinner) KVView {
	s := KVView{Data: pin(pins, v.data), TokenStride: v.TokenStride, HeadStride: v.HeadStride, Type: v.Type}
	if v.Pages > 1 {
		s.PageStride = v.PageStride
	}
	return s
}

// list pins an array of count elements and gives its address; an empty one stays 0.
func list[T any](pins *runtime.Pinner, to *uintptr, name string, data []T, count int) error {
	switch len(data) {
	case 0:
		return nil
	case count:
		*to = pin(pins, unsafe.Pointer(unsafe.SliceData(data)))
		return nil
	}
	return fault.Bad("%s has %d elements, not %d", name, len(data), count)
}

// bySlot is list for an array that all rows share, or that has a part for each.
func bySlot[T any](pins *runtime.Pinner, to *uintptr, stride *int64, name string, data []T, rows, slots int) error {
	switch len(data) {
	case 0, slots:
		return list(pins, to, name, data, slots)
	case rows * slots:
		*stride = int64(slots)
		return list(pins, to, name, data, rows*slots)
	}
	return fault.Bad("%s has %d elements, neither one for each of %d slots nor as many for each of %d rows", name, len(data), slots, rows)
}

// pin keeps memory in place, if it is Go's; other memory (mmap, C) does not move.
func pin(pins *runtime.Pinner, data unsafe.Pointer) uintptr {
	if data != nil {
		pins.Pin(data)
	}
	return uintptr(data)
}
