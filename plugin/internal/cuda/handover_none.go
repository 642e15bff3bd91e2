//go:build !cuda

package cuda

// Handover brings token sets from one GPU to another; there is none in this build.
type Handover struct{}

func NewHandover(*Device, *Device) (*Handover, error) { return nil, errNotBuilt }
func (*Handover) From() *Device                       { return nil }
func (*Handover) Bring(_, _ *Sets, _ int) error       { return errNotBuilt }
func (*Handover) Free()                               {}
