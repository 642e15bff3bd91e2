"""`lessismore compare --device cuda`: what CuPy computes is what NumPy computes, for each method, within float32.

Where two tokens are all but level, a rounding decides which of them is kept, so single rows may differ. Run with pytest, or as
a script (see harness.py).
"""

import pathlib
import sys

import numpy as np
from harness import SEED, main

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "accuracy"))
from course import BEHIND, CONTEXT, course

from lessismore.compare import methods


def test_a_gpu_computes_what_a_cpu_does():
    tokens = np.random.default_rng(SEED).integers(3, 60, CONTEXT + BEHIND).tolist()
    want, found = course("cpu", tokens), course("cuda", tokens)
    for name in want:
        if len(want[name].shape) == 2 and len(want[name]) == BEHIND:  # logits behind each token
            off = np.abs(found[name] - want[name]).max(-1)
            assert np.median(off) < 2e-3 and np.mean(off < 0.1) > 0.9, (name, np.sort(off)[-8:])
        else:
            np.testing.assert_allclose(found[name], want[name], rtol=0.02, atol=0.02, err_msg=name)
    off = np.abs(found["Full"] - want["Full"]).max()
    assert off < 2e-3, off


def test_a_gpu_selects_what_a_cpu_does():
    """Its own kernel, to the bit: many rows and few, ties, numbers below 0, tokens that are not seen. Shares: within their rounding."""
    import cupy

    rng = np.random.default_rng(SEED)
    for shape, count in (((3, 3, 64, 4006), 256), ((9, 777), 1), ((40, 5000), 3000), ((3, 100, 257), 17)):
        scores = (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
        scores = np.where(rng.random(shape) < 0.1, np.round(scores), scores)
        hidden = rng.random(shape) < 0.5
        hidden[..., : shape[-1] * 3 // 4] = False
        scores[hidden] = -np.inf
        np.testing.assert_array_equal(methods.best(cupy.asarray(scores), count).get(), methods.best(scores, count))
        shares = methods.softmax(scores / 1e3 if shape[-1] == 5000 else scores.copy())
        ours, theirs = methods.fewest(cupy.asarray(shares), 0.93).get(), methods.fewest(shares, 0.93)
        assert np.abs(ours.sum(-1) - theirs.sum(-1)).max() <= 1 and np.mean((ours != theirs).any(-1)) < 0.02


if __name__ == "__main__":
    main(dict(globals()))
