// Package plugin is lessismore's public face in Go: an engine is a configuration and what is counted under it, a decoder
// attends for rows on the CPU or on a GPU. What the C ABI has, it has too, in Go's words (include/lessismore.h says
// more). The ggml way in is package plugin/ggml; everything else is internal.
//
// A program that has keys and values in slices hands them over as Tensors. An Attention states the same by addresses, which
// may be a GPU's.
package plugin

import (
	"lessismore/plugin/internal/backend"
	"lessismore/plugin/internal/backend/oncpu"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/cpu"
	"lessismore/plugin/internal/cuda"
	"lessismore/plugin/internal/decode"
	"lessismore/plugin/internal/fault"
	"lessismore/plugin/internal/files"
	"lessismore/plugin/internal/selection"
	"lessismore/plugin/internal/settings"
	"lessismore/plugin/internal/stats"
)

// Settings.
type (
	Config   = settings.Config
	Policy   = settings.Policy
	LogLevel = settings.LogLevel
	Profiles = selection.Profiles
)

const (
	Union    = settings.Union
	Mass     = settings.Mass
	LogOff   = settings.LogOff
	LogInfo  = settings.LogInfo
	LogDebug = settings.LogDebug
	Version  = settings.Version
	HasCUDA  = cuda.Built // this build has the CUDA engine
)

// Bounds.
const (
	MaxBudget     = settings.MaxBudget
	MaxLayer      = settings.MaxLayer
	MaxSelections = settings.MaxSelections
	MaxTried      = selection.MostTried
	MaxGuard      = settings.MaxGuard
	MaxInterval   = settings.MaxInterval
	MaxTrace      = settings.MaxTrace
	MaxSlots      = backend.MaxSlots
	MaxRows       = backend.MaxRows
	MaxProfile    = selection.ProfileCap
)

// DefaultConfig is the paper's setting, with layers found by measuring.
func DefaultConfig() Config { return settings.DefaultConfig() }

// An engine, its decoders and what they take.
type (
	Engine        = contexts.Engine
	Ablation      = selection.Ablation
	Roles         = selection.Roles
	Workers       = oncpu.Workers
	Decoder       = decode.Decoder
	DecoderParams = backend.Params
	Attention     = backend.Attention
	RowView       = backend.RowView
	KVView        = backend.KVView
	Stats         = stats.Stats
	Report        = stats.Report
)

const (
	CPU        = backend.CPU
	MaxOrdinal = backend.MaxOrdinal
)

// Element types (lim_dtype in the public header). Rows of Q8_0 and Q4_0 are blocks of 32 elements, as ggml has them: an f16
// scale d, then 32 int8 q for Q8_0, of value d*q; for Q4_0 16 bytes, of which byte i has element i in its lower four bits
// and element i+16 in its upper ones, of value d*(q-8).
const (
	F32  = int32(cpu.F32)
	F16  = int32(cpu.F16)
	BF16 = int32(cpu.BF16)
	Q8_0 = int32(cpu.Q8_0)
	Q4_0 = int32(cpu.Q4_0)
	FP8  = backend.FP8 // e4m3, on GPUs only
)

// NewEngine makes an engine. The configuration's error, if any, names the field and the value.
func NewEngine(config Config) (*Engine, error) { return contexts.NewEngine(config) }

// NewWorkers makes teams of that many threads, the caller's own included; 0 stands for one per CPU.
func NewWorkers(size int) *Workers { return oncpu.NewWorkers(size) }

// NewRoles assigns roles for a model with that many layers that can take part.
func NewRoles(layers int, config Config) (Roles, error) { return selection.NewRoles(layers, config) }

// NewDecoder makes a decoder on an engine, of a model with that many layers. workers are what the CPU's run on.
func NewDecoder(engine *Engine, layers int, workers *Workers, params DecoderParams) (*Decoder, error) {
	return decode.NewDecoder(engine, layers, workers, params)
}

// WorkSize is the device memory that a decoder needs beside keys and values; 0 on the CPU.
func WorkSize(engine *Engine, layers int, params DecoderParams) (uint64, error) {
	return decode.WorkSize(engine, layers, params)
}

// ForQuality makes of a profile's text that of the same model for a quality target (lim_profile_for_quality).
func ForQuality(profile []byte, quality float64) ([]byte, error) {
	return selection.ForQuality(profile, quality)
}

// IsFolder tells whether a name is a folder's, links followed.
func IsFolder(path string) bool { return files.IsFolder(path) }

// Error is a refused call. Its text names the argument and the value.
type (
	Error = fault.Error
	Kind  = fault.Kind
)

const (
	BadArgument  = fault.BadArgument
	Unsupported  = fault.Unsupported
	NoMemory     = fault.NoMemory
	DeviceFailed = fault.DeviceFailed
)
