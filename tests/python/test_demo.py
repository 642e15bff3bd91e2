"""The demo's judgement: a wrong answer and a library that takes no part are told. The demo itself runs in test_wheel.py."""

import contextlib
import io

import pytest
from rich.console import Console
from test_examples import ROOT

ACTIVE = {
    "state": "active",
    "total": {
        "rows_sparse": 5,
        "tokens_attended": 30,
        "tokens_visible": 100,
        "sparse_layer_tokens_attended": 1,
        "sparse_layer_tokens_visible": 10,
    },
}


class Fake:
    """A host that gives what it is told to."""

    name = "fake 1.0"

    def __init__(self, root, alone=(7, 8), ours=(7, 8), report=ACTIVE):
        self.answers, self.report, self.root, self.killed = {False: list(alone), True: list(ours)}, report, root, []

    def problem(self, seed):
        return [1, seed], [7, 8]

    def text(self, tokens):
        return "".join(map(chr, tokens))

    def solve(self, prompts, lengths, settings, token):
        assert lengths == [2] * len(prompts)
        for i in range(len(prompts)):
            for one in self.answers[settings is not None]:
                token(i, one)
        return [self.answers[settings is not None]] * len(prompts), self.report if settings else {}

    @contextlib.contextmanager
    def shape(self):
        yield self.root / "go.mod"  # only its size is asked for

    def worker(self, setting, model, context, threads, settings, filled):
        filled(context)
        return Held(self, setting, settings)


class Held:
    def __init__(self, host, setting, settings):
        self.host, self.setting, self.settings = host, setting, settings

    def decode(self, steps):
        return [{"on": 8.0, "off": 6.0, "library": 2.0}[self.setting]] * steps

    def end(self):
        assert self.setting == "library" and self.settings["budget"] == 250
        return self.host.report

    def kill(self):
        self.host.killed.append(self.setting)


@pytest.fixture
def show(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    from lessismore_demo import show as module

    return module


def run(show, host):
    said = io.StringIO()
    return show.show(Console(file=said, width=200), host, 2, 1000, 3), said.getvalue()


def test_what_it_finds(show, root):
    host = Fake(root)
    found, said = run(show, host)
    assert found["ms"] == {"on": 8.0, "off": 6.0, "library": 2.0} and found["ratio"] == 3 and found["exact"] == found["problems"] == 2
    assert sorted(host.killed) == ["library", "off", "on"]
    assert "2. Decoding behind 1000 tokens, budget 250" in said and "5 tokens decoded sparsely; attended 30%" in said
    assert show.line(found) == (
        "demo: exact 2/2, attended 30% of tokens, decode at 1000: 6.0 ms -> 2.0 ms, 3.0 x faster than the better stock setting"
    )


@pytest.mark.parametrize("side", ["alone", "ours"])
def test_a_wrong_answer_is_told(show, root, side):
    found, said = run(show, Fake(root, **{side: (7, 9)}))
    assert found["exact"] == 0
    assert f"host {'WRONG' if side == 'alone' else 'right'}, library {'WRONG' if side == 'ours' else 'right'}" in said


@pytest.mark.parametrize("report, why", [
    ({}, "it left no statistics"),
    ({"state": "inert", "reason": "because", "total": {}}, "because"),
    ({"state": "active", "total": {**ACTIVE["total"], "rows_sparse": 0}}, "no layer was sparse"),
])  # fmt: skip
def test_a_library_that_takes_no_part_is_told(show, root, report, why):
    with pytest.raises(RuntimeError, match=f"the library took no part: {why}"):
        run(show, Fake(root, report=report))


def test_a_host_that_fails_is_told(show, root):
    host = Fake(root)
    host.solve = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(show, host)
