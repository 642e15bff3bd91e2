"""What a host does to its cache between two tokens must not confuse the library."""

import random

import hostlib
import pytest
from checks import BUDGET, SPARSE, active, saved, solved_all, sparse_only
from conftest import SEEDS
from hostlib import Problem

BY_CELL = {"LESSISMORE_TEST_ORDER": "cell"}


def test_truncated_and_continued(native, problems):
    result = native("truncate", problems[:2], SPARSE)
    solved_all(result, problems[:2])
    saved(active(result))


def test_holes_filled_again(native, problems):
    result = native("holes", problems[:2], SPARSE)
    solved_all(result, problems[:1])
    sparse_only(result)
    assert active(result)["position_order"] > 0


def test_holes_fail_by_cell_order(native, problems):
    """Control: taking the cell's number for the token's age must ruin the same run."""
    result = native("holes", problems[:2], {**SPARSE, **BY_CELL})
    total = active(result)
    assert total["cell_order"] > 0 and total["position_order"] == 0
    assert result.exact(problems[:1]) == [False]


def test_cell_order_is_right_without_holes(native, problems):
    result = native("solve", problems[:1], {**SPARSE, **BY_CELL})
    solved_all(result, problems[:1])
    sparse_only(result)


@pytest.mark.parametrize("kv", ["q8_0", "q4_0"])
def test_holes_after_a_shift_of_quantised_keys(kv, native, problems):
    """The host rotates quantised keys by way of temporaries, which bear the store's name."""
    result = native("holes", problems[:2], SPARSE, kv=kv, move=37, lengths=[300])
    assert result.exact(problems[:1]) == [True]
    sparse_only(result)
    assert active(result)["position_order"] == len(result.rows)


@pytest.mark.parametrize("deltas", [[37, -20], [-5], [400]])
def test_positions_shifted(deltas, native, problems):
    result = native("shift", problems[:2], SPARSE, deltas=deltas)
    solved_all(result, problems[:2])
    saved(active(result))


@pytest.mark.parametrize("beside", [False, True])
def test_state_restored(beside, native, problems):
    result = native("restore", problems[:2], SPARSE, beside=beside)
    solved_all(result, problems[:1])
    total = active(result)
    saved(total)
    assert total["position_order"] == total["rows"]


@pytest.mark.parametrize("fresh", [False, True])
def test_restored_beside_one_that_ends(fresh, native, problems):
    """The first new tokens lie in the cells before the restored ones. A context that never saw these is dense until
    the newest quarter of the budget is new."""
    result = native("restore", problems[:2], SPARSE, beside=True, ends=True, fresh=fresh, lengths=[400])
    assert result.exact(problems[:1]) == [True]
    total = active(result)
    assert total["cell_order"] == (BUDGET // 4 - 5 if fresh else 0)
    assert total["position_order"] == total["rows_sparse"] == total["rows"] - total["cell_order"]


@pytest.mark.parametrize("kv, unified", [("f16", True), ("q8_0", True), ("f16", False)])
def test_texts_stay_whatever_is_done_to_their_cells(kv, unified, library, request):
    """Operations of chance that a server does not have; what the host alone gets wrong is not ours. With --long ten times as many."""
    seed = random.SystemRandom().randrange(1 << 32)
    some = [Problem.make(k, steps=25) for k in SEEDS]
    job = {
        "scenario": "chaos", "kv": kv, "unified": unified, "context": 9216, "threads": 2, "seed": seed, "timeout": 900,
        "prompts": [p.prompt for p in some], "solutions": [p.solution for p in some],
        "operations": 600 if request.config.getoption("--long") else 60,
    }  # fmt: skip
    result = hostlib.run("llama-cpp-python", library=library, settings=SPARSE, **job)
    if any(missed(result)):
        alone = missed(hostlib.run("llama-cpp-python", **job))
        assert missed(result) == alone, f"seed {seed}: {result.lines}, the host alone: {alone}"
    total = active(result)
    print(
        f"seed {seed}: {sum(line['tokens'] for line in result.lines)} tokens",
        {k: total[k] for k in ("rows_sparse", "rows_full", "cell_order")},
    )
    assert total["rows_sparse"] > 4 * total["rows_full"], total


def missed(result):
    """Of each operation the tokens that were not the solution's."""
    return [[of[:2] for of in line["wrong"]] for line in result.lines]
