"""Several contexts, many contexts, and graphs computed in pieces."""

import pytest
from checks import SPARSE, active, solved_all, sparse_only


@pytest.mark.parametrize("count", [2, 3])
def test_contexts_on_threads(count, native, problems):
    result = native("threads", problems[:count], SPARSE)
    solved_all(result, problems[:count])
    sparse_only(result)
    assert len(result.contexts()) == count


def test_contexts_come_and_go(native, problems):
    result = native("repeat", problems[:1], SPARSE, lengths=[60], times=20)
    assert all(result.tokens[k] == problems[0].solution[:60] for k in range(20))
    sparse_only(result)
    assert len(result.contexts()) == 20


@pytest.mark.parametrize("ask", ["all", ["kqv_out"], ["Kcur", "ffn_inp"], ["__fattn__", "node_"]])
def test_evaluation_callback_splits_the_graph(ask, native, problems):
    result = native("solve", problems[:1], SPARSE, ask=ask)
    solved_all(result, problems[:1])
    assert result.value("graphs") > len(problems[0].solution), "the callback split nothing"
    sparse_only(result)


def test_loaded_twice(native, problems):
    result = native("solve", problems[:1], SPARSE, loads=2)
    solved_all(result, problems[:1])
    sparse_only(result)


def test_small_batches(native, problems):
    """Prompts in pieces that are no multiple of anything."""
    result = native("solve", problems[:1], SPARSE, n_batch=37)
    solved_all(result, problems[:1])
    assert active(result)["rows_sparse"] >= len(result.rows)
