// Package hugepages has the kernel lay memory that each decode step reads into huge pages.
//
// K and V of a long context are gigabytes. In pages of 4 KB the rows of a token set lie in thousands of them, and their page tables are
// megabytes that the rows themselves drive out of the caches: most rows then cost a further read from memory. Hosts do not ask for
// huge pages, and many systems give them only where they are asked for. So what is there already is moved, a page at a time, by
// madvise(MADV_COLLAPSE) of Linux 6.1: addresses and contents stay, whoever else reads or writes them.
package hugepages

import (
	"bytes"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	collapse = 25 // MADV_COLLAPSE; package syscall is older

	largest  = 32 << 20              // a huge page that is larger than this (512 MB on some ARM systems) is too much to move at once
	part     = 10                    // moving takes one part in so many of a thread's time
	rest     = 20 * time.Millisecond // between two pages, at least
	pause    = time.Second           // where there is nothing to move
	patience = 8                     // pages in a row that the kernel did not move (no room, a kernel before 6.1); then no more are asked for
)

// Range is memory that is read again and again, and grows.
type Range struct {
	begin, end atomic.Uintptr

	// The mover's own.
	from, to uintptr // what lies in huge pages, or was passed over
	passed   uintptr // bytes of it that were
}

// Use says that the memory from begin to end is in use; what was said of the same begin before stays true. It waits for nothing and
// allocates nothing.
func (r *Range) Use(begin, end uintptr) {
	if r.begin.Load() != begin {
		r.end.Store(0) // lest the old end is taken for the new memory's
		r.begin.Store(begin)
	}
	if r.end.Load() < end {
		r.end.Store(end)
	}
}

// Mover moves what its ranges hold, in the background.
type Mover struct {
	Ranges []Range

	size    uintptr // of a huge page
	madvise func(at, size uintptr) syscall.Errno
	held    atomic.Uint64
	refused int // in a row
	stop    chan struct{}
}

// Start begins to move what so many ranges will hold. It is nil where the system has no huge pages, or its owner wants none.
func Start(ranges int) *Mover {
	size := sizeAt("/sys/kernel/mm/transparent_hugepage/")
	if size == 0 {
		return nil
	}
	m := &Mover{Ranges: make([]Range, ranges), size: size, madvise: madvise, stop: make(chan struct{})}
	go m.run()
	return m
}

// Bytes is how much lies in huge pages.
func (m *Mover) Bytes() uint64 { return m.held.Load() }

// Stop ends it, at the latest behind the page that is being moved: that the memory may be gone by then does no harm. Not waited for,
// since in a forked process nobody would answer.
func (m *Mover) Stop() { close(m.stop) }

// sizeAt is a huge page's size, by the kernel's folder of settings; 0: they are not to be used.
func sizeAt(folder string) uintptr {
	use, err := os.ReadFile(folder + "enabled")
	if err != nil || bytes.Contains(use, []byte("[never]")) {
		return 0
	}
	text, _ := os.ReadFile(folder + "hpage_pmd_size")
	size, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil || size > largest || size&(size-1) != 0 {
		return 0
	}
	return uintptr(size)
}

func madvise(at, size uintptr) syscall.Errno {
	_, _, err := syscall.Syscall(syscall.SYS_MADVISE, at, size, collapse)
	return err
}

func (m *Mover) run() {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-m.stop:
			return
		case <-timer.C:
		}
		begin := time.Now()
		wait := pause
		if m.moveOne() {
			wait = max(rest, (part-1)*time.Since(begin))
		}
		if m.refused >= patience {
			return
		}
		timer.Reset(wait)
	}
}

// moveOne moves the next page, and tells whether there was one.
func (m *Mover) moveOne() bool {
	for i := range m.Ranges {
		r := &m.Ranges[i]
		end, begin := r.end.Load(), r.begin.Load()
		if first := (begin + m.size - 1) &^ (m.size - 1); r.from != first { // other memory
			m.held.Add(-uint64(r.to - r.from - r.passed))
			r.from, r.to, r.passed = first, first, 0
		}
		if begin == 0 || r.to+m.size > end {
			continue
		}
		m.move(r)
		return true
	}
	return false
}

func (m *Mover) move(r *Range) {
	err := m.madvise(r.to, m.size)
	r.to += m.size
	if err != 0 {
		r.passed += m.size
		m.refused++
		return
	}
	m.held.Add(uint64(m.size))
	m.refused = 0
}
