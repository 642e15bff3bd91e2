package selection

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every choice is tried: of each number of layers none costs less than the nested one, and of at most so many none than the chosen one.
func TestChoicesCostLeast(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 60 {
		l := NewLosses(LeastMeasured + random.IntN(8))
		for p := range l.Square {
			l.Square[p] = float32(random.ExpFloat64() * 0.06 * random.Float64())
		}
		nested, least := l.nested(MostTried), math.Inf(1)
		for count := 1; count <= MostTried; count++ {
			ways := choices(l.layers, count)
			if len(ways) == 0 {
				require.Less(t, len(nested), count)
				break
			}
			got := nested[count-1]
			require.True(t, slices.ContainsFunc(ways, func(way []int) bool { return slices.Equal(way, got) }), "seed %d: %v", seed, got)
			for _, way := range ways {
				require.LessOrEqual(t, l.Cost(got), l.Cost(way)+1e-6, "seed %d: %v, not %v", seed, got, way)
			}
			least = min(least, l.Cost(got))
			require.InDelta(t, least, l.Cost(l.Choose(count)), 1e-6, "seed %d", seed)
		}
	}
}

// choices are all of so many layers that the rules allow.
func choices(layers, count int) (out [][]int) {
	for mask := range 1 << layers {
		var way []int
		for l := range layers {
			if mask>>l&1 == 1 {
				way = append(way, l)
			}
		}
		if len(way) == count && way[0] >= FirstSelection && way[count-1] < layers-1 && way[0]+count <= DenseCap(layers, count) {
			out = append(out, way)
		}
	}
	return out
}

// A choice's cost by hand: layers 0, 1, 2 and 4 of 6 attend to everything, 3 and 5 to the sets of 2 and of 4.
func TestCostOfAChoice(t *testing.T) {
	l := NewLosses(6)
	l.Square[Pair(2, 3)], l.Square[Pair(4, 5)], l.Square[Pair(2, 5)], l.Square[Pair(2, 4)] = 0.25, 0.125, 0.5, 0.5
	require.InDelta(t, DensePrice*4/6+0.25+0.125, l.Cost([]int{2, 4}), 1e-6)
	require.InDelta(t, DensePrice, l.Cost(nil), 1e-6, "everything is dense")
}

// A head that misses the one token it looks up in a fifth of the steps loses less, in the mean, than one that looks everywhere loses in
// each. By the squares it shows, and the layer that knows the token chooses for it.
func TestRareLookUpIsSeen(t *testing.T) {
	const layers, steps, everywhere, lookUp, heads = 12, 40, 0, 1, 2
	s := NewSums(layers, heads)
	for step := range steps {
		for j := 1; j < layers; j++ {
			kept, all := make([]float32, (j+1)*heads), make([]int, j+1)
			for i := range all {
				all[i] = i
				kept[i*heads+everywhere], kept[i*heads+lookUp] = 0.5, 1
				if j > 8 && i < 8 && step%5 == 0 {
					kept[i*heads+lookUp] = 0
				}
			}
			kept[j*heads+everywhere], kept[j*heads+lookUp] = 0.75, 1
			s.Add(all, j, heads, kept, func(int) bool { return true })
		}
	}
	l, ok := s.finish(layers, heads)
	require.True(t, ok)
	require.InDelta(t, 0.25, l.at(2, 9), 1e-6)
	require.InDelta(t, 0.25, l.at(2, 7), 1e-6, "by the mean the two are alike")
	require.InDelta(t, (0.2+0.0625)/heads, l.Square[Pair(2, 9)], 1e-6)
	require.InDelta(t, 0.0625/heads, l.Square[Pair(2, 7)], 1e-6)
	require.Equal(t, []int{2, 8}, l.Choose(2))
	for p, loss := range l.Loss { // what the means alone would choose
		l.Square[p] = loss * loss / heads
	}
	require.Equal(t, []int{2}, l.Choose(2))
}

// lossesIn are losses that were measured of a real model (docs/auto.md#the-choice).
func lossesIn(t *testing.T, name string) *Losses {
	text, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	require.NoError(t, err)
	var p Profile
	require.NoError(t, json.Unmarshal(text, &p))
	p.Model.Layers, p.Error = len(p.Loss)+1, p.Loss
	l := p.measurement().Losses
	return &l
}

// Losses of three models, and what their choices did to what the models say: the chains of 7,168 tokens (tests/data/chains) that layers
// 7,17 and 7,14,17 lose are exact with 7,17,20, those that 2,7,17 loses with 2,7,17,20.
func TestChoicesOfRealModels(t *testing.T) {
	chains := lossesIn(t, "chains")
	require.Equal(t, []int{3, 7, 14, 17, 20}, chains.Choose(5))
	for _, c := range []struct{ exact, lossy []int }{
		{[]int{7, 17, 20}, []int{7, 14, 17}},
		{[]int{8, 17, 20}, []int{8, 17}},
		{[]int{2, 7, 17, 20}, []int{2, 7, 17}},
		{[]int{2, 7, 14, 17, 20}, []int{2, 7, 17}},
	} {
		require.Less(t, chains.Cost(c.exact), chains.Cost(c.lossy), "%v", c)
	}
	require.Greater(t, chains.Worst([]int{7, 17, 20}), chains.Worst([]int{7, 14, 17}), "by the largest mean it is the other way round")
	require.Equal(t, []int{2, 17, 20}, lossesIn(t, "text").Choose(5), "the base of that model, on plain text")
	require.Equal(t, []int{2, 9}, lossesIn(t, "reasoner").Choose(2))
}
