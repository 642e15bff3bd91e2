"""The whole comparison: which methods there are, a row for each method and budget, and the table of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import random
import tempfile
import time
from typing import Any, Callable, Optional, Sequence

import numpy as np

from . import calibration, host, kascade, measure
from .measure import Counts, Prepared, Problem
from .methods import Delta, Full, Kascade, Method, Oracle, Quest, QuestSpread, Rough, Seer, TidalDecode, Twilight, Window
from .model import Model
from .sets import Library
from .weights import Array

FORMAT = 1
KASCADE = {"kascade": 4, "kascade-7": 7}  # anchor layers: as many as read every key under LessIsMore; as many bytes
DELTAS = 3  # DELTA's selection layers, by its authors
ROUGH = (1, 2, 4)  # of so many layers one chooses, where keys of 4 bits do for that
SIZED = 2  # calibration problems by which a size is found
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """A method; by is how it is computed (see the package)."""

    key: str
    name: str
    family: str
    by: str
    settings: str


def drafts() -> list[Row]:
    return [Row(f"rough-{n}", f"LessIsMore, 4-bit keys, each {n}", "draft", "rules", "a layer of so many chooses") for n in ROUGH]


def rows(layers: Sequence[int], anchors: Optional[Sequence[int]] = None) -> list[Row]:
    given = ",".join(map(str, layers))
    planned = f"anchors {','.join(map(str, anchors))}, given; heads" if anchors else "anchors and heads"
    ours, free = "lessismore", "training-free"
    return [
        Row("full", "full attention", "reference", "rules", ""),
        Row("stock", "full attention, llama-cpp-python alone", "reference", "host", ""),
        Row("lim", f"LessIsMore, layers {given}", ours, "abi", "union"),
        Row("lim-mass", f"LessIsMore, layers {given}, mass", ours, "abi", "mass"),
        Row("lim-host", f"LessIsMore, layers {given}, in llama-cpp-python", ours, "host", "union"),
        Row("lim-auto", "LessIsMore, auto, nothing known", ours, "host", "union, guard on, no profile at first"),
        Row("lim-profile", "LessIsMore, auto, profile there", ours, "host", "union, guard on, a profile from one problem"),
        Row("lim-auto-mass", "LessIsMore, auto, mass", ours, "host", "mass, guard on, no profile at first"),
        Row("lim-interval", f"LessIsMore, layers {given}, interval 2", ours, "host", "union, guard off"),
        Row("lim-interval-guard", f"LessIsMore, layers {given}, interval 2, guard", ours, "host", "union, guard on"),
        *drafts(),
        Row("tidal", "TidalDecode", free, "rules", f"selection at {given}, given; per query head"),
        Row("quest", "Quest", free, "rules", "pages of 16; layers 0 and 1 full"),
        Row("quest-spread", "Quest, mean + deviation", free, "rules", "pages of 16, the first and newest kept; layers 0 and 1 full"),
        Row("delta", "DELTA", free, "rules", f"pages of 16, 8 newest; {DELTAS} selection layers by calibration"),
        Row("twilight", "Twilight-like top p", free, "rules", "p by calibration at K; layers 0 and 1 full"),
        Row("kascade", "Kascade, 4 anchors", free, "rules", f"{planned} by calibration at K"),
        Row("kascade-7", "Kascade, 7 anchors", free, "rules", f"{planned} by calibration at K"),
        Row("seer", "SeerAttention-R, oracle gate", "stand-in", "rules", "blocks of 64 by true mass"),
        Row("window", "window", "floor", "rules", "4 first tokens, the newest K - 4"),
        Row("oracle", "oracle, per head", "ceiling", "rules", "true top K of every head in every layer"),
    ]


class Task:
    """The folder's model and problems. Raises OSError, ValueError, ImportError."""

    def __init__(self, folder: pathlib.Path, steps: Optional[int], where: str = "cpu") -> None:
        self.folder = folder
        self.model = Model(folder, where)
        self.module = _imported(folder / "task.py")
        self.steps: int = steps or self.module.steps_for(self.model.positions)

    def gguf(self) -> pathlib.Path:
        files = sorted(self.folder.glob("*.gguf"))
        if not files and (self.folder / "to_gguf.py").exists():
            made: pathlib.Path = _imported(self.folder / "to_gguf.py").path()
            return made
        if len(files) != 1:
            raise ValueError(f"{self.folder} has {len(files)} .gguf files, not one")
        return files[0]

    def problem(self, seed: int) -> Problem:
        t = self.module
        if hasattr(t, "tokens"):
            return Problem(seed, *t.tokens(random.Random(seed), self.steps))
        prompt, solution = t.problem(random.Random(seed), self.steps)
        step, at = [], 0
        for character in solution:
            step.append(at)
            at += character == ";"
        return Problem(seed, [t.BOS, *t.encode(prompt)], [*t.encode(solution), t.EOS], [*step, at])


def _imported(path: pathlib.Path) -> Any:
    """A Python file as a module."""
    found = importlib.util.spec_from_file_location(f"lessismore_compared_{path.stem}", path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class Comparison:
    """Computes rows, one at a time."""

    def __init__(
        self, task: Task, layers: Sequence[int], seeds: range, calibration: range, anchors: Optional[Sequence[int]] = None,
        forced: bool = False,
    ) -> None:  # fmt: skip
        """forced: only whether a method writes the solution, not how long what it writes in its place is."""
        self.task, self.layers, self.seeds, self.calibration = task, tuple(layers), seeds, calibration
        self.anchors = anchors  # of Kascade, in place of those that are found
        self.problems = [task.problem(seed) for seed in seeds]
        self.forced = forced
        self.cap = min(task.model.positions - len(p.prompt) for p in self.problems)
        self._prepared: dict[int, Prepared] = {}
        self._likeness: dict[int, Array] = {}
        self._learned: dict[str, Any] = {}
        self._before: list[Prepared] = []  # the calibration problems
        self._profiles = tempfile.TemporaryDirectory(prefix="lessismore-")
        self._known: set[int] = set()  # budgets that a profile was measured for

    def close(self) -> None:
        self._profiles.cleanup()

    def result(self, row: Row, budget: Optional[int], say: Say, equal: str = "tokens") -> dict[str, Any]:
        """equal: "tokens", or "bytes": the method's own number of tokens (Twilight: p) is the one that reads what LessIsMore reads with
        `budget`; where none reads as little, `size` is null and there is no more."""
        start = time.monotonic()
        name = row.name if budget is None else f"{row.name}, {budget} tokens"
        head: dict[str, Any] = {"method": row.key, "budget": budget}
        size: Optional[float] = None
        if equal == "bytes" and budget is not None:
            size = self.size(row, budget, say)
            head.update(equal=equal, size=size)
            if size is None:
                return head
            name += f" (its size {size:g}: equal bytes)"
        found = self._host(row, budget, name, say) if row.by == "host" else self._here(row, budget, size, name, say)
        return {**head, **found, "seconds": round(time.monotonic() - start, 1)}

    def size(self, row: Row, budget: int, say: Say) -> Optional[float]:
        """What makes a method read, on the first calibration problems, the bytes that LessIsMore reads there with these layers."""
        model, some = self.task.model, self._calibrated()[:SIZED]
        visible = np.concatenate([len(p.problem.prompt) + np.arange(1, len(p.problem.solution)) for p in some])
        full = self.layers[0] + len(self.layers)  # layers below the first that chooses, and those that choose
        target = (full + (model.layers - full) * np.minimum(budget, visible).sum() / visible.sum()) / model.layers

        def read(size: float) -> float:
            say(f"{row.name}: reading as much as with {budget} tokens: {size:g}")
            method = self.method(row, budget, say, size)
            counts = Counts(model, method, losses=False)
            for prepared in some:
                prepared.forced(method)
            return float(counts.result()["read"])

        ends = (0.05, 0.9999) if row.key == "twilight" else (16, int(visible.max()))
        return measure.solve(read, target, *ends)

    def _calibrated(self) -> list[Prepared]:
        if not self._before:
            problems = [self.task.problem(seed) for seed in self.calibration]
            self._before = [Prepared(self.task.model, p, len(p.prompt) + len(p.solution)) for p in problems]
        return self._before

    def prepared(self, problem: Problem) -> Prepared:
        if problem.seed not in self._prepared:
            room = len(problem.prompt) + len(problem.solution) if self.forced else None
            self._prepared[problem.seed] = Prepared(self.task.model, problem, room)
        return self._prepared[problem.seed]

    def plan(self, budget: int, anchors: int, say: Say) -> kascade.Plan:
        """Kascade's, on the calibration problems."""
        if budget not in self._likeness:
            measured = kascade.Likeness(budget, self.task.model.layers, self.task.model.kv_heads)
            for prepared in self._calibrated():
                say(f"Kascade, {budget} tokens: calibration")
                prepared.forced(measured)
            self._likeness[budget] = measured.mean()
        likeness = self._likeness[budget]
        return kascade.plan(likeness, self.anchors or kascade.anchor_layers(kascade.matched(likeness), anchors))

    def learned(self, by: str, say: Say) -> Any:
        """DELTA's layers, or what Twilight's p is read from, on the calibration problems."""
        if by not in self._learned:
            measured: Full = calibration.Shift(self.task.model.layers) if by == "delta" else calibration.Shares()
            for prepared in self._calibrated():
                say(f"{by}: calibration")
                prepared.forced(measured)
            self._learned[by] = measured
        return self._learned[by]

    def method(self, row: Row, budget: Optional[int], say: Say, size: Optional[float] = None) -> Method:
        """size: its number of tokens, or Twilight's p, where that is not what goes with the budget. Layers and anchors are the budget's."""
        if budget is None:
            return Full(self.task.model.positions)
        if row.key == "twilight":
            return Twilight(budget, self.learned("twilight", say).p(budget) if size is None else size)
        tokens = budget if size is None else int(size)
        if row.by == "abi":
            return Library(tokens, self.layers, row.settings, self.task.model.layers)
        if row.family == "draft":
            return Rough(tokens, int(row.key.removeprefix("rough-")))
        if row.key == "tidal":
            return TidalDecode(tokens, self.layers)
        if row.key == "delta":
            return Delta(tokens, calibration.spread(self.learned("delta", say).mean(), DELTAS))
        if row.key in KASCADE:
            return Kascade(tokens, self.plan(budget, KASCADE[row.key], say))
        simple: dict[str, Callable[[int], Method]] = {
            "quest": Quest, "quest-spread": QuestSpread, "seer": Seer, "window": Window, "oracle": Oracle,
        }  # fmt: skip
        return simple[row.key](tokens)

    def _here(self, row: Row, budget: Optional[int], size: Optional[float], name: str, say: Say) -> dict[str, Any]:
        method = self.method(row, budget, say, size)
        counts = Counts(self.task.model, method)
        right: list[Array] = []
        lengths: list[Optional[tuple[int, bool]]] = []
        try:
            for i, problem in enumerate(self.problems):
                say(f"{name}: problem {i + 1} of {len(self.problems)}")
                prepared = self.prepared(problem)
                right.append(prepared.forced(method))
                if right[-1].all():
                    lengths.append((len(problem.solution) - 1, True))
                elif self.forced:
                    lengths.append(None)
                else:
                    with counts.paused():
                        written, ended = prepared.free(method, int(right[-1].argmin()), self.cap)
                    lengths.append((len(written), ended))
        finally:
            method.close()
        found = {**measure.answers(self.problems, right, lengths), **counts.result()}
        found["attended_first"] = None
        found["library"] = {"selection_layers": list(self.layers), "layers_from": "given"} if row.by == "abi" else None
        if isinstance(method, Kascade):
            found["plan"] = dataclasses.asdict(method.plan)
        if isinstance(method, (Delta, Twilight)):
            found["plan"] = {"layers": method.layers} if isinstance(method, Delta) else {"p": method.p}
        return found

    def _host(self, row: Row, budget: Optional[int], name: str, say: Say) -> dict[str, Any]:
        enable: Optional[dict[str, Any]] = None
        environment: dict[str, str] = {}
        if budget is not None:
            auto = row.key in ("lim-auto", "lim-profile", "lim-auto-mass")
            enable = {"budget": budget, **({} if auto else {"layers": self.layers})}
            if row.key == "lim-auto-mass":
                enable["policy"] = "mass"
            if row.key.startswith("lim-interval"):
                environment["LESSISMORE_INTERVAL"] = "2"
                environment["LESSISMORE_GUARD"] = "on" if row.key.endswith("guard") else "off"
            if row.key in ("lim-auto", "lim-profile"):
                environment["XDG_CACHE_HOME"] = self._profiles.name
            if row.key == "lim-auto":
                self._known.add(budget)
            if row.key == "lim-profile" and budget not in self._known:
                say(f"{name}: measuring")
                host.decode(self.task.gguf(), self.problems[:1], self.cap, enable, environment, lambda n: None)

        def done(n: int) -> None:
            say(f"{name}: problem {n} of {len(self.problems)}")

        return host.decode(self.task.gguf(), self.problems, self.cap, enable, environment, done)

    def head(self, made: dict[str, Any], budgets: Sequence[int], methods: Sequence[Row]) -> dict[str, Any]:
        """What stands before the results."""
        first, model = self.problems[0], self.task.model
        return {
            "format": FORMAT,
            "made": made,
            "task": {
                "name": self.task.folder.name,
                "problems": len(self.problems),
                "seeds": [self.seeds[0], self.seeds[-1]],
                "calibration_seeds": [self.calibration[0], self.calibration[-1]],
                "steps": self.task.steps,
                "prompt_tokens": len(first.prompt),
                "solution_tokens": len(first.solution) - 1,
                "layers": model.layers,
                "heads": model.heads,
                "kv_heads": model.kv_heads,
                "length_cap": self.cap,
            },
            "budgets": list(budgets),
            "methods": [dataclasses.asdict(row) for row in methods],
            "results": [],
        }


HEAD = ("method", "K", "exact", "95 %", "tokens right", "first wrong step", "attended", "read", "distinct", "worst loss", "length")


def cells(report: dict[str, Any]) -> list[list[str]]:
    """The table's rows as text, in the order of the methods, budget by budget."""
    names = {m["key"]: m["name"] for m in report["methods"]}
    order = {m["key"]: i for i, m in enumerate(report["methods"])}
    out = []
    for r in sorted(report["results"], key=lambda r: (r.get("equal", ""), r["budget"] or 0, order[r["method"]])):
        budget = "" if r["budget"] is None else str(r["budget"])
        if "equal" in r:
            size = "none" if r["size"] is None else f"p = {r['size']:.3f}" if r["method"] == "twilight" else f"{r['size']:.0f}"
            budget = f"{size} (bytes of {budget})"
        if "exact" not in r:
            out.append([names[r["method"]], budget, *[""] * (len(HEAD) - 2)])
            continue
        low, high = r["exact_interval"]
        steps, loss, length = sorted(r["first_wrong"]["steps"]), r["loss"], r["length"]
        worst = max(range(len(loss)), key=lambda i: loss[i]) if loss else 0
        attended = percent(r["attended"])
        if r["attended_first"] is not None:
            attended += f" ({percent(r['attended_first'])})"
        out.append(
            [
                names[r["method"]],
                budget,
                f"{r['exact']}/{r['problems']}",
                f"{100 * low:.0f}-{100 * high:.0f}",
                f"{100 * r['tokens_right']:.2f} %",
                f"{steps[len(steps) // 2]} ({steps[0]}-{steps[-1]})" if steps else "",
                attended,
                percent(r["read"]),
                "" if r["distinct"] is None else f"{r['distinct']:.0f}",
                f"{loss[worst]:.2f} at {worst}" if loss and loss[worst] > 0 else "",
                "" if length["mean"] is None else f"{length['mean']:.0f}",
            ]
        )
    return out


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
