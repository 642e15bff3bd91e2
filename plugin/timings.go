package plugin

import "lessismore/plugin/internal/cpu"

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
