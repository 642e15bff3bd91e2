"""Arrays in CUDA memory, whoever made them: their address, shape, strides and type, never a copy."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, Optional

from ._errors import ArgumentError

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
