package contexts

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// Engine is a configuration, and what was counted under it. Safe for use from several threads; the
// sessions and decoders made from it are not, each belongs to one thread at a time.
type Engine struct {
	Settings settings.Config
	Profiles selection.Profiles
	About    string // what tells the model of the engine's decoders from others of its shape
	Said     lines  // about that model; a session has its host's log

	reason   atomic.Pointer[string] // why the engine is inert for good; nil: it is not
	held     atomic.Pointer[string] // why it is so far; nil: it is not
	ablation atomic.Pointer[selection.Ablation]
	Hosted   atomic.Uint64 // there ever were
	Lockstep lockstep      // of those on GPUs
	Relay    Relay         // of those whose model is spread over devices

	mu      sync.Mutex // never held while a session's, decoder's or model's own lock is taken
	Models  map[selection.Identity]*selection.Model
	unknown []selection.Identity // of the models, those that only one context knows
	live    []statser
	ended   []stats.Stats
	used    engines // by those that are summed up
}

// statser is a session or a decoder: something that counts.
type statser interface{ Stats() stats.Stats }

// waiter is one whose Stats may wait for a device. StatsAtOnce is the same where it does not; false: it would.
type waiter interface {
	StatsAtOnce() (s stats.Stats, ok bool)
}

// MaxEnded bounds what is remembered of contexts that have been freed; older ones are summed up. Of models that only one
// context knows as many are remembered.
const MaxEnded = 64

// MaxTraces bounds of how many of these the traces are kept.
const MaxTraces = 8

// NewEngine makes an engine. The configuration's error, if any, names the field and the value.
func NewEngine(config settings.Config) (*Engine, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.Layers = slices.Clone(config.Layers)
	return &Engine{Settings: config, Models: map[selection.Identity]*selection.Model{}}, nil
}

// Keep says where profiles are read and written; without it, nowhere. Before the first session.
func (e *Engine) Keep(profiles selection.Profiles) { e.Profiles = profiles }

// Serve says what model the engine's decoders are of: any text that tells it from others of its shape, ""
// where nothing does; and who is told what is learned of it. Before the first decoder.
func (e *Engine) Serve(about string, log func(settings.LogLevel, string)) {
	switch {
	case about == "":
	case utf8.ValidString(about):
		e.About = "model " + about
	default: // bytes, of a hash: JSON would take several for the same
		e.About = fmt.Sprintf("model %q", about)
	}
	e.Said.to = log
}

// lines are what there is to say to a host, who may call the library from its logger: they wait until
// no lock is held.
type lines struct {
	to      func(settings.LogLevel, string)
	waiting atomic.Bool
	mu      sync.Mutex
	of      []line
}

type line struct {
	level settings.LogLevel
	text  string
}

func (l *lines) Add(level settings.LogLevel, text string) {
	if l.to == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of = append(l.of, line{level, text})
	l.waiting.Store(true)
}

func (l *lines) Flush() {
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

// Model is what the engine's contexts of one model share.
func (e *Engine) Model(about selection.Identity, log func(settings.LogLevel, string)) (*selection.Model, error) {
	return e.ModelWith(e.Settings, about, log)
}

// ModelWith is Model with settings of its own: the layers that are given may be other ones.
func (e *Engine) ModelWith(config settings.Config, about selection.Identity, log func(settings.LogLevel, string)) (*selection.Model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m := e.Models[about]; m != nil {
		return m, nil
	}
	unknown := strings.HasPrefix(about.Weights, selection.UnknownWeights)
	file := e.Profiles.File(selection.Fingerprint(about, selection.SettingsOf(&e.Settings, about.Layers)))
	if unknown || about.Weights == "" && !file.Given {
		file = selection.ProfileFile{}
	}
	m, err := selection.NewModel(config, about.Layers, about, file, log)
	if err != nil {
		return nil, err
	}
	m.Ablation = &e.ablation
	e.Models[about] = m
	if unknown {
		e.unknown = append(e.unknown, about)
	}
	if len(e.unknown) > MaxEnded { // whose context goes on using it
		delete(e.Models, e.unknown[0])
		e.unknown = slices.Delete(e.unknown, 0, 1)
	}
	return m, nil
}

// Config is the configuration in force.
func (e *Engine) Config() settings.Config { return e.Settings }

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

func (e *Engine) Started(s statser) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live = append(e.live, s)
}

func (e *Engine) Finished(s statser) {
	final := s.Stats()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live = slices.DeleteFunc(e.live, func(o statser) bool { return o == s })
	e.ended = append(e.ended, final)
	if old := len(e.ended) - MaxTraces - 1; old >= 0 {
		e.ended[old].Trace = nil
	}
	if len(e.ended) > MaxEnded {
		e.used = e.used.with(&e.ended[0])
		e.ended[1].Add(&e.ended[0])
		e.ended = slices.Delete(e.ended, 0, 1)
	}
}

// Report is what all sessions and decoders of the engine have counted, ended ones first. It may wait for a device.
func (e *Engine) Report() *stats.Report {
	r, _ := e.report(func(s statser) (stats.Stats, bool) { return s.Stats(), true })
	return r
}

// ReportAtOnce is Report where nothing has to be waited for; false: a device would be.
func (e *Engine) ReportAtOnce() (*stats.Report, bool) {
	return e.report(func(s statser) (stats.Stats, bool) {
		if w, ok := s.(waiter); ok {
			return w.StatsAtOnce()
		}
		return s.Stats(), true
	})
}

func (e *Engine) report(read func(statser) (stats.Stats, bool)) (*stats.Report, bool) {
	e.mu.Lock()
	contexts := append(make([]stats.Stats, 0, len(e.ended)+len(e.live)), e.ended...)
	live, models, used := slices.Clone(e.live), slices.Collect(maps.Values(e.Models)), e.used
	e.mu.Unlock()
	for _, s := range live {
		counted, ok := read(s)
		if !ok {
			return nil, false
		}
		contexts = append(contexts, counted)
	}
	for i := range contexts {
		used = used.with(&contexts[i])
	}
	r := &stats.Report{
		Version: settings.Version, Engine: used.String(), Target: cpu.Target(), State: "active", Reason: e.Inert(),
		Config:   e.Settings,
		Models:   []*selection.Profile{},
		Contexts: contexts,
	}
	if r.Reason != "" {
		r.State = "inert"
	}
	for _, m := range models {
		if p := m.Learned(); p != nil {
			r.Models = append(r.Models, p)
		}
	}
	return r, true
}

// engines are those that have computed something.
type engines struct{ cpu, cuda bool }

func (u engines) with(s *stats.Stats) engines {
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

// Ablate begins an ablation in all contexts of the engine, or ends it with nil. Nothing is measured or audited
// meanwhile.
func (e *Engine) Ablate(x *selection.Ablation) { e.ablation.Store(x) }

// Total is the sum over all decoders and sessions of the engine, ended ones included.
func (e *Engine) Total() stats.Stats {
	r := e.Report()
	var total stats.Stats
	for i := range r.Contexts {
		total.Add(&r.Contexts[i])
	}
	total.SelectionLayers = slices.Clone(total.SelectionLayers)
	return total
}
