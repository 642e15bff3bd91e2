package main

/*
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include "edge.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"unsafe"

	"lessismore/plugin"
)

// What edge.c calls, once it has seen to the process, to null pointers and to the sizes of structures.
// Each function states which function of the header it works for: that begins the error's text.

const (
	statusArgument    = C.LIM_ERROR_ARGUMENT
	statusUnsupported = C.LIM_ERROR_UNSUPPORTED
	statusHandle      = C.LIM_ERROR_HANDLE
	statusBusy        = C.LIM_ERROR_BUSY
	statusSize        = C.LIM_ERROR_SIZE
	statusMemory      = C.LIM_ERROR_MEMORY
	statusInternal    = C.LIM_ERROR_INTERNAL
	statusDevice      = C.LIM_ERROR_DEVICE
)

// The header's limits are the core's: a difference does not compile.
var (
	_ = [1]struct{}{}[C.LIM_MAX_BUDGET-plugin.MaxBudget]
	_ = [1]struct{}{}[C.LIM_MAX_SLOTS-plugin.MaxSlots]
	_ = [1]struct{}{}[C.LIM_MAX_ROWS-plugin.MaxRows]
	_ = [1]struct{}{}[C.LIM_DTYPE_FP8-plugin.FP8]
	_ = [1]struct{}{}[C.LIM_MAX_LAYERS-plugin.MaxLayer-1]
	_ = [1]struct{}{}[C.LIM_MAX_SELECTION_LAYERS-plugin.MaxSelections]
	_ = [1]struct{}{}[C.LIM_MAX_QUALITY_LAYERS-plugin.MaxTried]
	_ = [1]struct{}{}[C.LIM_MAX_GUARD-plugin.MaxGuard]
	_ = [1]struct{}{}[C.LIM_MAX_INTERVAL-plugin.MaxInterval]
	_ = [1]struct{}{}[C.LIM_MAX_TRACE-plugin.MaxTrace]
	_ = [1]struct{}{}[C.LIM_MAX_PROFILE-plugin.MaxProfile]
	_ = [1]struct{}{}[C.LIM_POLICY_UNION-plugin.Union]
	_ = [1]struct{}{}[C.LIM_POLICY_MASS-plugin.Mass]
)

// abiError is an error that knows its status.
type abiError struct {
	status C.lim_status
	text   string
}

func (e *abiError) Error() string { return e.text }

func fault(status C.lim_status, format string, args ...any) error {
	return &abiError{status, fmt.Sprintf(format, args...)}
}

// finish is how every exported function ends: an error becomes a status and a text, and so does a panic.
func finish(function *C.char, status *C.int32_t, err *error) {
	if r := recover(); r != nil {
		*err = fault(statusInternal, "%v; please report this:\n%s", r, debug.Stack())
	}
	if *err == nil {
		*status = C.LIM_OK
		return
	}
	*status = C.int32_t(statusOf(*err))
	text := (*err).Error()
	C.edge_fail(function, (*C.char)(unsafe.Pointer(unsafe.StringData(text))), C.size_t(len(text)))
}

func statusOf(err error) C.lim_status {
	var a *abiError
	if errors.As(err, &a) {
		return a.status
	}
	var p *plugin.Error
	if errors.As(err, &p) {
		switch p.Kind {
		case plugin.Unsupported:
			return statusUnsupported
		case plugin.NoMemory:
			return statusMemory
		case plugin.DeviceFailed:
			return statusDevice
		}
	}
	return statusArgument
}

// log passes a line to the host's logger, if there is one.
func (l logger) log(level C.int32_t, format string, args ...any) {
	if l.function == nil {
		return
	}
	text := C.CString(fmt.Sprintf(format, args...))
	defer C.free(unsafe.Pointer(text))
	C.edge_log(C.lim_logger(l.function), *(*unsafe.Pointer)(unsafe.Pointer(&l.user)), level, text)
}

//export limgo_engine_defaults
func limgo_engine_defaults(params *C.lim_engine_params) {
	config := plugin.DefaultConfig()
	params.recency = C.double(config.Recency)
	params.policy = C.int32_t(config.Policy)
	params.quality = C.double(config.Quality)
	for name, value := range config.Numbers() {
		*setting(params, name) = C.int32_t(*value)
	}
}

// setting is the field of a setting that is a whole number; the header calls it what the setting is called.
func setting(params *C.lim_engine_params, name string) *C.int32_t {
	return (*C.int32_t)(unsafe.Pointer(reflect.ValueOf(params).Elem().FieldByName(name).UnsafeAddr()))
}

//export limgo_engine_create
func limgo_engine_create(function *C.char, params *C.lim_engine_params, handle *C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	var e *engineHandle
	if e, err = newEngine(params); err != nil {
		return
	}
	handles.mu.Lock()
	h := issue()
	handles.engines[h] = e
	handles.mu.Unlock()
	*handle = C.uint64_t(h)
	choice := "found by measuring"
	if layers := e.engine.Config().Layers; layers != nil {
		choice = fmt.Sprint(layers)
	}
	e.logger.log(C.LIM_LOG_INFO, "lessismore %s: budget %d, selection layers %s, of %d layers, recency %v, sink tokens %d, policy %s",
		plugin.Version, e.engine.Config().Budget, choice, e.layers, e.engine.Config().Recency,
		e.engine.Config().SinkTokens, e.engine.Config().Policy)
	return
}

func newEngine(params *C.lim_engine_params) (*engineHandle, error) {
	config := plugin.DefaultConfig()
	config.Recency = float64(params.recency)
	config.Policy = plugin.Policy(params.policy)
	config.Quality = float64(params.quality)
	for name, value := range config.Numbers() {
		*value = int(*setting(params, name))
	}
	switch {
	case params.reserved != 0:
		return nil, fault(statusArgument, "reserved = %d is not 0", params.reserved)
	case params.n_layers < 1 || params.n_layers > C.LIM_MAX_LAYERS:
		return nil, fault(statusArgument, "n_layers = %d is not in 1 .. %d", params.n_layers, C.LIM_MAX_LAYERS)
	case params.n_threads < 0 || params.n_threads > C.LIM_MAX_THREADS:
		return nil, fault(statusArgument, "n_threads = %d is not in 0 .. %d", params.n_threads, C.LIM_MAX_THREADS)
	}
	if params.selections == 0 { // the engine is of one model: what is reported of it is the number
		config.Selections = config.SelectionsFor(int(params.n_layers))
	}
	var err error
	if config.Layers, err = layersOf(params.layers, params.layers_count); err != nil {
		return nil, err
	}
	engine, err := plugin.NewEngine(config)
	if err != nil {
		return nil, err
	}
	if _, err := plugin.NewRoles(int(params.n_layers), engine.Config()); err != nil {
		return nil, err
	}
	var texts [3]string
	for i, p := range []struct {
		name string
		text *C.char
	}{{"model", params.model}, {"profile", params.profile}, {"profile_dir", params.profile_dir}} {
		if texts[i], err = text(p.name, p.text, C.LIM_MAX_TEXT); err != nil {
			return nil, err
		}
	}
	about, profiles := texts[0], plugin.Profiles{Path: texts[1], Dir: texts[2]}
	switch {
	case profiles.Path != "" && profiles.Dir != "":
		return nil, fault(statusArgument, "profile_dir = %q, but profile is not NULL", profiles.Dir)
	case profiles.Dir != "" && about == "":
		return nil, fault(statusArgument, "profile_dir = %q, but model = NULL", profiles.Dir)
	case plugin.IsFolder(profiles.Path):
		return nil, fault(statusArgument, "profile = %q is a folder: name a file in it, or the folder as profile_dir", profiles.Path)
	}
	engine.Keep(profiles)
	host := logger{*(*unsafe.Pointer)(unsafe.Pointer(&params.logger)), uintptr(params.logger_user)}
	engine.Serve(about, func(level plugin.LogLevel, text string) {
		to := C.int32_t(C.LIM_LOG_INFO)
		if level == plugin.LogDebug {
			to = C.LIM_LOG_DEBUG
		}
		host.log(to, "%s", text)
	})
	return &engineHandle{
		engine:  engine,
		layers:  int(params.n_layers),
		workers: plugin.NewWorkers(int(params.n_threads)),
		logger:  host,
	}, nil
}

// layersOf is the selection layers that a caller names; nil: none.
func layersOf(layers *C.int32_t, count C.int64_t) ([]int, error) {
	at := uintptr(unsafe.Pointer(layers))
	switch {
	case count < 0 || count > C.LIM_MAX_SELECTION_LAYERS:
		return nil, fault(statusArgument, "layers_count = %d is not in 0 .. %d", count, C.LIM_MAX_SELECTION_LAYERS)
	case at == 0 && count > 0:
		return nil, fault(statusArgument, "layers = NULL with layers_count = %d", count)
	case at != 0 && count == 0:
		return nil, fault(statusArgument, "layers_count = 0, but layers is not NULL")
	case at%4 != 0:
		return nil, fault(statusArgument, "layers = %#x is not a multiple of 4, the size of its elements", at)
	case count == 0:
		return nil, nil
	}
	out := make([]int, count)
	for i, l := range unsafe.Slice(layers, count) {
		out[i] = int(l)
	}
	return out, nil
}

// text is a parameter's; "": NULL.
func text(name string, s *C.char, most C.size_t) (string, error) {
	if s == nil {
		return "", nil
	}
	n := C.strnlen(s, most+1)
	switch {
	case n == 0:
		return "", fault(statusArgument, "%s = \"\" is not text; NULL stands for none", name)
	case n > most:
		return "", fault(statusArgument, "%s is longer than %d bytes", name, most)
	}
	return C.GoStringN(s, C.int(n)), nil
}

// onEngine answers for a function of an engine.
func onEngine(function *C.char, handle C.uint64_t, do func(*engineHandle) error) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	e, err := findEngine(uint64(handle))
	if err == nil {
		err = do(e)
	}
	return
}

//export limgo_engine_ablate
func limgo_engine_ablate(function *C.char, handle C.uint64_t, selects, sparse C.int32_t) C.int32_t {
	return onEngine(function, handle, func(e *engineHandle) error {
		switch last := C.int32_t(e.layers - 1); {
		case selects < -1 || selects > last:
			return fault(statusArgument, "select = %d is not in -1 .. %d", selects, last)
		case sparse < -1 || sparse > last:
			return fault(statusArgument, "sparse = %d is not in -1 .. %d", sparse, last)
		case selects == -1 && sparse == -1:
			e.engine.Ablate(nil)
		case selects == -1 || sparse != -1 && sparse <= selects:
			return fault(statusArgument, "sparse = %d is not above select = %d", sparse, selects)
		default:
			e.engine.Ablate(&plugin.Ablation{Select: int(selects), Sparse: int(sparse)})
		}
		return nil
	})
}

//export limgo_engine_try
func limgo_engine_try(function *C.char, handle C.uint64_t, layers *C.int32_t, count C.int64_t) C.int32_t {
	return onEngine(function, handle, func(e *engineHandle) error {
		choice, err := layersOf(layers, count)
		switch {
		case err != nil:
			return err
		case choice == nil:
			e.engine.Ablate(nil)
			return nil
		}
		for i, l := range choice {
			if l < 0 || l >= e.layers {
				return fault(statusArgument, "layers names layer %d, which is not in 0 .. %d", l, e.layers-1)
			}
			if i > 0 && l <= choice[i-1] {
				return fault(statusArgument, "layers is not ascending: %d follows %d", l, choice[i-1])
			}
		}
		e.engine.Ablate(&plugin.Ablation{Choice: choice})
		return nil
	})
}

//export limgo_ggml_engine
func limgo_ggml_engine(function *C.char, handle *C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	engine := process.Engine()
	if engine == nil {
		err = fault(statusUnsupported, "no ggml host has loaded the library into this process")
		return
	}
	handles.mu.Lock()
	defer handles.mu.Unlock()
	if handles.ggml == 0 {
		handles.ggml = issue()
		handles.engines[handles.ggml] = &engineHandle{engine: engine, layers: plugin.MaxLayer + 1}
	}
	*handle = C.uint64_t(handles.ggml)
	return
}

//export limgo_engine_free
func limgo_engine_free(function *C.char, handle C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	e, err := findEngine(uint64(handle))
	if err != nil {
		return
	}
	handles.mu.Lock()
	switch {
	case handles.engines[uint64(handle)] != e:
		err = unknownHandle("engine", uint64(handle))
	case e.workers == nil:
		err = hosts(uint64(handle))
	case e.decoders > 0:
		err = fault(statusBusy, "engine = %#x has decoders that are still alive: %d", uint64(handle), e.decoders)
	default:
		delete(handles.engines, uint64(handle))
	}
	handles.mu.Unlock()
	if err == nil {
		e.workers.Free()
	}
	return
}

//export limgo_engine_stats
func limgo_engine_stats(function *C.char, handle C.uint64_t, stats *C.lim_stats) C.int32_t {
	return onEngine(function, handle, func(e *engineHandle) error {
		total := e.engine.Total()
		fillStats(stats, &total)
		return nil
	})
}

//export limgo_engine_stats_json
func limgo_engine_stats_json(function *C.char, handle C.uint64_t, buffer *C.char, size C.size_t, needed *C.size_t) C.int32_t {
	return onEngine(function, handle, func(e *engineHandle) error {
		return deliver(e.engine.Report().JSON(), buffer, size, needed)
	})
}

// deliver gives a caller a text, or the size that it takes.
func deliver(text []byte, buffer *C.char, size C.size_t, needed *C.size_t) error {
	text = append(text, 0)
	if needed != nil {
		*needed = C.size_t(len(text))
	}
	if buffer == nil {
		return nil
	}
	if size < C.size_t(len(text)) {
		return fault(statusSize, "size = %d is less than the %d bytes needed", size, len(text))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(buffer)), len(text)), text)
	return nil
}

//export limgo_profile_for_quality
func limgo_profile_for_quality(function, profile *C.char, quality C.double, buffer *C.char, size C.size_t, needed *C.size_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	given, err := text("profile", profile, C.LIM_MAX_PROFILE)
	if err != nil {
		return
	}
	made, err := plugin.ForQuality([]byte(given), float64(quality))
	if err == nil {
		err = deliver(made, buffer, size, needed)
	}
	return
}

// fillStats fills the fields of the counters, which the header calls what the statistics call them.
func fillStats(to *C.lim_stats, s *plugin.Stats) {
	fields := reflect.ValueOf(to).Elem()
	for i := 1; i < fields.NumField(); i++ { // behind struct_size
		*(*uint64)(unsafe.Pointer(fields.Field(i).UnsafeAddr())) = *s.Counter(fields.Type().Field(i).Name)
	}
}
