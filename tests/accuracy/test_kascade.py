"""Kascade's plan: dynamic programming against every choice there is."""

import itertools

import numpy as np
import pytest

from lessismore.compare import kascade, measure


def value_of(value, anchors):
    return sum(value[max(a for a in anchors if a <= b), b] for b in range(len(value)))


@pytest.mark.parametrize("layers", [1, 2, 5, 9])
def test_anchors_against_all_choices(rng, layers):
    for _ in range(20):
        value = np.triu(rng.random((layers, layers)))
        for count in range(1, layers + 1):
            choices = [(0, *rest) for rest in itertools.combinations(range(1, layers), count - 1)]
            best = max(value_of(value, c) for c in choices)
            found = kascade.anchor_layers(value, count)
            assert len(set(found)) == count and found[0] == 0 and list(found) == sorted(found)
            assert value_of(value, found) == pytest.approx(best, rel=1e-12)


def test_heads_by_hand():
    like = np.zeros((3, 3, 2, 2))
    like[0, 0] = like[1, 1] = np.eye(2)
    like[0, 1] = [[0.1, 0.2], [0.2, 0.1]]
    like[1, 2] = [[0.1, 0.9], [0.8, 0.2]]  # [head of layer 1, head of layer 2]
    plan = kascade.plan(like, kascade.anchor_layers(kascade.matched(like), 2))
    assert plan.anchors == (0, 1)
    assert plan.heads[2] == (1, 0)


def test_likeness_of_the_model(task):
    """A layer is wholly like itself, and nobody is more so; what is not measured is nothing."""
    likeness = kascade.Likeness(128, task.model.layers, task.model.kv_heads)
    measure.Prepared(task.model, task.problem(4000)).forced(likeness)
    mean = likeness.mean()
    for layer in range(task.model.layers):
        np.testing.assert_allclose(np.diag(mean[layer, layer]), 1, rtol=1e-5)
        assert mean[layer, layer + 1 :].max(initial=0) <= 1 + 1e-5
        assert not mean[layer, :layer].any()
