"""The demo's host where it is installed: llama-cpp-python, and the models in this package."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

from lessismore.cli import _crash, _llama, _process

from . import make_model, show, task  # type: ignore[attr-defined]  # two of them come into the wheel only

HERE = Path(__file__).resolve().parent
REASONER = HERE / "reasoner.gguf"
SOLVE = [sys.executable, "-m", "lessismore_demo.solve"]
STEPS = task.steps_for(2048)


class Worker(_process.Worker):
    """Filled when it is made: it does not say how far it is meanwhile."""

    def __init__(self, job: dict[str, Any], ours: Optional[dict[str, Any]]) -> None:
        super().__init__(job, ours)
        self.ask("fill", length=job["context"])

    def decode(self, steps: int) -> list[float]:
        ms: list[float] = self.ask("time", count=steps)
        return ms


class LlamaCppPython:
    def __init__(self) -> None:
        _llama.host()
        self.name = f"llama-cpp-python {metadata.version('llama-cpp-python')}"

    def problem(self, seed: int) -> tuple[list[int], list[int]]:
        prompt, solution = task.problem(random.Random(seed), STEPS)
        return [task.BOS, *task.encode(prompt)], task.encode(solution)

    def text(self, tokens: Sequence[int]) -> str:
        text: str = task.decode(tokens)
        return text

    def solve(
        self, prompts: Sequence[list[int]], lengths: Sequence[int], settings: Optional[dict[str, Any]], token: Callable[[int, int], None]
    ) -> tuple[list[list[int]], dict[str, Any]]:
        """In a process of its own, whose end completes what the library counts."""
        with tempfile.TemporaryDirectory(prefix="lessismore-") as folder:
            stats = Path(folder, "stats.json")
            job = {"model": str(REASONER), "prompts": prompts, "lengths": lengths}
            if settings is not None:
                job["enable"] = {**settings, "log": "off", "stats": str(stats)}
            environment = environ()
            with open(Path(folder, "log"), "w+") as log:
                child = subprocess.Popen(SOLVE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
                assert child.stdin and child.stdout
                with contextlib.suppress(BrokenPipeError), child.stdin:  # it has died, and its end says how
                    child.stdin.write(json.dumps(job))
                tokens: list[list[int]] = [[] for _ in prompts]
                for line in child.stdout:
                    said = json.loads(line)
                    tokens[said["prompt"]].append(said["token"])
                    token(said["prompt"], said["token"])
                if code := child.wait():
                    log.seek(0)
                    lines = log.read().strip().splitlines()
                    if lines and not _crash.crashed(code):
                        raise RuntimeError(lines[-1])
                    job.pop("enable", None)
                    alone = None if settings is None else lambda: _crash.tried(SOLVE, environment, json.dumps(job))
                    raise RuntimeError(_crash.cause("llama-cpp-python", code, alone))
            return tokens, json.loads(stats.read_text()) if stats.exists() else {}

    @contextlib.contextmanager
    def shape(self) -> Iterator[Path]:
        """Made anew, in the folder for temporary files, and removed: it has 0.35 GB and takes seconds."""
        with tempfile.TemporaryDirectory(prefix="lessismore-") as folder:
            yield make_model.make(Path(folder, "qwen3-0.6b.gguf"), make_model.PRESETS["qwen3-0.6b"])

    def worker(
        self, setting: str, model: Path, context: int, threads: int, settings: dict[str, Any], filled: Callable[[int], None]
    ) -> show.Worker:
        job = {"model": str(model), "context": context, "threads": threads, "kv": "f16", "flash": setting != "off"}
        worker: show.Worker = Worker(job, settings if setting == "library" else None)
        filled(context)
        return worker


def environ() -> dict[str, str]:
    """For this package's own processes, however it was found."""
    environment = _llama.environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), environment["PYTHONPATH"]])
    return {**environment, "OMP_WAIT_POLICY": "passive"}
