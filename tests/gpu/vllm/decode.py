#!/usr/bin/env python3
"""Decode steps of a random-weight model of Qwen3-8B's shape in vLLM: FlashAttention and lessismore in one process, the same engine,
its decode graphs captured once for each.

    decode.py [--cases 8x32768,fitx32768] [--max-num-seqs N] ...

K/V of a prompt is random and put in place by vLLM's own DecodeBenchConnector, so that no prompt is computed and nothing is shared.
"""

import argparse
import json
import os
import statistics
import sys
import time

import numpy as np
import random_model
import torch
from engine import Served, say, short

p = argparse.ArgumentParser()
p.add_argument(
    "--cases",
    default="8x1024,1x32768,8x32768,16x32768,fitx32768,64x8192",
    help='rows x context, or x lowest-highest; "fit": as many as there is memory for',
)
p.add_argument("--budget", type=int, default=2048)
p.add_argument("--layers", default="2,12")
p.add_argument("--max-model-len", type=int, default=33792)
p.add_argument("--max-num-seqs", type=int, default=64)
p.add_argument("--steps", type=int, default=40)
p.add_argument("--modes", default="on,off")
p.add_argument("--graphs", default="1,8,16,24,32,64")
p.add_argument("--json")
a = p.parse_args()


class Bench(Served):
    def fit(self, context):
        return min((self.blocks - 1) // -(-(context + a.steps + 32) // self.block), a.max_num_seqs)

    def case(self, text, mode):
        rows, context = text.split("x")
        low, high = (int(c) for c in (context.split("-") * 2)[:2])
        fit = self.fit((low + high) // 2)
        rows = min(fit, fit if rows == "fit" else int(rows))
        torch.manual_seed(7)
        rng = np.random.default_rng(3)
        self.steps.clear(), self.replays.clear()
        before = self.context.decoder.stats()
        for i in range(rows):
            self.add(f"{text}-{mode}-{i}", rng.integers(10, 150000, int(rng.integers(low, high + 1))).tolist(), a.steps + 16)
        stamps = []
        while self.engine.has_unfinished_requests():
            out = self.engine.step()
            if out:
                stamps.append((time.perf_counter(), len(out)))
        torch.cuda.synchronize()
        full = [y[0] - x[0] for x, y in zip(stamps, stamps[1:]) if x[1] == rows and y[1] == rows][6:-2]
        graph = [x.elapsed_time(y) for n, x, y in self.replays if n >= rows][6:-2]
        after = self.context.decoder.stats()
        changed = {k: after[k] - before[k] for k in after}
        found = dict(rows=rows, context=context, mode=mode, step_ms=round(statistics.median(full) * 1e3, 3), n=len(full),
                     graph_ms=round(statistics.median(graph), 3) if graph else None, padded=self.replays[-1][0] if self.replays else None,
                     tokens_per_s=round(rows / statistics.median(full)))  # fmt: skip
        if changed["steps"]:
            found.update(
                attended=round(changed["tokens_attended"] / changed["tokens_visible"], 4),
                rows_sparse=changed["rows_sparse"],
                no_set=changed["no_set_calls"],
            )
        say(json.dumps(found))
        return found


def main():
    bench = Bench(
        random_model.folder(), {"budget": a.budget, "layers": [int(x) for x in a.layers.split(",")]}, load_format="dummy",
        max_model_len=a.max_model_len, max_num_seqs=a.max_num_seqs, max_num_batched_tokens=8192, gpu_memory_utilization=0.9,
        enable_prefix_caching=False, compilation_config={"cudagraph_capture_sizes": [int(x) for x in a.graphs.split(",")]},
        kv_transfer_config={"kv_connector": "DecodeBenchConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"fill_mean": 0.0, "fill_std": 1.0}},
    )  # fmt: skip
    random_model.randomize(bench.runner.model)
    results, captured = {}, "on"
    for mode in a.modes.split(","):
        if mode != captured:
            bench.switch(mode == "on")
            captured = mode
        for text in a.cases.split(","):
            results.setdefault(text, {}).setdefault(mode, []).append(bench.case(text, mode))
    table = []
    for text, by in results.items():
        if len(by) == 2:
            on, off = (statistics.median(r["step_ms"] for r in by[m]) for m in ("on", "off"))
            table.append(dict(case=text, rows=by["on"][0]["rows"], on_ms=on, off_ms=off, faster=round(off / on, 3), results=by))
            say(
                f"{by['on'][0]['rows']} x {text.split('x')[1]}: FlashAttention {off:.2f} ms, lessismore {on:.2f} ms a step: {off / on:.2f}x"
            )
    say(short(bench.report()))
    if a.json:
        with open(a.json, "w") as f:
            json.dump(
                dict(
                    gpu=torch.cuda.get_device_name(),
                    work_bytes=bench.context.work.numel(),
                    kv_tokens=bench.blocks * bench.block,
                    table=table,
                ),
                f,
            )
    say("done")


main()
sys.stdout.flush()
os._exit(0)
