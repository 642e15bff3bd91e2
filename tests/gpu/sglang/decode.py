#!/usr/bin/env python3
"""Decode steps of a random-weight model of Qwen3-8B's shape in SGLang, contexts computed once and kept by the radix cache.

decode.py on|off [ROWS,...] [CONTEXT]      1, 8 and 16 rows of 32,768 tokens; off: SGLang's FlashAttention 3
"""

import os
import statistics
import sys
import time

from engine import HERE, Served, keep, say

sys.path.append(str(HERE.parent / "vllm"))
import random_model  # noqa: E402

SHORT, LONG, TIMES = 8, 72, 5


def main(mode, cases, context):
    rows = [int(n) for n in cases.split(",")]
    settings = {"budget": 2048, "layers": "2,12"} if mode == "on" else None
    served = Served(
        random_model.folder(), settings, load_format="dummy", dtype="bfloat16", context_length=context + 1024, max_running_requests=max(rows),
        max_total_tokens=(context + 256) * max(rows), page_size=16, mem_fraction_static=0.92, cuda_graph_max_bs_decode=max(rows),
    )  # fmt: skip
    import numpy as np

    prompts = np.random.default_rng(3).integers(10, 150000, (max(rows), context)).tolist()
    begin, found = time.time(), {}
    served.generate(prompts, [1] * len(prompts))
    say(f"{len(prompts)} prompts of {context} tokens computed in {time.time() - begin:.1f} s")
    for n in rows:
        steps = []
        served.generate(prompts[:n], [SHORT] * n)  # what the first time alone takes is in no difference
        for _ in range(TIMES):
            took = []
            for tokens in (SHORT, LONG):
                begin = time.perf_counter()
                served.generate(prompts[:n], [tokens] * n)
                took.append(time.perf_counter() - begin)
            steps.append((took[1] - took[0]) / (LONG - SHORT) * 1e3)
        found[n] = steps
        say(f"{n} x {context}, {mode}: {statistics.median(steps):.2f} ms a step ({', '.join(f'{s:.2f}' for s in steps)})")
        keep(f"decode-{mode}", context=context, step_ms=found)
    if settings is not None:
        report = served.report(wait=0)
        library = report["library"]
        say(
            f"    {report['reason'] or 'on'}, {library['tokens_attended'] / max(library['tokens_visible'], 1):.1%} attended, no_set {library['no_set_calls']}"
        )
    served.engine.shutdown()
    return True


if __name__ == "__main__":
    good = main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "1,8,16", int(sys.argv[3]) if len(sys.argv) > 3 else 32768)
    sys.stdout.flush()
    os._exit(0 if good else 1)
