package ongpu

import (
	"lessismore/plugin/internal/backend/oncuda"
	"lessismore/plugin/internal/cuda"
)

// A step that does the same as the one before it need not be queued part by part: the driver replays a recording of it, the
// host's work and the library's in one graph. What changes from step to step lies in device memory: the host's inputs, and
// the lengths and slots that are made from its masks before the recording runs.

// form is what decides, beside the host's graph, about what a step queues.
type form struct {
	generation uint64 // of the layers' roles
	decoder    uint64 // number of the decoder
	visibility cuda.Visibility
	drafted    bool
	handed     bool // token sets come from another device
}

// forms numbers the last few of them.
type forms struct {
	known   [2 * cuda.Recordings]form
	numbers [2 * cuda.Recordings]uint64
	oldest  int
	last    uint64
}

func (f *forms) number(of form) uint64 {
	for i, number := range f.numbers {
		if number != 0 && f.known[i] == of {
			return number
		}
	}
	f.last++
	f.known[f.oldest], f.numbers[f.oldest] = of, f.last
	number := f.last
	f.oldest = (f.oldest + 1) % len(f.known)
	return number
}

// Capture begins a recording of the step that is planned: its nodes are attended to next, and nothing of it runs.
func (d *Device) Capture() error {
	if err := d.bridge.Capture(); err != nil {
		return err // the step goes on in parts
	}
	d.capturing = true
	return nil
}

// Captured ends the recording, see cuda.Bridge. The step itself is still to be done.
func (d *Device) Captured(number int, before uintptr) error {
	d.capturing = false
	d.chosen[number] = d.decoder.Chosen()
	d.decoder.Reset()
	return d.bridge.Captured(number, before)
}

// Replay queues a recording between two events of the driver's, as Attend does with a node. Once it is queued, no error may have the
// host compute the step once more: parts of it have taken the place of what they were computed from.
func (d *Device) Replay(number int, before, after uintptr) error {
	err := d.begin(before)
	if err == nil {
		err = d.bridge.Replay(number)
	}
	if err != nil {
		return d.gone(oncuda.DeviceError(err))
	}
	d.layers.Counts.ReplayedSteps++
	d.layers.Chose(d.chosen[number])
	if err := d.bridge.End(after); err != nil {
		_ = d.gone(oncuda.DeviceError(err)) // the last one, and waited for, as there is no event for the host to wait for
	}
	return nil
}
