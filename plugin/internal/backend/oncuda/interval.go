package oncuda

import (
	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/steps"
)

// lasting is how token sets serve the steps after the one that chose them (Config.Interval). How much the rows see, and whether
// a captured step was replayed in between, only the device knows: it lets the step's tokens join the sets, or has the step attend
// to everything (kernels/cuda/join.h). The host counts how many have joined. A captured step always chooses: it may be
// replayed at any time.
type lasting struct {
	spare    int    // tokens that may join a set
	groups   int    // of sets: one for each selection layer, where sets last
	joined   int32  // tokens that have joined since the sets were chosen
	rows     int32  // of the step that chose
	revision uint64 // of the roles then
	whole    bool   // the last step was computed up to its last layer, and left all of its sets
}

func newLasting(config *settings.Config, layers int, selects bool) lasting {
	l := lasting{spare: config.Interval - 1, groups: 1}
	if !selects {
		l.spare = 0
	}
	if l.spare > 0 {
		l.groups = max(len(config.Layers), config.SelectionsFor(layers), 2)
	}
	return l
}

// begin decides what a step is for, whose first layer has been asked for, and whether it goes on with the sets of the one before:
// then a token more has joined them.
func (d *Decoder) begin(a *backend.Attention) (lasting, error) {
	l := d.lasting
	may := l.whole && l.rows == a.Rows && int(l.joined) < min(l.spare, d.Cal.Interval-1) && !d.Device.Capturing(a.Stream)
	if err := d.Cal.begin(a, d.params.Heads, may); err != nil {
		return l, err
	}
	if may && d.Cal.choosesByRole() && l.revision == d.Cal.Revision && int(l.joined) < d.Cal.Interval-1 {
		l.joined++
		return l, nil
	}
	l.joined, l.rows, l.revision = 0, a.Rows, d.Cal.Revision
	return l, nil
}

// hasAll tells whether every selection layer of a step that was computed to its end has left its sets.
func (d *Decoder) hasAll(s *steps.Step) bool {
	chosen := len(d.Cal.Roles.Selections())
	return d.lasting.spare > 0 && d.Cal.choosesByRole() && chosen <= d.lasting.groups && (s.Resumed || chosen > 0 && int(s.Did.Chose) == chosen)
}

// group is which token sets a layer chooses or attends to.
func (d *Decoder) group(layer int) int {
	if d.lasting.groups == 1 {
		return 0
	}
	return min(d.Cal.Roles.Group(layer), d.lasting.groups-1)
}

// setStride is the tokens that a set has room for.
func (d *Decoder) setStride() int64 { return int64(d.engine.Settings.Budget + d.lasting.spare) }

// setAt is where the set of a row begins, in tokens.
func (d *Decoder) setAt(group, row int) int64 {
	return (int64(group)*int64(d.params.MaxRows) + int64(row)) * d.setStride()
}

// goOn queues what lets each row's new token join its sets, in the step that c is the first call of.
func (d *Decoder) goOn(c *cuda.Call, stream uintptr) error {
	d.join = cuda.Join{Call: *c, Kept: d.kept, NoSets: d.noSets, GroupStride: d.setAt(1, 0), Groups: int32(len(d.Cal.Roles.Selections()))}
	d.join.Call.Set, d.join.Call.Positions = d.sets, d.positions
	return d.Device.Join(&d.join, stream)
}
