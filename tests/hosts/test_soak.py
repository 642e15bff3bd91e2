"""A server with its default options through a script of random operations: every turn that the host alone answers
exactly is answered exactly with the library, and most rows are sparse.

A turn may be beyond the method at this budget, whoever computes it: then the method's text, written out in NumPy and
float64 (method.py), loses it as well. Such turns are rare, and counted apart; any other one fails the test.

    pytest tests/hosts/test_soak.py            one seed, short
    pytest tests/hosts/test_soak.py --long     ten seeds, 200 operations each (make soak)
"""

import random

import hostlib
import method
import pytest
from checks import BUDGET, SPARSE, active

SEEDS, OPERATIONS = 10, 200
SHORT = 24


def pytest_generate_tests(metafunc):
    seeds = [random.SystemRandom().randrange(1 << 32) for _ in range(SEEDS if metafunc.config.getoption("--long") else 1)]
    metafunc.parametrize("seed", seeds)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_random_operations(kv, seed, library, request):
    long = request.config.getoption("--long")
    job = {"scenario": "soak", "seed": seed, "operations": OPERATIONS if long else SHORT, "kv": kv, "timeout": 3600 if long else 300}
    result = hostlib.run("llama-server", library=library, settings=SPARSE, **job)
    ours, total = turns(result), active(result)
    wrong = [t for t in ours if not ours[t]["exact"]]
    alone = turns(hostlib.run("llama-server", **job)) if wrong else ours  # the control: the host may be wrong by itself
    lost = [(ours[t], alone[t]) for t in wrong if alone[t]["exact"]]
    sparse = total["rows_sparse"] / total["rows"]
    print(
        f"{kv} seed {seed}: {len(ours)} turns, {len(wrong)} not exact, {len(lost)} of these exact without the library; "
        f"{total['rows']} rows, {sparse:.1%} sparse, order unknown {total['cell_order']}, "
        f"of prompts {total['prompt_rows']}, left to the host {total['declined']}"
    )
    beyond = [t for t, _ in lost if not method.solves(budget=BUDGET, **t["asked"])]
    print(f"{len(beyond)} of those are beyond the method at {BUDGET} tokens")
    assert len(beyond) == len(lost), lost
    assert len(beyond) <= max(1, 0.01 * len(ours)), "more than the budget explains"
    assert len(wrong) <= 0.1 * len(ours), "the host alone has to be right, or nothing is shown"
    assert sparse >= 0.8, total


def turns(result):
    return {line["turn"]: line for line in result.lines if "turn" in line}
