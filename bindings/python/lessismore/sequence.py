"""A sequence that is being decoded."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import numpy.typing as npt

from . import _library
from ._errors import ArgumentError, Error
from ._handle import Handle
from ._values import integer, real

if TYPE_CHECKING:
    from .engine import Engine

Array = npt.NDArray[Any]

F32, F16, BF16, Q8_0, Q4_0 = range(5)
NAMES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0, "q4_0": Q4_0}
BLOCK, BLOCK_BYTES = 32, {Q8_0: 34, Q4_0: 18}


class Sequence(Handle):
    """The token set of one sequence's current step; keys and values stay with the caller.

    Made by Engine.sequence(). To be used by one thread at a time. A context manager; close() ends it.
    """

    _kind = "sequence"

    def __init__(self, engine: Engine) -> None:
        handle = ctypes.c_void_p()
        _library.library().lim_sequence_create(engine._use(), handle)
        self._engine = engine  # an engine outlives its sequences
        self._handle = handle.value

    def attend(
        self,
        layer: int,
        query: Array,
        key: Array,
        value: Array,
        *,
        out: Optional[Array] = None,
        query_position: Optional[int] = None,
        positions: Optional[Array] = None,
        mask: Optional[Array] = None,
        alibi_slopes: Optional[Array] = None,
        sinks: Optional[Array] = None,
        scale: Optional[float] = None,
        softcap: float = 0.0,
        key_dtype: Optional[str] = None,
        value_dtype: Optional[str] = None,
    ) -> Array:
        """Computes one layer of a decode step, for one query token.

        The layers of a step come in ascending order; a layer that is not above the one before it, or another
        query_position, starts a new step. Arrays are used where they are: nothing is copied or converted.

        Args:
            layer: 0 to n_layers - 1.
            query: [heads, key_dim]; float32, float16 or bfloat16.
            key: [n_slots, kv_heads, key_dim], the new token's own included; float32, float16, bfloat16, or
                uint8 blocks [n_slots, kv_heads, bytes] with a key_dtype. For a store [kv_heads, n_slots, dim]
                hand over key.transpose(1, 0, 2).
            value: [n_slots, kv_heads, value_dim]; as key.
            out: [heads, value_dim]; float32, float16 or bfloat16. Default: a new array of query's dtype.
            query_position: logical position of the query token; tokens after it are not visible. Default:
                n_slots - 1, unless positions are given.
            positions: [n_slots] int32, the logical position in each slot, -1 for none. Default: slot i holds i.
            mask: [n_slots] float16, added to the logits; -inf hides a slot.
            alibi_slopes: [heads] float32, factors of the mask.
            sinks: [heads] float32, a further logit in each head's softmax.
            scale: of the logits. Default: key_dim ** -0.5.
            softcap: c > 0: logits become c * tanh(logit / c).
            key_dtype, value_dtype: "q8_0" or "q4_0" for uint8 arrays; else taken from the array.

        bfloat16 is ml_dtypes.bfloat16, or uint16 with the same bits. The last dimension is contiguous; the
        others may have any stride that is not negative and steps over at least one row.

        Returns:
            out.

        Raises:
            ArgumentError: a shape, stride, dtype or value; nothing was written.
            TypeError: something else than an array or a number.
            HandleError: the sequence is closed.
            BusyError: another thread is using the sequence.
            ForkedError: in a child of os.fork().
        """
        handle = self._use()
        a = _library.Attention(struct_size=ctypes.sizeof(_library.Attention))
        a.layer = integer("layer", layer, 32)

        query_type = _dtype("query", query, 2, None)
        a.heads, a.key_dim = _dimension("query", query, 0), _dimension("query", query, 1)
        a.query, a.query_head_stride, a.query_dtype = _address(query), query.strides[0], query_type

        a.key_dtype, a.value_dtype = _dtype("key", key, 3, key_dtype), _dtype("value", value, 3, value_dtype)
        slots, kv_heads = key.shape[:2]
        if value.shape[:2] != (slots, kv_heads):
            raise ArgumentError(f"value has shape {value.shape}, but key has {key.shape}: slots or KV heads differ")
        if _elements("key", key, a.key_dtype) != a.key_dim:
            raise ArgumentError(f"key has shape {key.shape}, but query has {query.shape}: key_dim differs")
        a.n_slots, a.kv_heads = slots, _dimension("key", key, 1)
        a.value_dim = integer("value_dim", _elements("value", value, a.value_dtype), 32)
        a.key, a.key_token_stride, a.key_head_stride = _address(key), key.strides[0], key.strides[1]
        a.value, a.value_token_stride, a.value_head_stride = _address(value), value.strides[0], value.strides[1]

        if out is None:
            if a.heads * a.value_dim > 1 << 20:  # refused below anyway, but not after asking for the memory
                raise ArgumentError(f"query has shape {query.shape} and value {value.shape}: too large")
            out = np.empty((a.heads, a.value_dim), query.dtype)
        a.output_dtype = _dtype("out", out, 2, None)
        if out.shape != (a.heads, a.value_dim):
            raise ArgumentError(f"out has shape {out.shape}, not {(a.heads, a.value_dim)}")
        if not out.flags.writeable:
            raise ArgumentError("out is read-only")
        a.output, a.output_head_stride = _address(out), out.strides[0]

        a.positions = _vector("positions", positions, np.int32, slots)
        a.mask = _vector("mask", mask, np.float16, slots)
        a.alibi_slopes = _vector("alibi_slopes", alibi_slopes, np.float32, a.heads)
        a.sinks = _vector("sinks", sinks, np.float32, a.heads)
        if query_position is None:
            if positions is not None:
                raise ArgumentError("query_position = None needs a value where positions are given")
            query_position = slots - 1
        a.query_position = integer("query_position", query_position, 64)
        if scale is not None:
            a.scale = real("scale", scale)
            if a.scale == 0:
                raise ArgumentError(f"scale = {scale!r} is 0 as a float32")
        a.softcap = real("softcap", softcap)
        _library.library().lim_attend(handle, a)
        return out

    def reset(self) -> None:
        """Forgets the current step: the next attend() starts a new one."""
        _library.library().lim_sequence_reset(self._use())

    def token_set(self) -> npt.NDArray[np.int32]:
        """The slots of the current step's token set, ascending; empty when none has been chosen."""
        lib, handle, count = _library.library(), self._use(), ctypes.c_int64()
        lib.lim_sequence_token_set(handle, None, 0, count)
        slots = np.empty(count.value, np.int32)
        if slots.size and lib.lim_sequence_token_set(handle, slots.ctypes.data, slots.size, count) != 0:
            raise Error("another thread has moved the sequence on")
        return slots[: count.value]

    def stats(self) -> dict[str, int]:
        """What was counted (lim_stats in the C header)."""
        stats = _library.Stats(struct_size=ctypes.sizeof(_library.Stats))
        _library.library().lim_sequence_stats(self._use(), stats)
        return _library.stats_dict(stats)

    def close(self) -> None:
        """Ends the sequence; again is nothing to do. Raises BusyError while another thread uses it."""
        super().close()


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
    elif found.name == "bfloat16" or (found == np.uint16 and found.isnative):
        number = BF16
    elif found == np.uint8 and ndim == 3:
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
    return length // BLOCK_BYTES[number] * BLOCK


def _vector(name: str, array: Optional[Array], dtype: Any, length: int) -> Optional[int]:
    if array is None:
        return None
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(array).__name__}, not a numpy.ndarray")
    if array.dtype != dtype or not array.dtype.isnative:
        raise ArgumentError(f"{name} has dtype {array.dtype}, not {np.dtype(dtype)}")
    if array.shape != (length,):
        raise ArgumentError(f"{name} has shape {array.shape}, not {(length,)}")
    if not array.flags.c_contiguous:
        raise ArgumentError(f"{name} has strides {array.strides}: it is not contiguous")
    return _address(array)
