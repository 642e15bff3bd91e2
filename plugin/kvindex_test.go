package plugin

import (
	"math/rand"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestKVIndexFollowsAHost(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	for range 300 {
		size, streams := 1+rng.Intn(40), 1+rng.Intn(3)
		x := NewKVIndex(size, streams)
		truth := make([]int32, size*streams)
		for i := range truth {
			truth[i] = unknown
		}
		for range 200 {
			switch slot := rng.Intn(size * streams); rng.Intn(12) {
			case 0:
				delta := make([]int32, size*streams)
				for i := range delta {
					delta[i] = int32(rng.Intn(3) - 1)
					if truth[i] != unknown {
						truth[i] += delta[i]
					}
				}
				x.Shift(delta)
			case 1, 2: // scattered
				truth[slot] = int32(rng.Intn(size))
				x.Write(int64(slot), truth[slot])
			default: // in a run, as a host that appends
				truth[slot] = int32(slot % size)
				x.Write(int64(slot), truth[slot])
			}
			s := rng.Intn(streams)
			cells := truth[s*size : (s+1)*size]
			n := 0
			for n < size && cells[n] != unknown && (n == 0 || cells[n] == cells[n-1]+1) {
				n++
			}
			require.Equal(t, n, x.linear[s])
			if n > 0 {
				require.True(t, x.Prefix(s, n, cells[n-1]))
				require.False(t, x.Prefix(s, n, cells[n-1]+1))
				require.False(t, n < size && x.Prefix(s, n+1, cells[n-1]+1))
			}
		}
	}
}

func TestKVIndexOrdersByPosition(t *testing.T) {
	rng := rand.New(rand.NewSource(time.Now().UnixNano()))
	for range 500 {
		size := 1 + rng.Intn(100)
		n := 1 + rng.Intn(size)
		first := int32(rng.Intn(1000))
		x := NewKVIndex(size, 2)
		slots := rng.Perm(size)[:n] // slots[i] holds position first+i
		want := make([]int32, n)
		for i, s := range slots {
			x.Write(int64(size+s), first+int32(i))
			want[i] = int32(s)
		}
		ascending := make([]int32, 0, n)
		for s := range size {
			if x.positions[size+s] != unknown {
				ascending = append(ascending, int32(s))
			}
		}
		out := make([]int32, n)
		require.True(t, x.Order(1, ascending, first+int32(n)-1, out))
		require.Equal(t, want, out)

		// What a stale index looks like: an unknown slot, a position twice, a gap, another end.
		require.False(t, x.Order(1, ascending, first+int32(n), out))
		require.False(t, x.Order(0, ascending, first+int32(n)-1, out))
		require.False(t, x.Order(2, ascending, first+int32(n)-1, out))
		if n > 1 {
			victim := int64(size + slots[rng.Intn(n-1)])
			old := x.positions[victim]
			x.Write(victim, first+int32(n)-1)
			require.False(t, x.Order(1, ascending, first+int32(n)-1, out), "a position twice")
			x.Write(victim, first-1)
			require.False(t, x.Order(1, ascending, first+int32(n)-1, out), "a gap")
			x.Write(victim, old)
			require.True(t, x.Order(1, ascending, first+int32(n)-1, out))
		}
	}
}

func TestKVIndexIgnoresWhatIsNotThere(t *testing.T) {
	x := NewKVIndex(4, 1)
	for i := range 4 {
		x.Write(int64(i), int32(i))
	}
	x.Write(-1, 0)
	x.Write(4, 0)
	require.True(t, x.Prefix(0, 4, 3))
	x.Shift([]int32{1})
	require.False(t, x.Prefix(0, 1, 0), "a shift that does not fit makes everything unknown")
	require.False(t, x.Order(0, []int32{0, 1}, 1, make([]int32, 2)))
}
