"""What a user may choose: --additional-config '{"lessismore": {...}}', and the LESSISMORE_* variables where it says nothing."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from typing import Any, Callable, Mapping, Optional

from .. import engine
from .. import settings as common
from .._errors import ArgumentError, Error
from .._values import integer, real

MOST_ROWS = 4096  # LIM_MAX_ROWS
INTERVAL = 10.0  # seconds
SWITCH = {"on": True, "1": True, "off": False, "0": False}
KEY = "lessismore"  # of additional_config
OWN_NAMES = ("budget", "recency", "sink_tokens", "selections", "kv_tokens", "work_bytes")  # settings that nobody else's could be
NOT_HERE = ("interval", "trace")  # a row is another sequence's from step to step, and what is attended to on a GPU is not kept


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Of one vLLM engine: the library's, and these."""

    enabled: bool = True
    split: bool = True  # decode rows of a step that computes prompts, too, are sparse
    max_rows: int = MOST_ROWS  # rows of a step, at most: vLLM attends to larger steps
    kv_tokens: Optional[int] = None  # that the rows of a sparse step see together, at most; None: what the K/V store can hold
    work_bytes: Optional[int] = (
        None  # of device memory for the library's work, at most; it bounds the rows, too. None: a 64th of the device's
    )
    stats: Optional[str] = None  # a file that gets the statistics as JSON
    stats_interval: float = INTERVAL  # seconds between two readings of the statistics, 0: none


Check = Callable[[str, Any], Any]


def _number(least: int, most: int) -> Check:
    def check(name: str, value: Any) -> int:
        number = integer(name, value, 64)
        if not least <= number <= most:
            raise ArgumentError(f"{name} = {value!r} is not in {least} .. {most}")
        return number

    return check


def _seconds(name: str, value: Any) -> float:
    number = real(name, value)
    if not 0 <= number <= 86400:
        raise ArgumentError(f"{name} = {value!r} is not in 0 .. 86400")
    return number


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} = {value!r} is neither true nor false")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ArgumentError(f"{name} = {value!r} is not a text")
    return value


def _librarys(setting: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if setting == "layers" and value == "auto":
            return None
        try:
            found = common.Settings(**{setting: value})
            engine.check(found)
        except (ArgumentError, TypeError) as e:
            raise ArgumentError(f"{name} = {value!r}: {e}") from None
        return getattr(found, setting)

    return check


LIBRARYS = {field.name: field.metadata["kind"] for field in dataclasses.fields(common.Settings) if field.name not in NOT_HERE}
CHECKS: dict[str, Check] = {
    **{name: _librarys(name) for name in LIBRARYS}, "profile": _text, "enabled": _flag, "split": _flag, "max_rows": _number(1, MOST_ROWS),
    "kv_tokens": _number(1, 1 << 32), "work_bytes": _number(1, 1 << 62), "stats": _text, "stats_interval": _seconds,
}  # fmt: skip


def _check(key: str, name: str, value: Any) -> Any:
    try:
        return CHECKS[key](name, value)
    except TypeError as e:
        raise ArgumentError(str(e)) from None


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the LESSISMORE_* variables set. Raises ArgumentError, which names the variable."""
    found: dict[str, Any] = {}
    switch = environment.get("LESSISMORE", "") or "on"
    if switch.lower() not in SWITCH:
        raise ArgumentError(f"LESSISMORE = {switch!r} is neither on nor off")
    found["enabled"] = SWITCH[switch.lower()]
    for key, kind in {**LIBRARYS, "stats": "file"}.items():
        variable = common.variable(key)
        if text := environment.get(variable, ""):
            value = common.parse(key, kind, text)
            found[key] = value if value is None else _check(key, variable, value)
    if environment.get("LESSISMORE_INTERVAL", "1") not in ("", "1"):
        raise ArgumentError(
            f"LESSISMORE_INTERVAL = {environment['LESSISMORE_INTERVAL']!r}: here a token set serves one step, since a row is another request's in the next"
        )
    return found


def _misplaced(additional: Mapping[Any, Any]) -> None:
    """Raises ArgumentError where settings seem to be meant, but stand under another name or under none."""
    for key in map(str, additional):
        if key != KEY and difflib.SequenceMatcher(None, re.sub("[^a-z]", "", key.lower()), KEY).ratio() > 0.8:
            raise ArgumentError(f'additional_config has {key!r}: lessismore\'s settings stand under "{KEY}"')
        if key in OWN_NAMES:
            raise ArgumentError(f'additional_config has {key!r} outside of "{KEY}": {{"{KEY}": {{"{key}": …}}}}')


def from_config(additional: Any) -> dict[str, Any]:
    """What vLLM's additional_config sets under "lessismore". Raises ArgumentError, which names the key."""
    given = additional.get(KEY) if isinstance(additional, Mapping) else None
    if given is None:
        _misplaced(additional if isinstance(additional, Mapping) else {})
        return {}
    if not isinstance(given, Mapping):
        raise ArgumentError(f"additional_config: lessismore = {given!r} is not an object of settings")
    unknown = sorted(set(map(str, given)) - set(CHECKS))
    if unknown:
        raise ArgumentError(f"additional_config: lessismore has no {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    return {key: None if value is None else _check(key, f"lessismore.{key}", value) for key, value in given.items()}


def of_all(found: Settings) -> dict[str, Any]:
    """What has to be the same on each rank: all but files, which are one rank's or each one's own."""
    return {name: value for name, value in dataclasses.asdict(found).items() if name not in ("profile", "stats", "stats_interval")}


def read(additional: Any, environment: Optional[Mapping[str, str]] = None) -> tuple[Settings, Optional[str]]:
    """The settings in force, and why the environment's are wrong, or cannot be told: then nothing is sparse, as with every other host.

    Raises ArgumentError for a wrong value in additional_config: the server was asked for something that does not exist.
    """
    try:
        given = from_config(additional)
    except ArgumentError:
        raise
    except Error as e:
        return Settings(enabled=False), str(e)
    try:
        found = from_environment(os.environ if environment is None else environment)
    except Error as e:
        return Settings(enabled=False), str(e)
    values = {**found, **given}
    return Settings(**{key: value for key, value in values.items() if value is not None}), None
