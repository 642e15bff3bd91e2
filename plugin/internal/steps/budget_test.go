package steps

import (
	"encoding/binary"
	"io"
	"math"
	"math/big"
	"math/rand"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/internal/cpu"
)

// literalSplit is the rule in exact arithmetic, for a recency of numerator/denominator.
func literalSplit(n, budget int, numerator, denominator int64, sinks int) Split {
	k := n
	if budget < n {
		k = budget
	}
	share := new(big.Int).Mul(big.NewInt(int64(k)), big.NewInt(numerator))
	share.Add(share, big.NewInt(denominator-1)) // rounds up
	recent := int(share.Div(share, big.NewInt(denominator)).Int64())
	mid := k - recent
	if recent <= sinks {
		sinks = 0
	} else {
		recent -= sinks
	}
	return Split{sinks, mid, recent}
}

func TestSplitBudgetIsTheRule(t *testing.T) {
	for k := 1; k <= 300; k++ {
		for percent := int64(0); percent <= 100; percent++ {
			for _, sinks := range []int{0, 1, 4, 50} {
				require.Equal(t, literalSplit(1000, k, percent, 100, sinks), SplitBudget(1000, k, float64(percent)/100, sinks),
					"budget %d, recency %d %%, sinks %d", k, percent, sinks)
			}
		}
	}
}

func TestSplitBudgetAddsUp(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	for range 100000 {
		n, budget := 1+rng.Intn(1<<uint(1+rng.Intn(24))), 1+rng.Intn(1<<uint(1+rng.Intn(24)))
		recency, sinks := rng.Float64(), rng.Intn(1<<uint(rng.Intn(25)))
		if rng.Intn(4) == 0 {
			recency = float64(rng.Intn(5)) / 4
		}
		s := SplitBudget(n, budget, recency, sinks)
		require.Equal(t, min(n, budget), s.Len(), "%d %d %v %d: %+v", n, budget, recency, sinks, s)
		require.True(t, s.SinkTokens >= 0 && s.TopK >= 0 && s.Recent >= 0, "%d %d %v %d: %+v", n, budget, recency, sinks, s)
		require.True(t, s.SinkTokens == 0 || s.SinkTokens == sinks, "sinks are kept or yield: %+v", s)
		if recency > 1e-6 {
			require.Positive(t, s.Recent, "the newest token is kept: %d %d %v %d: %+v", n, budget, recency, sinks, s)
		}
	}
}

func TestSplitBudgetByHand(t *testing.T) {
	for _, c := range []struct {
		n, budget int
		recency   float64
		sinks     int
		want      Split
	}{
		{30000, 2048, 0.25, 4, Split{4, 1536, 508}}, // the paper's setting
		{1000, 2048, 0.25, 4, Split{4, 750, 246}},
		{1000, 100, 0.9, 4, Split{4, 10, 86}}, // 100*0.9 is a little more than 90 in binary
		{1000, 16, 0.25, 4, Split{0, 12, 4}},  // the sinks yield: the authors' code keeps no recent token here
		{1000, 13, 0.25, 4, Split{0, 9, 4}},
		{1000, 17, 0.25, 4, Split{4, 12, 1}},
		{1000, 100, 0, 4, Split{0, 100, 0}},
		{1000, 100, 1, 4, Split{4, 0, 96}},
		{1000, 1, 0.25, 4, Split{0, 0, 1}},
		{0, 5, 0.25, 4, Split{}},
	} {
		require.Equal(t, c.want, SplitBudget(c.n, c.budget, c.recency, c.sinks), "%+v", c)
	}
}

// TestGoldenSets has Go's split and the kernel's ranking reproduce the recorded token sets.
func TestGoldenSets(t *testing.T) {
	f, err := os.Open("../../../tests/data/golden/selection.bin")
	require.NoError(t, err)
	defer f.Close()
	read := func(to any) { require.NoError(t, binary.Read(f, binary.LittleEndian, to)) }
	var cases int32
	read(&cases)
	require.Equal(t, int32(160), cases)
	for c := range cases {
		var head struct {
			Heads, N, Budget, Sinks int32
			Recency                 float64
			Size                    int32
		}
		read(&head)
		logits, want := make([]float32, head.Heads*head.N), make([]int32, head.Size)
		read(logits)
		read(want)
		s := SplitBudget(int(head.N), int(head.Budget), head.Recency, int(head.Sinks))
		got := cpu.SelectPositions(logits, int(head.Heads), int(head.N), s.SinkTokens, s.TopK, s.Recent, cpu.Union)
		require.Equal(t, want, got, "case %d: %+v", c, head)
	}
	_, err = f.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func TestNaNRanksLast(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	require.Equal(t, []int32{1, 3}, cpu.SelectPositions([]float32{nan, 1, nan, inf, nan}, 1, 5, 0, 2, 0, cpu.Union))
	require.Equal(t, []int32{0, 1}, cpu.SelectPositions([]float32{nan, nan, nan}, 1, 3, 0, 2, 0, cpu.Union))
}
