package graph

import (
	"fmt"
	"unsafe"

	"lessismore/plugin/internal/stats"
)

// Why tells in the user's terms what the shim refuses of a node.
func (n *Node) Why() string {
	what := cstring(n.What)
	if what == "" {
		return n.Reason.String() + ": " + stats.Meanings[n.Reason]
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

// What a shim's graph says of a node that it does not take.
const (
	NoCache    = stats.ReasonNoCache
	MLA        = stats.ReasonMLA
	Type       = stats.ReasonType
	Shape      = stats.ReasonShape
	SparseHint = stats.ReasonSparseHint
	Failed     = stats.ReasonFailed // of the library
)
