package plugin_test

import (
	"fmt"

	"github.com/x448/float16"

	"lessismore/plugin"
)

// One decode step over a K/V store of 100 tokens in f16: layer 0 attends to all of them and chooses 8, layer 1 attends to
// these.
func ExampleTensors() {
	const layers, tokens, heads, kvHeads, dim = 2, 100, 4, 2, 16
	config := plugin.DefaultConfig()
	config.Budget, config.SinkTokens, config.Layers = 8, 1, []int{0}
	engine, err := plugin.NewEngine(config)
	if err != nil {
		panic(err)
	}
	workers := plugin.NewWorkers(1)
	defer workers.Free()
	decoder, err := plugin.NewDecoder(engine, layers, workers, plugin.DecoderParams{Device: plugin.CPU, MaxRows: 1})
	if err != nil {
		panic(err)
	}
	defer decoder.Free()

	// The query looks along the first element, in which the keys of some tokens stand out; a token's value is its number.
	query, output := make([]float32, heads*dim), make([]float32, heads*dim)
	key, value := make([]float16.Float16, tokens*kvHeads*dim), make([]float16.Float16, tokens*kvHeads*dim)
	for h := range heads {
		query[h*dim] = 4
	}
	for i := range value {
		value[i] = float16.Fromfloat32(float32(i / (kvHeads * dim)))
	}
	for i, token := range []int{70, 20, 21, 50, 10, 90} {
		for h := range kvHeads {
			key[(token*kvHeads+h)*dim] = float16.Fromfloat32(float32(20 - i))
		}
	}

	layer := plugin.Tensors{
		Query: plugin.Float32View(query, 1, heads, dim), Output: plugin.Float32View(output, 1, heads, dim),
		Key: plugin.Float16View(key, tokens, kvHeads, dim), Value: plugin.Float16View(value, tokens, kvHeads, dim),
		Lengths: []int32{tokens},
	}
	for layer.Layer = range layers {
		if err := layer.Attend(decoder); err != nil {
			panic(err)
		}
		fmt.Printf("layer %d: %.1f\n", layer.Layer, output[0])
	}
	set, err := decoder.TokenSet(0)
	fmt.Println(set, err)

	layer.Mask = make([]float16.Float16, tokens-1)
	fmt.Println(layer.Attend(decoder))
	// Output:
	// layer 0: 52.9
	// layer 1: 52.9
	// [0 10 20 21 50 70 90 99] <nil>
	// mask has 99 elements, neither one for each of 100 slots nor as many for each of 1 rows
}
