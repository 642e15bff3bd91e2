package calibrate

import (
	"lessismore/plugin/internal/selection"
)

// ablate prepares a step of an ablation.
func (c *Calibrator) ablate(x *selection.Ablation) {
	c.Kind, c.ablated = StepAblate, *x
}

// Budget is how many tokens a sparse layer attends to in the step that has begun.
func (c *Calibrator) Budget() int {
	switch {
	case c.Kind == StepTrial && len(c.trial.of.Layers) > 0:
		return c.trial.of.Budget
	case c.Kind == StepAblate:
		return c.Model.Config.Budget
	}
	return c.budget
}

// Role is a layer's in the step that has begun.
func (c *Calibrator) Role(layer int) selection.Role {
	switch {
	case c.Kind == StepTrial:
		return c.trial.roles.Role(layer)
	case c.Kind != StepAblate:
		return c.Roles.Role(layer)
	case c.ablated.Choice != nil:
		return selection.RoleIn(c.ablated.Choice, layer)
	case layer == c.ablated.Select:
		return selection.RoleSelect
	case layer == c.ablated.Sparse:
		return selection.RoleSparse
	}
	return selection.RoleFull
}
