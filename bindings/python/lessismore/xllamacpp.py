"""xllamacpp.

    lessismore.xllamacpp.enable(budget=2048, layers=[2, 12])  # before the server is made
    server = xllamacpp.Server(params)

Flash attention is on by default where the model allows it; where it is off, the library says so on standard error
and takes nothing.
"""

from __future__ import annotations

import ctypes
from typing import Any, Optional

import xllamacpp
from xllamacpp import xllamacpp as _module

from . import _ggml
from .settings import Path, Settings

__all__ = ["enable"]


def enable(
    settings: Optional[Settings] = None,
    *,
    log: Optional[str] = None,
    stats: Optional[Path] = None,
    **changes: Any,
) -> None:
    """Has every context that is made from now on decode sparsely: see lessismore.llama_cpp.enable()."""
    load = ctypes.CDLL(_module.__file__).ggml_backend_load  # llama.cpp is linked into this one module
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    _ggml.enable(
        f"xllamacpp {getattr(xllamacpp, '__version__', '')}".strip(),
        load,
        _ggml.variables(settings, changes, log, stats),
    )
