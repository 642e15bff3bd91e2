//go:build !cuda

package cuda

// Turn is a stream that takes turns with a host's; there is none in this build.
type Turn struct{}

func (*Device) NewTurn() (*Turn, error) { return nil, errNotBuilt }
func (*Turn) Look(*Sight)               {}
func (*Turn) Begin(uintptr, bool) error { return errNotBuilt }
func (*Turn) End(uintptr) error         { return errNotBuilt }
func (*Turn) Stream() uintptr           { return 0 }
func (*Turn) Wait() error               { return errNotBuilt }
func (*Turn) Free()                     {}
