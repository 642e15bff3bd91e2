//go:build !cuda

package cuda

// ProbePlan is a probed call that is ready to run; there is none in this build.
type ProbePlan struct{}

// Fetch brings results from the device; there is none in this build.
type Fetch struct{}

func (*Device) PlanProbe(*Call, *Probe, *ProbePlan) (*ProbePlan, error) { return nil, errNotBuilt }
func (*Device) NewFetch(int) (*Fetch, error)                            { return nil, errNotBuilt }
func NewProbePlan() (*ProbePlan, error)                                 { return nil, errNotBuilt }
func (*ProbePlan) Tally(*Plan)                                          {}
func (*ProbePlan) Run(uintptr, uintptr) error                           { return errNotBuilt }
func (*ProbePlan) Free()                                                {}
func (*Device) Clear(uint64, int, uintptr) error                        { return errNotBuilt }
func (*Device) Capturing(uintptr) bool                                  { return false }
func (*Fetch) Start(uint64, int, uintptr) error                         { return errNotBuilt }
func (*Fetch) Put(uint64, int, int, uintptr) error                      { return errNotBuilt }
func (*Fetch) Ready() (bool, error)                                     { return false, errNotBuilt }
func (*Fetch) Bytes() []byte                                            { return nil }
func (*Fetch) Free()                                                    {}
