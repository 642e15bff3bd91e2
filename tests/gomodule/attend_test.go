// Package gomodule is another module's: it imports lessismore/plugin as a Go program elsewhere does.
package gomodule

import (
	"testing"

	"github.com/x448/float16"

	"lessismore/plugin"
)

// The softmax of equal logits is the mean: of the values 0 .. 99, 49.5; with the newer half masked, 24.5.
func TestAnotherModuleAttends(t *testing.T) {
	engine, err := plugin.NewEngine(plugin.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	workers := plugin.NewWorkers(0)
	defer workers.Free()
	decoder, err := plugin.NewDecoder(engine, 1, workers, plugin.DecoderParams{Device: plugin.CPU, MaxRows: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Free()

	const tokens, dim = 100, 64
	key, value := make([]float16.Float16, tokens*dim), make([]float16.Float16, tokens*dim)
	for i := range value {
		value[i] = float16.Fromfloat32(float32(i / dim))
	}
	query, output := make([]float32, dim), make([]float32, dim)
	layer := plugin.Tensors{
		Query: plugin.Float32View(query, 1, 1, dim), Output: plugin.Float32View(output, 1, 1, dim),
		Key: plugin.Float16View(key, tokens, 1, dim), Value: plugin.Float16View(value, tokens, 1, dim),
		Lengths: []int32{tokens},
	}
	attend := func(want float32) {
		if err := layer.Attend(decoder); err != nil {
			t.Fatal(err)
		}
		for i, got := range output {
			if d := got - want; d < -1e-4 || d > 1e-4 {
				t.Fatalf("element %d is %v, not %v", i, got, want)
			}
		}
	}
	attend(49.5)
	layer.Mask = make([]float16.Float16, tokens)
	for i := tokens / 2; i < tokens; i++ {
		layer.Mask[i] = float16.Inf(-1)
	}
	attend(24.5)
}
