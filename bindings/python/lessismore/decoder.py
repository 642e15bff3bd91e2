"""Rows that are decoded side by side, on the CPU or on a GPU."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Optional, TypedDict, Union

import numpy as np
import numpy.typing as npt

from . import _arrays, _device, _library
from ._errors import ArgumentError, Error
from ._handle import Handle
from ._values import integer, real

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .engine import Engine

CPU = -1


class _Shape(TypedDict, total=False):
    """What a decoder is made for, besides its rows."""

    device: Union[str, int]
    capacity: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    kv_tokens: int


class Decoder(Handle):
    """The token sets of rows that are decoded side by side, one query token each; keys and values stay with the caller.

    Made by Engine.decoder(). To be used by one thread, and on one stream, at a time. A context manager; close() ends it,
    and waits for the GPU.

    Args:
        engine: where it finds its selection layers by measuring, the decoder's steps are measured: see poll().
        max_rows: rows of a call, at most.
        device: "cpu", or a GPU's number. That GPU has to be the current one of the thread that calls attend()
            (torch.cuda.device).
        capacity: tokens that a row may see, at most. This and what follows is for a GPU, and needed there but for work.
        heads, kv_heads: query and key/value heads; up to 16 query heads for each KV head.
        head_dim: of query, key and value; 64, 128 or 256, with f16 and bf16 any multiple of 16 up to 256, with q8_0 and q4_0
            also 96, of up to 8 query heads for each KV head.
        dtype: of key and value: "f16", "bf16", "fp8" (e4m3), "q8_0" or "q4_0".
        kv_tokens: tokens that all rows above the budget will see together, at most: work memory grows with it rather than with
            max_rows * capacity, and a step of rows that see more is dense. Only with an engine whose layers are given. 0: no
            such bound.
        work: device memory for the library's work, of work_size() zeros, kept by the caller until close(). Default:
            the library allocates it.

    Raises:
        ArgumentError, UnsupportedError: a value is out of range, or not something that the kernels do.
        DeviceError: there is no usable GPU or driver.
        OutOfMemoryError: the machine or the GPU has too little memory left.
        HandleError, ForkedError: the engine is closed; in a child of os.fork().
    """

    _kind = "decoder"

    def __init__(self, engine: Engine, max_rows: int = 1, *, work: Any = None, **shape: Unpack[_Shape]) -> None:
        params = _params(max_rows, **shape)
        if work is not None:
            params.work, params.work_size = _device.memory("work", work)
        handle = ctypes.c_void_p()
        _library.library().lim_decoder_create(engine._use(), params, handle)
        self._engine, self._work = engine, work  # an engine outlives its decoders, work memory too
        self._shape = _device.Shape(shape.get("dtype", "f16"), int(params.heads), int(params.kv_heads), int(params.head_dim))
        self._on_cpu = params.device == CPU
        self._handle = handle.value

    @staticmethod
    def work_size(engine: Engine, max_rows: int = 1, **shape: Unpack[_Shape]) -> int:
        """The device memory that a decoder needs for its work, in bytes; 0 on the CPU. Raises as Decoder does."""
        size = ctypes.c_uint64()
        params = _params(max_rows, **shape)
        _library.library().lim_decoder_work_size(engine._use(), params, size)
        return size.value

    def attend(
        self,
        layer: int,
        query: Any,
        key: Any,
        value: Any,
        *,
        lengths: Any = None,
        out: Any = None,
        query_positions: Any = None,
        positions: Any = None,
        mask: Any = None,
        alibi_slopes: Any = None,
        table: Any = None,
        sequences: Any = None,
        sinks: Any = None,
        scale: Optional[float] = None,
        softcap: float = 0.0,
        key_dtype: Optional[str] = None,
        value_dtype: Optional[str] = None,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
        stream: Optional[int] = None,
    ) -> Any:
        """One layer of a decode step, for one query token of each row. On a GPU it is queued, and may be captured.

        The layers of a step come in ascending order; a layer that is not above the one before it, or on the CPU other
        query_positions (or lengths), starts a new step. Arrays are used where they are: nothing is copied or converted.

        On the CPU arrays are numpy's; where there is one row, its dimension may be left out of all of them. On a GPU they
        are torch's, or any with a __cuda_array_interface__ (CuPy, Numba).

        Args:
            layer: 0 to n_layers - 1.
            query: [rows, heads, head_dim]; float32, float16 or bfloat16.
            key, value: [rows, slots, kv_heads, head_dim], the new tokens' own included; with a table [pages, page_size,
                kv_heads, head_dim], also of one row, page_size a power of two. On the CPU [1, slots, ...] is for all rows: query tokens of
                one sequence; value may have another head_dim; float32, float16, bfloat16, or uint8 blocks with a
                key_dtype. On a GPU of the decoder's dtype: q8_0 and q4_0 as uint8 with 34 or 18 bytes for each 32 elements, fp8 as
                float8_e4m3fn or uint8. For a store with another order of dimensions hand over a transposed view.
            lengths: [rows] int32: tokens that each row sees, its own included. Needed on a GPU and with a table; else the
                default on the CPU is all slots, unless query_positions are given.
            out: [rows, heads, head_dim of value]; float32, float16 or bfloat16. Default, on the CPU: a new array of
                query's dtype.
            query_positions: on the CPU: [rows] int32, or a number for one row: logical position of the query tokens;
                tokens after them are not visible. Needed where positions are given.
            positions: on the CPU: [rows or 1, slots] int32, the logical position in each slot, -1 for none. Default:
                slot i holds i.
            mask: on the CPU: [rows or 1, slots] float16, added to the logits; -inf hides a slot.
            alibi_slopes: on the CPU: [heads] float32, factors of the mask.
            table: [rows, any] int32: each row's pages, in the order of its slots, which on a GPU is that of positions. Rows
                may share pages; entries beyond what a row sees may be anything. Slots are then counted along the table.
            sequences: on the CPU: [rows] uint64: which text each row is of, any number that no other text gets. With an
                engine's interval, a row that another text gets is told by it, without reset().
            sinks: [heads] float32, a further logit in each head's softmax.
            scale: of the logits. Default: head_dim ** -0.5.
            softcap: c > 0: logits become c * tanh(logit / c).
            key_dtype, value_dtype: on the CPU: "q8_0" or "q4_0" for uint8 arrays; else taken from the array.
            key_scale, value_scale: on a GPU: what keys and values are multiplied by.
            stream: on a GPU: a CUDA stream's handle. Default: torch's current one, or the one that query names, or the
                default stream.

        bfloat16 is ml_dtypes.bfloat16 (or numpy's uint16 with the same bits). The last dimension is contiguous; the
        others may have any stride that is not negative and steps over at least one row.

        Returns:
            out.

        Raises:
            ArgumentError, UnsupportedError: a shape, stride, dtype or value; nothing was written or queued.
            TypeError: something else than an array or a number.
            DeviceError: the driver refused.
            BusyError, HandleError, ForkedError: as elsewhere.
        """
        handle, a = self._use(), _library.Attention(struct_size=ctypes.sizeof(_library.Attention))
        a.layer = integer("layer", layer, 32)
        if self._on_cpu:
            if stream is not None:
                raise ArgumentError("stream is for decoders on a GPU")
            out = _arrays.state(a, query, key, value, out, key_dtype, value_dtype, table)
            kept = _arrays.visible(a, lengths, query_positions, positions, mask)
            a.alibi_slopes = _arrays.vector("alibi_slopes", alibi_slopes, np.float32, a.heads)
            a.sinks = _arrays.vector("sinks", sinks, np.float32, a.heads)
            a.sequences = _arrays.vector("sequences", sequences, np.uint64, a.n_rows)
        else:
            for name, given in (("query_positions", query_positions), ("positions", positions), ("mask", mask),
                                ("alibi_slopes", alibi_slopes), ("sequences", sequences), ("key_dtype", key_dtype), ("value_dtype", value_dtype)):  # fmt: skip
                if given is not None:
                    raise ArgumentError(f"{name} is for decoders on the CPU")
            kept = None
            _device.state(a, self._shape, query, key, value, lengths, out, table, sinks, stream)
        if scale is not None:
            a.scale = real("scale", scale)
            if a.scale == 0:
                raise ArgumentError(f"scale = {scale!r} is 0 as a float32")
        a.softcap = real("softcap", softcap)
        for name, number in (("key_scale", key_scale), ("value_scale", value_scale)):
            setattr(a, name, real(name, number))
            if getattr(a, name) == 0:
                raise ArgumentError(f"{name} = {number!r} is 0 as a float32")
        _library.library().lim_decoder_attend(handle, a)
        del kept  # until here
        return out

    def reset(self) -> None:
        """Forgets the current step: the next attend() starts a new one."""
        _library.library().lim_decoder_reset(self._use())

    def token_set(self, row: int = 0) -> npt.NDArray[np.int32]:
        """A row's token set, ascending; empty if none was chosen, or the row saw no more tokens than the budget. On the CPU:
        slots, of the current step. On a GPU: positions, of the last finished step, one whose last layer was computed; waits
        for the GPU."""
        lib, handle, count = _library.library(), self._use(), ctypes.c_int64()
        row = integer("row", row, 32)
        lib.lim_decoder_token_set(handle, row, None, 0, count)
        tokens = np.empty(count.value, np.int32)
        if tokens.size and lib.lim_decoder_token_set(handle, row, tokens.ctypes.data, tokens.size, count) != 0:
            raise Error("another thread has moved the decoder on")
        return tokens[: count.value]

    def poll(self) -> tuple[int, bool]:
        """For those who capture steps, on an engine that finds its selection layers by measuring: to be called before each
        step, replayed or not. Waits for nothing.

        Returns:
            A number that changes when the layers' roles do: capture again. And whether the coming step should be run
            without capture, since something is to be found out in it (lim_decoder_poll in the C header).
        """
        number, eager = ctypes.c_uint64(), ctypes.c_int32()
        _library.library().lim_decoder_poll(self._use(), number, eager)
        return number.value, eager.value != 0

    def stats(self) -> dict[str, int]:
        """What was counted (lim_stats in the C header); on a GPU in finished steps, replayed ones included, and it waits."""
        stats = _library.Stats(struct_size=ctypes.sizeof(_library.Stats))
        _library.library().lim_decoder_stats(self._use(), stats)
        return _library.stats_dict(stats)

    def close(self) -> None:
        """Ends the decoder, once the GPU is done; again is nothing to do. Raises BusyError while another thread uses it."""
        super().close()


def _params(
    max_rows: int, *, device: Union[str, int] = "cpu", capacity: int = 0, heads: int = 0, kv_heads: int = 0, head_dim: int = 0,
    dtype: str = "f16", kv_tokens: int = 0,
) -> _library.DecoderParams:  # fmt: skip
    if not isinstance(dtype, str) or dtype not in _device.BYTES:
        raise ArgumentError(f"dtype = {dtype!r} is none of {', '.join(_device.BYTES)}")
    params = _library.DecoderParams(struct_size=ctypes.sizeof(_library.DecoderParams), kv_dtype=_device.DTYPES[dtype])
    if isinstance(device, str):
        if device != "cpu":
            raise ArgumentError(f"device = {device!r} is neither 'cpu' nor a GPU's number")
        device = CPU
    numbers = dict(
        max_rows=max_rows, capacity=capacity, heads=heads, kv_heads=kv_heads, head_dim=head_dim, device=device, kv_tokens=kv_tokens
    )  # fmt: skip
    for name, number in numbers.items():
        setattr(params, name, integer(name, number, 64 if name == "kv_tokens" else 32))
    return params
