package steps

import (
	"lessismore/plugin/internal/cpu"

	"lessismore/plugin/internal/stats"
)

// Timings are the kernels' clocks, one per mode, in C memory.
type Timings struct {
	memory cpu.Arena
	modes  []cpu.Timing
}

func (t *Timings) Of(mode cpu.Mode) *cpu.Timing {
	if t.modes == nil {
		if t.modes = cpu.Slice[cpu.Timing](&t.memory, int(cpu.Sparse)+1); t.modes == nil {
			return nil
		}
	}
	return &t.modes[mode]
}

// Read copies the clocks into s.
func (t *Timings) Read(s *stats.Stats) {
	if t.modes == nil {
		return
	}
	s.DenseNS, s.SelectNS, s.SparseNS = t.modes[cpu.Full].AttendNS, t.modes[cpu.Select].AttendNS, t.modes[cpu.Sparse].AttendNS
	s.RankingNS = t.modes[cpu.Select].SelectNS
}

func (t *Timings) Free() {
	t.memory.Free()
	t.modes = nil
}
