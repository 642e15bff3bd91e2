package plugin

// prints remembers what rows held, by their prints; the older ones are forgotten. The same keys in another slot, or later, are the same token at the same position: the keys of a layer
// that rotates follow from both, and those of a later layer from the text before them, too.
type prints struct {
	now, before []printed // open addressing; now becomes before when it is half full
	used        int
}

type printed struct {
	print    uint64 // 0: free
	position int32  // unknown: rows of different positions had this print
	prompt   bool
}

// Entries of a table, of which half are used: several times what a store holds, as a host keeps more conversations than
// fit into it. 1 to 8 MiB.
const minPrints, maxPrints = 1 << 16, 1 << 19

// make gets memory for at least that many prints.
func (p *prints) make(n int) {
	size := 2
	for size < 2*n {
		size *= 2
	}
	*p = prints{now: make([]printed, size), before: make([]printed, size)}
}

// find is where a print is in a table, or would be.
func find(table []printed, print uint64) *printed {
	mask := uint64(len(table) - 1)
	for i := print & mask; ; i = (i + 1) & mask {
		if table[i].print == print || table[i].print == 0 {
			return &table[i]
		}
	}
}

func (p *prints) put(print uint64, position int32, prompt bool) {
	if p.now == nil {
		return
	}
	if p.used >= len(p.now)/2 {
		p.now, p.before = p.before, p.now
		clear(p.now)
		p.used = 0
	}
	at := find(p.now, print)
	switch {
	case at.print == 0:
		p.used++
		*at = printed{print, position, prompt}
	case at.position != position:
		at.position = unknown
	default:
		at.prompt = prompt
	}
}

func (p *prints) get(print uint64) (position int32, prompt, ok bool) {
	if p.now == nil {
		return unknown, false, false
	}
	at := find(p.now, print)
	if at.print == 0 {
		at = find(p.before, print)
	}
	return at.position, at.prompt, at.print != 0 && at.position != unknown
}
