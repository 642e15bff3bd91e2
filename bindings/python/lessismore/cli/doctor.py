"""Say what is found here, what would engage and why not.

Nothing is guessed: the library computes a small attention, and each host that is installed loads it in a process
of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import Any, Callable, Optional

import numpy as np

from .. import _library
from .._errors import Error
from .._version import __version__
from ..engine import Engine
from . import _cpu, _crash, _exit, _show

HOSTS = {"llama-cpp-python": "llama_cpp", "xllamacpp": "xllamacpp", "transformers": "transformers"}
PROGRAMS = ("llama-server", "llama-cli")
# Hosts that are not started here, named where they are found: by a program in PATH, a folder, a package.
NOT_YET, BY_FLAG = "not supported yet", "only with --attention-backend CUSTOM (docs/vllm.md)"
NAMED = {"Ollama": ("ollama", NOT_YET), "LM Studio": ("~/.lmstudio", NOT_YET), "SGLang": ("sglang", NOT_YET), "vLLM": ("vllm", BY_FLAG)}
PATIENCE = 120  # seconds for a host to load


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="do not start the hosts")


def command(options: argparse.Namespace) -> int:
    """Prints the findings. It fails if the library does not work; a host that is not installed is no failure."""
    found: dict[str, Any] = {
        "package": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'no glibc'}",
        "cpu": _cpu.found(),
        "library": _own(),
        "driver": _driver(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("LESSISMORE")},
        "hosts": [],
    }
    if not options.quick and found["library"]["works"]:
        names = [*HOSTS, *PROGRAMS]
        with _show.progress(len(names)) as step:
            for i, name in enumerate(names):
                step(name, i)
                found["hosts"].append(_host(name) if name in HOSTS else _program(name))
    if not options.quick:
        found["hosts"] += filter(None, map(_named, NAMED))
    if options.json:
        print(json.dumps(found))
    else:
        print(_text(found))
    return _exit.DONE if found["library"]["works"] else _exit.FAILED


def _own() -> dict[str, Any]:
    """The library: found, of the right version, and right."""
    found: dict[str, Any] = {"works": False, "path": None, "target": None, "why": None}
    try:
        found["path"] = str(_library.library_path())
        with Engine(3, n_threads=1) as engine, engine.decoder() as decoder:
            rng = np.random.default_rng(0)
            query, key, value = (rng.standard_normal(s).astype(np.float32) for s in ((4, 64), (99, 2, 64), (99, 2, 64)))
            out = decoder.attend(0, query, key, value)
            found["target"] = engine.report()["target"]
        logits = np.einsum("hd,nhd->hn", query, key.repeat(2, 1)) / 8
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        want = np.einsum("hn,nhd->hd", weights / weights.sum(-1, keepdims=True), value.repeat(2, 1))
        error = float(np.abs(out - want).max())
        found["works"] = error < 1e-5
        found["why"] = None if found["works"] else f"its attention is off by {error:g}"
    except Error as e:
        found["why"] = str(e)
    return found


def _driver() -> dict[str, Any]:
    """NVIDIA's driver, the GPUs it shows, and why the library does not attend on one of them."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"version": None, "gpus": [], "why": "no NVIDIA driver (libcuda.so.1)"}
    number, gpus = ctypes.c_int(), []
    if (status := cuda.cuInit(0)) != 0 or cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return {"version": None, "gpus": [], "why": f"cuInit returned {status}"}
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    cuda.cuDeviceGetCount(ctypes.byref(number))
    for i in range(number.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if cuda.cuDeviceGet(ctypes.byref(device), i) == 0 and cuda.cuDeviceGetName(name, 256, device) == 0:
            gpus.append(name.value.decode(errors="replace"))
    return {"version": version, "gpus": gpus, "why": _gpus(len(gpus))}


def _gpus(count: int) -> Optional[str]:
    """Makes a small decoder on each GPU. None: all of them serve."""
    if not count:
        return "it shows no GPU"
    for i in range(count):
        try:
            with Engine(4) as engine, engine.decoder(device=i, capacity=4096, heads=4, kv_heads=2, head_dim=64):
                pass
        except Error as e:
            return f"nothing is attended to on GPU {i}: {e}"
    return None


# What LESSISMORE_CUDA has the library do in a llama.cpp host's graphs on a GPU.
CUDA = {
    "off": "left to llama.cpp (LESSISMORE_CUDA=off)",
    "auto": "steps that gain by it are taken, on cards that pass a test when the host loads the library",
    "on": "every step beyond the budget is taken, on cards that pass a test when the host loads the library",
}


def _run(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return -1, f"did not end within {PATIENCE} s"
    except OSError as e:
        return -1, str(e)
    return done.returncode, done.stdout.decode(errors="replace")


def _said(log: str) -> list[str]:
    return [line[len("lessismore: ") :] for line in log.splitlines() if line.startswith("lessismore: ")]


def _host(name: str) -> dict[str, Any]:
    """One that Python can import."""
    found: dict[str, Any] = {"name": name, "version": None, "engages": False, "why": "not installed"}
    try:
        found["version"] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return found
    call = "register" if name == "transformers" else "enable"
    parent = str(pathlib.Path(__file__).resolve().parents[2])  # this package, however it was found
    script = f"import sys; sys.path.append({parent!r}); import lessismore.{HOSTS[name]} as host; host.{call}()"
    code, log = _run([sys.executable, "-c", script], {**os.environ, "LESSISMORE_LOG": "info"})
    alone = [sys.executable, "-c", f"import {HOSTS[name]}"]
    return _judged(found, code, log, call == "register", lambda: _crash.tried(alone, os.environ))


def _program(name: str) -> dict[str, Any]:
    """One of llama.cpp's: whether it loads backends at run time shows when it does."""
    found: dict[str, Any] = {"name": name, "version": None, "engages": False, "why": "not in PATH"}
    path = shutil.which(name)
    if path is None:
        return found
    found["version"] = path
    environment = {**os.environ, "LESSISMORE_LOG": "info", "GGML_BACKEND_PATH": str(_library.library_path())}
    code, log = _run([path, "--list-devices"], environment)
    without = {name: value for name, value in environment.items() if name != "GGML_BACKEND_PATH"}
    return _judged(found, code, log, False, lambda: _crash.tried([path, "--list-devices"], without))


def _named(name: str) -> Optional[dict[str, Any]]:
    """A host that is not started here, and why it does not engage; None if it is not installed."""
    trace, why = NAMED[name]
    folder = os.path.expanduser(trace)
    version = folder if folder != trace and os.path.isdir(folder) else shutil.which(trace)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        version = importlib.metadata.version(trace)
    return {"name": name, "version": version, "engages": False, "why": why} if version else None


def _judged(found: dict[str, Any], code: int, log: str, loaded: bool, alone: Callable[[], int]) -> dict[str, Any]:
    said = _said(log)
    not_taken = [line for line in said if line.startswith(("inert", "waiting", "switched off"))]
    taken = [line for line in said if " loaded into " in line]
    lines = log.strip().splitlines()
    if not_taken:
        found["why"] = not_taken[-1]
    elif code != 0:
        said_why = lines and not _crash.crashed(code)
        found["why"] = lines[-1] if said_why else _crash.cause(found["name"], code, alone)
    elif taken or loaded:
        found["engages"], found["why"] = True, taken[-1] if taken else None
    else:
        found["why"] = "does not load backends at run time"
    return found


def _cpu_text(processor: dict[str, Any]) -> str:
    return f"{processor['model']}, {processor['processors']} processors: {' '.join(processor['features'])}"


def _text(found: dict[str, Any]) -> str:
    library, driver, processor = found["library"], found["driver"], found["cpu"]
    lines = [
        ("package", f"lessismore {found['package']}, Python {found['python']}, {found['system']}", True),
        ("cpu", _cpu_text(processor), True),
        (
            "library",
            f"{library['path']}, {library['target']} kernels" if library["works"] else library["why"],
            library["works"],
        ),
        ("driver", ", ".join(filter(None, [driver["version"], *driver["gpus"], driver["why"]])), driver["why"] is None),
    ]
    if driver["gpus"] and driver["why"] is None:
        lines.append(
            (
                "llama.cpp on GPUs",
                CUDA.get((found["environment"].get("LESSISMORE_CUDA") or "auto").lower(), "LESSISMORE_CUDA is auto, on or off"),
                True,
            )
        )
    lines += [("environment", f"{name}={value}", True) for name, value in found["environment"].items()]
    for host in found["hosts"]:
        version: Optional[str] = host["version"]
        text = " ".join(filter(None, [version, "engages" if host["engages"] else "does not engage"]))
        lines.append((host["name"], f"{text}: {host['why']}" if host["why"] else text, host["engages"]))
    width = max(len(name) for name, _, _ in lines)
    return "\n".join(f"{'+' if good else '-'} {name.ljust(width)}  {text}" for name, text, good in lines)
