#!/usr/bin/env python3
"""`make bench`: the kernels' measurements and whole decode, in one list of one run.

    python3 tests/bench/run.py --out build/bench.json [--quick]

The bandwidth of a sequential read, which the kernels' benchmark measures, is what shares of the limit are
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

# Whole decode. In the last five sparsity is off: the budget is above the context.
DECODE = [
    {"context": context, "kv": kv, "budget": budget, "threads": 2, "rounds": rounds}
    for context, kv, budget, rounds in (
        (512, "f16", 2048, 40), (4096, "f16", 2048, 7), (16384, "f16", 2048, 7), (32768, "f16", 2048, 7),
        (4096, "q8_0", 2048, 7), (16384, "q8_0", 2048, 7), (32768, "q8_0", 2048, 7),
        (512, "f16", 1 << 20, 40), (4096, "f16", 1 << 20, 15), (16384, "f16", 1 << 20, 9), (32768, "f16", 1 << 20, 9),
        (16384, "q8_0", 1 << 20, 9),
    )
]  # fmt: skip


def kernels(out: Path) -> list[dict]:
    found = sorted((ROOT / "build" / "cmake").rglob("kernel_bench"))
    if not found:
        sys.exit("no kernel_bench under build/cmake: run `make kernels` first")
    subprocess.run([found[0], out], check=True)
    return json.loads(out.read_text())


def decode(out: Path, bandwidth: float, rows: list[dict]) -> list[dict]:
    python = Path(os.environ["LESSISMORE_CACHE"]) / "venv" / "bin" / "python"
    results = []
    for row in rows:
        arguments = [part for k, v in row.items() for part in ("--contexts" if k == "context" else f"--{k}", str(v))]
        command = [python, ROOT / "tests" / "hosts" / "bench_decode.py", "--neighbours", NEIGHBOURS, "--bandwidth", str(bandwidth)]
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
                f"{r['ratio']:.2f}",
                *shares,
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--quick", action="store_true", help="one context of whole decode only")
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        rows = kernels(Path(tmp) / "kernels.json")
        # A kernel's bytes, time and share of the limit tell what the limit was.
        bandwidth = max(r["bytes"] / r["ms"] / 1e6 / r["limit_share"] for r in rows if r.get("limit_share") and r["threads"] == 2)
        rows += decode(Path(tmp) / "decode.json", bandwidth, DECODE[2:3] if args.quick else DECODE)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    engines = [n for r in rows if "host" in r for n in (r["host"], *r["neighbours"])]
    print(f"\nhost and neighbours: {', '.join(dict.fromkeys(engines))}")
    print(f"sequential read {bandwidth:.1f} GB/s with 2 threads; written to {args.out}")


if __name__ == "__main__":
    main()
