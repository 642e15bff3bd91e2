package main

/*
#include "edge.h"
*/
import "C"

import (
	"unsafe"

	"lessismore/plugin"
)

func batchParams(params *C.lim_batch_params) (plugin.DecoderParams, error) {
	if params.reserved != 0 {
		return plugin.DecoderParams{}, fault(statusArgument, "reserved = %d is not 0", params.reserved)
	}
	if params.device < 0 {
		return plugin.DecoderParams{}, fault(statusArgument, "device = %d is not in 0 .. %d", params.device, plugin.MaxOrdinal-1)
	}
	return plugin.DecoderParams{
		Device: int32(params.device), MaxRows: int32(params.max_rows), Capacity: int32(params.capacity),
		Heads: int32(params.heads), KVHeads: int32(params.kv_heads), KeyDim: int32(params.head_dim), ValueDim: int32(params.head_dim), KVType: int32(params.kv_dtype),
		Work: uint64(params.work), WorkSize: uint64(params.work_size),
	}, nil
}

//export limgo_batch_work_size
func limgo_batch_work_size(function *C.char, engine C.uint64_t, params *C.lim_batch_params, size *C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	e, err := findCallers(uint64(engine))
	if err != nil {
		return
	}
	p, err := batchParams(params)
	if err != nil {
		return
	}
	bytes, err := plugin.WorkSize(e.engine, e.layers, p)
	if err == nil {
		*size = C.uint64_t(bytes)
	}
	return
}

//export limgo_batch_create
func limgo_batch_create(function *C.char, engine C.uint64_t, params *C.lim_batch_params, handle *C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	e, err := findCallers(uint64(engine))
	if err != nil {
		return
	}
	p, err := batchParams(params)
	if err != nil {
		return
	}
	h, err := create(e, uint64(engine), &e.batches, handles.batches, func() (*batchHandle, error) {
		b, err := plugin.NewDecoder(e.engine, e.layers, nil, p)
		if err != nil {
			return nil, err
		}
		return &batchHandle{batch: b, engine: e}, nil
	})
	if err == nil {
		*handle = C.uint64_t(h)
	}
	return
}

//export limgo_batch_free
func limgo_batch_free(function *C.char, handle C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	b, err := takeBatch(uint64(handle))
	if err != nil {
		return
	}
	b.batch.Free()
	remove(&b.engine.batches, handles.batches, uint64(handle))
	return
}

//export limgo_batch_reset
func limgo_batch_reset(function *C.char, handle C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	b, err := takeBatch(uint64(handle))
	if err != nil {
		return
	}
	defer b.release()
	b.batch.Reset()
	return
}

//export limgo_batch_generation
func limgo_batch_generation(function *C.char, handle C.uint64_t, generation *C.uint64_t, eager *C.int32_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	b, err := takeBatch(uint64(handle))
	if err != nil {
		return
	}
	defer b.release()
	now, wanted, err := b.batch.Poll()
	if err != nil {
		return
	}
	*generation, *eager = C.uint64_t(now), 0
	if wanted {
		*eager = 1
	}
	return
}

//export limgo_batch_stats
func limgo_batch_stats(function *C.char, handle C.uint64_t, stats *C.lim_stats) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	b, err := takeBatch(uint64(handle))
	if err != nil {
		return
	}
	defer b.release()
	counts, err := b.batch.Read()
	if err == nil {
		fillStats(stats, &counts)
	}
	return
}

//export limgo_batch_token_set
func limgo_batch_token_set(function *C.char, handle C.uint64_t, row C.int32_t, positions *C.int32_t, capacity C.int64_t, count *C.int64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	if capacity < 0 {
		err = fault(statusArgument, "capacity = %d is negative", capacity)
		return
	}
	b, err := takeBatch(uint64(handle))
	if err != nil {
		return
	}
	defer b.release()
	set, err := b.batch.TokenSet(int(row))
	if err != nil {
		return
	}
	err = giveSet("positions", set, positions, capacity, count)
	return
}

//export limgo_batch_attend
func limgo_batch_attend(function *C.char, handle C.uint64_t, args *C.lim_batch_attention) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	b, err := takeBatch(uint64(handle))
	if err != nil {
		return
	}
	defer b.release()
	if args.reserved != 0 {
		err = fault(statusArgument, "reserved = %d is not 0", args.reserved)
		return
	}
	a := &b.scratch
	*a = plugin.Attention{
		Layer: int32(args.layer), Rows: int32(args.n_rows),
		Query: plugin.RowView{Data: uintptr(args.query), RowStride: int64(args.query_row_stride),
			HeadStride: int64(args.query_head_stride), Type: int32(args.query_dtype)},
		Output: plugin.RowView{Data: uintptr(args.output), RowStride: int64(args.output_row_stride),
			HeadStride: int64(args.output_head_stride), Type: int32(args.output_dtype)},
		Key: plugin.KVView{Data: uintptr(args.key), TokenStride: int64(args.key_token_stride),
			HeadStride: int64(args.key_head_stride), PageStride: int64(args.key_page_stride)},
		Value: plugin.KVView{Data: uintptr(args.value), TokenStride: int64(args.value_token_stride),
			HeadStride: int64(args.value_head_stride), PageStride: int64(args.value_page_stride)},
		Lengths: uintptr(args.lengths), Table: uintptr(args.table), TableStride: int64(args.table_stride), PageSize: int32(args.page_size),
		Sinks: uintptr(args.sinks), Scale: float32(args.scale), Softcap: float32(args.softcap),
		KeyScale: float32(args.key_scale), ValueScale: float32(args.value_scale),
		Stream: *(*uintptr)(unsafe.Pointer(&args.stream)), // 1 and 2 are streams, but no pointers to Go
	}
	completed := false
	defer func() {
		if !completed { // a panic: what the step was is not certain any more
			b.batch.Reset()
		}
	}()
	err = b.batch.Attend(a)
	completed = true
	return
}
