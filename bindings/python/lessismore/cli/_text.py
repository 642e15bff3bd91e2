"""A model that is walked through a text, one token at a time, there and back: for ablations.

Both kinds have the same face: `tokens`, the text; `length`, how many of them the model has seen; `engine`, to ablate layers
with; `advance(end)` shows it the tokens up to there; `step()` shows it the next one, and gives the logits of what
follows; `back(length)` takes tokens away again.
"""

from __future__ import annotations

import os
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .._errors import UnsupportedError
from ..engine import Engine, HostEngine
from . import _llama
from ._worker import BLOCK, Context

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
        path = _llama.model_file(model)
        _llama.host()
        _llama.quiet()
        tokens = _tokens(path, text)
        job = {"model": path, "threads": threads, "kv": "f16", "flash": True, "enable": {**settings, "log": "off"}}
        self._context = Context({**job, "context": len(tokens) + more})
        self._c = self._context.c
        self.tokens, self.length = tokens, 0
        self.engine = HostEngine()

    def advance(self, end: int) -> None:
        while self.length < end:
            some = self.tokens[self.length : min(end, self.length + BLOCK)]
            self._context.decode(some, self.length, 0)
            self.length += len(some)

    def step(self) -> Logits:
        self._context.decode([self.tokens[self.length]], self.length, 0)
        self.length += 1
        of = self._c.llama_get_logits_ith(self._context.ctx, -1)
        return np.ctypeslib.as_array(of, (self._context.vocabulary,)).astype(np.float64)

    def back(self, length: int) -> None:
        if not self._c.llama_memory_seq_rm(self._context.memory, 0, length, -1):
            raise UnsupportedError("this model's memory cannot be rolled back")
        self.length = length

    def report(self) -> dict[str, Any]:
        return self.engine.report()


def _tokens(path: str, text: str) -> list[int]:
    from llama_cpp import Llama

    vocabulary = Llama(path, vocab_only=True, verbose=False)
    return list(vocabulary.tokenize(text.encode(), add_bos=True, special=True))


class Transformers:
    """Through transformers, on the CPU."""

    def __init__(self, model: str, text: str, more: int, threads: int, settings: dict[str, Any]) -> None:
        try:
            import torch
            import transformers
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from .. import transformers as ours
        except ImportError as e:
            raise ImportError(f"torch and transformers are needed for this, and cannot be imported: {e}") from e
        transformers.utils.logging.disable_progress_bar()
        self._torch, self._ours = torch, ours
        torch.set_num_threads(threads)
        ours.register("lessismore-calibrate", n_threads=threads, **settings)
        self._model = AutoModelForCausalLM.from_pretrained(model, attn_implementation="lessismore-calibrate")
        self._model.eval()
        ours.check(self._model)
        self.tokens: list[int] = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
        self.length = 0
        self._cache: Optional[Any] = None
        self.engine: Engine = ours._serves(self._model).engine

    def _show(self, tokens: list[int]) -> Any:
        with self._torch.inference_mode():
            out = self._model(self._torch.tensor([tokens]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        self.length += len(tokens)
        return out.logits[0, -1]

    def advance(self, end: int) -> None:
        while self.length < end:
            self._show(self.tokens[self.length : min(end, self.length + BLOCK)])

    def step(self) -> Logits:
        logits: Logits = self._show([self.tokens[self.length]]).to(self._torch.float64).numpy()
        return logits

    def back(self, length: int) -> None:
        if self._cache is None:
            return
        if length < self.length:
            self._cache.crop(length - self.length)  # it wants the number that goes
        if self._cache.get_seq_length() != length:
            raise UnsupportedError("this model's cache cannot be rolled back")
        self.length = length

    def report(self) -> dict[str, Any]:
        return self.engine.report()
