package selection

import "math"

// What a choice of selection layers may be, and what it costs.
const (
	// FirstSelection is the lowest layer that is chosen: the layers below it attend to everything. Early
	// layers look everywhere, and what they lose all others lose.
	FirstSelection = 2
	// LeastMeasured is the smallest model that has a choice to make.
	LeastMeasured = FirstSelection + 3
	// DensePrice is what it costs that all of a model's layers attend to everything, in squared losses: one layer costs its
	// share. docs/auto.md has what it was set by.
	DensePrice = 0.5
	// CostTolerance is how much more a choice may cost that is in force, or is written in a profile, than the best one: what is
	// measured in other steps differs by about that.
	CostTolerance = 0.01
)

// Losses is what was measured of a model: of each pair of layers i < j, the share of its attention that a head of layer j loses
// by attending to the token set of layer i instead of its own best set.
type Losses struct {
	layers int
	Loss   []float32 // mean of the head whose mean is largest; a triangle: layer j's begin at j*(j-1)/2
	Square []float32 // mean square, over steps and heads
	err    []float32 // standard error of Loss
	before int       // layers that come before these, on another device
}

func NewLosses(layers int) Losses {
	n := layers * (layers - 1) / 2
	return Losses{layers: layers, Loss: make([]float32, n), Square: make([]float32, n), err: make([]float32, n)}
}

// Pair is where the loss of layer j on the set of layer i < j is kept.
func Pair(i, j int) int { return j*(j-1)/2 + i }

func (l *Losses) at(i, j int) float64 { return float64(l.Loss[Pair(i, j)]) }

// DenseCap is how many layers of a model may attend to everything in a choice: a third, as in the paper's
// settings at most, and never fewer than two layers and their selections need.
func DenseCap(layers, selections int) int {
	return max(layers/3, FirstSelection+selections)
}

// Choose finds the choice that costs least, of at most so many selection layers.
func (l *Losses) Choose(selections int) (chosen []int) {
	for _, c := range l.nested(selections) {
		if chosen == nil || l.Cost(c) < l.Cost(chosen) {
			chosen = c
		}
	}
	return chosen
}

// Cost is what a choice loses and what it reads: the mean squares of what its sparse layers lose, added up, and the price of the
// layers that attend to everything. A step that looks one token up, and misses it, loses all of a head's attention at once. In a
// mean over steps that is no more than a head that looks everywhere always loses, without harm; in a mean of squares it is.
func (l *Losses) Cost(choice []int) (cost float64) {
	cost = DensePrice
	if len(choice) > 0 {
		cost = l.price(choice[0] + len(choice))
	}
	l.each(choice, func(p int) { cost += float64(l.Square[p]) })
	return cost
}

// price is that of so many layers that attend to everything.
func (l *Losses) price(dense int) float64 { return DensePrice * float64(dense) / float64(l.layers) }

// each gives every sparse layer of a choice, as a pair with the layer whose set it attends to.
func (l *Losses) each(choice []int, add func(pair int)) {
	if len(choice) == 0 { // everything is dense
		return
	}
	at := 0
	for j := choice[0] + 1; j < l.layers; j++ {
		if at+1 < len(choice) && choice[at+1] == j {
			at++
			continue
		}
		add(Pair(choice[at], j))
	}
}

// Worst is the largest loss of a choice, in the mean over steps.
func (l *Losses) Worst(choice []int) (worst float64) {
	l.each(choice, func(p int) { worst = max(worst, float64(l.Loss[p])) })
	return worst
}

// nested are the choices of 1, 2, … selection layers that cost least of as many, as far as there are any.
func (l *Losses) nested(most int) (out [][]int) {
	least := max(FirstSelection-l.before, 0)
	// tail[i] is what the layers from i on cost if layer i selects and `count` more do behind it, without the price of those below
	// i; then[count][i] is the first of these.
	tail, then := make([]float64, l.layers), [][]int{}
	for i := range tail {
		for j := i + 1; j < l.layers; j++ {
			tail[i] += float64(l.Square[Pair(i, j)])
		}
	}
	for count := range most {
		if count > 0 {
			var first []int
			tail, first = l.behind(tail)
			then = append(then, first)
		}
		begin, cost := -1, math.Inf(1)
		for i := least; i < l.layers-1 && i+count+1 <= DenseCap(l.layers, count+1); i++ {
			if c := l.price(i+1) + tail[i]; c < cost {
				begin, cost = i, c
			}
		}
		if begin < 0 {
			break
		}
		choice := []int{begin}
		for k := count - 1; k >= 0; k-- {
			choice = append(choice, then[k][choice[len(choice)-1]])
		}
		out = append(out, choice)
	}
	return out
}

// behind goes from tails with some selection layers to those with one more: the first of them for each layer, too.
func (l *Losses) behind(tail []float64) (longer []float64, first []int) {
	longer, first = make([]float64, l.layers), make([]int, l.layers)
	for i := range l.layers {
		longer[i] = math.Inf(1)
		lost := 0.0 // by the layers between i and k
		for k := i + 1; k < l.layers-1; k++ {
			if c := lost + l.price(1) + tail[k]; c < longer[i] {
				longer[i], first[i] = c, k
			}
			lost += float64(l.Square[Pair(i, k)])
		}
	}
	return longer, first
}
