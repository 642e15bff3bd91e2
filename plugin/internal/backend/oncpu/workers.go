package oncpu

import (
	"runtime"
	"sync"

	"lessismore/plugin/internal/cpu"
)

// Workers are the threads of an engine whose callers bring none. A team runs one call at a time, so a
// decoder borrows one for each call: there are as many teams as decoders ever attended at once, and a
// host that decodes its rows in turn has one. Safe for use from several threads.
type Workers struct {
	size int

	mu   sync.Mutex
	Idle []*cpu.Pool
}

// NewWorkers makes teams of that many threads, the caller's own included; 0 stands for one per CPU.
// No thread starts before it is needed.
func NewWorkers(size int) *Workers {
	if size == 0 {
		size = runtime.NumCPU()
	}
	return &Workers{size: size}
}

// borrow gives a team; nil when the system has no threads for one.
func (w *Workers) borrow() *cpu.Pool {
	w.mu.Lock()
	if n := len(w.Idle); n > 0 {
		p := w.Idle[n-1]
		w.Idle = w.Idle[:n-1]
		w.mu.Unlock()
		return p
	}
	w.mu.Unlock()
	return cpu.NewPool(w.size)
}

func (w *Workers) giveBack(p *cpu.Pool) {
	w.mu.Lock()
	w.Idle = append(w.Idle, p)
	w.mu.Unlock()
}

// Free ends the threads. No decoder may be attending.
func (w *Workers) Free() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.Idle {
		p.Free()
	}
	w.Idle = nil
}
