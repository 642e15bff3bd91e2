package plugin_test

import (
	"math"
	"math/rand"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"

	"lessismore/plugin"
)

func newDecoder(t *testing.T, layers int, maxRows int32) *plugin.Decoder {
	config := plugin.DefaultConfig()
	config.Budget, config.Layers = 8, []int{1}
	engine, err := plugin.NewEngine(config)
	require.NoError(t, err)
	workers := plugin.NewWorkers(1)
	decoder, err := plugin.NewDecoder(engine, layers, workers, plugin.DecoderParams{Device: plugin.CPU, MaxRows: maxRows, Capacity: 64})
	require.NoError(t, err)
	t.Cleanup(func() {
		decoder.Free()
		workers.Free()
	})
	return decoder
}

// pagedRows is twoRows with its slots in pages of eight, of which the rows share the first.
func pagedRows() *plugin.Tensors {
	c := twoRows()
	c.Key = plugin.Float16View(make([]float16.Float16, 5*8*64), 8, 2, 32)
	c.Value = plugin.BytesView(make([]byte, 5*8*2*34), plugin.Q8_0, 8, 2, 32)
	c.Key.Pages, c.Value.Pages = 5, 5
	c.Table, c.Sequences = []int32{4, 0, 2, 4, 3, 1}, []uint64{7, 9}
	return c
}

// twoRows is a call of two rows of four heads, over 24 slots of two heads of 32.
func twoRows() *plugin.Tensors {
	return &plugin.Tensors{
		Query: plugin.Float32View(make([]float32, 256), 2, 4, 32), Output: plugin.Float32View(make([]float32, 256), 2, 4, 32),
		Key:     plugin.Float16View(make([]float16.Float16, 24*64), 24, 2, 32),
		Value:   plugin.BytesView(make([]byte, 24*2*34), plugin.Q8_0, 24, 2, 32),
		Lengths: []int32{20, 24},
	}
}

func TestTensorsNameWhatIsWrong(t *testing.T) {
	decoder := newDecoder(t, 3, 2)
	require.NoError(t, twoRows().Attend(decoder))
	odd := make([]byte, 24*2*34+2)
	for _, x := range []struct {
		change func(c *plugin.Tensors)
		text   string
	}{
		{func(c *plugin.Tensors) { c.Key = plugin.View{} }, "key has 0 tokens, which is not in 1 .. 16777216"},
		{func(c *plugin.Tensors) { c.Query.Heads = 0 }, "query has 0 heads"},
		{func(c *plugin.Tensors) { c.Output.Dim = -1 }, "output has -1 dim"},
		{func(c *plugin.Tensors) { c.Value.Tokens = math.MaxInt }, "value has 9223372036854775807 tokens"},
		{func(c *plugin.Tensors) { c.Key = plugin.Float16View(nil, 24, 2, 32) }, "key has 0 bytes, which is too short for"},
		{func(c *plugin.Tensors) { c.Key = plugin.Float16View(make([]float16.Float16, 24*64-1), 24, 2, 32) }, "key has 3070 bytes, which is too short for 1 pages of 24 tokens of 2 heads of 32 elements"},
		{func(c *plugin.Tensors) { c.Query = plugin.Float32View(make([]float32, 255), 2, 4, 32) }, "query has 1020 bytes"},
		{func(c *plugin.Tensors) { c.Value.TokenStride++ }, "value has 1632 bytes"},
		{func(c *plugin.Tensors) { c.Value.TokenStride = math.MaxInt64 }, "value has 1632 bytes"},
		{func(c *plugin.Tensors) { c.Key.Pages = 2 }, "key has 3072 bytes, which is too short for 2 pages"},
		{func(c *plugin.Tensors) { c.Key.Pages = 3 }, "key has 3 pages, which is neither 1 nor 2"},
		{func(c *plugin.Tensors) { c.Key.Pages = 0 }, "key has 0 pages"},
		{func(c *plugin.Tensors) { c.Query.Pages = 2 }, "query has 2 pages, which is neither 1 nor 1"},
		{func(c *plugin.Tensors) { c.Key.HeadStride = -64 }, "key_head_stride = -64 is less than a row of 64 bytes"},
		{func(c *plugin.Tensors) { c.Key.TokenStride = 0 }, "key_token_stride = 0 is less than a row of 64 bytes"},
		{func(c *plugin.Tensors) { c.Key.Type = 77 }, "key_dtype = 77 is unknown"},
		{func(c *plugin.Tensors) { c.Key.Type = -1 }, "key_dtype = -1 is unknown"},
		{func(c *plugin.Tensors) { c.Key.Type = plugin.FP8 }, "key_dtype = 5 (fp8) is for GPUs only"},
		{func(c *plugin.Tensors) { c.Query = plugin.BytesView(odd, plugin.Q8_0, 2, 4, 32) }, "query_dtype = 3 (q8_0) is for key and value only"},
		{func(c *plugin.Tensors) { c.Value = plugin.BytesView(odd[1:], plugin.Q8_0, 24, 2, 32) }, "is not a multiple of 2, as q8_0 has to be"},
		{func(c *plugin.Tensors) { c.Output.Tokens = 1 }, "output has 1 tokens, but query has 2"},
		{func(c *plugin.Tensors) { c.Output.Heads = 2 }, "output has 2 heads, but query has 4"},
		{func(c *plugin.Tensors) { c.Key.Dim = 16 }, "key has 16 elements in a head, but query has 32"},
		{func(c *plugin.Tensors) { c.Value.Tokens = 23 }, "value has 23 tokens, but key has 24"},
		{func(c *plugin.Tensors) { c.Key.Heads = 1 }, "value has 2 heads, but key has 1"},
		{func(c *plugin.Tensors) { c.Output.Dim = 16 }, "output has 16 elements in a head, but value has 32"},
		{func(c *plugin.Tensors) { c.Output = c.Query }, "overlaps query"},
		{func(c *plugin.Tensors) { c.Lengths = nil }, "lengths = NULL, query_positions = NULL"},
		{func(c *plugin.Tensors) { c.Lengths = []int32{} }, "lengths = NULL, query_positions = NULL"},
		{func(c *plugin.Tensors) { c.Lengths = []int32{20} }, "lengths has 1 elements, not 2"},
		{func(c *plugin.Tensors) { c.Lengths[1] = 25 }, "lengths[1] = 25 is not in 0 .. n_slots = 24"},
		{func(c *plugin.Tensors) { c.QueryPositions = make([]int32, 3) }, "query_positions has 3 elements, not 2"},
		{func(c *plugin.Tensors) { c.Positions = make([]int32, 49) }, "positions has 49 elements, neither one for each of 24 slots nor as many for each of 2 rows"},
		{func(c *plugin.Tensors) { c.Mask = make([]float16.Float16, 23) }, "mask has 23 elements, neither"},
		{func(c *plugin.Tensors) { c.Slopes = make([]float32, 4) }, "alibi_slopes = "},
		{func(c *plugin.Tensors) { c.Slopes = make([]float32, 2) }, "alibi_slopes has 2 elements, not 4"},
		{func(c *plugin.Tensors) { c.Sinks = make([]float32, 5) }, "sinks has 5 elements, not 4"},
		{func(c *plugin.Tensors) { c.Layer = 3 }, "layer = 3 is not in 0 .. 2"},
	} {
		c := twoRows()
		x.change(c)
		var refused *plugin.Error
		err := c.Attend(decoder)
		require.ErrorContains(t, err, x.text)
		require.ErrorAs(t, err, &refused)
	}
	require.NoError(t, pagedRows().Attend(decoder))
	for _, x := range []struct {
		change func(c *plugin.Tensors)
		text   string
	}{
		{func(c *plugin.Tensors) { c.Table = c.Table[:5] }, "table has 5 elements, not as many for each of 2 rows"},
		{func(c *plugin.Tensors) { c.Table[4] = 5 }, "table[1][1] = 5 is not in 0 .. 4"},
		{func(c *plugin.Tensors) { c.Table[0] = -1 }, "table[0][0] = -1 is not in 0 .. 4"},
		{func(c *plugin.Tensors) { c.Value.Pages = 4 }, "value has 4 pages, but key has 5"},
		{func(c *plugin.Tensors) { c.Key.Pages = 6 }, "key has 5120 bytes, which is too short for 6 pages"},
		{func(c *plugin.Tensors) { c.Key.PageStride = 8 }, "key_page_stride = 8 is less than a row of 64 bytes"},
		{func(c *plugin.Tensors) { c.Key.Tokens, c.Value.Tokens = 7, 7 }, "page_size = 7 is not a power of two"},
		{func(c *plugin.Tensors) { c.Lengths[0] = 25 }, "lengths[0] = 25 is not in 0 .. n_slots = 24"},
		{func(c *plugin.Tensors) { c.Sequences = c.Sequences[:1] }, "sequences has 1 elements, not 2"},
	} {
		c := pagedRows()
		x.change(c)
		require.ErrorContains(t, c.Attend(decoder), x.text)
	}
	require.ErrorContains(t, twoRows().Attend(newDecoder(t, 3, 1)), "n_rows = 2 is not in 1 .. 1")
}

// What rows read in pages is, bit for bit, what they read in one piece.
func TestTensorsInPages(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	paged, plain := newDecoder(t, 3, 2), newDecoder(t, 3, 2)
	key, value := make([]float16.Float16, 5*8*64), make([]float32, 5*8*64)
	keys, values := make([]float16.Float16, 2*24*64), make([]float32, 2*24*64)
	for step := range 20 {
		c, one := pagedRows(), twoRows()
		c.Lengths = []int32{int32(1 + rng.Intn(24)), int32(1 + rng.Intn(24))}
		one.Lengths = c.Lengths
		rng.Shuffle(len(c.Table), func(i, j int) { c.Table[i], c.Table[j] = c.Table[j], c.Table[i] })
		for i := range key {
			key[i], value[i] = float16.Fromfloat32(float32(rng.NormFloat64())), float32(rng.NormFloat64())
		}
		for i, page := range c.Table {
			copy(keys[i*8*64:], key[page*8*64:][:8*64])
			copy(values[i*8*64:], value[page*8*64:][:8*64])
		}
		query, out, want := make([]float32, 256), make([]float32, 256), make([]float32, 256)
		c.Key, c.Value = plugin.Float16View(key, 8, 2, 32), plugin.Float32View(value, 8, 2, 32)
		c.Key.Pages, c.Value.Pages = 5, 5
		one.Key, one.Value = plugin.Float16View(keys, 24, 2, 32), plugin.Float32View(values, 24, 2, 32)
		one.Key.Pages, one.Value.Pages = 2, 2
		c.Query = plugin.Float32View(query, 2, 4, 32)
		one.Query = c.Query
		c.Output, one.Output = plugin.Float32View(out, 2, 4, 32), plugin.Float32View(want, 2, 4, 32)
		for layer := range int32(3) {
			for i := range query {
				query[i] = float32(rng.NormFloat64())
			}
			c.Layer, one.Layer = layer, layer
			require.NoError(t, c.Attend(paged))
			require.NoError(t, one.Attend(plain))
			require.Equal(t, want, out, "step %d, layer %d", step, layer)
		}
	}
	require.NotZero(t, paged.Stats().SparseCalls)
}

// A call of up to five slices allocates nothing; of more, what runtime.Pinner lists them in.
func TestTensorsAllocateNothing(t *testing.T) {
	decoder, c := newDecoder(t, 3, 2), twoRows()
	attend := func() {
		for c.Layer = range int32(3) {
			if err := c.Attend(decoder); err != nil {
				t.Fatal(err)
			}
		}
	}
	attend()
	require.Zero(t, testing.AllocsPerRun(100, attend))
	require.NotZero(t, decoder.Stats().SparseCalls)
	c.Mask, c.Slopes, c.Sinks = make([]float16.Float16, 24), make([]float32, 4), make([]float32, 4)
	attend()
	require.LessOrEqual(t, testing.AllocsPerRun(100, attend), 3.0, "one for each layer")
}
