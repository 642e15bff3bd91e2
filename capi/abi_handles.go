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
	sequence *plugin.Sequence
	engine   *engineHandle
	scratch  plugin.Attention // of the call that holds busy
	busy     atomic.Bool
}

type batchHandle struct {
	batch   *plugin.Batch
	engine  *engineHandle
	scratch plugin.BatchAttention // of the call that holds busy
	busy    atomic.Bool
}

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

func findSequence(handle uint64) (*sequenceHandle, error) {
	handles.mu.RLock()
	defer handles.mu.RUnlock()
	if s := handles.sequences[handle]; s != nil {
		return s, nil
	}
	return nil, unknownHandle("sequence", handle)
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

// takeSequence finds a sequence and marks it as in use; the caller calls release.
func takeSequence(handle uint64) (*sequenceHandle, error) {
	s, err := findSequence(handle)
	if err != nil {
		return nil, err
	}
	if !s.busy.CompareAndSwap(false, true) {
		return nil, fault(statusBusy, "sequence = %#x is in use by another thread", handle)
	}
	return s, nil
}

func (s *sequenceHandle) release() { s.busy.Store(false) }

// takeBatch finds a batch and marks it as in use; the caller calls release.
func takeBatch(handle uint64) (*batchHandle, error) {
	handles.mu.RLock()
	b := handles.batches[handle]
	var err error
	if b == nil {
		err = unknownHandle("batch", handle)
	}
	handles.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if !b.busy.CompareAndSwap(false, true) {
		return nil, fault(statusBusy, "batch = %#x is in use by another thread", handle)
	}
	return b, nil
}

func (b *batchHandle) release() { b.busy.Store(false) }

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
