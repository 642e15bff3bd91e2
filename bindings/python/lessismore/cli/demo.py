"""Show what the library does: a host with and without it, side by side, on models that come along.

They are in the package lessismore-demo, which is as large as this one several times over and of use once.
"""

from __future__ import annotations

import argparse

from . import _llama, _options


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", type=_options.positive, default=4, help="that both solve (default 4)")
    parser.add_argument("--context", type=_options.positive, default=16384, help="tokens that are decoded behind (default 16384)")
    parser.add_argument("--threads", type=_options.positive, default=min(8, _options.cpus()), help="default: one per CPU, 8 at most")


def command(options: argparse.Namespace) -> int:
    """Runs it. Returns the exit code: 1 if an answer differs."""
    try:
        import lessismore_demo
    except ImportError as e:
        absent = isinstance(e, ModuleNotFoundError) and e.name == "lessismore_demo"
        why = "pip install lessismore-demo" if absent else f"it cannot be imported: {e}"
        raise ImportError(f"the demo's models and host are needed for this: {why}") from e
    _llama.host()
    code: int = lessismore_demo.run(options.problems, options.context, options.threads, options.json)
    return code
