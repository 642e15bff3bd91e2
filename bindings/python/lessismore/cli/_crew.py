"""The same text in several settings at once: the host alone, the library attending to everything, and to budgets of tokens.

They take turns, a few tokens each, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any, Callable, Optional, Union

import numpy as np

from .._errors import UnsupportedError
from . import _process, _sequence
from ._worker import BLOCK, Logits

HOST, FULL = "host", "full"
Name = Union[str, int]  # one of these, or a budget
ALL = 1 << 24  # tokens, LIM_MAX_BUDGET: no context has as many
RECENCY = 0.25  # the library's default
FIRST = 2  # budgets that a context is long when its model is first measured
LAST = BLOCK  # tokens of a context that each member computes, at least
PIECE = 8  # tokens between two looks at a measurement
TIMED = 4  # tokens at once of a host that is timed alone
QUANTISED = ("q8_0", "q4_0")  # caches that llama.cpp has with flash attention only


def settling(settings: dict[str, Any]) -> int:
    """Tokens that a measurement may take: with a quality target choices are tried behind it."""
    return 640 if settings.get("quality") else 256


class NotEngaged(RuntimeError):
    """Why the library takes no part at all."""


class GGUF:
    """A context in llama-cpp-python, in a process of its own."""

    def __init__(self, job: dict[str, Any], ours: Optional[dict[str, Any]]) -> None:
        self.served = ours is not None
        self._folder = tempfile.TemporaryDirectory(prefix="lessismore-")
        self._worker = _process.Worker(job, ours)
        self._file = os.path.join(self._folder.name, "data")

    def show(self, tokens: list[int]) -> None:
        self._worker.ask("show", tokens=tokens)

    def walk(self, tokens: list[int]) -> tuple[list[float], Logits]:
        ms = self._worker.ask("walk", tokens=tokens, logits=self._file)
        return ms, np.fromfile(self._file, np.float32).reshape(len(tokens), -1)

    def back(self, length: int) -> None:
        if not self._worker.ask("back", length=length):
            raise ValueError("this model's memory cannot be rolled back: --needles 0, and one context, need no roll-back")

    def place(self) -> int:
        length: int = self._worker.ask("place")
        return length

    def give(self) -> Any:
        return self._file, self._worker.ask("save", file=self._file)

    def take(self, given: Any) -> None:
        file, length = given
        self._worker.ask("load", file=file, length=length)

    def report(self) -> dict[str, Any]:
        """What the library counted so far. Raises NotEngaged where it takes no part."""
        found: Optional[dict[str, Any]] = self._worker.ask("report")
        if found is None:
            raise NotEngaged(self._worker.end()["reason"])
        return found

    def fill(self, length: int) -> None:
        """Any text of about that length instead of the one that is there."""
        self.back(0)
        self._worker.ask("fill", length=length)

    def time(self) -> list[float]:
        """Milliseconds of a few tokens behind it, which are removed again."""
        ms: list[float] = self._worker.ask("time", count=TIMED)
        return ms

    def close(self) -> None:
        self._worker.kill()
        self._folder.cleanup()


class Transformers(_sequence.Sequence):
    """A sequence in a transformers model, whose weights all share."""

    def close(self) -> None:
        self.back(0)


Member = Union[GGUF, Transformers]


class Crew:
    """The members, by what they are: HOST, FULL, and the budgets. other: of a GGUF model, the host's other setting of flash
    attention, which is timed only.
    """

    def __init__(self, model: str, room: int, threads: int, kv: str, budgets: list[int], settings: dict[str, Any]) -> None:
        self.members: dict[Name, Member] = {}
        self._recency: float = settings.get("recency", RECENCY)
        self._most = settling(settings)
        self.other: Optional[GGUF] = None
        try:
            self._make(model, room, threads, kv, {HOST: None, FULL: ALL, **{b: b for b in budgets}}, settings)
        except BaseException:
            self.close()
            raise

    def _make(
        self, model: str, room: int, threads: int, kv: str, budgets: dict[Name, Optional[int]], settings: dict[str, Any]
    ) -> None:  # fmt: skip
        weights = _sequence.load(model) if os.path.isdir(model) else None
        job = {"model": model, "context": room, "threads": threads, "kv": kv}
        for name, budget in budgets.items():
            ours = None if budget is None else {**settings, "budget": budget}
            if name == FULL:
                ours = {"budget": ALL, "profile": "off"}
            if weights is None:
                self.members[name] = member = GGUF({**job, "flash": True}, ours)
                if member.served:
                    member.report()
            else:
                try:
                    self.members[name] = Transformers(weights, f"lessismore-check-{name}", threads, ours)
                except UnsupportedError as e:  # what it advises is not for here
                    raise UnsupportedError(f"{model}: {str(e).partition(';')[0]}") from None
        if weights is None and kv not in QUANTISED:
            self.other = GGUF({**job, "flash": False}, None)

    def close(self) -> None:
        for member in [*self.members.values(), *filter(None, [self.other])]:
            member.close()

    def show(self, prompt: list[int], say: Callable[[int], None]) -> None:
        """A prompt instead of what they have seen. One member computes it, the others copy it; all but its end, which each of
        them computes: the library takes a row for sparse only where it knows the order of its newest tokens.
        """
        largest = max(b for b in self.members if isinstance(b, int))
        tail = max(LAST, int(largest * self._recency) + 1)
        for member in self.members.values():
            member.back(0)
        head = prompt[: max(0, len(prompt) - tail) // BLOCK * BLOCK]
        rest = prompt[len(head) :]
        first, *others = self.members.values()
        for i in range(0, len(head), BLOCK):
            first.show(head[i : i + BLOCK])
            say(BLOCK)
        given = first.give() if head else None
        for member in (first, *others):
            if head and member is not first:
                member.take(given)
            member.show(rest)
            say(len(rest))
        if self.other is not None:
            self.other.fill(len(prompt))

    def settle(self, following: list[int], positions: int) -> int:
        """Lets the members measure the model's layers, as far as that is due behind so many tokens. Returns how many tokens
        all have been shown for it."""
        used = {name: self._settle(name, member, following, positions) for name, member in self.members.items()}
        most = max(used.values())
        for name, member in self.members.items():
            if used[name] < most:
                member.show(following[used[name] : most])
        return most

    def _settle(self, name: Name, member: Member, following: list[int], positions: int) -> int:
        used, dense = 0, -1
        while isinstance(name, int) and positions >= FIRST * name and used < self._most:
            before, dense = dense, _dense(member.report())
            if dense == before:
                break
            member.walk(following[used : used + PIECE])
            used += PIECE
        return used


def _dense(report: dict[str, Any]) -> int:
    """Steps that were dense since the layers that choose were not known, or were measured or tried."""
    total = report["total"]
    steps: int = total["measured_steps"] + total["dense_steps"] + total["trial_steps"]
    return steps
