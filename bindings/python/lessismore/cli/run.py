"""Complete a text or chat with a GGUF model through llama-cpp-python, decoding sparsely.

Tokens are streamed; at the end it says how fast it was, and which share of the tokens was attended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Optional

from . import _crash, _exit, _llama, _options


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("-p", "--prompt", help="the text; without it, standard input is read")
    parser.add_argument("--chat", action="store_true", help="the model's chat template; without -p a conversation")
    parser.add_argument("--system", help="system message of a chat")
    parser.add_argument("-n", "--tokens", type=_options.positive, default=512, help="tokens at most (default 512)")
    parser.add_argument("--context", type=_options.positive, default=8192, help="context size (default 8192)")
    parser.add_argument("--threads", type=_options.positive, default=_options.cpus(), help="default: one per CPU")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--stock", action="store_true", help="the host alone, to compare with")
    parser.add_argument("--stats", metavar="FILE", help="keep the library's statistics here, for `lessismore report`")
    _options.settings(parser)


def command(options: argparse.Namespace) -> int:
    """Runs it in a process of its own, whose end completes the library's statistics. Returns the exit code."""
    if options.json and options.chat and options.prompt is None:
        raise ValueError("--json --chat needs --prompt")
    names = ("prompt", "chat", "system", "tokens", "context", "threads", "temperature", "json")
    job = {name: getattr(options, name) for name in names}
    job["model"] = _llama.model_file(options.model)
    _llama.host()
    with tempfile.TemporaryDirectory(prefix="lessismore-") as folder:
        stats = os.path.abspath(options.stats) if options.stats else os.path.join(folder, "stats.json")
        job["result"] = os.path.join(folder, "result.json")
        if not options.stock:
            job["enable"] = {**_options.chosen(options), "stats": stats}
        child = subprocess.Popen(_child(job), env=_llama.environment())
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:  # the child has it as well, and ends in its own time
                pass
        result = _read(job["result"])
        if result is None:
            raise RuntimeError(_crash.cause("llama-cpp-python", code, None if options.stock else lambda: _alone(job)))
        if "error" in result:
            raise RuntimeError(result["error"])
        return _tell(options, result, _read(stats))


def _child(job: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "lessismore.cli._chat", json.dumps(job)]


def _alone(job: dict[str, Any]) -> int:
    """Exit code of the host that does this job without lessismore; standard input, which is read, has a stand-in."""
    with tempfile.TemporaryDirectory(prefix="lessismore-") as folder:
        result = os.path.join(folder, "result.json")
        again = {**job, "prompt": job["prompt"] or "Hello", "json": True, "result": result}
        del again["enable"]
        code = _crash.tried(_child(again), _llama.environment())
        return code or int("error" in (_read(result) or {}))


def _read(path: str) -> Optional[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError), open(path) as f:
        found: dict[str, Any] = json.load(f)
        return found
    return None


def _tell(options: argparse.Namespace, result: dict[str, Any], report: Optional[dict[str, Any]]) -> int:
    total = report["total"] if report else {}
    engaged = bool(total.get("rows"))
    share = total["tokens_attended"] / total["tokens_visible"] if engaged else None
    tokens, seconds = result["decoded_tokens"], result["decode_seconds"]
    speed = tokens / seconds if tokens and seconds else None
    why = None
    if not engaged and not options.stock:
        why = (report or {}).get("reason") or "no decode step was taken"
    if options.json:
        more = {"tokens_per_second": speed, "engaged": engaged, "share_attended": share, "why": why, "stats": report}
        print(json.dumps({**result, **more}))
    else:
        line = f"{speed:.1f} tokens/s" if speed else "no tokens"
        if share is not None:
            line += f", {100 * share:.1f}% of the tokens attended"
        if why is not None:
            line += f"; the library took no part: {why}"
        print(line, file=sys.stderr)
    return _exit.DONE if engaged or options.stock else _exit.NOT_ENGAGED
