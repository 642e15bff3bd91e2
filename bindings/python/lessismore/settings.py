"""What a user may choose about token sets, in one place: fields, documentation, and their way to C and to the environment."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from typing import Any, Iterable, Optional, Union

from . import _library
from ._errors import ArgumentError
from ._values import integer, real

POLICIES = {"union": 0, "mass": 1}
Path = Union[str, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How token sets are chosen, and how the layers that choose them are found, kept and watched. None: the library's default.

    Attributes:
        budget: tokens that a sparse layer attends to; default 2048.
        layers: selection layers, ascending, counted among the layers that take part; default: found by measuring or read
            from a profile, all layers are full until then.
        recency: share of the budget that is kept for the newest tokens; default 0.25.
        sink_tokens: first tokens that are always kept; default 4.
        policy: "union" (the paper's, default) or "mass".
        selections: without layers: at most so many choose; default 2.
        guard: steps between two audits of what was found, about; 0: none; default 16.
        interval: steps that a token set serves; default 1.
        profile: a file that keeps what is learned about the model, and is read the next time; "off": none. Where the model
            can be told from others, the default is a file in the user's cache.
        trace: steps of a context whose token sets the statistics keep, at most; default 0.
    """

    budget: Optional[int] = None
    layers: Optional[Iterable[int]] = None
    recency: Optional[float] = None
    sink_tokens: Optional[int] = None
    policy: Optional[str] = None
    selections: Optional[int] = None
    guard: Optional[int] = None
    interval: Optional[int] = None
    profile: Optional[Path] = None
    trace: Optional[int] = None

    def __post_init__(self) -> None:
        if self.layers is not None:  # it may be read once only
            object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def file(self) -> Optional[Path]:
        """The profile's file, if one is named."""
        return None if self.profile == "off" else self.profile

    def state(self, params: _library.EngineParams) -> None:
        """States the settings for C, all but the profile. Raises ArgumentError, TypeError."""
        for name in ("budget", "sink_tokens", "selections", "guard", "interval", "trace"):
            number = getattr(self, name)
            if number is not None:
                setattr(params, name, integer(name, number, 32))
        if self.recency is not None:
            params.recency = real("recency", self.recency)
        if self.policy is not None:
            if not isinstance(self.policy, str) or self.policy not in POLICIES:
                raise ArgumentError(f"policy = {self.policy!r} is none of {', '.join(POLICIES)}")
            params.policy = POLICIES[self.policy]
        if self.layers is not None:
            numbers = [integer("layers", layer, 32) for layer in self.layers]
            if not numbers:
                raise ArgumentError("layers = [] names no layer; None stands for the default")
            params.layers = (ctypes.c_int32 * len(numbers))(*numbers)
            params.layers_count = len(numbers)

    def variables(self) -> dict[str, str]:
        """The environment variables that state the settings to ggml hosts."""
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                text = (
                    ",".join(map(str, value)) if field.name == "layers" else os.fsdecode(value) if field.name == "profile" else str(value)
                )
                found[f"LESSISMORE_{field.name.upper()}"] = text
        return found


def changed(settings: Optional[Settings], changes: dict[str, Any]) -> Settings:
    """Settings, some of them given one by one. Raises TypeError for a name that is none of them."""
    return dataclasses.replace(settings or Settings(), **changes)
