"""Accuracy beside that of the host's own flash attention, on the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
from ggml_attention import Ggml
from reference import attend, logits

import lessismore


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    return Ggml()


@pytest.mark.parametrize("dim,heads,kv_heads", [(64, 8, 2), (128, 16, 8), (128, 32, 4), (256, 4, 4)])
def test_no_worse_than_the_host(ggml: Ggml, dim: int, heads: int, kv_heads: int) -> None:
    seed = np.random.SeedSequence().entropy
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    with lessismore.Engine(n_layers=1, n_threads=1) as engine, engine.decoder() as decoder:
        for _ in range(25):
            n = int(rng.integers(1, 1500))
            sharp = float(rng.choice([0.3, 1.0, 3.0]))
            query = (rng.standard_normal((heads, dim)) * sharp).astype(np.float32)
            key = rng.standard_normal((n, kv_heads, dim)).astype(np.float16)
            value = rng.standard_normal((n, kv_heads, dim)).astype(np.float16)
            mask = np.where(rng.random(n) < 0.2, -np.inf, 0).astype(np.float16)
            mask[-1] = 0
            softcap = float(rng.choice([0.0, 0.0, 30.0]))
            sinks = rng.standard_normal(heads).astype(np.float32) if rng.random() < 0.3 else None
            scale = dim**-0.5
            stored = [a.astype(np.float64) for a in (query, key, value)]
            exact = attend(logits(stored[0], stored[1], scale, softcap, mask.astype(np.float64)), stored[2], sinks)
            got = decoder.attend(0, query, key, value, mask=mask, scale=scale, softcap=softcap, sinks=sinks)
            host = ggml.attend(query, key, value, mask, scale, softcap, sinks)
            norm = np.linalg.norm(exact)
            ours.append(np.linalg.norm(got - exact) / norm)
            theirs.append(np.linalg.norm(host - exact) / norm)
    print(
        f"seed {seed}: relative error {np.max(ours):.2e} at most, {np.median(ours):.2e} median; "
        f"the host's {np.max(theirs):.2e}, {np.median(theirs):.2e}"
    )
    assert np.max(theirs) < 0.05, "the comparison itself is broken"
    assert np.max(ours) < 2e-3
    assert np.median(ours) <= np.median(theirs) and np.max(ours) <= np.max(theirs)
