#!/usr/bin/env python3
"""Milliseconds of a llama.cpp's calls on a GPU that verify a draft, or have decode rows beside a prompt: the host alone, with the library where
it pays, and with the library in every step.

    python3 drafts.py OUT.json [--depths 16384,65536] [--rows 1,2,4,6,16] [--layers 2,12] [--model FILE]

The model is bench.py's. Of each depth the sides run in turn, twice; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import hostlib  # noqa: E402

SIDES = ("alone", "auto", "on")


def side(args, how: str, depth: int) -> dict:
    settings = {"LESSISMORE_CUDA": how, "LESSISMORE_BUDGET": args.budget, "LESSISMORE_LAYERS": args.layers, "LESSISMORE_SPECULATION": "on"}
    result = hostlib.run(
        "cuda",
        library=None if how == "alone" else hostlib.library_path(),
        settings=None if how == "alone" else settings,
        model=str(args.model),
        gpu_layers=99,
        scenario="verify",
        depth=depth,
        rows=args.rows,
        steps=args.steps,
        beside=args.beside,
        n_batch=512,
        timeout=args.patience,
    )
    out = {"ms": result.value("ms"), "beside": result.value("beside")}
    if result.stats:
        total = result.stats["total"]
        out |= {k: total.get(k) for k in ("rows", "rows_sparse", "draft_rows", "mixed_steps", "replayed_steps", "declined")}
        out["log"] = [line for line in result.log.splitlines() if "lessismore" in line][-4:]
    return out


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("--depths", default="16384,65536")
    ap.add_argument("--rows", default="1,2,4,6,16", type=lambda s: [int(n) for n in s.split(",")])
    ap.add_argument("--steps", type=int, default=24, help="calls of each number of rows; in the first few the host captures its graph")
    ap.add_argument("--beside", type=int, default=256, help="a prompt's tokens beside four decode rows; 0: none")
    ap.add_argument("--layers", default="2,12")
    ap.add_argument("--budget", default="2048")
    ap.add_argument("--turns", type=int, default=2)
    ap.add_argument("--patience", type=float, default=200)
    ap.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "qwen3-8b.gguf")
    args = ap.parse_args()
    report: dict = {"budget": args.budget, "layers": args.layers, "depths": {}}
    for depth in map(int, args.depths.split(",")):
        runs: dict = {how: [] for how in SIDES}
        for turn in range(args.turns):
            for how in SIDES[:: 1 if turn % 2 == 0 else -1]:
                runs[how].append(side(args, how, depth))
        median = {
            how: {n: round(statistics.median(ms for r in of for ms in r["ms"][str(n)][6:]), 3) for n in args.rows}
            for how, of in runs.items()
        }
        beside = {
            how: {what: round(min(r["beside"][what] for r in of), 2) for what in of[0]["beside"]} for how, of in runs.items() if args.beside
        }
        ratios = {how: {n: round(median["alone"][n] / median[how][n], 3) for n in args.rows} for how in SIDES[1:]}
        report["depths"][depth] = {"ms": median, "times as fast": ratios, "beside": beside, "runs": runs}
        print(depth, json.dumps({k: v for k, v in report["depths"][depth].items() if k != "runs"}), flush=True)
        print({how: {k: v for k, v in of[-1].items() if k not in ("ms", "beside")} for how, of in runs.items()}, flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
