"""ggml hosts: the library is loaded by the host's own ggml, and reads its settings from the environment then."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Callable, Iterator, Optional

from . import _library
from ._errors import ArgumentError, Error, UnsupportedError
from .engine import check
from .settings import Path, Settings, changed

LOG = ("off", "info", "debug")

_lock = threading.Lock()
_in_force: Optional[dict[str, str]] = None  # a process has one configuration


def variables(settings: Optional[Settings], changes: dict[str, Any], log: Optional[str], stats: Optional[Path]) -> dict[str, str]:
    """The environment variables that state these values. Raises ArgumentError, TypeError."""
    chosen = changed(settings, changes)
    check(chosen)
    found = chosen.variables()
    if stats is not None:
        found["LESSISMORE_STATS"] = os.fsdecode(stats)
        if os.path.isdir(found["LESSISMORE_STATS"]):
            raise ArgumentError(f"stats = {found['LESSISMORE_STATS']!r} is a folder: name a file in it")
    if log is not None:
        if log not in LOG:
            raise ArgumentError(f"log = {log!r} is none of {', '.join(LOG)}")
        found["LESSISMORE_LOG"] = log
    return found


def enable(host: str, load: Callable[[bytes], Optional[int]], wanted: dict[str, str]) -> None:
    """Has a host's ggml_backend_load() load the library, with these variables set during the call.

    Raises Error when the process has another configuration already, UnsupportedError when the host is refused.
    """
    global _in_force
    _library.library()  # tells what is wrong with the file
    with _lock:
        if _in_force is not None and _in_force != wanted:
            raise Error(f"already enabled with {_in_force or 'the defaults'}: a process has one configuration")
        _in_force = wanted  # whether or not the host takes it: the library has read it
        with _environment(wanted):
            registry = load(os.fsencode(_library.library_path()))
        if not registry:
            raise UnsupportedError(f"{host}: the library cannot hook this ggml; the log says why")


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
