"""What a user may choose about token sets, each setting in one line and one field, and the ways it goes: to C, to and from the environment, to
a command line."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from typing import Any, Iterable, Optional, Union

from ._errors import ArgumentError
from ._values import integer, real, text

POLICIES = {"union": 0, "mass": 1}
Path = Union[str, "os.PathLike[str]"]

Logger = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p)


class EngineParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("layers", POINTER(c_int32)),
        ("layers_count", c_int64),
        ("recency", c_double),
        ("logger", Logger),
        ("logger_user", c_void_p),
        ("n_layers", c_int32),
        ("budget", c_int32),
        ("sink_tokens", c_int32),
        ("policy", c_int32),
        ("n_threads", c_int32),
        ("reserved", c_int32),
        ("selections", c_int32),
        ("guard", c_int32),
        ("interval", c_int32),
        ("trace", c_int32),
        ("model", c_char_p),
        ("profile", c_char_p),
        ("profile_dir", c_char_p),
        ("quality", c_double),
    ]


def _setting(kind: str, meaning: str) -> Any:
    """kind: whole, real, target (a number that text may say as off), switch (a whole number that text may say as on and off), or what it is."""
    return dataclasses.field(default=None, metadata={"kind": kind, "meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Settings:
    """How token sets are chosen, and how the layers that choose them are found, kept and watched. None: the library's default."""

    budget: Optional[int] = _setting("whole", "tokens that a sparse layer attends to (default 2048)")
    layers: Optional[Iterable[int]] = _setting(
        "layers",
        "selection layers, ascending, counted among the layers that take part (default: measured, or a profile's; full until then)",
    )
    recency: Optional[float] = _setting("real", "share of the budget that is kept for the newest tokens (default 0.25)")
    sink_tokens: Optional[int] = _setting("whole", "first tokens that are always kept (default 4)")
    policy: Optional[str] = _setting("policy", 'how tokens are ranked: "union" (the paper\'s, default) or "mass"')
    selections: Optional[int] = _setting(
        "whole", "without layers: at most so many choose (default 0: one for six of the model's layers, at least 2)"
    )
    quality: Optional[float] = _setting(
        "target",
        "without layers: nats a token that may be lost; it chooses how many layers select (off: selections does, default). Where a step "
        "cannot be computed twice, a profile has to hold what was measured",
    )
    guard: Optional[int] = _setting("switch", "steps between two audits of what was found, about; 0: none (default 16)")
    interval: Optional[int] = _setting("whole", "steps that a token set serves (default 1)")
    profile: Optional[Path] = _setting(
        "file", 'a file that keeps what is learned about the model, for the next time; "off": none (default: in the user\'s cache)'
    )
    trace: Optional[int] = _setting("whole", "steps of a context whose token sets the statistics keep, at most (default 0)")

    def __post_init__(self) -> None:
        if self.layers is not None:  # it may be read once only
            object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def file(self) -> Optional[Path]:
        """The profile's file, if one is named."""
        return None if self.profile == "off" else self.profile

    def state(self, params: EngineParams) -> None:
        """States the settings for C. Raises ArgumentError, TypeError."""
        for name, kind, value in self._given():
            if kind in ("whole", "switch"):
                setattr(params, name, integer(name, value, 32))
            elif kind in ("real", "target"):
                setattr(params, name, real(name, value))
        if self.file is not None:
            params.profile = text("profile", self.file)
        if self.policy is not None:
            if not isinstance(self.policy, str) or self.policy not in POLICIES:
                raise ArgumentError(f"policy = {self.policy!r} is none of {', '.join(POLICIES)}")
            params.policy = POLICIES[self.policy]
        if self.layers is not None:
            numbers = [integer("layers", layer, 32) for layer in self.layers]
            if not numbers:
                raise ArgumentError("layers = [] names no layer; None stands for the default")
            params.layers = (c_int32 * len(numbers))(*numbers)
            params.layers_count = len(numbers)

    def variables(self) -> dict[str, str]:
        """The environment variables that state the settings to ggml hosts."""
        return {variable(name): _text(kind, value) for name, kind, value in self._given()}

    def _given(self) -> list[tuple[str, str, Any]]:
        """Name, kind and value of what is not left to the default."""
        values = [(field.name, field.metadata["kind"], getattr(self, field.name)) for field in dataclasses.fields(Settings)]
        return [v for v in values if v[2] is not None]


Settings.__doc__ = f"{Settings.__doc__}\n\nAttributes:\n" + "\n".join(
    f"    {field.name}: {field.metadata['meaning']}." for field in dataclasses.fields(Settings)
)


def changed(settings: Optional[Settings], changes: dict[str, Any]) -> Settings:
    """Settings, some of them given one by one. Raises TypeError for a name that is none of them."""
    return dataclasses.replace(settings or Settings(), **changes)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"LESSISMORE_{name.upper()}"


def _text(kind: str, value: Any) -> str:
    return ",".join(map(str, value)) if kind == "layers" else os.fsdecode(value) if kind == "file" else str(value)


EXPECTED = {
    "whole": "a whole number", "switch": "on, off or a whole number", "real": "a number", "target": "off or a number", "layers": "auto or layer numbers such as 2,12",
}  # fmt: skip


def parse(name: str, kind: str, given: str) -> Any:
    """A setting's value from its environment variable; None: the default. Raises ArgumentError, which names the variable."""
    if kind == "switch" and given.lower() in ("on", "off"):
        return {"on": None, "off": 0}[given.lower()]
    if kind == "target" and given.lower() == "off":
        return None
    try:
        if kind == "layers":
            return None if given.lower() == "auto" else [int(part) for part in given.split(",")]
        return int(given) if kind in ("whole", "switch") else float(given) if kind in ("real", "target") else given
    except ValueError:
        raise ArgumentError(f"{variable(name)} = {given!r} is not {EXPECTED[kind]}") from None
