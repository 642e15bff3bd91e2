package backend

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// Layouts of chance, most of them with rows that interleave, against every pair of rows.
func TestRowsMeet(t *testing.T) {
	met := 0
	for range 20000 {
		size := 1 + rand.Int64N(6)
		a := extent{stride: size + rand.Int64N(40), count: 1 + rand.Int64N(6)}
		b := extent{stride: size + rand.Int64N(40), count: 1 + rand.Int64N(6)}
		taken := map[int64]bool{}
		want := false
		for i := range a.count {
			for j := range b.count {
				for at := i*a.stride + j*b.stride; at < i*a.stride+j*b.stride+size; at++ {
					want = want || taken[at]
					taken[at] = true
				}
			}
		}
		require.Equal(t, want, rowsMeet(size, a, b), "%d bytes, %+v, %+v", size, a, b)
		if want {
			met++
		}
	}
	require.Greater(t, met, 1000)
	require.Less(t, met, 19000)
}
