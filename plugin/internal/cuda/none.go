//go:build !cuda

package cuda

import "errors"

// Built tells whether this build has the CUDA engine.
const Built = false

// ErrMemory is the host's memory running out.
var ErrMemory = errors.New("out of memory")

var errNotBuilt = errors.New("built without CUDA")

// Device is a GPU; there is none in this build.
type Device struct{}

// Plan is a call that is ready to run; there is none in this build.
type Plan struct{}

// Memory is device memory; there is none in this build.
type Memory struct{}

// Pinned is host memory that copies read asynchronously; there is none in this build.
type Pinned struct{}

func Open(int) (*Device, error)                    { return nil, errNotBuilt }
func OrdinalOf(uint64) (int, error)                { return 0, errNotBuilt }
func (*Device) Name() string                       { return "" }
func (*Device) Ordinal() int                       { return 0 }
func (*Device) Bandwidth() float64                 { return 1 }
func (*Device) Check(*Call) error                  { return errNotBuilt }
func (*Device) WorkSize(*Call) int                 { return 0 }
func (*Device) NoSets(*Call) uint64                { return 0 }
func (*Device) Zeroed(int) (*Memory, error)        { return nil, errNotBuilt }
func (*Device) Pin(int) (*Pinned, error)           { return nil, errNotBuilt }
func (*Device) Load(*Call) error                   { return errNotBuilt }
func (*Device) Plan(*Call, *Plan) (*Plan, error)   { return nil, errNotBuilt }
func (*Device) LoadJoin() error                    { return errNotBuilt }
func (*Device) Join(*Join, uintptr) error          { return errNotBuilt }
func (*Device) Foreign([]uint64) int               { return -1 }
func (*Device) Read(uintptr, uint64, []byte) error { return errNotBuilt }
func NewPlan() (*Plan, error)                      { return nil, errNotBuilt }
func (*Memory) Address() uint64                    { return 0 }
func (*Memory) Size() int                          { return 0 }
func (*Memory) Free()                              {}
func (*Pinned) Bytes() []byte                      { return nil }
func (*Pinned) Free()                              {}
func (*Plan) Tally(*Device, *Tally) error          { return errNotBuilt }
func (*Plan) Run(uintptr, uintptr) error           { return errNotBuilt }
func (*Plan) Free()                                {}
