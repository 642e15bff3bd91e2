"""xllamacpp.

    lessismore.xllamacpp.enable(budget=2048, layers=[2, 12])  # before the server is made
    server = xllamacpp.Server(params)

Flash attention is on by default where the model allows it; where it is off, the library says so on standard error
and takes nothing.
"""

from __future__ import annotations

import ctypes
from typing import Iterable, Optional

import xllamacpp
from xllamacpp import xllamacpp as _module

from . import _ggml
from .engine import Path

__all__ = ["enable"]


def enable(
    *,
    budget: Optional[int] = None,
    layers: Optional[Iterable[int]] = None,
    recency: Optional[float] = None,
    sink_tokens: Optional[int] = None,
    policy: Optional[str] = None,
    selections: Optional[int] = None,
    guard: Optional[int] = None,
    interval: Optional[int] = None,
    profile: Optional[Path] = None,
    trace: Optional[int] = None,
    log: Optional[str] = None,
    stats: Optional[str] = None,
) -> None:
    """Has every context that is made from now on decode sparsely: see lessismore.llama_cpp.enable()."""
    load = ctypes.CDLL(_module.__file__).ggml_backend_load  # llama.cpp is linked into this one module
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    _ggml.enable(
        f"xllamacpp {getattr(xllamacpp, '__version__', '')}".strip(),
        load,
        _ggml.settings(
            budget, layers, recency, sink_tokens, policy, selections, guard, interval, profile, trace, log, stats
        ),
    )
