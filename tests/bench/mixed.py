#!/usr/bin/env python3
"""What a prompt costs that comes while others decode: a server's continuous batching, without the server.

    <cache>/venv/bin/python tests/bench/mixed.py [--context 8192] [--rows 4] [--prompt 480] [--out FILE]

Three processes hold the same long context in the same host, with flash attention on, off, and with the library, and take turns. Each times
one llama_decode of a prompt, of decode rows of as many sequences, and of both in one batch. What has to hold: the batch takes no longer
than with the host alone, so that prompts come in as fast; the tokens of the others are then free.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import hostlib  # noqa: E402
import numpy as np  # noqa: E402
from make_model import PRESETS, make  # noqa: E402

PRESET = "qwen3-0.6b"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="llama-cpp-python")
    parser.add_argument(
        "--reasoner", action="store_true", help="the test model, whose attention is most of its work, instead of Qwen3-0.6B's shape"
    )
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=480)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shape = PRESETS[PRESET]
    model, layers = (
        (hostlib.REASONER, "2,9")
        if args.reasoner
        else (make(hostlib.cache() / "models" / f"{PRESET}.gguf", shape), f"2,{shape.layers // 3}")
    )
    settings = {"LESSISMORE_BUDGET": args.budget, "LESSISMORE_LAYERS": layers}
    job = dict(
        model=str(model), context=args.context, threads=args.threads, kv=args.kv,
        sequences=args.rows + 2,
    )  # fmt: skip
    ways = ["on", "library"] if args.kv != "f16" else ["on", "off", "library"]  # a quantised cache needs flash attention
    workers = [hostlib.Worker(args.host, way, library=hostlib.library_path(), settings=settings, **job) for way in ways]
    times: list[list[dict[str, float]]] = [[] for _ in ways]
    try:
        for turn in range(args.turns):
            for i in np.roll(range(len(ways)), turn):
                times[i].append(workers[i].batches(args.rows, args.prompt))
    finally:
        for worker in workers:
            worker.close()
    total = workers[-1].stats["total"]
    if total["mixed_steps"] == 0 or "mixed" in total["declined"]:
        sys.exit(f"the library took no mixed batch: {total}")
    result = {"machine": hostlib.machine(), "arguments": {k: v for k, v in vars(args).items() if k != "out"}, "ms": {}, "ratio": {}}
    for what in ("prompt", "decode", "mixed"):
        of = {way: np.array([t[what] for t in times[i]]) for i, way in enumerate(ways)}
        result["ms"][what] = {way: round(float(np.median(ms)), 1) for way, ms in of.items()}
        result["ratio"][what] = {way: round(float(np.median(of["library"] / ms)), 3) for way, ms in of.items() if way != "library"}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
