"""What the library does, in a few minutes, on an unmodified host.

1. Solves problems with the host alone and with the library, side by side. They need facts from anywhere in the text,
   so a wrong token set shows at once.
2. Decodes behind a long context with a model of Qwen3-0.6B's shape (random weights: time does not depend on them): the
   host with its flash attention on and off, which is what to beat, and the library; in turn, so that all see the same
   machine.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any, Callable, ContextManager, Optional, Protocol, Sequence

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

SPARSE = {"budget": 128, "layers": [2, 9]}  # the reasoner's: docs/auto.md
LAYERS = [2, 9]  # by hand: what a model with random weights would have measured means nothing
ROUNDS, STEPS = 6, 4
SETTINGS = {"on": "host, flash attention on", "off": "host, flash attention off", "library": "with the library"}


class Worker(Protocol):
    """A host that holds a context and decodes when it is told to."""

    def decode(self, steps: int) -> list[float]:
        """Milliseconds of each of so many tokens, always behind the same context."""

    def end(self) -> dict[str, Any]:
        """Ends it; what the library counted."""

    def kill(self) -> None: ...


class Host(Protocol):
    """What the demo needs of a host, and of the models that it runs."""

    name: str  # and version

    def problem(self, seed: int) -> tuple[list[int], list[int]]:
        """A problem's prompt and its one right continuation, as tokens."""

    def text(self, tokens: Sequence[int]) -> str: ...

    def solve(
        self, prompts: Sequence[list[int]], lengths: Sequence[int], settings: Optional[dict[str, Any]], token: Callable[[int, int], None]
    ) -> Any:
        """Continues the prompts, telling token(prompt, id) of each token; with the library where there are settings for it.

        Returns the tokens of each, and what the library counted."""

    def shape(self) -> ContextManager[Path]:
        """A GGUF file of Qwen3-0.6B's shape, with random weights."""

    def worker(
        self, setting: str, model: Path, context: int, threads: int, settings: dict[str, Any], filled: Callable[[int], None]
    ) -> Worker: ...


class Side:
    """One host solving the problems, its text arriving token by token."""

    def __init__(self, title: str, host: Host, problems: Sequence[tuple[list[int], list[int]]], settings: Optional[dict[str, Any]]):
        self.title, self.host, self.problems, self.settings = title, host, problems, settings
        self.text, self.problem, self.count, self.begun, self.rate = "", 0, 0, 0.0, 0.0
        self.tokens: list[list[int]] = []
        self.report: dict[str, Any] = {}
        self.error: Optional[Exception] = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        try:
            prompts, solutions = zip(*self.problems)
            self.tokens, self.report = self.host.solve(prompts, [len(s) for s in solutions], self.settings, self.token)
        except Exception as error:  # noqa: BLE001 (raised by the caller)
            self.error = error

    def token(self, problem: int, token: int) -> None:
        if problem != self.problem or not self.count:
            self.problem, self.text, self.count, self.begun = problem, "", 0, time.time()
        self.text += self.host.text([token])
        self.count += 1
        if self.count > 1:
            self.rate = (self.count - 1) / (time.time() - self.begun)

    def panel(self) -> Panel:
        head = f"problem {self.problem + 1} of {len(self.problems)}, token {self.count}, {self.rate:.0f} tokens/s"
        return Panel(Text(self.text[-480:] or "reading the problem …", overflow="fold"), title=self.title, subtitle=head, height=10)


def took_part(report: dict[str, Any]) -> dict[str, Any]:
    """The totals of what the library counted. Raises RuntimeError if it took no part."""
    if not report:
        raise RuntimeError("the library took no part: it left no statistics")
    total: dict[str, Any] = report["total"]
    if report["state"] != "active" or not total["rows_sparse"]:
        raise RuntimeError(f"the library took no part: {report.get('reason') or 'no layer was sparse'}")
    return total


def solve(console: Console, host: Host, problems: int) -> tuple[int, float]:
    """How many problems both sides solve, and the share of the tokens that was attended."""
    given = [host.problem(seed) for seed in range(1, problems + 1)]
    sides = [Side("host alone", host, given, None), Side(f"with the library, budget {SPARSE['budget']}", host, given, SPARSE)]
    for side in sides:
        side.thread.start()

    def view() -> Table:
        grid = Table.grid(expand=True)
        for _ in sides:
            grid.add_column(ratio=1)
        grid.add_row(*(s.panel() for s in sides))
        return grid

    if console.is_terminal:
        with Live(view(), console=console, refresh_per_second=8) as live:
            while any(s.thread.is_alive() for s in sides):
                time.sleep(0.12)
                live.update(view())
    else:
        while any(s.thread.is_alive() for s in sides):
            sides[0].thread.join(3)
            console.print("  " + "   ".join(f"{s.title}: problem {s.problem + 1}, token {s.count}" for s in sides))
    for side in sides:
        side.thread.join()
        if side.error:
            raise side.error
    alone, ours = (s.tokens for s in sides)
    exact = 0
    for i, (_, right) in enumerate(given):
        exact += alone[i] == ours[i] == right
        said = ["right" if tokens[i] == right else "WRONG" for tokens in (alone, ours)]
        console.print(f"  problem {i + 1}: {len(right)} tokens, host {said[0]}, library {said[1]}, answer {host.text(ours[i])[-2:]}")
    total = took_part(sides[1].report)
    share = total["tokens_attended"] / total["tokens_visible"]
    inner = total["sparse_layer_tokens_attended"] / total["sparse_layer_tokens_visible"]
    console.print(
        f"  {total['rows_sparse']} tokens decoded sparsely; attended {share:.0%} of the tokens over all "
        f"layers, {inner:.0%} in the layers that take over the set of others"
    )
    return exact, share


def decode(console: Console, host: Host, context: int, budget: int, threads: int) -> dict[str, float]:
    """Milliseconds per token behind a context, for each of SETTINGS."""
    console.print("  making a model of the shape of Qwen3-0.6B")
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    workers: dict[str, Worker] = {}
    columns = (TextColumn("  {task.description:26}"), BarColumn(), TextColumn("{task.fields[note]:28}"), TimeElapsedColumn())
    with contextlib.ExitStack() as stack, Progress(*columns, console=console) as progress:
        model = stack.enter_context(host.shape())
        bars = {name: progress.add_task(title, total=context + 1, note="waiting") for name, title in SETTINGS.items()}
        for group in groups(model, context):
            try:
                for name in group:
                    progress.update(bars[name], note="filling the context")

                    def filled(count: int, bar: Any = bars[name]) -> None:
                        progress.update(bar, completed=count, note=f"{count} tokens of context")

                    workers[name] = host.worker(name, model, context, threads, {"budget": budget, "layers": LAYERS}, filled)
                    progress.update(bars[name], completed=context)
                for k in range(ROUNDS):
                    for name in group[k % len(group) :] + group[: k % len(group)]:
                        times[name] += workers[name].decode(STEPS)
                        progress.update(bars[name], note=f"{statistics.median(times[name]):.1f} ms per token")
                if "library" in group:
                    report = workers["library"].end()
                for name in group:
                    progress.update(bars[name], completed=context + 1)
            finally:
                for name in group:
                    if name in workers:
                        workers[name].kill()
    ms = {name: statistics.median(of) for name, of in times.items()}
    for name, title in SETTINGS.items():
        console.print(f"  {title:26} {ms[name]:8.1f} ms per token, {threads} threads")
    total = took_part(report)
    console.print(f"  selection layers {LAYERS}, attended {total['tokens_attended'] / total['tokens_visible']:.0%} of the tokens")
    return ms


def groups(model: Path, context: int) -> list[list[str]]:
    """Who holds a context at the same time as whom: all, where there is the memory."""
    each = context * 28 * 2 * 8 * 128 * 2 + model.stat().st_size * 2  # Qwen3-0.6B's layers, K and V, KV heads, head_dim, f16
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [list(SETTINGS)] if free > 3.5 * each else [[name] for name in SETTINGS]


def show(console: Console, host: Host, problems: int, context: int, threads: int, first: int = 1) -> dict[str, Any]:
    """The demo; its steps are numbered from `first`. Returns what was found. Raises RuntimeError if the library took no part."""
    console.print(f"{first}. {problems} problems, {host.name}, unmodified")
    exact, share = solve(console, host, problems)
    budget = min(2048, context // 4)
    console.print(f"{first + 1}. Decoding behind {context} tokens, budget {budget}")
    ms = decode(console, host, context, budget, threads)
    stock = min(ms["on"], ms["off"])
    return {"host": host.name, "exact": exact, "problems": problems, "share_attended": share, "context": context, "budget": budget, "threads": threads,
            "ms": ms, "ratio": stock / ms["library"]}  # fmt: skip


def line(found: dict[str, Any]) -> str:
    stock = min(found["ms"]["on"], found["ms"]["off"])
    return (
        f"demo: exact {found['exact']}/{found['problems']}, attended {found['share_attended']:.0%} of tokens, decode at {found['context']}: "
        f"{stock:.1f} ms -> {found['ms']['library']:.1f} ms, {found['ratio']:.1f} x faster than the better stock setting"
    )
