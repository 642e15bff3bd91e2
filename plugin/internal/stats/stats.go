package stats

import (
	"encoding/json"
	"fmt"
	"iter"
	"math/bits"
	"reflect"
	"slices"
	"strings"
	"unsafe"

	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
)

// Reason is why an attention was left to the host. Its text is the key in the statistics.
type Reason int32

const (
	Offloaded        Reason = iota // not a reason: the library attends
	ReasonPrompt                   // several query tokens of one sequence
	ReasonMixed                    // prompt and decode rows in one batch
	ReasonDiscovery                // first pass: the model's layers are being counted
	ReasonNoCache                  // no K/V cache: an encoder, or attention across sequences
	ReasonSliding                  // a sliding-window layer
	ReasonMLA                      // multi-head latent attention: V is a view of K
	ReasonType                     // a query, key, value or mask type that the kernels do not have
	ReasonShape                    // a shape, stride or mask layout that the kernels do not have
	ReasonSparseHint               // the model itself is sparse here
	ReasonUnknownRow               // a batch whose rows cannot be told apart, or whose store's writes are not seen
	ReasonUndecided                // sliding and full layers cannot be told apart yet
	ReasonInert                    // the library has switched itself off
	ReasonMemory                   // no memory for the plan
	ReasonFailed                   // planning failed: a fault of the library
	ReasonShared                   // a layer that reads the store of another one
	ReasonWithin                   // on a GPU: no row sees more tokens than the budget, and the host's graph is faster whole
	ReasonNoGain                   // on a GPU: rows do, but not by so much that taking the step would be faster; or a layer is as good with the host
	ReasonDense                    // on a GPU: a row has to attend to everything, and the host's graph is faster whole
	ReasonDraft                    // few query tokens of one sequence, whose logits are all wanted, and LESSISMORE_SPECULATION is off
	Reasons
)

var reasonNames = [Reasons]string{
	"", "prompt", "mixed", "discovery", "no_cache", "sliding_window", "mla", "type", "shape",
	"sparse_hint", "unknown_rows", "undecided", "inert", "memory", "failed", "shared_store",
	"within_budget", "no_gain", "dense_rows", "draft",
}

// String is the reason's name in the statistics.
func (r Reason) String() string {
	if r > 0 && r < Reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", int32(r))
}

// Meanings say what a user can make of a reason.
var Meanings = [Reasons]string{
	ReasonPrompt:     "several query tokens of one sequence: a prompt",
	ReasonMixed:      "prompt and decode rows in one batch, which could not be taken apart",
	ReasonDraft:      "a few tokens of one sequence whose logits are all wanted, as of a draft: LESSISMORE_SPECULATION=on decodes them sparsely",
	ReasonDiscovery:  "the model's layers were being counted",
	ReasonNoCache:    "keys are not read from a K/V cache (an encoder), or the host converts the cache first (f32; f16, bf16, q8_0 and q4_0 are supported)",
	ReasonSliding:    "a sliding-window layer",
	ReasonMLA:        "multi-head latent attention, whose V is a part of K: the host attends in such a model",
	ReasonType:       "an element type that the kernels do not have",
	ReasonShape:      "a shape that the kernels do not have",
	ReasonSparseHint: "the model's own sparse attention, which stays as it is",
	ReasonUnknownRow: "rows whose place in the K/V cache the host does not show",
	ReasonUndecided:  "sliding-window layers could not be told from full ones yet",
	ReasonInert:      "the library has switched itself off",
	ReasonMemory:     "no memory",
	ReasonFailed:     "a fault of the library: please report it",
	ReasonShared:     "a layer that reads another one's K/V cache",
	ReasonWithin:     "no row sees more tokens than the budget: the GPU's graph is left whole",
	ReasonNoGain:     "so few tokens beyond the budget that the GPU's graph is faster whole (LESSISMORE_CUDA=on takes them all the same), or a first layer that attends to everything",
	ReasonDense:      "rows that attend to everything, because their newest tokens are not known, a prompt ends there, or the layers are not measured: the GPU's graph is left whole",
}

// Stats counts what was done. Tokens are counted per row and layer.
type Stats struct {
	Inert string `json:"inert,omitempty"` // why this context is left alone

	Device          string `json:"device,omitempty"`      // the GPU that computed it; "": the CPU
	LayersFrom      string `json:"layers_from,omitempty"` // "given", "profile", "measured", "rule"; "unmeasured": dense so far
	Layers          int    `json:"layers"`                // layers that can take part
	SelectionLayers []int  `json:"selection_layers"`      // of them, the ones that choose
	LayersOffloaded []int  `json:"layers_offloaded"`      // of them, the ones that the library has computed

	Steps      uint64 `json:"steps"`
	Rows       uint64 `json:"rows"`        // decode rows taken, once per step
	RowsSparse uint64 `json:"rows_sparse"` // of them, with a token set
	RowsFull   uint64 `json:"rows_full"`

	TokensVisible        uint64 `json:"tokens_visible"`
	TokensAttended       uint64 `json:"tokens_attended"`
	SparseTokensVisible  uint64 `json:"sparse_layer_tokens_visible"` // in the layers that do not choose
	SparseTokensAttended uint64 `json:"sparse_layer_tokens_attended"`

	DenseCalls  uint64 `json:"dense_calls"` // layers computed, by mode
	SelectCalls uint64 `json:"select_calls"`
	SparseCalls uint64 `json:"sparse_calls"`
	NoSetCalls  uint64 `json:"no_set_calls"` // computed densely because no set had been chosen
	DenseNS     uint64 `json:"dense_ns"`
	SelectNS    uint64 `json:"select_ns"`
	SparseNS    uint64 `json:"sparse_ns"`
	RankingNS   uint64 `json:"ranking_ns"` // of SelectNS, the selection itself

	PositionOrder uint64 `json:"position_order"` // rows beyond the budget whose newest tokens are known
	CellOrder     uint64 `json:"cell_order"`     // rows beyond it that attend to everything: they are not
	PromptRows    uint64 `json:"prompt_rows"`    // rows beyond it that attend to everything: they belong to a prompt
	DraftRows     uint64 `json:"draft_rows"`     // decode rows that share their sequence with others of the step (LESSISMORE_SPECULATION)
	MixedSteps    uint64 `json:"mixed_steps"`    // whose batch had other rows, too, which the host computed
	UntoldRows    uint64 `json:"untold_rows"`    // rows beyond it whose graph does not tell that logits are wanted

	MeasuredSteps uint64      `json:"measured_steps"` // computed densely, to find the selection layers
	DenseSteps    uint64      `json:"dense_steps"`    // computed densely, because they are not known
	TrialSteps    uint64      `json:"trial_steps"`    // computed twice, the second time densely, to see what a choice of layers loses (LESSISMORE_QUALITY)
	TrialsRefused uint64      `json:"trials_refused"` // steps that could not be: computed densely
	ReplayedSteps uint64      `json:"replayed_steps"` // of a host's GPU: like the one before, and queued as one graph with the host's work
	HandedSteps   uint64      `json:"handed_steps"`   // whose token sets came from the device that computes the layers before
	UnhandedSteps uint64      `json:"unhanded_steps"` // that got none from there: the first layer that may be sparse chose
	ReusedSteps   uint64      `json:"reused_steps"`   // with the token sets of the step before (LESSISMORE_INTERVAL)
	Ablations     uint64      `json:"ablation_steps,omitempty"`
	Audits        uint64      `json:"audits"` // of a sparse layer by the guard
	Alarms        uint64      `json:"alarms"` // of the guard: a choice did not keep what was expected
	Audited       []LayerLoss `json:"audited,omitempty"`
	Events        []Event     `json:"events,omitempty"`
	Trace         *Trace      `json:"trace,omitempty"` // LESSISMORE_TRACE

	HugePageBytes uint64 `json:"huge_page_bytes"` // of K/V on the CPU (LESSISMORE_HUGE_PAGES)

	Declined map[string]uint64 `json:"declined"`

	Left      [Reasons]uint64 `json:"-"` // to the host, by reason
	Offloaded LayerSet        `json:"-"`
}

// LayerLoss is what audits of a layer found.
type LayerLoss struct {
	Layer    int     `json:"layer"`
	Audits   uint64  `json:"audits"`
	Loss     float64 `json:"loss"`     // of the worst head, mean of the later audits
	Expected float64 `json:"expected"` // by the profile
}

// Event is something that the guard or a measurement did, and when.
type Event struct {
	Step     uint64  `json:"step"`   // of the context
	Tokens   int     `json:"tokens"` // visible then
	What     string  `json:"what"`   // "measured", "drift"; "interval": it was given up
	Layers   []int   `json:"layers"` // the choice after a measurement; the layer that drifted
	Loss     float64 `json:"loss"`
	Expected float64 `json:"expected,omitempty"`
}

// MaxEvents bounds what a context remembers; the first ones stay.
const MaxEvents = 64

// TraceStep is one step of a context: its first row.
type TraceStep struct {
	Step   uint64 `json:"step"`   // of the context
	Tokens int    `json:"tokens"` // visible
	What   string `json:"what"`   // "sparse"; "dense", "measured": everything is attended to; "ablation"
	Layer  int    `json:"layer"`  // whose set it is: the last selection layer; -1: there is none
	Set    string `json:"set"`    // positions among the visible tokens, ascending, such as "0-3 17 40-71"

	Positions []int32 `json:"-"` // the same
}

// TraceAudit is one audit of the guard.
type TraceAudit struct {
	Step  uint64  `json:"step"`
	Layer int     `json:"layer"`
	Loss  float64 `json:"loss"` // of the worst head, in this step alone
	Mean  float64 `json:"mean"` // of the worst head so far: what is held against the profile
}

// Trace is what was kept.
type Trace struct {
	Every  uint64       `json:"every"` // step of which one was kept
	Steps  []TraceStep  `json:"steps"`
	Audits []TraceAudit `json:"audits"`
}

// LayerSet is a set of layer numbers.
type LayerSet [(settings.MaxLayer + 1) / 64]uint64

func (s *LayerSet) Add(layer int) { s[layer/64] |= 1 << (layer % 64) }

func (s *LayerSet) list() []int {
	out := []int{}
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			out = append(out, 64*i+bits.TrailingZeros64(word))
		}
	}
	return out
}

// Took notes that a layer was computed.
func (s *Stats) Took(layer int) { s.Offloaded.Add(layer) }

// Decline counts an attention that is left to the host.
func (s *Stats) Decline(r Reason) {
	if r > 0 && r < Reasons {
		s.Left[r]++
	}
}

// Add sums o into s.
func (s *Stats) Add(o *Stats) {
	if s.Layers == 0 {
		s.Layers, s.SelectionLayers, s.LayersFrom = o.Layers, o.SelectionLayers, o.LayersFrom
	}
	s.addAudits(o.Audited)
	for name, n := range s.Counters() {
		*n += *o.Counter(name)
	}
	for i, n := range o.Left {
		s.Left[i] += n
	}
	for i, word := range o.Offloaded {
		s.Offloaded[i] |= word
	}
}

// counters are the places of the numbers that contexts add up, by their names in JSON and in the C ABI.
var counters = func() map[string]uintptr {
	found := map[string]uintptr{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Stats]()) {
		if f.Type.Kind() == reflect.Uint64 {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			found[name] = f.Offset
		}
	}
	return found
}()

// Counter is the number of a name; nil: there is none.
func (s *Stats) Counter(name string) *uint64 {
	offset, ok := counters[name]
	if !ok {
		return nil
	}
	return (*uint64)(unsafe.Add(unsafe.Pointer(s), offset))
}

// Counters are all of them.
func (s *Stats) Counters() iter.Seq2[string, *uint64] {
	return func(yield func(string, *uint64) bool) {
		for name := range counters {
			if !yield(name, s.Counter(name)) {
				return
			}
		}
	}
}

// addAudits merges what two contexts' audits found, each weighing by its number.
func (s *Stats) addAudits(of []LayerLoss) {
	for _, o := range of {
		i := slices.IndexFunc(s.Audited, func(a LayerLoss) bool { return a.Layer == o.Layer })
		if i < 0 {
			s.Audited = append(slices.Clip(s.Audited), o)
			continue
		}
		s.Audited = slices.Clone(s.Audited)
		a, all := &s.Audited[i], float64(s.Audited[i].Audits+o.Audits)
		a.Loss = selection.Round((a.Loss*float64(a.Audits) + o.Loss*float64(o.Audits)) / all)
		a.Expected = o.Expected
		a.Audits += o.Audits
	}
}

// named fills what JSON shows.
func (s *Stats) named() {
	s.Declined = map[string]uint64{}
	for r, n := range s.Left {
		if n > 0 {
			s.Declined[Reason(r).String()] = n
		}
	}
	if s.SelectionLayers == nil {
		s.SelectionLayers = []int{}
	}
	s.LayersOffloaded = s.Offloaded.list()
}

// Report is the statistics as they are written: LESSISMORE_STATS, and the C ABI's JSON.
type Report struct {
	Version  string               `json:"version"`
	Engine   string               `json:"engine"` // "cpu", "cuda" or "cpu, cuda": what has computed
	Target   string               `json:"target"` // of the CPU kernels
	State    string               `json:"state"`  // "active" or "inert"
	Reason   string               `json:"reason"` // why it is inert; "" if it is not
	Config   settings.Config      `json:"config"` // that was in force
	Models   []*selection.Profile `json:"models"` // what was measured, or read from profiles
	Contexts []Stats              `json:"contexts"`
	Total    Stats                `json:"total"`
}

// JSON is the report's text.
func (r *Report) JSON() []byte {
	r.Total = Stats{}
	for i := range r.Contexts {
		r.Contexts[i].named()
		r.Total.Add(&r.Contexts[i])
	}
	r.Total.named()
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil { // numbers and strings only: cannot happen
		return []byte("{}")
	}
	return append(text, '\n')
}

// Outcome is a context in one line: what was attended to, or why nothing was offloaded; "" if there was nothing to take.
func (s *Stats) Outcome() string {
	if s.Steps > 0 {
		return fmt.Sprintf("%d steps, %.1f%% of the tokens attended", s.Steps, 100*float64(s.TokensAttended)/float64(max(s.TokensVisible, 1)))
	}
	var why []Reason
	for r := range Reasons {
		if s.Left[r] > 0 && r != ReasonDiscovery {
			why = append(why, r)
		}
	}
	if len(why) == 0 {
		return ""
	}
	slices.SortStableFunc(why, func(a, b Reason) int { return int(s.Left[b]) - int(s.Left[a]) })
	texts := make([]string, len(why))
	for i, r := range why {
		texts[i] = fmt.Sprintf("%s %d (%s)", r, s.Left[r], Meanings[r])
	}
	return "nothing was offloaded; attentions left to the host: " + strings.Join(texts, ", ")
}
