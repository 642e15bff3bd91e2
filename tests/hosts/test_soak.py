"""A server with its default options through a script of random operations: every turn that the host alone answers
exactly is answered exactly with the library, and most rows are sparse.

    pytest tests/hosts/test_soak.py            one seed, short
    pytest tests/hosts/test_soak.py --long     ten seeds, 200 operations each (make soak)
"""
import random

import hostlib
import pytest
from checks import SPARSE, active

SEEDS, OPERATIONS = 10, 200
SHORT = 24


def pytest_generate_tests(metafunc):
    seeds = [random.SystemRandom().randrange(1 << 32) for _ in range(SEEDS if metafunc.config.getoption("--long") else 1)]
    metafunc.parametrize("seed", seeds)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_random_operations(kv, seed, library, request):
    long = request.config.getoption("--long")
    job = {"scenario": "soak", "seed": seed, "operations": OPERATIONS if long else SHORT, "kv": kv,
           "timeout": 3600 if long else 300}
    turns = lambda result: {line["turn"]: line for line in result.lines if "turn" in line}  # noqa: E731
    alone = turns(hostlib.run("llama-server", **job))
    result = hostlib.run("llama-server", library=library, settings=SPARSE, **job)
    ours, total = turns(result), active(result)
    assert ours.keys() == alone.keys()
    right = [t for t in alone if alone[t]["exact"]]
    wrong = [(alone[t], ours[t]) for t in right if not ours[t]["exact"]]
    sparse = total["rows_sparse"] / total["rows"]
    print(f"{kv} seed {seed}: {len(alone)} turns, the host alone exact in {len(right)}, with the library wrong in "
          f"{len(wrong)} of these; {total['rows']} rows, {sparse:.1%} sparse, order unknown {total['cell_order']}, "
          f"of prompts {total['prompt_rows']}, left to the host {total['declined']}")
    assert not wrong, wrong
    assert len(right) >= 0.9 * len(alone), "the host alone has to be right, or nothing is shown"
    assert sparse >= 0.7, total
