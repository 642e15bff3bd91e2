"""The command line: `lessismore doctor`, `run`, `demo`, `bench`, `check`, `calibrate`, `compare`, `eval`, `report`.

Exit codes: 0 done; 1 it failed, with one line on standard error; 2 wrong arguments; 3 it ran, but the library took
no part; 4 `check` found a larger loss than --max-kl allows; 130 interrupted. With --json standard output is one JSON value and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from .._errors import Error
from .._version import __version__
from . import _exit, bench, calibrate, check, compare, demo, doctor, eval, report, run


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="lessismore", description="Sparse decode attention for long reasoning.")
    parser.add_argument("--version", action="version", version=f"lessismore {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (doctor, run, demo, bench, check, calibrate, compare, eval, report):
        name = command.__name__.rpartition(".")[2]
        assert command.__doc__
        line = command.__doc__.splitlines()[0]
        sub = commands.add_parser(name, help=line, description=line)
        command.arguments(sub)
        sub.add_argument("--json", action="store_true", help="one JSON value on standard output")
        sub.set_defaults(command=command.command)
    options = parser.parse_args(arguments)
    try:
        code: int = options.command(options)
        return code
    except KeyboardInterrupt:
        return _exit.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on: nothing to complain about either
        return _exit.FAILED
    except (Error, OSError, ValueError, ImportError, RuntimeError) as e:
        lines = str(e).split("\n")
        print(f"lessismore: {lines[0] or type(e).__name__}", file=sys.stderr)
        return _exit.FAILED
