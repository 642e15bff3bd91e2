"""Arrays in CUDA memory, whoever made them: their address, shape, strides and type, never a copy."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, Optional

from . import _library
from ._errors import ArgumentError
from ._values import integer

# Names of element types, as torch and the CUDA array interface have them.
TORCH = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "fp8", "uint8": "u8", "int32": "i32"}
# The interface has no bfloat16: its bits come as 16-bit integers or as opaque values.
INTERFACE = {"<f4": "f32", "<f2": "f16", "<u2": "bf16", "<V2": "bf16", "|u1": "u8", "|V1": "fp8", "<i4": "i32"}
SIZES = {"f32": 4, "f16": 2, "bf16": 2, "fp8": 1, "u8": 1, "i32": 4}


class View(NamedTuple):
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: str
    stream: Optional[int]  # that the array's owner works on, if it says so


def view(name: str, array: Any, ndim: int) -> View:
    """An array of that many dimensions, the last one contiguous. Raises TypeError, ArgumentError."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        if not array.is_cuda:
            raise ArgumentError(f"{name} is on {array.device}, not in CUDA memory")
        dtype = str(array.dtype).rpartition(".")[2]
        kind = TORCH.get(dtype, "")
        size = array.element_size()
        found = View(
            array.data_ptr(), tuple(array.shape), tuple(s * size for s in array.stride()), kind,
            int(torch.cuda.current_stream(array.device).cuda_stream),
        )  # fmt: skip
    else:
        interface = getattr(array, "__cuda_array_interface__", None)
        if not isinstance(interface, dict):
            raise TypeError(f"{name} is a {type(array).__name__}, not an array in CUDA memory")
        dtype = str(interface["typestr"])
        kind = INTERFACE.get(dtype, "")
        shape = tuple(int(n) for n in interface["shape"])
        strides = interface.get("strides")
        if strides is None:
            strides, step = [], SIZES.get(kind, 1)
            for n in reversed(shape):
                strides.insert(0, step)
                step *= n
        stream = interface.get("stream")
        found = View(int(interface["data"][0]), shape, tuple(int(s) for s in strides), kind, None if stream is None else int(stream))
    if not kind:
        raise ArgumentError(f"{name} has dtype {dtype}, which is none of {', '.join(SIZES)}")
    if len(found.shape) != ndim:
        raise ArgumentError(f"{name} has shape {found.shape}, which is not {ndim} dimensions")
    if found.shape[-1] > 1 and found.strides[-1] != SIZES[kind]:
        raise ArgumentError(f"{name} has strides {found.strides}: its last dimension is not contiguous")
    return found


DTYPES = {"f32": 0, "f16": 1, "bf16": 2, "q8_0": 3, "q4_0": 4, "fp8": 5}  # lim_dtype
BYTES = {"f16": ("f16",), "bf16": ("bf16",), "fp8": ("fp8", "u8"), "q8_0": ("u8",), "q4_0": ("u8",)}  # how K/V of a type may come


class Shape(NamedTuple):
    """What a decoder on a GPU was made for."""

    dtype: str
    heads: int
    kv_heads: int
    head_dim: int


def memory(name: str, array: Any) -> tuple[int, int]:
    """Address and size of bytes. Raises TypeError, ArgumentError."""
    found = view(name, array, 1)
    if found.dtype != "u8":
        raise ArgumentError(f"{name} has dtype {found.dtype}, not u8")
    return found.address, found.shape[0]


def state(
    a: _library.Attention, shape: Shape, query: Any, key: Any, value: Any, lengths: Any, out: Any, table: Any, sinks: Any, stream: Any
) -> None:
    """States the arrays of a call. Raises TypeError, ArgumentError."""
    dtype, heads, kv_heads, head_dim = shape
    q, o, n = view("query", query, 3), view("out", out, 3), view("lengths", lengths, 1)
    rows = q.shape[0]
    for name, found in (("query", q), ("out", o)):
        if found.shape != (rows, heads, head_dim):
            raise ArgumentError(f"{name} has shape {found.shape}, not {(rows, heads, head_dim)}")
        if found.dtype not in ("f32", "f16", "bf16"):
            raise ArgumentError(f"{name} has dtype {found.dtype}, which is none of f32, f16, bf16")
    _vector("lengths", n, "i32", rows)
    width = head_dim // _library.BLOCK * _library.BLOCK_BYTES[dtype] if dtype in _library.BLOCK_BYTES else head_dim
    k, v = view("key", key, 4), view("value", value, 4)
    for name, found in (("key", k), ("value", v)):
        if found.dtype not in BYTES[dtype]:
            raise ArgumentError(f"{name} has dtype {found.dtype}, but the decoder is for {dtype}")
        if found.shape[2:] != (kv_heads, width):
            raise ArgumentError(f"{name} has shape {found.shape}, not (any, any, {kv_heads}, {width})")
    if k.shape != v.shape:
        raise ArgumentError(f"value has shape {v.shape}, but key has {k.shape}")
    if table is None:
        if k.shape[0] < rows:
            raise ArgumentError(f"key has shape {k.shape}, but query has {rows} rows")
    else:
        t = view("table", table, 2)
        if t.dtype != "i32" or t.shape[0] != rows:
            raise ArgumentError(f"table has dtype {t.dtype} and shape {t.shape}, not i32 and ({rows}, any)")
        a.table, a.table_stride, a.page_size = t.address, t.strides[0] // 4, k.shape[1]
    if sinks is not None:
        s = view("sinks", sinks, 1)
        _vector("sinks", s, "f32", heads)
        a.sinks = s.address
    a.n_rows, a.lengths = rows, n.address
    a.query, a.query_row_stride, a.query_head_stride, a.query_dtype = q.address, q.strides[0], q.strides[1], DTYPES[q.dtype]
    a.output, a.output_row_stride, a.output_head_stride, a.output_dtype = o.address, o.strides[0], o.strides[1], DTYPES[o.dtype]
    a.key, a.key_page_stride, a.key_token_stride, a.key_head_stride = k.address, *k.strides[:3]
    a.value, a.value_page_stride, a.value_token_stride, a.value_head_stride = v.address, *v.strides[:3]
    a.stream = integer("stream", q.stream or 0 if stream is None else stream, 64)


def _vector(name: str, found: View, dtype: str, length: int) -> None:
    if found.dtype != dtype or found.shape != (length,):
        raise ArgumentError(f"{name} has dtype {found.dtype} and shape {found.shape}, not {dtype} and {(length,)}")
