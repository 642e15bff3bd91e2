"""ggml hosts: the library is loaded by the host's own ggml, and reads its settings from the environment then."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Callable, Iterable, Iterator, Optional

from . import _library
from ._errors import ArgumentError, Error, UnsupportedError
from .engine import Engine, Path

MAX_LAYERS = 4096
LOG = ("off", "info", "debug")

_lock = threading.Lock()
_in_force: Optional[dict[str, str]] = None  # a process has one configuration


def settings(
    budget: Optional[int],
    layers: Optional[Iterable[int]],
    recency: Optional[float],
    sink_tokens: Optional[int],
    policy: Optional[str],
    selections: Optional[int],
    guard: Optional[int],
    interval: Optional[int],
    profile: Optional[Path],
    trace: Optional[int],
    log: Optional[str],
    stats: Optional[str],
) -> dict[str, str]:
    """The environment variables that state these values. Raises ArgumentError, TypeError."""
    numbers = None if layers is None else list(layers)
    files = {"profile": profile, "stats": stats}
    paths = {name: None if path is None else os.fsdecode(path) for name, path in files.items()}
    # An engine that nobody uses tells what is wrong with the values.
    Engine(
        MAX_LAYERS,
        budget=budget,
        layers=numbers,
        recency=recency,
        sink_tokens=sink_tokens,
        policy=policy,
        selections=selections,
        guard=guard,
        interval=interval,
        profile=None if paths["profile"] == "off" else paths["profile"],
        trace=trace,
        n_threads=1,
    ).close()
    if paths["stats"] is not None and os.path.isdir(paths["stats"]):
        raise ArgumentError(f"stats = {paths['stats']!r} is a folder: name a file in it")
    if log is not None and log not in LOG:
        raise ArgumentError(f"log = {log!r} is none of {', '.join(LOG)}")
    given = {
        "LESSISMORE_BUDGET": budget,
        "LESSISMORE_LAYERS": None if numbers is None else ",".join(map(str, numbers)),
        "LESSISMORE_RECENCY": recency,
        "LESSISMORE_SINK_TOKENS": sink_tokens,
        "LESSISMORE_POLICY": policy,
        "LESSISMORE_SELECTIONS": selections,
        "LESSISMORE_GUARD": guard,
        "LESSISMORE_INTERVAL": interval,
        "LESSISMORE_PROFILE": paths["profile"],
        "LESSISMORE_TRACE": trace,
        "LESSISMORE_LOG": log,
        "LESSISMORE_STATS": paths["stats"],
    }
    return {name: str(value) for name, value in given.items() if value is not None}


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
            raise UnsupportedError(f"{host}: this ggml is not one that can be taken part in; the log says why")


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
