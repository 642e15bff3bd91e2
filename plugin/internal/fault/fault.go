package fault

import "fmt"

// Kind is what is wrong with a call.
type Kind int32

const (
	BadArgument  Kind = iota + 1 // never right
	Unsupported                  // right, but not possible in this version
	NoMemory                     // no memory or no threads
	DeviceFailed                 // no usable GPU or driver, or the driver failed
)

// Error is a refused call. Its text names the argument and the value.
type Error struct {
	Kind Kind
	Text string
}

func (e *Error) Error() string { return e.Text }

func Bad(format string, args ...any) error {
	return &Error{Kind: BadArgument, Text: fmt.Sprintf(format, args...)}
}

func NotSupported(format string, args ...any) error {
	return &Error{Kind: Unsupported, Text: fmt.Sprintf(format, args...)}
}
