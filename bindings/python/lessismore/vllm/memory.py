"""The library's work memory, which is not vLLM's K/V store's: how much, and for how many rows."""

from __future__ import annotations

from typing import Callable

SHARE = 64  # of the device's memory, at most one part of so many


def rows_within(size: Callable[[int], int], most: int, limit: int) -> int:
    """The most rows whose work memory is within a limit; 0: not even one's. size: bytes by rows, which grows with them."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if size(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low
