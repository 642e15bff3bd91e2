"""Runs a host's driver in a process of its own and returns what came of it.

Used by the tests, the benchmark and the demo. `run("node", library=…, prompts=…)`
starts the host with a clean LESSISMORE environment, gives it the library in the way
that this host takes one, and reads its JSON lines, its log and the library's stats.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DRIVERS = HERE / "drivers"

sys.path.insert(0, str(HERE))
sys.path.insert(0, str(ROOT / "tests" / "data" / "reasoner"))
sys.path.insert(0, str(ROOT / "bindings" / "python"))
import install  # noqa: E402
import task  # noqa: E402
import to_gguf  # noqa: E402

from lessismore.cli import _crash  # noqa: E402

REASONER = to_gguf.path()
STEPS = task.steps_for(2048)


SERVERS = ("llama-server", "cuda-server")  # hosts that are driven over HTTP
ENVIRONMENT = ("node", "llama-server", "cuda-server")  # hosts that load the library because the environment says so


class HostError(RuntimeError):
    """The driver failed; the text says how, and carries the end of its log."""

    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.code = code


def library_path() -> Path:
    return Path(os.environ.get("LESSISMORE_LIBRARY") or ROOT / "build" / "liblessismore.so").absolute()


@dataclass(frozen=True)
class Problem:
    """One problem of the reasoner: the prompt's tokens and those of its one solution."""

    prompt: list[int]
    solution: list[int]

    @classmethod
    def make(cls, seed: int, steps: int = STEPS) -> "Problem":
        prompt, solution = task.problem(random.Random(seed), steps)
        return cls([task.BOS] + task.encode(prompt), task.encode(solution))


@dataclass
class Result:
    lines: list[dict]
    log: str
    stats: dict | None
    tokens: dict[int, list[int]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)

    def __post_init__(self):
        for line in self.lines:
            if "prompt" in line and "tokens" in line:
                self.tokens[line["prompt"]] = line["tokens"]
            elif "prompt" in line and "text" in line:
                self.tokens[line["prompt"]] = task.encode("".join(c for c in line["text"] if c in task.ID))
            self.rows += line.get("rows", [])

    def value(self, key):
        return next(line[key] for line in self.lines if key in line)

    def exact(self, problems) -> list[bool]:
        """For each problem whether the host's tokens are its solution's, as far as they go."""
        return [bool(t := self.tokens.get(i)) and t == p.solution[: len(t)] for i, p in enumerate(problems)]

    def solved(self, problems) -> int:
        return sum(ok and len(self.tokens[i]) == len(p.solution) for i, (ok, p) in enumerate(zip(self.exact(problems), problems)))

    def contexts(self) -> list[dict]:
        """The stats of the contexts that decoded; hosts make others only to look at a device."""
        return [c for c in self.stats["contexts"] if c["rows"]]

    def visible_beyond(self, budget: int) -> int:
        return sum(n > budget for n in self.rows)


def cache() -> Path:
    return install.cache_dir()


def installed(part: str) -> Path:
    if not install.PARTS[part].stamp(cache()):
        raise HostError(f"host {part!r} is not installed: run  python3 {HERE / 'install.py'} {part}")
    return cache() / part


def python(part: str) -> str:
    return str(installed(part) / "bin" / "python")


def built(host: str) -> str:
    """The version of a host, and what it was built without."""
    part = "node" if host == "node-libs" else host
    installed(part)
    versions = install.PARTS[part].stamp(cache())["versions"]
    without = f", built without {versions['without']}, which crashes here" if "without" in versions else ""
    return f"{host} {next(iter(versions.values()))}{without}"


def node_libs() -> Path:
    return installed("node") / "libs"


def py_sync_libs() -> Path:
    return next(installed("py-sync").glob("lib/python*/site-packages/llama_cpp_py_sync"))


FOLDERS = {"node-libs": node_libs, "py-sync": py_sync_libs}  # hosts that are a folder of libraries, without a program


def cuda_libs() -> Path:
    return installed("llama-server-cuda") / "bin"


def kind(host: str) -> str:
    """What an older release is one of: "node-3.14.5" of "node"."""
    return re.sub(r"-[0-9.]+$", "", host)


def command(host: str, scenario: str | bool) -> list[str]:
    """How the driver of a host is started; a scenario, where it has a driver for some."""
    if kind(host) == "node":
        root = installed(host)
        entry = root / "node_modules" / "node-llama-cpp" / "dist" / "index.js"
        return [str(root / "node"), str(DRIVERS / "node.mjs"), str(entry)]
    if kind(host) == "xllamacpp":
        return [python(host), str(DRIVERS / "xllamacpp_host.py")]
    if host == "llama-server-rpc":  # the client of RPC servers
        return [python("venv"), str(DRIVERS / "server.py")]
    if host == "llama-server":
        return [python("venv"), str(DRIVERS / f"{scenario or 'server'}.py")]
    if host == "llama-cpp-python":
        return [python("llama-cpp-python"), str(DRIVERS / ("native.py" if scenario else "high_level.py"))]
    if host == "cuda":  # a libllama with the CUDA backend, on a machine with a GPU, whose Python is the one at hand
        return [sys.executable, str(DRIVERS / "native.py")]
    if host == "cuda-server":
        return [sys.executable, str(DRIVERS / f"{scenario or 'server'}.py")]
    if host in FOLDERS:
        return [python("venv"), str(DRIVERS / "native.py")]
    if host == "ik-llama":
        return [python("ik-llama"), str(DRIVERS / "ik_worker.py")]
    raise ValueError(f"unknown host {host!r}")


def environment(host: str, library: Path | None, settings: dict, stats: Path | None) -> dict:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LESSISMORE", "GGML_BACKEND_PATH", "PYTHONPATH"))}
    env.update({k: str(v) for k, v in settings.items()})
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    if stats:
        env["LESSISMORE_STATS"] = str(stats)
    if library and kind(host) in ENVIRONMENT:
        env["GGML_BACKEND_PATH"] = str(library)
    return env


def failed(host: str, code: int, log: str, alone) -> HostError:
    """The error for a host that ended with this code. `alone` runs it without the library; None: it was without."""

    def again() -> int:
        try:
            alone()
        except HostError as error:
            return error.code
        return 0

    return HostError(f"{host}: {_crash.cause(host, code, again if alone else None)}\n{log[-4000:]}", code)


def run(host: str, *, library: Path | None = None, settings: dict | None = None, timeout: float = 300, on_line=None, **job) -> Result:
    """One run of a host from start to end.

    `settings` is its environment (LESSISMORE_…), `library` the .so or None for the
    host alone, `scenario` picks one of drivers/scenarios.py where the host's C
    interface is at hand, and the rest of `job` goes to the driver.
    """
    job.setdefault("model", str(REASONER))
    scenario = host in ("llama-cpp-python", "node-libs", "cuda", *SERVERS) and "scenario" in job
    if "problems" in job:
        problems = job.pop("problems")
        job["prompts"] = [p.prompt for p in problems]
        job.setdefault("lengths", [len(p.solution) for p in problems])
    if scenario and host not in SERVERS:
        where = {**FOLDERS, "cuda": cuda_libs}.get(host)
        job["host"] = str(where()) if where else host
    if host in (*SERVERS, "llama-server-rpc"):
        job["server"] = str((cuda_libs() if host == "cuda-server" else installed(host) / "bin") / "llama-server")
    if library and kind(host) not in ENVIRONMENT:
        job["library"] = str(library)
    with tempfile.TemporaryDirectory(prefix="lessismore-") as tmp:
        stats = Path(tmp) / "stats.json"
        env = environment(host, library, settings or {}, stats if library else None)
        env["XDG_CACHE_HOME"] = str((settings or {}).get("XDG_CACHE_HOME", tmp))  # no profile but the test's own
        # Two threads of an OpenMP host on a busy machine otherwise spin against each other.
        env.setdefault("OMP_WAIT_POLICY", "passive")
        if host == "cuda":  # where the compiler links libstdc++ into each library, std::regex crashes in Python, which has none loaded
            env.setdefault("LD_PRELOAD", "libstdc++.so.6")
        with open(Path(tmp) / "log", "w+") as log:
            child = subprocess.Popen(
                command(host, scenario and job["scenario"]), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
            timer = threading.Timer(timeout, child.kill)
            timer.start()
            try:
                with suppress(BrokenPipeError):  # it has died, and its end says how
                    child.stdin.write(json.dumps(job) + "\n")
                    child.stdin.close()
                lines = []
                for raw in child.stdout:
                    line = json.loads(raw)
                    lines.append(line)
                    if on_line:
                        on_line(line)
                code = child.wait()
            finally:
                timer.cancel()
                child.kill()
                child.wait()
            log.seek(0)
            text = log.read()
        if code:
            for name in ("library", "host", "server"):
                job.pop(name, None)
            alone = partial(run, host, settings=settings, timeout=timeout, **job)
            raise failed(host, code, text, alone if library else None)
        return Result(lines, text, json.loads(stats.read_text()) if stats.exists() else None)


class Worker:
    """A driver that stays: bench_worker.py, or ik_llama.cpp's, in a process of its own.

    `setting` is "on" or "off" (the host's flash attention) or "library".
    """

    def __init__(self, host: str, setting: str, *, library: Path | None = None, settings: dict | None = None, on_fill=None, **job):
        self.setting = setting
        self._tmp = tempfile.TemporaryDirectory(prefix="lessismore-")
        self._stats = Path(self._tmp.name) / "stats.json"
        self._log = open(Path(self._tmp.name) / "log", "w+")
        ours = setting == "library"
        self._host, self._job = host, dict(job)
        job |= {
            "host": str(FOLDERS[host]()) if host in FOLDERS else host,
            "flash": setting != "off",
            "library": str(library) if ours else None,
        }
        cmd = command(host, True)
        if host != "ik-llama":
            cmd[-1] = str(DRIVERS / "bench_worker.py")
        env = environment(host, library if ours else None, (settings or {}) if ours else {}, self._stats if ours else None)
        env["XDG_CACHE_HOME"] = str((settings or {}).get("XDG_CACHE_HOME", self._tmp.name))
        self._child = subprocess.Popen(cmd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1)
        self.stats = None
        self._send(job)
        while (line := self._receive()).get("event") != "filled":
            if on_fill:
                on_fill(line["tokens"])
        self.context, self.fill_seconds = line["tokens"], line["seconds"]

    def _send(self, fields):
        with suppress(BrokenPipeError):  # it has died, and its end says how
            self._child.stdin.write(json.dumps(fields) + "\n")
            self._child.stdin.flush()

    def _receive(self) -> dict:
        raw = self._child.stdout.readline()
        if not raw:
            self._child.wait()
            self._log.seek(0)
            raise failed(self._host, self._child.returncode, self._log.read(), self._alone if self.setting == "library" else None)
        return json.loads(raw)

    def _alone(self):
        with Worker(self._host, "on", **self._job) as worker:
            worker.decode(1)

    def decode(self, steps: int) -> list[float]:
        """Milliseconds of each of `steps` tokens, always behind the same context."""
        self._send({"steps": steps})
        return self._receive()["ms"]

    def change(self, **what: int):
        """Sets "threads", or shortens the "context" to so many tokens."""
        self._send(what)
        self.context = self._receive()["tokens"]

    def pin(self, cores: list[int]):
        """All threads of the process, and those that they will start, on these cores."""
        for thread in os.listdir(f"/proc/{self._child.pid}/task"):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread), cores)

    def batches(self, rows: int, prompt: int) -> dict[str, float]:
        """Milliseconds of a prompt, of as many decode rows behind the context, and of both in one batch."""
        self._send({"rows": rows, "prompt": prompt})
        return self._receive()

    def close(self):
        """Ends the worker and reads the library's stats."""
        try:
            if self._child.poll() is None:
                self._send({"end": True})
                self._receive()
                self._child.wait(timeout=60)
            if self._stats.exists():
                self.stats = json.loads(self._stats.read_text())
        finally:
            self._child.kill()
            self._child.wait()
            self._log.close()
            self._tmp.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def machine() -> dict:
    """What the numbers were measured on."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {"cpu": model or platform.machine(), "cores": len(os.sched_getaffinity(0))}
