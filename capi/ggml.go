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
	"runtime/cgo"
	"sync"
	"unsafe"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/host"
)

// process is the library in this process, where ggml hosts have loaded it.
var process host.Process

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

// about is the text that a function of the shim's leaves.
func about(ask func(text *C.char, size C.size_t)) string {
	text := make([]byte, 512)
	ask((*C.char)(unsafe.Pointer(&text[0])), C.size_t(len(text)))
	return C.GoString((*C.char)(unsafe.Pointer(&text[0])))
}

// number is a flag for C.
func number(flag bool) C.int {
	if flag {
		return 1
	}
	return 0
}

// installing orders the hosts that load the library.
var installing sync.Mutex

//export lim_go_ggml_init
func lim_go_ggml_init(caller unsafe.Pointer) (registry unsafe.Pointer) {
	defer process.Guard("ggml_backend_init")
	installing.Lock()
	defer installing.Unlock()
	first, hook := process.Configure(lookup)
	if first {
		C.lim_ggml_at_exit()
	}
	var found C.lim_ggml_found
	loader := about(func(text *C.char, size C.size_t) {
		registry = C.lim_ggml_install(caller, number(hook), &found, text, size)
	})
	switch {
	case !hook: // why was said
	case found == C.LIM_GGML_NEW:
		process.Hooked(loader)
		n := C.int(0)
		gpus := about(func(text *C.char, size C.size_t) {
			n = C.lim_ggml_install_gpus(caller, number(process.WantsGPUs()), text, size)
		})
		process.GPUs(int(n), gpus)
	case registry == nil:
		process.NotHooked(loader, found == C.LIM_GGML_EARLY)
	}
	return registry
}

//export lim_go_ggml_open
func lim_go_ggml_open(kind C.int) (handle C.uintptr_t) {
	defer process.Guard("init_backend")
	switch kind {
	case C.LIM_GGML_REHEARSAL:
		c, err := process.Rehearse()
		if err != nil {
			return 0
		}
		return C.uintptr_t(cgo.NewHandle(c))
	case C.LIM_GGML_GPU_REHEARSAL:
		c, err := process.RehearseGPU(C.LIM_GGML_REHEARSED_BUDGET)
		if err != nil {
			return 0
		}
		return C.uintptr_t(cgo.NewHandle(c))
	case C.LIM_GGML_GPU:
		return C.uintptr_t(cgo.NewHandle(process.OpenGPU()))
	}
	return C.uintptr_t(cgo.NewHandle(process.Open()))
}

//export lim_go_ggml_plan
func lim_go_ggml_plan(handle C.uintptr_t, from *C.lim_ggml_graph) {
	nodes := unsafe.Slice((*graph.Node)(unsafe.Pointer(from.nodes)), from.n_nodes)
	done := false
	defer func() {
		if !done { // a panic: the host keeps everything
			for i := range nodes {
				nodes[i].Reason = graph.Failed
			}
		}
	}()
	defer process.Guard("graph_compute")
	g := graph.Graph{
		Nodes:     nodes,
		Writes:    unsafe.Slice((*graph.Write)(unsafe.Pointer(from.writes)), from.n_writes),
		Shifts:    unsafe.Slice((*graph.Shift)(unsafe.Pointer(from.shifts)), from.n_shifts),
		Rewritten: unsafe.Slice((*uint64)(from.rewritten), from.n_rewritten),
		Rotations: int(from.n_rotations),
		SoftMax:   int(from.n_soft_max),
		Weights:   uint64(from.weights),
		Adapters:  uint64(from.adapters),

		Changes: unsafe.Slice((*graph.Change)(unsafe.Pointer(from.changes)), from.n_changes),
		Lost:    from.lost != 0, Computed: from.computed != 0, Records: from.records != 0,

		FirstBlock: int32(from.first_block), LastBlock: int32(from.last_block), Ends: int32(from.ends),
		Host: uint64(from.host),
	}
	if from.n_outputs >= 0 {
		g.Batch = int(from.n_batch)
		g.Outputs = unsafe.Slice((*int32)(from.outputs), from.n_outputs)
	}
	if from.positions != nil {
		g.Positions = unsafe.Slice((*int32)(from.positions), from.n_positions)
	}
	cgo.Handle(handle).Value().(host.Context).Plan(&g)
	if g.KnowsWeights {
		from.knows_weights = 1
	}
	from.followed, from.later, from.form = C.uint64_t(g.Followed), number(g.Later), C.uint64_t(g.Form)
	from.mixes = number(g.Mixes)
	from.trial, from.output, from.rows = number(g.Trial), C.int32_t(g.Output), C.int32_t(g.Rows)
	from.notes, from.n_notes = (*C.lim_ggml_note)(unsafe.Pointer(unsafe.SliceData(g.Notes))), C.int64_t(len(g.Notes))
	done = true
}

// retry has a context whose graphs may be computed twice direct a graph's nodes once more; 1: it failed, or panicked, and they are the host's.
func retry(handle C.uintptr_t, from *C.lim_ggml_graph, do func(c graph.Retrier, nodes []graph.Node) bool) (failed C.int) {
	failed = 1
	defer process.Guard("graph_compute")
	if do(cgo.Handle(handle).Value().(graph.Retrier), unsafe.Slice((*graph.Node)(unsafe.Pointer(from.nodes)), from.n_nodes)) {
		failed = 0
	}
	return failed
}

//export lim_go_ggml_again
func lim_go_ggml_again(handle C.uintptr_t, from *C.lim_ggml_graph) C.int {
	return retry(handle, from, graph.Retrier.Again)
}

//export lim_go_ggml_tried
func lim_go_ggml_tried(handle C.uintptr_t, nats C.double, same C.int) {
	defer process.Guard("graph_compute")
	cgo.Handle(handle).Value().(graph.Retrier).Tried(float64(nats), same != 0)
}

//export lim_go_ggml_untried
func lim_go_ggml_untried(handle C.uintptr_t, from *C.lim_ggml_graph, why *C.char) C.int {
	text := C.GoString(why)
	return retry(handle, from, func(c graph.Retrier, nodes []graph.Node) bool { return c.Untried(nodes, text) })
}

// onGPU is a context of a GPU's.
type onGPU interface {
	Attend(n *graph.Node, before, after uintptr) error
	Capture() error
	Captured(number int, before uintptr) error
	Replay(number int, before, after uintptr) error
}

// queue has a context of a GPU's do something; 1: it failed, or panicked.
func queue(handle C.uintptr_t, do func(c onGPU) error) (failed C.int) {
	failed = 1
	defer process.Guard("graph_compute")
	if do(cgo.Handle(handle).Value().(onGPU)) == nil {
		failed = 0
	}
	return failed
}

//export lim_go_ggml_attend
func lim_go_ggml_attend(handle C.uintptr_t, node *C.lim_ggml_node, before, after unsafe.Pointer) C.int {
	return queue(handle, func(c onGPU) error {
		return c.Attend((*graph.Node)(unsafe.Pointer(node)), uintptr(before), uintptr(after))
	})
}

//export lim_go_ggml_capture
func lim_go_ggml_capture(handle C.uintptr_t) C.int {
	return queue(handle, onGPU.Capture)
}

//export lim_go_ggml_captured
func lim_go_ggml_captured(handle C.uintptr_t, number C.int, before unsafe.Pointer) C.int {
	return queue(handle, func(c onGPU) error { return c.Captured(int(number), uintptr(before)) })
}

//export lim_go_ggml_replay
func lim_go_ggml_replay(handle C.uintptr_t, number C.int, before, after unsafe.Pointer) C.int {
	return queue(handle, func(c onGPU) error { return c.Replay(int(number), uintptr(before), uintptr(after)) })
}

//export lim_go_ggml_close
func lim_go_ggml_close(of C.uintptr_t) {
	defer process.Guard("free")
	handle := cgo.Handle(of)
	c := handle.Value().(host.Context)
	handle.Delete()
	process.Close(c)
}

//export lim_go_ggml_problem
func lim_go_ggml_problem(text *C.char) {
	defer process.Guard("problem")
	process.Problem(C.GoString(text))
}

//export lim_go_ggml_left_alone
func lim_go_ggml_left_alone(text *C.char) {
	defer process.Guard("left_alone")
	process.LeftAlone(C.GoString(text))
}

//export lim_go_ggml_exit
func lim_go_ggml_exit() {
	defer process.Guard("exit")
	process.WriteStats()
}

// Both sides of what crosses the edge agree, or this does not compile.
var (
	_ [unsafe.Sizeof(graph.Node{}) - C.sizeof_lim_ggml_node]struct{}
	_ [C.sizeof_lim_ggml_node - unsafe.Sizeof(graph.Node{})]struct{}
	_ [unsafe.Sizeof(graph.Write{}) - C.sizeof_lim_ggml_write]struct{}
	_ [C.sizeof_lim_ggml_write - unsafe.Sizeof(graph.Write{})]struct{}
	_ [unsafe.Sizeof(graph.Shift{}) - C.sizeof_lim_ggml_shift]struct{}
	_ [C.sizeof_lim_ggml_shift - unsafe.Sizeof(graph.Shift{})]struct{}
	_ [unsafe.Sizeof(graph.Note{}) - C.sizeof_lim_ggml_note]struct{}
	_ [C.sizeof_lim_ggml_note - unsafe.Sizeof(graph.Note{})]struct{}
	_ [unsafe.Sizeof(graph.Change{}) - C.sizeof_lim_ggml_change]struct{}
	_ [C.sizeof_lim_ggml_change - unsafe.Sizeof(graph.Change{})]struct{}

	_ = [1]int{}[unsafe.Offsetof(graph.Change{}.NPrints)-unsafe.Offsetof(C.lim_ggml_change{}.n_prints)]
	_ = [1]int{}[unsafe.Offsetof(graph.Change{}.Kind)-unsafe.Offsetof(C.lim_ggml_change{}.kind)]
	_ = [1]int{}[graph.Cleared-C.LIM_GGML_CLEARED]
	_ = [1]int{}[unsafe.Offsetof(graph.Store{}.Stride)-unsafe.Offsetof(C.lim_ggml_store{}.stride)]
	_ = [1]int{}[unsafe.Offsetof(graph.Store{}.Row)-unsafe.Offsetof(C.lim_ggml_store{}.row)]
	_ = [1]int{}[unsafe.Offsetof(graph.Note{}.Slots)-unsafe.Offsetof(C.lim_ggml_note{}.slots)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Store)-unsafe.Offsetof(C.lim_ggml_node{}.store)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Layer)-unsafe.Offsetof(C.lim_ggml_node{}.layer)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.NKV)-unsafe.Offsetof(C.lim_ggml_node{}.n_kv)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Scan)-unsafe.Offsetof(C.lim_ggml_node{}.scan)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Before)-unsafe.Offsetof(C.lim_ggml_node{}.before)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.UploadBefore)-unsafe.Offsetof(C.lim_ggml_node{}.upload_before)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Mask)-unsafe.Offsetof(C.lim_ggml_node{}.mask)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.MaxBias)-unsafe.Offsetof(C.lim_ggml_node{}.max_bias)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Reason)-unsafe.Offsetof(C.lim_ggml_node{}.reason)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.What)-unsafe.Offsetof(C.lim_ggml_node{}.what)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Remedy)-unsafe.Offsetof(C.lim_ggml_node{}.remedy)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Divides)-unsafe.Offsetof(C.lim_ggml_node{}.divides)]
	_ = [1]int{}[graph.Overlaid-C.LIM_GGML_OVERLAID]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Rest.Tokens)+unsafe.Offsetof(graph.Node{}.Rest)-unsafe.Offsetof(C.lim_ggml_node{}.rest_tokens)]
	_ = [1]int{}[unsafe.Offsetof(graph.Node{}.Value)-unsafe.Offsetof(C.lim_ggml_node{}.value)]
	_ = [1]int{}[unsafe.Offsetof(graph.Write{}.Slots)-unsafe.Offsetof(C.lim_ggml_write{}.slots)]
	_ = [1]int{}[unsafe.Offsetof(graph.Write{}.N)-unsafe.Offsetof(C.lim_ggml_write{}.n)]
	_ = [1]int{}[unsafe.Offsetof(graph.Shift{}.Delta)-unsafe.Offsetof(C.lim_ggml_shift{}.delta)]

	_ = [1]int{}[graph.NoCache-C.LIM_GGML_NO_CACHE]
	_ = [1]int{}[graph.MLA-C.LIM_GGML_MLA]
	_ = [1]int{}[graph.Type-C.LIM_GGML_TYPE]
	_ = [1]int{}[graph.Shape-C.LIM_GGML_SHAPE]
	_ = [1]int{}[graph.SparseHint-C.LIM_GGML_SPARSE_HINT]
)
