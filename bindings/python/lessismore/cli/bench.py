"""Time the decoding of a GGUF model: the host's own attention, flash attention on and off, against the library.

For each context length and number of threads three processes hold the same context in llama-cpp-python. They take
turns, a few tokens each, round after round, so that a machine that slows down slows all of them. The text is
random: the time does not depend on it. The baseline is the better one of the host's two settings.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Optional

from .. import _files
from . import _crash, _exit, _llama, _options, _show, doctor

ON, OFF, OURS = "flash on", "flash off", "lessismore"
WORKER = [sys.executable, "-m", "lessismore.cli._worker"]
QUANTISED = ("q8_0", "q4_0")  # caches that the host has with flash attention only


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--contexts", type=_options.positives, default=[4096, 16384], help="default 4096,16384")
    parser.add_argument("--threads", type=_options.positives, default=[_options.cpus()], help="default: one per CPU")
    parser.add_argument("--kv", choices=["f16", "bf16", "f32", "q8_0", "q4_0"], default="f16", help="cache type (f16)")
    parser.add_argument("--rounds", type=_options.positive, default=5, help="default 5")
    parser.add_argument("--steps", type=_options.positive, default=4, help="tokens per setting and round (default 4)")
    parser.add_argument("--plot", metavar="FILE", help="a picture of the table (needs matplotlib)")
    _options.settings(parser)


def command(options: argparse.Namespace) -> int:
    """Measures, prints the table. Returns the exit code."""
    model = _llama.model_file(options.model)
    _llama.host()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib")
    if options.plot:
        _files.check(options.plot)
    settings = [ON, OURS] if options.kv in QUANTISED else [ON, OFF, OURS]
    points = [(context, threads) for threads in options.threads for context in options.contexts]
    results = []
    stages = len(settings) + options.rounds
    with _show.progress(len(points) * stages) as step:
        for i, (context, threads) in enumerate(points):
            say: _show.Step = lambda what, n, base=i * stages: step(what, base + n)  # type: ignore[misc]
            results.append(_measure(options, settings, model, context, threads, say))
    if options.plot:
        _plot(results, settings, options.plot)
    if options.json:
        print(json.dumps({"model": os.path.basename(model), "cpu": doctor.cpu()["model"], "results": results}))
    else:
        print(_table(results, settings))
    return _exit.DONE if all(r["engaged"] for r in results) else _exit.NOT_ENGAGED


def _measure(options: argparse.Namespace, settings: list[str], model: str, context: int, threads: int, step: _show.Step) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in settings}
    workers: dict[str, _Worker] = {}
    try:
        for name in settings:
            step(f"{context} tokens, {threads} threads, {name}: filling", len(workers))
            job = {"model": model, "context": context, "threads": threads, "kv": options.kv, "flash": name != OFF}
            workers[name] = _Worker(job, _options.chosen(options) if name == OURS else None)
        for n in range(options.rounds):
            step(f"{context} tokens, {threads} threads: measuring", len(settings) + n)
            turn = n % len(settings)
            for name in settings[turn:] + settings[:turn]:
                times[name].append(statistics.median(workers[name].decode(options.steps)))
        report = workers[OURS].end()
    finally:
        for worker in workers.values():
            worker.kill()
    ms = {name: statistics.median(of) for name, of in times.items()}
    best = min(settings[:-1], key=lambda name: ms[name])
    ratios = [a / b for a, b in zip(times[best], times[OURS])]
    total = report["total"]
    engaged = bool(total["rows"])
    return {
        "context": context,
        "threads": threads,
        "kv": options.kv,
        "ms": ms,
        "baseline": best,
        "ratio": statistics.median(ratios) if engaged else None,
        "ratio_range": [min(ratios), max(ratios)] if engaged else None,
        "engaged": engaged,
        "share_attended": total["tokens_attended"] / total["tokens_visible"] if engaged else None,
        "selection_layers": next((c["selection_layers"] for c in report["contexts"] if c["rows"]), None),
        "why": None if engaged else report["reason"] or "no decode step was taken",
    }


class _Worker:
    """A process that holds one context (see _worker.py)."""

    def __init__(self, job: dict[str, Any], ours: Optional[dict[str, Any]]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lessismore-")
        self._stats = os.path.join(self._folder.name, "stats.json")
        if ours is not None:
            job["enable"] = {**ours, "log": "info", "stats": self._stats}
        self._job = job
        # Threads of an OpenMP host that wait must not take the others' turns.
        self._environment = {**_llama.environment(), "OMP_WAIT_POLICY": "passive"}
        self._log = open(os.path.join(self._folder.name, "log"), "w+")
        self._child = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=self._environment,
        )
        self._ask(job)

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps(what) + "\n")
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(self._reason())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _reason(self) -> str:
        """Why it ended: what it said last, or whose crash it was."""
        code = self._child.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        if lines and not _crash.crashed(code):
            return lines[-1]
        return _crash.cause("llama-cpp-python", code, self._alone if "enable" in self._job else None)

    def _alone(self) -> int:
        """Exit code of the host that holds this context without lessismore."""
        job = {name: value for name, value in self._job.items() if name != "enable"}
        given = "".join(json.dumps(line) + "\n" for line in (job, {"steps": 2}, {"end": True}))
        return _crash.tried(WORKER, self._environment, given)

    def decode(self, steps: int) -> list[float]:
        """Milliseconds of each of so many tokens, always behind the same context."""
        ms: list[float] = self._ask({"steps": steps})["ms"]
        return ms

    def end(self) -> dict[str, Any]:
        """Ends it; what the library counted."""
        self._ask({"end": True})
        self._child.wait(timeout=60)
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


def _table(results: list[dict[str, Any]], settings: list[str]) -> str:
    rows = []
    for r in results:
        ratio = f"{r['ratio']:.2f}x" if r["engaged"] else r["why"]
        share = f"{100 * r['share_attended']:.1f}%" if r["engaged"] else ""
        times = [f"{r['ms'][name]:.1f}" for name in settings]
        rows.append([str(r["context"]), str(r["threads"]), *times, ratio, share])
    head = ["context", "threads", *(f"{name} (ms)" for name in settings), "against the better", "attended"]
    return _show.table(head, rows)


def _plot(results: list[dict[str, Any]], settings: list[str], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = sorted({r["threads"] for r in results})
    figure, axes = pyplot.subplots(1, len(threads), figsize=(5 * len(threads), 4), squeeze=False, layout="constrained")
    for axis, n in zip(axes[0], threads):
        of = sorted((r for r in results if r["threads"] == n), key=lambda r: r["context"])
        for name in settings:
            axis.plot([r["context"] for r in of], [r["ms"][name] for r in of], marker="o", label=name)
        axis.set(xlabel="context (tokens)", ylabel="ms per token", title=f"{n} thread{'s' * (n > 1)}", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=os.path.splitext(path)[1][1:] or "png")
    _files.write(path, picture.getvalue())
