package selection

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/settings"
)

// A profile that ends at any of its bytes is not used, is named, and stays as it is; whole it is used.
func TestProfileCutAtEveryByte(t *testing.T) {
	config := settings.DefaultConfig()
	about := Identity{Layers: 6, Heads: 4, KVHeads: 2, KeyDim: 32, ValueDim: 32}
	path := filepath.Join(t.TempDir(), "profile.json")
	whole := profiles(t, config, about)[0]
	for end := range len(whole) + 1 {
		require.NoError(t, os.WriteFile(path, []byte(whole[:end]), 0o600))
		var said []string
		m, err := NewModel(config, about.Layers, about, Profiles{Path: path}.File(""), func(_ settings.LogLevel, text string) { said = append(said, text) })
		require.NoError(t, err)
		require.Equal(t, end == len(whole), m.Known, "%d bytes", end)
		require.Len(t, said, 1, "%d bytes", end)
		require.Contains(t, said[0], path)
		if end < len(whole) {
			m.File.Save(&Profile{}, func(settings.LogLevel, string) {})
			kept, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, whole[:end], string(kept))
		}
	}
}
