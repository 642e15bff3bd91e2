package ggml

import (
	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/ggml/ongpu"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
)

// GPUSession takes part in a context whose graphs a GPU computes: what Plan took is queued by the calls below, see ongpu.
type GPUSession struct {
	Session
	gpu *ongpu.Device
}

// NewGPUSession starts taking part in a context whose graphs a GPU computes; always: in every step with rows beyond the
// budget, also where the host alone would be faster. log may be nil.
func NewGPUSession(e *contexts.Engine, log func(level settings.LogLevel, text string), always bool) *GPUSession {
	s := &GPUSession{}
	s.gpu = ongpu.New(&s.layers, &s.rows, always)
	s.on, s.rows.Mixes = s.gpu, always
	s.start(e, log, kvindex.NewWatched)
	return s
}

// Attend queues an offloaded node.
func (s *GPUSession) Attend(n *graph.Node, before, after uintptr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gpu.Attend(n, before, after)
}

// Capture, Captured and Replay record a step and queue it again.
func (s *GPUSession) Capture() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gpu.Capture()
}

func (s *GPUSession) Captured(number int, before uintptr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gpu.Captured(number, before)
}

func (s *GPUSession) Replay(number int, before, after uintptr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gpu.Replay(number, before, after)
}
