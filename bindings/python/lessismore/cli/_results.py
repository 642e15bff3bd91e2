"""Results that a command writes row by row, and goes on from when it is run again."""

from __future__ import annotations

import json
import os
from typing import Any, Iterable, Optional

from .. import _files


def read(path: Optional[str], command: str, now: dict[str, Any], same: Iterable[str], has: Iterable[str]) -> Optional[dict[str, Any]]:
    """What an earlier run left in a file; None: nothing is there, or nothing stays there.

    same: what has to be as it is now; has: what else is in a result. Raises ValueError for anything else than a result of the same things.
    """
    if not path or _files.streams(path) or not os.path.exists(path) or not os.path.getsize(path):
        return None
    same = tuple(same)
    try:
        with open(path) as f:
            before = json.load(f)
    except ValueError:  # neither JSON nor text
        before = None
    if not isinstance(before, dict) or not {*same, *has} <= set(before):
        raise ValueError(f"{path} is no result of `lessismore {command}`")
    for name in same:
        if before[name] != now[name]:
            raise ValueError(f"{path} has another {name}: {before[name]}, not {now[name]}")
    return before


def write(report: dict[str, Any], path: Optional[str]) -> None:
    if path:
        _files.write(path, json.dumps(report, indent=1).encode() + b"\n")
