#!/usr/bin/env python3
"""Compares two builds of the library: is any row of `make bench` slower with the new one?

    <cache>/venv/bin/python tests/bench/pair.py OLD NEW [--host node-libs]

OLD and NEW are build folders (a `build` of this tree, or of a worktree of an older one). Whole decode: for each row two
processes hold the same context in the same host, one with each library, and take turns, a few tokens each, so that a machine that slows
down slows both. Kernels: each build's kernel_bench in turns. A row's ratio is the median of new / old over the turns, its
interval a bootstrap over them. Exits with 1 where a row's interval lies wholly above the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import bench_decode  # noqa: E402
import hostlib  # noqa: E402
import numpy as np  # noqa: E402
from make_model import PRESETS, make  # noqa: E402
from run import DECODE  # noqa: E402

PRESET = "qwen3-0.6b"


def decode(args, builds: list[Path], row: dict) -> list[np.ndarray]:
    """Milliseconds per token of each turn, with each build."""
    shape = PRESETS[PRESET]
    model = str(make(hostlib.cache() / "models" / f"{PRESET}.gguf", shape))
    settings = {"LESSISMORE_BUDGET": row["budget"], "LESSISMORE_LAYERS": f"2,{shape.layers // 3}"}
    job = dict(model=model, context=row["context"], threads=row["threads"], kv=row["kv"])
    workers, times = [], [[], []]
    try:
        for build in builds:
            library = build.absolute() / "liblessismore.so"
            workers.append(hostlib.Worker(args.host, "library", library=library, settings=settings, **job))
        for k in range(args.turns or row["rounds"]):
            for i in (0, 1) if k % 2 == 0 else (1, 0):
                times[i].append(float(np.median(workers[i].decode(4))))
    finally:
        for worker in workers:
            worker.close()
    for build, worker in zip(builds, workers):
        if not worker.stats or worker.stats["state"] != "active":
            sys.exit(f"{build}: the library did nothing: {worker.stats and worker.stats['reason']}")
    return [np.array(t) for t in times]


def kernels(builds: list[Path], turns: int, out: Path) -> dict[str, list[list[float]]]:
    """Milliseconds of each turn, by row, with each build."""
    found: dict[str, list[list[float]]] = {}
    for k in range(turns):
        for i in (0, 1) if k % 2 == 0 else (1, 0):
            subprocess.run([next(builds[i].rglob("kernel_bench")), out], check=True, stdout=subprocess.DEVNULL)
            for r in json.loads(out.read_text()):
                name = " ".join(str(r[key]) for key in ("name", "kv_type", "context", "threads"))
                found.setdefault(name, [[], []])[i].append(r["ms"])
    return found


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("builds", nargs=2, type=Path, metavar="BUILD")
    ap.add_argument("--host", default="llama-cpp-python", choices=["llama-cpp-python", "node-libs"])
    ap.add_argument("--rows", type=lambda text: [int(x) for x in text.split(",")], help="of whole decode, from 0 (default: all)")
    ap.add_argument("--turns", type=int, help="of a row (default: as many rounds as make bench has)")
    ap.add_argument("--kernels", type=int, default=0, metavar="TURNS", help="turns of kernel_bench (default: none)")
    ap.add_argument("--limit", type=float, default=1.02)
    args = ap.parse_args()
    rng, slower = np.random.default_rng(0), []

    def report(name: str, old: np.ndarray, new: np.ndarray) -> None:
        ratios = new / old
        low, high = bench_decode.interval(ratios, rng)
        print(f"{name:<40} {np.median(old):8.3f} {np.median(new):8.3f} ms  {np.median(ratios):.3f} [{low:.3f}, {high:.3f}]", flush=True)
        if low > args.limit:
            slower.append(name)

    for i, row in enumerate(DECODE):
        if args.rows is None or i in args.rows:
            report(" ".join(f"{k} {v}" for k, v in row.items() if k != "rounds"), *decode(args, args.builds, row))
    if args.kernels:
        with tempfile.TemporaryDirectory() as tmp:
            for name, (old, new) in kernels(args.builds, args.kernels, Path(tmp) / "kernels.json").items():
                report(name, np.array(old), np.array(new))
    print(f"slower than {args.limit} times: {', '.join(slower) or 'none'}")
    sys.exit(bool(slower))


if __name__ == "__main__":
    main()
