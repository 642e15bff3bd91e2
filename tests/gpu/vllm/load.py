#!/usr/bin/env python3
"""Thousands of the reasoner's problems that come, are cancelled and are preempted: what is not cancelled has to be solved, what is has to be
right as far as it came, and memory has to stay where it was.

    load.py [REQUESTS] [SEED]     2000 of them, up to 1,024 rows in a step, a store for a third of these
"""

import os
import random
import sys
import time

import numpy as np
import psutil
import torch
from engine import ROOT, Served, say, short

DATA = ROOT / "tests" / "data" / "reasoner"
sys.path.insert(0, str(DATA))
import task  # noqa: E402

ROWS, BUDGET, LAYERS = 1024, 128, [2, 9]
TOKENS = 1024  # of a problem, at most
CANCELLED = 0.1  # of the requests
WRONG = 0.002  # of the answers, at most: rounding differs with the batch's size
BESIDE = 64 << 20  # bytes of device memory that may come to be used after the first third


def main(n, seed):
    rng, draws = np.random.default_rng(seed), random.Random(seed)
    served = Served(
        DATA, {"budget": BUDGET, "layers": LAYERS}, dtype="float16", max_model_len=TOKENS + 64, max_num_seqs=ROWS, max_num_batched_tokens=8192,
        gpu_memory_utilization=0.2, kv_cache_memory_bytes=4 << 30, num_gpu_blocks_override=ROWS * TOKENS // 16 // 3, enable_prefix_caching=True,
    )  # fmt: skip
    preempted, preempt = [], served.core.scheduler._preempt_request
    served.core.scheduler._preempt_request = lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1]
    problems, cancel, given, waiting, most, memory, begin = {}, {}, {}, list(range(n)), 0, [], time.time()
    for i in range(n):
        prompt, solution = task.problem(draws, task.steps_for(TOKENS) - draws.randrange(8))
        problems[i] = [task.BOS] + task.encode(prompt), task.encode(solution)
        if rng.random() < CANCELLED:
            cancel[i] = int(rng.integers(0, len(solution)))
    # As many as arrive until the first ones end fill all rows; then about as many as end.
    rate, step = 2.0 * ROWS / len(problems[0][1]), 0
    names = {}
    while waiting or served.engine.has_unfinished_requests():
        for _ in range(min(int(rng.poisson(rate)), len(waiting))):
            i = waiting.pop(0)
            names[str(i)] = i
            served.add(str(i), problems[i][0], len(problems[i][1]))
        for out in served.engine.step():
            i = names[out.request_id.split("-")[0]]
            given[i] = list(out.outputs[0].token_ids)
            if i in cancel and not out.finished and len(given[i]) >= cancel[i]:
                served.engine.abort_request([out.request_id])
        most = max(most, served.steps[-1][0] if served.steps else 0)
        step += 1
        done = n - len(waiting)
        if len(memory) < 4 and done >= n * (len(memory) + 1) // 4:
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()
            memory.append((done, total - free, psutil.Process().memory_info().rss))
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    memory.append((n, total - free, psutil.Process().memory_info().rss))
    right = sum(given.get(i, [])[: len(s)] == s for i, (_, s) in problems.items() if i not in cancel)
    begun = sum(given.get(i, []) == s[: len(given.get(i, []))] for i, (_, s) in problems.items() if i in cancel)
    report = served.report()
    library = report["library"]
    say(f"load, seed {seed}: {n} requests, {len(cancel)} cancelled, {len(preempted)} preempted, up to {most} rows, {step} steps in {time.time() - begin:.1f} s")
    say(f"    solved {right} of {n - len(cancel)}, cancelled ones right so far {begun} of {len(cancel)}")
    say("    device and host memory, MB: " + ", ".join(f"after {at}: {d / 1e6:.0f}, {h / 1e6:.0f}" for at, d, h in memory))
    say(f"    {library['tokens_attended'] / library['tokens_visible']:.1%} of the tokens attended, {short(report)}")
    checks = {
        "answers": right >= (1 - WRONG) * (n - len(cancel)) and begun >= (1 - WRONG) * len(cancel) - 1,
        "rows": most > ROWS // 2,
        "preempted": len(preempted) > 0,
        "device memory": memory[-1][1] - memory[1][1] <= BESIDE,
        "sparse": library["rows_sparse"] > 10 * n and library["tokens_attended"] < 0.75 * library["tokens_visible"],
    }
    bad = [what for what, good in checks.items() if not good]
    say(f"load: {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
    return not bad


if __name__ == "__main__":
    good = main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30))
    sys.stdout.flush()
    os._exit(0 if good else 1)
