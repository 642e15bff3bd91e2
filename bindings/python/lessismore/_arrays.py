"""NumPy arrays on their way to the library: addresses and strides of where they are, never a copy.

Where there is one row, its dimension may be left out of all arrays: dimensions are counted from the last.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from . import _library
from ._errors import ArgumentError
from ._values import integer

Array = npt.NDArray[Any]

F32, F16, BF16, Q8_0, Q4_0 = range(5)
NAMES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0, "q4_0": Q4_0}
BLOCK_BYTES = {NAMES[name]: size for name, size in _library.BLOCK_BYTES.items()}


def state(
    a: _library.Attention,
    query: Array,
    key: Array,
    value: Array,
    out: Optional[Array],
    key_dtype: Optional[str],
    value_dtype: Optional[str],
    table: Optional[Array] = None,
) -> Array:
    """States query, key, value, output and block table of a call. Returns the output. Raises TypeError, ArgumentError."""
    rows = isinstance(query, np.ndarray) and query.ndim == 3  # else there is one, and it is not a dimension
    a.query_dtype = _dtype("query", query, 2 + rows, None)
    a.n_rows = _dimension("query", query, 0) if rows else 1
    a.heads, a.head_dim = _dimension("query", query, -2), _dimension("query", query, -1)
    a.query, a.query_head_stride, a.query_row_stride = _address(query), query.strides[-2], query.strides[0]

    stores = 3 + (rows or table is not None)
    a.key_dtype, a.value_dtype = _dtype("key", key, stores, key_dtype), _dtype("value", value, stores, value_dtype)
    if value.shape[:-1] != key.shape[:-1]:
        which = "rows, slots" if table is None else "pages, their size"
        raise ArgumentError(f"value has shape {value.shape}, but key has {key.shape}: {which} or KV heads differ")
    if table is not None:
        _pages(a, table, rows, key)
    elif rows and key.shape[0] not in (1, a.n_rows):
        raise ArgumentError(f"key has shape {key.shape}, but query has {query.shape}: rows differ")
    if _elements("key", key, a.key_dtype) != a.head_dim:
        raise ArgumentError(f"key has shape {key.shape}, but query has {query.shape}: head_dim differs")
    a.kv_heads = _dimension("key", key, -2)
    if table is None:
        a.n_slots = key.shape[-3]
    a.value_dim = integer("value_dim", _elements("value", value, a.value_dtype), 32)
    if a.value_dim == 0 or a.head_dim == 0:  # to the library, that is the same as nothing
        raise ArgumentError(f"head_dim = {a.head_dim}, value_dim = {a.value_dim}: a head without elements")
    shared = table is None and (not rows or key.shape[0] == 1)
    for name, array in (("key", key), ("value", value)):
        setattr(a, name, _address(array))
        setattr(a, f"{name}_page_stride", 0 if shared else array.strides[0])
        setattr(a, f"{name}_token_stride", array.strides[-3])
        setattr(a, f"{name}_head_stride", array.strides[-2])

    shape = (a.n_rows, a.heads, a.value_dim) if rows else (a.heads, a.value_dim)
    if out is None:
        if a.n_rows * a.heads * a.value_dim > 1 << 28:  # refused below anyway, but not after asking for the memory
            raise ArgumentError(f"query has shape {query.shape} and value {value.shape}: too large")
        out = np.empty(shape, query.dtype)
    a.output_dtype = _dtype("out", out, 2 + rows, None)
    if out.shape != shape:
        raise ArgumentError(f"out has shape {out.shape}, not {shape}")
    if not out.flags.writeable:
        raise ArgumentError("out is read-only")
    a.output, a.output_head_stride, a.output_row_stride = _address(out), out.strides[-2], out.strides[0]
    return out


def _pages(a: _library.Attention, table: Array, rows: bool, key: Array) -> None:
    """States a block table, [rows, any], or of one row [any]: how many pages each row has at most."""
    if not isinstance(table, np.ndarray):
        raise TypeError(f"table is a {type(table).__name__}, not a numpy.ndarray")
    if table.ndim != 1 + rows or table.shape[-1] == 0:
        raise ArgumentError(f"table has shape {table.shape}, not {'[rows, pages of a row]' if rows else '[pages of the row]'}")
    a.table = _checked("table", table, np.int32, (a.n_rows, table.shape[-1])[not rows :])
    a.n_pages, a.page_size = key.shape[0], _dimension("key", key, 1)
    if a.n_pages == 0 or a.page_size == 0:  # to the library, the one is the same as nothing
        raise ArgumentError(f"key has shape {key.shape}: no pages, or pages of nothing")
    a.table_stride, a.n_slots = table.shape[-1], table.shape[-1] * a.page_size


def visible(
    a: _library.Attention, lengths: Any, query_positions: Any, positions: Optional[Array], mask: Optional[Array]
) -> tuple[Any, Any]:
    """States what the rows of a call see. What is returned is to be kept until the call is over."""
    if query_positions is None:
        if positions is not None:
            raise ArgumentError("query_positions = None needs a value where positions are given")
        if lengths is None and a.table:
            raise ArgumentError("lengths = None, query_positions = None: with a table one of them has to say what the rows see")
        if lengths is None:
            lengths = np.full(a.n_rows, a.n_slots, np.int32)
    elif not isinstance(query_positions, np.ndarray):
        if a.n_rows != 1:
            raise TypeError(f"query_positions is a {type(query_positions).__name__}, not a numpy.ndarray")
        query_positions = np.array([integer("query_positions", query_positions, 32)], np.int32)
    a.lengths, a.query_positions = (
        vector("lengths", lengths, np.int32, a.n_rows),
        vector("query_positions", query_positions, np.int32, a.n_rows),
    )
    for name, array, dtype in (("positions", positions, np.int32), ("mask", mask, np.float16)):
        if isinstance(array, np.ndarray) and array.ndim == 2:  # one for each row, or one for all
            rows = 1 if len(array) == 1 else a.n_rows
            setattr(a, name, _checked(name, array, dtype, (rows, a.n_slots)))
            setattr(a, f"{name}_row_stride", a.n_slots if rows > 1 else 0)
        else:
            setattr(a, name, vector(name, array, dtype, a.n_slots))
    return lengths, query_positions


def vector(name: str, array: Optional[Array], dtype: Any, length: int) -> Optional[int]:
    """The address of a contiguous array of that many numbers; None for None."""
    return None if array is None else _checked(name, array, dtype, (length,))


def _checked(name: str, array: Array, dtype: Any, shape: tuple[int, ...]) -> int:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(array).__name__}, not a numpy.ndarray")
    if array.dtype != dtype or not array.dtype.isnative:
        raise ArgumentError(f"{name} has dtype {array.dtype}, not {np.dtype(dtype)}")
    if array.shape != shape:
        raise ArgumentError(f"{name} has shape {array.shape}, not {shape}")
    if not array.flags.c_contiguous:
        raise ArgumentError(f"{name} has strides {array.strides}: it is not contiguous")
    return _address(array)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _dimension(name: str, array: Array, axis: int) -> int:
    return integer(f"{name}.shape[{axis}]", array.shape[axis], 32)


def _dtype(name: str, array: Array, ndim: int, stated: Optional[str]) -> int:
    """The element type, once array is known to be one of that many dimensions, the last contiguous."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(array).__name__}, not a numpy.ndarray")
    if array.ndim != ndim:
        raise ArgumentError(f"{name} has shape {array.shape}, which is not {ndim} dimensions")
    if array.size and array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        raise ArgumentError(f"{name} has strides {array.strides}: its last dimension is not contiguous")
    found = array.dtype
    if found == np.float32 and found.isnative:
        number = F32
    elif found == np.float16 and found.isnative:
        number = F16
    elif found.isnative and (found.name == "bfloat16" or found == np.uint16):
        number = BF16
    elif found == np.uint8 and name in ("key", "value"):
        number = -1
    else:
        raise ArgumentError(f"{name} has dtype {found}, which is none of float32, float16, bfloat16")
    if stated is None:
        if number < 0:
            raise ArgumentError(f"{name} has dtype uint8: {name}_dtype has to say q8_0 or q4_0")
        return number
    if not isinstance(stated, str) or stated not in NAMES:
        raise ArgumentError(f"{name}_dtype = {stated!r} is none of {', '.join(NAMES)}")
    wanted = NAMES[stated]
    if number != wanted and not (number < 0 and wanted in BLOCK_BYTES):
        raise ArgumentError(f"{name}_dtype = {stated!r}, but {name} has dtype {found}")
    return wanted


def _elements(name: str, array: Array, number: int) -> int:
    """The elements of a row."""
    length = int(array.shape[-1])
    if number not in BLOCK_BYTES:
        return length
    if length % BLOCK_BYTES[number]:
        raise ArgumentError(f"{name} has shape {array.shape}: its rows are not whole blocks of {BLOCK_BYTES[number]} bytes")
    return length // BLOCK_BYTES[number] * _library.BLOCK
