"""What DELTA and Twilight learn from a dense pass: the layers that choose, and the share of attention that K tokens hold."""

from __future__ import annotations

from typing import Optional

import numpy as np

from .device import host
from .methods import Full, Rows, Twilight, softmax
from .weights import Array

EVERY = 4  # of the queries, those that are looked at
FIRST = 2  # DELTA's first selection layer
APART = 4  # layers between two of them, and behind the last one, at least, as in the authors' closest pair


class Shift(Full):
    """A dense pass that tells how far a layer's attention, mean of the heads, is from the last layer's: 1 - cosine."""

    def __init__(self, layers: int) -> None:
        super().__init__(0)
        self.sum, self.count = np.zeros(layers), 0
        self._last: Optional[Array] = None

    def seen(self, rows: Rows, mask: Optional[Array]) -> None:
        which = np.arange(-rows.first % EVERY, rows.m, EVERY, like=rows.key)
        if not len(which):
            return
        map_ = softmax(rows.some(which).logits).mean((0, 1))
        map_ /= np.linalg.norm(map_, axis=-1, keepdims=True)
        if rows.layer == 0:
            self.count += len(which)
        else:
            assert self._last is not None
            self.sum[rows.layer] += float((1 - (map_ * self._last).sum(-1)).sum())
        self._last = map_

    def mean(self) -> Array:
        return self.sum / self.count


def spread(shift: Array, count: int) -> list[int]:
    """So many layers, FIRST among them; the others where the shift is largest, none is near, and some layers are left to serve."""
    chosen = [FIRST]
    for layer in np.argsort(-shift[: len(shift) - APART], kind="stable"):
        if len(chosen) < count and layer > FIRST and all(abs(layer - c) >= APART for c in chosen):
            chosen.append(int(layer))
    return sorted(chosen)


class Shares(Full):
    """A dense pass that tells how many tokens hold a share p of a head's attention, mean of heads and of layers that are sparse."""

    grid = np.concatenate([np.arange(50, 90), np.arange(90, 99, 0.2), np.arange(99, 99.995, 0.01)]) / 100

    def __init__(self) -> None:
        super().__init__(0)
        self.sum, self.count = np.zeros(len(self.grid)), 0

    def seen(self, rows: Rows, mask: Optional[Array]) -> None:
        which = np.arange(-rows.first % EVERY, rows.m, EVERY, like=rows.key)
        if rows.layer < Twilight.dense or not len(which):
            return
        shares = np.sort(softmax(rows.some(which).logits), -1)[..., ::-1].reshape(-1, rows.n)
        sums = host(np.cumsum(shares, -1, dtype=np.float64))
        for row in sums:
            self.sum += np.minimum(np.searchsorted(row, self.grid) + 1, rows.n)
        self.count += len(sums)

    def p(self, tokens: int) -> float:
        """What has so many tokens attended to on average; the largest of the grid where even that needs fewer."""
        return float(np.interp(tokens, self.sum / self.count, self.grid))
