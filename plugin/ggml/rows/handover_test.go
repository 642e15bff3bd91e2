package rows

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/cpu"
)

// One device may keep a list that says what another one's lack of a list does: it had to look again where the other one had not.
func TestRowsOfTheSameOrder(t *testing.T) {
	listed := func(slots ...int32) *cpu.Row {
		return &cpu.Row{Visible: int32(len(slots)), Slots: unsafe.Pointer(&slots[0])}
	}
	none := &cpu.Row{Visible: 3}
	for _, c := range []struct {
		a, b *cpu.Row
		same bool
	}{
		{none, none, true},
		{none, listed(0, 1, 2), true},
		{none, listed(0, 2, 1), false},
		{none, listed(0, 1, 3), false},
		{none, listed(1, 2, 3), false},
		{listed(0, 2, 1), listed(0, 2, 1), true},
		{listed(0, 1, 2), listed(0, 2, 1), false},
	} {
		require.Equal(t, c.same, sameList(c.a, c.b))
		require.Equal(t, c.same, sameList(c.b, c.a))
	}
}
