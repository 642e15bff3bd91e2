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
from typing import Any

from .. import _files
from . import _cpu, _crew, _exit, _llama, _options, _process, _show

ON, OFF, OURS = "flash on", "flash off", "lessismore"


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
    settings = [ON, OURS] if options.kv in _crew.QUANTISED else [ON, OFF, OURS]
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
        print(json.dumps({"model": os.path.basename(model), "cpu": _cpu.found()["model"], "results": results}))
    else:
        print(_table(results, settings))
    return _exit.DONE if all(r["engaged"] for r in results) else _exit.NOT_ENGAGED


def _measure(options: argparse.Namespace, settings: list[str], model: str, context: int, threads: int, step: _show.Step) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in settings}
    workers: dict[str, _process.Worker] = {}
    try:
        for name in settings:
            step(f"{context} tokens, {threads} threads, {name}: filling", len(workers))
            job = {"model": model, "context": context, "threads": threads, "kv": options.kv, "flash": name != OFF}
            workers[name] = _process.Worker(job, _options.chosen(options) if name == OURS else None)
            workers[name].ask("fill", length=context)
        for n in range(options.rounds):
            step(f"{context} tokens, {threads} threads: measuring", len(settings) + n)
            turn = n % len(settings)
            for name in settings[turn:] + settings[:turn]:
                times[name].append(statistics.median(workers[name].ask("time", count=options.steps)))
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
