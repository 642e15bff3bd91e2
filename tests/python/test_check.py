"""`lessismore check`: what it says a budget costs, held against a computation of its own, and what it refuses."""

import json
import math
import random

import matplotlib.image
import numpy as np
import pytest
import reasoner
import to_gguf
import torch
from test_cli import cli, one_line
from transformers import AutoModelForCausalLM, AutoTokenizer

from lessismore.cli import _loss, _needles, _verdict, check

CONTEXT, STEPS = 1024, 128


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Problems and their solutions, drawn afresh."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    problems = [reasoner.Problem(*reasoner.task.problem(random.Random(seed + i), reasoner.STEPS)) for i in range(2)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(p.prompt + p.solution for p in problems))
    return path


def run(model, text, *more, code=0, cache=None, **environment):
    out, log = cli(
        "check", model, "--text", text, "--contexts", CONTEXT, "--steps", STEPS, "--threads", 1, *more, code=code,
        **({"XDG_CACHE_HOME": str(cache)} if cache else {}), **environment,
    )  # fmt: skip
    return out, log


@pytest.fixture(scope="module")
def perplexity(text):
    """Of the tokens that a check goes on with, in transformers, float32, all at once: from a place of the text on."""
    model = AutoModelForCausalLM.from_pretrained(reasoner.FOLDER, dtype=torch.float32, attn_implementation="eager")
    tokens = AutoTokenizer.from_pretrained(reasoner.FOLDER)("<bos>" + text.read_text(), return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        said = torch.log_softmax(model(tokens[:, : CONTEXT + 512]).logits[0].double(), -1)

    def of(start, steps):
        some = torch.arange(start, start + steps)
        return math.exp(-said[some, tokens[0, some + 1]].mean())

    return of


@pytest.mark.parametrize("kind", ["gguf", "transformers"])
def test_what_it_finds(kind, text, perplexity, tmp_path):
    model = reasoner.GGUF if kind == "gguf" else reasoner.FOLDER
    if kind == "transformers":  # whose tokenizer begins no text by itself
        begun = tmp_path / "begun.txt"
        begun.write_text("<bos>" + text.read_text())
        text = begun
    out, _ = run(model, text, "--budgets", "64,128", "--out", tmp_path / "out.json", "--json", cache=tmp_path)
    found = json.loads(out)
    assert json.loads((tmp_path / "out.json").read_text()) == found
    (of,) = found["contexts"]
    rows = {r["budget"] or r["name"]: r for r in of["results"]}
    assert set(rows) == {"host", "full", 64, 128} and of["steps"] == STEPS
    want = perplexity(of["from"], STEPS)
    for name in ("host", "full"):
        assert abs(rows[name]["perplexity"] / want - 1) < 0.01, (name, rows[name]["perplexity"], want)
    assert rows["host"]["nats"]["most"] < 1e-9 and rows["host"]["nats"]["same"] == 1
    assert rows["full"]["nats"]["mean"] < 1e-3 and rows["full"]["attended"] == 1
    for budget in (64, 128):
        assert rows[budget]["layers_from"] == "measured" and rows[budget]["dense_steps"] == 0, "measured before, not while"
        assert budget / CONTEXT < rows[budget]["attended"] < 0.5
        assert rows[budget]["engaged"] and rows[budget]["ms"] > 0
    assert "no facts were hidden: the model's vocabulary cannot write them" in found["notes"]


def test_layers_that_lose_are_found_out(text, tmp_path):
    """2,6 solve no problem, 2,9 all of them (docs/auto.md): the divergence tells them apart, and so does the exit code."""
    nats = {}
    for layers, code in (("2,9", 0), ("2,6", 4)):
        out, log = run(reasoner.GGUF, text, "--budgets", 128, "--layers", layers, "--max-kl", 0.02, "--json", code=code)
        (of,) = json.loads(out)["contexts"]
        row = of["results"][-1]
        assert row["layers_from"] == "given" and row["selection_layers"] == [int(x) for x in layers.split(",")]
        assert row["nats"]["interval"][0] <= row["nats"]["mean"] <= row["nats"]["interval"][1]
        nats[layers] = row["nats"]["mean"]
        assert ("--max-kl 0.02: a budget of 128 diverges by" in log) == (code == 4)
    assert nats["2,6"] > 10 * nats["2,9"]


def test_for_people_and_as_a_picture_and_on_a_page(text, tmp_path):
    out, log = run(
        reasoner.GGUF, text, "--budgets", "128,4096", "--needles", 0, "--plot", tmp_path / "p.png", "--out", tmp_path / "c.json",
        cache=tmp_path,
    )  # fmt: skip
    head, _, *rows, blank, verdict = out.rstrip("\n").split("\n")
    assert head.split()[:3] == ["context", "attention", "perplexity"] and len(rows) == 4 and blank == ""
    assert rows[1].split()[1:3] == ["ours,", "everything"] and "100.0%" in rows[3]
    assert verdict.startswith("With 128 ") and "with 4,096 tokens these contexts are too short to leave anything out" in verdict
    assert f"{CONTEXT} tokens: going on with the text" in log
    assert matplotlib.image.imread(tmp_path / "p.png").std() > 0.05
    told, _ = cli("report", "--check", tmp_path / "c.json", "-o", tmp_path / "r.html", "--json")
    page = (tmp_path / "r.html").read_text()
    assert json.loads(told)["shown"] == ["What it costs"] and verdict.split(";")[0] in page and "128 tokens: " in page


def test_without_the_library_is_told(text):
    out, log = run(reasoner.GGUF, text, "--budgets", 128, "--json", code=3, LESSISMORE="off")
    assert json.loads(out)["engaged"] is False and "switched off by LESSISMORE" in one_line(log)


def gguf(path, monkeypatch, change):
    """The reasoner with other metadata."""
    fields = to_gguf.metadata
    with monkeypatch.context() as m:
        m.setattr(to_gguf, "metadata", lambda config: change(fields(config)))
        path.write_bytes(to_gguf.convert())
    return path


def test_wrong_models_are_one_line(text, tmp_path, monkeypatch):
    mute = gguf(tmp_path / "mute.gguf", monkeypatch, lambda fields: [
        to_gguf.field("tokenizer.ggml.model", to_gguf.STRING, "no_vocab"), *(f for f in fields if b"tokenizer" not in f),
    ])  # fmt: skip
    assert one_line(run(mute, text, code=1)[1]) == f"lessismore: {mute} has no tokenizer"
    encoder = gguf(tmp_path / "encoder.gguf", monkeypatch, lambda fields: [
        *(f.replace(b"qwen3", b"bert\0") for f in fields if b"qwen3" not in f),
        to_gguf.field("general.architecture", to_gguf.STRING, "bert"),
        to_gguf.field("bert.attention.causal", to_gguf.BOOL, False),
        *(to_gguf.field(f"bert.{name}", to_gguf.U32, n) for name, n in (
            ("context_length", 512), ("embedding_length", 64), ("block_count", 4), ("feed_forward_length", 64), ("attention.head_count", 4),
        )),
        to_gguf.field("bert.attention.layer_norm_epsilon", to_gguf.FLOAT, 1e-6),
    ])  # fmt: skip
    assert "encoder.gguf is no decoder (bert)" in one_line(run(encoder, text, code=1)[1])
    assert "is no GGUF file" in one_line(run(__file__, text, code=1)[1])
    from transformers import BertConfig, BertLMHeadModel

    folder = tmp_path / "bert"
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertLMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(reasoner.FOLDER).save_pretrained(folder)
    line = f"lessismore: {folder}: BertSelfAttention, layer 0: only causal self-attention can be offloaded"
    assert run(folder, text, code=1)[1].splitlines()[-1] == line
    (tmp_path / "mute").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "mute" / name).symlink_to(reasoner.FOLDER / name)
    assert one_line(run(tmp_path / "mute", text, code=1)[1]) == f"lessismore: {tmp_path / 'mute'} has no tokenizer"


@pytest.mark.parametrize(
    "content, more, says",
    [
        (b"", [], "is empty: there is nothing to read"),
        (b" \n", [], "is empty: there is nothing to read"),
        (b";qa:7;", [], "tokens; a context of 1024 needs 1409: a longer --text, or shorter --contexts"),
        (b"\xff\xfe\x00", [], "is no text: invalid start byte at byte 0 (UTF-8 is expected)"),
        (None, [], "No such file"),
        (b";qa:7;", ["--needles", "99"], "--needles 99: at most 26 are possible"),
    ],
)
def test_wrong_texts_are_one_line(content, more, says, tmp_path):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    assert says in one_line(run(reasoner.GGUF, path, *more, code=1)[1])


def test_a_missing_host_is_one_line(text, tmp_path):
    (tmp_path / "llama_cpp.py").write_text("raise ModuleNotFoundError(\"No module named 'llama_cpp'\", name='llama_cpp')\n")
    from test_examples import ROOT

    _, log = run(reasoner.GGUF, text, code=1, PYTHONPATH=f"{tmp_path}:{ROOT / 'bindings' / 'python'}")
    assert one_line(log) == "lessismore: llama-cpp-python is needed for this: pip install llama-cpp-python"


# ---- numbers ----


def test_divergence_against_its_definition():
    rng = np.random.default_rng()
    a, b = rng.standard_normal((2, 5, 300)) * 4
    a[:, 7] = b[:, 7] = -np.inf
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    some = p > 0
    want = np.where(some, p * np.log(np.where(some, p, 1) / np.where(some, q, 1)), 0).sum(-1)
    reference, said = _loss.Reference(a.astype(np.float32)), _loss.Said(b.astype(np.float32))
    np.testing.assert_allclose(reference.nats(said), want, rtol=1e-4)
    following = rng.integers(0, 7, 5)
    np.testing.assert_allclose(said.surprise(following), -np.log(q[range(5), following]), rtol=1e-5)
    assert (reference.nats(_loss.Said(a.astype(np.float32))) < 1e-12).all()


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng()
    held = 0
    for _ in range(300):
        of = rng.standard_normal(1024).cumsum()
        of = of - np.concatenate([np.zeros(16), of[:-16]])  # neighbours are alike
        low, high = _loss.interval(of, lambda x: x)
        held += low <= 0 <= high
    assert 0.80 < held / 300 < 0.995, held


class Letters:
    """A tokenizer: one token for each letter."""

    def encode(self, text, begin=True):
        return [ord(x) for x in text]

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def test_facts_lie_where_they_should():
    letters = Letters()
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    text = letters.encode("".join(chance.choice("abcdefg \n") for _ in range(9000)))
    needles = _needles.draw(letters, 8, seed)
    tokens, used = _needles.weave(letters, text, needles, 6000)
    assert len(tokens) == 6000 and used == 6000 - sum(len(n.fact) for n in needles)
    whole, places = letters.decode(tokens), []
    for needle in needles:
        fact = letters.decode(needle.fact)
        assert whole.count(fact) == 1 and letters.decode(needle.question + needle.answer) + "." == fact.rstrip("\n")
        assert letters.decode(needle.answer).strip().isdigit()
        places.append(whole.index(fact) / 6000)
        assert whole[whole.index(fact) - 1] == "\n", "it stands behind a line"
    assert np.allclose(places, [(i + 0.5) / 8 for i in range(8)], atol=0.03)
    rest = tokens
    for needle in needles:
        at = letters.decode(rest).index(letters.decode(needle.fact))
        rest = rest[:at] + rest[at + len(needle.fact) :]
    assert rest == text[:used], "nothing else of the text has changed"
    with pytest.raises(ValueError, match="8 needles do not fit a context of 400 tokens"):
        _needles.weave(letters, text, needles, 400)


def result(name, budget, mean, known, attended=0.3, engaged=True):
    nats = {"mean": mean, "interval": [mean, mean], "median": mean, "p99": mean, "most": mean, "same": 0.9}
    return {
        "name": name, "budget": budget, "perplexity": 12.0, "nats": nats, "ms": 1.0,
        "facts": [i < known for i in range(8)],
        "faster": 1.0, "attended": attended, "engaged": engaged, "why": None if engaged else "it is off",
    }  # fmt: skip


def verdict(*contexts):
    head = [result("host", None, 0.0, 8, 1.0), result("full", None, 0.005, 8, 1.0)]
    return _verdict.sentence({"contexts": [{"context": 1000 * (i + 1), "results": head + list(of)} for i, of in enumerate(contexts)]})


def test_verdicts():
    fine, lost, blind = result("budget", 512, 0.009, 8), result("budget", 512, 0.02, 8), result("budget", 512, 0.001, 7)
    assert verdict([fine], [fine]) == "With 512 tokens nothing measurable is lost up to 2,000."
    assert verdict([fine], [lost]).startswith(
        "With 512 tokens nothing measurable is lost up to 1,000; with 512 beyond that expect 0.020 nats a token at 2,000 (noise 0.005)"
    )
    assert verdict([blind]).startswith("With 512 expect 0.001 nats") and "7 of 8 facts (the host: 8)" in verdict([blind])
    both = [result("budget", 256, 0.004, 8), fine]
    assert verdict(both) == "With 256 and 512 tokens nothing measurable is lost up to 1,000."
    assert "too short" in verdict([result("budget", 4096, 0.005, 8, 1.0)])
    assert verdict([result("budget", 512, 0.0, 8, None, False)]) == "The library took no part: it is off."


def test_contexts_where_none_are_named():
    assert check._contexts(8192, 512) == [4096, 7168]
    assert check._contexts(131072, 512) == [4096, 16384]
    assert check._contexts(2048, 512) == [1024]
    with pytest.raises(ValueError, match="trained for 512 tokens"):
        check._contexts(512, 512)
