"""`lessismore compare` on a few whole problems: the library in a real host, the peers by their rules."""

import json
import shutil
import sys

import pytest
from conftest import FOLDER, compare

from lessismore.compare import host

BUDGET, PROBLEMS = 128, 2
METHODS = ["full", "lim", "lim-auto", "lim-profile", "tidal", "quest", "kascade", "seer", "window", "oracle"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("compare") / "out.json"


@pytest.fixture(scope="module")
def report(out):
    settings = ["--problems", PROBLEMS, "--seed", 8000, "--budgets", BUDGET, "--methods", ",".join(METHODS)]
    return json.loads(compare(FOLDER, *settings, "--out", out, "--json")[0])


@pytest.fixture(scope="module")
def results(report):
    return {r["method"]: r for r in report["results"]}


def test_every_row_is_there(report, results):
    assert list(results) == METHODS
    assert report["format"] == 1 and report["budgets"] == [BUDGET]
    task = report["task"]
    assert (task["prompt_tokens"], task["solution_tokens"], task["layers"], task["steps"]) == (843, 1182, 12, 59)
    families = {m["key"]: m["family"] for m in report["methods"]}
    for key, r in results.items():
        assert r["budget"] == (None if families[key] == "reference" else BUDGET)
        assert r["problems"] == PROBLEMS == len(r["right_problems"]) and sum(r["right_problems"]) == r["exact"]
        assert len(r["first_wrong"]["steps"]) == len(r["first_wrong"]["tokens"]) == PROBLEMS - r["exact"]
        assert r["exact_interval"][0] <= r["exact"] / PROBLEMS <= r["exact_interval"][1]
        assert (r["tokens_right"] == 1) == (r["exact"] == PROBLEMS)
        assert r["length"]["of"] == PROBLEMS and 0 < r["length"]["mean"] <= task["length_cap"]


def test_answers(results):
    for solves in ("full", "lim", "lim-auto", "lim-profile", "oracle"):
        assert results[solves]["exact"] == PROBLEMS, solves
        assert results[solves]["length"] == {"of": PROBLEMS, "mean": 1182, "capped": 0}
    assert results["window"]["exact"] == 0
    assert results["window"]["tokens_right"] < results["quest"]["tokens_right"] < 1


def test_budgets_are_honoured(results):
    """Counted, not assumed. Full layers of each method by its own rule, the others at most K tokens a head."""
    n = range(844, 844 + 1182)
    full_layers = {"full": 12, "lim": 4, "tidal": 4, "quest": 2, "kascade": 1, "seer": 0, "window": 0, "oracle": 0}
    for key, full in full_layers.items():
        r = results[key]
        most = sum(full * v + (12 - full) * min(v, BUDGET) for v in n) / (12 * sum(n))
        assert r["attended"] <= most * (1 + 1e-9), key
        assert (r["most_attended"] or 0) <= BUDGET, key
        assert r["read"] >= r["attended"] * (1 - 1e-9), key
        if key not in ("quest", "seer"):  # their last page or block is seldom full
            assert r["attended"] == pytest.approx(most, rel=1e-9), key
    assert results["lim"]["distinct"] == results["window"]["distinct"] == BUDGET
    for key in ("tidal", "oracle", "quest"):  # heads with sets of their own
        assert results[key]["distinct"] > BUDGET, key
        assert results[key]["read"] > results[key]["attended"], key


def test_equal_bytes():
    """A method's own size is the one that reads what LessIsMore does."""
    settings = ["--problems", 1, "--seed", 8000, "--steps", 8, "--budgets", 64, "--forced", "--equal", "both", "--layers", "2,9"]
    said, _ = compare(FOLDER, *settings, "--methods", "lim,window,twilight", "--json")
    found = {(r["method"], r.get("equal", "tokens")): r for r in json.loads(said)["results"]}
    ours = found["lim", "tokens"]["read"]
    assert ("lim", "bytes") not in found
    for method in ("window", "twilight"):
        of = found[method, "bytes"]
        assert of["read"] == pytest.approx(ours, rel=0.04), method  # found on other problems, in whole tokens
        assert of["budget"] == 64 and of["size"] != 64 and of["problems"] == 1
    assert found["window", "bytes"]["size"] > 64 > found["window", "tokens"]["distinct"] - 1 and 0 < found["twilight", "bytes"]["size"] < 1


def test_loss(results):
    for key, full in {"lim": (0, 1, 2, 9), "tidal": (0, 1, 2, 9), "quest": (0, 1), "full": range(12), "oracle": range(12)}.items():
        loss = results[key]["loss"]
        assert all(loss[i] == pytest.approx(0, abs=1e-6) for i in full), key
        assert all(0 < loss[i] < 1 for i in range(12) if i not in full), key
    assert max(results["window"]["loss"]) > max(results["lim"]["loss"])


def test_the_library_found_its_layers(results):
    lim, auto, profile = (results[k] for k in ("lim", "lim-auto", "lim-profile"))
    assert auto["library"]["layers_from"] == "measured" and auto["library"]["selection_layers"] == [2, 9]
    assert auto["library"]["measured_steps"] > 0 and auto["library"]["alarms"] == 0
    assert profile["library"]["layers_from"] == "profile" and profile["library"]["measured_steps"] == 0
    assert lim["attended"] < profile["attended"] < auto["attended"] < auto["attended_first"] < 1.25 * lim["attended"]


def test_what_is_there_is_kept(report, out):
    settings = ["--problems", PROBLEMS, "--seed", 8000, "--budgets", BUDGET]
    table, log = compare(FOLDER, *settings, "--methods", "full,window", "--out", out)
    assert "problem" not in log  # nothing is computed again
    assert json.loads(out.read_text())["results"] == report["results"]
    lines = table.splitlines()
    assert len(lines) == 2 + len(METHODS) and any(line.startswith("Quest ") and f" {BUDGET} " in line for line in lines)
    _, log = compare(FOLDER, *settings[:2], "--seed", 8001, "--methods", "full", "--out", out, code=1)
    assert "has another task" in log
    for changed in (["--layers", "2,8"], ["--anchors", "0,2,5,9"]):
        _, log = compare(FOLDER, *settings, *changed, "--methods", "full", "--out", out, code=1)
        assert f"has {'lim' if '--layers' in changed else 'kascade'} as" in log
    assert json.loads(out.read_text())["results"] == report["results"]
    other = out.with_name("other.json")
    other.write_text("[]")
    _, log = compare(FOLDER, *settings, "--methods", "full", "--out", other, code=1)
    assert "is no result of `lessismore compare`" in log


def test_a_host_that_dies_at_once(monkeypatch):
    """Before it has read its job, which no pipe holds."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="the host ended with 1"):
        host._child({"problems": [[[0] * 200000, []]]}, {}, lambda done: None)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["/no/such/folder"], "/no/such/folder"),
        ([FOLDER, "--methods", "full,best"], "best is none of full, "),
        ([FOLDER, "--seed", "3990", "--methods", "full"], "these are problems that are compared"),
        ([FOLDER, "--methods", "full", "--layers", "9,2"], "--layers 9,2: ascending, of 0 to 11"),
        ([FOLDER, "--methods", "full", "--anchors", "0,12"], "--anchors 0,12: ascending"),
        ([FOLDER, "--methods", "full", "--anchors", "2,9"], "the first is 0"),
        ([FOLDER.parent, "--methods", "full"], "config.json"),
    ],
)
def test_errors_are_one_line(arguments, text):
    lines = compare(*arguments, code=1)[1].strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lessismore: ") and text in lines[0]
