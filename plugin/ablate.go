package plugin

// Ablation makes the steps that begin from now on dense, but for one layer. What the model says then, against what it
// says when all of its layers are dense, is the truth about a choice of selection layers: what a measurement is checked
// against (docs/auto.md).
type Ablation struct {
	Select int // the layer that chooses a token set; it attends to everything itself
	Sparse int // the layer above it that attends to that set; -1: none does
}

// Ablate begins an ablation in all contexts of the engine, or ends it with nil. Nothing is measured or audited
// meanwhile.
func (e *Engine) Ablate(x *Ablation) { e.ablation.Store(x) }

// ablate prepares a step of an ablation.
func (c *calibrator) ablate(x *Ablation) {
	c.kind, c.ablated = stepAblate, *x
}

// role is a layer's in the step that has begun.
func (c *calibrator) role(layer int) Role {
	switch {
	case c.kind != stepAblate:
		return c.roles.Role(layer)
	case layer == c.ablated.Select:
		return RoleSelect
	case layer == c.ablated.Sparse:
		return RoleSparse
	}
	return RoleFull
}
