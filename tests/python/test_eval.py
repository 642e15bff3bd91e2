"""`lessismore eval`: EleutherAI's harness on the reasoner, through a task of its own: answers, counts, what is kept and refused."""

import json
import random

import numpy as np
import pytest
import reasoner

from lessismore import cli
from lessismore.cli import eval as command

STEPS, PROBLEMS, LAYERS = 16, 2, [2, 9]
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: {kind}
doc_to_text: "<bos>{{{{prompt}}}}"
doc_to_target: "{{{{solution}}}}"
{more}
"""
GENERATES = """generation_kwargs:
  until: ["<eos>"]
  max_gen_toks: 400
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module", autouse=True)
def offline():
    """The problems are files: nothing is to be looked for elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        yield patch


@pytest.fixture(scope="module")
def problems():
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return [reasoner.task.problem(random.Random(seed + i), STEPS) for i in range(PROBLEMS)]


@pytest.fixture(scope="module")
def folder(problems, offline, tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    offline.setenv("HF_DATASETS_CACHE", str(path / "cache"))
    (path / "problems.jsonl").write_text("".join(json.dumps({"prompt": p, "solution": s}) + "\n" for p, s in problems))
    file = path / "problems.jsonl"
    (path / "ledger.yaml").write_text(TASK.format(name="ledger", file=file, kind="generate_until", more=GENERATES))
    (path / "score.yaml").write_text(TASK.format(name="score", file=file, kind="loglikelihood", more=""))
    (path / "gone.yaml").write_text(TASK.format(name="gone", file=path / "no.jsonl", kind="generate_until", more=GENERATES))
    return path


def run(folder, capsys, *more, code=0, tasks="ledger"):
    options = ["--include", folder, "--tasks", tasks, "--threads", 1, "--device", "cpu", "--dtype", "float32", "--profile", "off"]
    assert cli.main(["eval", str(reasoner.FOLDER), *map(str, [*options, *more])]) == code
    return capsys.readouterr()


GREEDY = ["--samples", 1, "--temperature", 0, "--layers", "2,9", "--json"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("eval") / "out.json"


def test_answers_and_counts(folder, problems, out, capsys):
    """The layers are given, so that what is attended to follows from lengths alone."""
    found = json.loads(run(folder, capsys, *GREEDY, "--budgets", "32,128", "--out", out).out)
    assert found == json.loads(out.read_text())
    full, tiny, enough = found["results"]
    assert [r["budget"] for r in found["results"]] == [None, 32, 128]
    tokens = [len(reasoner.task.encode(solution)) + 1 for _, solution in problems]
    for r in (full, enough):
        assert r["right"] == [[1.0]] * PROBLEMS and r["exact"] == 1 and r["exact_interval"][1] == 1
        assert r["tokens_generated"] == np.mean(tokens)
    visible = attended = 0
    for (prompt, _), more in zip(problems, tokens):
        first = 1 + len(reasoner.task.encode(prompt))
        n = np.arange(first + 1, first + more)  # the first token comes out of the prompt
        visible, attended = visible + 12 * n.sum(), attended + (4 * n + 8 * np.minimum(n, 128)).sum()
    assert enough["attended"] == pytest.approx(attended / visible, rel=1e-9) and full["attended"] == 1
    assert enough["selection_layers"] == LAYERS and enough["difference"] == 0
    assert tiny["attended"] < enough["attended"] and tiny["exact"] < 1, "a budget of 32 solves none of them"
    assert tiny["difference"] == tiny["exact"] - 1 and tiny["difference_interval"][0] < 0


def test_what_is_there_is_kept(folder, out, capsys):
    before = json.loads(out.read_text())["results"]
    said = run(folder, capsys, *GREEDY, "--budgets", "128", "--out", out)
    assert json.loads(said.out)["results"] == before and "answer" not in said.err
    assert "has another limit" in run(folder, capsys, *GREEDY, "--limit", 1, "--out", out, code=1).err
    out.with_name("other.json").write_text("[]")
    assert "is no result of" in run(folder, capsys, *GREEDY, "--out", out.with_name("other.json"), code=1).err


def test_samples(folder, capsys):
    said = run(folder, capsys, "--samples", 2, "--budgets", 128, "--limit", 1, "--temperature", 1.5, "--max-tokens", 40, "--seed", 3)
    lines = said.out.splitlines()
    assert len(lines) == 4 and all("1 x 2" in line for line in lines[2:]), said.out
    assert "answer 2 to each problem" in said.err


def test_differences_are_paired():
    """Against the same problem: two that are lost and one that is won."""
    full = {"task": "t", "filter": "f", "budget": None, "right": [[1, 1]] * 6 + [[0, 0]] * 4}
    ours = {**full, "budget": 128, "right": [[0, 1]] * 4 + [[1, 1]] * 2 + [[1, 0]] * 1 + [[0, 0]] * 3}
    other = {**full, "task": "u", "budget": 128}
    results = [full, ours, other]
    command._compared(results)
    assert ours["difference"] == pytest.approx(-0.15) and full["difference"] is None and other["difference"] is None
    low, high = ours["difference_interval"]
    assert -0.4 < low < -0.15 < high < 0.1
    assert full["exact_interval"][0] < 0.6 < full["exact_interval"][1]


@pytest.mark.parametrize(
    "more, tasks, says",
    [
        (["--samples", 3, "--temperature", 0], "ledger", "--samples 3: at temperature 0 all of them are the same"),
        (["--top-p", 0], "ledger", "--top-p 0: at least 0, and above 0"),
        (["--include", "/no/such/folder"], "ledger", "--include /no/such/folder: there is no such folder"),
        ([], "ledger,nothing", "--tasks nothing: the harness has no task of this name"),
        ([], "score", "--tasks score: score generates no text"),
        ([], "gone", "--tasks gone: its problems cannot be had"),
        (["--layers", "2,12"], "ledger", "layers"),
    ],
)
def test_errors_are_one_line(more, tasks, says, folder, capsys):
    log = run(folder, capsys, "--samples", 1, "--budgets", 128, "--limit", 1, *more, code=1, tasks=tasks).err
    lines = [line for line in log.splitlines() if line.startswith("lessismore: ")]
    assert len(lines) == 1 and says in lines[0] and "Traceback" not in log, log


def test_a_file_is_no_model(folder, capsys):
    assert cli.main(["eval", str(reasoner.GGUF), "--include", str(folder), "--tasks", "ledger"]) == 1
    assert "is a file: the harness reads folders" in capsys.readouterr().err
