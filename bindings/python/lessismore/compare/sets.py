"""LessIsMore as a method of the NumPy model: attention and token sets are the library's, through the C ABI."""

from __future__ import annotations

from typing import Optional, Sequence

import numpy as np

from ..decoder import Decoder
from ..engine import Engine
from .device import host, is_cuda
from .methods import Method, Rows
from .weights import Array


class Library(Method):
    """Each query is a decode step of a decoder of its own: what one step attends to does not depend on the others.

    On a GPU the library, which computes on the CPU, is asked for the token sets alone.
    """

    def __init__(self, budget: int, layers: Sequence[int], policy: str, model_layers: int, sets_alone: Optional[bool] = None) -> None:
        """sets_alone: attention is the rules', too; None: where they compute on a GPU."""
        super().__init__(budget)
        self.layers, self._sets_alone = tuple(layers), sets_alone
        self._engine = Engine(model_layers, budget=budget, layers=layers, policy=policy, n_threads=1)
        self._decoders: list[Decoder] = []
        self._mask: Optional[Array] = None  # since the last layer that chose

    def choose(self, rows: Rows) -> Optional[Array]:
        """What the library attends to here."""
        if rows.layer <= self.layers[0] or rows.layer in self.layers:
            self._mask = None
            return None
        if self._mask is None:
            self._mask = self._sets(rows)
        return self._mask

    def _sets(self, rows: Rows) -> Array:
        mask = np.zeros((1, 1, rows.m, rows.n), bool)
        for i in range(rows.m):
            visible = rows.first + i + 1
            mask[0, 0, i, slice(visible) if visible <= self.budget else self._decoders[i].token_set()] = True
        return np.asarray(mask, like=rows.key)

    def __call__(self, layer: int, query: Array, key: Array, value: Array, first: int) -> Array:
        if not (is_cuda(query) if self._sets_alone is None else self._sets_alone):
            out = self._attended(layer, query, key, value, first, layer == 0)
            rows = Rows(layer, query, key, first)
            self.seen(rows, self.choose(rows))
            return out
        if layer in self.layers:
            self._attended(layer, query, key, value, first, layer == self.layers[0])
        return super().__call__(layer, query, key, value, first)

    def _attended(self, layer: int, query: Array, key: Array, value: Array, first: int, begins: bool) -> Array:
        """What the library computes; begins: as a step's first layer."""
        m = query.shape[2]
        while len(self._decoders) < m:
            self._decoders.append(self._engine.decoder())
        heads = host(query).transpose(2, 0, 1, 3).reshape(m, -1, query.shape[3])
        keys, values = host(key).transpose(1, 0, 2), host(value).transpose(1, 0, 2)
        out = np.empty_like(heads)
        for i, decoder in enumerate(self._decoders[:m]):
            if begins:
                decoder.reset()
            decoder.attend(layer, heads[i], keys[: first + i + 1], values[: first + i + 1], out=out[i])
        return np.asarray(out.reshape(m, *query.shape[:2], -1).transpose(1, 2, 0, 3), like=query)

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.close()
        self._engine.close()
