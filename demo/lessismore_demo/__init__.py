"""`lessismore demo`: what the library does, shown with llama-cpp-python on two models that come along."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console

from . import show

__all__ = ["run"]


def run(problems: int, context: int, threads: int, as_json: bool) -> int:
    """Shows it. Returns the exit code: 1 if an answer differs. Raises RuntimeError if the library took no part."""
    from .llama_cpp_python import LlamaCppPython  # with what only the wheel has

    start = time.time()
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), stderr=as_json)
    found: dict[str, Any] = show.show(console, LlamaCppPython(), problems, context, threads)
    console.print(f"  {time.time() - start:.0f} s in all")
    print(json.dumps(found) if as_json else show.line(found), flush=True)
    return 0 if found["exact"] == problems else 1
