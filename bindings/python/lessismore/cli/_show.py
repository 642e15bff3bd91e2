"""What a person sees: progress on standard error, tables. With rich where it is installed, plain otherwise."""

from __future__ import annotations

import contextlib
import sys
from typing import Callable, Iterator, Sequence

try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
except ImportError:
    Progress = None  # type: ignore[assignment,misc]

Step = Callable[[str, float], None]


@contextlib.contextmanager
def progress(total: float) -> Iterator[Step]:
    """Yields step(what, done): says what is being done, and how much of total is done so far."""
    if Progress is None or not sys.stderr.isatty():
        last = [""]

        def plain(what: str, done: float) -> None:
            if what != last[0]:
                last[0] = what
                print(f"[{100 * done / total:3.0f}%] {what}", file=sys.stderr, flush=True)

        yield plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * w for w in widths], *rows]:
        cells = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
