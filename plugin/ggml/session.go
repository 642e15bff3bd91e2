package ggml

import (
	"slices"
	"unsafe"

	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// maxRows bounds the rows of a batch that is looked at closely; a larger one is a prompt.
const maxRows = 256

// maxHashed is how many compute calls are waited for the model's layers, hashing weights. A host that calls
// back after each node makes many; one whose attention never shows would hash for ever.
const maxHashed = 4096

// Session takes part in one context of a host that computes graphs (ggml), on the CPU or on a GPU. For each compute
// call, Plan decides which attentions the library takes and what every row of them attends to; how that is computed is
// the device's business.
type Session struct {
	hostContext
	on device

	tracks    map[uint64]*track // stores whose writes are followed; one, once the layers are known
	followed  *track            // that one
	positions []int32           // of the batch
	batch     int               // number of the batch that they are of
	rotates   bool              // the model's graphs have positions
	notes     cpu.Arena
	step      steps.RowSets
	key       stepKey
	own       []int64      // the rows' own slots in the step
	reason    stats.Reason // why the step's batch is left to the host; Offloaded: it is not
	distances distances
	seen      seen

	// byCell makes recency go by slot number even where positions are known. Tests use it to show
	// that the difference matters.
	byCell bool
}

// device is what a session's context computes on.
type device interface {
	// index is that of a store whose writes are to be followed.
	index(store Store) *kvindex.KVIndex
	// groups is how many token sets a row of a step has.
	groups() int
	// assigned gets ready what attending takes, once the layers are known.
	assigned(n *Node) error
	// called is told of a compute call with attention before its nodes are decided about.
	called(g *Graph)
	// fits tells whether a node is of the kind that is computed here.
	fits(n *Node) stats.Reason
	// begins a step whose rows are known, or leaves it to the host.
	begin(n *Node) stats.Reason
	// direct states how a node of the step is computed.
	direct(n *Node, layer int) stats.Reason
	// planned has the last word on the nodes of a call that were taken, and counts them.
	planned(g *Graph)
	// left counts a node of a step that is left to the host.
	left(n *Node)
	// unlearn drops what the layers did and were to do.
	unlearn()
	report(to *stats.Stats)
	close()
}

// track is what is known of one K store.
type track struct {
	id     uint64 // the store's
	index  *kvindex.KVIndex
	last   []int64 // global slots of the last batch that was written; none if there were more than maxRows
	prompt []bool  // of these: no logits are wanted
	told   bool    // prompt is known
	count  int     // tokens of that batch
	batch  int     // the last one whose positions went to the index
	fresh  bool    // no step has begun since that batch was written
}

// stepKey tells the compute calls of one step from those of another.
type stepKey struct {
	mask            uintptr
	nkv             int32
	tokens, streams int32
	firstStream     int32
}

// NewSession starts taking part in a context whose graphs the CPU computes. log may be nil.
func NewSession(e *contexts.Engine, log func(level settings.LogLevel, text string)) *Session {
	s := newSession(e, log)
	s.on = &onCPU{Session: s}
	e.Started(s)
	return s
}

func newSession(e *contexts.Engine, log func(level settings.LogLevel, text string)) *Session {
	return &Session{hostContext: newHostContext(e, log), tracks: map[uint64]*track{}}
}

// OrderByCell makes recency go by slot number; for tests.
func (s *Session) OrderByCell() { s.byCell = true }

// Close ends the session; the host's context is gone. What it counted stays with the engine.
func (s *Session) Close() {
	s.mu.Lock()
	s.trace()
	s.mu.Unlock()
	s.engine.Finished(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on.close()
	s.drop(nil)
	s.step.Free()
	s.notes.Free()
}

// Stats is what the session has counted so far. On a GPU it waits for the device.
func (s *Session) Stats() stats.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.counts
	s.on.report(&out)
	return out
}

// Plan decides about each node of a compute call: Reason is Offloaded where the library computes it, with
// Call ready to run. It must be called on every compute call of the context, also those without
// attention: they carry positions and writes.
func (s *Session) Plan(g *Graph) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks(g)
	s.follow(g)
	defer s.note(g)
	if len(g.Nodes) == 0 {
		if len(g.Writes) > 0 && s.flashless(g) {
			s.drop(nil)
		}
		return
	}
	s.attention = true
	s.on.called(g)
	if s.adapted(g, s) {
		s.leave(g)
		return
	}
	s.survey(g)
	if s.discovery.complete && !s.discovery.decided {
		s.tell(g)
	}
	fresh := false // the step was looked at in this compute call
	for i := range g.Nodes {
		n := &g.Nodes[i]
		if n.Reason == stats.Offloaded {
			n.Reason = s.node(n, &fresh)
		} else {
			s.pass(n, s)
		}
	}
	s.untakable(g)
	s.drafts(&g.Nodes[0], "a sequence (speculative decoding, or a prompt in small pieces)", func(n *Node) bool {
		if n.Scan == nil {
			return true // it is not known
		}
		visible, _ := cpu.Visible(n.scan(0, 0), n.ScanType, int(n.NKV), nil)
		return visible <= 1
	})
	if s.ordinal == nil { // a later node of the graph showed that the layers were not known after all
		for i := range g.Nodes {
			if g.Nodes[i].Reason == stats.Offloaded {
				g.Nodes[i].Reason = stats.ReasonDiscovery
			}
		}
	}
	s.on.planned(g)
	for i := range g.Nodes {
		n := &g.Nodes[i]
		s.counts.Decline(n.Reason)
		switch n.Reason {
		case stats.ReasonWithin, stats.ReasonDense, stats.ReasonNoGain:
			s.on.left(n)
		}
	}
}

// follow keeps the K/V index up to date: what the last graph wrote, then this one's shifts, positions and writes.
func (s *Session) follow(g *Graph) {
	if s.idle() {
		s.followed = nil
		s.drop(nil)
		return
	}
	for _, t := range s.tracks {
		t.index.Learn()
		if g.Lost {
			t.index.Forget()
		}
	}
	for i := range g.Changes {
		s.changed(&g.Changes[i])
	}
	if len(g.Shifts)+len(g.Rewritten) > 0 {
		s.step.Lasting.Drop()
	}
	for _, id := range g.Rewritten {
		if t := s.tracks[id]; t != nil {
			t.index.Forget()
		}
	}
	for i := range g.Shifts {
		if t := s.tracks[g.Shifts[i].Store]; t != nil {
			t.index.Shift(unsafe.Slice((*int32)(g.Shifts[i].Delta), g.Shifts[i].N))
		}
	}
	if g.Rotations > 0 {
		s.rotates = true
		s.positions = append(s.positions[:0], g.Positions...)
		s.batch++
	}
	for i := range g.Writes {
		s.wrote(&g.Writes[i], g)
	}
	if len(g.Writes) > 0 { // a later call's writes may be of the next batch
		s.positions = s.positions[:0]
	}
}

// changed follows what the host did behind its graphs.
func (s *Session) changed(c *Change) {
	if c.Kind == Cleared {
		for id, t := range s.tracks {
			if id >= c.Store && id-c.Store < uint64(c.N) {
				t.index.Forget()
			}
		}
		return
	}
	t := s.tracks[c.Store]
	if t == nil {
		return
	}
	prints := unsafe.Slice((*uint64)(c.Prints), c.NPrints)
	switch c.Kind {
	case Written:
		t.index.Wrote(c.First, c.N, prints)
	case Copied:
		t.index.Copied(c.First, c.From, c.N)
	case ReadOut:
		t.index.ReadOut(c.First, prints)
	}
}

// idle tells whether nothing of the model will be offloaded: its stores are not followed.
func (s *Session) idle() bool {
	return s.counts.Inert != "" || s.engine.Inert() != "" ||
		s.discovery.decided && !slices.ContainsFunc(s.discovery.layers, discovered.participates)
}

// note asks for the prints of what the graph writes to the stores that are followed, and says which these are.
func (s *Session) note(g *Graph) {
	switch {
	case s.idle():
		g.Followed = noStore
	case s.followed != nil:
		g.Followed = s.followed.id
	default:
		g.Followed = anyStore
	}
	notes, n := cpu.Slice[kvindex.Note](&s.notes, len(s.tracks)), 0
	for _, t := range s.tracks {
		if due, any := t.index.Due(); any && notes != nil {
			notes[n] = due
			n++
		}
	}
	g.Notes = notes[:n]
}

// drop stops following stores, but for one.
func (s *Session) drop(but *track) {
	for id, t := range s.tracks {
		if t != but {
			t.index.Free()
			delete(s.tracks, id)
		}
	}
}

func (s *Session) wrote(w *Write, g *Graph) {
	if s.warned && !s.attention {
		return // flash attention is off: nothing will ask
	}
	t := s.tracks[w.Store.ID]
	if t == nil || !t.index.Fits(w.Store) {
		if s.ordinal != nil {
			return // the layers are known, and this one's store is not the one that is followed
		}
		if t != nil {
			t.index.Free()
		}
		t = &track{id: w.Store.ID, index: s.on.index(w.Store), last: make([]int64, 0, maxRows), prompt: make([]bool, 0, maxRows)}
		s.tracks[w.Store.ID] = t
	}
	n := int(w.N)
	t.count, t.last, t.prompt, t.told, t.fresh = n, t.last[:0], t.prompt[:0], g.Batch == n, true
	// M-RoPE has four positions per token; the first one is its place in the text.
	known := t.batch != s.batch && (len(s.positions) == n || len(s.positions) == 4*n)
	t.batch = s.batch
	outputs := g.Outputs
	for i := range n {
		slot, prompt := w.slot(i), t.told
		if len(outputs) > 0 && int(outputs[0]) == i {
			outputs, prompt = outputs[1:], false
		}
		switch {
		case known:
			t.index.Write(slot, s.positions[i], prompt)
		case s.rotates:
			t.index.Write(slot, kvindex.Unknown, prompt)
		default:
			t.index.WriteNext(slot, prompt)
		}
		if n <= maxRows {
			t.last, t.prompt = append(t.last, slot), append(t.prompt, prompt)
		}
	}
	t.index.Tied = t.index.Tied || known && len(s.positions) > n
}

// tell decides which layers slide by comparing what they see in this graph.
func (s *Session) tell(g *Graph) {
	s.discovery.compare(func(store uint64) (int, bool) {
		for i := range g.Nodes {
			if n := &g.Nodes[i]; n.Store.ID == store && n.Scan != nil {
				visible, _ := cpu.Visible(n.scan(0, 0), n.ScanType, int(n.NKV), nil)
				return visible, true
			}
		}
		return 0, false
	})
}

// node decides about one node that the kernels could take.
func (s *Session) node(n *Node, fresh *bool) stats.Reason {
	layer, reason := s.place(n, s)
	if reason != stats.Offloaded {
		return reason
	}
	if reason := s.on.fits(n); reason != stats.Offloaded {
		return reason
	}
	key := stepKey{uintptr(n.Mask), n.NKV, n.Tokens, n.Streams, n.FirstStream}
	if *fresh && layer <= s.step.Layer {
		return stats.ReasonShared
	}
	if *fresh && key != s.key {
		return stats.ReasonUnknownRow // a second step in one call would overwrite what the first one's layers read
	}
	if !*fresh {
		if reason := s.look(n, key, layer); reason != stats.Offloaded {
			s.step.Lasting.Drop()
			s.key, s.reason, *fresh = key, reason, true
			s.step.Layer = layer
			return reason
		}
		s.key, s.reason, *fresh = key, stats.Offloaded, true
	}
	if s.reason != stats.Offloaded {
		s.step.Layer = layer
		return s.reason
	}
	return s.on.direct(n, layer)
}

// leave leaves a whole graph to the host: the layers are not known.
func (s *Session) leave(g *Graph) {
	for i := range g.Nodes {
		if g.Nodes[i].Reason == stats.Offloaded {
			g.Nodes[i].Reason = stats.ReasonDiscovery
		}
		s.counts.Decline(g.Nodes[i].Reason)
	}
}

// forget drops what follows from the layers: the first pass was not the whole model, or the backend serves
// another one now.
func (s *Session) forget() {
	s.followed = nil
	s.drop(nil)
}

// unlearn drops what the layers did last. What is known of the store's tokens stays.
func (s *Session) unlearn() {
	s.on.unlearn()
	s.step.Lasting.Drop()
	s.step.Chosen, s.reason = false, stats.ReasonDiscovery
}

// assigned keeps only the index that the rows are ordered by: that of the first of the layers that can take
// part, which is written before any of them is read.
func (s *Session) assigned(n *Node) error {
	s.step.Lasting.Interval = s.engine.Settings.Interval
	first := s.discovery.layers[slices.IndexFunc(s.discovery.layers, discovered.participates)].store.ID
	s.followed = s.tracks[first]
	s.drop(s.followed)
	if s.followed != nil {
		s.followed.index.Remember()
	}
	return s.on.assigned(n)
}

// look finds out what the rows of a batch see, and begins a step unless the batch continues one.
func (s *Session) look(n *Node, key stepKey, layer int) stats.Reason {
	rows := int(n.Tokens) * int(n.Streams)
	if rows > maxRows {
		return stats.ReasonPrompt
	}
	t := s.followed
	if t == nil || t.count != rows || len(t.last) != rows || n.Scan == nil {
		return stats.ReasonUnknownRow
	}
	if s.continues(n, key, layer, t) {
		return stats.Offloaded
	}
	if reason := classify(n, t); reason != stats.Offloaded {
		return reason
	}
	if t.told && !slices.Contains(t.prompt, false) {
		return stats.ReasonPrompt // fed token by token, or the beginnings of several
	}
	if !t.fresh { // its tokens' slots are those of an earlier step
		return stats.ReasonUnknownRow
	}
	t.fresh = false
	s.trace()
	if err := s.step.Begin(rows, int(n.NKV), s.engine.Settings.Budget, s.on.groups()); err != nil {
		return stats.ReasonMemory
	}
	s.own = append(s.own[:0], t.last...)
	s.seen.step++
	for i := range rows {
		s.see(n, i, t)
	}
	return s.on.begin(n)
}

// trace keeps the step that has ended, where its token sets are asked for.
func (s *Session) trace() {
	if on, ok := s.on.(*onCPU); ok && s.engine.Settings.Trace > 0 && on.cal != nil {
		on.cal.Record(&s.step)
	}
}

// continues tells whether a compute call goes on with the step that an earlier call began: the host
// splits a step where it off-loads layers or calls back between them.
func (s *Session) continues(n *Node, key stepKey, layer int, t *track) bool {
	if t.fresh || key != s.key || s.reason != stats.Offloaded || layer <= s.step.Layer || !slices.Equal(s.own, t.last) {
		return false
	}
	for i := range s.step.Rows {
		stream, token := i/int(n.Tokens), i%int(n.Tokens)
		visible, _ := cpu.Visible(n.scan(stream, token), n.ScanType, int(n.NKV), nil)
		if visible != int(s.step.Rows[i].Visible) {
			return false
		}
	}
	return true
}

// classify tells decode rows from prompts: two rows belong to one sequence if and only if one's own
// token is visible to the other.
func classify(n *Node, t *track) stats.Reason {
	tokens, streams := int(n.Tokens), int(n.Streams)
	shared, single := 0, 0
	for stream := range streams {
		first := int64(n.FirstStream+int32(stream)) * n.Store.Slots
		own := t.last[stream*tokens : (stream+1)*tokens]
		for i, slot := range own {
			if slot -= first; slot < 0 || slot >= int64(n.NKV) || !n.sees(stream, i, slot) {
				return stats.ReasonUnknownRow
			}
			alone := true
			for j := range own {
				if j != i && (n.sees(stream, j, slot) || n.sees(stream, i, own[j]-first)) {
					alone = false
					break
				}
			}
			if alone {
				single++
			} else {
				shared++
			}
		}
	}
	switch {
	case shared == 0:
		return stats.Offloaded
	case single == 0:
		return stats.ReasonPrompt
	}
	return stats.ReasonMixed
}
