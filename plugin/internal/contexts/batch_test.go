package contexts

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Devices find each other by the number of their context, which may turn out to be another one's, and nothing is kept of contexts that are gone.
func TestBatchesOfContexts(t *testing.T) {
	r := &Relay{}
	a, b, c := r.Join(), r.Join(), r.Join()
	require.Same(t, a.Batch(1), a.Batch(1))
	require.NotSame(t, a.Batch(1), b.Batch(2))
	b.Batch(2).Rotate([]int32{4})
	require.Same(t, a.Batch(1), b.Batch(1), "they have met")
	require.NotSame(t, a.Batch(0), b.Batch(1), "it is not known any more")
	require.NotSame(t, a.Batch(0), c.Batch(0), "nor of the third one")
	require.True(t, b.Batch(1).Keep(&Told{}), "the model has positions, with whomever that was seen")
	require.False(t, c.Batch(0).Keep(&Told{}))
	require.Len(t, r.batches, 1)
	for _, l := range []*Leg{a, b, c} {
		l.Part()
	}
	require.Empty(t, r.batches)
	require.Empty(t, r.legs)
}

// Positions are those of the keys that are kept next; what is said of logits stays until something else is.
func TestBatchTells(t *testing.T) {
	r := &Relay{}
	b, told := r.Join().Batch(3), Told{}
	require.False(t, b.Keep(&told))
	require.Empty(t, told.Of)
	b.Rotate([]int32{5, 6})
	require.True(t, b.Keep(&told))
	require.Equal(t, []int32{5, 6}, told.Of)
	first := told.Number
	require.True(t, b.Keep(&told))
	require.Empty(t, told.Of)
	b.Rotate([]int32{7})
	b.Rotate(nil)
	b.Keep(&told)
	require.Empty(t, told.Of, "it is not known which")
	require.Greater(t, told.Number, first)

	require.False(t, b.Wanted(0, &told))
	b.Want(5, []int32{1, 4})
	require.True(t, b.Wanted(0, &told))
	require.Equal(t, []int{0, 2, 3}, slices.Collect(told.Unwanted))
	require.False(t, b.Wanted(told.Number, &told))
	b.Want(2, nil)
	require.True(t, b.Wanted(told.Number, &told))
	require.Equal(t, []int{0, 1}, slices.Collect(told.Unwanted))
	for i := range told.Unwanted {
		require.Zero(t, i)
		break
	}
}
