package ggml

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"

	"lessismore/plugin/internal/calibrate"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
	"lessismore/plugin/internal/steps"
)

// maxWork bounds the kernels' work memory: logits of many rows over a long context. Beyond it the host
// computes the batch itself.
const maxWork = 1 << 30

// maxThreads is how many threads of a host can share one call. A host with more leaves the rest idle.
var maxThreads = max(16, runtime.NumCPU())

// maxRows bounds the rows of a batch that is looked at closely; a larger one is a prompt.
const maxRows = 256

// maxHashed is how many compute calls are waited for the model's layers, hashing weights. A host that calls
// back after each node makes many; one whose attention never shows would hash for ever.
const maxHashed = 4096

// Session takes part in one context of a host that computes graphs (ggml). For each compute call, Plan
// decides which attentions the library takes and what every row of them attends to; the host's own
// threads then run the calls.
type Session struct {
	hostContext

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
	work      cpu.Arena
	slopes    cpu.Arena
	distances distances
	slopesFor struct {
		heads int32
		bias  float32
	}
	timings steps.Timings

	// byCell makes recency go by slot number even where positions are known. Tests use it to show
	// that the difference matters.
	byCell bool
}

// track is what is known of one K store.
type track struct {
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

// NewSession starts taking part in a context. log may be nil.
func NewSession(e *contexts.Engine, log func(level settings.LogLevel, text string)) *Session {
	s := &Session{hostContext: newHostContext(e, log), tracks: map[uint64]*track{}}
	e.Started(s)
	return s
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
	if s.cal != nil {
		s.cal.Settle()
		s.cal.Free()
	}
	s.drop(nil)
	s.step.Free()
	s.notes.Free()
	s.work.Free()
	s.slopes.Free()
	s.timings.Free()
}

// Stats is what the session has counted so far.
func (s *Session) Stats() stats.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.counts
	if s.cal != nil {
		s.cal.Report(&out)
	}
	s.timings.Read(&out)
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
	if s.adapted(g) {
		s.unlearn()
		s.leave(g)
		return
	}
	s.survey(g)
	if s.discovery.complete && !s.discovery.decided {
		s.tell(g)
	}
	fresh := false // the step was looked at in this compute call
	need := 0
	for i := range g.Nodes {
		n := &g.Nodes[i]
		if n.Reason == stats.Offloaded {
			n.Reason = s.node(n, &fresh)
		} else {
			s.pass(n, s)
		}
		if n.Reason == stats.Offloaded {
			need = max(need, cpu.WorkSize(&n.Call, maxThreads))
		}
	}
	s.untakable(g)
	s.drafts(&g.Nodes[0], "a sequence (speculative decoding, or a prompt in small pieces)", func(n *Node) bool {
		visible, _ := cpu.Visible(n.scan(0, 0), n.ScanType, int(n.NKV), nil)
		return visible <= 1
	})
	var work unsafe.Pointer
	if need <= maxWork {
		work = s.work.Bytes(need)
	}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		switch {
		case n.Reason != stats.Offloaded:
		case s.ordinal == nil: // a later node of the graph showed that the layers were not known after all
			n.Reason = stats.ReasonDiscovery
		case work == nil:
			n.Reason = stats.ReasonMemory
		}
		if n.Reason != stats.Offloaded {
			s.counts.Decline(n.Reason)
			continue
		}
		n.Call.Work = work
		layer := s.ordinal[n.Layer]
		s.step.Planned(&s.counts, layer, s.cal.Role(layer), n.Call.Mode)
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

// idle tells whether nothing of the model will be offloaded: its stores are not followed.
func (s *Session) idle() bool {
	return s.counts.Inert != "" || s.engine.Inert() != "" ||
		s.discovery.decided && !slices.ContainsFunc(s.discovery.layers, discovered.participates)
}

// note asks for the prints of what the graph writes to the stores that are followed.
func (s *Session) note(g *Graph) {
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
		t = &track{index: kvindex.NewKVIndex(w.Store), last: make([]int64, 0, maxRows), prompt: make([]bool, 0, maxRows)}
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
	n.MaxThreads = int32(maxThreads)
	call := &n.Call
	s.cal.Direct(&s.step, layer, call)
	call.Policy = cpu.Policy(s.engine.Settings.Policy)
	call.Timing = unsafe.Pointer(s.timings.Of(call.Mode))
	if n.MaxBias > 0 {
		if call.Slopes = s.alibi(call.Heads, n.MaxBias); call.Slopes == nil {
			return stats.ReasonMemory
		}
	}
	if call.Mode == cpu.Sparse && !s.engaged {
		s.engaged = true
		row := slices.IndexFunc(s.step.Rows, func(r cpu.Row) bool { return r.SetLen > 0 })
		s.log(settings.LogInfo, fmt.Sprintf("engaged: %d tokens of %d attended outside layers %v",
			s.step.Rows[row].SetLen, s.step.Rows[row].Visible, s.cal.Roles.Selections()))
	}
	return stats.Offloaded
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
	s.unlearn()
}

// unlearn drops what the layers did last. What is known of the store's tokens stays.
func (s *Session) unlearn() {
	s.step.Lasting.Drop()
	s.step.Chosen, s.reason = false, stats.ReasonDiscovery
}

// suits: what the CPU computes of a model, its first layers where the others are off-loaded, is attended to for itself.
func (s *Session) suits() error { return nil }

// assigned keeps only the index that the rows are ordered by: that of the first of the layers that can take
// part, which is written before any of them is read.
func (s *Session) assigned(*Node) error {
	s.step.Lasting.Interval = s.engine.Settings.Interval
	first := s.discovery.layers[slices.IndexFunc(s.discovery.layers, discovered.participates)].store.ID
	s.followed = s.tracks[first]
	s.drop(s.followed)
	if s.followed != nil {
		s.followed.index.Remember()
	}
	return nil
}

// look finds out what the rows of a batch see, and begins a step unless the batch continues one.
func (s *Session) look(n *Node, key stepKey, layer int) stats.Reason {
	rows := int(n.Tokens) * int(n.Streams)
	if rows > maxRows {
		return stats.ReasonPrompt
	}
	t := s.followed
	if t == nil || t.count != rows || len(t.last) != rows {
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
	if err := s.step.Begin(rows, int(n.NKV), s.engine.Settings.Budget, s.cal.Groups()); err != nil {
		return stats.ReasonMemory
	}
	s.own = append(s.own[:0], t.last...)
	for i := range rows {
		s.see(n, i, t)
	}
	s.cal.Begin(&s.step, int(n.Call.Heads), &s.counts, func(row int, slot int32) bool {
		return n.sees(row/int(n.Tokens), row%int(n.Tokens), int64(slot))
	}, func(row int) int32 {
		return int32(t.last[row] - int64(n.FirstStream+int32(row/int(n.Tokens)))*n.Store.Slots)
	})
	s.step.Began(&s.counts, s.cal.Kind == calibrate.StepMeasure)
	return stats.Offloaded
}

// trace keeps the step that has ended, where its token sets are asked for.
func (s *Session) trace() {
	if s.engine.Settings.Trace > 0 && s.cal != nil {
		s.cal.Record(&s.step)
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

// alibi is the slope of each head's linear bias (ALiBi, arXiv 2108.12409), for any number of heads.
func (s *Session) alibi(heads int32, bias float32) unsafe.Pointer {
	slopes := cpu.Slice[float32](&s.slopes, int(heads))
	if slopes == nil {
		return nil
	}
	if s.slopesFor.heads != heads || s.slopesFor.bias != bias {
		s.slopesFor.heads, s.slopesFor.bias = heads, bias
		power := 1 << int(math.Floor(math.Log2(float64(heads)))) // the largest power of two within heads
		base := math.Exp2(-float64(bias) / float64(power))
		half := math.Exp2(-float64(bias) / 2 / float64(power))
		for h := range slopes[:heads] {
			if h < power {
				slopes[h] = float32(math.Pow(base, float64(h+1)))
			} else {
				slopes[h] = float32(math.Pow(half, float64(2*(h-power)+1)))
			}
		}
	}
	return unsafe.Pointer(&slopes[0])
}
