#!/usr/bin/env python3
"""A server's load: requests arrive at random (Poisson), each with a context of 8K to 28K tokens that is in place, a prompt of 1K to 4K tokens
that is computed, and an answer of 1K to 4K tokens. FlashAttention and lessismore in one process, one engine, the same requests.

    serving.py [--sides MODE:RATE:SECONDS:BEGUN,...] [--cases ROWSxCONTEXT,...] [--until SECONDS] [--backend NAME] [--lighter]

RATE: requests a second; BEGUN: requests that are there at the beginning, somewhere in their answers. What finishes within SECONDS counts. RATE x SECONDS
requests come, whatever is drawn. A rate of 1.2 is 28 rows of 22K on average where a step takes 11 ms, and the store of an H200 holds 36: above 1.3 it is full at times.
cases: decode steps alone, as decode.py has them, in each mode before its first side.
until: all of it is over so many seconds after the start; the last side is cut to that. backend: another of vLLM's, by itself: one mode, its name in
small letters. lighter: short contexts and short answers more often, within the same bounds, for a GPU with memory for half as many rows.
A time per output token is a request's, from its first token to its last, as vLLM's own benchmark has it.
"""

import argparse
import json
import math
import os
import sys
import time

import numpy as np
import random_model
import torch
from bench import Bench, arguments
from engine import BEGIN, keep, say, short
from placed import CONNECTOR

CONTEXT, PROMPT, ANSWER = (8192, 28672), (1024, 4096), (1024, 4096)
LONGEST = CONTEXT[1] + PROMPT[1] + ANSWER[1] + 32
NAMES = {"on": "lessismore", "off": "FlashAttention"}
AROUND = 12  # seconds that a side takes beside its own: what is there at its beginning is computed, and its end
LEAST = 20  # seconds of a side
GRAPHS = [1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64]


def requests(n, lighter, seed=11):
    """Context, prompt, answer of each: context uniform, the others with as many short as long ones by ratio. lighter: context by ratio, shorter answers."""
    rng = np.random.default_rng(seed)

    def ratio(low, high, power=1):
        return np.exp(math.log(low) + math.log(high / low) * rng.random(n) ** power).astype(int)

    if lighter:
        return list(zip(ratio(*CONTEXT), ratio(*PROMPT), ratio(*ANSWER, power=2)))
    return list(zip(rng.integers(*CONTEXT, n), ratio(*PROMPT), ratio(*ANSWER)))


def arrivals(rate, seconds, seed=5):
    """When requests come: a Poisson process of which is known how many there are."""
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, round(rate * seconds)))


def percentiles(values, which, digits=2):
    return {q: round(float(np.percentile(values, q)), digits) for q in which} if len(values) else None


def add(bench, name, context, computed, answer, rng):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(temperature=0, max_tokens=int(answer), ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA,
                            extra_args={"kv_transfer_params": {"computed": int(computed)}})  # fmt: skip
    bench.engine.add_request(name, {"prompt_token_ids": rng.integers(10, 150000, int(context + computed)).tolist()}, params)


def side(bench, mode, rate, seconds, begun, lighter):
    rng, draws = np.random.default_rng(5), iter(requests(4000, lighter))
    bench.steps.clear(), bench.replays.clear()
    before, (counts, declined) = bench.library(), bench.counted()
    preempted, preempt = [], bench.core.scheduler._preempt_request
    bench.core.scheduler._preempt_request = lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1]
    first, last, tokens, arrived, begun_names = {}, {}, {}, {}, set()
    for i in range(begun):
        context, computed, answer = next(draws)
        name = f"{mode}{rate}begun{i}"
        add(bench, name, context + computed, 1, answer * rng.uniform(0.05, 1), rng)
        begun_names.add(name)
    warm = time.perf_counter()
    for _ in range(8):
        bench.engine.step()
    while any(r.num_output_tokens < 2 for r in bench.core.scheduler.running) and time.perf_counter() - warm < 60:
        bench.engine.step()
    torch.cuda.synchronize()
    bench.steps.clear()
    begin = time.perf_counter()
    due, offered, made, finished, running, gaps = list(arrivals(rate, seconds))[::-1], 0, 0, [], [], []
    while (now := time.perf_counter() - begin) < seconds:
        while due and due[-1] <= now:
            name = f"{mode}{rate}n{len(arrived)}"
            context, computed, answer = next(draws)
            add(bench, name, context, computed, answer, rng)
            arrived[name], offered = due.pop(), offered + int(answer)
        if not bench.engine.has_unfinished_requests():
            time.sleep(max(0, (due[-1] if due else seconds) - (time.perf_counter() - begin)))
            continue
        out = bench.engine.step()
        now = time.perf_counter() - begin
        running.append(len(bench.core.scheduler.running))
        for o in out:
            name, new = o.request_id.split("-")[0], len(o.outputs[0].token_ids)
            made += new
            if not new or name not in arrived and name not in begun_names:
                continue
            if name in last:
                gaps.append(now - last[name])
            first.setdefault(name, now)
            last[name], tokens[name] = now, tokens.get(name, 0) + new
            if o.finished:
                finished.append(name)
    torch.cuda.synchronize()
    elapsed, waiting = time.perf_counter() - begin, len(bench.core.scheduler.waiting)
    steps = bench.kinds()
    bench.core.scheduler._preempt_request = preempt
    for name in [r.request_id for r in bench.core.scheduler.requests.values()]:
        bench.engine.abort_request([name], internal=True)
    while bench.engine.has_unfinished_requests():
        bench.engine.step()
    after, (now_counted, now_declined) = bench.library(), bench.counted()
    changed = {k: after[k] - before[k] for k in after if after[k] != before[k]}
    tpot = np.array([(last[i] - first[i]) / (tokens[i] - 1) for i in finished if tokens[i] > 100]) * 1e3
    wait = np.array([first[i] - arrived[i] for i in first if i in arrived]) * 1e3
    found = dict(
        mode=mode, rate=rate, seconds=round(elapsed, 1), arrived=len(arrived), finished=len(finished), tokens_per_s=round(made / elapsed, 1),
        offered_tokens_per_s=round(offered / elapsed, 1), tpot_ms=percentiles(tpot, (50, 90, 99)), gap_ms=percentiles(np.array(gaps) * 1e3, (50, 99)),
        first_token_ms=percentiles(wait, (50, 99), 0), rows=round(float(np.mean(running)), 1), most_rows=max(running),
        waiting_at_the_end=waiting, preempted=len(preempted), steps=steps,
        counts={k: v - counts.get(k, 0) for k, v in now_counted.items()},
        declined={k: v - declined.get(k, 0) for k, v in now_declined.items()}, library=changed,
    )  # fmt: skip
    say(json.dumps(found))
    return found


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--sides", default="on:1.2:90:26,on:0.43:40:7,off:0.43:240:20")
    p.add_argument("--cases", default="1x32768,8x32768,fitx32768,64x8192")
    p.add_argument("--budget", type=int, default=2048)
    p.add_argument("--layers", default="2,12")
    p.add_argument("--until", type=float, default=math.inf)
    p.add_argument("--backend")
    p.add_argument("--lighter", action="store_true")
    a = p.parse_args()
    more = arguments(LONGEST, 64, GRAPHS)
    more["kv_transfer_config"] = CONNECTOR
    own = {"budget": a.budget, "layers": [int(x) for x in a.layers.split(",")]}
    if a.backend:
        own, more["attention_backend"], more["kernel_config"] = (
            None,
            a.backend,
            {"enable_flashinfer_autotune": False},
        )  # no kernels to tune here
    bench = Bench(random_model.folder(), own, **more)
    random_model.randomize(bench.runner.model)
    found, cases, captured = [], {}, a.backend.lower() if a.backend else "on"
    for text in a.sides.split(","):
        mode, rate, seconds, begun = text.split(":")
        if mode != captured:
            bench.switch(mode == "on")
            captured = mode
        if mode not in cases:
            cases[mode] = [bench.case(case, mode, 40) for case in a.cases.split(",") if case]
        last = a.until - (time.time() - BEGIN) - AROUND
        if last < LEAST:
            say(f"no time for {text}")
            continue
        found.append(side(bench, mode, float(rate), min(float(seconds), last), int(begun), a.lighter))
        keep(f"serving-{captured}" if a.backend else "serving", **bench.about(), lighter=a.lighter, sides=found, cases=cases)
    for f in found:
        say(f"{NAMES.get(f['mode'], f['mode'])}, {f['rate']} a second: {f['tokens_per_s']} tokens/s, {f['finished']} finished,",
            f"ms a token {f['tpot_ms']}; steps {f['steps']}; {f['preempted']} preempted, {f['waiting_at_the_end']} waiting at the end")  # fmt: skip
        if f["preempted"] > f["arrived"] / 20 or f["waiting_at_the_end"] > f["arrived"] / 20:
            say("    OVERLOADED: the K/V store was full; this says nothing of an attention's latency")
    for on, off in zip(*(cases.get(m, []) for m in ("on", "off"))):
        say(
            f"{on['rows']} x {on['context']}: FlashAttention {off['step_ms']:.2f} ms, lessismore {on['step_ms']:.2f} ms a step: {off['step_ms'] / on['step_ms']:.2f}x"
        )
    if bench.context is not None:
        say(short(bench.report()))
    say("done")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
