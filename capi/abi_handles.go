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
	engine   *plugin.Engine
	layers   int
	workers  *plugin.Workers // nil: the engine of this process's ggml hosts
	logger   logger
	decoders int // that are alive; under handles.mu
}

type decoderHandle struct {
	busy    atomic.Bool // one thread at a time may use it
	decoder *plugin.Decoder
	engine  *engineHandle
	scratch plugin.Attention // of the call that has taken it
}

func (d *decoderHandle) release() { d.busy.Store(false) }

// handles are the live ones.
var handles = struct {
	mu       sync.RWMutex
	next     uint64
	engines  map[uint64]*engineHandle
	decoders map[uint64]*decoderHandle
	ggml     uint64 // the engine of this process's ggml hosts; 0: nobody has asked for it
}{next: 1, engines: map[uint64]*engineHandle{}, decoders: map[uint64]*decoderHandle{}}

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

// findCallers finds an engine that a caller made, which alone has decoders.
func findCallers(handle uint64) (*engineHandle, error) {
	e, err := findEngine(handle)
	if err == nil && e.workers == nil {
		err = hosts(handle)
	}
	return e, err
}

// hosts says what is not done to the engine of ggml hosts.
func hosts(handle uint64) error {
	return fault(statusUnsupported, "engine = %#x is that of this process's ggml hosts: it has no decoders, and is not to be freed", handle)
}

// take finds a decoder and marks it as in use; the caller calls release.
func take(handle uint64) (*decoderHandle, error) {
	handles.mu.RLock()
	defer handles.mu.RUnlock()
	d := handles.decoders[handle]
	if d == nil {
		return nil, unknownHandle("decoder", handle)
	}
	if !d.busy.CompareAndSwap(false, true) {
		return nil, fault(statusBusy, "decoder = %#x is in use by another thread", handle)
	}
	return d, nil
}

// create makes a decoder of an engine. It is counted first: from then on the engine cannot be freed.
func create(e *engineHandle, engine uint64, params plugin.DecoderParams) (handle uint64, err error) {
	handles.mu.Lock()
	if handles.engines[engine] == e {
		e.decoders++
	} else {
		err = unknownHandle("engine", engine)
	}
	handles.mu.Unlock()
	if err != nil {
		return 0, err
	}
	var made *plugin.Decoder
	defer func() { // after a panic, too
		handles.mu.Lock()
		defer handles.mu.Unlock()
		if made == nil {
			e.decoders--
			return
		}
		handle = issue()
		handles.decoders[handle] = &decoderHandle{decoder: made, engine: e}
	}()
	made, err = plugin.NewDecoder(e.engine, e.layers, e.workers, params)
	return
}

// remove ends a handle that the caller has taken, and keeps it so: whoever still holds it is refused.
func remove(d *decoderHandle, handle uint64) {
	handles.mu.Lock()
	defer handles.mu.Unlock()
	delete(handles.decoders, handle)
	d.engine.decoders--
}

// unknownHandle says what is wrong with a handle; under handles.mu.
func unknownHandle(want string, handle uint64) error {
	switch {
	case handle == 0:
		return fault(statusHandle, "%s = NULL", want)
	case handles.engines[handle] != nil:
		return fault(statusHandle, "%s = %#x is an engine", want, handle)
	case handles.decoders[handle] != nil:
		return fault(statusHandle, "%s = %#x is a decoder", want, handle)
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
