#!/usr/bin/env python3
"""Decode steps of a random-weight model of Qwen3-8B's shape in vLLM: FlashAttention and lessismore in one process, the same engine,
its decode graphs captured once for each.

    decode.py [--cases 8x32768,fitx32768] [--max-num-seqs N] ...

Contexts are put in place: bench.py says how.
"""

import argparse
import os
import statistics
import sys

import random_model
from bench import Bench, arguments
from engine import keep, say, short

p = argparse.ArgumentParser()
p.add_argument(
    "--cases",
    default="8x1024,1x32768,8x32768,16x32768,fitx32768,64x8192",
    help='rows x context, or x lowest-highest; "fit": as many as there is memory for',
)
p.add_argument("--budget", type=int, default=2048)
p.add_argument("--layers", default="2,12")
p.add_argument("--profile", help="a file that names the layers instead, as auto.py keeps one; all of a decode step is in a graph")
p.add_argument("--max-model-len", type=int, default=33792)
p.add_argument("--max-num-seqs", type=int, default=64)
p.add_argument("--steps", type=int, default=40)
p.add_argument("--modes", default="on,off")
p.add_argument("--graphs", default="1,8,16,24,32,64")
p.add_argument("--name", default="decode", help="of the JSON file")
a = p.parse_args()


def table(results):
    rows = []
    for text, by in results.items():
        times = {f"{mode}_ms": statistics.median(r["step_ms"] for r in found) for mode, found in by.items()}
        both = dict(faster=round(times["off_ms"] / times["on_ms"], 3)) if len(times) == 2 else {}
        rows.append(dict(case=text, rows=next(iter(by.values()))[0]["rows"], **times, **both, results=by))
    return rows


def main():
    more = arguments(a.max_model_len, a.max_num_seqs, [int(x) for x in a.graphs.split(",")])
    own = {"budget": a.budget}
    if a.profile:
        own["profile"] = a.profile
        more["compilation_config"]["cudagraph_mode"] = "FULL_DECODE_ONLY"  # vLLM's default would leave attention out, to audit the choice
    else:
        own["layers"] = [int(x) for x in a.layers.split(",")]
    bench = Bench(random_model.folder(), own, **more)
    random_model.randomize(bench.runner.model)
    results, captured = {}, "on"
    for mode in a.modes.split(","):
        if mode != captured:
            bench.switch(mode == "on")
            captured = mode
        for text in a.cases.split(","):
            results.setdefault(text, {}).setdefault(mode, []).append(bench.case(text, mode, a.steps))
            keep(a.name, **bench.about(), table=table(results))
    for row in table(results):
        say(
            f"{row['rows']} x {row['case'].split('x')[1]}: FlashAttention {row['off_ms']:.2f} ms, lessismore {row['on_ms']:.2f} ms a step: {row['off_ms'] / row['on_ms']:.2f}x"
            if "faster" in row
            else row
        )
    say(short(bench.report()))
    say("done")


main()
sys.stdout.flush()
os._exit(0)
