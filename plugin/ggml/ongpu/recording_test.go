package ongpu

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/cuda"
)

// A number stands for one form, for ever: what was recorded for another one is never taken for it.
func TestFormsAreNumbered(t *testing.T) {
	f, named := forms{}, map[uint64]form{}
	for range 1000 {
		of := form{generation: rand.Uint64N(4), decoder: rand.Uint64N(3), visibility: cuda.Visibility{NRows: rand.Int32N(3), Mask: rand.Uint64N(2)}}
		number := f.number(of)
		require.NotZero(t, number)
		require.Equal(t, number, f.number(of), "asked for again")
		if known, ok := named[number]; ok {
			require.Equal(t, known, of)
		}
		named[number] = of
	}
	require.Greater(t, len(named), len(f.known), "old ones were forgotten")
}

// Steps of a few forms in turn, as slots come and go, keep their numbers.
func TestFormsInTurnKeepTheirNumbers(t *testing.T) {
	f := forms{}
	numbers := map[int32]uint64{}
	for step := range 100 {
		rows := int32(step % cuda.Recordings)
		number := f.number(form{visibility: cuda.Visibility{NRows: rows}})
		if step >= cuda.Recordings {
			require.Equal(t, numbers[rows], number)
		}
		numbers[rows] = number
	}
}
