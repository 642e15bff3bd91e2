"""Choices of selection layers for a quality target: tried on a text, and kept in a profile as the library keeps its own (docs/auto.md)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .._errors import Error
from ..settings import MAX_QUALITY_LAYERS
from . import _loss, _show, _text

POSITIONS = 96
FIRST = 2
TOLERANCE = 0.05  # attention that a choice may lose more which reads less
LEAST = 64  # trials before a choice can be taken
MEASURED = 129  # steps of a measurement, at most, for models of up to 126 layers
MEASURE = "Kullback-Leibler divergence of the next token's probabilities from the dense model's, in nats, of steps computed both ways"
Matrix = npt.NDArray[np.float64]


class Tried:
    """A choice, and what the next token's probabilities diverge by with it."""

    def __init__(self, layers: list[int], budget: int) -> None:
        self.layers, self.budget = layers, budget
        self.nats: list[float] = []

    def mean(self) -> tuple[float, float]:
        """And its standard error."""
        return float(np.mean(self.nats)), float(np.std(self.nats, ddof=1) / math.sqrt(len(self.nats)))

    def share(self, layers: int, tokens: int) -> float:
        """Of the tokens that a step attends to in all layers."""
        dense = self.layers[0] + len(self.layers)
        return (dense * tokens + (layers - dense) * min(tokens, self.budget)) / (layers * tokens)

    def kept(self) -> dict[str, Any]:
        nats = np.array(self.nats)
        return {
            "budget": self.budget, "layers": self.layers, "trials": len(nats), "nats": float(nats.sum()), "squares": float((nats**2).sum())
        }  # fmt: skip


def nested(loss: Matrix) -> list[list[int]]:
    """The best choices of 1, 2, … layers by the largest loss; within the tolerance the one that begins first."""
    n = len(loss)
    out = []
    for count in range(1, MAX_QUALITY_LAYERS + 1):
        ways = [way for first in range(FIRST, n - 1) if first + count <= max(n // 3, FIRST + count) and (way := _best(loss, first, count))]
        if ways:
            least = min(worst for worst, _ in ways)
            out.append(min((way[0], worst, way) for worst, way in ways if worst <= least + TOLERANCE)[2])
    return out


def _best(loss: Matrix, first: int, count: int) -> Optional[tuple[float, list[int]]]:
    n = len(loss)

    def between(i: int, k: int) -> tuple[float, float]:
        lost = loss[i + 1 : k, i]
        return (float(lost.max()), float(lost.sum())) if len(lost) else (0.0, 0.0)

    ways: dict[int, tuple[tuple[float, float], list[int]]] = {first: ((0.0, 0.0), [first])}
    for _ in range(count - 1):
        longer: dict[int, tuple[tuple[float, float], list[int]]] = {}
        for i, ((worst, total), way) in ways.items():
            for k in range(i + 1, n - 1):
                more = between(i, k)
                now = (max(worst, more[0]), total + more[1])
                if k not in longer or now < longer[k][0]:
                    longer[k] = now, [*way, k]
        ways = longer
    ends = []
    for i, ((worst, total), way) in ways.items():
        more = between(i, n)
        ends.append(((max(worst, more[0]), total + more[1]), way))
    if not ends:
        return None
    (worst, _), way = min(ends)
    return worst, way


def walk(walked: Union[_text.GGUF, _text.Transformers], kept: str, budget: int, prompt: int, positions: int) -> list[Tried]:
    """Has the library measure, then tries the choices at places of the text behind that, each against the dense model."""
    if positions < LEAST:
        raise ValueError(f"--positions {positions}: with --quality at least {LEAST} are needed")
    start, end = max(2 * budget, prompt), len(walked.tokens) - 1
    needed = start + MEASURED + positions
    if end < needed:
        raise ValueError(
            f"the text has {end + 1} tokens, a budget of {budget} and {positions} positions need {needed + 1} (--tokens makes more)"
        )
    walked.back(min(walked.length, start))
    walked.advance(start)
    while not os.path.exists(kept):
        if walked.length > start + MEASURED:
            raise Error("the library has not measured this model: it goes by rule")
        walked.step()
    with open(kept) as f:
        rows = json.load(f)["loss"]
    loss = np.zeros((len(rows) + 1, len(rows) + 1))
    for j, row in enumerate(rows):
        loss[j + 1, : j + 1] = row
    tried = [Tried(layers, budget) for layers in nested(loss)]
    with _show.progress(positions) as say:
        for i, place in enumerate(np.linspace(walked.length, end - 1, positions).astype(int)):
            walked.engine.ablate(-1)
            walked.advance(int(place))
            say("trying", i)
            walked.engine.ablate(0)
            dense = _loss.Reference(walked.step())
            walked.back(int(place))
            for of in tried:
                walked.engine.attempt(of.layers)
                of.nats.append(max(float(dense.nats(_loss.Said(walked.step()))), 0.0))
                walked.back(int(place))
    walked.engine.attempt()
    return tried


def profile(text: str, tried: list[Tried], target: float, reach: int) -> dict[str, Any]:
    """The profile that the library wrote, as one for a quality target. Raises Error where no choice keeps it."""
    found: dict[str, Any] = json.loads(text)
    layers, tokens = found["model"]["layers"], found["measured"]["tokens"]
    tried.sort(key=lambda of: of.share(layers, tokens))
    good = [of for of in tried if sum(of.mean()) <= target]
    if not good:
        best = min(tried, key=lambda of: of.mean())
        raise Error(
            f"no choice of up to {MAX_QUALITY_LAYERS} layers keeps {target:g} nats a token with {found['settings']['budget']} tokens: "
            f"the best, {best.layers}, loses {best.mean()[0]:.2g} ± {best.mean()[1]:.1g}"
        )
    found["fingerprint"] = _fingerprint(text, found["fingerprint"])
    found["settings"].update(selections=MAX_QUALITY_LAYERS, quality=True)
    found["choice"] = good[0].layers
    found["worst_loss"] = 0.0
    found["measured"]["reach"] = reach
    found["tried"] = {"measure": MEASURE, "target": target, "candidates": [of.kept() for of in tried]}
    return found


def _fingerprint(text: str, was: str) -> str:
    """The library's name for the profile's model under a target: a hash of what tells it, as the library writes it."""
    parts = re.match(r'.*?"model":\{(.*?)\},"settings":\{(.*?)\},"choice":', text, re.DOTALL)

    def named(settings: str) -> str:
        assert parts is not None
        return hashlib.sha256(f"{{{parts[1]},{settings}}}".encode()).hexdigest()[:16]

    if parts is None or named(parts[2]) != was:
        raise Error("the library's profile is written in another way than this package knows")
    return named(re.sub(r'"selections":\d+', f'"selections":{MAX_QUALITY_LAYERS},"quality":true', parts[2]))


def tell(result: dict[str, Any], tried: list[Tried]) -> str:
    head = ["layers", "nats a token", "trials"]
    table = [[",".join(map(str, of.layers)), "%.4f ± %.4f" % of.mean(), str(len(of.nats))] for of in tried]
    lines = [
        _show.table(head, table),
        "",
        f"for {result['target']:g} nats a token: layers {result['choice']}",
        f"profile: {result['profile']}",
    ]
    return "\n".join(lines)
