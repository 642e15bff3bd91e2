"""`lessismore check` on a real language model, SmolLM2-135M-Instruct, and Python's own documentation.

The figures are docs/fidelity.md's, within what another version of Python's documentation changes.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = os.environ.get("LESSISMORE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/lessismore/hosts"
MODEL = pathlib.Path(CACHE).expanduser() / "smollm2" / "model.gguf"
CONTEXT, STEPS, BUDGET = 2048, 512, 512


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A short check: three hosts' processes, 512 tokens."""
    if not MODEL.exists():
        pytest.fail(f"no model at {MODEL}: python3 tests/hosts/install.py smollm2", pytrace=False)
    folder = tmp_path_factory.mktemp("check")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LESSISMORE") or k == "LESSISMORE_LIBRARY"}
    environment |= {"PYTHONPATH": str(ROOT / "bindings" / "python"), "XDG_CACHE_HOME": str(folder)}
    del environment["OMP_NUM_THREADS"]
    options = ["--contexts", CONTEXT, "--budgets", BUDGET, "--steps", STEPS, "--max-kl", 0.5, "--json"]
    command = [sys.executable, "-m", "lessismore.cli", "check", MODEL, *options]
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout)


def test_what_a_budget_costs_a_real_model(found):
    """A token in a hundred looks up what its set lacks, and its loss is much of the mean; with two layers it would be most of it."""
    (of,) = found["contexts"]
    host, full, ours = of["results"]
    assert 5 < host["perplexity"] < 40
    assert full["nats"]["mean"] < 0.01 and full["nats"]["same"] > 0.92, "two ways to compute the same"
    assert abs(full["perplexity"] / host["perplexity"] - 1) < 0.02
    assert full["nats"]["mean"] < ours["nats"]["mean"] < 0.25
    assert ours["nats"]["median"] < 0.04 and ours["nats"]["median"] < ours["nats"]["mean"] < ours["nats"]["p99"] < ours["nats"]["most"]
    assert ours["nats"]["same"] > 0.82 and -0.05 < ours["perplexity"] / host["perplexity"] - 1 < 0.25


def test_it_was_sparse_by_layers_that_it_found(found):
    (of,) = found["contexts"]
    ours = of["results"][-1]
    assert ours["layers_from"] == "measured" and 1 <= len(ours["selection_layers"]) <= 5 and ours["dense_steps"] == 0
    assert 0.25 < ours["attended"] < 0.45 and 60 < of["from"] - CONTEXT < 100, "measured in 62 steps, before"


def test_facts_are_asked_for(found):
    (of,) = found["contexts"]
    host, full, ours = (r["facts"] for r in of["results"])
    assert len(host) == len(full) == len(ours) == 8
    assert sum(full) >= 2 and abs(sum(host) - sum(full)) <= 1, "a small model knows some of them"
    assert found["verdict"].startswith("With 512 expect ")
