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


def kernels(out: Path) -> list[dict]:
    found = sorted((ROOT / "build" / "cmake").rglob("kernel_bench"))
    if not found:
        sys.exit("no kernel_bench under build/cmake: run `make kernels` first")
    subprocess.run([found[0], out], check=True)
    return json.loads(out.read_text())


def decode(out: Path, bandwidth: float, runs: list[list[str]]) -> list[dict]:
    python = Path(os.environ["LESSISMORE_CACHE"]) / "venv" / "bin" / "python"
    results = []
    for arguments in runs:
        subprocess.run(
            [python, ROOT / "tests" / "hosts" / "bench_decode.py", "--bandwidth", str(bandwidth), "--out", out, *arguments], check=True
        )
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
        runs = [["--contexts", "16384", "--threads", "2"]]
        if not args.quick:
            runs = [
                ["--contexts", "512", "--threads", "2", "--rounds", "40"],
                ["--contexts", "4096,16384,32768", "--threads", "2"],
                ["--contexts", "16384", "--threads", "2", "--kv", "q8_0"],
                # Sparsity off: the budget is above the context.
                *(
                    ["--contexts", c, "--threads", "2", "--budget", "1048576", "--rounds", r]
                    for c, r in (("512", "40"), ("4096", "15"), ("16384", "9"))
                ),
            ]
        rows += decode(Path(tmp) / "decode.json", bandwidth, runs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    print(f"\nhost: {', '.join(dict.fromkeys(r['host'] for r in rows if 'host' in r))}")
    print(f"sequential read {bandwidth:.1f} GB/s with 2 threads; written to {args.out}")


if __name__ == "__main__":
    main()
