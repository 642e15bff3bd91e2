package plugin

import (
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"lessismore/plugin/internal/cpu"
)

// Engine is a configuration, and what was counted under it. Safe for use from several threads; the
// sessions and sequences made from it are not, each belongs to one thread at a time.
type Engine struct {
	config   Config
	profiles Profiles
	about    string // what tells the model of the engine's sequences from others of its shape
	said     lines  // about that model; a session has its host's log

	reason       atomic.Pointer[string] // why the engine is inert for good; nil: it is not
	held         atomic.Pointer[string] // why it is so far; nil: it is not
	intervention atomic.Pointer[Intervention]
	guests       atomic.Uint64 // there ever were
	lockstep     lockstep      // of those on GPUs

	mu      sync.Mutex // never held while a session's, sequence's or model's own lock is taken
	models  map[identity]*model
	unknown []identity // of the models, those that only one context knows
	live    []statser
	ended   []Stats
	used    engines // by those that are summed up
}

// statser is a session or a sequence: something that counts.
type statser interface{ stats() Stats }

// maxEnded bounds what is remembered of contexts that have been freed; older ones are summed up. Of models that only one
// context knows as many are remembered.
const maxEnded = 64

// maxTraces bounds of how many of these the traces are kept.
const maxTraces = 8

// NewEngine makes an engine. The configuration's error, if any, names the field and the value.
func NewEngine(config Config) (*Engine, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.Layers = slices.Clone(config.Layers)
	return &Engine{config: config, models: map[identity]*model{}}, nil
}

// Keep says where profiles are read and written; without it, nowhere. Before the first session.
func (e *Engine) Keep(profiles Profiles) { e.profiles = profiles }

// Serve says what model the engine's sequences are of: any text that tells it from others of its shape, ""
// where nothing does; and who is told what is learned of it. Before the first sequence.
func (e *Engine) Serve(about string, log func(LogLevel, string)) {
	if about != "" {
		e.about = "model " + about
	}
	e.said.to = log
}

// lines are what there is to say to a host, who may call the library from its logger: they wait until
// no lock is held.
type lines struct {
	to      func(LogLevel, string)
	waiting atomic.Bool
	mu      sync.Mutex
	of      []line
}

type line struct {
	level LogLevel
	text  string
}

func (l *lines) add(level LogLevel, text string) {
	if l.to == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of = append(l.of, line{level, text})
	l.waiting.Store(true)
}

func (l *lines) flush() {
	if !l.waiting.Load() {
		return
	}
	l.mu.Lock()
	of := l.of
	l.of = nil
	l.waiting.Store(false)
	l.mu.Unlock()
	for _, s := range of {
		l.to(s.level, s.text)
	}
}

// model is what the engine's contexts of one model share.
func (e *Engine) model(about identity, log func(LogLevel, string)) (*model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m := e.models[about]; m != nil {
		return m, nil
	}
	unknown := strings.HasPrefix(about.Weights, unknownWeights)
	file := e.profiles.file(fingerprint(about, settingsOf(&e.config)))
	if unknown || about.Weights == "" && !file.given {
		file = profileFile{}
	}
	m, err := newModel(e.config, about.Layers, about, file, log)
	if err != nil {
		return nil, err
	}
	m.intervention = &e.intervention
	e.models[about] = m
	if unknown {
		e.unknown = append(e.unknown, about)
	}
	if len(e.unknown) > maxEnded { // whose context goes on using it
		delete(e.models, e.unknown[0])
		e.unknown = slices.Delete(e.unknown, 0, 1)
	}
	return m, nil
}

// Config is the configuration in force.
func (e *Engine) Config() Config { return e.config }

// Disable makes the engine inert, for a reason that the statistics carry: every session leaves every
// layer to its host from then on. The first reason stays.
func (e *Engine) Disable(reason string) { e.reason.CompareAndSwap(nil, &reason) }

// Disabled tells whether it was.
func (e *Engine) Disabled() bool { return e.reason.Load() != nil }

// Hold makes the engine inert until it is called with "": what it works in is not there yet.
func (e *Engine) Hold(reason string) {
	if reason == "" {
		e.held.Store(nil)
		return
	}
	e.held.Store(&reason)
}

// Inert is why the engine does nothing; "": it works.
func (e *Engine) Inert() string {
	if reason := e.reason.Load(); reason != nil {
		return *reason
	}
	if reason := e.held.Load(); reason != nil {
		return *reason
	}
	return ""
}

func (e *Engine) started(s statser) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live = append(e.live, s)
}

func (e *Engine) finished(s statser) {
	final := s.stats()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live = slices.DeleteFunc(e.live, func(o statser) bool { return o == s })
	e.ended = append(e.ended, final)
	if old := len(e.ended) - maxTraces - 1; old >= 0 {
		e.ended[old].Trace = nil
	}
	if len(e.ended) > maxEnded {
		e.used = e.used.with(&e.ended[0])
		e.ended[1].add(&e.ended[0])
		e.ended = slices.Delete(e.ended, 0, 1)
	}
}

// Report is what all sessions and sequences of the engine have counted, ended ones first.
func (e *Engine) Report() *Report {
	e.mu.Lock()
	contexts := append(make([]Stats, 0, len(e.ended)+len(e.live)), e.ended...)
	live, models, used := slices.Clone(e.live), slices.Collect(maps.Values(e.models)), e.used
	e.mu.Unlock()
	for _, s := range live {
		contexts = append(contexts, s.stats())
	}
	for i := range contexts {
		used = used.with(&contexts[i])
	}
	r := &Report{
		Version: Version, Engine: used.String(), Target: cpu.Target(), State: "active", Reason: e.Inert(),
		Config: ReportConfig{
			Budget: e.config.Budget, Layers: e.config.Layers, Recency: e.config.Recency,
			SinkTokens: e.config.SinkTokens, Policy: e.config.Policy.String(),
			Selections: e.config.Selections, Guard: e.config.Guard, Interval: e.config.Interval, Trace: e.config.Trace,
		},
		Models:   []*Profile{},
		Contexts: contexts,
	}
	if r.Reason != "" {
		r.State = "inert"
	}
	for _, m := range models {
		if p := m.learned(); p != nil {
			r.Models = append(r.Models, p)
		}
	}
	return r
}

// engines are those that have computed something.
type engines struct{ cpu, cuda bool }

func (u engines) with(s *Stats) engines {
	u.cuda = u.cuda || s.Device != ""
	u.cpu = u.cpu || s.Device == "" && s.Steps > 0
	return u
}

func (u engines) String() string {
	switch {
	case u.cpu && u.cuda:
		return "cpu, cuda"
	case u.cuda:
		return "cuda"
	}
	return "cpu"
}

// maxThreads is how many threads of a host can share one call. A host with more leaves the rest idle.
var maxThreads = max(16, runtime.NumCPU())
