"""The methods' rules: which tokens each head attends to. Written from the papers; sources in docs/comparison.md.

A token set is a mask [kv_heads or 1, group or 1, m, n] over the n tokens that the last of m queries sees; None stands
for everything. Queries are those of decode steps: each sees the tokens up to its own.
"""

from __future__ import annotations

from typing import Any, Optional, Sequence

import numpy as np

from . import device
from .weights import Array

PAGE, BLOCK = 16, 64
FAR = np.float32(1e30)  # no logit is as large


class Rows:
    """m queries of one layer, and what they see."""

    def __init__(self, layer: int, query: Array, key: Array, first: int) -> None:
        self.layer, self.query, self.key, self.first = layer, query, key, first
        self.m, self.n = query.shape[2], key.shape[1]
        self.visible = np.arange(first, first + self.m, like=key) + 1
        self._logits: Optional[Array] = None

    @property
    def logits(self) -> Array:
        """[kv_heads, group, m, n], scaled; -inf where a query does not see the token."""
        if self._logits is None:
            kv_heads, group, m, dim = self.query.shape
            scaled = (self.query * np.float32(dim**-0.5)).reshape(kv_heads, group * m, dim)
            logits = (scaled @ self.key.transpose(0, 2, 1)).reshape(kv_heads, group, m, self.n)
            hidden = np.arange(self.first, self.n, like=self.key) >= self.visible[:, None]
            np.copyto(logits[..., self.first :], -np.inf, where=hidden)
            self._logits = logits
        return self._logits

    def some(self, rows: Array) -> Rows:
        """Some of the queries."""
        return _Some(self, rows)


class _Some(Rows):
    def __init__(self, of: Rows, rows: Array) -> None:
        super().__init__(of.layer, of.query[:, :, rows], of.key, of.first)
        self.visible = of.visible[rows]
        self._logits = of.logits[:, :, rows]


def softmax(logits: Array) -> Array:
    p: Array = logits - logits.max(-1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(-1, keepdims=True)
    return p


def pooled(rows: Rows) -> Array:
    """[kv_heads, m, n]: the heads' softmax, averaged over each group; -inf where a query does not see the token."""
    p: Array = softmax(rows.logits).mean(1)
    np.copyto(p, -np.inf, where=rows.logits[:, 0] == -np.inf)
    return p


def attention(rows: Rows, value: Array, mask: Optional[Array]) -> Array:
    """Softmax over the tokens of a set."""
    logits = rows.logits
    if mask is not None and device.is_cuda(mask):
        logits = np.where(mask, logits, -FAR)
    elif mask is not None:  # far below whatever is in the set; NumPy's where() takes several times as long
        hidden = mask.astype(np.float32)
        hidden -= 1
        hidden *= FAR
        logits = logits + hidden
    p = logits - logits.max(-1, keepdims=True)
    np.exp(p, out=p)
    total = p.sum(-1, keepdims=True)
    kv_heads, group, m, n = p.shape
    out: Array = (p.reshape(kv_heads, group * m, n) @ value).reshape(kv_heads, group, m, -1) / total
    return out


def best(scores: Array, count: int) -> Array:
    """Mask of the `count` largest of the last axis; what is -inf is not among them. Ties: the lower
    position first."""
    n = scores.shape[-1]
    if count >= n:
        return scores > -np.inf
    limit = device.reaching(scores, count, False) if device.is_cuda(scores) else np.partition(scores, n - count, -1)[..., n - count, None]
    mask: Array = (scores >= limit) & (scores > -np.inf)
    many = np.count_nonzero(mask, -1) > count
    if many.any():  # ties at the limit: the lower positions
        many = np.nonzero(many)
        rows = mask[many]
        tied = scores[many] == limit[many]
        spare = count - np.count_nonzero(rows & ~tied, -1)[:, None]
        mask[many] = rows & (~tied | (np.cumsum(tied, -1) <= spare))
    return mask


def fewest(shares: Array, least: float) -> Array:
    """Mask of the fewest of the last axis that come to `least` of 1; of equal ones, all."""
    if device.is_cuda(shares):
        limit = device.reaching(shares, least, True)
    else:
        ranked = np.sort(shares, -1)[..., ::-1]
        sums = np.cumsum(ranked, -1, dtype=np.float64)
        count = np.minimum((sums < least).sum(-1, keepdims=True), shares.shape[-1] - 1)
        limit = np.take_along_axis(ranked, count, -1)
    mask: Array = (shares >= limit) & (shares > 0)
    return mask


BITS = 4 / 16  # of each key in 16 bits; its scale and offset are 16 bits each, 2 / dim more


def four_bits(rows: Rows) -> Rows:
    """The same queries over keys of 4 bits, each with a scale and an offset."""
    low = rows.key.min(-1, keepdims=True)
    step = np.maximum((rows.key.max(-1, keepdims=True) - low) / 15, np.float32(1e-12))
    rough = Rows(rows.layer, rows.query, low + np.rint((rows.key - low) / step) * step, rows.first)
    rough.visible = rows.visible
    return rough


class Method:
    """One method at one budget. choose() is asked layer by layer, in order, for the same queries."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def choose(self, rows: Rows) -> Optional[Array]:
        """The token sets of a layer."""
        raise NotImplementedError

    def scanned(self, layer: int) -> float:
        """Keys read for the choice in this layer, as a share of all; 1 where each is read anyway."""
        return 0.0

    def __call__(self, layer: int, query: Array, key: Array, value: Array, first: int) -> Array:
        rows = Rows(layer, query, key, first)
        mask = self.choose(rows)
        self.seen(rows, mask)
        return attention(rows, value, mask)

    def seen(self, rows: Rows, mask: Optional[Array]) -> None:
        """Told of every set; measure.py counts."""

    def close(self) -> None:
        """Gives back what it holds."""


class Full(Method):
    def choose(self, rows: Rows) -> None:
        return None


class Window(Method):
    """The first tokens and the newest (StreamingLLM)."""

    sinks = 4

    def choose(self, rows: Rows) -> Array:
        at = np.arange(rows.n, like=rows.key)
        last = rows.visible[:, None]
        mask = ((at < min(self.sinks, self.budget)) | (at >= last - (self.budget - self.sinks))) & (at < last)
        return mask[None, None]


class Oracle(Method):
    """Each head's own best tokens, which only the full computation knows."""

    def choose(self, rows: Rows) -> Array:
        return best(rows.logits, self.budget)


class TidalDecode(Method):
    """Layers 0 and 1 full; full attention and a choice at layer 2 and at the reselection layer, each query head for
    itself; the layers between attend to their heads' own last sets."""

    def __init__(self, budget: int, layers: Sequence[int]) -> None:
        super().__init__(budget)
        self.layers = tuple(layers)
        self._set: Optional[Array] = None

    def choose(self, rows: Rows) -> Optional[Array]:
        if rows.layer < self.layers[0]:
            return None
        if rows.layer in self.layers:
            self._set = best(rows.logits, self.budget)
            return None
        return self._set


class Quest(Method):
    """Pages of 16 tokens, their keys' least and largest value per channel, and the upper bound of a query's logit that
    follows. The current page is one of the pages that the budget allows."""

    dense = 2

    def choose(self, rows: Rows) -> Optional[Array]:
        if rows.layer < self.dense:
            return None
        kv_heads, group, m, dim = rows.query.shape
        full = rows.n // PAGE
        pages = rows.key[:, : full * PAGE].reshape(kv_heads, full, PAGE, dim)
        bound = self.scores(rows.query.reshape(kv_heads, group * m, dim), pages).reshape(kv_heads, group, m, full)
        current = (rows.visible - 1) // PAGE
        page, allowed = np.arange(full, like=rows.key), max(3, self.budget // PAGE) - 1
        np.copyto(bound, np.inf, where=self.kept(page, current[:, None], allowed))
        np.copyto(bound, -np.inf, where=page >= current[:, None])
        chosen = np.zeros((kv_heads, group, m, -(-rows.n // PAGE)), bool, like=bound)
        chosen[..., :full] = best(bound, allowed)
        np.copyto(chosen, True, where=np.arange(chosen.shape[-1], like=bound) == current[:, None])
        mask = np.repeat(chosen, PAGE, -1)[..., : rows.n]
        return mask & (np.arange(rows.n, like=mask) < rows.visible[:, None])

    def kept(self, page: Array, current: Array, allowed: int) -> Array:
        """Pages that are chosen whatever their score, besides the current one."""
        none: Array = page < np.zeros_like(current)
        return none

    def scores(self, query: Array, pages: Array) -> Array:
        """[kv_heads, queries, pages]: what a query expects of each page's keys."""
        bound: Array = np.maximum(query, 0) @ pages.max(2).transpose(0, 2, 1)
        bound += np.minimum(query, 0) @ pages.min(2).transpose(0, 2, 1)
        return bound

    def scanned(self, layer: int) -> float:
        return 2 / PAGE if layer >= self.dense else 0.0


class QuestSpread(Quest):
    """Quest, but a page's score is the logit of its keys' mean and, added, what a standard deviation of each channel makes.
    The first page and the newest ones are always chosen: in a mean, the first token is one of 16."""

    newest = 16  # pages, but no more than a quarter

    def kept(self, page: Array, current: Array, allowed: int) -> Array:
        kept: Array = (page == 0) | (page >= current - min(self.newest, allowed // 4) + 1)
        return kept

    def scores(self, query: Array, pages: Array) -> Array:
        mean: Array = query @ pages.mean(2).transpose(0, 2, 1)
        mean += np.abs(query) @ pages.std(2).transpose(0, 2, 1)
        return mean


class Delta(Method):
    """Layers below the first of `layers` and these attend to everything; there pages of 16 tokens are chosen for all heads,
    by the largest softmax that any head gives a token, summed over the page, the newest pages among them. The other layers
    attend to the last choice."""

    recent = 8  # pages that are kept in any case

    def __init__(self, budget: int, layers: Sequence[int]) -> None:
        super().__init__(budget)
        self.layers = tuple(layers)
        self._set: Optional[Array] = None

    def choose(self, rows: Rows) -> Optional[Array]:
        if rows.layer in self.layers:
            self._set = self._chosen(rows)
        return None if rows.layer <= self.layers[0] or rows.layer in self.layers else self._set

    def _chosen(self, rows: Rows) -> Array:
        count = -(-rows.n // PAGE)
        most = np.zeros((rows.m, count * PAGE), np.float32, like=rows.key)
        most[:, : rows.n] = softmax(rows.logits).max((0, 1))
        score = most.reshape(rows.m, count, PAGE).sum(-1)
        allowed = max(1, self.budget // PAGE)
        page, last = np.arange(count, like=score), (rows.visible[:, None] - 1) // PAGE
        np.copyto(score, np.inf, where=page > last - max(1, min(self.recent, allowed // 2)))
        np.copyto(score, -np.inf, where=page > last)
        mask = np.repeat(best(score, allowed), PAGE, -1)[:, : rows.n]
        return (mask & (np.arange(rows.n, like=mask) < rows.visible[:, None]))[None, None]


class Twilight(Method):
    """Per query head the fewest tokens whose softmax comes to a share p, by keys of 4 bits. How many they are is left to
    the head: budget is what p was found for."""

    dense = 2

    def __init__(self, budget: int, p: float) -> None:
        super().__init__(budget)
        self.p = p
        self._bits = 0.0

    def choose(self, rows: Rows) -> Optional[Array]:
        self._bits = BITS + 2 / rows.query.shape[3]
        if rows.layer < self.dense:
            return None
        return fewest(softmax(four_bits(rows).logits), self.p) & (rows.logits > -np.inf)

    def scanned(self, layer: int) -> float:
        return self._bits if layer >= self.dense else 0.0


class Seer(Method):
    """Blocks of 64 tokens for each KV head, the first and the last among them, in every layer; in place of the trained
    gate the truth: the attention that falls on a block, summed over the heads of the group."""

    def choose(self, rows: Rows) -> Array:
        count = -(-rows.n // BLOCK)
        mass = np.zeros((rows.key.shape[0], rows.m, count * BLOCK), np.float32, like=rows.key)
        mass[..., : rows.n] = softmax(rows.logits).sum(1)
        score = mass.reshape(*mass.shape[:2], count, BLOCK).sum(-1)
        block, last = np.arange(count, like=score), (rows.visible[:, None] - 1) // BLOCK
        np.copyto(score, -np.inf, where=block > last)
        allowed = max(1, self.budget // BLOCK)
        if allowed > 1:
            score[..., 0] = np.inf
        np.copyto(score, np.inf, where=block == last)
        mask = np.repeat(best(score, allowed), BLOCK, -1)[..., : rows.n]
        return (mask & (np.arange(rows.n, like=mask) < rows.visible[:, None]))[:, None]


class Kascade(Method):
    """Anchor layers choose by the softmax, averaged over the heads of a KV group, and attend to what they chose; the
    layers up to the next anchor attend to the sets of the anchor's KV heads that were found to suit theirs best.
    Layer 0 is an anchor and attends to everything."""

    def __init__(self, budget: int, plan: Any) -> None:
        super().__init__(budget)
        self.plan = plan
        self._set: Optional[Array] = None

    def choose(self, rows: Rows) -> Optional[Array]:
        if rows.layer in self.plan.anchors:
            self._set = best(pooled(rows), self.budget)
            return self._set[:, None] if rows.layer else None
        assert self._set is not None
        heads: Array = np.asarray(self.plan.heads[rows.layer], like=self._set)
        chosen: Array = self._set[heads][:, None]
        return chosen

    def scanned(self, layer: int) -> float:
        return 1.0 if layer in self.plan.anchors else 0.0


class Rough(Method):
    """LessIsMore with cheaper selection layers, which this library does not have: layers 0 and 1 full; every so many layers
    one set for all heads (4 first tokens, K/4 newest, ranked by the heads' summed softmax) is chosen by keys of 4 bits, and the
    layer that chooses attends to it as well."""

    dense, sinks = 2, 4

    def __init__(self, budget: int, every: int) -> None:
        super().__init__(budget)
        self.every = every
        self._set: Optional[Array] = None
        self._bits = 0.0

    def choose(self, rows: Rows) -> Optional[Array]:
        self._bits = BITS + 2 / rows.query.shape[3]
        if rows.layer < self.dense:
            return None
        if (rows.layer - self.dense) % self.every == 0:
            self._set = self._chosen(rows)
        return self._set

    def _chosen(self, rows: Rows) -> Array:
        score = softmax(four_bits(rows).logits).sum((0, 1))
        at, last = np.arange(rows.n, like=score), rows.visible[:, None]
        newest = -(-self.budget // 4) - self.sinks
        np.copyto(score, np.inf, where=(at < min(self.sinks, self.budget)) | (at >= last - newest))
        np.copyto(score, -np.inf, where=at >= last)
        return best(score, self.budget)[None, None]

    def scanned(self, layer: int) -> float:
        return self._bits if layer >= self.dense and (layer - self.dense) % self.every == 0 else 0.0
