"""What finds, keeps and watches selection layers, from Python: settings, profiles, ablations, calibration."""

import itertools
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import reasoner
import torch
from reasoner import BUDGET, LAYERS
from test_cli import cli, one_line
from test_examples import environment
from transformers import AutoModelForCausalLM

import lessismore
import lessismore.transformers
from lessismore.cli import _text, calibrate


@pytest.fixture(scope="module")
def problems():
    return reasoner.problems(3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lessismore" / "profiles"


@pytest.mark.parametrize("settings, says", [
    ({"selections": -1}, "selections -1 is not in 0 .. 64"),
    ({"quality": -1}, "quality -1 is not in 0 .. 10"),
    ({"quality": 0.1, "layers": [2]}, "quality 0.1 chooses the selection layers, but layers names [2]"),
    ({"quality": 0.1, "interval": 2}, "quality 0.1 with interval 2"),
    ({"guard": -1}, "guard -1 is not in"),
    ({"interval": 65}, "interval 65 is not in 1 .. 64"),
    ({"trace": 1 << 20}, "trace 1048576 is not in"),
    ({"model": ""}, 'model = ""'),
    ({"profile": "x" * 5000}, "profile is longer than 4000 bytes"),
    ({"profile": "a\0b"}, "profile = 'a\\x00b' has a zero byte"),
    ({"profile_dir": "/x"}, 'profile_dir = "/x", but model = NULL'),
])  # fmt: skip
def test_wrong_values(settings, says):
    with pytest.raises(lessismore.ArgumentError) as e:
        lessismore.Engine(12, **settings)
    assert says in str(e.value)


@pytest.mark.parametrize("settings", [{"guard": "16"}, {"interval": 1.5}, {"profile": 3}, {"model": object()}])
def test_wrong_types(settings):
    with pytest.raises(TypeError, match=next(iter(settings))):
        lessismore.Engine(12, **settings)


def test_settings_arrive():
    with lessismore.Engine(12, selections=3, guard=0, interval=4, trace=7, model="m") as engine:
        config = engine.report()["config"]
    assert config | {"selections": 3, "guard": 0, "interval": 4, "trace": 7} == config


def test_a_target_is_refused_without_a_profile_that_holds_it(tmp_path):
    """What a choice loses cannot be seen where no logits are: it is never made without the target."""
    for more in ({}, {"model": "m", "profile_dir": tmp_path}, {"profile": tmp_path / "p.json"}):
        with lessismore.Engine(12, quality=0.01, **more) as engine:
            with pytest.raises(lessismore.ArgumentError, match=r"quality 0\.01 needs a profile that was measured in nats"):
                engine.decoder()
    kept = {"measure": "", "target": 0.01, "candidates": []}
    for layers, trials, nats in (([2], 70, 0.5), ([2, 9], 70, 0.002), ([2, 6, 9], 70, 0.0001)):
        kept["candidates"].append(
            {"budget": 64, "layers": layers, "trials": trials, "nats": trials * nats, "squares": 1.01 * trials * nats**2}
        )
    zeros = [[0.0] * j for j in range(1, 12)]
    with lessismore.Engine(12, budget=64, model="m", profile=tmp_path / "p.json") as engine:
        about = engine.report()["config"]
    model = {"layers": 12, "first_layer": 0, "last_layer": 0, "heads": 0, "kv_heads": 0, "key_dim": 0, "value_dim": 0, "scale": 0,
             "softcap": 0, "max_bias": 0, "weights": "model m"}  # fmt: skip
    conditions = {k: about[k] for k in ("budget", "recency", "sink_tokens", "policy")} | {"selections": 6, "quality": True}
    profile = {
        "format": 1, "model": model, "settings": conditions, "choice": [2, 9], "worst_loss": 0.1, "loss": zeros, "loss_error": zeros,
        "measured": {"steps": 60, "tokens": 300, "probe_budget": 32, "reach": 2}, "tried": kept,
    }  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(profile))
    for quality, choice in ((0.01, [2, 9]), (0.001, [2, 6, 9]), (0.7, [2])):
        with (
            lessismore.Engine(12, budget=64, quality=quality, model="m", profile=tmp_path / "p.json") as engine,
            engine.decoder() as decoder,
        ):
            attend_once(decoder, 12)
            assert engine.report()["contexts"][0]["selection_layers"] == choice
    with lessismore.Engine(12, budget=64, model="m", profile=tmp_path / "p.json") as engine, engine.decoder() as decoder:
        attend_once(decoder, 12)
        assert engine.report()["contexts"][0]["layers_from"] == "unmeasured", "without a target it is another profile"


def attend_once(decoder, layers):
    rng = np.random.default_rng()
    query, key, value = (rng.standard_normal(s).astype(np.float32) for s in ((4, 64), (99, 2, 64), (99, 2, 64)))
    for layer in range(layers):
        decoder.attend(layer, query, key, value)


def test_ablations():
    rng = np.random.default_rng()
    query, key, value = (rng.standard_normal(s).astype(np.float32) for s in ((4, 64), (99, 2, 64), (99, 2, 64)))

    def full(some):
        logits = np.einsum("hd,nhd->hn", query, key[some].repeat(2, 1)) / 8
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return np.einsum("hn,nhd->hd", weights / weights.sum(-1, keepdims=True), value[some].repeat(2, 1))

    with lessismore.Engine(6, budget=16, layers=[1]) as engine, engine.decoder() as decoder:
        for select, sparse in ((2, 4), (0, 5), (3, -1), (-1, -1)):
            engine.ablate(select, sparse)
            for layer in range(6):
                got = decoder.attend(layer, query, key, value)
                some = decoder.token_set() if layer == sparse or select == -1 and layer > 1 else np.arange(99)
                np.testing.assert_allclose(got, full(some), atol=1e-5)
                assert (decoder.token_set().size == 16) == (layer >= (select if select >= 0 else 1))
        for choice in ([0], [2, 4], [3], []):  # whole choices; none: what is in force
            engine.attempt(choice)
            at = choice or [1]
            for layer in range(6):
                got = decoder.attend(layer, query, key, value)
                some = decoder.token_set() if layer > at[0] and layer not in at else np.arange(99)
                np.testing.assert_allclose(got, full(some), atol=1e-5)
                assert (decoder.token_set().size == 16) == (layer >= at[0])
        assert engine.stats()["no_set_calls"] == 0
        with pytest.raises(lessismore.ArgumentError, match="sparse = 2 is not above select = 3"):
            engine.ablate(3, 2)
        with pytest.raises(lessismore.ArgumentError, match="layer 6, which is not in 0 .. 5"):
            engine.attempt([2, 6])


def load(name, dtype=torch.float32, **settings):
    lessismore.transformers.register(name, **settings)
    return AutoModelForCausalLM.from_pretrained(reasoner.FOLDER, attn_implementation=name, dtype=dtype)


def solve(model, problem, tokens=None):
    ids, mask = reasoner.batch([problem])
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=tokens or len(problem.solution), do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return reasoner.texts([problem], ids, out)[0]


def test_transformers_finds_and_keeps_its_layers(problems, cache):
    model = load("lessismore-auto", budget=BUDGET)
    for p in problems[:2]:
        assert solve(model, p) == p.solution
    stats = lessismore.transformers.stats(model)
    assert stats["selection_layers"] == LAYERS and stats["layers_from"] == "measured"
    assert stats["measured_steps"] == 120 and stats["alarms"] == 0 and stats["audits"] > 0
    assert stats["rows_sparse"] == stats["rows"] - 120
    assert [e["what"] for e in stats["events"]] == ["measured", "measured"]
    (path,) = cache.iterdir()

    again = load("lessismore-auto", budget=BUDGET)
    assert solve(again, problems[2]) == problems[2].solution
    stats = lessismore.transformers.stats(again)
    assert stats["selection_layers"] == LAYERS and stats["layers_from"] == "profile"
    assert stats["measured_steps"] == stats["dense_steps"] == stats["alarms"] == 0 and stats["rows_full"] == 0
    assert lessismore.transformers.report(again)["models"] == [json.loads(path.read_text())]


def test_transformers_profiles_are_told_apart(problems, cache, tmp_path, caplog):
    path = tmp_path / "mine.json"
    first = load("lessismore-mine", budget=BUDGET, profile=path)
    solve(first, problems[0], 70)
    assert path.exists() and not cache.exists()
    other = load("lessismore-other", budget=BUDGET, profile=path)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight *= 1.001
    caplog.set_level("INFO", "lessismore")
    before = path.read_text()
    assert solve(other, problems[1], 70)
    assert "is not used: it was made for weights" in caplog.text and path.read_text() == before
    off = load("lessismore-off", budget=BUDGET, profile="off")
    solve(off, problems[1], 70)
    assert not cache.exists()


def test_interval_does_not_outlive_a_text(problems):
    """The guard gives it up on this model; until then no set may come from the text before."""
    model = load("lessismore-interval", budget=BUDGET, layers=LAYERS, interval=2, guard=0)
    fresh = load("lessismore-interval-2", budget=BUDGET, layers=LAYERS, interval=2, guard=0)
    solve(model, problems[0], 200)
    assert lessismore.transformers.stats(model)["reused_steps"] == 99
    assert solve(model, problems[1], 200) == solve(fresh, problems[1], 200)


def test_the_engine_of_ggml_hosts():
    script = """
import ctypes, lessismore, lessismore.llama_cpp
from lessismore import _library
from lessismore.engine import HostEngine
lib = _library.library()
try:
    HostEngine()
except lessismore.UnsupportedError as e:
    print(e)
lessismore.llama_cpp.enable(budget=77, selections=3, guard=0, interval=2, trace=5, profile="off", log="off")
host = HostEngine()
print({name: host.report()["config"][name] for name in ("budget", "selections", "guard", "interval", "trace")})
assert HostEngine()._handle == host._handle
params = _library.DecoderParams(struct_size=ctypes.sizeof(_library.DecoderParams), device=-1, max_rows=1)
for call in (
    lambda: lib.lim_engine_free(host._handle),
    lambda: lib.lim_decoder_create(host._handle, params, ctypes.c_void_p()),
    lambda: lib.lim_decoder_work_size(host._handle, params, ctypes.c_uint64()),
):
    try:
        call()
    except lessismore.UnsupportedError as e:
        print(e)
host.ablate(2, 4)
host.ablate(-1, -1)
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    none, config, *refused = done.stdout.splitlines()
    assert "no ggml host has loaded the library" in none
    assert config == "{'budget': 77, 'selections': 3, 'guard': 0, 'interval': 2, 'trace': 5}"
    assert [line.partition(": engine = 0x")[0] for line in refused] == ["lim_engine_free", "lim_decoder_create", "lim_decoder_work_size"]
    assert all("ggml hosts" in line for line in refused)


# ---- calibration ----


@pytest.mark.parametrize("kind", ["gguf", "transformers"])
def test_calibrate(kind, problems, cache, tmp_path):
    model = reasoner.GGUF if kind == "gguf" else reasoner.FOLDER
    prompt = problems[0].prompt if kind == "gguf" else "<bos>" + problems[0].prompt
    path = tmp_path / "calibrated.json"
    more = ["--budget", BUDGET, "--threads", 1, "-n", 700, "--positions", 16]
    out, _ = cli("calibrate", model, "-p", prompt, *more, "-o", path, "--json", XDG_CACHE_HOME=str(tmp_path / "cache"))
    found = json.loads(out)
    assert found["choice"] == found["measured_choice"] == LAYERS and found["agree"]
    assert found["nats"] < 0.01 and len(found["positions"]) == 16
    nats = calibrate.triangle(found["calibrated"]["nats"])
    assert nats[9, 2] > 0.2, "layer 9 looks up what the set of layer 2 lacks"
    others = [nats[j, i] for j in range(3, 12) for i in range(2, j) if j != 9]
    assert max(others) < 0.01 < min(nats[9, i] for i in range(2, 9))
    assert found["tokens_changed"] == dict.fromkeys(map(str, (3, 4, 5, 6, 7, 8, 10, 11)), 0)
    assert not cache.exists(), "the profile is where it was asked for"
    kept = json.loads(path.read_text())
    assert kept["calibrated"] == found["calibrated"] and kept["choice"] == LAYERS

    if kind == "gguf":  # and hosts take it
        out, _ = cli("run", model, "-p", problems[1].prompt, "-n", 300, "--threads", 1, "--budget", BUDGET, "--profile", path, "--json")
        run = json.loads(out)
        total = run["stats"]["total"]
        assert run["text"] == problems[1].solution[:300]
        assert total["layers_from"] == "profile" and total["measured_steps"] == total["alarms"] == 0
    else:
        ours = load("lessismore-calibrated", budget=BUDGET, profile=path)
        assert solve(ours, problems[1]) == problems[1].solution
        stats = lessismore.transformers.stats(ours)
        assert stats["layers_from"] == "profile" and stats["measured_steps"] == stats["alarms"] == 0


@pytest.mark.parametrize("kind", ["gguf", "transformers"])
def test_calibrate_for_a_target(kind, problems, cache, tmp_path):
    """Under the library's own name, so that hosts find it: two layers suffice, and a host that sees no logits takes them."""
    model = reasoner.GGUF if kind == "gguf" else reasoner.FOLDER
    prompt = problems[0].prompt if kind == "gguf" else "<bos>" + problems[0].prompt
    more = ["--budget", BUDGET, "--threads", 1, "-n", 700, "--positions", 64, "--quality", 0.005]
    out, _ = cli("calibrate", model, "-p", prompt, *more, "--json", XDG_CACHE_HOME=str(tmp_path / "cache"))
    found = json.loads(out)
    assert found["choice"] == LAYERS and found["target"] == 0.005
    tried = {len(c["layers"]): c["nats"] / c["trials"] for c in found["tried"]["candidates"]}
    assert sorted(tried) == [1, 2, 3, 4, 5, 6] and tried[1] > 0.2 and max(tried[k] for k in range(2, 7)) < 1e-3
    (path,) = cache.iterdir()
    assert found["profile"] == str(path) and path.name == json.loads(path.read_text())["fingerprint"] + ".json"

    if kind == "gguf":
        out, _ = cli("run", model, "-p", problems[1].prompt, "-n", 300, "--threads", 1, "--budget", BUDGET, "--quality", 0.005, "--json")
        run = json.loads(out)
        total = run["stats"]["total"]
        assert run["text"] == problems[1].solution[:300]
        assert total["layers_from"] == "profile" and total["selection_layers"] == LAYERS and total["measured_steps"] == total["alarms"] == 0
    else:
        ours = load("lessismore-targeted", budget=BUDGET, quality=0.005)
        assert solve(ours, problems[1], 100) == problems[1].solution[:100]
        stats = lessismore.transformers.stats(ours)
        assert stats["layers_from"] == "profile" and stats["measured_steps"] == stats["alarms"] == 0
        with pytest.raises(lessismore.ArgumentError, match="quality 0.005 needs a profile"):
            solve(load("lessismore-untargeted", budget=64, quality=0.005), problems[1], 4)


def test_calibrate_for_people_and_in_the_cache(problems, tmp_path, cache):
    more = ["--budget", 64, "--threads", 1, "-n", 160, "--positions", 3]
    prompt = reasoner.problems(1, steps=12)[0].prompt
    out, _ = cli("calibrate", reasoner.GGUF, "-p", prompt, *more, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "by ablation: layers [" in out and "by measuring:" in out
    (path,) = cache.iterdir()
    assert f"profile: {path}" in out and path.name == json.loads(path.read_text())["fingerprint"] + ".json"


def test_calibrate_refuses(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    _, log = cli("calibrate", reasoner.GGUF, "-p", ";qa:7;", "--budget", 128, code=1, **environment)
    assert "the text has" in one_line(log) and "386 (--tokens makes more)" in log
    for target, says in ((0, "--quality 0 is not above 0"), (11, "--quality 11 is not above 0"), (0.1, "need 482 (--tokens makes more)")):
        _, log = cli("calibrate", reasoner.GGUF, "-p", ";qa:7;", "--budget", 128, "--quality", target, code=1, **environment)
        assert says in one_line(log)
    _, log = cli("calibrate", reasoner.GGUF, "-p", "x", "--budget", 128, "--quality", 0.1, "--positions", 8, code=1, **environment)
    assert "8 positions need 394 " in one_line(log)
    few = ["-n", 180, "--budget", 16, "--quality", 0.1, "--positions", 8, "--threads", 1]
    _, log = cli("calibrate", reasoner.GGUF, "-p", ";qa:7;", *few, code=1, **environment)
    assert "--positions 8: with --quality at least 64 are needed" in one_line(log)
    with pytest.raises(ValueError, match="the text has no tokens"):  # of a tokenizer that begins with none
        _text.greedy(types.SimpleNamespace(tokens=[]), 5)
    assert "-1 is not 0 or more" in cli("calibrate", reasoner.GGUF, "-p", "x", "-n", -1, code=2, **environment)[1]
    _, log = cli("calibrate", tmp_path / "none.gguf", "-p", "x", code=1, **environment)
    assert "none.gguf" in one_line(log)
    assert not os.listdir(tmp_path)


def test_choice_is_the_best():
    """Every choice is tried: none diverges less, beyond the tolerance; none as good reads less."""
    rng = np.random.default_rng()
    for _ in range(60):
        layers, selections = int(rng.integers(5, 11)), int(rng.integers(1, 4))
        nats, error = np.tril(rng.exponential(0.05, (layers, layers)), -1), np.zeros((layers, layers))
        got = calibrate.choose(nats, error, selections)
        ways = [
            list(way)
            for count in range(1, selections + 1)
            for way in itertools.combinations(range(2, layers - 1), count)
            if way[0] + count <= max(layers // 3, 2 + selections) and (selections <= 2 or way[0] <= calibrate.choose(nats, error, 2)[0])
        ]
        best = min(calibrate.total(way, nats) for way in ways)
        assert got in ways and calibrate.total(got, nats) <= best + calibrate.TOLERANCE + 1e-12
        for way in ways:
            if way[0] + len(way) < got[0] + len(got):
                assert calibrate.total(way, nats) > best + calibrate.TOLERANCE


def test_divergence():
    rng = np.random.default_rng()
    a, b = rng.standard_normal((2, 50))
    p, q = (np.exp(x) / np.exp(x).sum() for x in (a, b))
    assert np.isclose(calibrate.divergence(a, b), (p * np.log(p / q)).sum())
    assert calibrate.divergence(a, a + 3) < 1e-12
    a[:10] = -np.inf
    assert np.isfinite(calibrate.divergence(a, b))
