package layers

import (
	"fmt"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/settings"
)

// blocks are those of the model whose weights this device's graphs have shown; none before any has.
type blocks struct {
	shown       bool
	first, last int32
	ends        bool // what follows the last block is computed here, too
}

func (b *blocks) add(g *graph.Graph) {
	b.ends = b.ends || g.Ends != 0
	switch {
	case g.Weights == 0 || g.FirstBlock < 0:
	case !b.shown:
		b.shown, b.first, b.last = true, g.FirstBlock, g.LastBlock
	default:
		b.first, b.last = min(b.first, g.FirstBlock), max(b.last, g.LastBlock)
	}
}

// elsewhere says which layers this device computes, where it shows that others are computed elsewhere: a model that is
// spread over several GPUs, or off-loaded in part.
func (b *blocks) elsewhere() string {
	if !b.shown || b.first == 0 && b.ends {
		return ""
	}
	return fmt.Sprintf("this device computes layers %d to %d of the model, the others are on another device", b.first, b.last)
}

// part is the layers of a model that one device computes, where others are computed elsewhere: a model that is spread over
// several GPUs (llama.cpp's -sm layer) or off-loaded in part. No token set comes from another device: the first layer of a
// part that may be sparse chooses one itself.
type part struct {
	some        bool
	first, last int32 // layers of the model that can take part
	even        bool  // none between them is left out: a layer's number in the model is its number in the part and first
	where       string
}

// partOf tells what a device has of a model: its blocks as far as weights have shown them, its first attention, and the layers
// that can take part.
func partOf(b *blocks, attention int32, layers []int32) part {
	p := part{first: layers[0], last: layers[len(layers)-1], where: b.elsewhere()}
	p.even = int(p.last-p.first) == len(layers)-1
	p.some = p.where != ""
	if !b.shown && attention > 0 {
		p.some, p.where = true, fmt.Sprintf("the first attention on this device is of layer %d", attention)
	}
	if b.shown && b.first == 0 { // the model's first layers may have no attention
		p.even = p.even && p.first == 0
	}
	return p
}

// settings are those of the part: of the layers that were given, those that it has, by their numbers in it. Where they have
// begun before it, its first one chooses, too.
func (p *part) settings(config settings.Config) settings.Config {
	if !p.some || !p.even || len(config.Layers) == 0 {
		return config
	}
	given := []int{}
	for _, l := range config.Layers {
		if l >= int(p.first) && l <= int(p.last) {
			given = append(given, l-int(p.first))
		}
	}
	if config.Layers[0] < int(p.first) && (len(given) == 0 || given[0] != 0) {
		given = append([]int{0}, given...)
	}
	config.Layers = given
	return config
}

// missing is the first of the layers that were given that no part of the model has. Only the part that the model ends with can tell:
// earlier ones do not see how many follow.
func (p *part) missing(given []int, b *blocks) (layer int, is bool) {
	if !p.some || !p.even || !b.shown || !b.ends {
		return 0, false
	}
	for _, l := range given {
		if l > int(b.last) {
			return l, true
		}
	}
	return 0, false
}

func (p *part) String() string {
	return p.where + ": token sets are chosen on each of them"
}
