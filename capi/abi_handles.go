package main

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"lessismore/plugin"
)

// Handles are numbers that are given out once, never addresses: one that was freed, or that a caller
// made up, is not found and nothing is touched. Their upper half is that of no address, so a host that
// follows one fails at once.
const (
	handleMark = 0x4c494d00 << 32
	handleMask = 0xffffffff << 32
)

type engineHandle struct {
	engine    *plugin.Engine
	layers    int
	workers   *plugin.Workers // nil: the engine of this process's ggml hosts
	logger    logger
	sequences int // that are alive; under handles.mu
	batches   int // the same
}

type sequenceHandle struct {
	exclusive
	sequence *plugin.Decoder
	engine   *engineHandle
	position int32
	scratch  plugin.Attention // of the call that has taken it
}

type batchHandle struct {
	exclusive
	batch   *plugin.Decoder
	engine  *engineHandle
	scratch plugin.Attention // of the call that has taken it
}

// exclusive is what one thread at a time may use.
type exclusive struct{ busy atomic.Bool }

func (x *exclusive) acquire() bool { return x.busy.CompareAndSwap(false, true) }
func (x *exclusive) release()      { x.busy.Store(false) }

// handles are the live ones.
var handles = struct {
	mu        sync.RWMutex
	next      uint64
	engines   map[uint64]*engineHandle
	sequences map[uint64]*sequenceHandle
	batches   map[uint64]*batchHandle
}{next: 1, engines: map[uint64]*engineHandle{}, sequences: map[uint64]*sequenceHandle{}, batches: map[uint64]*batchHandle{}}

// issue gives a new handle's number; under handles.mu.
func issue() uint64 {
	h := handleMark | handles.next
	handles.next++
	return h
}

func findEngine(handle uint64) (*engineHandle, error) {
	handles.mu.RLock()
	defer handles.mu.RUnlock()
	if e := handles.engines[handle]; e != nil {
		return e, nil
	}
	return nil, unknownHandle("engine", handle)
}

// findCallers finds an engine that a caller made, which alone has sequences and batches.
func findCallers(handle uint64) (*engineHandle, error) {
	e, err := findEngine(handle)
	if err == nil && e.workers == nil {
		err = hosts(handle)
	}
	return e, err
}

// hosts says what is not done to the engine of ggml hosts.
func hosts(handle uint64) error {
	return fault(statusUnsupported, "engine = %#x is that of this process's ggml hosts: it has no sequences or batches, and is not to be freed", handle)
}

// take finds a sequence or batch and marks it as in use; the caller calls release.
func take[H interface {
	comparable
	acquire() bool
}](kind string, of map[uint64]H, handle uint64) (H, error) {
	var none H
	handles.mu.RLock()
	defer handles.mu.RUnlock()
	h := of[handle]
	if h == none {
		return none, unknownHandle(kind, handle)
	}
	if !h.acquire() {
		return none, fault(statusBusy, "%s = %#x is in use by another thread", kind, handle)
	}
	return h, nil
}

func takeSequence(handle uint64) (*sequenceHandle, error) {
	return take("sequence", handles.sequences, handle)
}

func takeBatch(handle uint64) (*batchHandle, error) { return take("batch", handles.batches, handle) }

// create makes a sequence or batch of an engine, of which alive counts those there are. It is counted first: from
// then on the engine cannot be freed.
func create[H comparable](e *engineHandle, engine uint64, alive *int, of map[uint64]H, make func() (H, error)) (handle uint64, err error) {
	var made, none H
	handles.mu.Lock()
	if handles.engines[engine] == e {
		*alive++
	} else {
		err = unknownHandle("engine", engine)
	}
	handles.mu.Unlock()
	if err != nil {
		return 0, err
	}
	defer func() { // after a panic, too
		handles.mu.Lock()
		defer handles.mu.Unlock()
		if made == none {
			*alive--
			return
		}
		handle = issue()
		of[handle] = made
	}()
	made, err = make()
	return
}

// remove ends a handle that the caller has taken, and keeps it so: whoever still holds it is refused.
func remove[H any](alive *int, of map[uint64]H, handle uint64) {
	handles.mu.Lock()
	defer handles.mu.Unlock()
	delete(of, handle)
	*alive--
}

// unknownHandle says what is wrong with a handle; under handles.mu.
func unknownHandle(want string, handle uint64) error {
	switch {
	case handle == 0:
		return fault(statusHandle, "%s = NULL", want)
	case handles.engines[handle] != nil:
		return fault(statusHandle, "%s = %#x is an engine", want, handle)
	case handles.sequences[handle] != nil:
		return fault(statusHandle, "%s = %#x is a sequence", want, handle)
	case handles.batches[handle] != nil:
		return fault(statusHandle, "%s = %#x is a batch", want, handle)
	case handle&handleMask == handleMark && handle&^handleMask < handles.next && handle != handleMark:
		return fault(statusHandle, "%s = %#x has been freed", want, handle)
	}
	return fault(statusHandle, "%s = %#x is no handle of this library", want, handle)
}

// logger is a host's, or none.
type logger struct {
	function unsafe.Pointer
	user     uintptr
}
