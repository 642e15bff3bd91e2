package ongpu

import (
	"unsafe"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/backend/oncuda"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/stats"
)

// handover is how token sets come from the device that computes the layers before this one's: the step's, once it is proven that
// they are of the same step. From a GPU they are copied when that one has made them, ordered by events; from the CPU they are
// there already, for it is done when this device's part begins. Nothing waits on the host.
type handover struct {
	link *cuda.Handover // from that GPU; nil: there was none so far
	from cuda.Sets      // of the step; no device: from the CPU, or nothing is to be brought

	inbox [2]*cuda.Fetch // on their way from the CPU
	turn  int            // the one of this step
	rows  int            // whose sets are in it; 0: none is
}

// Leaves says where the step leaves its token sets for the next device.
func (d *Device) Leaves(left *contexts.Left) {
	left.OnGPU, left.Apart = d.decoder.Sets(), d.apart()
}

// apart is how many slots there are from a row's stream to the next one's, as token sets count them: from each row's own first one
// where there is no table.
func (d *Device) apart() int32 {
	if d.visibility.Table == 0 {
		return 0
	}
	return d.visibility.SlotsApart
}

// follow has the step go on with token sets from the device before this one, where its first layers attend to such: as handed, or the
// first one chooses.
func (d *Device) follow(n *graph.Node) (handed bool, reason stats.Reason) {
	if !d.inherits {
		if d.layers.Later() {
			d.decoder.Follow(false)
		}
		return false, stats.Offloaded
	}
	handed, err := d.receive(n)
	if err != nil {
		d.layers.Refuse(err.Error())
		return false, stats.ReasonInert
	}
	if handed {
		d.layers.Counts.HandedSteps++
	} else {
		d.layers.Counts.UnhandedSteps++
	}
	d.decoder.Follow(handed)
	return handed, stats.Offloaded
}

// receive tells whether the step's token sets come from the device before this one, and gets ready what brings them.
func (d *Device) receive(n *graph.Node) (handed bool, err error) {
	h := &d.handover
	h.from, h.rows = cuda.Sets{}, 0
	left, ok := d.layers.Take()
	to := d.decoder.Sets()
	switch {
	case !ok || to.Device == nil || !d.rows.Same(n, &left):
		return false, nil
	case left.OnGPU.Device == nil:
		return d.fill(&left, &to)
	case left.OnGPU.Device == to.Device || left.OnGPU.Stride != to.Stride || left.Apart != d.apart():
		return false, nil
	}
	if h.link == nil || h.link.From() != left.OnGPU.Device {
		link, err := cuda.NewHandover(left.OnGPU.Device, to.Device)
		if err != nil {
			return false, oncuda.DeviceError(err)
		}
		h.free()
		h.link = link
	}
	h.from = left.OnGPU
	return true, nil
}

// fill puts sets from the CPU where the device can get them; false: it has not got the last ones yet.
func (d *Device) fill(left *contexts.Left, to *cuda.Sets) (bool, error) {
	h := &d.handover
	next := h.inbox[1-h.turn]
	if free, err := next.Ready(); err != nil || !free {
		return false, oncuda.DeviceError(err)
	}
	all := unsafe.Slice((*int32)(unsafe.Pointer(unsafe.SliceData(next.Bytes()))), len(next.Bytes())/4)
	for i := range left.Rows {
		putSet(all[i*int(to.Stride):][:to.Stride], &left.Rows[i], d.apart()*left.Rows[i].Stream)
	}
	h.turn, h.rows = 1-h.turn, len(left.Rows)
	return true, nil
}

// putSet writes what a row attends to: its set, or all that it sees where that is no more than the budget. Kernels read a whole set before
// they know how long it is, so the rest has to be slots, too.
func putSet(to []int32, r *cpu.Row, apart int32) {
	n := int(r.SetLen)
	switch {
	case n > 0:
		copy(to, unsafe.Slice((*int32)(r.Set), n))
	case r.Slots != nil:
		n = copy(to, unsafe.Slice((*int32)(r.Slots), r.Visible))
	default:
		for n = range int(r.Visible) {
			to[n] = int32(n)
		}
		n = int(r.Visible)
	}
	for i := range to[:n] {
		to[i] += apart
	}
	for i := n; i < len(to); i++ {
		to[i] = apart
	}
}

// bring queues what the step was handed, before its first layer.
func (d *Device) bring() error {
	h, to := &d.handover, d.decoder.Sets()
	switch {
	case h.from.Device != nil:
		return h.link.Bring(&h.from, &to, len(d.rows.Step.Rows))
	case h.rows > 0:
		return h.inbox[h.turn].Put(to.Slots, 0, 4*h.rows*int(to.Stride), to.Stream)
	}
	return nil
}

// makeRoom gets memory for sets of so many rows from the CPU, where other devices' may come at all.
func (d *Device) makeRoom(rows int) (err error) {
	if !d.layers.Later() {
		return nil
	}
	for i := range d.handover.inbox {
		if d.handover.inbox[i], err = d.device.NewFetch(4 * rows * int(d.decoder.Sets().Stride)); err != nil {
			return err
		}
	}
	return nil
}

func (h *handover) free() {
	if h.link != nil {
		h.link.Free()
		h.link = nil
	}
}

// leave gives the memory back, once nothing is under way.
func (h *handover) leave() {
	h.free()
	for i := range h.inbox {
		if h.inbox[i] != nil {
			h.inbox[i].Free()
			h.inbox[i] = nil
		}
	}
	h.from, h.rows = cuda.Sets{}, 0
}
