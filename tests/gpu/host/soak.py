#!/usr/bin/env python3
"""A llama-server on a GPU through some 10,000 steps, with slots coming and going: every answer has to be right, memory has to stay.

    python3 soak.py OUT.json [--problems 40] [--slots 4]

Needs what correct.py needs. Memory is the server's own, sampled while it works, and the card's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import correct  # noqa: E402
import hostlib  # noqa: E402

MOST_GROWTH = 16  # MiB, from a quarter of the way on


def memory() -> dict | None:
    """MiB of the server and of the card; None: no server runs."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:  # it has ended
            continue
        if text.startswith("Name:\tllama-server"):
            resident = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))
            card = subprocess.run(
                ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True
            )
            return {"host": resident // 1024, "card": int(card.stdout.splitlines()[0])}
    return None


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("--problems", type=int, default=40)
    ap.add_argument("--slots", type=int, default=4)
    ap.add_argument("--seed", type=int, default=int(time.time()))
    args = ap.parse_args()
    print(f"seed {args.seed}")
    samples, done = [], threading.Event()

    def sample() -> None:
        while not done.wait(1):
            if now := memory():
                samples.append(now)

    watch = threading.Thread(target=sample)
    watch.start()
    problems = [hostlib.Problem.make(args.seed + i) for i in range(args.problems)]
    try:
        job = {"slots": args.slots, "arguments": ["-ngl", "99"]}
        r = hostlib.run("cuda-server", library=hostlib.library_path(), settings=correct.HAND, problems=problems, timeout=280, **job)
    finally:
        done.set()
        watch.join()
    total = r.stats["total"]
    early, last = samples[len(samples) // 4], samples[-1]
    report = {
        "seed": args.seed,
        "exact": sum(r.exact(problems)),
        "of": len(problems),
        **{k: total[k] for k in ("steps", "rows", "rows_sparse", "replayed_steps", "cell_order", "declined")},
        "memory": {"early": early, "last": last, "samples": len(samples)},
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    grown = max(last[k] - early[k] for k in early)
    sys.exit(report["exact"] < report["of"] or grown > MOST_GROWTH or total["rows_sparse"] == 0)


if __name__ == "__main__":
    main()
