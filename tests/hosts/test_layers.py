"""Models whose layers differ: what takes part is decided by what a layer sees, not by which layers are left. And adapters,
with which a model's layers are another model's."""

import json
import random

import hostlib
import make_mixed
import numpy as np
import pytest
from checks import active, log_lines
from make_model import Shape, make
from test_models import close

HOST = "node-libs"
PROMPT, TOKENS = 400, 448


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mixed")


def forced(library, model, output, settings, **job):
    rng = random.Random(3)
    tokens = [rng.randrange(3, make_mixed.VOCAB - 10) for _ in range(TOKENS)]
    result = hostlib.run(
        HOST,
        library=library,
        settings=settings,
        scenario="forced",
        model=str(model),
        tokens=tokens,
        prompt=PROMPT,
        output=str(output),
        **job,
    )
    return np.load(output), result


def both(library, model, folder, settings, **job):
    ours, result = forced(library, model, folder / "ours.npy", settings, **job)
    host, _ = forced(None, model, folder / "host.npy", {}, **job)
    return ours, host, result


@pytest.mark.parametrize("swa_full", [False, True])
def test_full_layers_with_heads_too_large(swa_full, library, folder):
    """The layers that could be sparse are refused: those that slide stay as they are."""
    model = make_mixed.gemma4(folder / "gemma4.gguf")
    ours, host, result = both(library, model, folder, {"LESSISMORE_BUDGET": 64, "LESSISMORE_LAYERS": "1"}, swa_full=swa_full)
    assert (ours == host).all()
    (context,) = [c for c in result.stats["contexts"] if c["declined"]]
    assert context["steps"] == 0 and "head_dim 512" in context["inert"] and "sliding-window layers gain nothing" in context["inert"], (
        context
    )
    assert sum("inert in this context" in line for line in log_lines(result)) == 1


@pytest.mark.parametrize("swa_full", [False, True])
def test_sliding_layers_between_full_ones(swa_full, library, folder):
    """The same with heads that are taken: three full layers, and one that reads the K/V of another is the host's."""
    model = make_mixed.gemma4(folder / "small.gguf", full_dim=256, sliding_dim=128)
    ours, host, result = both(library, model, folder, {"LESSISMORE_BUDGET": 1 << 20, "LESSISMORE_LAYERS": "1"}, swa_full=swa_full)
    close(host, ours)
    assert result.contexts()[0]["layers_offloaded"] == [0, 1, 2]
    _, result = forced(library, model, folder / "ours.npy", {"LESSISMORE_BUDGET": 64, "LESSISMORE_LAYERS": "1"}, swa_full=swa_full)
    total = active(result)
    assert total["rows_sparse"] >= TOKENS - PROMPT - 1 and total["no_set_calls"] == 0
    assert total["sparse_calls"] == total["steps"]  # one layer of three


@pytest.mark.parametrize("kind, layers", [("lfm2", 4), ("deci", 6)])
def test_layers_without_attention_and_with_other_heads(kind, layers, library, folder):
    model = getattr(make_mixed, kind)(folder / f"{kind}.gguf")
    ours, host, result = both(library, model, folder, {"LESSISMORE_BUDGET": 1 << 20, "LESSISMORE_LAYERS": "1"})
    close(host, ours)
    assert result.contexts()[0]["layers_offloaded"] == list(range(layers))
    _, result = forced(library, model, folder / "ours.npy", {"LESSISMORE_BUDGET": 64, "LESSISMORE_LAYERS": "1"})
    total = active(result)
    assert total["rows_full"] == total["no_set_calls"] == 0
    assert total["sparse_calls"] == (layers - 2) * total["steps"]


def test_adapters_are_measured_for_themselves(library, folder, tmp_path):
    shape = Shape(layers=6, heads=4, kv_heads=2, width=128, ff=192, vocab=make_mixed.VOCAB)
    model = make(folder / "base.gguf", shape)
    paths = [str(make_mixed.adapter(folder / f"lora{seed}.gguf", shape, seed=seed)) for seed in (1, 2)]
    # Without one, with each, with more of one, and without again; each is decoded for as long as measuring takes.
    turns = [[], [[paths[0], 1.0]], [[paths[1], 1.0]], [[paths[0], 2.0]], [], [[paths[0], 1.0]]]
    settings = {"LESSISMORE_BUDGET": 32, "XDG_CACHE_HOME": str(tmp_path), "LESSISMORE_GUARD": "off"}
    result = hostlib.run(HOST, library=library, settings=settings, scenario="adapters", model=str(model), turns=turns, prompt=300, steps=90)
    profiles = [json.loads(p.read_text()) for p in (tmp_path / "lessismore" / "profiles").iterdir()]
    assert len(profiles) == len({p["model"]["weights"] for p in profiles}) == 4
    per_model = {p["measured"]["steps"] for p in profiles}.pop()
    assert active(result)["measured_steps"] == 4 * per_model, "what was measured is used again"
    # A context that begins with an adapter has the profile that an earlier one found.
    again = hostlib.run(
        HOST, library=library, settings=settings, scenario="adapters", model=str(model), turns=turns[1:2], prompt=300, steps=20
    )
    total = active(again)
    assert total["layers_from"] == "profile" and total["measured_steps"] == 0
    assert total["rows_sparse"] == total["rows"]
