"""Compare LessIsMore with its peers: on a model and a text, or on a task with one right answer.

A GGUF file or the folder of a transformers model (Llama, Qwen2, Qwen3) goes on with a text behind a long context; what each
method says comes next is held against full attention, with equal tokens and with equal bytes, and facts that were hidden
in the context are asked for. A folder with a task (task.py, which is imported) has problems solved: exact answers, and
what was read for them.

Full attention, this library, TidalDecode, Quest, DELTA, Kascade, Twilight, SeerAttention-R with an oracle for its gate, a
window and a per-head oracle. What the rows mean is told by docs/comparison.md and lessismore.compare. A run writes each
row to --out when it is done, and goes on from there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import shlex
import sys
import time
from typing import Any, Optional

from .. import _files
from .._version import __version__
from . import _cpu, _exit, _llama, _options, _peers, _results, _show, _source

CALIBRATION = 4
_DEVICES = ("cpu", "cuda")  # of lessismore.compare.device, which needs NumPy


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="GGUF file, folder of a transformers model, or of a task, such as tests/data/reasoner")
    parser.add_argument("--budgets", type=_options.positives, help="default 512,1024; of a task 64,128,256")
    parser.add_argument("--layers", type=_options.numbers, help="of a further row; of a task: for methods that are told (2,9)")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="such as lim-auto,quest (default: all)")
    parser.add_argument("--out", metavar="FILE", help="the results as JSON; rows that are in it are kept")
    text = parser.add_argument_group("on a text")
    text.add_argument("--text", metavar="FILE", help=_source.OPTION)
    text.add_argument("--contexts", type=_options.positives, help="tokens (default 4096)")
    text.add_argument("--needles", type=_options.count, default=6, help="facts to hide in each context (default 6)")
    text.add_argument("--threads", type=_options.positive, default=_options.cpus(), help="of the host (default: one per CPU)")
    text.add_argument("--plot", metavar="FILE", help="a picture (needs matplotlib)")
    both = parser.add_argument_group("on either")
    both.add_argument("--steps", type=_options.positive, help="tokens behind a context (256), or steps of a problem (all that fit)")
    both.add_argument("--device", choices=_DEVICES, default="cpu", help="what computes the rules; cuda needs CuPy (default cpu)")
    both.add_argument("--seed", type=int, help="of the facts (1), or of the first problem (7000)")
    task = parser.add_argument_group("on a task")
    task.add_argument("--problems", type=_options.positive, default=30, help="default 30")
    task.add_argument("--calibration-seed", type=int, default=4000, help=f"of {CALIBRATION} others (default 4000)")
    task.add_argument("--forced", action="store_true", help="leave out how long the answers of methods that go wrong are")
    task.add_argument("--equal", choices=("tokens", "bytes", "both"), default="tokens", help="what goes with a budget (default tokens)")
    task.add_argument("--anchors", type=_options.numbers, help="Kascade's, from 0 (default: by its calibration)")


def command(options: argparse.Namespace) -> int:
    """Computes what is missing, prints the table. Returns the exit code."""
    if os.path.exists(os.path.join(options.model, "task.py")):
        return _task(options)
    options.steps, options.seed = options.steps or 256, 1 if options.seed is None else options.seed
    return _peers.command(options)


def _task(options: argparse.Namespace) -> int:
    from ..compare import table

    start = time.monotonic()
    options.seed = 7000 if options.seed is None else options.seed
    options.budgets, options.layers = options.budgets or [64, 128, 256], options.layers or [2, 9]
    known = table.rows(options.layers, options.anchors)
    wanted = options.methods or [row.key for row in known]
    if unknown := set(wanted) - {row.key for row in known}:
        raise ValueError(f"--methods: {min(unknown)} is none of {', '.join(row.key for row in known)}")
    seeds = range(options.seed, options.seed + options.problems)
    calibration = range(options.calibration_seed, options.calibration_seed + CALIBRATION)
    if set(seeds) & set(calibration):
        raise ValueError(f"--calibration-seed {calibration[0]}: these are problems that are compared")
    chosen = [row for row in known if row.key in wanted]
    if any(row.by == "host" for row in chosen):
        _llama.host()
    if options.out:
        _files.check(options.out)
    task = table.Task(pathlib.Path(options.model), options.steps, options.device)
    for name, given in (("layers", options.layers), ("anchors", options.anchors or [0])):
        if sorted(set(given)) != given or not 0 <= given[0] <= given[-1] < task.model.layers:
            raise ValueError(f"--{name} {','.join(map(str, given))}: ascending, of 0 to {task.model.layers - 1}")
    if options.anchors and options.anchors[0] != 0:
        raise ValueError("--anchors: the first is 0")
    comparison = table.Comparison(task, options.layers, seeds, calibration, options.anchors, options.forced)
    try:
        made = {
            "by": f"lessismore {__version__}",
            "command": shlex.join(["lessismore", *sys.argv[1:]]),
            "host": _version("llama-cpp-python"),
            "cpu": _cpu.found()["model"],
            "device": options.device,
        }
        report = _kept(options.out, comparison.head(made, options.budgets, known))
        rewritten = options.out and not _files.streams(options.out)
        there = {(r["method"], r["budget"], r.get("equal", "tokens")) for r in report["results"]}
        todo = [(row, None, "tokens") for row in chosen if row.family == "reference"]
        for equal in ("tokens", "bytes") if options.equal == "both" else (options.equal,):
            of = [row for row in chosen if row.family != "reference" and (equal == "tokens" or row.family != "lessismore")]
            todo += [(row, budget, equal) for budget in options.budgets for row in of]
        todo = [(row, budget, equal) for row, budget, equal in todo if (row.key, budget, equal) not in there]
        with _show.progress(max(1, len(todo))) as step:
            for i, (row, budget, equal) in enumerate(todo):
                report["results"].append(comparison.result(row, budget, _Place(step, i), equal))
                if rewritten:
                    _results.write(report, options.out)
    finally:
        comparison.close()
    report["made"]["seconds"] = round(sum(r.get("seconds", 0) for r in report["results"]), 1)
    _results.write(report, options.out)
    print(json.dumps(report) if options.json else _show.table(table.HEAD, table.cells(report)))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return _exit.DONE


class _Place:
    """Says what is being done in one row."""

    def __init__(self, step: _show.Step, done: int) -> None:
        self.step, self.done = step, done

    def __call__(self, what: str) -> None:
        self.step(what, self.done)


def _kept(path: Optional[str], report: dict[str, Any]) -> dict[str, Any]:
    """The report with what an earlier run left, if it was of the same problems, and what is in it of the same settings."""
    before = _results.read(path, "compare", report, ("format", "task"), ("methods", "results", "budgets"))
    if before is None:
        return report
    now = {m["key"]: m for m in report["methods"]}
    was = {m["key"]: m for m in before["methods"]}
    for key in dict.fromkeys(r["method"] for r in before["results"]):
        if was[key] != now.get(key):
            raise ValueError(f"{path} has {key} as {was[key]}, not {now.get(key)}")
    budgets = sorted({*before["budgets"], *report["budgets"]})
    return {**report, "budgets": budgets, "results": before["results"]}


def _version(package: str) -> Optional[str]:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None
