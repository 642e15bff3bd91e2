package ongpu

import (
	"slices"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/selection"
)

// What a graph in parts costs, and how fast a host's own attention reads, as a share of what the card's memory can: from
// two H200s with llama.cpp (tests/gpu/host/bench.py), of which one took 5 and the other 10 microseconds for each layer.
const (
	pricePerLayer = 10e-6 // seconds, in parts
	priceRecorded = 60e-6 // of a recorded step …
	recordedLayer = 1e-6  // … and for each layer
	hostReads     = 0.5
)

// price is how many seconds a step takes longer because it is not the host's whole.
func (d *Device) price() float64 {
	layers := float64(len(d.layers.Ordinal))
	if d.records {
		return priceRecorded + recordedLayer*layers
	}
	return pricePerLayer * layers
}

// saved is about how many seconds of the host's attention a step saves. It reads a text once for all rows of a draft, and the library for
// each of them.
func (d *Device) saved(n *graph.Node) float64 {
	host, full, held := 0, 0, 0 // tokens that a layer reads: the host's, ours, and ours that attends to token sets
	for i := range d.rows.Step.Rows {
		visible := int(d.rows.Step.Rows[i].Visible)
		full, held = full+visible, held+min(visible, d.layers.Engine.Settings.Budget)
		if !d.rows.Follows(n, i) {
			host += visible
		}
	}
	sparse, choose := 0, d.choosing
	for _, is := range d.sparseLayers {
		if is {
			sparse++
		}
	}
	if d.gives { // a full layer there
		sparse++
	}
	if sparse == 0 { // not measured so far
		choose = d.layers.Engine.Settings.SelectionsFor(len(d.layers.Ordinal))
		sparse = max(len(d.layers.Ordinal)-selection.FirstSelection-choose, 0)
	}
	c := &n.Call
	token := float64(c.KVHeads) * (headBytes(c.Key.Type, c.DimK) + headBytes(c.Value.Type, c.DimV))
	return float64(sparse*(host-held)+choose*(host-full)) * token / d.reads
}

// headBytes is the size of a token's keys or values in one head.
func headBytes(t cpu.Type, dim int32) float64 {
	switch t {
	case cpu.F32:
		return 4 * float64(dim)
	case cpu.Q8_0:
		return 34.0 / 32 * float64(dim)
	case cpu.Q4_0:
		return 18.0 / 32 * float64(dim)
	}
	return 2 * float64(dim)
}

// sumUp takes note of what the step's rows see together, and of the layers' roles.
func (d *Device) sumUp() {
	d.visible = 0
	for i := range d.rows.Step.Rows {
		d.visible += uint64(d.rows.Step.Rows[i].Visible)
	}
	m := d.layers.Model
	m.Mu.Lock()
	defer m.Mu.Unlock()
	if d.sparseLayers != nil && d.revision == m.Revision {
		return
	}
	d.revision, d.sparseLayers = m.Revision, make([]bool, m.Layers)
	d.choosing = 0
	for _, l := range d.layers.Ordinal {
		role := m.Roles.Role(l)
		d.sparseLayers[l] = role == selection.RoleSparse
		if role == selection.RoleSelect {
			d.choosing++
		}
	}
	first, last := d.layers.Bounds()
	for first < last && m.Roles.Role(first) == selection.RoleFull {
		first++
	}
	d.inherits = d.layers.Later() && m.Roles.Role(first) == selection.RoleSparse
	d.gives = d.layers.Spread() && last+1 < m.Layers && m.Roles.Role(last) == selection.RoleSelect && m.Roles.Role(last+1) == selection.RoleSparse
}

// sparse tells whether a layer of this device's would attend to a token set now, or choose one for the next device alone.
func (d *Device) sparse() bool {
	m := d.layers.Model
	if m.Ablation.Load() != nil {
		return true
	}
	m.Mu.Lock()
	defer m.Mu.Unlock()
	return m.Known && !m.Again && (d.gives || slices.Contains(d.sparseLayers, true))
}

// full tells whether a layer attends to everything and chooses nothing.
func (d *Device) full(layer int) bool {
	d.layers.Model.Mu.Lock()
	defer d.layers.Model.Mu.Unlock()
	return d.layers.Model.Roles.Role(layer) == selection.RoleFull
}
