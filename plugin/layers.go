package plugin

import "fmt"

// Role is what a layer does with its tokens.
type Role int32

const (
	RoleFull   Role = iota // below the first selection layer: attends to everything
	RoleSelect             // attends to everything and chooses the token set
	RoleSparse             // attends to the token set
)

// Roles assigns the layers that can take part, by number.
type Roles struct {
	roles      []Role
	selections []int
	sparse     bool // a layer is
}

// NewRoles assigns roles for a model with that many layers that can take part. Layers that the user
// named and the model does not have are an error.
func NewRoles(layers int, config Config) (Roles, error) {
	r := Roles{roles: make([]Role, layers), selections: config.Layers}
	if r.selections == nil {
		r.selections = DefaultLayers(layers)
		if r.selections[0] >= layers-1 { // a model this small has nothing to gain
			r.selections = nil
		}
	}
	selecting := map[int]bool{}
	for _, l := range r.selections {
		if l >= layers {
			return Roles{}, fmt.Errorf("layers names layer %d, but the model has %d layers that can take part (0 .. %d)", l, layers, layers-1)
		}
		selecting[l] = true
	}
	for l := range r.roles {
		switch {
		case selecting[l]:
			r.roles[l] = RoleSelect
		case len(r.selections) > 0 && l > r.selections[0]:
			r.roles[l], r.sparse = RoleSparse, true
		}
	}
	return r, nil
}

// Role is the role of a layer that can take part.
func (r Roles) Role(layer int) Role { return r.roles[layer] }

// Group is which of the selection layers' sets a layer uses or chooses, counted from 0.
func (r Roles) Group(layer int) int {
	g := 0
	for i, l := range r.selections {
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
func (r Roles) Selections() []int { return r.selections }
