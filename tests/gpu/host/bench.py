#!/usr/bin/env python3
"""Tokens a second of an unmodified llama.cpp on a GPU, alone and with the library, side by side on one card.

    python3 bench.py OUT.json [--depths 2048,8192,32768,65536] [--kv f16] [--layers 2,12 | auto] [--ngl 99] [--model FILE]
                              [--more="-sm layer"]
    python3 bench.py OUT.json --depths 16384 --sequences 8 [--unified]

llama-bench decodes 64 tokens behind each depth of a random-weight model of Qwen3-8B's shape in Q4_0 (4.5 GB, made where it is not there);
llama-batched-bench several sequences at once, tokens a second of all together. Of each depth the two sides run in pairs, the second pair
in the other order; the ratio is of the medians of all samples.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import hostlib  # noqa: E402


def command(args, depth: int) -> list:
    program = "llama-batched-bench" if args.sequences > 1 else "llama-bench"
    common = [hostlib.cuda_libs() / program, "-m", args.model, "-ngl", args.ngl, "-ctk", args.kv, "-ctv", args.kv, "-fa", 1]
    if args.sequences == 1:
        return [*common, "-p", 0, "-n", args.tokens, "-d", depth, "-r", args.runs, "-o", "json", *args.more]
    slots = args.sequences * (depth + args.tokens)
    common += ["-c", slots, "-npp", depth, "-ntg", args.tokens, "-npl", args.sequences, "--output-format", "jsonl"]
    return [*common, *(["-kvu"] if args.unified else []), *args.more]


def samples(args, output: str) -> list[float]:
    """Tokens a second, of each repetition. In the first one the host captures its graph."""
    if args.sequences == 1:
        return json.loads(output)[0]["samples_ts"]
    return [json.loads(line)["speed_tg"] for line in output.splitlines() if line.startswith("{")][:1]


def bench(args, depth: int, settings: dict | None) -> dict:
    with tempfile.TemporaryDirectory() as tmp:
        stats = Path(tmp) / "stats.json"
        env = hostlib.environment("cuda-server", hostlib.library_path() if settings else None, settings or {}, stats if settings else None)
        env["XDG_CACHE_HOME"] = tmp
        child = subprocess.run([str(c) for c in command(args, depth)], env=env, capture_output=True, text=True, timeout=300)
        if child.returncode:
            return {"error": child.stderr[-800:]}
        out = {"samples": [round(s, 1) for s in samples(args, child.stdout)]}
        if stats.exists():
            t = json.loads(stats.read_text())["total"]
            out |= {
                k: t.get(k)  # none has chosen where all is left to the host
                for k in (
                    "rows",
                    "rows_sparse",
                    "replayed_steps",
                    "cell_order",
                    "selection_layers",
                    "layers_from",
                    "measured_steps",
                    "dense_steps",
                    "declined",
                )
            }
            out["log"] = [line for line in child.stderr.splitlines() if "lessismore" in line][-6:]
        return out


def compared(args, depth: int, settings: dict):
    """What is known after each pair: whoever ends this early has those that were done."""
    runs: dict = {"alone": [], "library": []}
    for pair in range(args.pairs):
        for side in sorted(runs, reverse=pair % 2 == 1):
            runs[side].append(bench(args, depth, settings if side == "library" else None))
        yield summed_up(runs)


def summed_up(runs: dict) -> dict:
    out: dict = {side: {**of[-1], "samples": [r.get("samples", r) for r in of]} for side, of in runs.items()}
    if not any("error" in r for of in runs.values() for r in of):
        for side, of in runs.items():
            out[side]["tokens_s"] = round(statistics.median(s for r in of for s in r["samples"]), 1)
        out["ratio"] = round(out["library"]["tokens_s"] / out["alone"]["tokens_s"], 3)
        medians = {side: [statistics.median(r["samples"]) for r in of] for side, of in runs.items()}
        out["pairs"] = [round(o / a, 3) for a, o in zip(medians["alone"], medians["library"])]
    return out


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("--depths", default="2048,8192,32768,65536")
    ap.add_argument("--kv", default="f16")
    ap.add_argument("--layers", default="2,12")
    ap.add_argument("--budget", default="2048")
    ap.add_argument("--cuda", default="auto", help="LESSISMORE_CUDA: on is also where it does not pay")
    ap.add_argument("--ngl", type=int, default=99)
    ap.add_argument("--tokens", type=int, default=64)
    ap.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "qwen3-8b.gguf")
    ap.add_argument("--runs", type=int, default=5, help="repetitions of a run of one sequence")
    ap.add_argument("--pairs", type=int, default=2, help="runs of each side")
    ap.add_argument("--sequences", type=int, default=1)
    ap.add_argument("--unified", action="store_true", help="the sequences in one stream")
    ap.add_argument("--more", type=shlex.split, default=[], help='further arguments of the program, as in --more="-sm layer"')
    args = ap.parse_args()
    if not args.model.exists():
        subprocess.run([sys.executable, ROOT / "tests/hosts/make_model.py", args.model, "--preset", "qwen3-8b"], check=True)
    name = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True).stdout.splitlines()
    settings = {"LESSISMORE_BUDGET": args.budget, "LESSISMORE_CUDA": args.cuda}
    if args.layers != "auto":
        settings["LESSISMORE_LAYERS"] = args.layers
    report = {
        "gpu": sorted(set(name)),
        "cores": os.cpu_count(),
        "kv": args.kv,
        "ngl": args.ngl,
        "more": args.more,
        "settings": settings,
        "depths": {},
    }
    for depth in map(int, args.depths.split(",")):
        for known in compared(args, depth, settings):
            report["depths"][depth] = known
            args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(depth, json.dumps(report["depths"][depth]), flush=True)


if __name__ == "__main__":
    main()
