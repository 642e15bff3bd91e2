package decode

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/x448/float16"

	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
)

// BenchmarkSteps times what each kind of step costs in attention: dense, measured, by layers given, by layers
// found (guard on). 36 layers of 32 query and 8 K/V heads of 128, f16, on one thread. The layers share a few
// stores, which together are far larger than a cache.
//
//	go test -run - -bench Steps -benchtime 1x ./plugin
func BenchmarkSteps(b *testing.B) {
	const layers, heads, kvHeads, dim, budget, stores = 36, 32, 8, 128, 512, 4
	for _, n := range []int{2048, 8192} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rng := rand.New(rand.NewSource(1))
			var memory [2*stores + 3]cpu.Arena
			defer func() {
				for i := range memory {
					memory[i].Free()
				}
			}()
			half := func(arena, count int) uintptr {
				s := cpu.Slice[float16.Float16](&memory[arena], count)
				for i := range s {
					s[i] = float16.Fromfloat32(2*rng.Float32() - 1)
				}
				return address(s)
			}
			query := cpu.Slice[float32](&memory[2*stores], heads*dim)
			for i := range query {
				query[i] = float32(rng.NormFloat64())
			}
			output := cpu.Slice[float32](&memory[2*stores+1], heads*dim)
			slots, position := n+2000, cpu.Slice[int32](&memory[2*stores+2], 1)
			position[0] = int32(n)
			calls := make([]backend.Attention, layers)
			for l := range calls {
				a := backend.Attention{Layer: int32(l), Rows: 1, QueryPositions: address(position), Heads: heads, KVHeads: kvHeads, KeyDim: dim, ValueDim: dim, Slots: int64(slots)}
				a.Query, a.Output = backend.RowView{Data: address(query), HeadStride: 4 * dim}, backend.RowView{Data: address(output), HeadStride: 4 * dim}
				kv := backend.KVView{TokenStride: kvHeads * dim * 2, HeadStride: dim * 2, Type: int32(cpu.F16)}
				a.Key, a.Value = kv, kv
				if l < stores {
					a.Key.Data, a.Value.Data = half(2*l, slots*kvHeads*dim), half(2*l+1, slots*kvHeads*dim)
				} else {
					a.Key.Data, a.Value.Data = calls[l%stores].Key.Data, calls[l%stores].Value.Data
				}
				calls[l] = a
			}
			workers := oncpu.NewWorkers(1)
			defer workers.Free()
			sequence := func(change func(*settings.Config)) *Decoder {
				c := settings.DefaultConfig()
				c.Budget = budget
				change(&c)
				e, _ := contexts.NewEngine(c)
				s, err := onCPU(e, layers, workers)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(s.Free)
				return s
			}
			step := func(s *Decoder) float64 {
				begin := time.Now()
				for l := range calls {
					if err := s.Attend(&calls[l]); err != nil {
						b.Fatal(err)
					}
				}
				return float64(time.Since(begin).Microseconds()) / 1000
			}
			dense := sequence(func(c *settings.Config) { c.Budget = settings.MaxBudget })
			found := sequence(func(c *settings.Config) {})
			var denseMS, measuredMS, givenMS, foundMS, ratio []float64
			for range selection.MeasuredSteps(layers) {
				position[0]++
				d, m := step(dense), step(found)
				denseMS, measuredMS, ratio = append(denseMS, d), append(measuredMS, m), append(ratio, m/d)
			}
			position[0]++
			step(found)
			given := sequence(func(c *settings.Config) { c.Layers = slices.Clone(found.cpu().Cal.Roles.Selections()) })
			step(given)
			var sums [2]float64
			for range 12 * b.N {
				for range 16 { // with about one audit
					position[0]++
					g, f := step(given), step(found)
					givenMS, foundMS = append(givenMS, g), append(foundMS, f)
					sums[0], sums[1] = sums[0]+g, sums[1]+f
				}
			}
			middle := func(x []float64) float64 { slices.Sort(x); return x[len(x)/2] }
			b.ReportMetric(middle(denseMS), "dense-ms")
			b.ReportMetric(middle(measuredMS), "measured-ms")
			b.ReportMetric(middle(ratio), "measured/dense")
			b.ReportMetric(middle(givenMS), "given-ms")
			b.ReportMetric(middle(foundMS), "found-ms")
			b.ReportMetric(sums[1]/sums[0], "found/given-with-audits")
			b.ReportMetric(float64(found.Stats().Audits), "audits")
		})
	}
}
