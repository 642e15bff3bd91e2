#!/usr/bin/env python3
"""Whole decode, milliseconds per token: the host with and without the library.

    <cache>/venv/bin/python tests/hosts/bench_decode.py --contexts 4096,16384 --out decode.json

For each context length, thread count and cache type one process for each way to decode
holds the same context: the host with flash attention on, and off, the same of its
neighbours (engines that a user could pick instead, same file, threads and text), and the
library. They take turns, a few tokens each, round after round, so that a machine that
slows down slows all of them; the baseline is the best of all that are not the library, and one that takes
twice its time in the first rounds is left out of the rest. Where memory has no room for all of them, they take turns in groups, each with the
library's process again. Contexts are filled with all cores that this process may use.
The ratio is the median over rounds, its interval a bootstrap over rounds. Text and
weights are random, which is all that the time depends on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import hostlib
import numpy as np
from make_model import PRESETS, make

KV_BYTES = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}
ALL_ROUNDS = 2  # in which slow ways take part too
BESIDE = 700 << 20  # bytes that a process with a context has beside its K/V
NEIGHBOURS = {  # beside the host itself
    "node-libs": "llama.cpp of node-llama-cpp",
    "ik-llama": "ik_llama.cpp",
    "py-sync": "llama.cpp of llama-cpp-py-sync, the newest of the package index",
}


def interval(values: np.ndarray, rng, rounds: int = 4000) -> tuple[float, float]:
    """Bootstrap 95 % confidence interval of the median."""
    picks = rng.integers(0, len(values), (rounds, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def library_bytes(shape, context: int, budget: int, layers, kv: str) -> int:
    """K/V bytes that the library reads for one token: full layers all of it, others T."""
    start = layers[0]
    full = len(set(range(start)) | set(layers)) if budget < context else shape.layers
    row = shape.kv_bytes(KV_BYTES[kv])
    return full * context * row + (shape.layers - full) * min(budget, context) * row


def say(text: str):
    print(text, file=sys.stderr, flush=True)


def groups(stock: list[str], context_bytes: int, memory: int) -> list[list[str]]:
    """The stock ways, in as few groups as the memory allows, each with room for the library's context beside them."""
    at_once = max(1, memory // context_bytes - 1)
    count = -(-len(stock) // at_once)
    return [stock[i::count] for i in range(count)]


def available() -> int:
    """Bytes of memory that processes can still have, less a tenth."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 * 9 // 10


def turns(ways: dict, jobs: dict, args, at: str) -> tuple[dict[str, list], dict | None]:
    """Milliseconds a token of each round, by way, and the library's statistics. All of the ways hold their contexts at once."""
    names, stock = list(ways), [n for n in ways if n != "library"]
    workers, times, slow = {}, {n: [] for n in names}, set()
    try:
        for n, (engine, setting) in ways.items():
            say(f"  {at}, {n}: filling")
            workers[n] = hostlib.Worker(engine, setting, **jobs[n])
        for k in range(args.rounds):
            if k == ALL_ROUNDS:
                medians = {n: np.median(times[n]) for n in stock}
                own = min((n for n in stock if ways[n][0] == args.host), key=medians.get, default=None)
                slow = {n for n in stock if n != own and medians[n] > 2 * min(medians.values())}
            for n in np.roll(names, -k).tolist():
                if n not in slow:
                    times[n].append(float(np.median(workers[n].decode(args.steps))))
    finally:
        for w in workers.values():
            w.close()
    return times, workers["library"].stats if "library" in workers else None


def measure(args, shape, model, context: int, threads: int, kv: str, library) -> dict:
    # Layers by hand: what a model with random weights would have measured means nothing.
    settings = {"LESSISMORE_BUDGET": args.budget, "LESSISMORE_LAYERS": args.layers or f"2,{shape.layers // 3}"}
    flash = ("on",) if kv.startswith("q") else ("off", "on")  # quantised values need flash attention
    stock = {f"{engine}, flash attention {f}": (engine, f) for f in flash for engine in (args.host, *args.neighbours)}
    ours = {"library": (args.host, "library")} if library else {}
    job = dict(library=library, settings=settings, model=model, context=context, threads=threads, kv=kv)
    job["fill_threads"] = len(os.sched_getaffinity(0))
    # A row of the library's is sparse where it has seen the newest tokens come: a quarter of the budget.
    seen = {"library": args.budget // 4 if args.budget < context else 32}
    jobs = {n: job | {"in_place": seen.get(n, 32)} for n in stock | ours}
    context_bytes = context * shape.layers * shape.kv_bytes(KV_BYTES[kv]) + BESIDE
    times, library_ms, ratios, stats = {}, [], {}, None
    for group in groups(list(stock), context_bytes, args.memory or available()):
        # Ours first: while the others are filled its K/V goes on to huge pages, as in a long chain.
        took, stats = turns(ours | {n: stock[n] for n in group}, jobs, args, f"{context} tokens, {threads} thread(s), {kv}")
        beside = np.array(took.pop("library", []))
        times |= took
        library_ms += beside.tolist()
        ratios |= {n: np.array(t) / beside[: len(t)] for n, t in took.items()} if library else {}
    if (load := os.getloadavg()[0]) > threads + 1:
        say(f"  warning: other programs run here (load {load:.1f}): these numbers mean little")
    rng = np.random.default_rng(0)
    ms = {n: float(np.median(t)) for n, t in times.items()}
    # Beside the library each is as fast as its group's minutes were: their ratios compare them.
    speed = {n: float(np.median(r)) for n, r in ratios.items()} or ms
    best = min(stock, key=speed.get)
    own = min((n for n, (engine, _) in stock.items() if engine == args.host), key=speed.get)
    out = {
        "name": "decode",
        "host": hostlib.built(args.host),
        "model": args.preset,
        "kv_type": kv,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "context": context,
        "budget": args.budget,
        "threads": threads,
        "rounds": args.rounds,
        "steps": args.steps,
        "load": load,
        **hostlib.machine(),
        "baseline": best,
        "baseline_ms": ms[best],
        "engines_ms": {n: ms[n] for n in stock},
        "neighbours": [hostlib.built(engine) for engine in args.neighbours],
        "ms": None,
        "ratio": None,
        "ratio_interval": None,
        "bytes": None,
        "limit_share": None,
    }
    if library:
        if not stats or stats["state"] != "active":
            raise SystemExit(f"the library took no part: {stats and stats['reason']}")
        used = next(c for c in stats["contexts"] if c["rows"])
        low, high = interval(ratios[best], rng)
        out |= {
            "ms": (ours_ms := float(np.median(library_ms))),
            "ratio": float(np.median(ratios[best])),
            "ratio_interval": [low, high],
            "ratio_to_host": float(np.median(ratios[own])),
            "ratio_to_host_interval": list(interval(ratios[own], rng)),
            "layers": used["selection_layers"],
            "bytes": library_bytes(shape, context, args.budget, used["selection_layers"], kv),
            "share_attended": used["tokens_attended"] / max(1, used["tokens_visible"]),
        }
        if args.bandwidth:
            out["limit_share"] = out["bytes"] / (args.bandwidth * 1e9) * 1e3 / ours_ms
    return out


def main():
    numbers = lambda text: [int(x) for x in text.split(",")]  # noqa: E731
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--contexts", type=numbers, default=[512, 4096, 16384], help="default 512,4096,16384")
    ap.add_argument("--threads", type=numbers, default=[1, 2])
    ap.add_argument("--kv", default="f16", help="cache types, comma separated")
    ap.add_argument("--budget", type=int, default=2048)
    ap.add_argument("--layers", help="selection layers (default: 2 and a third of the layers)")
    ap.add_argument("--preset", default="qwen3-0.6b", choices=PRESETS)
    ap.add_argument("--host", default="llama-cpp-python", choices=["llama-cpp-python", "node-libs"])
    ap.add_argument("--neighbours", default="", help=f"other engines, comma separated, of {', '.join(NEIGHBOURS)} (none)")
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--steps", type=int, default=4, help="tokens per setting and round")
    ap.add_argument("--bandwidth", type=float, help="measured read bandwidth, GB/s, for limit_share")
    ap.add_argument("--memory", type=int, help="bytes that all contexts may have together (what is available, less a tenth)")
    ap.add_argument("--stock", action="store_true", help="measure the host only")
    ap.add_argument("--out", help="JSON file (default: standard output)")
    args = ap.parse_args()
    args.neighbours = [n for n in args.neighbours.split(",") if n]
    if unknown := [n for n in args.neighbours if n not in NEIGHBOURS or n == args.host]:
        ap.error(f"--neighbours: {unknown[0]!r} is none of {', '.join(n for n in NEIGHBOURS if n != args.host)}")
    library = None if args.stock else hostlib.library_path()
    if library and not library.exists():
        ap.error(f"no library at {library}")
    shape = PRESETS[args.preset]
    model = str(make(hostlib.cache() / "models" / f"{args.preset}.gguf", shape))
    results = []
    for context in args.contexts:
        for threads in args.threads:
            for kv in args.kv.split(","):
                start = time.time()
                r = measure(args, shape, model, context, threads, kv, library)
                results.append(r)
                ours = (
                    ""
                    if r["ms"] is None
                    else (f", library {r['ms']:.1f}, {r['ratio']:.2f}x [{r['ratio_interval'][0]:.2f}, {r['ratio_interval'][1]:.2f}]")
                )
                engines = ", ".join(f"{n} {of:.1f} ms" for n, of in r["engines_ms"].items())
                say(f"{context:6} tokens, {threads} thread(s), {kv}: {engines}{ours}   ({time.time() - start:.0f} s)")
                if args.out:
                    with open(args.out, "w") as f:
                        json.dump(results, f, indent=1)
    if not args.out:
        json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
