"""What a user may choose: --additional-config '{"lessismore": {...}}', and the LESSISMORE_* variables where it says nothing."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Callable, Mapping, Optional

from .._errors import ArgumentError
from .._values import integer, real

POLICIES = ("union", "mass")
MOST_ROWS = 4096  # LIM_MAX_ROWS
INTERVAL = 10.0  # seconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one vLLM engine. None: the library's default."""

    enabled: bool = True
    budget: Optional[int] = None
    layers: Optional[tuple[int, ...]] = None  # None: from a profile, or found by measuring where that is possible
    recency: Optional[float] = None
    sink_tokens: Optional[int] = None
    policy: Optional[str] = None
    selections: Optional[int] = None
    guard: Optional[int] = None
    profile: Optional[str] = None  # a file; "off": none; None: in the user's cache, by model
    split: bool = True  # decode rows of a step that computes prompts, too, are sparse
    max_rows: int = MOST_ROWS  # rows of a step, at most: vLLM attends to larger steps
    kv_tokens: Optional[int] = None  # that the rows of a sparse step see together, at most; None: what the K/V store can hold
    work_bytes: Optional[int] = (
        None  # of device memory for the library's work, at most; it bounds the rows, too. None: a 64th of the device's
    )
    stats: Optional[str] = None  # a file that gets the statistics as JSON
    stats_interval: float = INTERVAL  # seconds between two readings of the statistics, 0: none


def _number(least: int, most: int = (1 << 31) - 1) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool):
            raise ArgumentError(f"{name} = {value!r} is not a whole number")
        try:
            number = integer(name, value, 64)
        except TypeError as e:
            raise ArgumentError(str(e)) from None
        if not least <= number <= most:
            raise ArgumentError(f"{name} = {value!r} is not in {least} .. {most}")
        return number

    return check


def _real(least: float, most: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        try:
            number = real(name, value)
        except TypeError as e:
            raise ArgumentError(str(e)) from None
        if not least <= number <= most:
            raise ArgumentError(f"{name} = {value!r} is not in {least:g} .. {most:g}")
        return number

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} = {value!r} is neither true nor false")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ArgumentError(f"{name} = {value!r} is not a text")
    return value


def _policy(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in POLICIES:
        raise ArgumentError(f"{name} = {value!r} is none of {', '.join(POLICIES)}")
    return value


def _layers(name: str, value: Any) -> Optional[tuple[int, ...]]:
    if value is None or value == "auto":
        return None
    if not isinstance(value, (list, tuple)) or not value:
        raise ArgumentError(f'{name} = {value!r} is neither a list of layers, such as [2, 12], nor "auto"')
    numbers = tuple(_number(0, 4095)(name, layer) for layer in value)
    if any(a >= b for a, b in zip(numbers, numbers[1:])):
        raise ArgumentError(f"{name} = {value!r} is not ascending")
    return numbers


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "enabled": _flag, "budget": _number(1, 1 << 24), "layers": _layers, "recency": _real(0, 1), "sink_tokens": _number(0), "policy": _policy,
    "selections": _number(1, 64), "guard": _number(0, 1 << 20), "profile": _text, "split": _flag, "max_rows": _number(1, MOST_ROWS),
    "kv_tokens": _number(1, 1 << 32), "work_bytes": _number(1, 1 << 62), "stats": _text, "stats_interval": _real(0, 86400),
}  # fmt: skip


def _switch(name: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise ArgumentError(f"{name} = {text!r} is neither on nor off")
    return text == "on"


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"{name} = {text!r} is not a whole number") from None


def _fraction(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"{name} = {text!r} is not a number") from None


def _numbers(name: str, text: str) -> Any:
    return text if text == "auto" else [_whole(name, part) for part in text.split(",")]


def _audits(name: str, text: str) -> Optional[int]:
    return {"on": None, "off": 0}[text] if text in ("on", "off") else _whole(name, text)


VARIABLES: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "LESSISMORE": ("enabled", _switch), "LESSISMORE_BUDGET": ("budget", _whole), "LESSISMORE_LAYERS": ("layers", _numbers),
    "LESSISMORE_RECENCY": ("recency", _fraction), "LESSISMORE_SINK_TOKENS": ("sink_tokens", _whole),
    "LESSISMORE_POLICY": ("policy", lambda name, text: text), "LESSISMORE_SELECTIONS": ("selections", _whole),
    "LESSISMORE_GUARD": ("guard", _audits), "LESSISMORE_PROFILE": ("profile", lambda name, text: text),
    "LESSISMORE_STATS": ("stats", lambda name, text: text),
}  # fmt: skip


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the LESSISMORE_* variables set. Raises ArgumentError, which names the variable."""
    found: dict[str, Any] = {}
    for variable, (key, read) in VARIABLES.items():
        text = environment.get(variable, "")
        if not text:
            continue
        value = read(variable, text)
        found[key] = value if value is None else CHECKS[key](variable, value)
    if environment.get("LESSISMORE_INTERVAL", "1") not in ("", "1"):
        raise ArgumentError(f"LESSISMORE_INTERVAL = {environment['LESSISMORE_INTERVAL']!r}: on a GPU a token set serves one step")
    return found


def from_config(additional: Any) -> dict[str, Any]:
    """What vLLM's additional_config sets under "lessismore". Raises ArgumentError, which names the key."""
    given = additional.get("lessismore") if isinstance(additional, Mapping) else None
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ArgumentError(f"additional_config: lessismore = {given!r} is not an object of settings")
    unknown = sorted(set(map(str, given)) - set(CHECKS))
    if unknown:
        raise ArgumentError(f"additional_config: lessismore has no {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    return {key: None if value is None else CHECKS[key](f"lessismore.{key}", value) for key, value in given.items()}


def read(additional: Any, environment: Optional[Mapping[str, str]] = None) -> tuple[Settings, Optional[str]]:
    """The settings in force, and why the environment's are wrong: then nothing is sparse, as with every other host.

    Raises ArgumentError for a wrong value in additional_config: the server was asked for something that does not exist.
    """
    given = from_config(additional)
    try:
        found = from_environment(os.environ if environment is None else environment)
    except ArgumentError as e:
        return Settings(enabled=False), str(e)
    values = {**found, **given}
    return Settings(**{key: value for key, value in values.items() if value is not None}), None
