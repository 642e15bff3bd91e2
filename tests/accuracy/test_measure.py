"""The model in NumPy against transformers, the counting, and whether one pass decides what free running writes."""

import numpy as np
import pytest
from conftest import FOLDER

from lessismore.compare import measure, methods, table
from lessismore.compare.measure import Counts, Prepared
from lessismore.compare.methods import Full
from lessismore.compare.sets import Library


def test_model_against_transformers(task):
    import torch
    from transformers import AutoModelForCausalLM

    problem = task.problem(17)  # all positions that the model has
    tokens = [*problem.prompt, *problem.solution]
    cache, logits = task.model.cache(), []
    for start, end in ((0, 700), (700, 701), (701, len(tokens))):
        logits.append(task.model.run(tokens[start:end], cache, Full(0)))
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with torch.inference_mode():
        want = model(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(np.concatenate(logits), want, rtol=2e-3, atol=2e-3)


def test_the_library_s_sets_alone(task, rng):
    """On a GPU the rules attend to what the library chose: the same as the library does."""
    tokens, found = rng.integers(3, 60, 340).tolist(), []
    for alone in (False, True):
        method = Library(64, [2, 9], "union", task.model.layers, alone)
        counts, cache = Counts(task.model, method), task.model.cache(340)
        task.model.run(tokens[:300], cache, Full(0), 0)
        found.append((task.model.run(tokens[300:], cache, method), counts.result()))
        method.close()
    (theirs, counted), (ours, again) = found
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(again.pop("loss"), counted.pop("loss"), atol=1e-4)
    assert again == counted and counted["tokens"] == 64


@pytest.fixture(scope="module")
def short():
    """Problems that free running is quick on."""
    return table.Task(FOLDER, 10)


@pytest.mark.parametrize(
    "key", ["full", "lim", "lim-mass", "tidal", "quest", "quest-spread", "delta", "twilight", "seer", "window", "oracle"]
)
def test_one_pass_decides_free_running(short, key):
    comparison = table.Comparison(short, [2, 9], range(20, 22), range(40, 41))
    (row,) = (row for row in table.rows([2, 9]) if row.key == key)
    method = comparison.method(row, None if key == "full" else 64, lambda what: None)
    for problem in comparison.problems:
        prepared = comparison.prepared(problem)
        right = prepared.forced(method)
        solution = problem.solution[:-1]
        agreed = int(right.argmin()) if not right.all() else len(problem.solution)
        shortened, ended = prepared.free(method, agreed, 500) if agreed <= len(solution) else (solution, True)
        whole = prepared.free(method, 0, 500)
        assert whole == (shortened, ended), (key, agreed)
        assert (whole == (solution, True)) == bool(right.all())
        assert whole[0][:agreed] == solution[:agreed]
    method.close()
    comparison.close()


def test_counts_by_hand(task):
    class Two(methods.Method):
        def choose(self, rows):
            if rows.layer:
                return None
            mask = np.zeros((2, 4, rows.m, rows.n), bool)
            mask[:, :, :, 0] = True
            mask[0, 0, :, 1] = mask[0, 1, :, 2] = True
            return mask

        def scanned(self, layer):
            return 0.25

    method = Two(2)
    counts = Counts(task.model, method)
    cache = task.model.cache()
    task.model.run([1] * 100, cache, Full(0))
    task.model.run([2] * 10, cache, method)
    got = counts.result()
    visible = sum(range(101, 111))
    attended = 11 * visible + 10 * (2 + 2 + 6 * 1) / 8
    assert got["attended"] == pytest.approx(attended / (12 * visible))
    distinct = (3 + 1) / 2
    assert got["distinct"] == distinct and got["most_attended"] == 2
    assert got["read"] == pytest.approx((11 * visible + 10 * distinct + 0.25 * visible / 2) / (12 * visible))
    assert got["loss"][0] > 0 and not any(got["loss"][1:])


def test_loss_by_hand(task):
    """A head that loses what it looks at: logits 0 but for one token of 3."""
    method = methods.Window(4)
    counts = Counts(task.model, method)
    query = np.zeros((2, 4, 1, 64), np.float32)
    key = np.zeros((2, 17, 64), np.float32)
    query[1, 2, 0, 0], key[1, 9, 0] = 3.0, 8.0  # 3 at position 9, which a window of 4 first tokens has not
    for layer in (0, 1):
        counts.method.seen(rows := methods.Rows(layer, query, key, 16), method.choose(rows))
    e = np.exp(3.0)
    assert counts.result()["loss"][:3] == pytest.approx([(e - 1) / (16 + e)] * 2 + [0], rel=1e-5)


@pytest.mark.parametrize("solved, of, want", [(30, 30, (0.8865, 1)), (0, 30, (0, 0.1135)), (15, 30, (0.3315, 0.6685)), (1, 1, (0.2065, 1))])
def test_interval(solved, of, want):
    assert measure.interval(solved, of) == pytest.approx(want, abs=1e-4)


def test_answers(task):
    problems = [task.problem(seed) for seed in (1, 2)]
    right = [np.ones(len(p.solution), bool) for p in problems]
    right[1][40:60:2] = False
    got = measure.answers(problems, right, [(1182, True), (30, False)])
    assert (got["exact"], got["first_wrong"]) == (1, {"steps": [2], "tokens": [40]})
    assert got["right_problems"] == [1, 0] and got["length"] == {"of": 2, "mean": 606.0, "capped": 1}
    assert got["tokens_right"] == 1 - 10 / sum(len(p.solution) for p in problems)


def test_the_cache_of_a_problem_is_as_it_was(short):
    prepared = Prepared(short.model, short.problem(3))
    full = Full(0)
    assert prepared.forced(full).all()
    prepared.forced(methods.Window(32))
    assert prepared.forced(full).all()
