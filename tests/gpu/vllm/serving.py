#!/usr/bin/env python3
"""A server's load: requests arrive at random (Poisson), each with a context of 8K to 28K tokens that is in place, a prompt of 1K to 4K tokens
that is computed, and an answer of 1K to 4K tokens. FlashAttention and lessismore in one process, one engine, the same requests.

    serving.py [--sides MODE:LOAD:GOAL,...] [--cases ROWSxCONTEXT,...] [--until SECONDS] [--backend NAME] [--skew 0|1|2]

LOAD: the share of the K/V store that the requests in flight hold on average; or an earlier side's mode, whose rate is taken. GOAL: how many requests shall
finish; with an s: how many seconds. The rate follows from the store, from what a step and a prompt take on this GPU, which the first second of a side
measures, and from the requests: as many a second as hold that share. It is lowered until the store is foreseen never to be full: what a server with
a full store does, preempting and computing again, says nothing of an attention. Where it happens, the side ends and is done again with fewer.
cases: decode steps alone, as decode.py has them, in each mode before its first side.
until: all of it is over so many seconds after the start; the last side is cut to that. backend: another of vLLM's, by itself: one mode, its name in
small letters. skew: contexts and answers within the same bounds: 0: uniform contexts, answers with as many short as long ones by ratio; 1: contexts by ratio,
short answers more often; 2: short contexts more often, too. Default: 1, on a GPU with memory for fewer than 30 such requests 2.
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
LONGEST = CONTEXT[1] + PROMPT[1] + ANSWER[1] + 256
NAMES = {"on": "lessismore", "off": "FlashAttention"}
AROUND = 8  # seconds that a side takes beside its own: what is there at its beginning, its pace, its end
LEAST = 18  # seconds of a side
FULL = 0.93  # of the store: more is not foreseen
TROUBLE = 5  # preempted or waiting requests that say that the store is full
PACE = 40  # steps of a measurement
PROBE = 2048  # tokens of a prompt that is timed
WARM = 3 * PACE + 30  # tokens that a request may make before a side begins
GRAPHS = [1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64]


def requests(n, skew, seed=11):
    """Context, prompt, answer of each."""
    rng = np.random.default_rng(seed)

    def ratio(low, high, power=1):
        return np.exp(math.log(low) + math.log(high / low) * rng.random(n) ** power).astype(int)

    contexts = ratio(*CONTEXT, power=skew) if skew else rng.integers(*CONTEXT, n)
    return np.stack([contexts, ratio(*PROMPT), ratio(*ANSWER, power=2 if skew else 1)], 1)


def held(draws):
    """Tokens in the store of a request in flight, on average."""
    contexts, prompts, answers = draws.T
    return float(np.average(contexts + prompts + answers / 2, weights=answers))


def arrivals(rate, seconds, seed=5):
    """When requests come: a Poisson process of which is known how many there are."""
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, round(rate * seconds)))


def percentiles(values, which, digits=2):
    return {q: round(float(np.percentile(values, q)), digits) for q in which} if len(values) else None


class Pace:
    """What a decode step takes by the tokens that its rows see, and a token of a prompt. Seconds."""

    def __init__(self, few, many, prompt):
        (t0, s0), (t1, s1) = few, many
        self.token = max(0.0, (s1 - s0) / (t1 - t0))
        self.rest = s1 - self.token * t1
        self.prompt = min(max(0.0, prompt), 1e-4)

    def step(self, tokens):
        return self.rest + self.token * tokens

    def rate(self, draws, rows):
        """Requests a second of which so many are in flight."""
        prompt, answer = draws[:, 1].mean(), draws[:, 2].mean()
        return rows / (answer * self.step(rows * held(draws)) + rows * prompt * self.prompt)

    def foreseen(self, draws, begun, due, seconds):
        """The most tokens in the store, and how many requests finish. begun: (tokens, tokens to make) of those in flight."""
        flight, due, draws, now, most, finished = [list(r) for r in begun], list(due), iter(draws), 0.0, 0, 0
        while now < seconds:
            while due and due[0] <= now:
                due.pop(0)
                context, prompt, answer = (int(x) for x in next(draws))
                now += prompt * self.prompt
                flight.append([context + prompt, answer])
            tokens = sum(r[0] for r in flight)
            most = max(most, tokens)
            steps = min([10] + [r[1] for r in flight])
            now += self.step(tokens) * steps
            for r in flight:
                r[0], r[1] = r[0] + steps, r[1] - steps
            finished += sum(r[1] <= 0 for r in flight)
            flight = [r for r in flight if r[1] > 0]
        return most, finished


class Side:
    """One load on one attention."""

    def __init__(self, bench, mode, skew):
        self.bench, self.mode, self.draws = bench, mode, requests(4000, skew)
        self.rng = np.random.default_rng(5)
        self.store = bench.blocks * bench.block
        self.first, self.last, self.tokens, self.arrived, self.begun = {}, {}, {}, {}, {}
        self.made, self.offered, self.finished, self.running, self.gaps, self.preempted = 0, 0, [], [], [], 0
        self.taken, self.trouble, self.elapsed, self.rate = 0, False, 0.0, 0.0
        bench.steps.clear(), bench.replays.clear()
        self.before, (self.counts, self.declined) = bench.library(), bench.counted()

    def draw(self):
        self.taken += 1
        return (int(x) for x in self.draws[self.taken - 1])

    def add(self, name, context, computed, answer):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(temperature=0, max_tokens=int(answer), ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA,
                                extra_args={"kv_transfer_params": {"computed": int(computed)}})  # fmt: skip
        ids = self.rng.integers(10, 150000, int(context + computed)).tolist()
        self.bench.engine.add_request(name, {"prompt_token_ids": ids}, params)

    def begin_with(self, rows, computed=1):
        """So many requests more in flight, somewhere in their answers. computed: tokens of theirs that are computed rather than placed."""
        for _ in range(rows):
            context, prompt, answer = self.draw()
            name = f"{self.mode}begun{len(self.begun)}"
            self.begun[name] = (context + prompt, max(32, int(answer * self.rng.uniform(0.05, 1))))
            self.add(name, context + prompt - computed, computed, self.begun[name][1] + WARM)

    def settle(self):
        """Steps until all that is there decodes."""
        until = time.perf_counter() + 30
        for _ in range(4):
            self.bench.engine.step()
        while any(r.num_output_tokens < 2 for r in self.bench.core.scheduler.running) and time.perf_counter() < until:
            self.bench.engine.step()

    def timed(self):
        """(tokens in the store, seconds a step) of PACE steps."""
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(PACE):
            self.bench.engine.step()
        torch.cuda.synchronize()
        return sum(r.num_tokens for r in self.bench.core.scheduler.running), (time.perf_counter() - begin) / PACE

    def measure(self, rows):
        """This attention's pace, with so many requests in flight in the end."""
        self.begin_with(rows // 2)
        self.settle()
        self.begin_with(1, PROBE)  # the first prompt beside rows that decode is not timed
        self.settle()
        few = self.timed()
        self.begin_with(rows - rows // 2 - 2)
        self.settle()
        many = self.timed()
        self.begin_with(1, PROBE)
        _, with_prompt = self.timed()
        return Pace(few, many, (with_prompt - many[1]) * PACE / PROBE)

    def plan(self, pace, rate, goal, longest):
        """(rate, seconds) by which the store is not filled."""
        while True:
            seconds = min(longest, goal / rate)
            most, finished = pace.foreseen(self.draws[self.taken :], list(self.begun.values()), arrivals(rate, seconds), seconds)
            if finished < goal and seconds < longest:
                seconds = min(longest, seconds * goal / max(1, finished) + 1)
                most, finished = pace.foreseen(self.draws[self.taken :], list(self.begun.values()), arrivals(rate, seconds), seconds)
            if most <= FULL * self.store or rate < 0.05:
                break
            rate *= 0.96
        say(f"{NAMES.get(self.mode, self.mode)}: a step {pace.rest * 1e3:.2f} ms + {pace.token * 1e9:.2f} ns a token that its rows see, "
            f"a prompt {pace.prompt * 1e6:.1f} us a token; {rate:.3f} a second for {seconds:.0f} s: at most {most / self.store:.2f} of the store, "
            f"{finished} finish")  # fmt: skip
        return rate, seconds

    def run(self, rate, seconds, partly):
        bench, scheduler = self.bench, self.bench.core.scheduler
        preempt = scheduler._preempt_request

        def counted(*a, **k):
            self.preempted += 1
            return preempt(*a, **k)

        scheduler._preempt_request = counted
        torch.cuda.synchronize()
        bench.steps.clear()
        self.rate = rate
        due, begin, kept = list(arrivals(rate, seconds))[::-1], time.perf_counter(), 0
        while (now := time.perf_counter() - begin) < seconds and not self.trouble:
            while due and due[-1] <= now:
                name, (context, prompt, answer) = f"{self.mode}n{len(self.arrived)}", self.draw()
                self.add(name, context, prompt, answer)
                self.arrived[name] = due.pop()
                self.offered += answer
            if not bench.engine.has_unfinished_requests():
                time.sleep(max(0.0, (due[-1] if due else seconds) - (time.perf_counter() - begin)))
                continue
            out = bench.engine.step()
            self.elapsed = time.perf_counter() - begin
            self.took(out)
            self.trouble = self.preempted > TROUBLE or len(scheduler.waiting) > TROUBLE
            if self.elapsed > kept + 5:
                kept = self.elapsed
                partly(self.found(whole=False))
        torch.cuda.synchronize()
        self.elapsed = time.perf_counter() - begin
        found = self.found()
        scheduler._preempt_request = preempt
        self.empty()
        return found

    def took(self, out):
        now = self.elapsed
        self.running.append(len(self.bench.core.scheduler.running))
        for o in out:
            name, new = o.request_id.split("-")[0], len(o.outputs[0].token_ids)
            self.made += new
            if not new or name not in self.arrived and name not in self.begun:
                continue
            if name in self.last:
                self.gaps.append(now - self.last[name])
            self.first.setdefault(name, now)
            self.last[name], self.tokens[name] = now, self.tokens.get(name, 0) + new
            if o.finished:
                self.finished.append(name)

    def empty(self):
        """Ends whatever is under way."""
        for name in [r.request_id for r in self.bench.core.scheduler.requests.values()]:
            self.bench.engine.abort_request([name], internal=True)
        while self.bench.engine.has_unfinished_requests():
            self.bench.engine.step()

    def found(self, whole=True):
        """What the side has shown so far. whole: the library's counts, too, which waits for the GPU."""
        bench, first, last = self.bench, self.first, self.last
        after, (now_counted, now_declined) = bench.library() if whole else {}, bench.counted()
        tpot = np.array([(last[i] - first[i]) / (self.tokens[i] - 1) for i in self.finished if self.tokens[i] > 100]) * 1e3
        wait = np.array([first[i] - self.arrived[i] for i in first if i in self.arrived]) * 1e3
        return dict(
            mode=self.mode, rate=round(self.rate, 4), seconds=round(self.elapsed, 1), begun=len(self.begun), arrived=len(self.arrived),
            finished=len(self.finished), finished_whole=sum(i in self.arrived for i in self.finished), overloaded=self.trouble,
            tokens_per_s=round(self.made / max(1e-9, self.elapsed), 1), offered_tokens_per_s=round(self.offered / max(1e-9, self.elapsed), 1),
            tpot_ms=percentiles(tpot, (50, 90, 99)), gap_ms=percentiles(np.array(self.gaps) * 1e3, (50, 99)),
            first_token_ms=percentiles(wait, (50, 99), 0), rows=round(float(np.mean(self.running)), 1) if self.running else 0,
            most_rows=max(self.running, default=0), waiting_at_the_end=len(bench.core.scheduler.waiting), preempted=self.preempted, steps=bench.kinds(),
            counts={k: v - self.counts.get(k, 0) for k, v in now_counted.items()},
            declined={k: v - self.declined.get(k, 0) for k, v in now_declined.items()},
            library={k: after[k] - self.before.get(k, 0) for k in after if after[k] != self.before.get(k, 0)},
        )  # fmt: skip


def side(bench, mode, load, goal, skew, until, done, partly):
    """One side, again with fewer requests where the store gets full; done: those before."""
    less = 1.0
    while True:
        longest = until - (time.time() - BEGIN) - AROUND
        if longest < LEAST:
            say(f"no time for {mode}:{load}:{goal}")
            return
        one = Side(bench, mode, skew)
        others = [f["rate"] for f in done if f["mode"] == load and not f["overloaded"]]
        if load in NAMES and not others:
            say(f"no rate of {load} for {mode}")
            return
        mean = held(one.draws)
        rows = max(4, min(GRAPHS[-1] * 3 // 4, round((0.3 if others else float(load) * less) * one.store / mean)))
        pace = one.measure(rows)
        longest = until - (time.time() - BEGIN) - AROUND / 2
        rate = others[-1] * less if others else pace.rate(one.draws, rows)
        if goal.endswith("s"):
            longest = min(longest, float(goal[:-1]))
        rate, seconds = one.plan(pace, rate, math.inf if goal.endswith("s") else float(goal), max(LEAST / 2, longest))
        found = one.run(rate, seconds, partly)
        say(json.dumps(found))
        done.append(found)
        partly()
        if not found["overloaded"] or less < 0.5:
            return
        say("    OVERLOADED: the K/V store is full; again with fewer requests")
        less *= 0.75


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--sides", default="on:0.72:115,off:0.6:112,on:off:40s")
    p.add_argument("--cases", default="1x32768,8x32768,fitx32768,64x8192")
    p.add_argument("--budget", type=int, default=2048)
    p.add_argument("--layers", default="2,12")
    p.add_argument("--until", type=float, default=math.inf)
    p.add_argument("--backend")
    p.add_argument("--role", default=CONNECTOR["kv_role"], help="the K/V connector's: placed.py")
    p.add_argument("--skew", type=int, choices=(0, 1, 2))
    a = p.parse_args()
    more = arguments(LONGEST, 64, GRAPHS)
    more["kv_transfer_config"] = {**CONNECTOR, "kv_role": a.role}
    own = {"budget": a.budget, "layers": [int(x) for x in a.layers.split(",")]}
    if a.backend:
        own, more["attention_backend"] = None, a.backend
        more["kernel_config"] = {"enable_flashinfer_autotune": False}  # no kernels to tune here
    bench = Bench(random_model.folder(), own, **more)
    random_model.randomize(bench.runner.model)
    skew = a.skew if a.skew is not None else 1 if bench.blocks * bench.block >= 30 * held(requests(4000, 1)) else 2
    done, cases, captured = [], {}, a.backend.lower() if a.backend else "on"

    def partly(*under_way):
        keep(f"serving-{captured}" if a.backend else "serving", **bench.about(), skew=skew, sides=[*done, *under_way], cases=cases)

    for text in a.sides.split(","):
        mode, load, goal = text.split(":")
        if mode != captured:
            bench.switch(mode == "on")
            captured = mode
        if mode not in cases:
            cases[mode] = [bench.case(case, mode, 40) for case in a.cases.split(",") if case]
        side(bench, mode, load, goal, skew, a.until, done, partly)
    for f in done:
        say(f"{NAMES.get(f['mode'], f['mode'])}, {f['rate']} a second: {f['tokens_per_s']} tokens/s, {f['finished']} finished,",
            f"ms a token {f['tpot_ms']}; steps {f['steps']}; {f['preempted']} preempted, {f['waiting_at_the_end']} waiting at the end",
            *["OVERLOADED: says nothing of an attention's latency"] * f["overloaded"])  # fmt: skip
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
