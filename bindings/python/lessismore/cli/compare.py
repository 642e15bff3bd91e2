"""Compare LessIsMore with its peers on a task with one right answer: exact answers, and what was read for them.

Full attention, this library (layers given, found by itself, policies, interval), TidalDecode, Quest, Kascade,
SeerAttention-R with an oracle for its gate, a window and a per-head oracle, at equal token budgets. What the rows
mean is told by lessismore.compare. A run writes each row to --out when it is done, and goes on from there.
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
from . import _cpu, _exit, _llama, _options, _show

CALIBRATION = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="model and task, such as tests/data/reasoner; its task.py is imported")
    parser.add_argument("--problems", type=_options.positive, default=30, help="default 30")
    parser.add_argument("--seed", type=int, default=7000, help="of the first problem (default 7000)")
    parser.add_argument("--calibration-seed", type=int, default=4000, help=f"of {CALIBRATION} others (default 4000)")
    parser.add_argument("--steps", type=_options.positive, help="of a problem (default: as many as the model takes)")
    parser.add_argument("--budgets", type=_options.positives, default=[64, 128, 256], help="default 64,128,256")
    parser.add_argument("--layers", type=_options.numbers, default=[2, 9], help="for methods that are told (2,9)")
    parser.add_argument("--anchors", type=_options.numbers, help="Kascade's, from 0 (default: by its calibration)")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="such as lim,quest (default: all)")
    parser.add_argument("--out", metavar="FILE", help="the results as JSON; rows that are in it are kept")


def command(options: argparse.Namespace) -> int:
    """Computes what is missing, prints the table. Returns the exit code."""
    from ..compare import table

    start = time.monotonic()
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
    task = table.Task(pathlib.Path(options.folder), options.steps)
    for name, given in (("layers", options.layers), ("anchors", options.anchors or [0])):
        if sorted(set(given)) != given or not 0 <= given[0] <= given[-1] < task.model.layers:
            raise ValueError(f"--{name} {','.join(map(str, given))}: ascending, of 0 to {task.model.layers - 1}")
    if options.anchors and options.anchors[0] != 0:
        raise ValueError("--anchors: the first is 0")
    comparison = table.Comparison(task, options.layers, seeds, calibration, options.anchors)
    try:
        made = {
            "by": f"lessismore {__version__}",
            "command": shlex.join(["lessismore", *sys.argv[1:]]),
            "host": _version("llama-cpp-python"),
            "cpu": _cpu.found()["model"],
        }
        report = comparison.head(made, options.budgets, known)
        rewritten = options.out and not _files.streams(options.out)
        if rewritten and os.path.exists(options.out) and os.path.getsize(options.out):
            report = _kept(options.out, report)
        there = {(r["method"], r["budget"]) for r in report["results"]}
        todo = [(row, None) for row in chosen if row.family == "reference"]
        todo += [(row, budget) for budget in options.budgets for row in chosen if row.family != "reference"]
        todo = [(row, budget) for row, budget in todo if (row.key, budget) not in there]
        with _show.progress(max(1, len(todo))) as step:
            for i, (row, budget) in enumerate(todo):
                report["results"].append(comparison.result(row, budget, _Place(step, i)))
                if rewritten:
                    table.write(report, options.out)
    finally:
        comparison.close()
    report["made"]["seconds"] = round(sum(r["seconds"] for r in report["results"]), 1)
    if options.out:
        table.write(report, options.out)
    print(json.dumps(report) if options.json else _show.table(table.HEAD, table.cells(report)))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return _exit.DONE


class _Place:
    """Says what is being done in one row."""

    def __init__(self, step: _show.Step, done: int) -> None:
        self.step, self.done = step, done

    def __call__(self, what: str) -> None:
        self.step(what, self.done)


def _kept(path: str, report: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run left, if it was of the same problems, and what is in it of the same settings."""
    with open(path) as f:
        before: dict[str, Any] = json.load(f)
    if not isinstance(before, dict) or not {"methods", "results", "budgets"} <= set(before):
        raise ValueError(f"{path} is no result of `lessismore compare`")
    for name in ("format", "task"):
        if before.get(name) != report[name]:
            raise ValueError(f"{path} has another {name}: {before.get(name)}, not {report[name]}")
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
