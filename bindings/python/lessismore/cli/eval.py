"""Run tasks of EleutherAI's lm-evaluation-harness with full attention and with the library, answer by answer.

The harness (pip install "lm-eval[hf]") asks and judges; the model is computed by transformers, the weights are loaded once.
Every task is run with transformers' own attention and with each budget, several sampled answers to each problem, and held
against full attention problem by problem. A run writes each row to --out when it is done, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from typing import Any, Optional

import numpy as np

from .. import _files
from .._version import __version__
from . import _cpu, _exit, _harness, _options, _results, _show

FORMAT = 1
TASKS = ["aime24", "aime25", "hendrycks_math500", "gpqa_diamond_cot_zeroshot"]
BUDGETS = [1024, 2048, 4096, 6144]
DRAWS = 10000
SAME = ("format", "model", "samples", "limit", "seed", "generation", "settings")  # what has to agree for rows to be kept


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a transformers model, or its name")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=TASKS, help=f"default {','.join(TASKS)}")
    parser.add_argument("--include", metavar="FOLDER", help="with tasks of one's own, as YAML")
    parser.add_argument("--budgets", type=_options.positives, default=BUDGETS, help=f"default {','.join(map(str, BUDGETS))}")
    parser.add_argument("--samples", type=_options.positive, default=4, help="answers to each problem (default 4)")
    parser.add_argument("--limit", type=_options.positive, help="problems of each task (default: all)")
    parser.add_argument("--max-tokens", type=_options.positive, help="of an answer (default: the task's)")
    parser.add_argument("--temperature", type=float, default=0.6, help="0: the likeliest token each time (default 0.6)")
    parser.add_argument("--top-p", type=float, default=0.95, help="default 0.95")
    parser.add_argument("--chat", action="store_true", help="ask by the model's chat template")
    parser.add_argument("--batch", type=_options.positive, default=1, help="problems at once (default 1)")
    parser.add_argument("--device", help="such as cuda or cpu (default: a GPU where there is one)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: the model's)")
    parser.add_argument("--threads", type=_options.positive, default=_options.cpus(), help="on a CPU (default: one per CPU)")
    parser.add_argument("--seed", type=int, default=1, help="of the first sample (default 1)")
    parser.add_argument("--out", metavar="FILE", help="the results as JSON; rows that are in it are kept")
    _options.settings(parser, without=("budget", "trace"))


def command(options: argparse.Namespace) -> int:
    """Computes what is missing, prints the table. Returns the exit code."""
    if options.temperature < 0 or not 0 < options.top_p <= 1:
        raise ValueError(f"--temperature {options.temperature:g} --top-p {options.top_p:g}: at least 0, and above 0 and up to 1")
    if options.temperature == 0 and options.samples > 1:
        raise ValueError(f"--samples {options.samples}: at temperature 0 all of them are the same; --samples 1")
    if options.out:
        _files.check(options.out)
    settings, budgets = _options.chosen(options), sorted(set(options.budgets))
    generation: dict[str, Any] = {"do_sample": options.temperature > 0}
    if options.temperature > 0:
        generation |= {"temperature": options.temperature, "top_p": options.top_p}
    if options.max_tokens:
        generation["max_gen_toks"] = options.max_tokens
    harness = _harness.Harness(options.model, options.tasks, options.include)
    report: dict[str, Any] = {
        "format": FORMAT,
        "made": {
            "by": f"lessismore {__version__}",
            "command": shlex.join(["lessismore", *sys.argv[1:]]),
            "harness": harness.versions(),
            "cpu": _cpu.found()["model"],
        },
        "model": os.path.basename(os.path.abspath(options.model)),
        "samples": options.samples,
        "limit": options.limit,
        "seed": options.seed,
        "generation": {**generation, "chat": options.chat},
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        "results": [],
    }
    before = _results.read(options.out, "eval", report, SAME, ["results"])
    if before is not None:
        report["results"] = before["results"]
    there = {(r["task"], r["budget"]) for r in report["results"]}
    todo = [(task, budget) for task in options.tasks for budget in (None, *budgets) if (task, budget) not in there]
    if todo:
        harness.load(options.dtype, options.device, options.threads, options.batch)
    with _show.progress(max(1, len(todo) * options.samples)) as step:
        for i, (task, budget) in enumerate(todo):
            attention = harness.attention(budget, settings)
            runs = []
            for sample in range(options.samples):
                name = "full attention" if budget is None else f"{budget} tokens"
                step(f"{task}, {name}: answer {sample + 1} to each problem", i * options.samples + sample)
                runs.append(attention.answers(task, options.limit, options.seed + sample, generation, options.chat))
            report["results"] += _rows(task, budget, runs)
            _write(report, options.out)
    report["results"].sort(
        key=lambda r: (options.tasks.index(r["task"]) if r["task"] in options.tasks else len(options.tasks), r["filter"], r["budget"] or 0)
    )
    _compared(report["results"])
    _write(report, options.out)
    print(json.dumps(report) if options.json else _show.table(HEAD, cells(report)))
    idle = [r for r in report["results"] if r["budget"] and r["attended"] is None]
    if idle:
        print(f"lessismore: the library took no part: {idle[0]['why']}", file=sys.stderr)
    return _exit.NOT_ENGAGED if idle else _exit.DONE


def _rows(task: str, budget: Optional[int], runs: list[_harness.Run]) -> list[dict[str, Any]]:
    """A task's results with one attention: one for each way in which the harness reads the answers."""
    generated = [n for run in runs for n in run.generated]
    visible, attended = sum(run.visible for run in runs), sum(run.attended for run in runs)
    out = []
    for filter_ in runs[0].right:
        right = np.array([run.right[filter_] for run in runs], float)  # [samples, problems]
        out.append({
            "task": task,
            "filter": filter_,
            "metric": runs[0].metric,
            "budget": budget,
            "problems": right.shape[1],
            "exact": float(right.mean()),
            "tokens_generated": sum(generated) / len(generated),
            "attended": 1.0 if budget is None else attended / visible if visible else None,
            "selection_layers": runs[-1].layers,
            "seconds": round(sum(run.seconds for run in runs), 1),
            "why": None if visible or budget is None else "no token was decoded by it",
            "right": right.T.tolist(),
        })  # fmt: skip
    return out


def _compared(results: list[dict[str, Any]]) -> None:
    """Intervals, and the difference from full attention on the same problems."""
    from ..compare.measure import interval

    full = {(r["task"], r["filter"]): r for r in results if r["budget"] is None}
    for r in results:
        own = np.array(r["right"]).mean(1)
        r["exact_interval"] = interval(float(own.sum()), len(own))
        r["difference"] = r["difference_interval"] = None
        base = full.get((r["task"], r["filter"]))
        if r["budget"] is not None and base is not None and len(base["right"]) == len(own):
            more = own - np.array(base["right"]).mean(1)
            drawn = more[np.random.default_rng(0).integers(0, len(more), (DRAWS, len(more)))].mean(1)
            r["difference"], r["difference_interval"] = float(more.mean()), np.quantile(drawn, [0.025, 0.975]).tolist()


def _write(report: dict[str, Any], path: Optional[str]) -> None:
    report["made"]["written"] = time.strftime("%Y-%m-%d %H:%M:%S")
    _results.write(report, path)


HEAD = ("task", "read by", "attention", "problems", "exact", "95 %", "against full", "95 % (paired)", "tokens", "attended", "layers", "s")


def cells(report: dict[str, Any]) -> list[list[str]]:
    out = []
    for r in report["results"]:
        low, high = r["exact_interval"]
        change = r["difference_interval"]
        out.append([
            r["task"],
            r["filter"],
            "full" if r["budget"] is None else f"{r['budget']:,} tokens",
            f"{r['problems']} x {report['samples']}",
            f"{100 * r['exact']:.2f} %",
            f"{100 * low:.0f}-{100 * high:.0f}",
            "" if change is None else f"{100 * r['difference']:+.2f}",
            "" if change is None else f"{100 * change[0]:+.1f} to {100 * change[1]:+.1f}",
            f"{r['tokens_generated']:.0f}",
            "none" if r["attended"] is None else f"{100 * r['attended']:.1f} %",
            ",".join(map(str, r["selection_layers"] or [])),
            f"{r['seconds']:.0f}",
        ])  # fmt: skip
    return out
