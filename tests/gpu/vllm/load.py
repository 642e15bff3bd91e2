#!/usr/bin/env python3
"""Thousands of the reasoner's problems that come, are cancelled and are preempted, in waves: what is not cancelled has to be solved, what is
has to be right as far as it came, and memory has to stay where it was.

    load.py [WAVES] [SEED] [stock]       4 of 500, up to 1,024 rows in a step, a store for half of these; stock: without lessismore
    load.py compare OURS.json STOCK.json two runs of one seed, problem by problem
"""

import json
import os
import random
import sys
import time

import numpy as np
import psutil
import torch
from engine import ROOT, Served, keep, say, short

DATA = ROOT / "tests" / "data" / "reasoner"
sys.path.insert(0, str(DATA))
import task  # noqa: E402

ROWS, WAVE, BUDGET, LAYERS = 1024, 500, 128, [2, 9]
TOKENS = 1024  # of a problem, at most
CANCELLED = 0.1  # of the requests
WRONG = 0.01  # of the answers, at most: the model's own, on problems of this length
LOST = 0.002  # of the answers, at most, that the model alone has right and we do not
BESIDE = 64 << 20  # bytes of device memory that the last waves may use beyond the first two


class Memory:
    """The device's memory, torch's share of it (what it has reserved, what is in use), the host's; and the steps that made torch reserve more."""

    def __init__(self, served):
        self.waves, self.grown, self.reserved = [], [], torch.cuda.memory_reserved()
        execute = served.runner.execute_model

        def watched(output, *args, **kwargs):
            result = execute(output, *args, **kwargs)
            now, n = torch.cuda.memory_reserved(), output.num_scheduled_tokens
            if now != self.reserved:
                self.grown.append(dict(bytes=now - self.reserved, rows=len(n), tokens=sum(n.values()), longest=max(n.values(), default=0)))
                self.reserved = now
            return result

        served.runner.execute_model = watched

    def note(self):
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        self.waves.append(dict(device=total - free, reserved=torch.cuda.memory_reserved(), used=torch.cuda.memory_allocated(),
                               host=psutil.Process().memory_info().rss))  # fmt: skip

    def text(self):
        return ", ".join(" ".join(f"{wave[k] / 1e6:.0f}" for k in ("device", "reserved", "used", "host")) for wave in self.waves)

    def rise(self, of):
        """What the last waves have beyond the first two."""
        values = [of(wave) for wave in self.waves]
        return max(values[2:]) - values[1]


def problems_of(waves, seed):
    """Waves of problems, and after how many tokens some are cancelled: the same whatever serves them."""
    draws, rng, number = random.Random(seed), np.random.default_rng([seed, 1]), 0
    for wave in range(waves):
        # Each wave comes faster than the last: all rows are taken in the end, and more than the store holds.
        found = {}
        for _ in range(WAVE if wave < waves - 1 else 2 * ROWS):
            prompt, solution = task.problem(draws, task.steps_for(TOKENS) - draws.randrange(8))
            cancel = int(rng.integers(0, len(solution))) if rng.random() < CANCELLED else None
            found[number] = [task.BOS] + task.encode(prompt), task.encode(solution), cancel
            number += 1
        yield wave, found


def serve(served, wave, new, problems, rng, given):
    waiting = list(new)
    while waiting or served.engine.has_unfinished_requests():
        for _ in range(min(int(rng.poisson(2 + 4 * wave)), len(waiting))):
            i = waiting.pop(0)
            served.add(str(i), new[i][0], len(new[i][1]))
        for out in served.engine.step():
            i = int(out.request_id.split("-")[0])
            given[i] = list(out.outputs[0].token_ids)
            if problems[i][2] is not None and not out.finished and len(given[i]) >= problems[i][2]:
                served.engine.abort_request([out.request_id])


def first_wrong(given, solution, cancelled):
    """The place of the first wrong or missing token; None: right, as far as it came where it was cancelled."""
    if given == solution or cancelled and given == solution[: len(given)]:
        return None
    return next((k for k, (a, b) in enumerate(zip(given, solution)) if a != b), len(given))


def main(waves, seed, stock):
    served = Served(
        DATA, None if stock else {"budget": BUDGET, "layers": LAYERS}, dtype="float16", max_model_len=TOKENS + 64, max_num_seqs=ROWS,
        max_num_batched_tokens=8192, gpu_memory_utilization=0.2, kv_cache_memory_bytes=4 << 30, num_gpu_blocks_override=ROWS * TOKENS // 16 // 2,
        enable_prefix_caching=True,
    )  # fmt: skip
    memory, preempted, preempt = Memory(served), [], served.core.scheduler._preempt_request
    served.core.scheduler._preempt_request = lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1]
    problems, given, begin = {}, {}, time.time()
    for wave, new in problems_of(waves, seed):
        problems.update(new)
        serve(served, wave, new, problems, np.random.default_rng([seed, 2, wave]), given)
        memory.note()
        say(f"wave {wave}: {len(new)} requests, {len(served.steps)} steps so far, {len(preempted)} preempted")
    most = max(step[0] for step in served.steps)
    wrong = {i: first_wrong(given.get(i, []), solution, cancel is not None) for i, (_, solution, cancel) in problems.items()}
    wrong = {i: at for i, at in wrong.items() if at is not None}
    cancelled = [i for i, problem in problems.items() if problem[2] is not None]
    strayed, n, report = [i for i in wrong if i in cancelled], len(problems), served.report()
    say(
        f"load, seed {seed}{', vLLM alone' if stock else ''}: {n} requests, {len(cancelled)} cancelled, {len(preempted)} preempted, up to {most} rows, {len(served.steps)} steps in {time.time() - begin:.1f} s"
    )
    say(
        f"    wrong {len(wrong) - len(strayed)} of {n - len(cancelled)} (problem: first wrong token) {wrong}; of the cancelled, so far, {len(strayed)} of {len(cancelled)}"
    )
    say(f"    after each wave, MB (device, torch's, of it in use, host): {memory.text()}; grew in steps {memory.grown}")
    keep("load-stock" if stock else "load", seed=seed, waves=waves, requests=n, cancelled=cancelled, preempted=len(preempted), most_rows=most,
         steps=len(served.steps), wrong=wrong, answers=given, memory=memory.waves, grown=memory.grown, report=report)  # fmt: skip
    checks = {
        "answers": len(wrong) - len(strayed) <= WRONG * n and len(strayed) <= WRONG * len(cancelled) + 1,
        "rows": most > 0.9 * ROWS,
        "preempted": len(preempted) > 0,
        "memory in use": memory.rise(lambda wave: wave["used"]) <= BESIDE,
        "device memory beside torch's": memory.rise(lambda wave: wave["device"] - wave["reserved"]) <= BESIDE,
    }
    if not stock:
        library = report["library"]
        say(f"    {library['tokens_attended'] / library['tokens_visible']:.1%} of the tokens attended, {short(report)}")
        checks["sparse"] = library["rows_sparse"] > 10 * n and library["tokens_attended"] < 0.75 * library["tokens_visible"]
        checks["sets"] = library["no_set_calls"] == 0
    bad = [what for what, good in checks.items() if not good]
    say(f"load: {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
    return not bad


def compare(ours, stock):
    """Problem by problem: what the model alone has right is right with us, and torch reserves no more than it does for vLLM alone."""
    a, b = (json.load(open(path)) for path in (ours, stock))
    if (a["seed"], a["requests"]) != (b["seed"], b["requests"]):
        say(f"load: seeds {a['seed']} and {b['seed']} are no pair")
        return False
    problems = {i: problem for _, new in problems_of(a["waves"], a["seed"]) for i, problem in new.items()}
    both, only, alone = (sorted(map(int, found)) for found in (a["wrong"].keys() & b["wrong"].keys(), a["wrong"].keys() - b["wrong"].keys(),
                                                              b["wrong"].keys() - a["wrong"].keys()))  # fmt: skip
    same = sum(a["answers"].get(str(i)) == b["answers"].get(str(i)) for i, problem in problems.items() if problem[2] is None)
    grew = [sum(g["bytes"] for g in side["grown"]) for side in (a, b)]
    say(f"load, seed {a['seed']}, problem by problem: wrong in both runs {len(both)} {both}, with lessismore alone {len(only)} {only}, with vLLM alone {len(alone)} {alone};",
        f"the same answer, right or wrong, {same} of {sum(problem[2] is None for problem in problems.values())};",
        f"torch reserved {grew[0] / 1e6:.0f} MB while serving, without lessismore {grew[1] / 1e6:.0f} MB")  # fmt: skip
    good = len(only) <= LOST * len(problems) and grew[0] <= grew[1] + BESIDE
    say(f"load, compared: {'ok' if good else 'FAILED'}")
    return good


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        good = compare(*sys.argv[2:4])
    else:
        good = main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 4,
            int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30),
            "stock" in sys.argv,
        )
    sys.stdout.flush()
    os._exit(0 if good else 1)
