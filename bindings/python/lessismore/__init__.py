"""Sparse decode attention for long chains of reasoning, without retraining.

A few layers of a model attend to every token and choose one set of tokens for all heads; the other layers
attend to that set only (LessIsMore, arXiv 2508.07101). Arrays are NumPy's and are used where they are.

    with lessismore.Engine(n_layers=36, budget=2048) as engine, engine.decoder() as decoder:
        for each new token, for each layer:
            decoder.attend(layer, query, key, value, out=out)

A decoder takes several rows side by side, and keys and values in a GPU's memory, where it is made for that.

The shared library is found by the environment variable LESSISMORE_LIBRARY, in this package's directory, or
in the build directory of the source tree, and is loaded when it is first needed. It does not work in a
child of os.fork() whose parent has loaded it: use the "spawn" or "forkserver" start method.
"""

from ._errors import (
    ArgumentError,
    BusyError,
    DeviceError,
    Error,
    ForkedError,
    HandleError,
    LibraryError,
    OutOfMemoryError,
    Status,
    UnsupportedError,
)
from ._library import library_path
from ._version import __version__
from .decoder import Decoder
from .engine import Engine
from .settings import Settings

__all__ = [
    "ArgumentError",
    "BusyError",
    "Decoder",
    "DeviceError",
    "Engine",
    "Error",
    "ForkedError",
    "HandleError",
    "LibraryError",
    "OutOfMemoryError",
    "Settings",
    "Status",
    "UnsupportedError",
    "__version__",
    "library_path",
]
