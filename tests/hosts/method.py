"""The method without the library and without a host: the reasoner in NumPy, token sets from tests/python/reference.py.

What it does not solve is beyond the method at that budget; it tells such a problem from a fault of ours.
"""

from __future__ import annotations

import sys

import hostlib
import numpy as np
from checks import SPARSE

sys.path.insert(0, str(hostlib.ROOT / "tests" / "python"))
import reference  # noqa: E402

from lessismore.compare.methods import Full, Method  # noqa: E402
from lessismore.compare.model import Model  # noqa: E402

RECENCY, SINK_TOKENS = 0.25, 4  # the library's defaults
BLOCK = 256


class Reference(Method):
    """One query a call."""

    def __init__(self, budget: int):
        super().__init__(budget)
        self.layers = [int(layer) for layer in SPARSE["LESSISMORE_LAYERS"].split(",")]
        self.set = None

    def choose(self, rows):
        if rows.layer < self.layers[0]:
            return None
        if rows.layer in self.layers:
            logits = rows.logits.reshape(-1, rows.n).astype(np.float64)
            self.set = np.zeros((1, 1, 1, rows.n), bool)
            self.set[..., reference.select(logits, self.budget, RECENCY, SINK_TOKENS)] = True
            return None
        return self.set


def shift(model: Model, cache, keep: int, discard: int) -> None:
    """Drops the tokens from `keep` on and moves those behind them up, as a host's context shift does."""
    n, half = cache.length - discard, model.dim // 2
    angles = discard * model._rates
    key, cos, sin = cache.key[:, :, keep + discard : cache.length], np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = key[..., :half], key[..., half:]
    cache.key[:, :, keep:n] = np.concatenate([a * cos + b * sin, b * cos - a * sin], -1)
    cache.value[:, :, keep:n] = cache.value[:, :, keep + discard : cache.length].copy()
    cache.length = n


def solves(*, prompt: list[int], want: list[int], budget: int, context: int, keep: int = 0, discard: int = 0) -> bool:
    """Whether decoding greedily behind a prompt gives `want`; with something to discard, a shift comes when the context is full."""
    model = Model(hostlib.ROOT / "tests" / "data" / "reasoner")
    cache, dense, sparse = model.cache(), Full(budget), Reference(budget)
    for i in range(0, len(prompt), BLOCK):
        logits = model.run(prompt[i : i + BLOCK], cache, dense)
    for token in want:
        if int(logits[-1].argmax()) != token:
            return False
        if cache.length == context - 1 and discard:
            shift(model, cache, keep, discard)
        logits = model.run([token], cache, sparse)
    return True
