"""The library's own rows: llama-cpp-python with the library in it, in a process for each setting (_worker.py)."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Callable, Optional, Sequence

import numpy as np

from ..cli import _crash, _llama
from . import measure

KEPT = ("layers_from", "selection_layers", "measured_steps", "dense_steps", "reused_steps", "audits", "alarms")


def decode(
    model: pathlib.Path,
    problems: Sequence[measure.Problem],
    cap: int,
    enable: Optional[dict[str, Any]],
    environment: dict[str, str],
    say: Callable[[int], None],
) -> dict[str, Any]:
    """A result but for its name. enable: arguments of lessismore.llama_cpp.enable(); None: the host alone.

    say() is told how many problems are done. Raises RuntimeError when the host fails, or the library took no part.
    """
    with tempfile.TemporaryDirectory(prefix="lessismore-") as folder:
        stats = os.path.join(folder, "stats.json")
        job: dict[str, Any] = {"model": os.fspath(model), "cap": cap}
        if enable is not None:
            job["enable"] = {**enable, "log": "info", "stats": stats}
        settings = {"XDG_CACHE_HOME": folder, **environment}  # no profile but this comparison's own
        forced = {"problems": [[p.prompt, p.solution] for p in problems], "free": False}
        right = [np.array(line["right"], bool) for line in _child({**job, **forced}, settings, say)]
        lengths: list[Optional[tuple[int, bool]]] = [(len(p.solution) - 1, True) for p in problems]
        found = _read(1.0)
        if enable is not None:
            with open(stats) as f:
                found = _counted(json.load(f), len(problems))
        # By themselves in a process that knows no more than the first one did when it began.
        wrong = [i for i, r in enumerate(right) if not r.all()]
        if wrong:
            free = {"problems": [[problems[i].prompt, problems[i].solution] for i in wrong], "free": True}
            for i, line in zip(wrong, _child({**job, **free}, settings, lambda n: None)):
                lengths[i] = (line["length"], line["ended"])
        return {**measure.answers(problems, right, lengths), **found}


def _child(job: dict[str, Any], settings: dict[str, str], say: Callable[[int], None]) -> list[dict[str, Any]]:
    """What a worker answers, a line for each problem."""
    ours = {k: v for k, v in _llama.environment().items() if not k.startswith("LESSISMORE") or k == "LESSISMORE_LIBRARY"}
    worker = [sys.executable, "-m", "lessismore.compare._worker"]
    environment = {**ours, **settings, "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            worker,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        lines: list[dict[str, Any]] = []
        try:
            assert child.stdin and child.stdout
            with contextlib.suppress(BrokenPipeError):  # it has died, and says why in the log
                child.stdin.write(json.dumps(job))
                child.stdin.close()
            for line in child.stdout:
                lines.append(json.loads(line))
                say(len(lines))
            code = child.wait()
        finally:
            child.kill()
            child.wait()
        if code or len(lines) < len(job["problems"]):
            log.seek(0)
            said = log.read().strip().splitlines()
            if said and not _crash.crashed(code):
                raise RuntimeError(said[-1])
            alone = {**job, "problems": job["problems"][: len(lines) + 1][-1:]}
            in_it = alone.pop("enable", None) is not None

            def again() -> int:
                return _crash.tried(worker, environment, json.dumps(alone))

            raise RuntimeError(_crash.cause("llama-cpp-python", code, again if in_it else None))
    return lines


def _read(share: float) -> dict[str, Any]:
    """A set that all heads share: what is attended to is what is read."""
    unknown = dict.fromkeys(("attended_first", "distinct", "most_attended", "loss", "library"))
    return {"attended": share, "read": share, **unknown}


def _counted(report: dict[str, Any], problems: int) -> dict[str, Any]:
    """What the statistics say of the contexts, one for each problem."""
    contexts = [c for c in report["contexts"] if c["rows"]]
    if len(contexts) != problems:
        raise RuntimeError(f"the library took no part: {report['reason'] or report['total']['declined']}")

    def share(of: Sequence[dict[str, Any]]) -> float:
        return float(sum(c["tokens_attended"] for c in of) / sum(c["tokens_visible"] for c in of))

    kept = {name: sum(c[name] for c in contexts) for name in KEPT[2:]}
    found = {**_read(share(contexts)), "library": {**{name: contexts[-1][name] for name in KEPT[:2]}, **kept}}
    found["library"]["audited"] = contexts[-1].get("audited") or None
    found["library"]["events"] = [[i, e] for i, c in enumerate(contexts) for e in c.get("events") or []]
    if kept["measured_steps"]:
        found["attended_first"] = share(contexts[:1])
    return found
