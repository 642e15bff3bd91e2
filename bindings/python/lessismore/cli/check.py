"""Say what sparse attention costs a model, on your own text: perplexity, divergence, hidden facts, and the time it saves.

The model reads a context of the text and goes on with it, token by token, in several settings that take turns: the host's
own attention, the library attending to everything, and the library with each budget. Each token's probabilities are held
against the host's. What the library differs by while it attends to everything is the noise floor: two ways to compute the
same. Facts are hidden in the context and asked for behind it. A folder is a transformers model, a file a GGUF model.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import math
import os
import statistics
import sys
import time
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from .. import _files
from .._version import __version__
from . import _cpu, _crew, _exit, _loss, _needles, _options, _show, _source, _verdict, _vocabulary
from ._crew import FULL, HOST, Name

CONTEXT = 4096  # the first one, where none is asked for
LONGEST = 16384  # the second one at most
PIECE = 16  # tokens of a turn
SEED = 1
READING = 0.125  # what a token of a context costs, in decode steps


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="GGUF file, or folder of a transformers model")
    parser.add_argument("--text", metavar="FILE", help="the text; - is standard input (default: Python's own documentation)")
    parser.add_argument("--contexts", type=_options.positives, help="tokens (default: 4096, and as far as the model was trained)")
    parser.add_argument("--budgets", type=_options.positives, default=[512, 1024, 2048], help="default 512,1024,2048")
    parser.add_argument("--steps", type=_options.positive, default=512, help="tokens behind each context (default 512)")
    parser.add_argument("--needles", type=_options.count, default=8, help="facts to ask for, in each context (default 8)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the facts (default {SEED})")
    parser.add_argument("--max-kl", type=float, help="exit code 4 where a budget diverges more from the host, in nats a token")
    parser.add_argument("--threads", type=_options.positive, default=_options.cpus(), help="default: one per CPU")
    parser.add_argument("--kv", choices=["f16", "bf16", "f32", "q8_0", "q4_0"], default="f16", help="GGUF: cache type (f16)")
    parser.add_argument("--out", metavar="FILE", help="the results as JSON, for `lessismore report --check`")
    parser.add_argument("--plot", metavar="FILE", help="a picture of the table (needs matplotlib)")
    _options.settings(parser, without=("budget", "trace"))


def command(options: argparse.Namespace) -> int:
    """Measures, prints the table and the verdict. Returns the exit code."""
    start = time.monotonic()
    for path in filter(None, [options.out, options.plot]):
        _files.check(path)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib")
    if options.needles > _needles.MOST:
        raise ValueError(f"--needles {options.needles}: at most {_needles.MOST} are possible")
    budgets = sorted(set(options.budgets))
    text, source = _source.text(options.text)
    vocabulary = _vocabulary.of(options.model)
    settings = _options.chosen(options)
    settle = _crew.settling(settings)
    contexts = sorted(set(options.contexts or _contexts(vocabulary.trained, options.steps, settle)))
    behind = settle + options.steps + 1
    needed = contexts[-1] + behind
    tokens = _source.tokens(vocabulary, text, source, contexts[-1], behind)
    needles = _needles.draw(vocabulary, options.needles, options.seed)
    notes = []
    if vocabulary.trained and needed > vocabulary.trained:
        notes.append(f"the model was trained for {vocabulary.trained} tokens: what it says beyond them is its own fault")
    if options.needles and not needles:
        notes.append("no facts were hidden: the model's vocabulary cannot write them")
    room = needed + max((len(n.question) + len(n.answer) for n in needles), default=0)
    total = sum(READING * context + (options.steps + READING * _crew.LAST) * (2 + len(budgets)) for context in contexts)
    try:
        crew = _crew.Crew(vocabulary.path, room, options.threads, options.kv, budgets, settings)
    except _crew.NotEngaged as e:
        if options.json:
            print(json.dumps({"engaged": False, "why": str(e)}))
        print(f"lessismore: the library took no part: {e}", file=sys.stderr)
        return _exit.NOT_ENGAGED
    results = []
    try:
        with _show.progress(total) as step:
            progress = _Progress(step)
            for context in contexts:
                prompt, used = _needles.weave(vocabulary, tokens, needles, context)
                results.append(_measure(crew, prompt, tokens[used:], needles, options.steps, progress))
    finally:
        crew.close()
    report: dict[str, Any] = {
        "format": 1,
        "made": {
            "version": __version__,
            "host": _vocabulary.host(options.model),
            "cpu": _cpu.found()["model"],
            "threads": options.threads,
            "seconds": round(time.monotonic() - start, 1),
        },
        "model": os.path.basename(os.path.abspath(options.model)),
        "text": {"from": source, "sha256": hashlib.sha256(text.encode()).hexdigest()[:16]},
        "settings": settings,
        "kv": options.kv,
        "notes": notes,
        "contexts": results,
    }
    report["verdict"] = _verdict.sentence(report)
    if options.out:
        _files.write(options.out, json.dumps(report).encode() + b"\n")
    if options.plot:
        _plot(report, options.plot)
    if options.json:
        print(json.dumps(report))
    else:
        print(_show.table(_verdict.HEAD, _verdict.rows(report)))
        print("\n" + "\n".join([report["verdict"], *notes]))
        print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return _code(report, options.max_kl)


def _code(report: dict[str, Any], most: Optional[float]) -> int:
    found = [(c, r) for c in report["contexts"] for r in c["results"] if r["budget"]]
    if not all(r["engaged"] for _, r in found):
        return _exit.NOT_ENGAGED
    lost = [(r["nats"]["mean"], r["budget"], c["context"]) for c, r in found if most is not None and not r["nats"]["mean"] <= most]
    if not lost:
        return _exit.DONE
    nats, budget, context = max(lost)
    print(f"lessismore: --max-kl {most:g}: a budget of {budget} diverges by {nats:.4f} nats a token at {context} tokens", file=sys.stderr)
    return _exit.LOST


def _contexts(trained: Optional[int], steps: int, settle: int = _crew.settling({})) -> list[int]:
    """Where nobody says: a common length, and as far as the model goes."""
    far = min(LONGEST, (trained or CONTEXT * 2) - steps - settle - 1) // 256 * 256
    if far < 256:
        raise ValueError(f"the model was trained for {trained} tokens: --contexts and --steps have to say what to try")
    return [CONTEXT, far] if far > CONTEXT else [far]


class _Progress:
    """Decode steps that are done, over all members."""

    def __init__(self, step: _show.Step) -> None:
        self._step, self._done = step, 0.0

    def __call__(self, what: str, more: float = 0.0) -> None:
        self._done += more
        self._step(what, self._done)


def _measure(
    crew: _crew.Crew, prompt: list[int], following: list[int], needles: list[_needles.Needle], steps: int, progress: _Progress
) -> dict[str, Any]:
    context = len(prompt)
    progress(f"{context} tokens: reading them")
    crew.show(prompt, lambda tokens: progress(f"{context} tokens: reading them", READING * tokens))
    progress(f"{context} tokens: finding layers")
    settled = crew.settle(following, context)
    before = {name: member.report() for name, member in crew.members.items() if member.served}
    tally = _Tally(crew)
    text = following[settled : settled + steps + 1]
    for i in range(0, steps, PIECE):
        progress(f"{context} tokens: going on with the text")
        end = min(i + PIECE, steps)
        tally.piece(text[i:end], text[i + 1 : end + 1])
        progress(f"{context} tokens: going on with the text", (end - i) * len(crew.members))
    after = {name: member.report() for name, member in crew.members.items() if member.served}
    known: dict[Name, list[bool]] = {name: [] for name in crew.members}
    for name, member in crew.members.items() if needles else ():
        progress(f"{context} tokens: asking for {len(needles)} facts")
        known[name] = _needles.known(member, needles)
    results = []
    for name in crew.members:
        more = _counted(before[name], after[name]) if name in before else {"engaged": None, "attended": 1.0}
        results.append({**tally.result(name), "facts": known[name], **more})
    return {"context": context, "from": context + settled, "steps": steps, "baseline": tally.baseline(), "results": results}


def _counted(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the library did between two reports."""

    def more(name: str) -> int:
        number: int = after["total"][name] - before["total"][name]
        return number

    engaged = more("rows") > 0
    latest: dict[str, Any] = max(after["contexts"], key=lambda c: c["rows"], default={})
    return {
        "engaged": engaged,
        "why": None if engaged else after.get("reason") or "no decode step was taken",
        "attended": more("tokens_attended") / more("tokens_visible") if engaged else None,
        "dense_steps": more("measured_steps") + more("dense_steps"),
        "selection_layers": latest.get("selection_layers"),
        "layers_from": latest.get("layers_from"),
    }


class _Tally:
    """What the members say, step by step, held against each other."""

    def __init__(self, crew: _crew.Crew) -> None:
        self._crew = crew
        self._turn = 0
        self._steps: dict[tuple[Name, str], list[npt.NDArray[Any]]] = {}
        self._ms: dict[Name, list[float]] = {}  # of each turn

    def piece(self, tokens: list[int], following: list[int]) -> None:
        """Has each member go on with these tokens."""
        names = list(self._crew.members)
        turn = self._turn % len(names)
        self._turn += 1
        logits = {}
        for name in names[turn:] + names[:turn]:
            ms, logits[name] = self._crew.members[name].walk(tokens)
            self._ms.setdefault(name, []).append(statistics.median(ms))
        if self._crew.other is not None:
            self._ms.setdefault(OTHER, []).append(statistics.median(self._crew.other.time()))
        host, full = _loss.Reference(logits.pop(HOST)), _loss.Reference(logits.pop(FULL))
        said: dict[Name, _loss.Said] = {HOST: host, FULL: full, **{name: _loss.Said(x) for name, x in logits.items()}}
        for name, one in said.items():
            self._add(name, "surprise", one.surprise(np.array(following)))
            for reference, of in (("host", host), ("full", full)):
                self._add(name, f"nats_{reference}", of.nats(one))
                self._add(name, f"same_{reference}", of.best == one.best)

    def _add(self, name: Name, what: str, of: npt.NDArray[Any]) -> None:
        self._steps.setdefault((name, what), []).append(of)

    def _all(self, name: Name, what: str) -> npt.NDArray[np.float64]:
        return np.concatenate(self._steps[name, what]).astype(np.float64)

    def baseline(self) -> str:
        """The host's setting that is faster here."""
        if OTHER not in self._ms:
            return "host"
        return "flash on" if statistics.median(self._ms[HOST]) <= statistics.median(self._ms[OTHER]) else "flash off"

    def result(self, name: Name) -> dict[str, Any]:
        surprise = self._all(name, "surprise")
        base = self._ms[OTHER if self.baseline() == "flash off" else HOST]
        return {
            "name": "budget" if isinstance(name, int) else name,
            "budget": name if isinstance(name, int) else None,
            "perplexity": math.exp(surprise.mean()),
            "perplexity_interval": _loss.interval(surprise, np.exp),
            "nats": self._nats(name, "host"),
            "nats_full": self._nats(name, "full"),
            "ms": statistics.median(self._ms[name]),
            "faster": statistics.median(b / own for b, own in zip(base, self._ms[name])),
        }

    def _nats(self, name: Name, reference: str) -> dict[str, Any]:
        return _loss.summary(self._all(name, f"nats_{reference}"), self._all(name, f"same_{reference}"))


OTHER = "other"  # the host's other setting: timed only


def _plot(report: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    contexts = report["contexts"]
    figure, axes = pyplot.subplots(1, len(contexts), figsize=(5 * len(contexts), 4), squeeze=False, sharey=True, layout="constrained")
    for axis, of in zip(axes[0], contexts):
        ours = [r for r in of["results"] if r["budget"]]
        floor = next(r for r in of["results"] if r["name"] == FULL)["nats"]["mean"]
        budgets = [r["budget"] for r in ours]
        means = np.array([r["nats"]["mean"] for r in ours])
        ends = np.array([r["nats"]["interval"] for r in ours]).T
        axis.errorbar(budgets, means, np.maximum(0, [means - ends[0], ends[1] - means]), marker="o", capsize=3, label="lessismore")
        axis.axhline(floor, color="gray", linestyle="--", label="noise floor")
        axis.set(xlabel="budget (tokens)", ylabel="nats a token, against the host", title=f"{of['context']:,} tokens", xscale="log")
        axis.set_xticks(budgets, [f"{b:,}" for b in budgets])
        axis.minorticks_off()
        axis.set_ylim(0, None)
        axis.grid(alpha=0.3)
        axis.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=os.path.splitext(path)[1][1:] or "png")
    _files.write(path, picture.getvalue())
