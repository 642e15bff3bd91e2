"""`lessismore compare` on a model and a text: prepares both, has the rows computed, prints and draws them."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shlex
import sys
import time
from typing import Any, Optional

import numpy as np

from .. import _files
from .._version import __version__
from . import _cpu, _crew, _exit, _needles, _sequence, _show, _source, _vocabulary

FORMAT = 1
BUDGETS, CONTEXTS = [512, 1024], [4096]
PARTS = ("format", "kind", "model", "text", "steps", "needles", "budgets")  # that have to agree for rows to be kept


def command(options: argparse.Namespace) -> int:
    """Computes what is missing, prints the table. Returns the exit code."""
    from ..compare import text as compared
    from ..compare.model import Model

    start = time.monotonic()
    rows = compared.rows(options.layers)
    keys = [row.key for row in rows]
    wanted = options.methods or keys
    if unknown := set(wanted) - set(keys):
        raise ValueError(f"--methods: {min(unknown)} is none of {', '.join(keys)}")
    budgets, contexts = sorted(set(options.budgets or BUDGETS)), sorted(set(options.contexts or CONTEXTS))
    if contexts[0] < 2 * budgets[-1]:
        raise ValueError(f"--budgets {budgets[-1]}: the library finds its layers in contexts of {2 * budgets[-1]} tokens and more")
    if options.needles > _needles.MOST:
        raise ValueError(f"--needles {options.needles}: at most {_needles.MOST} are possible")
    for path in filter(None, [options.out, options.plot]):
        _files.check(path)
    words, source = _source.text(options.text)
    vocabulary = _vocabulary.of(options.model)
    more = compared.SETTLE + options.steps + 1
    tokens = _source.tokens(vocabulary, words, source, contexts[-1], more)
    if vocabulary.trained and contexts[-1] + more > vocabulary.trained:
        raise ValueError(f"--contexts {contexts[-1]}: with {more} tokens behind it, more than the {vocabulary.trained} of the model")
    model = Model(pathlib.Path(options.model), options.device)
    if options.layers and (
        sorted(set(options.layers)) != options.layers or not 0 <= options.layers[0] <= options.layers[-1] < model.layers
    ):
        raise ValueError(f"--layers {','.join(map(str, options.layers))}: ascending, of 0 to {model.layers - 1}")
    report: dict[str, Any] = {
        "format": FORMAT,
        "kind": "text",
        "made": {
            "by": f"lessismore {__version__}",
            "command": shlex.join(["lessismore", *sys.argv[1:]]),
            "host": _vocabulary.host(options.model),
            "cpu": _cpu.found()["model"],
            "device": options.device,
        },
        "model": os.path.basename(os.path.abspath(options.model)),
        "text": {"from": source, "sha256": hashlib.sha256(words.encode()).hexdigest()[:16]},
        "steps": options.steps,
        "needles": {"count": options.needles, "seed": options.seed},
        "budgets": budgets,
        "methods": [dataclasses.asdict(row) for row in rows],
        "contexts": [],
    }
    kept = _kept(options.out, report)
    needles = _needles.draw(vocabulary, options.needles, options.seed, _needles.TWICE)
    total = len(contexts) * (2 + 2 * len(wanted) * len(budgets))
    with _show.progress(total) as step:
        for i, context in enumerate(contexts):
            prompt, used = _needles.weave(vocabulary, tokens, needles, context)
            course = compared.Course(prompt, tokens[used : used + more], options.steps, needles)
            of = kept.get(context) or {"context": context, "results": []}
            report["contexts"].append(of)
            _Context(options, report, of, model, course, wanted).fill(step, i * (total // len(contexts)))
    report["made"]["seconds"] = round(time.monotonic() - start, 1)
    _write(report, options.out)
    if options.plot:
        draw(report, options.plot)
    print(json.dumps(report) if options.json else _show.table(HEAD, cells(report)))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return _exit.DONE


class _Context:
    """Computes what is missing of one context."""

    def __init__(self, options: argparse.Namespace, report: Any, of: Any, model: Any, course: Any, wanted: list[str]) -> None:
        self.options, self.report, self.of, self.model, self.course, self.wanted = options, report, of, model, course, wanted

    def fill(self, step: _show.Step, done: float) -> None:
        from ..compare import text as compared

        there = {(r["method"], r["budget"], r.get("equal")) for r in self.of["results"]}
        keys = dict.fromkeys([compared.BASE, *(row["key"] for row in self.report["methods"] if row["key"] in self.wanted)])
        todo: list[tuple[str, Optional[int], Optional[str]]] = [("full", None, None)] if "full" in keys else []
        for k in self.report["budgets"]:
            todo += [(key, k, equal) for equal in ("tokens", "bytes") for key in keys if key not in ("full", "stock")]
        if "stock" in keys:
            todo.append(("stock", None, None))
        todo = [(key, k, equal) for key, k, equal in todo if (key, k, equal) not in there and (key, equal) != (compared.BASE, "bytes")]
        if not todo:
            return
        budgets, given = self.report["budgets"], self.options.layers
        stretch = compared.Stretch(self.model, self.course, budgets, self.wanted, given, lambda what: step(what, done))
        self.of["from"] = stretch.start
        names = {row["key"]: row["name"] for row in self.report["methods"]}
        for i, (key, k, equal) in enumerate(todo):
            like = "" if k is None else f", as many bytes as with {k}" if equal == "bytes" else f", {k} tokens"
            step(f"{self.of['context']} tokens: {names[key]}{like}", done + i)
            if key == "full":
                found = stretch.reference()
            else:
                found = self._stock(stretch) if k is None or equal is None else stretch.result(key, k, equal)
            self.of["results"].append(found)
            _write(self.report, self.options.out)

    def _stock(self, stretch: Any) -> dict[str, Any]:
        """The host's own attention, token by token behind the same text."""
        start = time.monotonic()
        member: _crew.Member
        if os.path.isdir(self.options.model):
            weights = _sequence.load(self.options.model)
            member = _crew.Transformers(weights, "lessismore-compare", self.options.threads, None)
        else:
            job = {"model": self.options.model, "context": self.course.room(), "threads": self.options.threads, "kv": "f16", "flash": True}
            member = _crew.GGUF(job, None)
        try:
            member.show([*self.course.prompt, *self.course.following[: stretch.settled]])
            _, logits = member.walk(stretch.tokens)
            facts = _needles.known(member, self.course.needles)
        finally:
            member.close()
        head = {"method": "stock", "budget": None, "attended": 1.0, "read": 1.0}
        return {**head, **stretch.held(logits), "facts": facts, "seconds": round(time.monotonic() - start, 1)}


def _kept(path: Optional[str], report: dict[str, Any]) -> dict[int, Any]:
    """The contexts that an earlier run left, if it was of the same things."""
    if not path or _files.streams(path) or not os.path.exists(path) or not os.path.getsize(path):
        return {}
    with open(path) as f:
        before: dict[str, Any] = json.load(f)
    if not isinstance(before, dict) or not {*PARTS, "contexts", "methods"} <= set(before):
        raise ValueError(f"{path} is no result of `lessismore compare` on a text")
    for name in PARTS:
        if before[name] != report[name]:
            raise ValueError(f"{path} has another {name}: {before[name]}, not {report[name]}")
    now = {row["key"]: row for row in report["methods"]}
    for row in before["methods"]:
        if now.setdefault(row["key"], row) != row:
            raise ValueError(f"{path} has {row['key']} as {row}, not {now[row['key']]}")
    report["methods"] = list(now.values())
    return {of["context"]: of for of in before["contexts"]}


def _write(report: dict[str, Any], path: Optional[str]) -> None:
    if path:
        _files.write(path, json.dumps(report, indent=1).encode() + b"\n")


# ---- what a person sees ----

HEAD = (
    "context", "method", "K", "equal", "its size", "layers", "attended", "read", "perplexity", "nats a token", "99 %", "same token",
    "behind", "facts",
)  # fmt: skip


def ordered(report: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any], Optional[dict[str, Any]]]]:
    """Each context, result and what it is held against: LessIsMore with as many tokens."""
    from ..compare import text as compared

    order = {row["key"]: i for i, row in enumerate(report["methods"])}
    out = []
    for of in report["contexts"]:
        base = {r["budget"]: r for r in of["results"] if r["method"] == compared.BASE}
        found = sorted(of["results"], key=lambda r: (r.get("equal") or "", r["budget"] or 0, order[r["method"]]))
        out += [(of, r, base.get(r["budget"])) for r in sorted(found, key=lambda r: (r.get("equal") or "") == "bytes")]
    return out


def cells(report: dict[str, Any]) -> list[list[str]]:
    from ..compare import text as compared

    names = {row["key"]: row["name"] for row in report["methods"]}
    out = []
    for of, r, base in ordered(report):
        row = [f"{of['context']:,}", names[r["method"]], str(r["budget"] or ""), r.get("equal") or ""]
        if r["read"] is None:
            out.append([*row, "reads more with any"] + [""] * 9)
            continue
        nats, size = r.get("nats"), r.get("size")
        behind = compared.ahead(r, base) if base and nats and r is not base else None
        row += [
            "" if size is None else f"p {size:.4f}" if size < 1 else f"{size:.0f}",
            ",".join(map(str, r.get("layers") or [])),
            f"{100 * r['attended']:.1f} %",
            f"{100 * r['read']:.1f} %",
            f"{r['perplexity']:.3f}",
            "" if not nats else f"{nats['mean']:.4f} ({nats['interval'][0]:.4f}-{nats['interval'][1]:.4f})",
            "" if not nats else f"{nats['p99']:.3f}",
            "" if not nats else f"{100 * nats['same']:.1f} %",
            "" if not behind else f"{behind['mean']:+.4f} ({behind['interval'][0]:+.4f} to {behind['interval'][1]:+.4f})",
            f"{sum(r['facts'])} of {len(r['facts'])}" if r["facts"] else "",
        ]
        out.append(row)
    return out


def draw(report: dict[str, Any], path: str) -> None:
    """Nats a token by the share of bytes read, a line for each method."""
    try:
        import matplotlib
    except ImportError as e:
        raise ImportError("--plot needs matplotlib") from e
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {row["key"]: row for row in report["methods"]}
    contexts = report["contexts"]
    figure, axes = pyplot.subplots(1, len(contexts), figsize=(7 * len(contexts), 6), squeeze=False, sharey=True, layout="constrained")
    marks = "osv^<>DPX*pdh"
    for axis, of in zip(axes[0], contexts):
        found = [r for r in of["results"] if r.get("nats") and r["budget"]]
        for i, key in enumerate(names):
            points = sorted((100 * r["read"], max(r["nats"]["mean"], 1e-5), r["nats"]["interval"]) for r in found if r["method"] == key)
            if not points:
                continue
            x, y = [p[0] for p in points], [p[1] for p in points]
            ends = np.abs(np.array([p[2] for p in points]).T - y)
            ours = names[key]["family"] == "lessismore"
            axis.errorbar(
                x, y, ends, marker=marks[i % len(marks)], capsize=2, linewidth=2 if ours else 1,
                linestyle="-" if ours else ":", color=f"C{i % 10}" if ours else f"C{(i + 3) % 10}", label=names[key]["name"],
            )  # fmt: skip
        for r in of["results"]:
            if r["method"] == "stock":
                axis.axhline(r["nats"]["mean"], color="gray", linestyle="--", label="noise: the host's own attention")
        axis.set(xlabel="bytes of K and V read, % of all", ylabel="nats a token, against full attention", title=f"{of['context']:,} tokens")
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format=os.path.splitext(path)[1][1:] or "png")
    _files.write(path, picture.getvalue())
