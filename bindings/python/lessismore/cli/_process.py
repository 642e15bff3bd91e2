"""A process of its own that holds one context in llama-cpp-python (_worker.py), and is asked for one thing after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Optional

from . import _crash, _llama

COMMAND = [sys.executable, "-m", "lessismore.cli._worker"]


class Worker:
    """The process. ours: arguments of lessismore.llama_cpp.enable(); None: the host alone.

    Raises RuntimeError with the host's last line, or with whose crash it was, where it ends before it has answered.
    """

    def __init__(self, job: dict[str, Any], ours: Optional[dict[str, Any]]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lessismore-")
        self._stats = os.path.join(self._folder.name, "stats.json")
        self._job = job if ours is None else {**job, "enable": {**ours, "log": "info", "stats": self._stats}}
        # Threads of an OpenMP host that wait must not take the others' turns.
        self._environment = {**_llama.environment(), "OMP_WAIT_POLICY": "passive"}
        self._log = open(os.path.join(self._folder.name, "log"), "w+")
        self._child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=self._environment,
        )
        self._answer(self._job)

    def ask(self, call: str, **arguments: Any) -> Any:
        """What a method of the context there returns: _worker.CALLS."""
        return self._answer([call, arguments])["result"]

    def _answer(self, line: Any) -> dict[str, Any]:
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps(line) + "\n")
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(self._reason())
        found: dict[str, Any] = json.loads(answer)
        return found

    def _reason(self) -> str:
        """Why it ended: what it said last, or whose crash it was."""
        code = self._child.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        if lines and not _crash.crashed(code):
            return lines[-1]
        return _crash.cause("llama-cpp-python", code, self._alone if "enable" in self._job else None)

    def _alone(self) -> int:
        """Exit code of the host that holds a context as long without lessismore."""
        job = {name: value for name, value in self._job.items() if name != "enable"}
        lines = (job, ["fill", {"length": job["context"]}], None)
        return _crash.tried(COMMAND, self._environment, "".join(json.dumps(line) + "\n" for line in lines))

    def end(self) -> dict[str, Any]:
        """Ends it; what the library counted."""
        assert self._child.stdin
        self._child.stdin.write("null\n")
        if self._child.wait(timeout=60):
            raise RuntimeError(self._reason())
        with open(self._stats) as f:
            report: dict[str, Any] = json.load(f)
        return report

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()
        self._folder.cleanup()
