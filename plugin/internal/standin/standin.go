// Package standin runs tests with the stand-in for the CUDA driver (tests/gpu/standin), whose memory is the heap and whose
// kernels do nothing. The driver is opened once per process, so each test is a process of its own.
package standin

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/settings"
)

// Child tells whether this process is one that Again has started.
func Child() bool { return os.Getenv("LIM_CHILD") != "" }

// Again runs the test once more in a process of its own, with the stand-in driver and more of the environment, and gives the
// driver's log. Its failure is the test's.
func Again(t *testing.T, env ...string) (log []string) {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	source := filepath.Join(filepath.Dir(file), "..", "..", "..", "tests", "gpu", "standin", "standin.c")
	library, path := filepath.Join(t.TempDir(), "libcuda.so.1"), filepath.Join(t.TempDir(), "log")
	out, err := exec.Command("cc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source, "-lpthread").CombinedOutput()
	require.NoError(t, err, "%s", out)
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), "LIM_CHILD=1", "LESSISMORE_LIBCUDA="+library, "LIM_STANDIN_LOG="+path), env...)
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	text, _ := os.ReadFile(path)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// Engine is one whose layers 2 and 4 choose, or as change has it.
func Engine(t *testing.T, change func(*settings.Config)) *contexts.Engine {
	t.Helper()
	config := settings.DefaultConfig()
	config.Layers = []int{2, 4}
	if change != nil {
		change(&config)
	}
	e, err := contexts.NewEngine(config)
	require.NoError(t, err)
	return e
}
