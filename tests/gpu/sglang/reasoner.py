#!/usr/bin/env python3
"""The reasoner (tests/data/reasoner, real weights) served by SGLang: every problem has to be solved, with so many requests at once that new prompts
come while others decode, and once more with prompts that the radix cache kept. The control chooses with layers that cannot do it.

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

# requests at once, one after the other; settings beside the budget; SGLang's arguments; whether it must solve all
CASES = {
    "stock": ((16, 4), None, {}, True),
    "graphs": ((16, 4, 1), {"layers": RIGHT}, {}, True),
    "graphs-page16": ((16, 4), {"layers": RIGHT}, {"page_size": 16, "disable_radix_cache": True}, True),
    "eager": ((16, 4), {"layers": RIGHT}, {"page_size": 16, "disable_cuda_graph": True}, True),
    "eager-page1": ((16,), {"layers": RIGHT}, {"disable_cuda_graph": True, "disable_radix_cache": True}, True),
    "decode-only": (
        (16, 4),
        {"layers": RIGHT},
        {"page_size": 16, "attention_backend": "fa3", "decode_attention_backend": "lessismore"},
        True,
    ),
    "auto": ((16,), {}, {"page_size": 16, "disable_cuda_graph": True}, True),
    "profile": ((16,), {}, {"page_size": 16}, True),  # what auto kept
    "control": ((16,), {"layers": WRONG}, {"page_size": 16}, False),
}


class Problems:
    def __init__(self):
        problems = [task.problem(random.Random(960000 + i), task.steps_for(2048)) for i in range(PROBLEMS)]
        self.prompts = [[task.BOS] + task.encode(prompt) for prompt, _ in problems]
        self.wanted = [task.encode(solution)[: 2047 - len(p)] for (_, solution), p in zip(problems, self.prompts)]

    def ask(self, served, rows):
        """The first wrong token of each answer; -1: none."""
        given = served.serve(self.prompts, [len(w) for w in self.wanted], rows)
        return [
            next((k for k, (a, b) in enumerate(zip(g, w)) if a != b), -1) if len(g) == len(w) > 100 else len(g)
            for g, w in zip(given, self.wanted)
        ]


def main(name):
    batches, settings, arguments, solves = CASES[name]
    if "decode_attention_backend" in arguments:
        os.environ["NO_DSL"] = "1"
    served = Served(
        DATA, None if settings is None else {"budget": BUDGET, **settings}, dtype="float16", context_length=2048, max_running_requests=max(batches),
        max_total_tokens=40000, mem_fraction_static=0.5, cuda_graph_max_bs_decode=max(batches), **arguments,
    )  # fmt: skip
    problems, found, checks, report = Problems(), [], {}, None
    again = [] if arguments.get("disable_radix_cache") or not solves else [max(batches)]
    for rows in [*batches, *again]:
        kept = len(found) == len(batches)  # the prompts are in the radix cache
        if not kept:
            served.flush()
        begin = time.time()
        first = problems.ask(served, rows)
        exact = first.count(-1)
        say(
            f"reasoner {name}, {rows} rows{', prompts kept' if kept else ''}: exact {exact} of {PROBLEMS}, first wrong token {first}, {time.time() - begin:.1f} s"
        )
        checks[f"answers of {rows} rows{' again' if kept else ''}"] = exact == PROBLEMS if solves else exact == 0
        found.append(dict(rows=rows, prompts_kept=kept, exact=exact, first_wrong=first))
        keep(f"reasoner-{name}", batches=found)
    if settings is not None:
        report = served.report()
        library = report["library"] or {}
        share = library.get("tokens_attended", 0) / max(library.get("tokens_visible", 0), 1)
        say(f"    {report['reason'] or 'on'}, layers {report['layers']} ({report['source']}), {report['taking_part']} take part, {share:.1%} attended,",
            f"declined {report['declined']}, {({k: v for k, v in library.items() if v})}")  # fmt: skip
        checks["sparse"] = share < 1 - LEAST and library.get("rows_sparse", 0) > 1000
        checks["sets"] = library.get("no_set_calls") == 0
        checks["measured"] = name != "auto" or library.get("measured_steps", 0) > 0
    keep(f"reasoner-{name}", batches=found, report=report)
    served.end(name, checks)


if __name__ == "__main__":
    main(sys.argv[1])
