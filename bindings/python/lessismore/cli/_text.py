"""A model that is walked through a text, one token at a time, there and back: for ablations.

Both kinds have the same face: `tokens`, the text; `length`, how many of them the model has seen; `engine`, to ablate layers
with; `advance(end)` shows it the tokens up to there; `step()` shows it the next one, and gives the logits of what
follows; `back(length)` takes tokens away again.
"""

from __future__ import annotations

import os
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from .._errors import UnsupportedError
from ..engine import Engine, HostEngine
from . import _sequence, _vocabulary
from ._worker import Context

MEASURED = 129  # steps: more than a measurement takes, for models of up to 126 layers
Logits = npt.NDArray[np.float64]


def walk(model: str, text: str, more: int, threads: int, settings: dict[str, Any]) -> Union[GGUF, Transformers]:
    """A model's file (GGUF) or folder (transformers), and a text that it goes on with by `more` tokens of its own.

    Raises ImportError, OSError, ValueError, and what the library refuses.
    """
    of = Transformers if os.path.isdir(model) else GGUF
    return of(model, text, more, threads, settings)


def greedy(walked: Union[GGUF, Transformers], more: int) -> None:
    """Goes on with the text, by the likeliest token each time, all layers dense. Raises ValueError for no text."""
    if not walked.tokens:
        raise ValueError("the text has no tokens")
    walked.advance(len(walked.tokens) - 1)
    walked.engine.ablate(0)
    for _ in range(more):
        walked.tokens.append(int(np.argmax(walked.step())))
    walked.engine.ablate(-1)


class GGUF:
    """Through llama-cpp-python."""

    def __init__(self, model: str, text: str, more: int, threads: int, settings: dict[str, Any]) -> None:
        vocabulary = _vocabulary.GGUF(model)
        self.tokens = vocabulary.encode(text)
        job = {"model": vocabulary.path, "threads": threads, "kv": "f16", "flash": True, "enable": {**settings, "log": "off"}}
        self._context = Context({**job, "context": len(self.tokens) + more})
        self.engine = HostEngine()

    @property
    def length(self) -> int:
        return self._context.length

    def advance(self, end: int) -> None:
        self._context.show(self.tokens[self.length : end])

    def step(self) -> Logits:
        return self._context.next(self.tokens[self.length]).astype(np.float64)

    def back(self, length: int) -> None:
        if not self._context.back(length):
            raise UnsupportedError("this model's memory cannot be rolled back")

    def report(self) -> dict[str, Any]:
        return self.engine.report()


class Transformers:
    """Through transformers, on the CPU."""

    def __init__(self, model: str, text: str, more: int, threads: int, settings: dict[str, Any]) -> None:
        self.tokens = _vocabulary.Transformers(model).encode(text)
        self._sequence = _sequence.Sequence(_sequence.load(model), "lessismore-calibrate", threads, settings)
        self.engine: Engine = self._sequence.engine

    @property
    def length(self) -> int:
        return self._sequence.length

    def advance(self, end: int) -> None:
        self._sequence.show(self.tokens[self.length : end])

    def step(self) -> Logits:
        return self._sequence.next(self.tokens[self.length]).astype(np.float64)

    def back(self, length: int) -> None:
        self._sequence.back(length)

    def report(self) -> dict[str, Any]:
        return self._sequence.report()
