package plugin

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"

	"lessismore/plugin/internal/cpu"
)

// Reason is why an attention was left to the host. Its text is the key in the statistics.
type Reason int32

const (
	Taken            Reason = iota // not a reason: the library attends
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
	reasons
)

var reasonNames = [reasons]string{
	"", "prompt", "mixed", "discovery", "no_cache", "sliding_window", "mla", "type", "shape",
	"sparse_hint", "unknown_rows", "undecided", "inert", "memory", "failed", "shared_store",
}

// String is the reason's name in the statistics.
func (r Reason) String() string {
	if r > 0 && r < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", int32(r))
}

// Stats counts what was done. Tokens are counted per row and layer.
type Stats struct {
	Inert string `json:"inert,omitempty"` // why this context is left alone

	Device          string `json:"device,omitempty"`      // the GPU that computed it; "": the CPU
	LayersFrom      string `json:"layers_from,omitempty"` // "given", "profile", "measured", "rule"; "unmeasured": dense so far
	Layers          int    `json:"layers"`                // layers that can take part
	SelectionLayers []int  `json:"selection_layers"`      // of them, the ones that choose
	LayersTaken     []int  `json:"layers_taken"`          // of them, the ones that the library has computed

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
	CellOrder     uint64 `json:"cell_order"`     // rows beyond it that attend to everything: they are not; on a GPU: recency by slot number
	PromptRows    uint64 `json:"prompt_rows"`    // rows beyond it that attend to everything: they belong to a prompt
	UntoldRows    uint64 `json:"untold_rows"`    // rows beyond it whose graph does not tell that logits are wanted

	MeasuredSteps uint64      `json:"measured_steps"` // computed densely, to find the selection layers
	DenseSteps    uint64      `json:"dense_steps"`    // computed densely, because they are not known
	ReusedSteps   uint64      `json:"reused_steps"`   // with the token sets of the step before (LESSISMORE_INTERVAL)
	Interventions uint64      `json:"intervention_steps,omitempty"`
	Audits        uint64      `json:"audits"` // of a sparse layer by the guard
	Alarms        uint64      `json:"alarms"` // of the guard: a choice did not keep what was expected
	Audited       []LayerLoss `json:"audited,omitempty"`
	Events        []Event     `json:"events,omitempty"`
	Trace         *Trace      `json:"trace,omitempty"` // LESSISMORE_TRACE

	Declined map[string]uint64 `json:"declined"`

	declined [reasons]uint64
	taken    layerSet
}

// layerSet is a set of layer numbers.
type layerSet [(MaxLayer + 1) / 64]uint64

func (s *layerSet) add(layer int) { s[layer/64] |= 1 << (layer % 64) }

func (s *layerSet) list() []int {
	out := []int{}
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			out = append(out, 64*i+bits.TrailingZeros64(word))
		}
	}
	return out
}

// decline counts an attention that is left to the host.
func (s *Stats) decline(r Reason) {
	if r > 0 && r < reasons {
		s.declined[r]++
	}
}

// planned counts one layer's call over the rows of a step.
func (s *Stats) planned(st *step, layer int, role Role, mode cpu.Mode) {
	s.taken.add(layer)
	switch {
	case mode == cpu.Select:
		s.SelectCalls++
	case mode == cpu.List:
		s.SparseCalls++
	default:
		s.DenseCalls++
		if role == RoleSparse && st.sparse() {
			s.NoSetCalls++
		}
	}
	for i := range st.rows {
		visible, attended := uint64(st.rows[i].Visible), uint64(st.rows[i].Visible)
		if mode == cpu.List && st.rows[i].SetLen > 0 {
			attended = uint64(st.rows[i].SetLen)
		}
		s.TokensVisible += visible
		s.TokensAttended += attended
		if role == RoleSparse {
			s.SparseTokensVisible += visible
			s.SparseTokensAttended += attended
		}
	}
}

// began counts the rows of a new step. In a measured one no row is sparse, though one has a set.
func (s *Stats) began(st *step, measured bool) {
	s.Steps++
	for i := range st.rows {
		s.Rows++
		if st.rows[i].SetLen > 0 && !measured {
			s.RowsSparse++
		} else {
			s.RowsFull++
		}
	}
}

// add sums o into s.
func (s *Stats) add(o *Stats) {
	if s.Layers == 0 {
		s.Layers, s.SelectionLayers, s.LayersFrom = o.Layers, o.SelectionLayers, o.LayersFrom
	}
	s.addAudits(o.Audited)
	for _, f := range []struct{ to, from *uint64 }{
		{&s.Steps, &o.Steps}, {&s.Rows, &o.Rows}, {&s.RowsSparse, &o.RowsSparse}, {&s.RowsFull, &o.RowsFull},
		{&s.TokensVisible, &o.TokensVisible}, {&s.TokensAttended, &o.TokensAttended},
		{&s.SparseTokensVisible, &o.SparseTokensVisible}, {&s.SparseTokensAttended, &o.SparseTokensAttended},
		{&s.DenseCalls, &o.DenseCalls}, {&s.SelectCalls, &o.SelectCalls}, {&s.SparseCalls, &o.SparseCalls},
		{&s.NoSetCalls, &o.NoSetCalls}, {&s.DenseNS, &o.DenseNS}, {&s.SelectNS, &o.SelectNS},
		{&s.SparseNS, &o.SparseNS}, {&s.RankingNS, &o.RankingNS},
		{&s.MeasuredSteps, &o.MeasuredSteps}, {&s.DenseSteps, &o.DenseSteps}, {&s.ReusedSteps, &o.ReusedSteps}, {&s.Interventions, &o.Interventions},
		{&s.Audits, &o.Audits}, {&s.Alarms, &o.Alarms},
		{&s.PositionOrder, &o.PositionOrder}, {&s.CellOrder, &o.CellOrder},
		{&s.PromptRows, &o.PromptRows}, {&s.UntoldRows, &o.UntoldRows},
	} {
		*f.to += *f.from
	}
	for i, n := range o.declined {
		s.declined[i] += n
	}
	for i, word := range o.taken {
		s.taken[i] |= word
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
		a.Loss = round((a.Loss*float64(a.Audits) + o.Loss*float64(o.Audits)) / all)
		a.Expected = o.Expected
		a.Audits += o.Audits
	}
}

// named fills what JSON shows.
func (s *Stats) named() {
	s.Declined = map[string]uint64{}
	for r, n := range s.declined {
		if n > 0 {
			s.Declined[Reason(r).String()] = n
		}
	}
	if s.SelectionLayers == nil {
		s.SelectionLayers = []int{}
	}
	s.LayersTaken = s.taken.list()
}

// timings are the kernels' clocks, one per mode, in C memory.
type timings struct {
	memory cpu.Arena
	modes  []cpu.Timing
}

func (t *timings) of(mode cpu.Mode) *cpu.Timing {
	if t.modes == nil {
		if t.modes = cpu.Slice[cpu.Timing](&t.memory, int(cpu.List)+1); t.modes == nil {
			return nil
		}
	}
	return &t.modes[mode]
}

// read copies the clocks into s.
func (t *timings) read(s *Stats) {
	if t.modes == nil {
		return
	}
	s.DenseNS, s.SelectNS, s.SparseNS = t.modes[cpu.Full].AttendNS, t.modes[cpu.Select].AttendNS, t.modes[cpu.List].AttendNS
	s.RankingNS = t.modes[cpu.Select].SelectNS
}

func (t *timings) free() {
	t.memory.Free()
	t.modes = nil
}

// Report is the statistics as they are written: LESSISMORE_STATS, and the C ABI's JSON.
type Report struct {
	Version  string       `json:"version"`
	Engine   string       `json:"engine"` // "cpu", "cuda" or "cpu, cuda": what has computed
	Target   string       `json:"target"` // of the CPU kernels
	State    string       `json:"state"`  // "active" or "inert"
	Reason   string       `json:"reason"` // why it is inert; "" if it is not
	Config   ReportConfig `json:"config"`
	Models   []*Profile   `json:"models"` // what was measured, or read from profiles
	Contexts []Stats      `json:"contexts"`
	Total    Stats        `json:"total"`
}

// ReportConfig is the configuration that was in force.
type ReportConfig struct {
	Budget     int     `json:"budget"`
	Layers     []int   `json:"layers"` // null: found by measuring
	Recency    float64 `json:"recency"`
	SinkTokens int     `json:"sink_tokens"`
	Policy     string  `json:"policy"`
	Selections int     `json:"selections"`
	Guard      int     `json:"guard"`    // steps between audits; 0: off
	Interval   int     `json:"interval"` // steps that a token set serves
	Trace      int     `json:"trace"`    // steps of a context whose token sets are kept at most; 0: none
}

// JSON is the report's text.
func (r *Report) JSON() []byte {
	r.Total = Stats{}
	for i := range r.Contexts {
		r.Contexts[i].named()
		r.Total.add(&r.Contexts[i])
	}
	r.Total.named()
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil { // numbers and strings only: cannot happen
		return []byte("{}")
	}
	return append(text, '\n')
}
