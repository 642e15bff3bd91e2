"""Where the model and the rules compute: on the CPU with NumPy, or on an NVIDIA GPU with CuPy.

Both speak the same language: a function of NumPy computes where its arguments are, and `like=` makes an array there. What
meets NumPy's arrays of the host's memory (results, counts, the library) goes through host() first.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .weights import Array

NAMES = ("cpu", "cuda")


def module(name: str) -> Any:
    """What makes arrays on a device of NAMES. Raises ImportError where CuPy is missing, ValueError where it finds no GPU."""
    if name == "cpu":
        return np
    try:
        import cupy
    except ImportError as e:
        raise ImportError(f"--device cuda needs CuPy (such as the package cupy-cuda13x): {e}") from e
    if os.environ.get("CUPY_TF32", "0") != "0":
        raise ValueError("CUPY_TF32 is set: products would be rounded to 10 bits, which costs more than the methods do")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise ValueError(f"--device cuda: CuPy finds no GPU here ({e})") from None
    return cupy


def host(array: Array) -> Array:
    """The same in the host's memory."""
    return array if isinstance(array, np.ndarray) else array.get()
