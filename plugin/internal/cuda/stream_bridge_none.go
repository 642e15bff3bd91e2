//go:build !cuda

package cuda

// Bridge is a stream of ours between two events of a host's; there is none in this build.
type Bridge struct{}

func (*Device) NewBridge() (*Bridge, error) { return nil, errNotBuilt }
func (*Bridge) Look(*Visibility)            {}
func (*Bridge) Begin(uintptr, bool) error   { return errNotBuilt }
func (*Bridge) End(uintptr) error           { return errNotBuilt }
func (*Bridge) Capture() error              { return errNotBuilt }
func (*Bridge) Captured(int, uintptr) error { return errNotBuilt }
func (*Bridge) Replay(int) error            { return errNotBuilt }
func (*Bridge) Stream() uintptr             { return 0 }
func (*Bridge) Wait() error                 { return errNotBuilt }
func (*Bridge) Free()                       {}
