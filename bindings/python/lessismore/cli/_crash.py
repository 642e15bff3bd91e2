"""Whose crash it is when a host's process ends by a signal: the host is tried once more, alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Callable, Mapping, Optional, Sequence

from . import _cpu

CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP)
PATIENCE = 300  # seconds that the host has to crash alone
NO_AMX = "-mno-amx-int8"  # for GCC and Clang; ggml then leaves its AMX code out


def crashed(code: int) -> bool:
    """Of an exit code as subprocess has it: negative for a signal."""
    return -code in CRASHES


def cause(host: str, code: int, alone: Optional[Callable[[], int]]) -> str:
    """One line on a host that ended with this exit code and gave no reason.

    alone() has the host do the same without lessismore and returns the exit code; None: it was without.
    """
    if not crashed(code):
        return f"the host ended with {_name(code)}"
    if alone is not None:
        print(f"[the host ended with {_name(code)}: trying it without lessismore]", file=sys.stderr, flush=True)
        by_itself = alone()
        if by_itself == 0:
            return (
                f"the host crashed ({_name(code)}) with lessismore in it, and does not without: "
                "please report this with what `lessismore doctor` prints"
            )
        if not crashed(by_itself):
            return f"the host crashed ({_name(code)}); without lessismore it ended with {_name(by_itself)}"
        code = by_itself
    return f"the host crashes by itself here, without lessismore: {_name(code)}; what helps: {_remedy(host, code)}"


def tried(command: Sequence[str], environment: Mapping[str, str], given: str = "") -> int:
    """Exit code of a host's process that is given this on standard input; 0 if it lives longer than PATIENCE."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            input=given,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return 0
    return done.returncode


def _name(code: int) -> str:
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _remedy(host: str, code: int) -> str:
    if code == -signal.SIGABRT:
        return "what the host itself said before, or another version of it"
    if host == "llama-cpp-python" and "amx_int8" in _cpu.found()["features"]:
        return (
            "another build of it, without this CPU's AMX, whose code crashes as GCC 12.2 and 13.3 compile it: "
            f"CXXFLAGS={NO_AMX} pip install --force-reinstall --no-deps --no-cache-dir --no-binary {host} {host}"
        )
    return "another version or build of it"
