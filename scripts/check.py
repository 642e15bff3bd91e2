#!/usr/bin/env python3
"""Formatters, linters and type checkers on the files that git knows: the first suite of `make check`.

    python3 scripts/check.py              all; says what each finds and how long it took
    python3 scripts/check.py ruff mypy    these only
    python3 scripts/check.py --format     lays the files out instead (`make format`)

The tools are pinned in tools/ and come by the package indexes, once: Python's into the cache folder beside the hosts of
the tests, staticcheck into Go's own cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import install as hosts  # noqa: E402

REQUIREMENTS = ROOT / "tools" / "requirements.txt"
FOREIGN = ("plugin/internal/cudrv/include/",)  # declarations in the words of their makers


class Tools(hosts.Part):
    """The tools that are Python packages."""

    name = "check"

    def recipe(self):
        return {"packages": REQUIREMENTS.read_text()}

    def build(self, cache, tmp, log, opts):
        hosts.make_venv(tmp, log, ["-r", REQUIREMENTS])
        return dict(line.split("==") for line in REQUIREMENTS.read_text().split())


def tool(name: str) -> list[str]:
    """How a tool is started. The environment was moved when it was done, so its Python scripts do not know their Python."""
    folder = hosts.cache_dir() / Tools.name
    if name == "mypy":
        return [str(folder / "bin" / "python"), "-m", name]
    if name == "clang-format":
        return [str(next(folder.glob("lib/python*/site-packages/clang_format/data/bin/clang-format")))]
    return [str(folder / "bin" / name)]


def files(*patterns: str) -> list[str]:
    """Tracked files and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    return [f for f in listed if f and not f.startswith(FOREIGN) and (ROOT / f).exists()]


def run(*command: str, folder: Path = ROOT) -> bool:
    return subprocess.run(command, cwd=folder, check=False).returncode == 0


def gofmt() -> bool:
    done = subprocess.run(["gofmt", "-l", *files("*.go")], cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, end="", flush=True)
    return done.returncode == 0 and not done.stdout


def vet() -> bool:
    return run("go", "vet", "./...")


def staticcheck() -> bool:
    return run("go", "tool", "-modfile=tools/go.mod", "staticcheck", "./...")


def clang_format() -> bool:
    return run(*tool("clang-format"), "--dry-run", "--Werror", *files("*.c", "*.cc", "*.h", "*.cu", "*.cuh"))


def ruff() -> bool:
    checked = run(*tool("ruff"), "check", "--quiet", *files("*.py"))
    return run(*tool("ruff"), "format", "--check", "--quiet", "--diff", *files("*.py")) and checked


def mypy() -> bool:
    return run(*tool("mypy"), "--no-error-summary", "lessismore", folder=ROOT / "bindings" / "python")


def shellcheck() -> bool:
    return run(*tool("shellcheck"), *files("*.sh", ".ci/run"))


CHECKS = {
    "gofmt": gofmt,
    "vet": vet,
    "staticcheck": staticcheck,
    "clang-format": clang_format,
    "ruff": ruff,
    "mypy": mypy,
    "shellcheck": shellcheck,
}


def lay_out() -> bool:
    python = files("*.py")
    return all([
        run("gofmt", "-w", *files("*.go")),
        run(*tool("clang-format"), "-i", *files("*.c", "*.cc", "*.h", "*.cu", "*.cuh")),
        run(*tool("ruff"), "check", "--quiet", "--select", "I", "--fix", *python),
        run(*tool("ruff"), "format", "--quiet", *python),
    ])  # fmt: skip


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("checks", nargs="*", metavar="check", help=f"any of {', '.join(CHECKS)} (default: all)")
    ap.add_argument("--format", action="store_true", help="lay the files out")
    options = ap.parse_args()
    if unknown := [name for name in options.checks if name not in CHECKS]:
        ap.error(f"unknown check {unknown[0]!r}; there are {', '.join(CHECKS)}")
    os.environ["RUFF_NO_CACHE"] = "true"
    os.environ["MYPY_CACHE_DIR"] = str(ROOT / "build" / "mypy")
    hosts.PARTS[Tools.name] = Tools()
    if hosts.main([Tools.name]):
        return 1
    if options.format:
        return 0 if lay_out() else 1
    failed = []
    for name in options.checks or CHECKS:
        start = time.monotonic()
        if not CHECKS[name]():
            failed.append(name)
        print(f"{name:14} {'FAILED' if name in failed else 'ok':6} {time.monotonic() - start:5.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
