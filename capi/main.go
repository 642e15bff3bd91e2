// Package main is the library's C edge: liblessismore.so, built with -buildmode=c-shared.
//
// It validates, converts and calls package plugin; nothing is decided here. ggml.go is the way in for
// ggml hosts, abi.go that of the C ABI. No panic crosses the edge.
package main

func main() {}
