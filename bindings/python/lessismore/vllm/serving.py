"""What an engine of a serving host holds, vLLM's or SGLang's: the library's engine, its decoder, and what was counted."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import weakref
from collections import Counter
from typing import Any, Optional

import torch

from .._errors import ArgumentError, Error
from ..decoder import Decoder
from ..engine import Engine
from . import memory, metrics, profile, settings

LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
UNKNOWN = (AttributeError, KeyError, TypeError)  # what a host's version of other interfaces raises


class Serving:
    """Nothing is open yet. Whatever goes wrong leaves everything to the host."""

    logger: logging.Logger  # the host's own

    def __init__(self, own: settings.Settings) -> None:
        self.settings = own
        self.reason: Optional[str] = None  # why nothing is sparse
        self.census: Any = None  # the host's layers
        self.engine: Optional[Engine] = None
        self.decoder: Optional[Decoder] = None
        self.work: Optional[torch.Tensor] = None
        self.shape: dict[str, Any] = {}  # the decoder's arguments
        self.numbers: dict[Any, int] = {}
        self.choice = profile.Choice()
        self.max_rows = self.capacity = self.kv_tokens = 0
        self.counts: Counter[str] = Counter()
        self.declined: Counter[str] = Counter()  # rows, by reason
        self.reporter: Optional[metrics.Reporter] = None

    @property
    def active(self) -> bool:
        """Whether steps may have rows that are ours."""
        return self.decoder is not None and self.reason is None

    @property
    def work_bytes(self) -> int:
        return 0 if self.work is None else self.work.numel()

    def refuse(self, reason: str, level: int = logging.INFO) -> None:
        """From now on the host attends to everything."""
        self.reason = reason
        self.logger.log(level, "lessismore: nothing is sparse: %s", reason)

    def give_up(self, reason: str, level: int = logging.ERROR) -> None:
        """refuse, and the library's memory back."""
        self.close()
        self.refuse(reason, level)

    def fail(self, error: Error) -> None:
        """A layer was refused in the middle of a step: the host computes it, and everything from the next step on."""
        self.declined["refused by the library"] += 1
        self.refuse(str(error), logging.ERROR)

    def others(self) -> Counter[str]:
        """Layers that are the host's, by reason."""
        return Counter(self.census.others.values() if self.census else ())

    def make_engine(self, n_layers: int) -> None:
        """The library's engine for so many layers, with what was chosen for them."""
        choice, logger = self.choice, self.logger

        def log(level: int, text: str) -> None:
            logger.log(LEVELS[level], "lessismore: %s", text)

        self.engine = Engine(
            n_layers, self.settings, layers=choice.layers, profile=choice.profile, model=choice.model, n_threads=1, logger=log,
            quality=None if choice.layers else self.settings.quality,
        )  # fmt: skip

    def allocate(self, shape: dict[str, Any], tokens: int, rows: int) -> bool:
        """The decoder and its work memory, for rows that see so many tokens together; False: there is not enough for one.

        Args:
            shape: arguments of Decoder, device and capacity among them.
            tokens: 0 makes room for each row by itself.
            rows: of a step, at most; the work memory's limit may allow fewer.
        """
        engine, own, number = self.engine, self.settings, shape["device"]
        assert engine is not None
        self.capacity = capacity = shape["capacity"]

        def size(rows: int) -> int:
            return Decoder.work_size(engine, rows, **shape, kv_tokens=min(tokens, rows * capacity))

        limit = own.work_bytes or torch.cuda.get_device_properties(number).total_memory // memory.SHARE
        self.max_rows = memory.rows_within(size, min(rows, own.max_rows), limit)
        if self.max_rows == 0:
            self.refuse(f"a row of {capacity} tokens needs {size(1)} bytes, more than work_bytes = {limit}", logging.WARNING)
            return False
        self.kv_tokens = min(tokens, self.max_rows * capacity)
        self.work = torch.zeros(size(self.max_rows), dtype=torch.uint8, device=f"cuda:{number}")
        self.shape = shape
        self.decoder = Decoder(engine, self.max_rows, **shape, kv_tokens=self.kv_tokens, work=self.work)
        return True

    def narrow(self, capacity: int) -> None:
        """Makes the decoder anew, for rows of fewer tokens, in the same work memory. Before its first step. Raises Error."""
        engine, decoder, work = self.engine, self.decoder, self.work
        assert engine is not None and decoder is not None and work is not None
        decoder.close()
        self.decoder = None
        self.capacity = self.shape["capacity"] = capacity
        self.kv_tokens = min(self.kv_tokens, self.max_rows * capacity)
        work.zero_()  # steps that measured what graphs take have used it
        self.decoder = Decoder(engine, self.max_rows, **self.shape, kv_tokens=self.kv_tokens, work=work)

    def chosen(self) -> str:
        """The selection layers and where they are from, for the log."""
        choice = self.choice
        return f"{list(choice.layers)} ({choice.source})" if choice.layers else choice.source

    def report_by(self, reporter: metrics.Reporter) -> None:
        """Statistics from now on, and at the process's end; at once, if all there will be to say is why nothing is sparse."""
        self.reporter = reporter
        atexit.register(_at_exit, weakref.ref(self))
        if self.reason is not None:
            reporter.write()

    def close(self) -> None:
        """Gives the library's memory back."""
        for handle in (self.decoder, self.engine):
            if handle is not None:
                handle.close()
        self.decoder = self.engine = self.work = None
        self.numbers = {}

    def tick(self) -> None:
        """Once a step or more often, replayed ones included, and after a failure, too."""
        if self.reporter is not None:
            self.reporter.tick()

    def report(self) -> dict[str, Any]:
        """What was counted. Waits for the GPU."""
        return {
            "reason": self.reason, "layers": None if self.choice.layers is None else list(self.choice.layers), "source": self.choice.source,
            "taking_part": len(self.numbers), "others": dict(self.others()),
            "max_rows": self.max_rows, "kv_tokens": self.kv_tokens, "work_bytes": self.work_bytes, "counts": dict(self.counts),
            "declined": dict(self.declined), "library": None if self.decoder is None else self.decoder.stats(),
        }  # fmt: skip


def in_force(own: settings.Settings, n_layers: int) -> dict[str, Any]:
    """The settings that a profile is for, of a model with so many layers. Raises as Engine does."""
    asked = dataclasses.replace(own, layers=None, quality=None, profile="off")
    with Engine(max(n_layers, 1), asked, n_threads=1) as engine:
        config = engine.report()["config"]
    found = {name: config[name] for name in ("budget", "recency", "sink_tokens", "policy")}
    return {**found, "quality": True} if own.quality else {**found, "selections": config["selections"]}


def as_float32(kept: Optional[torch.Tensor], given: torch.Tensor) -> torch.Tensor:
    """The values of `given`, in memory that keeps its place from the first time on, as graphs need it."""
    if kept is None:
        kept = torch.empty(given.shape, dtype=torch.float32, device=given.device)
    return kept.copy_(given)


def check_int32(**tensors: torch.Tensor) -> None:
    """Raises ArgumentError where one is not of int32, side by side in its last dimension."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int32 or tensor.stride(-1) != 1:
            raise ArgumentError(f"{name} is {tensor.dtype} with strides {tensor.stride()}")


def _at_exit(of_serving: "weakref.ref[Serving]") -> None:
    serving = of_serving()
    if serving is not None and serving.reporter is not None:
        serving.reporter.write()
