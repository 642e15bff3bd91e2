package main

/*
#include "edge.h"
*/
import "C"

import (
	"unsafe"

	"lessismore/plugin"
)

func decoderParams(params *C.lim_decoder_params) (plugin.DecoderParams, error) {
	if params.reserved != 0 {
		return plugin.DecoderParams{}, fault(statusArgument, "reserved = %d is not 0", params.reserved)
	}
	return plugin.DecoderParams{
		Device: int32(params.device), MaxRows: int32(params.max_rows), Capacity: int32(params.capacity),
		Heads: int32(params.heads), KVHeads: int32(params.kv_heads), KeyDim: int32(params.head_dim), ValueDim: int32(params.value_dim),
		KVType: int32(params.kv_dtype), KVTokens: int64(params.kv_tokens), Work: uint64(params.work), WorkSize: uint64(params.work_size),
	}, nil
}

// onParams answers for a function that is told what a decoder is for.
func onParams(function *C.char, engine C.uint64_t, params *C.lim_decoder_params, do func(*engineHandle, plugin.DecoderParams) (uint64, error), to *C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	e, err := findCallers(uint64(engine))
	if err != nil {
		return
	}
	p, err := decoderParams(params)
	if err != nil {
		return
	}
	n, err := do(e, p)
	if err == nil {
		*to = C.uint64_t(n)
	}
	return
}

//export limgo_decoder_work_size
func limgo_decoder_work_size(function *C.char, engine C.uint64_t, params *C.lim_decoder_params, size *C.uint64_t) C.int32_t {
	return onParams(function, engine, params, func(e *engineHandle, p plugin.DecoderParams) (uint64, error) {
		return plugin.WorkSize(e.engine, e.layers, p)
	}, size)
}

//export limgo_decoder_create
func limgo_decoder_create(function *C.char, engine C.uint64_t, params *C.lim_decoder_params, handle *C.uint64_t) C.int32_t {
	return onParams(function, engine, params, func(e *engineHandle, p plugin.DecoderParams) (uint64, error) {
		return create(e, uint64(engine), p)
	}, handle)
}

//export limgo_decoder_free
func limgo_decoder_free(function *C.char, handle C.uint64_t) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	d, err := take(uint64(handle))
	if err != nil {
		return
	}
	d.decoder.Free()
	remove(d, uint64(handle))
	return
}

// onDecoder answers for a function of a decoder, which nobody else uses meanwhile.
func onDecoder(function *C.char, handle C.uint64_t, do func(*plugin.Decoder) error) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	d, err := take(uint64(handle))
	if err != nil {
		return
	}
	defer d.release()
	err = do(d.decoder)
	return
}

//export limgo_decoder_reset
func limgo_decoder_reset(function *C.char, handle C.uint64_t) C.int32_t {
	return onDecoder(function, handle, func(d *plugin.Decoder) error {
		d.Reset()
		return nil
	})
}

//export limgo_decoder_poll
func limgo_decoder_poll(function *C.char, handle C.uint64_t, generation *C.uint64_t, eager *C.int32_t) C.int32_t {
	return onDecoder(function, handle, func(d *plugin.Decoder) error {
		now, wanted, err := d.Poll()
		if err != nil {
			return err
		}
		*generation, *eager = C.uint64_t(now), 0
		if wanted {
			*eager = 1
		}
		return nil
	})
}

//export limgo_decoder_stats
func limgo_decoder_stats(function *C.char, handle C.uint64_t, stats *C.lim_stats) C.int32_t {
	return onDecoder(function, handle, func(d *plugin.Decoder) error {
		counts, err := d.Read()
		if err == nil {
			fillStats(stats, &counts)
		}
		return err
	})
}

//export limgo_decoder_token_set
func limgo_decoder_token_set(function *C.char, handle C.uint64_t, row C.int32_t, tokens *C.int32_t, capacity C.int64_t, count *C.int64_t) C.int32_t {
	return onDecoder(function, handle, func(d *plugin.Decoder) error {
		if capacity < 0 {
			return fault(statusArgument, "capacity = %d is negative", capacity)
		}
		set, err := d.TokenSet(int(row))
		if err != nil {
			return err
		}
		*count = C.int64_t(len(set))
		if tokens == nil {
			return nil
		}
		if int(capacity) < len(set) {
			return fault(statusSize, "capacity = %d is less than the %d tokens of the set", capacity, len(set))
		}
		copy(unsafe.Slice((*int32)(unsafe.Pointer(tokens)), len(set)), set)
		return nil
	})
}

//export limgo_decoder_attend
func limgo_decoder_attend(function *C.char, handle C.uint64_t, args *C.lim_attention) (status C.int32_t) {
	var err error
	defer finish(function, &status, &err)
	d, err := take(uint64(handle))
	if err != nil {
		return
	}
	defer d.release()
	if args.reserved != 0 {
		err = fault(statusArgument, "reserved = %d is not 0", args.reserved)
		return
	}
	d.scratch = attention(args)
	completed := false
	defer func() {
		if !completed { // a panic: what the step was is not certain any more
			d.decoder.Reset()
		}
	}()
	err = d.decoder.Attend(&d.scratch)
	completed = true
	return
}

// attention is the call as the core states it. Addresses become numbers: they may be a GPU's, and 1 and 2 are streams, but no
// pointers to Go.
func attention(args *C.lim_attention) plugin.Attention {
	return plugin.Attention{
		Layer: int32(args.layer), Rows: int32(args.n_rows),
		Query: plugin.RowView{Data: address(&args.query), RowStride: int64(args.query_row_stride),
			HeadStride: int64(args.query_head_stride), Type: int32(args.query_dtype)},
		Output: plugin.RowView{Data: address(&args.output), RowStride: int64(args.output_row_stride),
			HeadStride: int64(args.output_head_stride), Type: int32(args.output_dtype)},
		Key: plugin.KVView{Data: address(&args.key), PageStride: int64(args.key_page_stride),
			TokenStride: int64(args.key_token_stride), HeadStride: int64(args.key_head_stride), Type: int32(args.key_dtype)},
		Value: plugin.KVView{Data: address(&args.value), PageStride: int64(args.value_page_stride),
			TokenStride: int64(args.value_token_stride), HeadStride: int64(args.value_head_stride), Type: int32(args.value_dtype)},
		Heads: int32(args.heads), KVHeads: int32(args.kv_heads), KeyDim: int32(args.head_dim), ValueDim: int32(args.value_dim),
		Slots: int64(args.n_slots), Lengths: address(&args.lengths),
		Table: address(&args.table), TableStride: int64(args.table_stride), PageSize: int32(args.page_size),
		QueryPositions: address(&args.query_positions),
		Positions:      address(&args.positions), PositionsStride: int64(args.positions_row_stride),
		Mask: address(&args.mask), MaskStride: int64(args.mask_row_stride),
		Slopes: address(&args.alibi_slopes), Sinks: address(&args.sinks),
		Scale: float32(args.scale), Softcap: float32(args.softcap), KeyScale: float32(args.key_scale), ValueScale: float32(args.value_scale),
		Stream: address(&args.stream), Sequences: address(&args.sequences), Pages: int64(args.n_pages),
	}
}

// address is a caller's pointer, as a number.
func address[T any](pointer *T) uintptr { return *(*uintptr)(unsafe.Pointer(pointer)) }
