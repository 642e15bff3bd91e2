#!/usr/bin/env python3
"""What the library does, in a few minutes, on an unmodified host: `make demo`.

1. Installs node-llama-cpp, prebuilt, into the cache folder (tests/hosts/install.py).
2. Solves four problems with the host alone and with the library, side by side. The
   problems need facts from anywhere in the text, so a wrong token set shows at once.
3. Decodes behind 16,384 tokens with a model of Qwen3-0.6B's shape (random weights:
   time does not depend on them): the host with its flash attention on and off, which
   is what to beat, and the library; in turn, so that all see the same machine.

Exits with 1 if an answer differs or the library took no part.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ROOT / "tests" / "hosts"
sys.path.insert(0, str(HOSTS))

SEEDS = (1, 2, 3, 4)
SPARSE = {"LESSISMORE_BUDGET": 128, "LESSISMORE_LAYERS": "2,9"}
CONTEXT, BUDGET = 16_384, 2_048
ROUNDS, STEPS = 6, 4
START = time.time()


def install_and_restart():
    """First run by any python3; then again by the one that has what is needed."""
    import install

    if install.main(["venv", "node"]):
        sys.exit(1)
    python = install.cache_dir() / "venv" / "bin" / "python"
    os.execv(python, [str(python), "-B", __file__, "--installed", str(START)])


class Side:
    """One host solving the problems, its text arriving token by token."""

    def __init__(self, title, library):
        self.title, self.library = title, library
        self.text, self.problem, self.count, self.begun, self.rate = "", 0, 0, 0.0, 0.0
        self.result = self.error = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        import hostlib

        try:
            self.result = hostlib.run(
                "node",
                library=self.library,
                settings=SPARSE if self.library else {},
                problems=[hostlib.Problem.make(s) for s in SEEDS],
                stream=True,
                threads=1,
                on_line=self.on_line,
            )
        except Exception as error:  # noqa: BLE001 (shown by the caller)
            self.error = error

    def on_line(self, line):
        import task

        if "token" not in line:
            return
        if line["prompt"] != self.problem or not self.count:
            self.problem, self.text, self.count, self.begun = line["prompt"], "", 0, time.time()
        self.text += task.decode([line["token"]])
        self.count += 1
        if self.count > 1:
            self.rate = (self.count - 1) / (time.time() - self.begun)

    def panel(self):
        from rich.panel import Panel
        from rich.text import Text

        head = f"problem {self.problem + 1} of {len(SEEDS)}, token {self.count}, {self.rate:.0f} tokens/s"
        return Panel(Text(self.text[-480:] or "reading the problem …", overflow="fold"), title=self.title, subtitle=head, height=10)


def solve(console, library) -> tuple[int, float]:
    import hostlib
    from rich.live import Live
    from rich.table import Table

    sides = [Side("host alone", None), Side("with the library, budget 128", library)]
    for side in sides:
        side.thread.start()

    def view():
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
            time.sleep(3)
            console.print("  " + "   ".join(f"{s.title}: problem {s.problem + 1}, token {s.count}" for s in sides))
    for side in sides:
        if side.error:
            raise side.error
    host, ours = (s.result for s in sides)
    exact = 0
    for i, seed in enumerate(SEEDS):
        right = hostlib.Problem.make(seed).solution
        same = host.tokens[i] == ours.tokens[i] == right
        exact += same
        console.print(
            f"  problem {i + 1}: {len(right)} tokens, "
            f"host {'right' if host.tokens[i] == right else 'WRONG'}, "
            f"library {'right' if ours.tokens[i] == right else 'WRONG'}, "
            f"answer {hostlib.task.decode(ours.tokens[i])[-2:]}"
        )
    stats = ours.stats
    if not stats or stats["state"] != "active" or not stats["total"]["rows_sparse"]:
        raise RuntimeError(f"the library took no part: {stats['reason'] if stats else 'it was not loaded'}")
    total = stats["total"]
    share = total["tokens_attended"] / total["tokens_visible"]
    inner = total["sparse_layer_tokens_attended"] / total["sparse_layer_tokens_visible"]
    console.print(
        f"  {total['rows_sparse']} tokens decoded sparsely; attended {share:.0%} of the tokens over all "
        f"layers, {inner:.0%} in the layers that take over the set of others"
    )
    return exact, share


def decode(console, library) -> tuple[float, float, float]:
    import statistics

    import hostlib
    from make_model import PRESETS, make
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    preset = "qwen3-0.6b"
    path = hostlib.cache() / "models" / f"{preset}.gguf"
    console.print(f"  making a model of the shape of Qwen3-0.6B: {path}")
    model = str(make(path, PRESETS[preset]))
    threads = min(8, len(os.sched_getaffinity(0)))
    # Layers by hand: what a model with random weights would have measured means nothing.
    names = {"on": "host, flash attention on", "off": "host, flash attention off", "library": "with the library"}
    shape = PRESETS[preset]
    each = CONTEXT * shape.layers * shape.kv_bytes() + path.stat().st_size * 2
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups = [list(names)] if free > 3.5 * each else [[n] for n in names]
    times: dict[str, list[float]] = {n: [] for n in names}
    stats = None
    columns = (TextColumn("  {task.description:26}"), BarColumn(), TextColumn("{task.fields[note]:28}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {n: progress.add_task(t, total=CONTEXT + 1, note="waiting") for n, t in names.items()}
        for group in groups:
            workers = {}
            try:
                for n in group:
                    progress.update(bars[n], note="filling the context")
                    workers[n] = hostlib.Worker(
                        "node-libs",
                        n,
                        library=library,
                        model=model,
                        settings={"LESSISMORE_BUDGET": BUDGET, "LESSISMORE_LAYERS": "2,9"},
                        context=CONTEXT,
                        threads=threads,
                        on_fill=lambda k, b=bars[n]: progress.update(b, completed=k, note=f"{k} tokens of context"),
                    )
                    progress.update(bars[n], completed=CONTEXT)
                for k in range(ROUNDS):
                    for n in group[k % len(group) :] + group[: k % len(group)]:
                        times[n] += workers[n].decode(STEPS)
                        progress.update(bars[n], note=f"{statistics.median(times[n]):.1f} ms per token")
                for n in group:
                    progress.update(bars[n], completed=CONTEXT + 1)
            finally:
                for n, w in workers.items():
                    w.close()
                    if n == "library":
                        stats = w.stats
    ms = {n: statistics.median(t) for n, t in times.items()}
    for n, title in names.items():
        console.print(f"  {title:26} {ms[n]:8.1f} ms per token, {threads} threads")
    if not stats or stats["state"] != "active" or not stats["total"]["rows_sparse"]:
        raise RuntimeError(f"the library took no part: {stats['reason'] if stats else 'it was not loaded'}")
    total = stats["total"]
    console.print(
        f"  selection layers {stats['total']['selection_layers']}, attended "
        f"{total['tokens_attended'] / total['tokens_visible']:.0%} of the tokens"
    )
    stock = min(ms["on"], ms["off"])
    return stock, ms["library"], stock / ms["library"]


def main() -> int:
    global START
    if "--installed" not in sys.argv:
        print("1. Installing the host (prebuilt)", flush=True)
        install_and_restart()
    START = float(sys.argv[sys.argv.index("--installed") + 1])
    import hostlib
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    library = hostlib.library_path()
    if not library.exists():
        console.print(f"demo: no library at {library}: run make first")
        return 1
    version = hostlib.install.NODE_LLAMA_CPP
    try:
        console.print(f"2. Four problems, node-llama-cpp {version}, unmodified; the library is {library}")
        exact, share = solve(console, library)
        console.print(f"3. Decoding behind {CONTEXT} tokens, budget {BUDGET}")
        stock, ours, ratio = decode(console, library)
    except Exception as error:  # noqa: BLE001 (a demo ends with one line, not with a traceback)
        console.print(f"demo: failed after {time.time() - START:.0f} s: {error}", markup=False)
        return 1
    console.print(f"  {time.time() - START:.0f} s in all")
    line = (
        f"demo: exact {exact}/{len(SEEDS)}, attended {share:.0%} of tokens, decode at {CONTEXT}: "
        f"{stock:.1f} ms -> {ours:.1f} ms, {ratio:.1f} x faster than the better stock setting"
    )
    print(line, flush=True)
    return 0 if exact == len(SEEDS) else 1


if __name__ == "__main__":
    sys.exit(main())
