package selection

import (
	"math"
	"slices"
)

// What a choice of selection layers may be.
const (
	// FirstSelection is the lowest layer that is chosen: the layers below it attend to everything. Early
	// layers look everywhere, and what they lose all others lose.
	FirstSelection = 2
	// FewSelections is how many selection layers a model always may have.
	FewSelections = 2
	// LeastMeasured is the smallest model that has a choice to make.
	LeastMeasured = FirstSelection + 3
	// LossTolerance is how much more of a head's attention a choice may lose that reads less. The loss of
	// 32 measured steps is known to about that (docs/auto.md).
	LossTolerance = 0.05
)

// Losses is what was measured of a model: at(i, j) is the share of its attention that the worst head of
// layer j loses by attending to the token set of layer i < j instead of its own best set.
type Losses struct {
	layers int
	Loss   []float32 // a triangle: layer j's losses begin at j*(j-1)/2
	err    []float32 // standard error of each
	before int       // layers that come before these, on another device
}

func NewLosses(layers int) Losses {
	n := layers * (layers - 1) / 2
	return Losses{layers: layers, Loss: make([]float32, n), err: make([]float32, n)}
}

// Pair is where the loss of layer j on the set of layer i < j is kept.
func Pair(i, j int) int { return j*(j-1)/2 + i }

func (l *Losses) at(i, j int) float64 { return float64(l.Loss[Pair(i, j)]) }

// DenseCap is how many layers of a model may attend to everything in a choice: a third, as in the paper's
// settings at most, and never fewer than two layers and their selections need.
func DenseCap(layers, selections int) int {
	return max(layers/3, FirstSelection+selections)
}

// Choose finds the selection layers that lose least: the largest loss over the sparse layers counts,
// and among choices within a tolerance of the best the one that reads fewest bytes, that is with the
// fewest layers that attend to everything; of these the one whose losses have the least sum of squares. A third layer and more come beside the
// first two or in their place, but the layers below the first, which attend to everything, are no more for that.
func (l *Losses) Choose(selections int) []int {
	if selections > FewSelections {
		if few := l.choose(FewSelections, l.layers); few != nil {
			return l.choose(selections, few[0])
		}
	}
	return l.choose(selections, l.layers)
}

// choose is Choose with a bound for the first layer.
func (l *Losses) choose(selections, latest int) (chosen []int) {
	allowed := func(yield func(c []int) bool, limit float64) {
		for first := max(FirstSelection-l.before, 0); first <= min(latest, l.layers-2); first++ {
			for count, c := range l.from(first, selections, limit) {
				if c != nil && first+count+1 <= DenseCap(l.layers, selections) && !yield(c) {
					return
				}
			}
		}
	}
	best := math.Inf(1)
	allowed(func(c []int) bool {
		best = min(best, l.Worst(c))
		return true
	}, math.Inf(1))
	dense := func(c []int) int { return c[0] + len(c) }
	allowed(func(c []int) bool {
		if chosen == nil || dense(c) < dense(chosen) || dense(c) == dense(chosen) && l.squares(c) < l.squares(chosen) {
			chosen = c
		}
		return true
	}, best+LossTolerance)
	return chosen
}

// each gives the loss of every sparse layer of a choice.
func (l *Losses) each(choice []int, add func(loss float64)) {
	if len(choice) == 0 { // everything is dense
		return
	}
	at := 0
	for j := choice[0] + 1; j < l.layers; j++ {
		if at+1 < len(choice) && choice[at+1] == j {
			at++
			continue
		}
		add(l.at(choice[at], j))
	}
}

// Worst is the largest loss of a choice.
func (l *Losses) Worst(choice []int) (worst float64) {
	l.each(choice, func(loss float64) { worst = max(worst, loss) })
	return worst
}

// squares is the sum of a choice's losses, squared: one that is twice as large tells four times as much in what the model says.
func (l *Losses) squares(choice []int) (sum float64) {
	l.each(choice, func(loss float64) { sum += loss * loss })
	return sum
}

// from finds, for 1, 2, … selection layers of which the first is given, those that lose least over the layers that follow each
// selection: by the largest loss, then by the sum of squares. With a limit of the largest loss, by the sum of squares alone.
func (l *Losses) from(first, selections int, limit float64) [][]int {
	type cost struct{ most, sum float64 }
	never := cost{math.Inf(1), math.Inf(1)}
	less := func(a, b cost) bool {
		if math.IsInf(limit, 1) && a.most != b.most {
			return a.most < b.most
		}
		return a.sum < b.sum
	}
	join := func(a, b cost) cost {
		if most := max(a.most, b.most); most <= limit {
			return cost{most, a.sum + b.sum}
		}
		return never
	}
	// span(i)[k]: what layers i+1 .. k-1 lose on the set of layer i.
	span := make([][]cost, l.layers)
	for i := first; i < l.layers; i++ {
		span[i] = make([]cost, l.layers+1)
		for k := i + 2; k <= l.layers; k++ {
			x := l.at(i, k-1)
			span[i][k] = join(span[i][k-1], cost{x, x * x})
		}
	}
	out := make([][]int, selections)
	// best[i]: the cheapest way to have layer i as the latest of count selections; before layer i only.
	best := make([]cost, l.layers)
	for i := range best {
		best[i] = never
	}
	best[first] = cost{}
	previous := [][]int{}
	for count := range selections {
		last, end := -1, never
		for i := first; i < l.layers-1; i++ {
			if c := join(best[i], span[i][l.layers]); less(c, end) {
				last, end = i, c
			}
		}
		for k, at := len(previous)-1, last; at >= 0; k-- {
			out[count] = append(out[count], at)
			if k < 0 {
				break
			}
			at = previous[k][at]
		}
		slices.Reverse(out[count])

		next, from := make([]cost, l.layers), make([]int, l.layers)
		for i := range next {
			next[i] = never
			for p := first; p < i; p++ {
				if c := join(best[p], span[p][i]); less(c, next[i]) {
					next[i], from[i] = c, p
				}
			}
		}
		best, previous = next, append(previous, from)
	}
	return out
}
