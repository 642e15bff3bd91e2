#!/usr/bin/env python3
"""What a step costs while vLLM with its default graphs finds the selection layers of a model of Qwen3-8B's shape, and after that.

auto.py [ROWS] [CONTEXT] [PROFILE]      8 rows of 32,768 tokens; PROFILE: the file that keeps the choice, for decode.py --profile
"""

import os
import statistics
import sys

import random_model
import torch
from bench import Bench, arguments
from engine import keep, say, short

STEPS = 900
MOST = 1.5  # times a dense step


def main(rows, context, profile="off"):
    bench = Bench(random_model.folder(), {"budget": 2048, "profile": profile}, **arguments(33792, 64, [1, 8, 16, 32, 64]))
    random_model.randomize(bench.runner.model)
    for i in range(rows):
        bench.add(str(i), torch.randint(10, 150000, (context,)).tolist(), STEPS)
    while bench.engine.has_unfinished_requests():
        bench.engine.step()
    torch.cuda.synchronize()
    times = [x[3].elapsed_time(y[3]) for x, y in zip(bench.steps, bench.steps[1:]) if x[2] == y[2] == 1]
    report = bench.report()
    library = report["library"]
    first, final = statistics.median(times[5:15]), statistics.median(times[-50:])
    ordered = sorted(times[5:])
    say(f"auto, {rows} x {context}, {bench.config.compilation_config.cudagraph_mode}: dense steps {first:.2f} ms, afterwards {final:.2f} ms, {len(times)} steps;",
        f"99 % {ordered[len(ordered) * 99 // 100]:.2f}, the three longest {', '.join(f'{t:.2f}' for t in ordered[-3:])} ms;",
        f"{library['measured_steps']} measured")  # fmt: skip
    say(f"    {short(report)}")
    keep("auto", **bench.about(), rows=rows, context=context, times_ms=[round(t, 2) for t in times], library=library,
         contexts=bench.context.engine.report()["contexts"])  # fmt: skip
    checks = {
        "measured": library["measured_steps"] > 0,
        "sparse": library["sparse_calls"] > 0,
        "no step too long": ordered[-1] < MOST * first,
    }
    bad = [what for what, good in checks.items() if not good]
    say(f"auto: {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
    return not bad


if __name__ == "__main__":
    good = main(int(sys.argv[1]) if len(sys.argv) > 1 else 8, int(sys.argv[2]) if len(sys.argv) > 2 else 32768, *sys.argv[3:4])
    sys.stdout.flush()
    os._exit(0 if good else 1)
