package rows

import (
	"bytes"
	"slices"
	"unsafe"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
)

// Leaves is what the step whose first node this is leaves for the next device of a model that is spread over several, but for
// its token sets.
func (r *Rows) Leaves(n *graph.Node) contexts.Left {
	return contexts.Left{
		Rows: r.Step.Rows, Own: r.own, Shape: shapeOf(n),
		Masks: contexts.Masks{At: n.Scan, Type: n.ScanType, TokenStride: n.ScanTokenStride, StreamStride: n.ScanStreamStride},
	}
}

func shapeOf(n *graph.Node) contexts.Shape {
	return contexts.Shape{Tokens: n.Tokens, Streams: n.Streams, FirstStream: n.FirstStream, NKV: n.NKV, Slots: n.Store.Slots}
}

// Same tells whether what another device of the host's context left is of this step: the same tokens written to the same slots of
// stores of one shape, and rows that see the same, in the same order. A slot that is read there is then read here for the same token.
func (r *Rows) Same(n *graph.Node, left *contexts.Left) bool {
	if shapeOf(n) != left.Shape || n.ScanType != left.Masks.Type || len(r.Step.Rows) != len(left.Rows) || !slices.Equal(r.own, left.Own) {
		return false
	}
	for i := range r.Step.Rows {
		mine, other := &r.Step.Rows[i], &left.Rows[i]
		if mine.Token != other.Token || mine.Stream != other.Stream || mine.Visible != other.Visible || mine.SetLen != other.SetLen ||
			!sameList(mine, other) {
			return false
		}
		at := unsafe.Add(left.Masks.At, int64(other.Stream)*left.Masks.StreamStride+int64(other.Token)*left.Masks.TokenStride)
		seen := n.ValueBytes(int(mine.Stream), int(mine.Token))
		if !bytes.Equal(seen, unsafe.Slice((*byte)(at), len(seen))) {
			return false
		}
	}
	return true
}

// sameList tells whether two rows that see as many tokens have them in the same order. A device may keep a list where another one needs none.
func sameList(a, b *cpu.Row) bool {
	switch {
	case a.Slots == nil && b.Slots == nil:
		return true
	case a.Slots == nil:
		return ascendsFromZero(b)
	case b.Slots == nil:
		return ascendsFromZero(a)
	}
	return slices.Equal(list(a), list(b))
}

// list is the slots of a row that has a list.
func list(r *cpu.Row) []int32 { return unsafe.Slice((*int32)(r.Slots), r.Visible) }

// ascendsFromZero tells whether a row's list says 0 .. visible-1.
func ascendsFromZero(r *cpu.Row) bool {
	for i, slot := range list(r) {
		if int(slot) != i {
			return false
		}
	}
	return true
}
