package steps

import "math"

// Split divides a token budget among the parts of a token set, for one row with n visible tokens
// (LessIsMore, arXiv 2508.07101, section 3; the sink tokens come from the authors' code):
// the first SinkTokens tokens, the newest Recent tokens, and TopK tokens that the heads choose in between.
type Split struct {
	SinkTokens, TopK, Recent int
}

// Len is the size of the token set.
func (s Split) Len() int { return s.SinkTokens + s.TopK + s.Recent }

// SplitBudget divides min(n, budget) tokens. With n <= budget there is nothing to choose and the set is
// every token; callers attend fully then.
//
// Where the share of the newest tokens is no larger than the sinks, the sinks yield: the authors'
// comparison lets the recency window vanish instead, for budgets of 13 to 16, and so may drop the
// token that is being computed.
func SplitBudget(n, budget int, recency float64, sinks int) Split {
	k := min(n, budget)
	// 0.9 of 100 is 90, though 100*0.9 is a little more than that in binary.
	recent := int(math.Ceil(float64(k)*recency - 1e-9))
	recent = min(max(recent, 0), k)
	mid := k - recent
	if recent <= sinks {
		sinks = 0
	} else {
		recent -= sinks
	}
	return Split{SinkTokens: sinks, TopK: mid, Recent: recent}
}
