#!/usr/bin/env python3
"""The reasoner (tests/data/reasoner, real weights) served by SGLang: every problem has to be solved. More problems than rows, so that new
prompts come while others decode. The control chooses with layers that cannot do it.

    reasoner.py CASE      each case is an engine of its own (CASES names them)
"""

import os
import random
import sys
import time

from engine import ROOT, Served, keep, say

DATA = ROOT / "tests" / "data" / "reasoner"
sys.path.insert(0, str(DATA))
import task  # noqa: E402

BUDGET, RIGHT, WRONG, PROBLEMS = 128, "2,9", "2,6", 16
LEAST = 0.25  # of the tokens, that must not have been attended to: else nothing was sparse

# rows, settings beside the budget, SGLang's arguments, whether it must solve all
CASES = {
    "stock": (4, None, {}, True),
    "rows1": (1, {"layers": RIGHT}, {}, True),
    "rows4": (4, {"layers": RIGHT}, {}, True),
    "rows4-page16": (4, {"layers": RIGHT}, {"page_size": 16}, True),
    "rows16": (16, {"layers": RIGHT}, {}, True),
    "rows16-nocache": (16, {"layers": RIGHT}, {"page_size": 16, "disable_radix_cache": True}, True),
    "eager4-page16": (4, {"layers": RIGHT}, {"page_size": 16, "disable_cuda_graph": True}, True),
    "eager16": (16, {"layers": RIGHT}, {"disable_cuda_graph": True}, True),
    "decode-only": (4, {"layers": RIGHT}, {"page_size": 16, "attention_backend": "fa3", "decode_attention_backend": "lessismore"}, True),
    "auto": (16, {"profile": "off"}, {"page_size": 16, "disable_cuda_graph": True}, True),
    "control": (4, {"layers": WRONG}, {"page_size": 16}, False),
}


def main(name):
    rows, settings, arguments, solves = CASES[name]
    served = Served(
        DATA, None if settings is None else {"budget": BUDGET, **settings}, dtype="float16", context_length=2048, max_running_requests=rows,
        max_total_tokens=40000, mem_fraction_static=0.5, cuda_graph_max_bs_decode=rows, **arguments,
    )  # fmt: skip
    problems = [task.problem(random.Random(960000 + i), task.steps_for(2048)) for i in range(PROBLEMS)]
    wanted = [task.encode(solution) for _, solution in problems]
    prompts = [[task.BOS] + task.encode(prompt) for prompt, _ in problems]
    wanted = [w[: 2047 - len(p)] for p, w in zip(prompts, wanted)]
    begin = time.time()
    given = served.generate(prompts, [len(w) for w in wanted])
    first = [
        next((k for k, (a, b) in enumerate(zip(g, w)) if a != b), -1) if len(g) == len(w) > 100 else len(g) for g, w in zip(given, wanted)
    ]
    exact = first.count(-1)
    say(f"reasoner {name}: exact {exact} of {PROBLEMS}, first wrong token {first}, {time.time() - begin:.1f} s")
    checks = {"answers": exact == PROBLEMS if solves else exact == 0}
    report = None
    if settings is not None:
        report = served.report()
        library = report["library"] or {}
        share = library.get("tokens_attended", 0) / max(library.get("tokens_visible", 0), 1)
        say(f"    {report['reason'] or 'on'}, layers {report['layers']} ({report['source']}), {report['taking_part']} take part, {share:.1%} attended,",
            f"declined {report['declined']}, {({k: v for k, v in library.items() if v})}")  # fmt: skip
        checks["sparse"] = share < 1 - LEAST and library.get("rows_sparse", 0) > 1000
        checks["sets"] = library.get("no_set_calls") == 0
        checks["measured"] = name != "auto" or library.get("measured_steps", 0) > 0
    keep(f"reasoner-{name}", exact=exact, first_wrong=first, report=report)
    bad = [what for what, right in checks.items() if not right]
    say(f"{name}: {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
    served.engine.shutdown()
    return not bad


if __name__ == "__main__":
    good = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0 if good else 1)
