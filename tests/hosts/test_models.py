"""Other architectures and shapes, with random weights: the library's dense path must
give what the host's own attention gives, and the sparse path must run."""

import dataclasses
import random

import hostlib
import numpy as np
import pytest
from checks import active
from make_model import PRESETS, make

# Name of a shape, its layers that can take part, and selection layers counted among
# these. With sliding windows only every second layer (gemma3: sixth) attends fully.
SHAPES = {"odd": (5, "1,3"), "wide": (4, "1"), "gemma2": (3, "1"), "gemma3": (2, "0"), "gpt-oss": (3, "1"), "bloom": (4, "1")}
PROMPT, TOKENS = 300, 420


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return lambda name, **change: str(make(folder / f"{name}.gguf", dataclasses.replace(PRESETS[name], **change)))


def forced(library, model, output, settings, **job):
    rng = random.Random(3)
    tokens = [rng.randrange(3, 300) for _ in range(TOKENS)]
    result = hostlib.run(
        "llama-cpp-python",
        library=library,
        settings=settings,
        scenario="forced",
        model=model,
        tokens=tokens,
        prompt=PROMPT,
        output=str(output),
        **job,
    )
    return np.load(output), result


def close(a, b, least=0.95):
    agree = float((a.argmax(1) == b.argmax(1)).mean())
    error = float(np.median(np.abs(a - b)) / a.std())
    assert agree >= least and error < 0.02, f"best token agrees in {agree:.3f} of steps, median error {error:.4f}"


def settings(name, budget):
    return {"LESSISMORE_BUDGET": budget, "LESSISMORE_LAYERS": SHAPES[name][1]}


def all_rows(result, kind):
    """All rows taken, but for one that a model with two kinds of layer is learnt from."""
    total = active(result)
    assert total["rows"] == total[kind]
    assert len(result.rows) - 1 <= total["rows"] <= len(result.rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kv", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", SHAPES)
def test_dense_path_agrees_with_host(name, kv, threads, library, models, tmp_path):
    if kv == "q8_0" and PRESETS[name].head_dim % 32:
        kv = "f16"  # the host has no such cache
    model, job = models(name), {"kv": kv, "threads": threads}
    ours, result = forced(library, model, tmp_path / "ours.npy", settings(name, 1 << 20), **job)
    host, _ = forced(None, model, tmp_path / "host.npy", {}, **job)
    close(host, ours, 0.95 if kv == "f16" else 0.9)  # with the others the host rounds its queries too
    all_rows(result, "rows_full")
    # Layers with a sliding window are left to the host.
    assert result.contexts()[0]["layers_offloaded"] == list(range(SHAPES[name][0]))


@pytest.mark.parametrize("name", SHAPES)
def test_sparse_path_runs(name, library, models, tmp_path):
    ours, result = forced(library, models(name), tmp_path / "ours.npy", settings(name, 64))
    assert np.isfinite(ours).all()
    all_rows(result, "rows_sparse")
