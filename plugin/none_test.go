//go:build !cuda

package plugin

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGPUsNeedABuildWithCUDA(t *testing.T) {
	config := DefaultConfig()
	config.Layers = []int{2}
	e, err := NewEngine(config)
	require.NoError(t, err)
	_, err = NewDecoder(e, 6, nil, DecoderParams{MaxRows: 1, Capacity: 64, Heads: 1, KVHeads: 1, KeyDim: 64, ValueDim: 64, KVType: 1})
	require.ErrorContains(t, err, "this build of the library has no CUDA")
	_, err = WorkSize(e, 6, DecoderParams{MaxRows: 1, Capacity: 64, Heads: 1, KVHeads: 1, KeyDim: 64, ValueDim: 64, KVType: 1})
	require.ErrorContains(t, err, "this build of the library has no CUDA")
}
