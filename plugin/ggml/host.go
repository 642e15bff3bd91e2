package ggml

import (
	"fmt"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"

	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/files"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// Host is the library in a process that ggml hosts have loaded it into: one engine, configured by the environment, its log on
// standard error, its statistics in a file.
type Host struct {
	mu     sync.Mutex
	engine *contexts.Engine
	env    settings.Environment
	byCell bool
	hooked bool // at least one host is hooked

	file sync.Mutex // orders the writers of the statistics: contexts may end on several threads
}

// Context is what takes part in one context of a host.
type Context interface {
	Plan(*Graph)
	Stats() stats.Stats
	Close()
}

// rehearsal is the self-test's session.
type rehearsal struct{ *Session }

// Configure makes the engine, once. lookup reads the environment. A wrong value makes it inert, with one clear line. It
// tells whether it was the first call, and whether hosts are to be hooked.
func (h *Host) Configure(lookup func(name string) (string, bool)) (first, hook bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if first = h.engine == nil; first {
		h.configure(lookup)
	}
	return first, !h.engine.Disabled()
}

func (h *Host) configure(lookup func(name string) (string, bool)) {
	env, err := settings.FromEnvironment(lookup, cuda.Built)
	if err != nil {
		env.Config = settings.DefaultConfig()
	}
	if env.StatsPath != "" { // hosts may change their directory
		if path, err := filepath.Abs(env.StatsPath); err == nil {
			env.StatsPath = path
		}
	}
	h.env = env
	h.engine, _ = contexts.NewEngine(env.Config)
	if env.Profiles {
		h.engine.Keep(selection.Profiles{Dir: profileDir(lookup), Path: env.Profile})
	}
	switch {
	case err != nil:
		h.engine.Disable(err.Error())
		h.log(settings.LogInfo, "inert: "+err.Error())
	case !env.Enabled:
		h.engine.Disable("switched off by LESSISMORE")
		h.log(settings.LogInfo, "switched off by LESSISMORE")
	}
	order, _ := lookup("LESSISMORE_TEST_ORDER")
	h.byCell = order == "cell"
}

// profileDir is where profiles are kept; "" without a home.
func profileDir(lookup func(name string) (string, bool)) string {
	if dir, _ := lookup("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lessismore", "profiles")
	}
	if dir, _ := lookup("HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, ".cache", "lessismore", "profiles")
	}
	return ""
}

func (h *Host) log(level settings.LogLevel, text string) {
	if level <= h.env.Log {
		// Not through os.Stderr: Go ends the process when that is a pipe that nobody reads any more.
		_, _ = syscall.Write(2, []byte("lessismore: "+text+"\n"))
	}
}

// Guard keeps a panic from crossing the C edge, where it is deferred: the library switches itself off.
func (h *Host) Guard(where string) {
	if p := recover(); p != nil {
		text := fmt.Sprintf("internal error in %s: %v", where, p)
		h.log(settings.LogInfo, "inert: "+text)
		h.log(settings.LogDebug, string(debug.Stack()))
		if h.engine != nil {
			h.engine.Disable(text)
		}
	}
}

// Hooked notes that a host is hooked, and says what the library does in it.
func (h *Host) Hooked(about string) {
	h.mu.Lock()
	h.hooked = true
	h.mu.Unlock()
	h.engine.Hold("")
	layers := "found by measuring"
	if h.env.Layers != nil {
		layers = fmt.Sprint(h.env.Layers)
	}
	h.log(settings.LogInfo, fmt.Sprintf("%s loaded into %s (%s kernels): budget %d tokens, selection layers %s",
		settings.Version, about, h.engine.Report().Target, h.env.Budget, layers))
}

// NotHooked says why a copy of ggml is left alone; early: it may be one that works when it is asked again.
func (h *Host) NotHooked(about string, early bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.hooked:
		h.log(settings.LogInfo, "another copy of ggml in this process is left alone: "+about)
	case h.engine.Inert() == about: // that was said
	default: // a later load, or another copy of ggml, may be one that works
		h.engine.Hold(about)
		state := "inert: "
		if early {
			state = "waiting: "
		}
		h.log(settings.LogInfo, state+about)
	}
}

// WantsGPUs tells whether the host's CUDA devices are to be hooked.
func (h *Host) WantsGPUs() bool { return h.env.CUDA }

// GPUs says what becomes of the host's CUDA devices: n of them are served, or could be; below zero: none can.
func (h *Host) GPUs(n int, about string) {
	switch {
	case n > 0 && h.env.CUDA:
		h.log(settings.LogInfo, about+": taken part in (LESSISMORE_CUDA=on)")
	case n > 0:
		h.log(settings.LogInfo, about+": left alone, what is computed there stays as it is (LESSISMORE_CUDA=on takes part)")
	case n < 0:
		h.log(settings.LogInfo, "CUDA devices are left alone: "+about)
	case h.env.CUDA:
		h.log(settings.LogInfo, "LESSISMORE_CUDA=on, but this host has no CUDA device")
	}
}

// Engine is the host's; nil where none has loaded the library.
func (h *Host) Engine() *contexts.Engine {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.hooked {
		return nil
	}
	return h.engine
}

// Rehearse begins a context of the self-test's. It attends to everything, whatever the settings: the self-test's rows are
// below its budget.
func (h *Host) Rehearse() (Context, error) {
	config := settings.DefaultConfig()
	config.Layers = []int{0}
	engine, err := contexts.NewEngine(config)
	if err != nil {
		return nil, err
	}
	return rehearsal{NewSession(engine, nil)}, nil
}

// Open begins a context whose graphs the CPU computes.
func (h *Host) Open() Context {
	s := NewSession(h.engine, h.log)
	if h.byCell {
		s.OrderByCell()
	}
	return s
}

// OpenGPU begins a context whose graphs a GPU computes.
func (h *Host) OpenGPU() Context { return NewGPUSession(h.engine, h.log) }

// Close ends a context, and says what was done in it.
func (h *Host) Close(c Context) {
	c.Close()
	if _, ok := c.(rehearsal); ok {
		return
	}
	s := c.Stats()
	if text := s.Outcome(); text != "" {
		h.log(settings.LogInfo, "context freed: "+text)
	}
	h.WriteStats()
}

// Problem makes the engine inert: something is wrong with the host.
func (h *Host) Problem(reason string) {
	h.engine.Disable(reason)
	h.log(settings.LogInfo, "inert: "+reason)
}

// WriteStats writes the file that LESSISMORE_STATS names, if any.
func (h *Host) WriteStats() {
	if h.env.StatsPath == "" {
		return
	}
	h.file.Lock()
	defer h.file.Unlock()
	if err := files.WriteFile(h.env.StatsPath, h.engine.Report().JSON()); err != nil {
		h.log(settings.LogInfo, "LESSISMORE_STATS: "+err.Error())
	}
}
