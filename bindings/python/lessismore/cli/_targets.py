"""Choices of selection layers for a quality target, tried on a text: which ones, and what follows, is the library's (docs/auto.md)."""

from __future__ import annotations

import json
import math
import os
from typing import Any, Union

import numpy as np

from .._errors import Error
from .._profiles import for_quality
from . import _loss, _show, _text

POSITIONS = 96


def walk(
    walked: Union[_text.GGUF, _text.Transformers], kept: str, budget: int, prompt: int, positions: int, target: float
) -> dict[str, Any]:
    """Has the library measure, then tries its candidates at places of the text behind that, each against the dense model.

    Returns the profile for the target. Raises ValueError for too short a text, Error where no choice keeps the target.
    """
    start, end = max(2 * budget, prompt), len(walked.tokens) - 1
    needed = start + _text.MEASURED + positions
    if end < needed:
        raise ValueError(
            f"the text has {end + 1} tokens, a budget of {budget} and {positions} positions need {needed + 1} (--tokens makes more)"
        )
    walked.back(min(walked.length, start))
    walked.advance(start)
    while not os.path.exists(kept):
        if walked.length > start + _text.MEASURED:
            raise Error("the library has not measured this model: it goes by rule")
        walked.step()
    with open(kept) as f:
        profile = for_quality(json.load(f), target)
    tried = profile["tried"]
    if positions < tried["least_trials"]:
        raise ValueError(f"--positions {positions}: with --quality at least {tried['least_trials']} are needed")
    with _show.progress(positions) as say:
        for i, place in enumerate(np.linspace(walked.length, end - 1, positions).astype(int)):
            walked.engine.ablate(-1)
            walked.advance(int(place))
            say("trying", i)
            walked.engine.ablate(0)
            dense = _loss.Reference(walked.step())
            walked.back(int(place))
            for of in tried["candidates"]:
                walked.engine.attempt(of["layers"])
                nats = max(float(dense.nats(_loss.Said(walked.step()))), 0.0)
                of["trials"] += 1
                of["nats"] += nats
                of["squares"] += nats**2
                walked.back(int(place))
    walked.engine.attempt()
    profile = for_quality(profile, target)
    if not profile["choice"]:
        candidates = profile["tried"]["candidates"]
        best, most = min(candidates, key=mean), max(len(of["layers"]) for of in candidates)
        nats, error = mean(best)
        raise Error(
            f"no choice of up to {most} layers keeps {target:g} nats a token with {best['budget']} tokens: "
            f"the best, {best['layers']}, loses {nats:.2g} ± {error:.1g}"
        )
    return profile


def mean(of: dict[str, Any]) -> tuple[float, float]:
    """A candidate's nats a token, and their standard error."""
    n = of["trials"]
    nats = of["nats"] / n
    return nats, math.sqrt(max(of["squares"] / n - nats**2, 0.0) / (n - 1))


def tell(result: dict[str, Any]) -> str:
    head = ["layers", "nats a token", "trials"]
    table = [[",".join(map(str, of["layers"])), "%.4f ± %.4f" % mean(of), str(of["trials"])] for of in result["tried"]["candidates"]]
    lines = [
        _show.table(head, table),
        "",
        f"for {result['target']:g} nats a token: layers {result['choice']}",
        f"profile: {result['profile']}",
    ]
    return "\n".join(lines)
