//go:build !cuda

package plugin

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBatchNeedsABuildWithCUDA(t *testing.T) {
	config := DefaultConfig()
	config.Layers = []int{2}
	e, err := NewEngine(config)
	require.NoError(t, err)
	_, err = NewBatch(e, 6, BatchParams{MaxRows: 1, Capacity: 64, Heads: 1, KVHeads: 1, HeadDim: 64, KVType: 1})
	require.ErrorContains(t, err, "this build of the library has no CUDA")
	_, err = BatchWorkSize(e, 6, BatchParams{})
	require.ErrorContains(t, err, "this build of the library has no CUDA")
}
