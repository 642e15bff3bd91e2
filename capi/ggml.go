package main

/*
#cgo CFLAGS: -I${SRCDIR}/../kernels/cpu -I${SRCDIR}/../bindings/ggml
#cgo LDFLAGS: -L${SRCDIR}/../build/cmake/lib -llim_ggml -llim_cpu -ldl -lm -lpthread
#cgo !libcxx LDFLAGS: -l:libstdc++.a
#cgo libcxx LDFLAGS: -lc++
#define _GNU_SOURCE
#include <stdlib.h>
#include "hook.h"
*/
import "C"

import (
	"fmt"
	"path/filepath"
	"runtime/cgo"
	"runtime/debug"
	"sync"
	"syscall"
	"unsafe"

	"lessismore/plugin"
)

// host is the process-wide state of the ggml way in: one engine, configured by the environment.
var host struct {
	sync.Mutex
	engine *plugin.Engine
	env    plugin.Environment
	byCell bool
	hooked bool   // at least one host is taken part in
	handle uint64 // of the engine, in the C ABI; 0: nobody has asked
}

// lookup reads the environment as C sees it: Go's own copy is from the start of the process, and hosts
// in Python set variables later. Not from a set-user-ID program.
func lookup(name string) (string, bool) {
	c := C.CString(name)
	defer C.free(unsafe.Pointer(c))
	value := C.secure_getenv(c)
	if value == nil {
		return "", false
	}
	return C.GoString(value), true
}

// profileDir is where profiles are kept; "" without a home.
func profileDir() string {
	if dir, _ := lookup("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lessismore", "profiles")
	}
	if dir, _ := lookup("HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, ".cache", "lessismore", "profiles")
	}
	return ""
}

func logLine(level plugin.LogLevel, text string) {
	if level <= host.env.Log {
		// Not through os.Stderr: Go ends the process when that is a pipe that nobody reads any more.
		_, _ = syscall.Write(2, []byte("lessismore: "+text+"\n"))
	}
}

// guard keeps a panic from crossing the C edge: the library switches itself off.
func guard(where string) {
	if p := recover(); p != nil {
		text := fmt.Sprintf("internal error in %s: %v", where, p)
		logLine(plugin.LogInfo, "inert: "+text)
		logLine(plugin.LogDebug, string(debug.Stack()))
		if host.engine != nil {
			host.engine.Disable(text)
		}
	}
}

//export lim_go_ggml_init
func lim_go_ggml_init(caller unsafe.Pointer) (registry unsafe.Pointer) {
	defer guard("ggml_backend_init")
	host.Lock()
	defer host.Unlock()
	if host.engine == nil {
		configure()
	}
	hook := C.int(1)
	if host.engine.Disabled() {
		hook = 0
	}
	text := make([]byte, 512)
	var found C.lim_ggml_found
	registry = C.lim_ggml_install(caller, hook, &found, (*C.char)(unsafe.Pointer(&text[0])), C.size_t(len(text)))
	about := C.GoString((*C.char)(unsafe.Pointer(&text[0])))
	switch {
	case hook == 0: // why was said
	case found == C.LIM_GGML_NEW:
		host.hooked = true
		host.engine.Hold("")
		loaded(about)
		hookGPUs(caller)
	case registry != nil: // loaded again
	case host.hooked:
		logLine(plugin.LogInfo, "another copy of ggml in this process is left alone: "+about)
	case host.engine.Inert() == about: // that was said
	default: // a later load, or another copy of ggml, may be one that works
		host.engine.Hold(about)
		state := "inert: "
		if found == C.LIM_GGML_EARLY {
			state = "waiting: "
		}
		logLine(plugin.LogInfo, state+about)
	}
	return registry
}

// loaded says what the library does in a host from now on.
func loaded(about string) {
	c := host.env.Config
	layers := "found by measuring"
	if c.Layers != nil {
		layers = fmt.Sprint(c.Layers)
	}
	logLine(plugin.LogInfo, fmt.Sprintf("%s loaded into %s (%s kernels): budget %d tokens, selection layers %s",
		plugin.Version, about, host.engine.Report().Target, c.Budget, layers))
}

// hookGPUs takes part in the host's CUDA devices where that is asked for, and says what becomes of them.
func hookGPUs(caller unsafe.Pointer) {
	hook := C.int(0)
	if host.env.CUDA {
		hook = 1
	}
	text := make([]byte, 512)
	n := C.lim_ggml_install_gpus(caller, hook, (*C.char)(unsafe.Pointer(&text[0])), C.size_t(len(text)))
	about := C.GoString((*C.char)(unsafe.Pointer(&text[0])))
	switch {
	case n > 0 && hook != 0:
		logLine(plugin.LogInfo, about+": taken part in (LESSISMORE_CUDA=on)")
	case n > 0:
		logLine(plugin.LogInfo, about+": left alone, what is computed there stays as it is (LESSISMORE_CUDA=on takes part)")
	case n < 0:
		logLine(plugin.LogInfo, "CUDA devices are left alone: "+about)
	case hook != 0:
		logLine(plugin.LogInfo, "LESSISMORE_CUDA=on, but this host has no CUDA device")
	}
}

// configure makes the engine from the environment. A wrong value makes it inert, with one clear line.
func configure() {
	env, err := plugin.FromEnvironment(lookup)
	if err != nil {
		env.Config = plugin.DefaultConfig()
	}
	if env.StatsPath != "" { // hosts may change their directory
		if path, err := filepath.Abs(env.StatsPath); err == nil {
			env.StatsPath = path
		}
	}
	host.env = env
	host.engine, _ = plugin.NewEngine(env.Config)
	if env.Profiles {
		host.engine.Keep(plugin.Profiles{Dir: profileDir(), Path: env.Profile})
	}
	switch {
	case err != nil:
		host.engine.Disable(err.Error())
		logLine(plugin.LogInfo, "inert: "+err.Error())
	case !env.Enabled:
		host.engine.Disable("switched off by LESSISMORE")
		logLine(plugin.LogInfo, "switched off by LESSISMORE")
	}
	order, _ := lookup("LESSISMORE_TEST_ORDER")
	host.byCell = order == "cell"
	C.lim_ggml_at_exit()
}

// session takes part in one context of a host.
type session interface {
	Plan(*plugin.Graph)
	Stats() plugin.Stats
	Close()
}

// rehearsal is the self-test's session.
type rehearsal struct{ *plugin.Session }

// rehearse starts a session that attends to everything, whatever the settings: the self-test's rows are below its budget.
func rehearse() C.uintptr_t {
	config := plugin.DefaultConfig()
	config.Layers = []int{0}
	engine, err := plugin.NewEngine(config)
	if err != nil {
		return 0
	}
	return C.uintptr_t(cgo.NewHandle(rehearsal{engine.NewSession(nil)}))
}

//export lim_go_ggml_open
func lim_go_ggml_open(kind C.int) (handle C.uintptr_t) {
	defer guard("init_backend")
	switch kind {
	case C.LIM_GGML_REHEARSAL:
		return rehearse()
	case C.LIM_GGML_GPU:
		return C.uintptr_t(cgo.NewHandle(host.engine.NewGPUSession(logLine)))
	}
	s := host.engine.NewSession(logLine)
	if host.byCell {
		s.OrderByCell()
	}
	return C.uintptr_t(cgo.NewHandle(s))
}

//export lim_go_ggml_plan
func lim_go_ggml_plan(handle C.uintptr_t, graph *C.lim_ggml_graph) {
	nodes := unsafe.Slice((*plugin.Node)(unsafe.Pointer(graph.nodes)), graph.n_nodes)
	done := false
	defer func() {
		if !done { // a panic: the host keeps everything
			for i := range nodes {
				nodes[i].Reason = plugin.ReasonFailed
			}
		}
	}()
	defer guard("graph_compute")
	g := plugin.Graph{
		Nodes:     nodes,
		Writes:    unsafe.Slice((*plugin.Write)(unsafe.Pointer(graph.writes)), graph.n_writes),
		Shifts:    unsafe.Slice((*plugin.Shift)(unsafe.Pointer(graph.shifts)), graph.n_shifts),
		Rewritten: unsafe.Slice((*uint64)(graph.rewritten), graph.n_rewritten),
		Rotations: int(graph.n_rotations),
		SoftMax:   int(graph.n_soft_max),
		Weights:   uint64(graph.weights),
		Adapters:  uint64(graph.adapters),

		FirstBlock: int32(graph.first_block), LastBlock: int32(graph.last_block), Ends: int32(graph.ends),
	}
	if graph.n_outputs >= 0 {
		g.Batch = int(graph.n_batch)
		g.Outputs = unsafe.Slice((*int32)(graph.outputs), graph.n_outputs)
	}
	if graph.positions != nil {
		g.Positions = unsafe.Slice((*int32)(graph.positions), graph.n_positions)
	}
	cgo.Handle(handle).Value().(session).Plan(&g)
	if g.KnowsWeights {
		graph.knows_weights = 1
	}
	graph.notes, graph.n_notes = (*C.lim_ggml_note)(unsafe.Pointer(unsafe.SliceData(g.Notes))), C.int64_t(len(g.Notes))
	done = true
}

//export lim_go_ggml_attend
func lim_go_ggml_attend(handle C.uintptr_t, node *C.lim_ggml_node, before, after unsafe.Pointer) (failed C.int) {
	failed = 1 // a panic: the host computes the node itself
	defer guard("graph_compute")
	s := cgo.Handle(handle).Value().(*plugin.GPUSession)
	if s.Attend((*plugin.Node)(unsafe.Pointer(node)), uintptr(before), uintptr(after)) == nil {
		failed = 0
	}
	return failed
}

//export lim_go_ggml_close
func lim_go_ggml_close(of C.uintptr_t) {
	defer guard("free")
	handle := cgo.Handle(of)
	s := handle.Value().(session)
	handle.Delete()
	s.Close()
	if _, ok := s.(rehearsal); ok {
		return
	}
	c := s.Stats()
	if text := c.Outcome(); text != "" {
		logLine(plugin.LogInfo, "context freed: "+text)
	}
	writeStats()
}

//export lim_go_ggml_problem
func lim_go_ggml_problem(text *C.char) {
	defer guard("problem")
	reason := C.GoString(text)
	host.engine.Disable(reason)
	logLine(plugin.LogInfo, "inert: "+reason)
}

//export lim_go_ggml_exit
func lim_go_ggml_exit() {
	defer guard("exit")
	writeStats()
}

// statsFile orders the writers of the file: contexts may end on several threads.
var statsFile sync.Mutex

func writeStats() {
	if host.env.StatsPath == "" {
		return
	}
	statsFile.Lock()
	defer statsFile.Unlock()
	if err := plugin.WriteFile(host.env.StatsPath, host.engine.Report().JSON()); err != nil {
		logLine(plugin.LogInfo, "LESSISMORE_STATS: "+err.Error())
	}
}

// Both sides of what crosses the edge agree, or this does not compile.
var (
	_ [unsafe.Sizeof(plugin.Node{}) - C.sizeof_lim_ggml_node]struct{}
	_ [C.sizeof_lim_ggml_node - unsafe.Sizeof(plugin.Node{})]struct{}
	_ [unsafe.Sizeof(plugin.Write{}) - C.sizeof_lim_ggml_write]struct{}
	_ [C.sizeof_lim_ggml_write - unsafe.Sizeof(plugin.Write{})]struct{}
	_ [unsafe.Sizeof(plugin.Shift{}) - C.sizeof_lim_ggml_shift]struct{}
	_ [C.sizeof_lim_ggml_shift - unsafe.Sizeof(plugin.Shift{})]struct{}
	_ [unsafe.Sizeof(plugin.Note{}) - C.sizeof_lim_ggml_note]struct{}
	_ [C.sizeof_lim_ggml_note - unsafe.Sizeof(plugin.Note{})]struct{}

	_ = [1]int{}[unsafe.Offsetof(plugin.Store{}.Stride)-unsafe.Offsetof(C.lim_ggml_store{}.stride)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Store{}.Row)-unsafe.Offsetof(C.lim_ggml_store{}.row)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Note{}.Slots)-unsafe.Offsetof(C.lim_ggml_note{}.slots)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.Store)-unsafe.Offsetof(C.lim_ggml_node{}.store)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.Layer)-unsafe.Offsetof(C.lim_ggml_node{}.layer)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.NKV)-unsafe.Offsetof(C.lim_ggml_node{}.n_kv)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.Scan)-unsafe.Offsetof(C.lim_ggml_node{}.scan)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.Mask)-unsafe.Offsetof(C.lim_ggml_node{}.mask)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.MaxBias)-unsafe.Offsetof(C.lim_ggml_node{}.max_bias)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.Reason)-unsafe.Offsetof(C.lim_ggml_node{}.reason)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.What)-unsafe.Offsetof(C.lim_ggml_node{}.what)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.Remedy)-unsafe.Offsetof(C.lim_ggml_node{}.remedy)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Node{}.Value)-unsafe.Offsetof(C.lim_ggml_node{}.value)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Write{}.Slots)-unsafe.Offsetof(C.lim_ggml_write{}.slots)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Write{}.N)-unsafe.Offsetof(C.lim_ggml_write{}.n)]
	_ = [1]int{}[unsafe.Offsetof(plugin.Shift{}.Delta)-unsafe.Offsetof(C.lim_ggml_shift{}.delta)]

	_ = [1]int{}[plugin.ReasonNoCache-C.LIM_GGML_NO_CACHE]
	_ = [1]int{}[plugin.ReasonMLA-C.LIM_GGML_MLA]
	_ = [1]int{}[plugin.ReasonType-C.LIM_GGML_TYPE]
	_ = [1]int{}[plugin.ReasonShape-C.LIM_GGML_SHAPE]
	_ = [1]int{}[plugin.ReasonSparseHint-C.LIM_GGML_SPARSE_HINT]
)
