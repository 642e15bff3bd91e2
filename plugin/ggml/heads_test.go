package ggml

import (
	"testing"

	"github.com/stretchr/testify/require"

	"lessismore/plugin/ggml/graph"
	"lessismore/plugin/internal/contexts"
	"lessismore/plugin/internal/kvindex"
	"lessismore/plugin/internal/settings"
)

// A host with several GPUs, without any: nothing but the first pass is planned.
func gpuPass(t *testing.T, engine *contexts.Engine, n int) (sessions []*GPUSession, lines *[]string) {
	lines = &[]string{}
	for range n {
		s := NewGPUSession(engine, func(_ settings.LogLevel, text string) { *lines = append(*lines, text) }, true)
		t.Cleanup(s.Close)
		sessions = append(sessions, s)
	}
	return sessions, lines
}

func gpuPart(s *GPUSession, from, to int) {
	g := &graph.Graph{}
	for l := from; l < to; l++ {
		g.Nodes = append(g.Nodes, graph.Node{Layer: int32(l), Store: kvindex.Store{ID: uint64(l + 1), Slots: 256, Streams: 1}, Tokens: 1, Streams: 1, NKV: 256})
	}
	s.Plan(g)
}

func TestHeadsOnSeveralGPUs(t *testing.T) {
	engine, err := contexts.NewEngine(settings.DefaultConfig())
	require.NoError(t, err)
	for _, gpus := range []int{2, 3} {
		s, lines := gpuPass(t, engine, gpus)
		for l := range 4 {
			for _, device := range s {
				gpuPart(device, l, l+1)
			}
		}
		for _, device := range s {
			require.Contains(t, device.Stats().Inert, "-sm tensor")
		}
		require.Len(t, *lines, 1)
	}
}

func TestLayersOnSeveralGPUs(t *testing.T) {
	engine, err := contexts.NewEngine(settings.DefaultConfig())
	require.NoError(t, err)
	s, lines := gpuPass(t, engine, 3)
	for range 2 {
		gpuPart(s[0], 0, 4) // half of a model each
		gpuPart(s[1], 4, 8)
		gpuPart(s[2], 0, 8) // another context
	}
	for l := range 4 { // another part of a model for each call: a host that calls back
		gpuPart(s[0], l, l+1)
	}
	for l := range 4 {
		gpuPart(s[2], l, l+1)
	}
	for _, device := range s {
		require.NotContains(t, device.Stats().Inert, "-sm tensor")
	}
	for _, line := range *lines {
		require.NotContains(t, line, "-sm tensor")
	}
}
