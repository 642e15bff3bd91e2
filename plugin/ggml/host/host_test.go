package host

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/stats"
)

// counting is a context that may count on a device.
type counting struct {
	onDevice bool
	waited   int
	steps    uint64
}

func (c *counting) Stats() stats.Stats {
	c.waited++
	return stats.Stats{Steps: c.steps}
}

func (c *counting) StatsAtOnce() (stats.Stats, bool) { return stats.Stats{Steps: c.steps}, !c.onDevice }

// Statistics are kept current where they have changed, but for a device that counts: no one waits for it.
func TestStatisticsAreKeptCurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stats.json")
	settings := map[string]string{"LESSISMORE_STATS": path, "LESSISMORE_PROFILE": "off", "LESSISMORE_LOG": "off"}
	p := &Process{}
	p.Configure(func(name string) (string, bool) {
		value, ok := settings[name]
		return value, ok
	})
	c := &counting{}
	p.engine.Started(c)
	read := func() string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	require.True(t, p.update())
	first := read()
	require.NoError(t, os.Remove(path))
	require.True(t, p.update())
	require.NoFileExists(t, path, "nothing has changed")
	c.onDevice, c.steps = true, 7
	require.True(t, p.update())
	require.NoFileExists(t, path)
	c.onDevice = false
	require.True(t, p.update())
	require.NotEqual(t, first, read())
	require.Zero(t, c.waited)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, []byte("another's"), 0o600))
	c.steps = 8
	require.False(t, p.update(), "what is not ours stays")
	require.Equal(t, "another's", read())
	p.WriteStats()
	require.Equal(t, 1, c.waited, "at an end they are read")
}

// A second host's GPUs may be found while the first one's contexts compute (with -race); who has none, or measures layers, hands nothing over.
func TestGPUsAreFoundWhileContextsCompute(t *testing.T) {
	for layers, n := range map[string][2]int{"0": {1, 1}, "auto": {1, 0}, "1": {0, 0}, "2": {-1, 0}} {
		p := &Process{}
		settings := map[string]string{"LESSISMORE_LAYERS": layers, "LESSISMORE_PROFILE": "off", "LESSISMORE_LOG": "off"}
		p.Configure(func(name string) (string, bool) {
			value, ok := settings[name]
			return value, ok
		})
		p.env.NoCUDA = ""
		leg, done := p.engine.Relay.Join(), make(chan bool)
		go func() {
			defer close(done)
			for range 1000 {
				leg.Joined()
			}
		}()
		p.GPUs(n[0], "GPUs")
		<-done
		require.Equal(t, n[1] == 1, p.engine.Relay.HandsOver.Load(), "layers %s, %d GPUs", layers, n[0])
		leg.Part()
	}
}
