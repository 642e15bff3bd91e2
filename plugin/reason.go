package plugin

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"
)

// meanings say what a user can make of a reason.
var meanings = [reasons]string{
	ReasonPrompt:     "several query tokens of one sequence: a prompt, or speculation",
	ReasonMixed:      "prompt and decode rows in one batch",
	ReasonDiscovery:  "the model's layers were being counted",
	ReasonNoCache:    "keys are not read from a K/V cache (an encoder), or the host converts the cache first (f32; f16, bf16, q8_0 and q4_0 are taken)",
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
}

// why tells in the user's terms what the shim refuses of a node.
func (n *Node) why() string {
	what := cstring(n.What)
	if what == "" {
		return n.Reason.String() + ": " + meanings[n.Reason]
	}
	if of := cstring(n.Type); of != "" {
		what += " " + of
	} else {
		what += fmt.Sprintf(" %d", n.Value)
	}
	if remedy := cstring(n.Remedy); remedy != "" {
		what += "; " + remedy
	}
	return n.Reason.String() + ": " + what
}

// cstring is a text of C's; "" for nil.
func cstring(p unsafe.Pointer) string {
	if p == nil {
		return ""
	}
	n := 0
	for *(*byte)(unsafe.Add(p, n)) != 0 {
		n++
	}
	return string(unsafe.Slice((*byte)(p), n))
}

// Outcome is a context in one line: what was attended to, or why nothing was taken; "" if there was nothing to take.
func (s *Stats) Outcome() string {
	if s.Steps > 0 {
		return fmt.Sprintf("%d steps, %.1f%% of the tokens attended", s.Steps, 100*float64(s.TokensAttended)/float64(max(s.TokensVisible, 1)))
	}
	var left []Reason
	for r := range reasons {
		if s.declined[r] > 0 && r != ReasonDiscovery {
			left = append(left, r)
		}
	}
	if len(left) == 0 {
		return ""
	}
	slices.SortStableFunc(left, func(a, b Reason) int { return int(s.declined[b]) - int(s.declined[a]) })
	texts := make([]string, len(left))
	for i, r := range left {
		texts[i] = fmt.Sprintf("%s %d (%s)", r, s.declined[r], meanings[r])
	}
	return "nothing was taken; attentions left to the host: " + strings.Join(texts, ", ")
}
