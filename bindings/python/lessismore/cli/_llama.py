"""llama-cpp-python, if it is there."""

from __future__ import annotations

import ctypes
import os
from types import ModuleType
from typing import Any

_kept: list[Any] = []  # C holds no reference


def host() -> ModuleType:
    """The module. Raises ImportError with a text for users."""
    try:
        import llama_cpp
    except ImportError as e:
        absent = isinstance(e, ModuleNotFoundError) and e.name == "llama_cpp"
        why = "pip install llama-cpp-python" if absent else f"it cannot be imported: {e}"
        raise ImportError(f"llama-cpp-python is needed for this: {why}") from e
    module: ModuleType = llama_cpp
    return module


def model_file(path: str) -> str:
    """The path of a GGUF file. Raises OSError, ValueError."""
    with open(path, "rb") as f:
        if f.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
    return os.path.abspath(path)


def quiet() -> None:
    """Keeps the host's own log back. Its failures raise."""
    from llama_cpp import llama_cpp

    callback = llama_cpp.llama_log_callback(lambda level, text, user: None)
    _kept.append(callback)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())


def environment() -> dict[str, str]:
    """For a process of this package's own, however the package was found."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
