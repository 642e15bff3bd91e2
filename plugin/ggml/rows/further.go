package rows

import (
	"bytes"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/steps"
)

// A row that sees one token more than another one, its own, has that one's order with its token behind: than the row of the step
// before (seen), or in a draft than the row in front (front).

// Mask values of a hidden slot, as bytes.
var (
	hidden16 = [2]byte{0x00, 0xfc}
	hidden32 = [4]byte{0x00, 0x00, 0x80, 0xff}
)

// adds tells whether a row of mask values is another one's but for a slot: hidden there, and visible here without a bias.
func adds(now, then []byte, slot, size int) bool {
	hidden := hidden16[:]
	if size == 4 {
		hidden = hidden32[:]
	}
	var visible [4]byte
	at, end := slot*size, (slot+1)*size
	return bytes.Equal(then[at:end], hidden) && bytes.Equal(now[at:end], visible[:size]) &&
		bytes.Equal(now[:at], then[:at]) && bytes.Equal(now[end:], then[end:])
}

// further has row k of the step, row i of the batch, see so many tokens in a known order; last: the slot of the one before its own.
func (r *Rows) further(n *graph.Node, k, i int, t *Track, visible int, slots []int32, last int32) {
	stream, token := i/int(n.Tokens), i%int(n.Tokens)
	split := steps.SplitBudget(visible, r.config.Budget, r.config.Recency, r.config.SinkTokens)
	if !r.decodes(k, i, t, int(n.FirstStream)+stream, true, last) {
		split = steps.Split{}
	}
	r.Step.See(k, token, stream, visible, slots, nil, split)
}
