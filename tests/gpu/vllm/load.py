#!/usr/bin/env python3
"""Thousands of the reasoner's problems that come, are cancelled and are preempted, in waves: what is not cancelled has to be solved, what is
has to be right as far as it came, and memory has to stay where it was.

    load.py [WAVES] [SEED] [stock]     4 of 500, up to 1,024 rows in a step, a store for half of these; stock: without lessismore
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

ROWS, WAVE, BUDGET, LAYERS = 1024, 500, 128, [2, 9]
TOKENS = 1024  # of a problem, at most
CANCELLED = 0.1  # of the requests
WRONG = 0.01  # of the answers, at most: the model's own, on problems of this length
BESIDE = 64 << 20  # bytes of device memory that the last waves may use beyond the first two


def main(waves, seed, stock):
    rng, draws = np.random.default_rng(seed), random.Random(seed)
    served = Served(
        DATA, None if stock else {"budget": BUDGET, "layers": LAYERS}, dtype="float16", max_model_len=TOKENS + 64, max_num_seqs=ROWS,
        max_num_batched_tokens=8192, gpu_memory_utilization=0.2, kv_cache_memory_bytes=4 << 30, num_gpu_blocks_override=ROWS * TOKENS // 16 // 2,
        enable_prefix_caching=True,
    )  # fmt: skip
    preempted, preempt = [], served.core.scheduler._preempt_request
    served.core.scheduler._preempt_request = lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1]
    problems, cancel, given, memory, most, begin = {}, {}, {}, [], 0, time.time()
    for wave in range(waves):
        # Each wave comes faster than the last: all rows are taken in the end, and more than the store holds.
        waiting = list(range(wave * WAVE, wave * WAVE + (WAVE if wave < waves - 1 else 2 * ROWS)))
        for i in waiting:
            prompt, solution = task.problem(draws, task.steps_for(TOKENS) - draws.randrange(8))
            problems[i] = [task.BOS] + task.encode(prompt), task.encode(solution)
            if rng.random() < CANCELLED:
                cancel[i] = int(rng.integers(0, len(solution)))
        while waiting or served.engine.has_unfinished_requests():
            for _ in range(min(int(rng.poisson(2 + 4 * wave)), len(waiting))):
                i = waiting.pop(0)
                served.add(str(i), problems[i][0], len(problems[i][1]))
            for out in served.engine.step():
                i = int(out.request_id.split("-")[0])
                given[i] = list(out.outputs[0].token_ids)
                if i in cancel and not out.finished and len(given[i]) >= cancel[i]:
                    served.engine.abort_request([out.request_id])
        most = max(step[0] for step in served.steps)
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        memory.append((total - free, torch.cuda.memory_allocated(), psutil.Process().memory_info().rss))
    n, wrong = len(problems), [i for i, (_, s) in problems.items() if i not in cancel and given.get(i, [])[: len(s)] != s]
    strayed = [i for i in cancel if given.get(i, []) != problems[i][1][: len(given.get(i, []))]]
    report = served.report()
    say(
        f"load, seed {seed}{', vLLM alone' if stock else ''}: {n} requests, {len(cancel)} cancelled, {len(preempted)} preempted, up to {most} rows, {len(served.steps)} steps in {time.time() - begin:.1f} s"
    )
    say(f"    wrong {len(wrong)} of {n - len(cancel)} {wrong[:20]}; of the cancelled, so far, {len(strayed)} of {len(cancel)}")
    say("    after each wave, MB (device, torch's, host): " + ", ".join(f"{d / 1e6:.0f} {t / 1e6:.0f} {h / 1e6:.0f}" for d, t, h in memory))
    checks = {
        "answers": len(wrong) <= WRONG * n and len(strayed) <= WRONG * len(cancel) + 1,
        "rows": most > 0.9 * ROWS,
        "preempted": len(preempted) > 0,
        "device memory": max(m[1] for m in memory[2:]) - memory[1][1] <= BESIDE,
    }
    if not stock:
        library = report["library"]
        say(f"    {library['tokens_attended'] / library['tokens_visible']:.1%} of the tokens attended, {short(report)}")
        checks["sparse"] = library["rows_sparse"] > 10 * n and library["tokens_attended"] < 0.75 * library["tokens_visible"]
        checks["sets"] = library["no_set_calls"] == 0
    bad = [what for what, good in checks.items() if not good]
    say(f"load: {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
    return not bad


if __name__ == "__main__":
    good = main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 4,
        int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30),
        "stock" in sys.argv,
    )
    sys.stdout.flush()
    os._exit(0 if good else 1)
