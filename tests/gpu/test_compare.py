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


if __name__ == "__main__":
    main(dict(globals()))
