"""Methods held against each other on a text: a real model goes on with it behind a long context, token by token.

The context is computed densely, once. Then each method computes the same tokens behind it, all of them given, and what it
says comes next is held against what full attention says there (see lessismore.cli._loss). Facts that were hidden in the
context are asked for behind them; the answers are free running, since a wrong token is a wrong answer.

Every method is run with K tokens, and again with as many bytes as LessIsMore reads with K (`equal`): then its own number of
tokens is what brings its bytes there, found on the tokens before those that are measured. There, too, the library measures
the model's layers, Kascade and DELTA find their anchors, and Twilight its p.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import Any, Callable, Iterator, Optional, Sequence

import numpy as np

from ..cli import _loss, _needles
from ..engine import Engine
from . import calibration, kascade
from .device import host
from .measure import Counts, solve
from .methods import Delta, Full, Kascade, Method, Oracle, Quest, QuestSpread, Rough, Rows, Seer, TidalDecode, Twilight, Window, attention
from .model import Cache, Model
from .sets import Library
from .table import Row, drafts
from .weights import Array

SETTLE = 256  # tokens that the measurements before may take
BASE = "lim-auto"  # whose bytes the others get
AUTO: dict[str, dict[str, Any]] = {"lim-auto": {}, "lim-2": {"selections": 2}, "lim-5": {"selections": 5}, "lim-mass": {"policy": "mass"}}
ANCHORS, DELTAS = 5, 3  # of Kascade on Qwen3-8B and of DELTA, by their authors
CALIBRATED = 512  # tokens before those that are measured on which anchors are found …
PROBED = 16  # … and those of them on which bytes are
CHUNK = 128  # tokens that are computed at once
PIECE = 32  # tokens whose logits are compared at once
Say = Callable[[str], None]


def rows(given: Optional[Sequence[int]]) -> list[Row]:
    """given: selection layers, for a row of LessIsMore with these."""
    ours, free = "lessismore", "training-free"
    told = ",".join(map(str, given or []))
    return [
        Row("full", "full attention", "reference", "rules", ""),
        Row("stock", "full attention, the host's own", "reference", "host", "the noise: two ways to compute the same"),
        Row("lim-auto", "LessIsMore, auto", ours, "abi", "found by measuring: one selection layer for six at most, or two"),
        Row("lim-2", "LessIsMore, auto, two layers", ours, "abi", "two at most"),
        Row("lim-5", "LessIsMore, auto, five layers", ours, "abi", "five at most"),
        Row("lim-mass", "LessIsMore, auto, mass", ours, "abi", "ranked by the heads' summed softmax"),
        Row("lim-rule", "LessIsMore, the paper's layers", ours, "abi", "the third layer, and a third of the way up"),
        *([Row("lim", f"LessIsMore, layers {told}", ours, "abi", "given")] if given else []),
        *drafts(),
        Row("tidal", "TidalDecode", free, "rules", "LessIsMore's layers; per query head"),
        Row("quest", "Quest", free, "rules", "pages of 16; layers 0 and 1 full"),
        Row("quest-spread", "Quest, mean + deviation", free, "rules", "pages of 16, the first and the newest kept; layers 0 and 1 full"),
        Row("delta", "DELTA", free, "rules", f"pages of 16, 8 newest; {DELTAS} selection layers, by likeness"),
        Row("kascade", "Kascade", free, "rules", f"{ANCHORS} anchors by calibration at K"),
        Row("twilight", "Twilight-like top p", free, "rules", "p for K tokens on average; layers 0 and 1 full"),
        Row("seer", "SeerAttention-R, oracle gate", "stand-in", "rules", "blocks of 64 by true mass"),
        Row("window", "window", "floor", "rules", "4 first tokens, the newest K - 4"),
        Row("oracle", "oracle, per head", "ceiling", "rules", "true top K of every head in every layer"),
    ]


@dataclasses.dataclass(frozen=True)
class Course:
    """What is read, what it goes on with, and what is asked for behind it."""

    prompt: list[int]
    following: list[int]  # SETTLE and `steps` tokens, and one more
    steps: int
    needles: list[_needles.Needle]

    def room(self) -> int:
        return len(self.prompt) + SETTLE + self.steps + max((len(n.question) + len(n.answer) for n in self.needles), default=0)


class _Watched(Full):
    """A dense pass beside which engines measure the layers, each for itself."""

    def __init__(self, engines: dict[Any, Engine]) -> None:
        super().__init__(0)
        self._decoders = {name: engine.decoder() for name, engine in engines.items()}
        self.left = set(self._decoders)

    def __call__(self, layer: int, query: Array, key: Array, value: Array, first: int) -> Array:
        heads = host(query[:, :, 0]).reshape(-1, query.shape[3])
        keys, values = host(key).transpose(1, 0, 2), host(value).transpose(1, 0, 2)
        for name in self.left:
            self._decoders[name].attend(layer, heads, keys, values)
        return attention(Rows(layer, query, key, first), value, None)

    def close(self) -> None:
        for decoder in self._decoders.values():
            decoder.close()


class Stretch:
    """One context of a text, and each method behind it."""

    def __init__(
        self, model: Model, course: Course, budgets: Sequence[int], wanted: Sequence[str], given: Optional[Sequence[int]], say: Say
    ) -> None:
        """wanted: keys of rows(); given: layers of the row "lim"."""
        self.model, self.course, self.budgets, self._given = model, course, budgets, given
        self.cache: Cache = model.cache(course.room())
        self.layers: dict[tuple[str, int], list[int]] = {}  # by row and K
        for start in range(0, len(course.prompt), CHUNK):
            say(f"{len(course.prompt)} tokens: reading them")
            model.run(course.prompt[start : start + CHUNK], self.cache, Full(0), 0)
        say(f"{len(course.prompt)} tokens: finding layers")
        self.settled = self._find({BASE, *wanted} & set(AUTO))
        self.start = len(course.prompt) + self.settled
        self.tokens = course.following[self.settled :][: course.steps]
        self.next = np.array(course.following[self.settled + 1 :][: course.steps])
        self._likeness: dict[int, Array] = {}
        self._shift: Optional[Array] = None
        self._shares: Optional[calibration.Shares] = None
        self._target: dict[int, float] = {}
        logits, self._facts = self._said(Full(0), None)
        self._reference = [_loss.Reference(logits[i : i + PIECE]) for i in range(0, len(logits), PIECE)]

    # ---- before what is measured ----

    def _find(self, wanted: set[str]) -> int:
        """Has the library measure the layers on the tokens behind the context; how many that takes."""
        engines = {(key, k): self._engine(budget=k, **AUTO[key]) for key in sorted(wanted) for k in self.budgets}
        watched, settled = _Watched(engines), 0
        try:
            while watched.left:
                if settled == SETTLE:
                    name, k = min(watched.left)
                    raise ValueError(f"a budget of {k}: its layers are not found within {SETTLE} tokens; the context is too short for it")
                self.model.run(self.course.following[settled : settled + 1], self.cache, watched, 0)
                settled += 1
                for name in list(watched.left):
                    (context,) = engines[name].report()["contexts"]
                    if context["layers_from"] == "measured":
                        self.layers[name] = context["selection_layers"]
                        watched.left.discard(name)
        finally:
            watched.close()
            for engine in engines.values():
                engine.close()
        return settled

    def _engine(self, **settings: Any) -> Engine:
        return Engine(self.model.layers, n_threads=1, guard=0, profile="off", **settings)

    def _before(self, method: Method, count: int) -> None:
        """Runs a method over so many tokens before those that are measured."""
        tokens = [*self.course.prompt, *self.course.following[: self.settled]][-count:]
        self.cache.length = self.start - len(tokens)
        for i in range(0, len(tokens), CHUNK):
            self.model.run(tokens[i : i + CHUNK], self.cache, method, 0)

    @contextlib.contextmanager
    def _dense_again(self) -> Iterator[None]:
        """What comes before stays as full attention computed it, whatever is tried on it."""
        place = slice(self.start - PROBED, self.start)
        key, value = self.cache.key[:, :, place].copy(), self.cache.value[:, :, place].copy()
        try:
            yield
        finally:
            self.cache.key[:, :, place], self.cache.value[:, :, place] = key, value

    def _counted(self, method: Method) -> dict[str, Any]:
        counts = Counts(self.model, method, losses=False)
        try:
            with self._dense_again():
                self._before(method, PROBED)
        finally:
            method.close()
        return counts.result()

    def likeness(self, budget: int) -> Array:
        if budget not in self._likeness:
            measured = kascade.Likeness(budget, self.model.layers, self.model.kv_heads)
            self._before(measured, CALIBRATED)
            self._likeness[budget] = measured.mean()
        return self._likeness[budget]

    def shares(self) -> calibration.Shares:
        if self._shares is None:
            self._shares = calibration.Shares()
            self._before(self._shares, CALIBRATED)
        return self._shares

    def delta_layers(self) -> list[int]:
        if self._shift is None:
            measured = calibration.Shift(self.model.layers)
            self._before(measured, CALIBRATED)
            self._shift = measured.mean()
        return calibration.spread(self._shift, DELTAS)

    # ---- a method, and its size ----

    def method(self, key: str, k: int, size: float) -> Method:
        """size: its number of tokens, or Twilight's p. Layers and anchors are those for K."""
        if key == "twilight":
            return Twilight(k, size)
        budget = int(size)
        if key in AUTO or key == "tidal":
            layers = self.layers[BASE if key == "tidal" else key, k]
            return (
                TidalDecode(budget, layers)
                if key == "tidal"
                else Library(budget, layers, AUTO[key].get("policy", "union"), self.model.layers)
            )
        if key in ("lim", "lim-rule"):
            layers = list(self._given or []) if key == "lim" else [2, self.model.layers // 3]
            return Library(budget, layers, "union", self.model.layers)
        if key.startswith("rough-"):
            return Rough(budget, int(key.removeprefix("rough-")))
        if key == "delta":
            return Delta(budget, self.delta_layers())
        if key == "kascade":
            likeness = self.likeness(k)
            return Kascade(budget, kascade.plan(likeness, kascade.anchor_layers(kascade.matched(likeness), ANCHORS)))
        simple: dict[str, Callable[[int], Method]] = {
            "quest": Quest, "quest-spread": QuestSpread, "seer": Seer, "window": Window, "oracle": Oracle,
        }  # fmt: skip
        return simple[key](budget)

    def size(self, key: str, k: int, equal: str) -> Optional[float]:
        """What makes it attend to K tokens, or read the bytes that LessIsMore reads with K; None: it cannot read as few."""
        if equal == "tokens" and key != "twilight":
            return k
        if equal == "tokens":
            return self.shares().p(k)
        if key == BASE:
            return k
        if k not in self._target:
            self._target[k] = self._counted(self.method(BASE, k, k))["read"]
        ends = (0.05, 0.9999) if key == "twilight" else (16, self.start)
        return solve(lambda size: self._counted(self.method(key, k, size))["read"], self._target[k], *ends)

    # ---- what is measured ----

    def _said(self, method: Method, counts: Optional[Counts]) -> tuple[Array, list[bool]]:
        """Logits behind each token, and which facts it knows behind all of them."""
        self.cache.length = self.start
        said = [self.model.run(self.tokens[i : i + CHUNK], self.cache, method) for i in range(0, len(self.tokens), CHUNK)]
        with counts.paused() if counts else contextlib.nullcontext():
            return np.concatenate(said), [self._knows(method, needle) for needle in self.course.needles]

    def _knows(self, method: Method, needle: _needles.Needle) -> bool:
        self.cache.length = self.start + len(self.tokens)
        asked = [*needle.question, *needle.answer][:-1]
        logits = self.model.run(asked, self.cache, method, len(needle.answer))
        return bool((logits.argmax(-1) == needle.answer).all())

    def reference(self) -> dict[str, Any]:
        surprise = np.concatenate([of.surprise(n) for of, n in zip(self._reference, self._pieces(self.next))])
        return {"method": "full", "budget": None, **_perplexity(surprise), "attended": 1.0, "read": 1.0, "facts": self._facts}

    def result(self, key: str, k: int, equal: str) -> dict[str, Any]:
        """One method's, at one budget. read is null where it cannot read as few bytes as it should."""
        begun = time.monotonic()
        size = self.size(key, k, equal)
        head = {"method": key, "budget": k, "equal": equal, "size": size}
        if size is None:
            return {**head, "read": None, "seconds": round(time.monotonic() - begun, 1)}
        method = self.method(key, k, size)
        counts = Counts(self.model, method)
        try:
            logits, facts = self._said(method, counts)
        finally:
            method.close()
        found = {**head, **self.held(logits), "facts": facts, **counts.result()}
        plan = getattr(method, "plan", None)
        found["layers"] = list(plan.anchors if plan else getattr(method, "layers", ()))
        return {**found, "seconds": round(time.monotonic() - begun, 1)}

    def held(self, logits: Array) -> dict[str, Any]:
        """What logits behind the same tokens come to, against full attention's."""
        pieces = [(of, _loss.Said(part), n) for of, part, n in zip(self._reference, self._pieces(logits), self._pieces(self.next))]
        nats = np.concatenate([of.nats(said) for of, said, _ in pieces])
        same = np.concatenate([of.best == said.best for of, said, _ in pieces]).astype(float)
        surprise = np.concatenate([said.surprise(n) for _, said, n in pieces])
        return {
            **_perplexity(surprise),
            "nats": {**_loss.summary(nats, same), "steps": [round(float(x), 7) for x in nats]},
        }

    @staticmethod
    def _pieces(of: Array) -> list[Array]:
        return [of[i : i + PIECE] for i in range(0, len(of), PIECE)]


def _perplexity(surprise: Array) -> dict[str, Any]:
    return {"perplexity": math.exp(surprise.mean()), "perplexity_interval": _loss.interval(surprise, np.exp)}


def ahead(result: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """How many nats a token a result is behind another one, step by step; below 0 where it is ahead."""
    more = np.array(result["nats"]["steps"]) - np.array(base["nats"]["steps"])
    return {"mean": float(more.mean()), "interval": _loss.interval(more, lambda x: x)}
