package selection

import (
	"fmt"
	"slices"

	"lessismore/plugin/internal/settings"
)

// Role is what a layer does with its tokens.
type Role int32

const (
	RoleFull   Role = iota // below the first selection layer: attends to everything
	RoleSelect             // attends to everything and chooses the token set
	RoleSparse             // attends to the token set
)

// Roles assigns the layers that can take part, by number.
type Roles struct {
	roles  []Role
	chosen []int
	sparse bool // a layer is
}

// NewRoles assigns roles for a model with that many layers that can take part. Layers that the user
// named and the model does not have are an error.
func NewRoles(layers int, config settings.Config) (Roles, error) {
	r := Roles{roles: make([]Role, layers), chosen: config.Layers}
	if r.chosen == nil {
		r.chosen = DefaultLayers(layers)
		if r.chosen[0] >= layers-1 { // a model this small has nothing to gain
			r.chosen = nil
		}
	}
	for _, l := range r.chosen {
		if l >= layers {
			return Roles{}, fmt.Errorf("layers names layer %d, but the model has %d layers that can take part (0 .. %d)", l, layers, layers-1)
		}
	}
	for l := range r.roles {
		r.roles[l] = RoleIn(r.chosen, l)
		r.sparse = r.sparse || r.roles[l] == RoleSparse
	}
	return r, nil
}

// RoleIn is a layer's role in a choice.
func RoleIn(choice []int, layer int) Role {
	switch {
	case slices.Contains(choice, layer):
		return RoleSelect
	case len(choice) > 0 && layer > choice[0]:
		return RoleSparse
	}
	return RoleFull
}

// Role is the role of a layer that can take part.
func (r Roles) Role(layer int) Role { return r.roles[layer] }

// Group is which of the selection layers' sets a layer uses or chooses, counted from 0.
func (r Roles) Group(layer int) int {
	g := 0
	for i, l := range r.chosen {
		if l <= layer {
			g = i
		}
	}
	return g
}

// Sparse tells whether any layer attends to a token set.
func (r Roles) Sparse() bool { return r.sparse }

// Len is the number of layers that can take part.
func (r Roles) Len() int { return len(r.roles) }

// Selections are the selection layers, ascending.
func (r Roles) Selections() []int { return r.chosen }

// DefaultLayers are the selection layers by rule, where measuring is not possible: the third layer that
// can take part, and the one a third of the way up, as the paper has it for its 32- and 36-layer models.
func DefaultLayers(layers int) []int {
	if layers/3 <= 2 {
		return []int{2}
	}
	return []int{2, layers / 3}
}
