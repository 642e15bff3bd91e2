#!/usr/bin/env python3
"""The reasoner (tests/data/reasoner, real weights) served by vLLM: every problem has to be solved, whatever a server switches on.

    reasoner.py CASE      each case is an engine of its own: run them one after the other (CASES names them)

More problems than rows, so that new prompts come while others decode. The control chooses with layers that cannot do it.
"""

import os
import random
import sys
import time

import drafter
from engine import ROOT, Served, say, short

DATA = ROOT / "tests" / "data" / "reasoner"
sys.path.insert(0, str(DATA))
import task  # noqa: E402

BUDGET = 128
RIGHT, WRONG = [2, 9], [2, 6]
PROBLEMS = 16
LEAST = 0.25  # of the tokens, that must not have been attended to: else nothing was sparse

MOST_DRAFTS = 3
DRAFTS = {"method": "ngram", "num_speculative_tokens": MOST_DRAFTS, "prompt_lookup_max": 3, "prompt_lookup_min": 2}

# rows, prefix cache, graphs ("full": vLLM's default; "piecewise", "decode-only", "eager"), settings beside the budget, whether it must solve all
CASES = {
    "stock": (16, True, "full", None, True),
    "rows1": (1, True, "full", {"layers": RIGHT}, True),
    "rows4": (4, True, "full", {"layers": RIGHT}, True),
    "rows6": (6, False, "full", {"layers": RIGHT}, True),
    "rows16": (16, True, "full", {"layers": RIGHT}, True),
    "eager4": (4, True, "eager", {"layers": RIGHT}, True),
    "eager6-nocache": (6, False, "eager", {"layers": RIGHT}, True),
    "piecewise6": (6, True, "piecewise", {"layers": RIGHT}, True),
    "nosplit6": (6, True, "full", {"layers": RIGHT, "split": False}, True),
    "maxrows": (6, True, "full", {"layers": RIGHT, "max_rows": 4}, True),
    "preempt": (16, True, "full", {"layers": RIGHT}, True),
    "control": (6, True, "full", {"layers": WRONG}, False),
    "auto": (6, True, "full", {}, True),
    "auto-again": (6, True, "full", {}, True),
    "auto-piecewise": (6, True, "piecewise", {"profile": "off"}, True),
    "unknown": (6, True, "decode-only", {"profile": "off"}, True),
    "stock-drafts": (4, True, "full", None, True),
    "drafts4": (4, True, "full", {"layers": RIGHT}, True),
    "drafts16-eager": (16, False, "eager", {"layers": RIGHT}, True),
    "drafts-control": (4, True, "full", {"layers": WRONG}, False),
    "stock-eagle": (4, True, "full", None, True),
    "eagle4": (4, True, "full", {"layers": RIGHT}, True),
    "eagle16": (16, True, "full", {"layers": RIGHT}, True),
    "eagle6-eager": (6, False, "eager", {"layers": RIGHT}, True),
    "eagle-control": (4, True, "full", {"layers": WRONG}, False),
}


def problems():
    found = []
    for i in range(PROBLEMS):
        prompt, solution = task.problem(random.Random(960000 + i), task.steps_for(2048))
        found.append(([task.BOS] + task.encode(prompt), task.encode(solution)))
    return found


def run(name):
    rows, cache, graphs, settings, solves = CASES[name]
    more = dict(dtype="float16", max_model_len=2048, max_num_seqs=rows, max_num_batched_tokens=2048, gpu_memory_utilization=0.1,
                kv_cache_memory_bytes=1 << 30, enable_prefix_caching=cache, enforce_eager=graphs == "eager")  # fmt: skip
    if graphs in ("piecewise", "decode-only"):
        more["compilation_config"] = {"cudagraph_mode": {"piecewise": "PIECEWISE", "decode-only": "FULL_DECODE_ONLY"}[graphs]}
    if "drafts" in name:
        more["speculative_config"] = DRAFTS
    if "eagle" in name:
        more["speculative_config"] = {"method": "eagle", "model": str(drafter.folder(DATA)), "num_speculative_tokens": MOST_DRAFTS}
    if name == "preempt":
        more["num_gpu_blocks_override"] = 8 * 2048 // 16 + 1  # half of what the rows need
    served = Served(DATA, None if settings is None else {"budget": BUDGET, **settings}, **more)
    preempted = []
    preempt = served.core.scheduler._preempt_request
    served.core.scheduler._preempt_request = lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1]
    wanted, given, begin = problems(), {}, time.time()
    for i, (prompt, solution) in enumerate(wanted):
        served.add(str(i), prompt, min(len(solution), 2047 - len(prompt)))
    while served.engine.has_unfinished_requests():
        for out in served.engine.step():
            given[int(out.request_id.split("-")[0])] = list(out.outputs[0].token_ids)
    exact, first = 0, []
    for i, (_, solution) in enumerate(wanted):
        wrong = next((k for k, (a, b) in enumerate(zip(given[i], solution)) if a != b), -1)
        exact += wrong < 0 and len(given[i]) > 100
        first.append(wrong)
    report = served.report()
    if "speculative_config" in more:  # tokens over requests of steps that computed no prompt
        rows, tokens = (sum(step[k] for step in served.steps if step[2] <= 1 + MOST_DRAFTS) for k in (0, 1))
        say(
            f"    {tokens / max(rows, 1):.2f} tokens a request and step were computed, {sum(len(s) for _, s in wanted) / max(rows, 1):.2f} came of it"
        )
    say(
        f"reasoner {name}: exact {exact} of {len(wanted)}, first wrong token {first}, {time.time() - begin:.1f} s, steps {served.kinds()}, preempted {len(preempted)}"
    )
    if settings is None:
        return exact == len(wanted)
    say(f"    {short(report)}")
    return judge(name, solves, exact, len(wanted), report, len(preempted))


def judge(name, solves, exact, total, report, preempted):
    """Whether a case went as it has to: answers, and that it was what it says that gave them."""
    library, counts = report["library"], report["counts"]
    if name == "unknown":
        return exact == total and library is None and "not known" in report["reason"]
    if library is None:
        say(f"    FAILED: {report['reason']}")
        return False
    share = library["tokens_attended"] / library["tokens_visible"]
    checks = {
        "answers": exact == total if solves else exact == 0,
        "sparse": share < 1 - LEAST and library["rows_sparse"] > 1000,
        "sets": library["no_set_calls"] == 0,
        "rows": name not in ("maxrows", "nosplit6") or sum(report["declined"].values()) > 0,
        "split": name in ("nosplit6", "rows1") or counts.get("split_steps", 0) > 0,
        "source": name != "auto-again" or "profile" in report["source"] and "another" not in report["source"],
        "measured": name not in ("auto", "auto-piecewise") or library["measured_steps"] > 0,
        "preempted": name != "preempt" or preempted > 0,
    }  # fmt: skip
    bad = [what for what, right in checks.items() if not right]
    say(f"    {share:.1%} of the tokens attended; {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
    return not bad


if __name__ == "__main__":
    good = run(sys.argv[1])
    say(f"{sys.argv[1]}: {'ok' if good else 'FAILED'}")
    sys.stdout.flush()
    os._exit(0 if good else 1)  # vLLM's own end takes its time
