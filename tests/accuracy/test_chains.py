"""A model that reasons at length (tests/data/chains): in llama-cpp-python with its adapter, in transformers, and as a task of `compare`."""

import json
import os
import pathlib
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import FOLDER, ROOT, compare

CHAINS = ROOT / "tests" / "data" / "chains"
sys.path.insert(0, str(CHAINS))
import problems  # noqa: E402

CACHE = os.environ.get("LESSISMORE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/lessismore/hosts"
MODEL = pathlib.Path(CACHE).expanduser() / "smollm2" / "model.gguf"
TOKENS, BUDGET, LAYERS, WRONG_LAYER = 1500, 256, "7,17", "1"


def run(*command):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LESSISMORE") or k == "LESSISMORE_LIBRARY"}
    environment |= {"PYTHONPATH": str(ROOT / "bindings" / "python"), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def base():
    if not MODEL.exists():
        pytest.fail(f"no model at {MODEL}: python3 tests/hosts/install.py smollm2", pytrace=False)
    return MODEL


@pytest.fixture(scope="module")
def tokenizer(base):
    """The model's, as a host has it: token lists of text."""
    import llama_cpp

    llm = llama_cpp.Llama(str(base), vocab_only=True, verbose=False)
    yield lambda text: llm.tokenize(text.encode(), add_bos=False, special=True)
    llm.close()


@pytest.fixture(scope="module")
def solved(base, tmp_path_factory):
    """One problem by the host's own attention, by LessIsMore, and with another layer that chooses."""
    folder = tmp_path_factory.mktemp("chains")
    run(CHAINS / "to_gguf.py", CHAINS / "adapter", folder / "adapter.gguf")
    settings = {"full": [], "ours": ["--layers", LAYERS], "wrong": ["--layers", WRONG_LAYER, "--stop"]}

    def solve(case):
        more = ["--budget", BUDGET, "--stats", folder / f"{case}.json", *settings[case]] if settings[case] else []
        out = run(CHAINS / "solve.py", base, folder / "adapter.gguf", "--tokens", TOKENS, "--problems", 1, *more)
        print(case, out)
        return json.loads(out), json.loads((folder / f"{case}.json").read_text()) if more else None

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(settings, pool.map(solve, settings)))


def test_full_attention_solves_it(solved):
    found, _ = solved["full"]
    assert found["exact"] and found["answer"] and found["first_wrong"] is None and found["written"] == found["wanted"] > 900


def test_ours_solves_it_sparsely(solved):
    found, stats = solved["ours"]
    assert found["exact"] and found["written"] == solved["full"][0]["written"]
    total = stats["total"]
    assert total["rows_sparse"] == total["rows"] == found["written"] - 1 and total["rows_full"] == 0, total
    assert total["sparse_layer_tokens_attended"] == 21 * BUDGET * total["rows"], "30 layers, but 0 to 7, and 17"


def test_a_wrong_layer_does_not(solved):
    """Control: as sparse, but what a layer that looks nothing up chooses is not what is needed."""
    found, stats = solved["wrong"]
    assert not found["exact"] and found["first_wrong"] < 10 and stats["total"]["rows_sparse"] > 0


@pytest.mark.parametrize("family", problems.FAMILIES)
def test_problems(family, tokenizer):
    """Drawn again the same; as long as asked for; right by another's arithmetic; each name told once."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    for size in (600, 1500, 4000, 7000):
        problem = problems.draw(random.Random(seed), size, family)
        assert problem == problems.draw(random.Random(seed), size, family) != problems.draw(random.Random(seed + 1), size, family)
        assert -90 - size // 33 < len(tokenizer(problem.question)) + len(tokenizer(problem.chain)) - size < 60
        lines = problem.question.split("\n")
        told = [line.split(":")[0] for line in lines if ": " in line] or lines
        assert len(set(told)) == len(told) and len(set(lines)) == len(lines)
        for sum_, result in re.findall(r"(\d+(?:[+-]\d+)+)=(\d+)", problem.chain):
            assert eval(sum_) == int(result), (sum_, result)
        steps = problem.chain.split("\n")
        assert steps[0] in lines[-1] and steps[-1] == problem.answer and problem.answer.startswith("Answer: ")
        assert all(any(step.startswith(line) for line in lines) for step in steps[1:-1]), "each step begins with the line that it follows"
        answer = problem.answer.removeprefix("Answer: ").rstrip(".")
        assert answer in problem.chain.rsplit("\n", 1)[0] or answer in problem.question, "the answer was told or found out"


def test_first_wrong():
    problem = problems.draw(random.Random(3), 600)
    steps = problem.chain.split("\n")
    assert problems.first_wrong(problem, problem.chain) is None
    for i in (0, 3, len(steps) - 1):
        assert problems.first_wrong(problem, "\n".join([*steps[:i], steps[i] + "x", *steps[i + 1 :]])) == i + 1
        assert problems.first_wrong(problem, "\n".join(steps[:i])) == (i + 1 if i else 1)
    assert problems.first_wrong(problem, problem.chain + "\nAnswer: more.") == len(steps) + 1


def test_every_word_is_one_token(tokenizer):
    lists = (problems.PEOPLE, problems.TOWNS, problems.THINGS, problems.WORDS)
    assert [w for words in lists for w in words if len(tokenizer(f" {w}")) != 1] == []
    assert all(len(set(words)) == len(words) for words in lists)


@pytest.fixture(scope="module")
def merged(base, tmp_path_factory):
    """The base with the adapter in it, as a folder, and its tokenizer out of the GGUF."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("merged")
    AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name).save_pretrained(folder / "tokenizer")
    run(CHAINS / "merge.py", base, CHAINS / "adapter", folder / "model", "--tokenizer", folder / "tokenizer")
    return folder / "model"


def test_the_chains_are_a_task_with_tokens_of_its_own(merged, tokenizer):
    from lessismore.compare import table

    task = table.Task(merged, 700)
    seed = random.SystemRandom().randrange(1 << 32)
    problem, drawn = task.problem(seed), problems.draw(random.Random(seed), 700 - 40)
    print(f"seed {seed}")
    assert problem.prompt == tokenizer(f"<|im_start|>user\n{drawn.question}<|im_end|>\n<|im_start|>assistant\n")
    assert problem.solution == [*tokenizer(drawn.chain), 2]
    assert len(problem.step) == len(problem.solution) and sorted(problem.step) == list(problem.step)
    assert set(problem.step) == set(range(drawn.chain.count("\n") + 1)), "each line of the chain is a step"


def test_transformers_solves_them(merged):
    """Each token behind the right ones before it, so that one pass tells what greedy decoding writes."""
    import torch
    from transformers import AutoModelForCausalLM

    from lessismore.compare import table

    task, model = table.Task(merged, 1000), AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    for seed in (1, 2):
        problem = task.problem(seed)
        ids = torch.tensor([problem.prompt + problem.solution])
        with torch.no_grad():
            best = model(ids).logits[0, len(problem.prompt) - 1 : -1].argmax(-1).tolist()
        assert best == problem.solution


def test_forced_leaves_out_what_wrong_answers_go_on_to_write(tmp_path):
    settings = ["--problems", 2, "--seed", 8000, "--budgets", 128, "--methods", "full,window", "--json"]
    full, window = json.loads(compare(FOLDER, *settings, "--forced", "--out", tmp_path / "out.json")[0])["results"]
    assert full["exact"] == full["length"]["of"] == 2 and full["length"]["mean"] == 1182
    assert window["exact"] == window["length"]["of"] == 0 and window["length"]["mean"] is None
    assert len(window["first_wrong"]["steps"]) == 2 and 0 < window["tokens_right"] < 1
