"""What a method does to the answers, and what it reads for them, by the rules in the NumPy model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, Callable, Iterator, Optional, Sequence

import numpy as np

from .device import host
from .methods import Full, Method, Rows, best, softmax
from .model import Cache, Model
from .weights import Array

EVERY = 8  # of the queries, those whose loss is measured
CLOSE = 0.004  # of the bytes, how near a size's have to come


@dataclasses.dataclass(frozen=True)
class Problem:
    seed: int
    prompt: list[int]
    solution: list[int]  # its end token included
    step: list[int]  # of each of them, the step of the chain that it belongs to


def interval(solved: float, of: int) -> list[float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.959964, solved / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return [round(max(0.0, (middle + sign * half) / (1 + z * z / of)), 4) for sign in (-1, 1)]


class Prepared:
    """A problem behind its prompt, which is computed densely."""

    def __init__(self, model: Model, problem: Problem, room: Optional[int] = None) -> None:
        """room: tokens, prompt and all, that are written behind each other at most; None: as many as the model has positions."""
        self.model, self.problem, self.cache = model, problem, model.cache(room)
        dense = Full(0)
        for start in range(0, len(problem.prompt), model.chunk):
            said = model.next(problem.prompt[start : start + model.chunk], self.cache, dense)
        self.first = int(said[-1])

    def _back(self, tokens: int) -> Cache:
        self.cache.length = len(self.problem.prompt) + tokens
        return self.cache

    def forced(self, method: Method) -> Array:
        """For each token of the solution, whether the method writes it behind those before it."""
        tokens, cache = self.problem.solution, self._back(0)
        said = [np.array([self.first])]
        for start in range(0, len(tokens) - 1, self.model.chunk):
            said.append(self.model.next(tokens[start : min(start + self.model.chunk, len(tokens) - 1)], cache, method))
        right: Array = np.concatenate(said) == tokens
        return right

    def free(self, method: Method, right: int, cap: int) -> tuple[list[int], bool]:
        """Greedy decoding whose first `right` tokens are the solution's, and in the cache as the method left them.

        Returns what was generated, without an end token, and whether it came.
        """
        solution, cache = self.problem.solution, self._back(max(0, right - 1))
        written = list(solution[:right])
        token = self.first if right == 0 else -1
        while True:
            if token < 0:
                token = int(self.model.next(written[-1:], cache, method)[0])
            if token == solution[-1]:
                return written, True
            if len(written) == cap:
                return written, False
            written.append(token)
            token = -1


class Counts:
    """What a method attends to and reads; attach it to a method and run forced()."""

    def __init__(self, model: Model, method: Method, losses: bool = True) -> None:
        self.method, self._losses = method, losses
        shape = (model.layers, model.heads)
        self.visible = self.attended = self.read = 0.0
        self.rows, self.most = 0, 0
        self.tokens = self.distinct = self.distinct_rows = 0.0
        self.loss, self.loss_rows = np.zeros(shape), 0
        self._on = True
        method.seen = self._seen  # type: ignore[method-assign]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._on = False
        yield
        self._on = True

    def _seen(self, rows: Rows, mask: Optional[Array]) -> None:
        if not self._on:
            return
        visible = float(rows.visible.sum())
        self.visible += visible
        which = np.arange(-rows.first % EVERY, rows.m, EVERY, like=rows.key)
        if rows.layer == 0:
            self.loss_rows += len(which)
        if mask is None:
            self.attended += visible
            self.read += visible
            return
        count = np.count_nonzero(mask, -1)
        attended = float(count.mean((0, 1)).sum())
        self.attended += attended
        self.tokens += attended
        self.most = max(self.most, int(count.max()))
        distinct = mask.any(1).sum(-1).mean(0)
        scanned = self.method.scanned(rows.layer)
        keys = rows.visible if scanned == 1 else distinct + scanned * rows.visible
        self.read += float((keys + distinct).sum()) / 2
        self.distinct += float(distinct.sum())
        self.distinct_rows += rows.m
        if not len(which) or not self._losses:
            return
        p = softmax(rows.some(which).logits)
        own = (p * best(p, self.method.budget)).sum(-1)
        kept = (p * mask[:, :, which]).sum(-1)
        self.loss[rows.layer] += host(np.maximum(own - kept, 0).sum(-1).reshape(-1))

    def result(self) -> dict[str, Any]:
        return {
            "attended": self.attended / self.visible,
            "tokens": self.tokens / self.distinct_rows if self.distinct_rows else None,
            "read": self.read / self.visible,
            "distinct": self.distinct / self.distinct_rows if self.distinct_rows else None,
            "most_attended": self.most or None,
            "loss": (self.loss.max(1) / max(1, self.loss_rows)).tolist(),
        }


def answers(problems: Sequence[Problem], right: Sequence[Array], lengths: Sequence[Optional[tuple[int, bool]]]) -> dict[str, Any]:
    """The part of a result that tells how the problems went. lengths: None where nobody looked; whether it ended."""
    exact = [bool(r.all()) for r in right]
    tokens = [int(r.argmin()) for r, e in zip(right, exact) if not e]
    steps = [p.step[int(r.argmin())] for p, r, e in zip(problems, right, exact) if not e]
    known = [of for of in lengths if of is not None]
    return {
        "problems": len(problems),
        "exact": sum(exact),
        "exact_interval": interval(sum(exact), len(exact)),
        "tokens_right": float(np.concatenate(list(right)).mean()),
        "first_wrong": {"steps": steps, "tokens": tokens},
        "length": {
            "of": len(known),
            "mean": sum(n for n, _ in known) / len(known) if known else None,
            "capped": sum(not ended for _, ended in known),
        },
        "right_problems": [int(e) for e in exact],
    }


def solve(of: Callable[[float], float], target: float, low: float, high: float) -> Optional[float]:
    """Where a rising function of a size comes to the target; whole sizes where `low` is whole. None: it is above everywhere."""
    whole = isinstance(low, int)
    below, above = of(low), of(high)
    if below > target * (1 + CLOSE):
        return None
    near, distance = (low, abs(below - target)) if abs(below - target) < abs(above - target) else (high, abs(above - target))
    for turn in range(16):
        if distance <= CLOSE * target or above <= below or high - low <= whole:
            break
        share = (target - below) / (above - below) if turn % 2 == 0 else 0.5  # the latter for functions that are steep at one end
        size = low + min(0.97, max(0.03, share)) * (high - low)
        size = min(high - 1, max(low + 1, round(size))) if whole else size
        value = of(size)
        if abs(value - target) < distance:
            near, distance = size, abs(value - target)
        if value < target:
            low, below = size, value
        else:
            high, above = size, value
    return near
