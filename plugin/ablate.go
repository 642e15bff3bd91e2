package plugin

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
