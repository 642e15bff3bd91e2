// Package host is the library in a process that ggml hosts have loaded it into: one engine, configured by the environment, its
// log on standard error, its profiles and its statistics in files.
package host

import (
	"bytes"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"lessismore/plugin/ggml"
	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/files"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// Process is what the hosts of one process share.
type Process struct {
	mu     sync.Mutex
	engine *contexts.Engine
	env    settings.Environment
	byCell bool
	hooked bool   // at least one host is hooked
	said   string // by the last rehearsal

	file    sync.Mutex // orders the writers of the statistics: contexts may end on several threads
	written []byte     // to that file, last
	failed  string     // why it could not be, the last time
	once    sync.Once  // keeps the statistics current
}

// Where contexts live as long as their process, and that is ended by a signal (an RPC server's), the statistics that are
// written at the end never are. So they are kept current, at this distance; a trace makes them long.
const (
	current       = 2 * time.Second
	currentTraced = 30 * time.Second
)

// Context is what takes part in one context of a host.
type Context interface {
	Plan(*graph.Graph)
	Stats() stats.Stats
	Close()
}

// rehearsal and gpuRehearsal are the self-tests' sessions.
type (
	rehearsal    struct{ *ggml.Session }
	gpuRehearsal struct{ *ggml.GPUSession }
)

// Configure makes the engine, once. lookup reads the environment. A wrong value makes it inert, with one clear line. It
// tells whether it was the first call, and whether hosts are to be hooked.
func (p *Process) Configure(lookup func(name string) (string, bool)) (first, hook bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if first = p.engine == nil; first {
		p.configure(lookup)
	}
	return first, !p.engine.Disabled()
}

func (p *Process) configure(lookup func(name string) (string, bool)) {
	env, err := settings.FromEnvironment(lookup, cuda.Built)
	if err != nil {
		env.Config = settings.DefaultConfig()
	}
	if env.StatsPath != "" { // hosts may change their directory
		if path, err := filepath.Abs(env.StatsPath); err == nil {
			env.StatsPath = path
		}
	}
	p.env = env
	p.engine, _ = contexts.NewEngine(env.Config)
	if env.Profiles {
		p.engine.Keep(selection.Profiles{Dir: profileDir(lookup), Path: env.Profile})
	}
	switch {
	case err != nil:
		p.engine.Disable(err.Error())
		p.log(settings.LogInfo, "inert: "+err.Error())
	case !env.Enabled:
		p.engine.Disable("switched off by LESSISMORE")
		p.log(settings.LogInfo, "switched off by LESSISMORE")
	}
	order, _ := lookup("LESSISMORE_TEST_ORDER")
	p.byCell = order == "cell"
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

func (p *Process) log(level settings.LogLevel, text string) {
	if level <= p.env.Log {
		// Not through os.Stderr: Go ends the process when that is a pipe that nobody reads any more.
		_, _ = syscall.Write(2, []byte("lessismore: "+text+"\n"))
	}
}

// Guard keeps a panic from crossing the C edge, where it is deferred: the library switches itself off.
func (p *Process) Guard(where string) {
	if cause := recover(); cause != nil {
		text := fmt.Sprintf("internal error in %s: %v", where, cause)
		p.log(settings.LogInfo, "inert: "+text)
		p.log(settings.LogDebug, string(debug.Stack()))
		if p.engine != nil {
			p.engine.Disable(text)
		}
	}
}

// Hooked notes that a host is hooked, and says what the library does in it.
func (p *Process) Hooked(about string) {
	p.mu.Lock()
	p.hooked = true
	p.mu.Unlock()
	p.engine.Hold("")
	layers := "found by measuring"
	if p.env.Layers != nil {
		layers = fmt.Sprint(p.env.Layers)
	}
	p.log(settings.LogInfo, fmt.Sprintf("%s loaded into %s (%s kernels): budget %d tokens, selection layers %s",
		settings.Version, about, p.engine.Report().Target, p.env.Budget, layers))
}

// NotHooked says why a copy of ggml is left alone; early: it may be one that works when it is asked again.
func (p *Process) NotHooked(about string, early bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.hooked:
		p.log(settings.LogInfo, "another copy of ggml in this process is left alone: "+about)
	case p.engine.Inert() == about: // that was said
	default: // a later load, or another copy of ggml, may be one that works
		p.engine.Hold(about)
		state := "inert: "
		if early {
			state = "waiting: "
		}
		p.log(settings.LogInfo, state+about)
	}
}

// WantsGPUs tells whether the host's CUDA devices are to be hooked.
func (p *Process) WantsGPUs() bool { return p.env.CUDA != settings.CUDAOff && p.env.NoCUDA == "" }

// GPUs says what becomes of the host's CUDA devices: n of them are served, or could be; below zero: none can.
func (p *Process) GPUs(n int, about string) {
	if n > 0 && p.WantsGPUs() && p.env.Layers != nil {
		p.engine.Relay.HandsOver.Store(true) // where layers are measured, each device does so by itself
	}
	switch {
	case n > 0 && p.env.NoCUDA != "":
		p.log(settings.LogInfo, about+": left alone, what is computed there stays as it is: "+p.env.NoCUDA)
	case n > 0 && p.env.CUDA == settings.CUDAOn:
		p.log(settings.LogInfo, about+": hooked (LESSISMORE_CUDA=on)")
	case n > 0 && p.env.CUDA == settings.CUDAAuto:
		p.log(settings.LogInfo, about+": hooked where it pays (LESSISMORE_CUDA=off leaves it alone)")
	case n > 0:
		p.log(settings.LogInfo, about+": left alone, what is computed there stays as it is (LESSISMORE_CUDA=off)")
	case n < 0:
		p.log(settings.LogInfo, "CUDA devices are left alone: "+about)
	case p.env.CUDA == settings.CUDAOn:
		p.log(settings.LogInfo, "LESSISMORE_CUDA=on, but this host has no CUDA device")
	}
}

// Engine is the host's; nil where none has loaded the library.
func (p *Process) Engine() *contexts.Engine {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.hooked {
		return nil
	}
	return p.engine
}

// Rehearse begins a context of the self-test's. It attends to everything, whatever the settings: the self-test's rows are
// below its budget.
func (p *Process) Rehearse() (Context, error) {
	config := settings.DefaultConfig()
	config.Layers = []int{0}
	engine, err := contexts.NewEngine(config)
	if err != nil {
		return nil, err
	}
	s := ggml.NewSession(engine, nil)
	s.DivideAlways()
	return rehearsal{s}, nil
}

// RehearseGPU begins a context of a GPU's self-test, with a budget of so many tokens: its first layer chooses.
func (p *Process) RehearseGPU(budget int) (Context, error) {
	config := settings.DefaultConfig()
	config.Layers, config.Budget = []int{0}, budget
	engine, err := contexts.NewEngine(config)
	if err != nil {
		return nil, err
	}
	return gpuRehearsal{ggml.NewGPUSession(engine, p.rehearsed, true)}, nil
}

// rehearsed keeps what a rehearsal says, which is told where it fails.
func (p *Process) rehearsed(_ settings.LogLevel, text string) { p.said = text }

// LeftAlone says that a host's CUDA devices are left alone.
func (p *Process) LeftAlone(why string) {
	if p.said != "" && strings.Contains(why, "self-test") {
		why += " (" + p.said + ")"
	}
	p.log(settings.LogInfo, "CUDA devices are left alone: "+why)
}

// Open begins a context whose graphs the CPU computes.
func (p *Process) Open() Context {
	s := ggml.NewSession(p.engine, p.log)
	if p.env.StatsPath != "" {
		p.once.Do(func() { go p.keepCurrent() })
	}
	if p.byCell {
		s.OrderByCell()
	}
	return s
}

// OpenGPU begins a context whose graphs a GPU computes.
func (p *Process) OpenGPU() Context {
	s := ggml.NewGPUSession(p.engine, p.log, p.env.CUDA == settings.CUDAOn)
	if p.byCell {
		s.OrderByCell()
	}
	return s
}

// Close ends a context, and says what was done in it.
func (p *Process) Close(c Context) {
	c.Close()
	switch c.(type) {
	case rehearsal, gpuRehearsal:
		return
	}
	s := c.Stats()
	if text := s.Outcome(); text != "" {
		p.log(settings.LogInfo, "context freed: "+text)
	}
	p.WriteStats()
}

// Problem makes the engine inert: something is wrong with the host.
func (p *Process) Problem(reason string) {
	p.engine.Disable(reason)
	p.log(settings.LogInfo, "inert: "+reason)
}

// WriteStats writes the file that LESSISMORE_STATS names, if any.
func (p *Process) WriteStats() {
	if p.env.StatsPath == "" {
		return
	}
	p.file.Lock()
	defer p.file.Unlock()
	p.writeStats(p.engine.Report().JSON())
}

func (p *Process) writeStats(text []byte) (ok bool) {
	p.written = text
	why := ""
	if err := files.WriteFile(p.env.StatsPath, text); err != nil {
		why = err.Error()
	}
	if why != "" && why != p.failed { // once, however often it is tried
		p.log(settings.LogInfo, "LESSISMORE_STATS: "+why)
	}
	p.failed = why
	return why == ""
}

// keepCurrent writes the statistics again and again, as long as that works.
func (p *Process) keepCurrent() {
	defer p.Guard("statistics")
	every := current
	if p.env.Trace > 0 {
		every = currentTraced
	}
	for ok := true; ok; {
		time.Sleep(every)
		ok = p.update()
	}
}

// update writes the statistics where they have changed, but not while a GPU counts: it would be waited for. False: they
// cannot be written.
func (p *Process) update() (ok bool) {
	p.file.Lock()
	defer p.file.Unlock()
	report, ok := p.engine.ReportAtOnce()
	if !ok {
		return true
	}
	text := report.JSON()
	return bytes.Equal(text, p.written) || p.writeStats(text)
}
