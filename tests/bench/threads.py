#!/usr/bin/env python3
"""Whole decode with more and more threads, with and without the library.

    <cache>/venv/bin/python tests/bench/threads.py --threads 4,8,16,32 [--preset qwen3-8b] [--host node-libs] [--out FILE]

Three processes hold the same long context in the same host: flash attention on, off, and the library. They are filled once; for each
context length and number of threads, the longest and largest first, all of a process's threads are pinned to the first so many of
the cores that this process may use, and the three take turns. With --dense a fourth has the library with sparsity off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import bench_decode  # noqa: E402
import hostlib  # noqa: E402
import numpy as np  # noqa: E402
from make_model import PRESETS, make  # noqa: E402


def measure(workers: dict[str, hostlib.Worker], rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Milliseconds a token of each round, by way.

    The first token of a turn does not count: the threads of the turn before wait for work in a loop, on the same cores, for a while.
    """
    names, times = list(workers), {name: [] for name in workers}
    for name in names:
        workers[name].decode(1)  # its threads are where they shall be
    for k in range(rounds):
        for i in np.roll(range(len(names)), k):
            times[names[i]].append(float(np.median(workers[names[i]].decode(1 + steps)[1:])))
    return {name: np.array(t) for name, t in times.items()}


def main() -> None:
    numbers = lambda text: [int(x) for x in text.split(",")]  # noqa: E731
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--threads", type=numbers, default=[1, 2])
    ap.add_argument("--contexts", type=numbers, default=[16384, 32768])
    ap.add_argument("--preset", default="qwen3-0.6b", choices=PRESETS)
    ap.add_argument("--host", default="llama-cpp-python", choices=["llama-cpp-python", "node-libs"])
    ap.add_argument("--kv", default="f16")
    ap.add_argument("--budget", type=int, default=2048)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--steps", type=int, default=2, help="tokens per turn")
    ap.add_argument("--dense", action="store_true", help="also the library with sparsity off")
    ap.add_argument("--out", type=Path)
    args = ap.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if max(args.threads) > len(cores):
        ap.error(f"--threads: {max(args.threads)} are more than the {len(cores)} cores that this process may use")
    shape = PRESETS[args.preset]
    model = str(make(hostlib.cache() / "models" / f"{args.preset}.gguf", shape))
    settings = {"LESSISMORE_BUDGET": args.budget, "LESSISMORE_LAYERS": f"2,{shape.layers // 3}"}
    job = dict(model=model, context=max(args.contexts), threads=max(args.threads), kv=args.kv, library=hostlib.library_path())
    ways = {"flash attention on": ("on", {}), "flash attention off": ("off", {}), "lessismore": ("library", settings)}
    if args.kv.startswith("q"):  # quantised values need flash attention
        del ways["flash attention off"]
    if args.dense:
        ways["lessismore, sparsity off"] = ("library", {**settings, "LESSISMORE_BUDGET": 1 << 20})
    with ThreadPoolExecutor() as at_once:
        filled = [at_once.submit(hostlib.Worker, args.host, way, settings=s, in_place=512 if s else 32, **job) for way, s in ways.values()]
    workers = {name: worker.result() for name, worker in zip(ways, filled)}
    rows, rng = [], np.random.default_rng(0)
    try:
        for context in sorted(args.contexts, reverse=True):
            for worker in workers.values():
                worker.change(context=context, threads=max(args.threads))
            for threads in sorted(args.threads, reverse=True):
                for worker in workers.values():
                    worker.change(threads=threads)
                    worker.pin(cores[:threads])
                times = measure(workers, args.rounds, args.steps)
                ms = {name: float(np.median(t)) for name, t in times.items()}
                best = min((name for name in ms if not name.startswith("lessismore")), key=ms.get)
                ratios = {name: times[best] / t for name, t in times.items() if name.startswith("lessismore")}
                rows.append(
                    {"name": "threads", "host": hostlib.built(args.host), "model": args.preset, "kv_type": args.kv, "budget": args.budget}
                    | {"context": context, "threads": threads, "rounds": args.rounds, "steps": args.steps, "load": os.getloadavg()[0]}
                    | {**hostlib.machine(), "ms": ms, "baseline": best}
                    | {"ratio": {name: [float(np.median(r)), *bench_decode.interval(r, rng)] for name, r in ratios.items()}}
                )
                told = ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items())
                print(f"{args.preset} {context} {args.kv}, {threads:2} threads: {told}; {rows[-1]['ratio']}", flush=True)
                if args.out:
                    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        for worker in workers.values():
            worker.close()
    for name, worker in workers.items():
        if ways[name][0] == "library" and (not worker.stats or worker.stats["state"] != "active"):
            sys.exit(f"{name}: the library did nothing: {worker.stats and worker.stats['reason']}")


if __name__ == "__main__":
    main()
