"""The engine: a configuration, its threads, and what was counted under it."""

from __future__ import annotations

import ctypes
import json
from typing import Any, Callable, Iterable, Optional

from . import _library
from ._errors import ArgumentError
from ._handle import Handle
from ._values import integer, real
from .batch import Batch
from .sequence import Sequence

POLICIES = {"union": 0, "mass": 1}


class Engine(Handle):
    """A configuration, its threads, and what was counted under it.

    Args:
        n_layers: attention layers of the model that take part.
        budget: tokens that a sparse layer attends to; default 2048.
        layers: selection layers, ascending; default: found by measuring, all layers are full until then.
        recency: share of the budget that is kept for the newest tokens; default 0.25.
        sink_tokens: first tokens that are always kept; default 4.
        policy: "union" (the paper's, default) or "mass".
        n_threads: threads per call; 0 (default): one per CPU.
        logger: called with a level (0 error, 1 warning, 2 info, 3 debug) and a line of text.

    May be used from several threads at once. A context manager; close() ends it.

    Raises:
        ArgumentError: a value is out of range; the text names it.
        TypeError: a value is not a number.
        LibraryError: the shared library is missing or of another version.
        ForkedError: in a child of os.fork().
    """

    _kind = "engine"

    def __init__(
        self,
        n_layers: int,
        *,
        budget: Optional[int] = None,
        layers: Optional[Iterable[int]] = None,
        recency: Optional[float] = None,
        sink_tokens: Optional[int] = None,
        policy: Optional[str] = None,
        n_threads: int = 0,
        logger: Optional[Callable[[int, str], Any]] = None,
    ) -> None:
        lib = _library.library()
        params = _library.EngineParams()
        lib.lim_engine_default_params(params, ctypes.sizeof(params))
        params.n_layers = integer("n_layers", n_layers, 32)
        params.n_threads = integer("n_threads", n_threads, 32)
        if budget is not None:
            params.budget = integer("budget", budget, 32)
        if sink_tokens is not None:
            params.sink_tokens = integer("sink_tokens", sink_tokens, 32)
        if recency is not None:
            params.recency = real("recency", recency)
        if policy is not None:
            if not isinstance(policy, str) or policy not in POLICIES:
                raise ArgumentError(f"policy = {policy!r} is none of {', '.join(POLICIES)}")
            params.policy = POLICIES[policy]
        if layers is not None:
            numbers = [integer("layers", layer, 32) for layer in layers]
            if not numbers:
                raise ArgumentError("layers = [] names no layer; None stands for the default")
            params.layers = (ctypes.c_int32 * len(numbers))(*numbers)
            params.layers_count = len(numbers)
        self._logger = None  # kept: C holds no reference
        if logger is not None:
            host = logger
            self._logger = _library.Logger(lambda user, level, text: host(level, text.decode("utf-8", "replace")))
            params.logger = self._logger
        handle = ctypes.c_void_p()
        lib.lim_engine_create(params, handle)
        self._handle = handle.value

    def sequence(self) -> Sequence:
        """Begins a sequence. Raises HandleError, OutOfMemoryError, ForkedError."""
        return Sequence(self)

    def batch(
        self, max_rows: int, capacity: int, heads: int, kv_heads: int, head_dim: int, dtype: str = "f16", *, device: int = 0
    ) -> Batch:
        """Begins a batch on a GPU: see Batch."""
        return Batch(self, max_rows, capacity, heads, kv_heads, head_dim, dtype, device=device)

    def stats(self) -> dict[str, int]:
        """The counts of all sequences and batches, ended ones included (lim_stats in the C header); a batch's as its
        stats() last read them."""
        stats = _library.Stats(struct_size=ctypes.sizeof(_library.Stats))
        _library.library().lim_engine_stats(self._use(), stats)
        return _library.stats_dict(stats)

    def report(self) -> dict[str, Any]:
        """The configuration, the instruction set in use, and the counts of each sequence."""
        lib, handle, needed = _library.library(), self._use(), ctypes.c_size_t()
        lib.lim_engine_stats_json(handle, None, 0, needed)
        while True:
            text = ctypes.create_string_buffer(needed.value + 64)  # the numbers grow while others attend
            if lib.lim_engine_stats_json(handle, text, len(text), needed) == 0:
                report: dict[str, Any] = json.loads(text.value)
                return report

    def close(self) -> None:
        """Ends the engine and its threads; again is nothing to do.

        Raises BusyError while it has open sequences or batches.
        """
        super().close()
