"""Kascade's plan, made offline on problems that are not compared: anchor layers by dynamic programming, heads by likeness."""

from __future__ import annotations

import dataclasses
from typing import Optional, Sequence

import numpy as np

from .device import host
from .methods import Full, Rows, best, pooled
from .weights import Array

EVERY = 16  # queries of the calibration problems


@dataclasses.dataclass(frozen=True)
class Plan:
    anchors: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]  # per layer and KV head: whose set of the anchor it takes


class Likeness(Full):
    """A dense pass that compares the layers: how much of what layer b's KV head would keep the set of layer a's keeps."""

    def __init__(self, budget: int, layers: int, kv_heads: int) -> None:
        super().__init__(budget)
        self.sum = np.zeros((layers, layers, kv_heads, kv_heads))  # [a, b, head of a, head of b]
        self.count = 0
        self._sets: list[Array] = []

    def seen(self, rows: Rows, mask: Optional[Array]) -> None:
        which = np.arange(-rows.first % EVERY, rows.m, EVERY, like=rows.key)
        if not len(which):
            return
        some = rows.some(which)
        p = pooled(some)
        if rows.layer == 0:
            self._sets = []
            self.count += len(which)
        self._sets.append(best(p, self.budget))
        p = np.maximum(p, 0)
        own = (p * self._sets[-1]).sum(-1)
        for a, of in enumerate(self._sets):
            kept = np.einsum("bmn,amn->abm", p, of.astype(np.float32))
            self.sum[a, rows.layer] += host((kept / own).sum(-1))

    def mean(self) -> Array:
        return self.sum / self.count


def plan(likeness: Array, chosen: Sequence[int]) -> Plan:
    """Which heads' sets the layers take from these anchors. likeness: [layers, layers, kv_heads, kv_heads], as above."""
    heads = []
    for b in range(len(likeness)):
        a = max(c for c in chosen if c <= b)
        heads.append(tuple(int(h) for h in likeness[a, b].argmax(0)))
    return Plan(tuple(chosen), tuple(heads))


def matched(likeness: Array) -> Array:
    """[a, b]: each head of layer b with the one of layer a that suits it best, mean of the heads."""
    best_of: Array = likeness.max(2).mean(-1)
    return best_of


def anchor_layers(value: Array, count: int) -> Sequence[int]:
    """The `count` layers, 0 among them, for which the sum of value[anchor of b, b] over all layers b is largest; the
    anchor of b is the last one that is not behind it."""
    layers = len(value)
    segment = np.array([[value[a, a:end].sum() for end in range(layers + 1)] for a in range(layers)])
    total = segment[0].copy()  # one anchor: layers 0 ... end - 1
    total[0] = -np.inf
    back: list[list[int]] = []
    for _ in range(count - 1):
        now, came = np.full(layers + 1, -np.inf), [0] * (layers + 1)
        for end in range(1, layers + 1):
            for a in range(1, end):
                if total[a] + segment[a, end] > now[end]:
                    now[end], came[end] = total[a] + segment[a, end], a
        total = now
        back.append(came)
    chosen, end = [], layers
    for came in reversed(back):
        end = came[end]
        chosen.append(end)
    return [0, *reversed(chosen)]
