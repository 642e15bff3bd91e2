"""Options that several commands have."""

from __future__ import annotations

import argparse
import os
from typing import Any


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    return [int(part) for part in text.split(",")]


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def positives(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def selection(parser: argparse.ArgumentParser) -> None:
    """The library's settings."""
    parser.add_argument("--budget", type=positive, help="tokens that a sparse layer attends to (default 2048)")
    parser.add_argument("--layers", type=numbers, help="layers that choose, such as 2,12 (default: by rule)")
    parser.add_argument("--recency", type=float, help="share of the budget for the newest tokens (default 0.25)")
    parser.add_argument("--sink-tokens", type=int, help="first tokens that are always kept (default 4)")
    parser.add_argument("--policy", choices=["union", "mass"], help="how tokens are ranked (default union)")


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """What selection() was given, as keyword arguments of enable()."""
    names = ("budget", "layers", "recency", "sink_tokens", "policy")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))
