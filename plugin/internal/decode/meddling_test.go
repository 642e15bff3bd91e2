package decode

import (
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/selection"
)

// An engine's other functions are called while its decoders attend: sets are sets, and nothing is written by two at once (-race).
func TestCPUMeddling(t *testing.T) {
	config := auto(16)
	config.Interval, config.Guard, config.Trace = 3, 2, 8
	engine, err := contexts.NewEngine(config)
	require.NoError(t, err)
	workers := oncpu.NewWorkers(2)
	defer workers.Free()
	var wait sync.WaitGroup
	var over atomic.Bool
	for k := range 2 {
		x := newTensors(t, rand.New(rand.NewSource(int64(k))), 500)
		wait.Add(1)
		go func() {
			defer wait.Done()
			for round := range 4 {
				d, err := onCPU(engine, testLayers, workers)
				if err != nil {
					t.Error(err)
					return
				}
				for p := int32(100); p < 200; p++ {
					for layer := range int32(testLayers) {
						x.args.Layer, x.query[0] = layer, p
						if err := d.Attend(&x.args); err != nil {
							t.Error(err)
						}
					}
					set, _ := d.TokenSet(0)
					for i := 1; i < len(set); i++ {
						if set[i] <= set[i-1] {
							t.Errorf("round %d, position %d: %v", round, p, set)
							return
						}
					}
				}
				d.Free()
			}
		}()
	}
	go func() {
		for i := 0; !over.Load(); i++ {
			switch i % 5 {
			case 0:
				engine.Ablate(&selection.Ablation{Choice: []int{1, 4}})
			case 1:
				engine.Ablate(&selection.Ablation{Select: 1, Sparse: 3})
			case 2, 3:
				engine.Ablate(nil)
			}
			engine.Report().JSON()
			engine.Total()
		}
	}()
	wait.Wait()
	over.Store(true)
}
