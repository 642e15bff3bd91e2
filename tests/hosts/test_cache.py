"""What a host does to its cache between two tokens must not confuse the library."""
import pytest
from checks import SPARSE, active, saved, solved_all, sparse_only

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
    assert total["position_order"] + total["cell_order"] > 0
