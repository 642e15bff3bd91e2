"""llama-cpp-python.

    lessismore.llama_cpp.enable(budget=2048, layers=[2, 12])  # before the model is made
    llm = llama_cpp.Llama("model.gguf", n_ctx=32768, flash_attn=True)

Flash attention is off by default in this host and has to be on; where it is not, the library says so on standard
error and takes nothing. The host's OpenAI-compatible server, with the settings of the environment:

    python -m lessismore.llama_cpp --model model.gguf --n_ctx 32768
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Optional

import llama_cpp

from . import _ggml
from .settings import Path, Settings

__all__ = ["enable", "main"]


def enable(
    settings: Optional[Settings] = None,
    *,
    log: Optional[str] = None,
    stats: Optional[Path] = None,
    **changes: Any,
) -> None:
    """Has every context that is made from now on decode sparsely.

    Args:
        settings: see lessismore.Settings; any field of it may be given by its name instead, such as budget=1024.
        log: what goes to standard error: "off", "info" (default) or "debug".
        stats: a file that gets JSON when a context is freed and when the process ends.

    What is None stays as the LESSISMORE_* variables have it; LESSISMORE=off switches everything off.
    A process has one configuration: the same call again is nothing to do.

    Raises:
        ArgumentError, TypeError: a value is out of range, or no number; the text names it.
        UnsupportedError: the library cannot hook this build of the host.
        LibraryError: the shared library is missing or of another version.
        Error: enabled before with other values.
    """
    library = llama_cpp.llama_cpp._lib  # its ggml is the one that runs the model; another copy would not
    load = ctypes.CDLL(library._name, handle=library._handle).ggml_backend_load
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    _ggml.enable(
        f"llama-cpp-python {llama_cpp.__version__}",
        load,
        _ggml.variables(settings, changes, log, stats),
    )


def main() -> None:
    """The host's server, enabled, with flash attention on unless the arguments say otherwise."""
    if not any(argument.startswith("--flash_attn") for argument in sys.argv):
        sys.argv += ["--flash_attn", "true"]
    enable()
    from llama_cpp.server.__main__ import main as serve

    serve()


if __name__ == "__main__":
    main()
