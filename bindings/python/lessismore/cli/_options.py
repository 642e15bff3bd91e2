"""Options that several commands have."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

from ..settings import Settings


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    return [int(part) for part in text.split(",")]


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is not 0 or more")
    return value


def positives(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def selection(parser: argparse.ArgumentParser, layers: bool = True, budget: bool = True) -> None:
    """The library's settings."""
    if budget:
        parser.add_argument("--budget", type=positive, help="tokens that a sparse layer attends to (default 2048)")
    if layers:
        parser.add_argument("--layers", type=numbers, help="layers that choose, such as 2,12 (default: measured)")
    parser.add_argument("--recency", type=float, help="share of the budget for the newest tokens (default 0.25)")
    parser.add_argument("--sink-tokens", type=int, help="first tokens that are always kept (default 4)")
    parser.add_argument("--policy", choices=["union", "mass"], help="how tokens are ranked (default union)")
    parser.add_argument("--selections", type=positive, help="without --layers: so many choose at most (default 2)")


def watching(parser: argparse.ArgumentParser, trace: bool = True) -> None:
    """What keeps and watches the selection layers, beside selection()."""
    parser.add_argument("--guard", type=int, help="steps between two audits, about; 0: none (default 16)")
    parser.add_argument("--interval", type=positive, help="steps that a token set serves (default 1)")
    parser.add_argument("--profile", help='what was measured of the model; "off": none (default: in the user\'s cache)')
    if trace:
        parser.add_argument("--trace", type=int, help="steps whose token sets the statistics keep (default 0)")


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """What selection() was given, as keyword arguments of enable()."""
    names = [field.name for field in dataclasses.fields(Settings)]
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))
