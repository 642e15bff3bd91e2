"""The command line: what it prints, as text and as JSON, and its exit codes."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import reasoner
from test_examples import environment

import lessismore

SETTINGS = ["--threads", "1", "--budget", "128", "--layers", "2,9"]


def cli(*arguments, code=0, text=None, **more):
    done = subprocess.run(
        [sys.executable, "-m", "lessismore.cli", *map(str, arguments)],
        env=environment(**more), input=text or "", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def one_line(log):
    """An error is one line, and no traceback."""
    (line,) = (line for line in log.splitlines() if not line.startswith("["))
    assert line.startswith("lessismore: ")
    return line


@pytest.fixture(scope="module")
def problem():
    (one,) = reasoner.problems(1)
    return one


def test_version():
    assert cli("--version")[0] == f"lessismore {lessismore.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["run"], ["bench", "x", "--threads", "0"], ["run", "x", "--policy", "y"]])
def test_wrong_arguments(arguments):
    assert "usage: lessismore" in cli(*arguments, code=2)[1]


def test_doctor():
    found = json.loads(cli("doctor", "--json")[0])
    assert found["package"] == lessismore.__version__
    assert found["library"] == {"works": True, "path": str(lessismore.library_path()), "target": found["library"]["target"], "why": None}
    hosts = {h["name"]: h for h in found["hosts"]}
    for name in ("llama-cpp-python", "xllamacpp", "transformers"):
        assert hosts[name]["engages"], hosts[name]
        assert hosts[name]["version"]
    assert "loaded into ggml" in hosts["llama-cpp-python"]["why"]


def test_doctor_for_people(tmp_path):
    out, _ = cli("doctor", "--quick")
    assert re.search(rf"^\+ library +{re.escape(str(lessismore.library_path()))}, ", out, re.M), out
    out, _ = cli("doctor", code=1, LESSISMORE_LIBRARY=str(tmp_path / "none.so"))
    assert "- library" in out and "none.so" in out


def test_doctor_asks_the_library_about_gpus(tmp_path, root):
    driver = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", driver, root / "tests/gpu/standin/standin.c", "-lpthread"], check=True)
    found = json.loads(cli("doctor", "--quick", "--json", LD_LIBRARY_PATH=str(tmp_path))[0])["driver"]
    assert found["gpus"] == ["stand-in"]
    assert found["why"] is None or "GPU 0: " in found["why"] and "this build of the library has no CUDA" in found["why"]
    steps = "steps that gain by it are taken"
    for setting, said in (("", steps), ("off", "left to llama.cpp"), ("auto", steps), ("on", "every step beyond the budget")):
        out, _ = cli("doctor", "--quick", LD_LIBRARY_PATH=str(tmp_path), LESSISMORE_CUDA=setting)
        assert (f"llama.cpp on GPUs  {said}" in out) == (found["why"] is None), out


def test_doctor_says_why_not():
    hosts = {h["name"]: h for h in json.loads(cli("doctor", "--json", LESSISMORE_BUDGET="lots")[0])["hosts"]}
    assert not hosts["llama-cpp-python"]["engages"]
    assert 'LESSISMORE_BUDGET="lots"' in hosts["llama-cpp-python"]["why"]


@pytest.mark.parametrize("name", ["llama-server"])
def test_doctor_finds_programs(name):
    cache = os.environ.get("LESSISMORE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/lessismore/hosts"
    folder = pathlib.Path(cache).expanduser() / "llama-server" / "bin"
    found = json.loads(cli("doctor", "--json", PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")[0])
    (host,) = (h for h in found["hosts"] if h["name"] == name)
    assert host["engages"] and host["version"] == str(folder / name), host


def test_doctor_names_hosts_that_are_not_supported(tmp_path):
    (tmp_path / "ollama").touch(mode=0o755)
    (tmp_path / ".lmstudio").mkdir()
    found = json.loads(cli("doctor", "--json", LESSISMORE_BUDGET="lots", PATH=str(tmp_path), HOME=str(tmp_path))[0])
    hosts = {h["name"]: h for h in found["hosts"]}
    for name, where in (("Ollama", "ollama"), ("LM Studio", ".lmstudio")):
        assert hosts[name] == {"name": name, "version": str(tmp_path / where), "engages": False, "why": "not supported yet"}
    assert not {"vLLM", "SGLang"} & hosts.keys()


def test_run(problem):
    out, log = cli("run", reasoner.GGUF, "-p", problem.prompt, "-n", 100, *SETTINGS)
    assert out == problem.solution[:100] + "\n"
    assert " tokens/s, " in log and "% of the tokens attended" in log


def test_run_json(problem):
    out, _ = cli("run", reasoner.GGUF, "-n", 100, *SETTINGS, "--json", text=problem.prompt)
    found = json.loads(out)
    assert found["text"] == problem.solution[:100]
    assert found["prompt_tokens"] == 843 and found["decoded_tokens"] == 99
    assert found["engaged"] and 0.3 < found["share_attended"] < 0.5 and found["tokens_per_second"] > 0
    config = found["stats"]["config"]
    assert config | {"budget": 128, "layers": [2, 9], "recency": 0.25, "sink_tokens": 4, "policy": "union"} == config


def test_run_stock(problem):
    out, log = cli("run", reasoner.GGUF, "-p", problem.prompt, "-n", 50, "--threads", 1, "--stock")
    assert out == problem.solution[:50] + "\n"
    assert "lessismore:" not in log


def test_run_without_the_library_is_told(problem):
    out, log = cli("run", reasoner.GGUF, "-p", problem.prompt, "-n", 20, *SETTINGS, code=3, LESSISMORE="off")
    assert out == problem.solution[:20] + "\n"
    assert "the library took no part: switched off by LESSISMORE" in log


def test_chat():
    out, log = cli("run", reasoner.GGUF, "--chat", "-n", 9, *SETTINGS, text=";qa:7;?qa>qa;\n\nsecond line\n")
    assert len(out.strip("\n").split("\n")) == 2
    found = json.loads(cli("run", reasoner.GGUF, "--chat", "-n", 9, *SETTINGS, "--json", "-p", ";qa:7;?qa>qa;")[0])
    assert found["text"] and found["text"] == out.split("\n")[0]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["run", "/no/such/model", "-p", "a"], "/no/such/model"),
        (["run", __file__, "-p", "a"], "is no GGUF file"),
        (["run", reasoner.GGUF, "-p", "a", "--recency", "3"], "recency 3 is not in 0 .. 1"),
        (["run", reasoner.GGUF, "-p", "a", "--layers", "9,2"], "2 follows 9"),
        (["run", reasoner.GGUF, "--chat", "--json"], "--json --chat needs --prompt"),
        (["bench", "/no/such/model"], "/no/such/model"),
        (["bench", reasoner.GGUF, "--contexts", "64", "--threads", "1", "--sink-tokens", "-1"], "sink_tokens"),
    ],
)
def test_errors_are_one_line(arguments, text):
    assert text in one_line(cli(*arguments, code=1)[1])


def test_a_broken_model_is_one_line(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(reasoner.GGUF.read_bytes()[:4096])
    for command in (["run", broken, "-p", "a", "--stock"], ["bench", broken, "--contexts", "64", "--threads", "1"]):
        assert "broken.gguf" in one_line(cli(*command, code=1)[1])


def test_bench(tmp_path):
    plot = tmp_path / "plot.png"
    out, log = cli("bench", reasoner.GGUF, "--contexts", "256,1024", *SETTINGS, "--rounds", 2, "--steps", 2, "--plot", plot)
    head, _, short, long = out.strip().split("\n")
    assert "flash on (ms)" in head and "attended" in head
    assert short.split()[:2] == ["256", "1"] and long.split()[:2] == ["1024", "1"]
    assert long.endswith("%") and "1024 tokens, 1 threads, lessismore: filling" in log
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bench_json():
    out, _ = cli("bench", reasoner.GGUF, "--contexts", "1024", *SETTINGS, "--rounds", 2, "--steps", 2, "--kv", "q8_0", "--json")
    (found,) = json.loads(out)["results"]
    assert found["selection_layers"] == [2, 9] and found["kv"] == "q8_0"
    assert sorted(found["ms"]) == ["flash on", "lessismore"]  # the host has this cache with flash attention only
    assert found["ratio"] > 0 and found["engaged"] and found["share_attended"] < 0.5


def test_bench_without_the_library_is_told():
    out, _ = cli("bench", reasoner.GGUF, "--contexts", "256", *SETTINGS, "--rounds", 1, "--steps", 1, code=3, LESSISMORE="off")
    assert "switched off by LESSISMORE" in out


def test_a_reader_that_leaves():
    command = f"{sys.executable} -m lessismore.cli doctor --quick --json | true"
    done = subprocess.run(command, shell=True, env=environment(), capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
