"""How far a model's next-token probabilities are from those of a reference, and how sure that is."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BLOCK = 32  # steps whose losses are drawn together: neighbours are alike
DRAWS = 1000
LEAST = -1e30  # stands for the logit of a token that cannot come


def _finite(logits: npt.NDArray[Any]) -> Floats:
    out: Floats = np.maximum(logits.astype(np.float64), LEAST)
    return out


def log_sum(logits: Floats) -> Floats:
    """The logarithm of the sum of exp(logits), over the last axis."""
    most = logits.max(-1)
    out: Floats = most + np.log(np.exp(logits - most[..., None]).sum(-1))
    return out


class Said:
    """What a model says comes next, at some places of a text: logits with the vocabulary as the last axis."""

    def __init__(self, logits: npt.NDArray[Any]) -> None:
        self.logits = _finite(logits)
        self.log_sum = log_sum(self.logits)
        self.best: npt.NDArray[np.int64] = self.logits.argmax(-1)

    def surprise(self, following: npt.NDArray[np.int64]) -> Floats:
        """Nats of the tokens that do come next, one for each place."""
        out: Floats = self.log_sum - np.take_along_axis(self.logits, following[..., None], -1)[..., 0]
        return out


class Reference(Said):
    """What others are held against."""

    def __init__(self, logits: npt.NDArray[Any]) -> None:
        super().__init__(logits)
        self._p: Floats = np.exp(self.logits - self.log_sum[..., None])
        self._own: Floats = np.einsum("...v,...v->...", self._p, self.logits) - self.log_sum

    def nats(self, other: Said) -> Floats:
        """Kullback-Leibler divergence of the other's probabilities from these, in nats."""
        out: Floats = np.maximum(0.0, self._own - np.einsum("...v,...v->...", self._p, other.logits) + other.log_sum)
        return out


def interval(of: npt.NDArray[Any], statistic: Callable[[Any], Any]) -> list[float]:
    """95 % of a mean's statistic: steps are drawn again, in runs, with the same draw for the same number of them."""
    size = max(1, min(BLOCK, len(of) // 8))
    count = len(of) // size
    means = of[: count * size].reshape(count, size).mean(1)
    drawn = means[np.random.default_rng(0).integers(0, count, (DRAWS, count))].mean(1)
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    return [float(low), float(high)]


def summary(nats: npt.NDArray[Any], same: npt.NDArray[Any]) -> dict[str, Any]:
    """Divergences of steps in nats, and in which of them the best token is the same (1) or not (0), for a report."""
    return {
        "mean": float(nats.mean()),
        "interval": interval(nats, lambda x: x),
        "median": float(np.median(nats)),
        "p99": float(np.quantile(nats, 0.99)),
        "most": float(nats.max()),
        "same": float(same.mean()),
        "same_interval": interval(same, lambda x: x),
    }
