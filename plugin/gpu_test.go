//go:build cuda

package plugin_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin"
	"lessismore/plugin/internal/standin"
)

// Slices are not a GPU's memory.
func TestTensorsAreRefusedByAGPU(t *testing.T) {
	if !standin.Child() {
		standin.Again(t)
		return
	}
	config := plugin.DefaultConfig()
	config.Layers = []int{1}
	engine, err := plugin.NewEngine(config)
	require.NoError(t, err)
	decoder, err := plugin.NewDecoder(engine, 3, nil, plugin.DecoderParams{MaxRows: 2, Capacity: 24, Heads: 4, KVHeads: 2, KeyDim: 64, KVType: plugin.F16})
	require.NoError(t, err)
	defer decoder.Free()
	var refused *plugin.Error
	require.ErrorAs(t, twoRows().Attend(decoder), &refused)
	require.Equal(t, plugin.Unsupported, refused.Kind)
	require.ErrorContains(t, refused, "device = 0: slices are for decoders on the CPU")
}
