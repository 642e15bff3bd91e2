// Package graph is what the hook reads out of one compute call of a ggml host, and what the plan answers.
package graph

import (
	"unsafe"

	"github.com/x448/float16"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// The structures of this file mirror bindings/ggml/graph.h field by field; the package that links both
// (capi) proves it. They are views of the host's memory, valid while the host's compute call lasts.

// Store and Note are the K/V index's.
type (
	Store = kvindex.Store
	Note  = kvindex.Note
)

// Node is one attention of the host's graph. The host's shim fills Call's tensors and shape; a Session
// fills the rest and Reason.
type Node struct {
	Call             cpu.Call
	Store            kvindex.Store
	Layer            int32 // the model's number
	FirstStream      int32
	Tokens           int32 // query tokens per stream
	Streams          int32
	NKV              int32 // slots per stream that the node sees
	ScanType         cpu.Type
	Scan             unsafe.Pointer // mask values that are there before the graph runs
	Before           unsafe.Pointer // the same of the host's upload before this one, laid out in the same way; nil: not known
	Upload           uint64         // number of the upload that Scan is, on a GPU …
	UploadBefore     uint64         // … and of the one that Before is
	ScanTokenStride  int64
	ScanStreamStride int64
	Mask             unsafe.Pointer // the f16 mask that the node reads when it runs
	MaskTokenStride  int64
	MaskStreamStride int64
	MaxBias          float32
	MaxThreads       int32 // how many of the host's threads may share the call
	Divides          Divides
	Reason           stats.Reason
	What             unsafe.Pointer // texts of the shim's, for the log: what it refuses …
	Type             unsafe.Pointer // … of which type, or else of which value …
	Remedy           unsafe.Pointer // … and what would be supported; nil: the reason alone tells
	Value            int64
	Rest             Rest
}

// Divides is whether the library can take some of a node's rows.
type Divides int32

const (
	Whole    Divides = iota // it cannot
	Divided                 // the host computes the others alone
	Overlaid                // the host computes all of them, and the library some of them once more behind it, at one stride
)

// Rest is the rows of an offloaded node that the host computes itself: those of these tokens, of these streams. All tokens
// of a stream, if there are several streams.
type Rest struct {
	Token, Tokens   int32 // Tokens 0: there are none
	Stream, Streams int32
}

// Write is a write of a batch's keys into a store.
type Write struct {
	Store kvindex.Store
	Slots unsafe.Pointer // [N] int64 (Wide) or int32
	Wide  int32
	N     int32
}

// Slot is the i-th global slot that is written.
func (w *Write) Slot(i int) int64 {
	if w.Wide != 0 {
		return *(*int64)(unsafe.Add(w.Slots, 8*i))
	}
	return int64(*(*int32)(unsafe.Add(w.Slots, 4*i)))
}

// Shift moves the positions of a store's tokens.
type Shift struct {
	Store uint64
	Delta unsafe.Pointer // [N] int32
	N     int32
}

// Change is what a host did to a K store in a GPU's memory, behind its graphs.
type Change struct {
	Store   uint64
	First   int64 // global slot
	N       int64
	From    int64          // of a copy
	Prints  unsafe.Pointer // [NPrints] uint64, of the rows; nil: they are not told apart
	NPrints int64
	Kind    ChangeKind
	_       int32
}

// ChangeKind is what was done.
type ChangeKind int32

const (
	Written ChangeKind = iota
	Copied             // from the same store
	ReadOut            // nothing has changed, but these rows may come back
	Cleared            // all stores in the N bytes from address Store on
)

// Answers that are no store.
const (
	AnyStore = 0
	NoStore  = 1
)

// Graph is what one compute call of the host consists of, as far as attention is concerned.
type Graph struct {
	Nodes     []Node
	Writes    []Write
	Shifts    []Shift
	Rewritten []uint64 // stores that are changed in a way that is not understood
	Positions []int32  // of the batch's tokens; nil: this part of the graph has none, or several
	Rotations int      // nodes that rotate by position, understood or not
	Outputs   []int32  // numbers of the batch's tokens that logits are wanted of, ascending
	Batch     int      // tokens of the batch that Outputs counts in; 0: this part of the graph does not tell
	SoftMax   int      // masked softmax nodes: attention that runs without flash attention
	Weights   uint64   // hash of the weights and adapters in this part of the graph; a sum over them, so parts add up
	Adapters  uint64   // which adapters are applied to them, and how much, and to which of the models that were served

	FirstBlock, LastBlock int32 // of the model, whose weights were hashed; FirstBlock -1: of none
	Ends                  int32 // 1: so were those that follow the last block

	Host uint64 // number of the host's context, as far as its devices have shown by copies from one to another that they are of one; 0: not known

	KnowsWeights bool           // the answer: no more hashes are wanted
	Notes        []kvindex.Note // the answer, in C memory

	Changes  []Change // of stores on a GPU since the last graph, oldest first
	Lost     bool     // there were more than these
	Computed bool     // by the host: nothing can be taken any more
	Records  bool     // on a GPU, steps that are alike are recorded and replayed
	Form     uint64   // the answer, on a GPU: equal graphs of equal forms queue the same; 0: this one is like no other
	Later    bool     // the answer: nothing would be taken of the next graph, it may be computed before it is planned
	Trial    bool     // the answer: to be computed twice, see Retrier
	Output   int      // whose logits tell the two apart: the number among those that logits are wanted of, …
	Rows     int      // … or, where the graph does not tell, among all rows of the batch
	Mixes    bool     // the answer, on a GPU: decode rows are taken out of batches with a prompt's, whose masks are to be kept
	Followed uint64   // the answer, on a GPU: the store whose rows are to be told apart, AnyStore or NoStore
}

// Retrier is a context whose graphs may be computed twice (Graph.Trial): as planned, and then with everything.
type Retrier interface {
	// Again has a graph that was computed once attend to everything, the second time. False: its nodes have to be the host's.
	Again(nodes []Node) bool
	// Tried takes how far the first result was from the second, in nats, and whether they are the same bits.
	Tried(nats float64, same bool)
	// Untried has a graph attend to everything that was not computed so far and cannot be computed twice. False as in Again.
	Untried(nodes []Node, why string) bool
}

// Undecide leaves to the host what was to be offloaded: the model's layers are not known after all.
func (g *Graph) Undecide() {
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Reason == stats.Offloaded {
			n.Reason = stats.ReasonDiscovery
		}
	}
}

// Values is the row of mask values of one query token.
func (n *Node) Values(stream, token int) unsafe.Pointer {
	return unsafe.Add(n.Scan, int64(stream)*n.ScanStreamStride+int64(token)*n.ScanTokenStride)
}

// ValueSize is the size of one of them.
func (n *Node) ValueSize() int {
	if n.ScanType == cpu.F32 {
		return 4
	}
	return 2
}

// ValueBytes are those of one query token.
func (n *Node) ValueBytes(stream, token int) []byte {
	return unsafe.Slice((*byte)(n.Values(stream, token)), n.ValueSize()*int(n.NKV))
}

// Sees tells whether a query token's mask leaves a slot visible.
func (n *Node) Sees(stream, token int, slot int64) bool {
	row := n.Values(stream, token)
	if n.ScanType == cpu.F16 {
		return *(*float16.Float16)(unsafe.Add(row, 2*slot)) != steps.MinusInfinity
	}
	return *(*uint32)(unsafe.Add(row, 4*slot)) != 0xFF800000
}
