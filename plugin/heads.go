package plugin

import "sync"

// lockstep recognises contexts whose heads are spread over several devices (llama.cpp's -sm tensor): each device
// then computes its share of a layer, and all of them do before any goes on with the next one. Contexts that
// have nothing to do with each other cannot look like that: a thread is in the middle of one pass at a time.
type lockstep struct {
	mu   sync.Mutex
	seen []*stride
}

// stride is how far one device has come in a context's first pass.
type stride struct {
	thread      int
	call        int // of all devices' calls, the number of this one's last
	first, last int32
	spread      bool
}

// see takes note of a compute call with attentions of the layers [first, last], on a thread. spread: the context's heads
// are on several devices; news: nobody has been told.
func (l *lockstep) see(s *stride, thread int, first, last int32) (spread, news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	latest, mine := 0, -1
	for i, o := range l.seen {
		latest = max(latest, o.call)
		if o == s {
			mine = i
		}
	}
	if mine < 0 {
		l.seen = append(l.seen, s)
	} else if !s.spread && s.thread == thread && first > s.last {
		for _, o := range l.seen {
			if o != s && o.thread == thread && o.call > s.call && o.first == s.first && o.last == s.last {
				news = !o.spread
				s.spread, o.spread = true, true
			}
		}
	}
	s.thread, s.call, s.first, s.last = thread, latest+1, first, last
	return s.spread, news
}

// leave forgets a device of a context: its first pass is over, or the context is.
func (l *lockstep) leave(s *stride) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.seen {
		if o == s {
			l.seen = append(l.seen[:i], l.seen[i+1:]...)
			break
		}
	}
	*s = stride{}
}
