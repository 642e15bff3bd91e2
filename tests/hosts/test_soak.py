"""A server with its default options through a script of random operations: every turn that the host alone answers
exactly is answered exactly with the library, and most rows are sparse.

A turn may also be lost because 128 tokens are few for its text, whatever was done before it (docs/auto.md has the rate).
Then a server that did nothing else loses it too, at that budget or one beside it; such turns are counted apart and
have to be rare. A turn that is lost only behind the operations before it fails the test.

    pytest tests/hosts/test_soak.py            one seed, short
    pytest tests/hosts/test_soak.py --long     ten seeds, 200 operations each (make soak)
"""

import random

import hostlib
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
    hard = [t for t, _ in lost if too_hard(t, kv, library)]
    print(f"{len(hard)} of those are lost without any operation before them")
    assert len(hard) == len(lost), lost
    assert len(hard) <= max(1, len(ours) // 100), "more turns are lost than 128 tokens explain"
    assert len(wrong) <= 0.1 * len(ours), "the host alone has to be right, or nothing is shown"
    assert sparse >= 0.8, total


def too_hard(turn, kv, library):
    """Whether a fresh server loses a turn's text as well, at the budget or near it."""
    for budget in range(BUDGET, 2 * BUDGET + 1, BUDGET // 8):
        result = hostlib.run(
            "llama-server",
            library=library,
            settings={**SPARSE, "LESSISMORE_BUDGET": budget},
            prompts=[turn["text"]],
            lengths=[len(turn["want"])],
            arguments=["-ctk", kv],
        )
        active(result)
        if result.tokens[0] != turn["want"]:
            return True
    return False


def turns(result):
    return {line["turn"]: line for line in result.lines if "turn" in line}
