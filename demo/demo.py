#!/usr/bin/env python3
"""The demo from a checkout: `make demo`. With node-llama-cpp, which is prebuilt: it is installed first, into the cache folder.

Everywhere else it is `lessismore demo`, with llama-cpp-python.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ROOT / "tests" / "hosts"
sys.path[:0] = [str(HOSTS), str(ROOT / "demo")]

PROBLEMS, CONTEXT = 4, 16_384
START = time.time()


def install_and_restart():
    """First run by any python3; then again by the one that has what is needed."""
    import install

    if install.main(["venv", "node"]):
        sys.exit(1)
    python = install.cache_dir() / "venv" / "bin" / "python"
    os.execv(python, [str(python), "-B", __file__, "--installed", str(START)])


class Node:
    """node-llama-cpp, run by tests/hosts/hostlib.py; its libraries alone where a context is held."""

    def __init__(self, library: Path):
        import hostlib

        self.hostlib, self.library = hostlib, library
        self.name = f"node-llama-cpp {hostlib.install.NODE_LLAMA_CPP}"

    def problem(self, seed):
        made = self.hostlib.Problem.make(seed)
        return made.prompt, made.solution

    def text(self, tokens):
        return self.hostlib.task.decode(tokens)

    def solve(self, prompts, lengths, settings, token):
        def on_line(line):
            if "token" in line:
                token(line["prompt"], line["token"])

        library = self.library if settings else None
        result = self.hostlib.run(
            "node", library=library, settings=variables(settings), prompts=prompts, lengths=lengths, stream=True, threads=1, on_line=on_line
        )
        return [result.tokens[i] for i in range(len(prompts))], result.stats or {}

    @contextlib.contextmanager
    def shape(self):
        """Made once, beside the hosts."""
        from make_model import PRESETS, make

        yield make(self.hostlib.cache() / "models" / "qwen3-0.6b.gguf", PRESETS["qwen3-0.6b"])

    def worker(self, setting, model, context, threads, settings, filled):
        return Held(
            self.hostlib.Worker(
                "node-libs", setting, library=self.library, model=str(model), settings=variables(settings), context=context,
                threads=threads, on_fill=filled,
            )
        )  # fmt: skip


class Held:
    def __init__(self, worker):
        self.decode, self.kill, self._worker = worker.decode, worker.close, worker

    def end(self):
        self._worker.close()
        return self._worker.stats or {}


def variables(settings):
    """The settings as environment variables."""
    text = {name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in (settings or {}).items()}
    return {f"LESSISMORE_{name.upper()}": value for name, value in text.items()}


def main() -> int:
    global START
    if "--installed" not in sys.argv:
        print("1. Installing the host (prebuilt)", flush=True)
        install_and_restart()
    START = float(sys.argv[sys.argv.index("--installed") + 1])
    import hostlib
    from rich.console import Console

    from lessismore_demo import show

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    library = hostlib.library_path()
    if not library.exists():
        console.print(f"demo: no library at {library}: run make first")
        return 1
    try:
        found = show.show(console, Node(library), PROBLEMS, CONTEXT, min(8, len(os.sched_getaffinity(0))), first=2)
    except Exception as error:  # noqa: BLE001 (a demo ends with one line, not with a traceback)
        console.print(f"demo: failed after {time.time() - START:.0f} s: {error}", markup=False)
        return 1
    console.print(f"  {time.time() - START:.0f} s in all")
    print(show.line(found), flush=True)
    return 0 if found["exact"] == PROBLEMS else 1


if __name__ == "__main__":
    sys.exit(main())
