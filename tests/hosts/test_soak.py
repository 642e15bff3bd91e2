"""A server through a script of random operations: every turn that the host alone answers exactly is answered exactly with
the library, and most rows are sparse. What the server holds stays the same, however long that goes on.

A turn may be beyond the method at this budget, whoever computes it: then the method's text, written out in NumPy and
float64 (method.py), loses it as well. Such turns are rare, and counted apart; any other one fails the test.

    pytest tests/hosts/test_soak.py            three arrangements by chance, short
    pytest tests/hosts/test_soak.py --long     all arrangements, 200 operations each, and 20 minutes at full slots (make soak)

LESSISMORE_SOAK_SECONDS is how long the last one takes.
"""

import os
import random

import hostlib
import make_swap
import method
import numpy as np
import pytest
from checks import BUDGET, SPARSE, active

OPERATIONS, SHORT = 200, 24
SECONDS = float(os.environ.get("LESSISMORE_SOAK_SECONDS", 1200))
MIB = 1 << 20

# What a server may be told of its slots, its cache and what else it serves; none: its own defaults.
ARRANGEMENTS = {
    "defaults": {},
    "one slot": {"slots": 1},
    "4 slots": {"slots": 4},
    "4 streams": {"slots": 4, "unified": False},
    "16 slots": {"slots": 16},
    "16 streams": {"slots": 16, "unified": False},
    "adapters": {"adapters": True},
    "embeddings": {"pooling": "mean"},
    "reranking": {"pooling": "rank", "slots": 4, "unified": False},
    "everything": {"adapters": True, "pooling": "mean", "slots": 16},
    "a small RAM cache": {"arguments": ["-cram", "2"]},
    "no RAM cache": {"arguments": ["-cram", "0"], "without": ["copies"]},  # copies then fail in the host: "Invalid input batch."
    "side by side": {"slots": 4, "workers": 4},
    "streams side by side": {"slots": 16, "workers": 16, "unified": False},
}


def pytest_generate_tests(metafunc):
    if "arrangement" not in metafunc.fixturenames:
        return
    seeds, long = random.SystemRandom(), metafunc.config.getoption("--long")
    names = list(ARRANGEMENTS) if long else seeds.sample(list(ARRANGEMENTS), 3)
    cases = [(name, kv) for name in names for kv in ("f16", "q8_0")] if long else zip(names, ("f16", "q8_0", "f16"))
    metafunc.parametrize("arrangement, kv, seed", [(name, kv, seeds.randrange(1 << 32)) for name, kv in cases])


@pytest.fixture(scope="session")
def swaps(tmp_path_factory):
    """What a job says of a server with adapters."""
    return make_swap.job(tmp_path_factory.mktemp("adapters"))


def test_random_operations(arrangement, kv, seed, library, swaps, request):
    long = request.config.getoption("--long")
    job = {"scenario": "soak", "seed": seed, "kv": kv, "timeout": 3600 if long else 300, **ARRANGEMENTS[arrangement]}
    job["operations"] = (OPERATIONS if long else SHORT) // (4 if job.get("workers") else 1)
    if job.pop("adapters", False):
        job |= swaps
    result = hostlib.run("llama-server", library=library, settings=SPARSE, **job)
    judge(f"{arrangement}, {kv}, seed {seed}", result, lambda: hostlib.run("llama-server", **job))


@pytest.mark.long
def test_full_slots_for_long(library):
    """All slots busy all the time. The RAM cache is full after a minute, and stays so. No embeddings and no adapters: as long as
    other slots decode, the server lets requests wait that cannot be in one batch with theirs."""
    seed = random.SystemRandom().randrange(1 << 32)
    job = {"scenario": "soak", "seed": seed, "kv": "f16", "slots": 16, "workers": 16, "arguments": ["-cram", "32"]}
    result = hostlib.run("llama-server", library=library, settings=SPARSE, seconds=SECONDS, timeout=SECONDS + 600, **job)
    job |= {"operations": max(result.value("operations")), "timeout": SECONDS + 3600}
    judge(f"{SECONDS:.0f} s at full slots, seed {seed}", result, lambda: hostlib.run("llama-server", **job))
    samples = [line for line in result.lines if "at" in line]
    for what, most in (("anonymous", 16 * MIB), ("resident", 16 * MIB), ("files", 0.5), ("threads", 0.5)):
        grown = growth(samples, what)
        print(f"{what}: {samples[len(samples) // 4][what]:,} after a quarter, {samples[-1][what]:,} at the end, fitted growth {grown:,.1f}")
        assert grown <= most, what


def growth(samples, what):
    """By how much a quantity grows over the last three quarters of a run: the median slope of all pairs (Theil and Sen)."""
    t, x = (np.array([s[name] for s in samples[len(samples) // 4 :]], float) for name in ("at", what))
    i, j = np.triu_indices(len(t), 1)
    return float(np.median((x[j] - x[i]) / (t[j] - t[i])) * (t[-1] - t[0]))


def judge(name, result, alone):
    """Fails where an answer is wrong that the host alone gives, and that is not beyond the method."""
    ours, total = turns(result), active(result)
    wrong = [t for t in ours if not ours[t]["exact"]]
    beyond = [t for t in wrong if ours[t].get("asked") and not method.solves(budget=BUDGET, **ours[t]["asked"])]
    rest = [t for t in wrong if t not in beyond]
    theirs = turns(alone()) if rest else {}  # the control: the host may be wrong by itself
    lost = [ours[t] for t in rest if t not in theirs or theirs[t]["exact"]]
    sparse = total["rows_sparse"] / total["rows"]
    print(
        f"{name}: {len(ours)} turns, {len(wrong)} not exact, {len(beyond)} of these beyond the method at {BUDGET} "
        f"tokens, {len(lost)} of the rest exact without the library; {refused(result)} refused by the server; "
        f"{total['rows']} rows, {sparse:.1%} sparse, order unknown {total['cell_order']}, of prompts {total['prompt_rows']}, "
        f"left to the host {total['declined']}; {sum(t['tokens'] for t in ours.values()) / result.value('seconds'):.0f} tokens a second"
    )
    assert not lost
    assert len(beyond) <= max(1, 0.01 * len(ours)), "more than the budget explains"
    assert len(wrong) <= 0.1 * len(ours), "the host alone has to be right, or nothing is shown"
    assert sparse >= 0.8, total


def turns(result):
    return {tuple(line["turn"]): line for line in result.lines if "turn" in line}


def refused(result):
    return sum("refused" in line for line in result.lines)
