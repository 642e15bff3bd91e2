package contexts

import (
	"slices"
	"sync"
)

// Batch is what the devices of one of the host's contexts tell each other of the batch that they compute, for a host may have one device
// rotate keys by their positions, another one keep them, and a third one know whose logits are wanted. Of a long prompt a GPU multiplies with
// the weights of the CPU's layers, rotates and attends, and the CPU only keeps the keys; where a layer's weights are on another device than its
// K and V, it is so in every step.
//
// A context's graphs are computed one after another, and a layer's keys are rotated before they are kept: positions that were told are
// those of the keys that are kept next, and of no others.
type Batch struct {
	relay *Relay
	host  uint64
	legs  int // under the relay's lock

	mu        sync.Mutex
	rotates   bool // the model has positions
	positions Told
	wanted    Told
}

// Told is what a graph told of a batch.
type Told struct {
	Of     []int32 // positions; or numbers of the tokens that logits are wanted of, ascending
	Tokens int     // of the batch that the numbers count in
	Number uint64  // tells this from what was told before; 0: nothing was
}

// Batch is where the devices of a leg's host context tell each other of their batch. host is that context's number, as far as it is known
// (Shown.Host); 0: the leg is by itself.
func (l *Leg) Batch(host uint64) *Batch {
	if l.batch != nil && l.batch.host == host { // as at nearly every call
		return l.batch
	}
	r := l.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.batches[host]
	if b == nil {
		b = &Batch{relay: r, host: host}
		if r.batches == nil {
			r.batches = map[uint64]*Batch{}
		}
		if host != 0 {
			r.batches[host] = b
		}
	}
	b.legs++
	if l.leaveBatch() {
		b.mu.Lock()
		b.rotates = true
		b.mu.Unlock()
	}
	l.batch = b
	return b
}

// leaveBatch ends a leg's share in its batch, and tells whether that was seen to be of a model that has positions. Under the relay's lock.
func (l *Leg) leaveBatch() (rotates bool) {
	b := l.batch
	if b == nil {
		return false
	}
	l.batch = nil
	if b.legs--; b.legs == 0 && b.relay.batches[b.host] == b {
		delete(b.relay.batches, b.host)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rotates
}

// Rotate says which positions a graph rotates by; none: it is not known which.
func (b *Batch) Rotate(positions []int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rotates = true
	b.positions.Of = append(b.positions.Of[:0], positions...)
	b.positions.Number = b.relay.told.Add(1)
}

// Keep is told of a graph that keeps keys. It gives what was told of their positions since others were kept, in memory of to's, and whether the
// model has any. The next keys may be of the next batch.
func (b *Batch) Keep(to *Told) (rotates bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	to.Of, to.Number = append(to.Of[:0], b.positions.Of...), b.positions.Number
	b.positions.Of = b.positions.Of[:0]
	return b.rotates
}

// Want says of which tokens of a batch logits are wanted.
func (b *Batch) Want(tokens int, numbers []int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted.Of, b.wanted.Tokens = append(b.wanted.Of[:0], numbers...), tokens
	b.wanted.Number = b.relay.told.Add(1)
}

// Wanted is what was last said of that, if it is not what has this number, in memory of to's.
func (b *Batch) Wanted(than uint64, to *Told) (news bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wanted.Number == than {
		return false
	}
	to.Of, to.Tokens, to.Number = append(to.Of[:0], b.wanted.Of...), b.wanted.Tokens, b.wanted.Number
	return true
}

// Unwanted are the numbers of a batch's tokens that no logits are wanted of.
func (t *Told) Unwanted(yield func(i int) bool) {
	for i := range t.Tokens {
		if _, is := slices.BinarySearch(t.Of, int32(i)); !is && !yield(i) {
			return
		}
	}
}
