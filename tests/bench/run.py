#!/usr/bin/env python3
"""`make bench`: the kernels' measurements and whole decode, in one list of one run.

    python3 tests/bench/run.py --out build/bench.json [--quick | --rows 2,3] [--neighbours node-libs] [--bandwidth 30]

A machine with many cores runs rows side by side: each in a process of its own with --rows and --bandwidth, pinned to cores of
its own (taskset). The bandwidth of a sequential read, which the kernels' benchmark measures, is what shares of the limit are
stated against; "of any order" is against the fastest reader in whatever order it reads. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEIGHBOURS = "node-libs,ik-llama"  # what a user could run instead: today's llama.cpp, and its fastest fork on CPUs

# Whole decode. In the last six sparsity is off: the budget is above the context.
DECODE = [
    {"context": context, "kv": kv, "budget": budget, "threads": 2, "rounds": rounds}
    for context, kv, budget, rounds in (
        (512, "f16", 2048, 40), (4096, "f16", 2048, 7), (16384, "f16", 2048, 7), (32768, "f16", 2048, 7),
        (4096, "q8_0", 2048, 7), (16384, "q8_0", 2048, 7), (32768, "q8_0", 2048, 7),
        (512, "f16", 1 << 20, 40), (4096, "f16", 1 << 20, 15), (16384, "f16", 1 << 20, 9), (32768, "f16", 1 << 20, 9),
        (16384, "q8_0", 1 << 20, 9), (32768, "q8_0", 1 << 20, 9),
    )
]  # fmt: skip


def kernels(out: Path) -> list[dict]:
    found = sorted((ROOT / "build" / "cmake").rglob("kernel_bench"))
    if not found:
        sys.exit("no kernel_bench under build/cmake: run `make kernels` first")
    subprocess.run([found[0], out], check=True)
    return json.loads(out.read_text())


def decode(out: Path, bandwidth: float, rows: list[dict], neighbours: str) -> list[dict]:
    python = Path(os.environ["LESSISMORE_CACHE"]) / "venv" / "bin" / "python"
    results = []
    for row in rows:
        arguments = [part for k, v in row.items() for part in ("--contexts" if k == "context" else f"--{k}", str(v))]
        command = [python, ROOT / "tests" / "hosts" / "bench_decode.py", "--neighbours", neighbours, "--bandwidth", str(bandwidth)]
        subprocess.run([*command, "--out", out, *arguments], check=True)
        results += json.loads(out.read_text())
    return results


def table(rows: list[dict]) -> str:
    head = ("name", "K/V", "context", "threads", "ms", "baseline", "baseline ms", "ratio", "of the limit", "of any order")
    lines = [head, tuple("---" for _ in head)]
    for r in rows:
        shares = ["" if r.get(k) is None else f"{r[k]:.0%}" for k in ("limit_share", "any_order_share")]
        lines.append(
            (
                r["name"],
                r["kv_type"],
                str(r["context"]),
                str(r["threads"]),
                f"{r['ms']:.3g}",
                r["baseline"],
                f"{r['baseline_ms']:.3g}",
                f"{r['ratio']:.2f}" + (" [{:.2f}, {:.2f}]".format(*r["ratio_interval"]) if r.get("ratio_interval") else ""),
                *shares,
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--quick", action="store_true", help="one context of whole decode only")
    ap.add_argument("--rows", type=lambda text: [int(x) for x in text.split(",")], help="of whole decode, from 0 (default: all)")
    ap.add_argument("--neighbours", default=NEIGHBOURS, help=f"engines to compare with besides the host ({NEIGHBOURS})")
    ap.add_argument("--bandwidth", type=float, help="of a sequential read, GB/s, measured before: no kernels then")
    args = ap.parse_args()
    wanted = [2] if args.quick else range(len(DECODE)) if args.rows is None else args.rows
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        rows = [] if args.bandwidth else kernels(Path(tmp) / "kernels.json")
        # A kernel's bytes, time and share of the limit tell what the limit was.
        bandwidth = args.bandwidth or max(
            r["bytes"] / r["ms"] / 1e6 / r["limit_share"] for r in rows if r.get("limit_share") and r["threads"] == 2
        )
        for i in wanted:
            rows += decode(Path(tmp) / "decode.json", bandwidth, DECODE[i : i + 1], args.neighbours)
            args.out.write_text(json.dumps(rows, indent=1) + "\n")  # what there is, should a later row fail
    print(table(rows))
    engines = [n for r in rows if "host" in r for n in (r["host"], *r["neighbours"])]
    print(f"\nhost and neighbours: {', '.join(dict.fromkeys(engines))}")
    print(f"sequential read {bandwidth:.1f} GB/s with 2 threads; written to {args.out}")


if __name__ == "__main__":
    main()
