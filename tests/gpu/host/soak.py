#!/usr/bin/env python3
"""A llama-server on a GPU through 10,000 steps and more, with conversations that come, go on, fork, shift and end at random.

    python3 soak.py OUT.json [--seconds 60] [--slots 4] [--streams] [--kv f16] [--seed N]

Needs what correct.py needs, pytest and the package gguf. Every answer has to be right that the host alone gives (tests/hosts/test_soak.py);
what the server's process holds, on the host and on the card, has to stay as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import correct  # noqa: E402
import hostlib  # noqa: E402
import test_soak  # noqa: E402

STEPS = 10_000
SAMPLED = 2.0  # seconds from one look at the card to the next
MIB = 1 << 20
MOST = {"anonymous": 16 * MIB, "files": 0.5, "threads": 0.5, "card": 2 * MIB}  # growth over three quarters of the run


def descendants() -> set[int]:
    """Processes that this one started, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    out, more = set(), {os.getpid()}
    while more:
        out |= more
        more = {p for p, parent in parents.items() if parent in more} - out
    return out


def on_card() -> int:
    """Bytes of the card that our processes hold; of all processes where the driver does not tell them apart."""
    query = ["nvidia-smi", "--format=csv,noheader,nounits", "-i", correct.visible()[0]]
    apps = subprocess.run([*query, "--query-compute-apps=pid,used_memory"], capture_output=True, text=True).stdout
    ours = descendants()
    held = [line.split(",") for line in apps.splitlines() if line.split(",")[0].strip().isdigit()]
    if mine := [int(mib) for pid, mib in held if int(pid) in ours and mib.strip().isdigit()]:
        return sum(mine) * MIB
    return int(subprocess.run([*query, "--query-gpu=memory.used"], capture_output=True, text=True).stdout.splitlines()[0]) * MIB


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("--seconds", type=float, default=60)
    ap.add_argument("--slots", type=int, default=4)
    ap.add_argument("--streams", action="store_true", help="a cache for each slot")
    ap.add_argument("--kv", default="f16")
    ap.add_argument("--seed", type=int, default=int(time.time()))
    args = ap.parse_args()
    job = {"scenario": "soak", "seed": args.seed, "kv": args.kv, "slots": args.slots, "workers": args.slots, "unified": not args.streams}
    job["arguments"] = ["-ngl", "99", "-cram", "16"]  # the server's RAM cache is full at once
    settings = {**correct.HAND, "CUDA_VISIBLE_DEVICES": correct.visible()[0]}
    card, done, start = [], threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(SAMPLED):
            card.append({"at": time.monotonic() - start, "card": on_card()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        library = hostlib.library_path()
        result = hostlib.run("cuda-server", library=library, settings=settings, seconds=args.seconds, timeout=args.seconds + 60, **job)
    finally:
        done.set()
        watcher.join()
    said, wrong = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(said):
            alone = {**job, "operations": max(result.value("operations")), "timeout": 2 * args.seconds + 60}
            test_soak.judge(
                f"seed {args.seed}",
                result,
                lambda: hostlib.run("cuda-server", settings={"CUDA_VISIBLE_DEVICES": settings["CUDA_VISIBLE_DEVICES"]}, **alone),
            )
    except AssertionError as error:
        wrong = str(error) or "a turn is lost that the host alone gives"
    samples = [line for line in result.lines if "at" in line]
    quiet = card[2:-2]  # without the server's start and end
    grown = {k: test_soak.growth(samples, k) for k in MOST if k != "card"} | {"card": test_soak.growth(quiet, "card")}
    total = result.stats["total"]
    report = {
        **vars(args),
        "out": "",
        "said": said.getvalue().strip(),
        "wrong": wrong,
        "turns": len(test_soak.turns(result)),
        **{k: total[k] for k in ("steps", "rows", "rows_sparse", "replayed_steps", "cell_order", "declined")},
        "grown": grown,
        "card": [s["card"] // MIB for s in card],
        "anonymous": [s["anonymous"] // MIB for s in samples],
    }
    report["ok"] = not wrong and total["steps"] >= STEPS and all(grown[k] <= most for k, most in MOST.items())
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    sys.exit(not report["ok"])


if __name__ == "__main__":
    main()
