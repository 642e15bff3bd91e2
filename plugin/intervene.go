package plugin

// Intervention makes the steps that begin from now on dense, but for one layer. What the model says then,
// against what it says when all of its layers are dense, is the truth about a choice of selection layers:
// what a measurement is checked against (docs/auto.md).
type Intervention struct {
	Select int // the layer that chooses a token set; it attends to everything itself
	Sparse int // the layer above it that attends to that set; -1: none does
}

// Intervene begins an intervention in all contexts of the engine, or ends it with nil. Nothing is measured
// or audited meanwhile.
func (e *Engine) Intervene(x *Intervention) { e.intervention.Store(x) }

// intervene prepares a step of an intervention.
func (p *pilot) intervene(x *Intervention) {
	p.kind, p.chosen, p.layer = stepIntervene, x.Select, x.Sparse
}

// interveneIn is a layer's role in a step of an intervention.
func (p *pilot) interveneIn(layer int) Role {
	switch {
	case layer == p.chosen:
		return RoleSelect
	case layer == p.layer:
		return RoleSparse
	}
	return RoleFull
}
