"""`lessismore compare` on a model and a text: what it counts and says, against computations of its own, and what it refuses."""

import json
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import FOLDER, ROOT, compare

from lessismore.compare import calibration, measure, methods, text
from lessismore.compare.methods import Rows

CONTEXT, K, STEPS = 960, 128, 64
METHODS = "full stock lim-auto lim-2 lim tidal quest quest-spread delta kascade twilight seer window oracle".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The reasoner as a model alone, and its problems as a text, drawn afresh."""
    from lessismore.compare import table

    folder = tmp_path_factory.mktemp("model")
    for path in FOLDER.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, folder)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    task = table._imported(FOLDER / "task.py")
    problem = task.problem(random.Random(seed), task.steps_for(2048))
    (folder / "text.txt").write_text("<bos>" + "".join(problem))
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("compare") / "out.json"


def settings(model):
    options = ["--contexts", CONTEXT, "--budgets", K, "--steps", STEPS, "--layers", "2,9", "--threads", 1, "--needles", 0]
    return [model, "--text", model / "text.txt", *options]


@pytest.fixture(scope="module")
def report(model, out):
    picture = out.with_name("picture.png")
    found = json.loads(compare(*settings(model), "--methods", ",".join(METHODS), "--out", out, "--plot", picture, "--json")[0])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    return found


@pytest.fixture(scope="module")
def results(report):
    return {(r["method"], r.get("equal")): r for r in report["contexts"][0]["results"]}


def test_every_row_is_there(report, results):
    tokens, as_many = {m for m, equal in results if equal == "tokens"}, {m for m, equal in results if equal == "bytes"}
    assert tokens == set(METHODS) - {"full", "stock"} and as_many == tokens - {"lim-auto"}
    assert report["kind"] == "text" and CONTEXT + 48 < report["contexts"][0]["from"] <= CONTEXT + 256


def test_full_attention_is_the_host_s(report, results):
    """Perplexity in transformers, all at once; and the divergence of one from the other."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    of, full, stock = report["contexts"][0], results["full", None], results["stock", None]
    folder = pathlib.Path(report["made"]["command"].split()[2])
    tokens = AutoTokenizer.from_pretrained(folder)((folder / "text.txt").read_text(), return_tensors="pt")["input_ids"]
    start = of["from"]
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens[:, : start + STEPS]).logits[0]
    said = torch.log_softmax(logits.double(), -1)[start:]
    want = math.exp(-said[torch.arange(STEPS), tokens[0, start + 1 : start + STEPS + 1]].mean())
    assert full["perplexity"] == pytest.approx(want, rel=1e-3) == stock["perplexity"]
    assert 0 <= stock["nats"]["mean"] < 1e-4 and stock["nats"]["same"] == 1


def test_bytes(report, results):
    """By the account in docs/comparison.md, where it follows from numbers alone."""
    n = np.arange(STEPS) + report["contexts"][0]["from"] + 1
    for key, dense in (("lim-auto", (0, 1)), ("lim-2", (0, 1)), ("lim", (0, 1)), ("window", ())):
        for equal in ("tokens", "bytes"):
            r = results.get((key, equal))
            if r is None or r["read"] is None:
                continue
            full = len({*dense, *r["layers"]})
            want = (full * n + (12 - full) * np.minimum(n, r["size"])).sum() / (12 * n.sum())
            assert r["read"] == pytest.approx(want, rel=1e-6), key
    quest = results["quest", "tokens"]
    least = (2 * n + 10 * (K - 16 + n * 2 / 16 / 2)).sum() / (12 * n.sum())
    assert least < quest["read"] < 1 and quest["attended"] < quest["read"]
    twilight = results["twilight", "tokens"]
    assert twilight["read"] > twilight["attended"] + 10 / 12 * (1 / 4 + 2 / 64) / 2 * 0.99
    assert K / 3 < twilight["tokens"] < 3 * K, "found on other tokens"


def test_equal_bytes(results):
    target = results["lim-auto", "tokens"]["read"]
    for (key, equal), r in results.items():
        if equal == "bytes" and r["read"] is not None:
            assert r["read"] == pytest.approx(target, rel=0.12), key  # found on other tokens, in whole pages and blocks
    assert results["window", "bytes"]["size"] > K > results["tidal", "bytes"]["size"]


def test_order(results):
    """What this model is known for: one of its layers looks up what no other one's tokens are."""
    assert results["lim-auto", "tokens"]["layers"] == [2, 9] == results["tidal", "tokens"]["layers"]
    assert results["lim-auto", "tokens"]["nats"] == results["lim", "tokens"]["nats"]
    ours = results["lim-auto", "tokens"]["nats"]["mean"]
    for worse in ("tidal", "window", "kascade", "delta"):
        assert results[worse, "bytes"]["read"] is None or results[worse, "bytes"]["nats"]["mean"] > ours, worse
    assert results["oracle", "tokens"]["nats"]["mean"] < 0.05
    for r in results.values():
        if r.get("nats"):
            nats = r["nats"]
            assert len(nats["steps"]) == STEPS and np.mean(nats["steps"]) == pytest.approx(nats["mean"], abs=1e-6)
            assert nats["interval"][0] <= nats["mean"] <= nats["interval"][1]


def test_what_is_there_is_kept(model, report, out):
    table, log = compare(*settings(model), "--methods", "full,window", "--out", out)
    assert "reading them" not in log and json.loads(out.read_text())["contexts"] == report["contexts"]
    rows = [line for line in table.splitlines() if "window" in line]
    assert len(rows) == 2 and all(f"{CONTEXT}" in row for row in rows)
    log = compare(*settings(model)[:-1], 3, "--methods", "full", "--out", out, code=1)[1]
    assert "has another needles" in log
    log = compare(FOLDER, "--methods", "full", "--problems", 1, "--out", out, code=1)[1]
    assert "is no result of" in log or "has another" in log
    log = subprocess.run(
        [sys.executable, "-m", "lessismore.cli", "report", "--compare", str(out)], env={**os.environ, "PYTHONPATH": str(ROOT / "bindings/python")},
        capture_output=True, text=True,
    ).stderr  # fmt: skip
    assert "--plot" in log and len(log.strip().splitlines()) == 1


# ---- parts ----


def test_solve():
    asked = []

    def of(x):
        asked.append(x)
        return x**2

    assert measure.solve(of, 400.0, 1, 1000) == 20 and len(asked) <= 18
    assert measure.solve(lambda p: 1 / (1.0001 - p), 50.0, 0.05, 0.9999) == pytest.approx(0.9801, abs=1e-3)
    assert measure.solve(lambda x: 100.0 + x, 50.0, 1, 1000) is None
    assert measure.solve(float, 5000.0, 1, 1000) == 1000
    assert abs(measure.solve(lambda x: x // 16 * 16.0, 500.0, 16, 1000) - 500) <= 28, "in steps"


def test_ahead(rng):
    base, other = {"nats": {"steps": rng.random(96).tolist()}}, {"nats": {"steps": rng.random(96).tolist()}}
    found = text.ahead(other, base)
    assert found["mean"] == pytest.approx(np.mean(other["nats"]["steps"]) - np.mean(base["nats"]["steps"]))
    assert found["interval"][0] <= found["mean"] <= found["interval"][1]
    assert text.ahead(base, base) == {"mean": 0, "interval": [0, 0]}


def test_where_delta_chooses(rng):
    assert calibration.spread(np.array([0, 9, 1, 8, 7, 6, 5, 0.1, 4, 9, 9, 9]), 3) == [2, 6], "no room for a third one"
    assert calibration.spread(np.array([0, 9, 1, 8, 7, 6, 0, 0.1, 0, 3, 5, 4, 9, 9, 9]), 3) == [2, 6, 10]
    query = rng.standard_normal((3, 2, 2, 9, 8)).astype(np.float32)
    key = rng.standard_normal((3, 2, 40, 8)).astype(np.float32)
    shift, want, maps = calibration.Shift(3), np.zeros(3), []
    for layer in range(3):
        shift.seen(Rows(layer, query[layer], key[layer], 31), None)
        maps.append({})
        for i in range(9):
            if (31 + i) % 4 == 0:
                heads = []
                for g, h in np.ndindex(2, 2):
                    x = query[layer, g, h, i].astype(float) @ key[layer, g, : 32 + i].T / math.sqrt(8)
                    heads.append(np.exp(x) / np.exp(x).sum())
                maps[-1][i] = np.mean(heads, 0)
    for layer in (1, 2):
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in ((maps[layer][i], maps[layer - 1][i]) for i in maps[layer])]
        want[layer] = np.mean([1 - c for c in cosines])
    np.testing.assert_allclose(shift.mean(), want, atol=1e-5)


def test_share_that_tokens_hold(rng):
    """p, such that so many tokens are attended to on average."""
    query = 3 * rng.standard_normal((2, 2, 40, 8)).astype(np.float32)
    key = rng.standard_normal((2, 240, 8)).astype(np.float32)
    shares = calibration.Shares()
    for layer in (0, 1, 2):
        shares.seen(Rows(layer, query, key, 200), None)
    for tokens in (20, 60, 120):
        p = shares.p(tokens)
        mask = methods.fewest(methods.softmax(Rows(2, query, key, 200).logits[:, :, ::4]), p)
        assert mask.sum(-1).mean() == pytest.approx(tokens, rel=0.05)


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["--methods", "full,best"], "best is none of full, "),
        (["--budgets", "500"], "--budgets 500: the library finds its layers in contexts of 1000"),
        (["--contexts", "1900"], "tokens; a context of 1900 needs"),
        (["--layers", "9,2"], "--layers 9,2: ascending, of 0 to 11"),
        (["--needles", "99"], "--needles 99: at most"),
        (["--text", "/no/such/text"], "/no/such/text"),
    ],
)
def test_errors_are_one_line(model, arguments, error):
    lines = compare(*settings(model), *arguments, code=1)[1].strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lessismore: ") and error in lines[0]
