"""Options that several commands have."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any, Callable, Container

from ..settings import POLICIES, Settings


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


TYPES: dict[str, Callable[[str], Any]] = {
    "whole": int,
    "switch": int,
    "real": float,
    "target": float,
    "layers": numbers,
    "policy": str,
    "file": str,
}


def settings(parser: argparse.ArgumentParser, without: Container[str] = ()) -> None:
    """The library's settings."""
    for field in dataclasses.fields(Settings):
        if field.name not in without:
            kind = field.metadata["kind"]
            choices = list(POLICIES) if kind == "policy" else None
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(option, type=TYPES[kind], choices=choices, help=field.metadata["meaning"])


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """What settings() was given, as keyword arguments of enable()."""
    names = [field.name for field in dataclasses.fields(Settings)]
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))
