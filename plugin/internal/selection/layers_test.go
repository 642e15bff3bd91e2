package selection

import (
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/settings"
)

func TestDefaultLayers(t *testing.T) {
	for layers, want := range map[int][]int{
		36: {2, 12}, 32: {2, 10}, 12: {2, 4}, 9: {2, 3}, 8: {2}, 3: {2}, 1: {2},
	} {
		require.Equal(t, want, DefaultLayers(layers), "%d layers", layers)
	}
	for _, layers := range []int{1, 2} { // too small to have a third layer: nothing is sparse
		roles, err := NewRoles(layers, settings.DefaultConfig())
		require.NoError(t, err)
		require.Empty(t, roles.Selections())
		for l := range layers {
			require.Equal(t, RoleFull, roles.Role(l))
		}
	}
}
