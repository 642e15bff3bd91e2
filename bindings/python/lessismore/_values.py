"""Python values on their way to C: ctypes cuts numbers off without a word, so they are checked here."""

from __future__ import annotations

import operator
import os
from typing import Any

from ._errors import ArgumentError


def integer(name: str, value: Any, bits: int) -> int:
    """A whole number that fits. Raises TypeError, ArgumentError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r} is not a whole number") from None
    if isinstance(value, bool):  # an index for Python, but "on" for who writes it
        raise TypeError(f"{name} = {value!r} is not a whole number")
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise ArgumentError(f"{name} = {number} does not fit into {bits} bits")
    return number


def real(name: str, value: Any) -> float:
    """A number. Raises TypeError, ArgumentError."""
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"{name} = {value!r} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{name} = {value!r} is too large") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} = {value!r} is not a number") from None


def text(name: str, value: Any) -> bytes:
    """Text, which C ends at a zero byte. Raises TypeError, ArgumentError."""
    try:
        found = os.fsencode(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r} is not text") from None
    if b"\0" in found:
        raise ArgumentError(f"{name} = {value!r} has a zero byte in it")
    return found
