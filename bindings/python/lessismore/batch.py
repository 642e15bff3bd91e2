"""Sequences that are decoded side by side on a GPU."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import numpy.typing as npt

from . import _library
from ._device import View, view
from ._errors import ArgumentError, Error
from ._handle import Handle
from ._values import integer, real

if TYPE_CHECKING:
    from .engine import Engine

DTYPES = {"f32": 0, "f16": 1, "bf16": 2, "q8_0": 3, "fp8": 5}  # lim_dtype
BYTES = {"f16": ("f16",), "bf16": ("bf16",), "fp8": ("fp8", "u8"), "q8_0": ("u8",)}  # how K/V of a type may come
BLOCK, BLOCK_BYTES = 32, 34  # of q8_0


class Batch(Handle):
    """The token sets of sequences that are decoded side by side, one query token each, on an NVIDIA GPU.

    Args:
        engine: where it finds its selection layers by measuring, the batch takes part: see generation().
        max_rows: rows of a call, at most.
        capacity: tokens that a row may see, at most.
        heads, kv_heads: query and key/value heads; up to 16 query heads for each KV head.
        head_dim: of query, key and value; 64, 128 or 256.
        dtype: of key and value: "f16", "bf16", "fp8" (e4m3) or "q8_0".
        device: the GPU's number. It has to be the current one of the thread that calls attend() (torch.cuda.device).
        work: device memory for the library's work, of work_size() zeros, kept by the caller until close(). Default:
            the library allocates it.

    Keys and values stay with the caller. Arrays are torch's, or any with a __cuda_array_interface__ (CuPy, Numba);
    they are used where they are. To be used by one thread, and on one stream, at a time. A context manager;
    close() ends it and waits for the GPU.

    Raises:
        ArgumentError, UnsupportedError: a value is out of range, or not something that the kernels do.
        DeviceError: there is no usable GPU or driver.
        OutOfMemoryError: the GPU has too little memory left.
        HandleError, ForkedError: as elsewhere.
    """

    _kind = "batch"

    def __init__(
        self,
        engine: Engine,
        max_rows: int,
        capacity: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: str = "f16",
        *,
        device: int = 0,
        work: Any = None,
    ) -> None:
        params = _params(max_rows, capacity, heads, kv_heads, head_dim, dtype, device)
        if work is not None:
            memory = view("work", work, 1)
            if memory.dtype != "u8":
                raise ArgumentError(f"work has dtype {memory.dtype}, not u8")
            params.work, params.work_size = memory.address, memory.shape[0]
        handle = ctypes.c_void_p()
        _library.library().lim_batch_create(engine._use(), params, handle)
        self._engine, self._work = engine, work  # an engine outlives its batches, work memory too
        self._dtype, self._shape = dtype, (int(params.heads), int(params.kv_heads), int(params.head_dim))
        self._handle = handle.value
        self._call = _library.BatchAttention(struct_size=ctypes.sizeof(_library.BatchAttention))

    @staticmethod
    def work_size(
        engine: Engine, max_rows: int, capacity: int, heads: int, kv_heads: int, head_dim: int, dtype: str = "f16", *, device: int = 0
    ) -> int:
        """The device memory that a batch needs for its work, in bytes. Raises as Batch does."""
        size = ctypes.c_uint64()
        params = _params(max_rows, capacity, heads, kv_heads, head_dim, dtype, device)
        _library.library().lim_batch_work_size(engine._use(), params, size)
        return size.value

    def attend(
        self,
        layer: int,
        query: Any,
        key: Any,
        value: Any,
        lengths: Any,
        out: Any,
        *,
        table: Any = None,
        sinks: Any = None,
        scale: Optional[float] = None,
        softcap: float = 0.0,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
        stream: Optional[int] = None,
    ) -> Any:
        """Queues one layer of a decode step, for one query token of each row. It returns at once, and may be captured.

        The layers of a step come in ascending order; one that is not above the one before it starts a new step.

        Args:
            layer: 0 to n_layers - 1.
            query: [rows, heads, head_dim]; f32, f16 or bf16.
            key, value: [rows, tokens, kv_heads, head_dim] of the batch's dtype; with a table [pages, page_size,
                kv_heads, head_dim], page_size a power of two. For stores with another order of dimensions hand over
                a transposed view. q8_0 as uint8 with 34 bytes for each 32 elements, fp8 as float8_e4m3fn or uint8.
            lengths: [rows] int32: tokens that each row sees, its own included.
            out: [rows, heads, head_dim]; f32, f16 or bf16.
            table: [rows, any] int32: each row's pages, in position order.
            sinks: [heads] f32: a further logit in each head's softmax.
            scale: of the logits. Default: head_dim ** -0.5.
            softcap: c > 0: logits become c * tanh(logit / c).
            key_scale, value_scale: what keys and values are multiplied by.
            stream: a CUDA stream's handle. Default: torch's current one, or the one that query names, or the
                default stream.

        Returns:
            out.

        Raises:
            ArgumentError, UnsupportedError, TypeError: an argument; nothing was queued.
            DeviceError: the driver refused.
            BusyError, HandleError, ForkedError: as elsewhere.
        """
        handle, a = self._use(), self._call
        heads, kv_heads, head_dim = self._shape
        q, o, n = view("query", query, 3), view("out", out, 3), view("lengths", lengths, 1)
        rows = q.shape[0]
        for name, found in (("query", q), ("out", o)):
            if found.shape != (rows, heads, head_dim):
                raise ArgumentError(f"{name} has shape {found.shape}, not {(rows, heads, head_dim)}")
            if found.dtype not in ("f32", "f16", "bf16"):
                raise ArgumentError(f"{name} has dtype {found.dtype}, which is none of f32, f16, bf16")
        _vector("lengths", n, "i32", rows)
        width = head_dim // BLOCK * BLOCK_BYTES if self._dtype == "q8_0" else head_dim
        k, v = view("key", key, 4), view("value", value, 4)
        for name, found in (("key", k), ("value", v)):
            if found.dtype not in BYTES[self._dtype]:
                raise ArgumentError(f"{name} has dtype {found.dtype}, but the batch is for {self._dtype}")
            if found.shape[2:] != (kv_heads, width):
                raise ArgumentError(f"{name} has shape {found.shape}, not (any, any, {kv_heads}, {width})")
        if k.shape != v.shape:
            raise ArgumentError(f"value has shape {v.shape}, but key has {k.shape}")
        if table is None:
            if k.shape[0] < rows:
                raise ArgumentError(f"key has shape {k.shape}, but query has {rows} rows")
            a.table = 0
        else:
            t = view("table", table, 2)
            if t.dtype != "i32" or t.shape[0] != rows:
                raise ArgumentError(f"table has dtype {t.dtype} and shape {t.shape}, not i32 and ({rows}, any)")
            a.table, a.table_stride, a.page_size = t.address, t.strides[0] // 4, k.shape[1]
        a.sinks = 0
        if sinks is not None:
            s = view("sinks", sinks, 1)
            _vector("sinks", s, "f32", heads)
            a.sinks = s.address
        a.layer, a.n_rows = integer("layer", layer, 32), rows
        a.query, a.query_row_stride, a.query_head_stride, a.query_dtype = q.address, q.strides[0], q.strides[1], DTYPES[q.dtype]
        a.output, a.output_row_stride, a.output_head_stride, a.output_dtype = o.address, o.strides[0], o.strides[1], DTYPES[o.dtype]
        a.key, a.key_page_stride, a.key_token_stride, a.key_head_stride = k.address, *k.strides[:3]
        a.value, a.value_page_stride, a.value_token_stride, a.value_head_stride = v.address, *v.strides[:3]
        a.lengths = n.address
        a.scale = 0.0 if scale is None else real("scale", scale)
        if scale is not None and a.scale == 0:
            raise ArgumentError(f"scale = {scale!r} is 0 as a float32")
        a.softcap = real("softcap", softcap)
        for name, number in (("key_scale", key_scale), ("value_scale", value_scale)):
            setattr(a, name, real(name, number))
            if getattr(a, name) == 0:
                raise ArgumentError(f"{name} = {number!r} is 0 as a float32")
        a.stream = integer("stream", q.stream or 0 if stream is None else stream, 64)
        _library.library().lim_batch_attend(handle, a)
        return out

    def reset(self) -> None:
        """Forgets the current step: the next attend() starts a new one."""
        _library.library().lim_batch_reset(self._use())

    def token_set(self, row: int) -> npt.NDArray[np.int32]:
        """A row's token set in the last finished step, one whose last layer was computed: positions, ascending; empty if
        none was chosen, or the row saw no more tokens than the budget. Waits for the GPU."""
        lib, handle, count = _library.library(), self._use(), ctypes.c_int64()
        row = integer("row", row, 32)
        lib.lim_batch_token_set(handle, row, None, 0, count)
        positions = np.empty(count.value, np.int32)
        if positions.size and lib.lim_batch_token_set(handle, row, positions.ctypes.data, positions.size, count) != 0:
            raise Error("another thread has moved the batch on")
        return positions[: count.value]

    def generation(self) -> tuple[int, bool]:
        """For those who capture steps, on an engine that finds its selection layers by measuring: to be called before each
        step, replayed or not. Waits for nothing.

        Returns:
            A number that changes when the layers' roles do: capture again. And whether the coming step should be run
            without capture, since something is to be found out in it (lim_batch_generation in the C header).
        """
        number, eager = ctypes.c_uint64(), ctypes.c_int32()
        _library.library().lim_batch_generation(self._use(), number, eager)
        return number.value, eager.value != 0

    def stats(self) -> dict[str, int]:
        """What was counted (lim_stats in the C header), in finished steps, replayed ones included. Waits for the GPU."""
        stats = _library.Stats(struct_size=ctypes.sizeof(_library.Stats))
        _library.library().lim_batch_stats(self._use(), stats)
        return _library.stats_dict(stats)

    def close(self) -> None:
        """Ends the batch, once the GPU is done; again is nothing to do. Raises BusyError while another thread uses it."""
        super().close()


def _params(max_rows: int, capacity: int, heads: int, kv_heads: int, head_dim: int, dtype: str, device: int) -> _library.BatchParams:
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise ArgumentError(f"dtype = {dtype!r} is none of {', '.join(BYTES)}")
    params = _library.BatchParams(struct_size=ctypes.sizeof(_library.BatchParams), kv_dtype=DTYPES[dtype])
    for name, number in (
        ("max_rows", max_rows), ("capacity", capacity), ("heads", heads), ("kv_heads", kv_heads), ("head_dim", head_dim),
        ("device", device),
    ):  # fmt: skip
        setattr(params, name, integer(name, number, 32))
    return params


def _vector(name: str, found: View, dtype: str, length: int) -> None:
    if found.dtype != dtype or found.shape != (length,):
        raise ArgumentError(f"{name} has dtype {found.dtype} and shape {found.shape}, not {dtype} and {(length,)}")
