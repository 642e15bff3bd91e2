"""Make one HTML page of what the library did: pictures of its statistics, and of a comparison.

The page is one file, needs nothing from anywhere, and shows, as far as there is data for it: which tokens each step
attended to (statistics kept with --trace or LESSISMORE_TRACE), what the guard's audits found over time, what was measured
of the model and which layers choose, what `lessismore check` found it to cost, and the table of `lessismore compare` as
curves.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from typing import Any, Optional

from .. import _files
from .._version import __version__
from . import _exit, _page, _pictures

ALIKE = 30  # first bytes that tell such a page from others: see _page
PARTS = ("contexts", "models", "config")  # of statistics


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stats", nargs="*", help="files of LESSISMORE_STATS, or profiles")
    parser.add_argument("--compare", metavar="FILE", help="results of `lessismore compare --out FILE`")
    parser.add_argument("--check", metavar="FILE", help="results of `lessismore check --out FILE`")
    parser.add_argument("-o", "--output", metavar="FILE", default="report.html", help="default report.html")
    parser.add_argument("--title", default="What lessismore attended to", help="heading of the page")


def command(options: argparse.Namespace) -> int:
    """Writes the page. Returns the exit code."""
    if not options.stats and not options.compare and not options.check:
        raise ValueError("there is nothing to show: name files of statistics, --check or --compare")
    runs, profiles = [], []
    for path in options.stats:
        found = _read(path)
        if {"choice", "fingerprint", "loss"} <= set(found):
            profiles.append(found)
        elif all(part in found for part in PARTS):
            runs.append((os.path.basename(path), found))
        else:
            raise ValueError(f"{path} is neither statistics of this library nor a profile")
    checked = _results(options.check, "check", {"contexts", "made", "verdict"})
    compared = _results(options.compare, "compare", {"methods"})
    if compared is not None and not {"results", "task"} <= set(compared):
        raise ValueError(f"{options.compare} is a comparison on a text: `lessismore compare --plot` draws it")
    page, shown = build(options.title, runs, profiles, checked, compared)
    _files.write(options.output, page.encode(), alike=ALIKE)
    if options.json:
        print(json.dumps({"page": os.path.abspath(options.output), "bytes": len(page.encode()), "shown": shown}))
    else:
        print(f"{options.output}: {', '.join(shown)}", file=sys.stderr)
    return _exit.DONE


def _results(path: Optional[str], command: str, parts: set[str]) -> Optional[dict[str, Any]]:
    """What another command left, if a file of it is named."""
    if path is None:
        return None
    found = _read(path)
    if not parts <= set(found):
        raise ValueError(f"{path} is no result of `lessismore {command}`")
    return found


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as f:
        try:
            found = json.load(f)
        except ValueError as e:
            raise ValueError(f"{path} is no JSON: {e}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object")
    return found


def build(
    title: str, runs: list[tuple[str, dict[str, Any]]], profiles: list[dict[str, Any]], checked: Any, compared: Any
) -> tuple[str, list[str]]:
    """The page, and the names of what is on it."""
    page = _page.Page(title)
    for name, run in runs:
        _pictures.facts(page, name, run)
    _pictures.steps(page, runs)
    _pictures.audits(page, runs)
    models: dict[str, dict[str, Any]] = {}
    for profile in [*(m for _, run in runs for m in run["models"]), *profiles]:
        models[profile["fingerprint"]] = profile
    _pictures.measured(page, list(models.values()))
    if checked is not None:
        _pictures.checked(page, checked)
    if compared is not None:
        _pictures.compared(page, compared)
    here = pathlib.Path(__file__).parent
    text = page.html((here / "report.css").read_text(), (here / "report.js").read_text(), __version__)
    return text, page.shown
