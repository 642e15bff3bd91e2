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

// Two models that begin together are told one file: the first to be measured has it.
func TestProfileOfTwoModels(t *testing.T) {
	config, path := targeted(0), filepath.Join(t.TempDir(), "profile.json")
	file := Profiles{Path: path}.File("")
	first, _ := measured(t, config, file)
	second, _ := measured(t, config, file)
	second.About.Weights = "another one's"
	var said []string
	log := func(_ settings.LogLevel, text string) { said = append(said, text) }
	save := func(m *Model) string {
		m.File.Save(m.Learned(), log)
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	text := save(first)
	require.Equal(t, text, save(second))
	require.Contains(t, said[len(said)-1], "profile is not saved: "+path+" is another one's: it was made for weights w, here it is another one's")
	first.measured.steps++
	require.NotEqual(t, text, save(first), "its own is replaced")
	require.NoError(t, os.Remove(path))
	require.NotEqual(t, text, save(second), "what is gone is nobody's")
}
