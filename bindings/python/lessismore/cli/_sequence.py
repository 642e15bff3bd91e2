"""One sequence in a transformers model, on the CPU: what _worker.Context is in llama-cpp-python.

Several sequences, each with settings of its own, may share one model's weights.
"""

from __future__ import annotations

import copy
import time
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from .._errors import UnsupportedError
from ._worker import BLOCK, Logits

STOCK = "sdpa"  # the attention of transformers that the library is held against


def transformers() -> Any:
    """The package, where it can be used. Raises ImportError."""
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as e:
        raise ImportError(f"torch and transformers are needed for this, and cannot be imported: {e}") from e
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load(folder: str) -> Any:
    """The model, with the attention of transformers."""
    model = transformers().AutoModelForCausalLM.from_pretrained(folder, attn_implementation=STOCK)
    model.eval()
    return model


class Sequence:
    """Tokens that a model has seen. settings: arguments of lessismore.transformers.register(); None: without the library.

    Raises ImportError, and what the library refuses.
    """

    def __init__(self, model: Any, name: str, threads: int, settings: Optional[dict[str, Any]]) -> None:
        import torch

        from .. import transformers as ours

        self._torch, self._ours = torch, ours
        torch.set_num_threads(threads)
        # Modules of its own, since the library knows layers by them, around the same weights.
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        self.model = copy.deepcopy(model, shared)
        self.served = settings is not None
        if settings is not None:
            ours.register(name, n_threads=threads, **settings)
            self.model.set_attn_implementation(name)
            ours.check(self.model)
        self.length = 0
        self._cache: Optional[Any] = None

    @property
    def engine(self) -> Any:
        """The library's, of this sequence alone."""
        return self._ours._serves(self.model).engine

    def _show(self, tokens: list[int]) -> Any:
        with self._torch.inference_mode():
            out = self.model(self._torch.tensor([tokens]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        self.length += len(tokens)
        return out.logits[0, -1]

    def show(self, tokens: list[int]) -> None:
        """See _worker.Context. A last token that would be left over alone joins the others: alone it would be a decode step."""
        while tokens:
            some = len(tokens) if len(tokens) == BLOCK + 1 else BLOCK
            self._show(tokens[:some])
            tokens = tokens[some:]

    def next(self, token: int) -> Logits:
        """See _worker.Context."""
        logits: npt.NDArray[np.float32] = self._show([token]).to(self._torch.float32).numpy()
        return logits

    def walk(self, tokens: list[int]) -> tuple[list[float], Logits]:
        """Milliseconds that each token takes, and the logits of what follows it."""
        ms, logits = [], []
        for token in tokens:
            start = time.perf_counter()
            logits.append(self.next(token))
            ms.append((time.perf_counter() - start) * 1e3)
        return ms, np.stack(logits)

    def place(self) -> int:
        """See _worker.Context."""
        return self.length

    def back(self, length: int) -> None:
        """Takes tokens away again. Raises UnsupportedError where the model's cache cannot."""
        if self._cache is None:
            return
        if length == 0:
            self._cache = None
        elif length < self.length:
            self._cache.crop(length - self.length)  # it wants the number that goes
        if self._cache is not None and self._cache.get_seq_length() != length:
            raise UnsupportedError("this model's cache cannot be rolled back")
        self.length = length

    def give(self) -> Any:
        """The cache as it is now, for take()."""
        return copy.deepcopy(self._cache), self.length

    def take(self, given: Any) -> None:
        """Another sequence's cache."""
        cache, self.length = given
        self._cache = copy.deepcopy(cache)

    def report(self) -> dict[str, Any]:
        """What the library counted so far."""
        found: dict[str, Any] = self.engine.report()
        return found
