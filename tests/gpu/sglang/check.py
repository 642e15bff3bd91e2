#!/usr/bin/env python3
"""Each layer's attention beside FlashAttention 3's on the same inputs, and the last layer's beside float32 attention over the token set that
the library names: prompts that share a beginning, kept by the radix cache, more of them than rows.

check.py CASE      each case is an engine of its own (CASES names them)
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile

import numpy as np
from engine import HERE, ROOT, Served, keep, say

sys.path.append(str(HERE.parent / "vllm"))
import random_model  # noqa: E402

LAYERS, BUDGET, ROWS, SHARED, STEPS = 6, 1024, 3, 512, 40
LENGTHS = (100, 3000, 9000, 1500, 1001)
CLOSE = 4e-3  # relative: bf16 rounds by 2 ** -9 at each of two engines
REASONER = ROOT / "tests" / "data" / "reasoner"

# the model, its layers that choose, budget, tokens of a page, the longest prompt
CASES = {
    "bf16": (None, "1,3", BUDGET, 1, LENGTHS),
    "bf16-page16": (None, "1,3", BUDGET, 16, LENGTHS),
    "f16": (REASONER, "2,9", 128, 1, (60, 700, 1900, 130)),
    "f16-page16": (REASONER, "2,9", 128, 16, (60, 700, 1900, 130)),
}


def main(name):
    model, layers, budget, page, lengths = CASES[name]
    path = pathlib.Path(tempfile.mkdtemp()) / "watch.json"
    os.environ["WATCH"] = str(path)
    more = (
        dict(load_format="dummy", dtype="bfloat16", context_length=16384) if model is None else dict(dtype="float16", context_length=2048)
    )
    served = Served(
        model or random_model.folder(LAYERS), {"budget": budget, "layers": layers}, max_running_requests=ROWS, max_total_tokens=40000,
        mem_fraction_static=0.4, page_size=page, disable_cuda_graph=True, **more,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    prompts = [rng.integers(10, 64 if model else 150000, n).tolist() for n in lengths]
    for prompt in prompts:
        prompt[:SHARED] = prompts[2][: min(SHARED, len(prompt))]
    served.generate(prompts, [STEPS] * len(prompts))
    report = served.report()
    found = json.loads(path.read_text()) if path.exists() else {}
    for kind, values in sorted(found.items()):
        errors = [value[0] for value in values]
        worst = max(values)
        say(f"check {name}: {kind}: most {worst}, median {statistics.median(errors):.2e}, {len(errors)} of rows and layers")
    library = report["library"] or {}
    say(f"    {report['reason'] or 'on'}, declined {report['declined']}, { ({k: v for k, v in library.items() if v}) }")
    keep(f"check-{name}", report=report, differences={kind: dict(most=max(values), n=len(values)) for kind, values in found.items()})
    checks = {
        "seen": all(kind in found for kind in ("full", "over the set", "sparse, no measure of right")),
        "close": all(value[0] < CLOSE for kind in ("full", "over the set") for value in found.get(kind, [])),
        "sets": all(value[0] for value in found.get("sets in order", [])) and library.get("no_set_calls") == 0,
    }
    served.end(f"check {name}", checks)


if __name__ == "__main__":
    main(sys.argv[1])
