"""lessismore.llama_cpp and lessismore.xllamacpp: enable() before the model is made."""

import json
import subprocess
import sys
import textwrap

import pytest
import reasoner
from test_examples import environment

TOKENS = 150
XLLAMACPP = """
    import json, xllamacpp, lessismore.xllamacpp as host
    host.enable(budget=128, layers=[2, 9], stats=STATS)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = MODEL, 2048, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    answer = server.handle_completions({"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0})
    del server
    print(json.dumps(answer["choices"][0]["text"]))
"""
LLAMA_CPP = """
    import json, llama_cpp, lessismore.llama_cpp as host
    host.enable(budget=128, layers=[2, 9], stats=STATS)
    llm = llama_cpp.Llama(MODEL, n_ctx=2048, n_threads=1, flash_attn=FLASH, verbose=False)
    print(json.dumps(llm.create_completion(PROMPT, max_tokens=TOKENS, temperature=0)["choices"][0]["text"]))
    llm.close()
"""


@pytest.fixture(scope="module")
def problem():
    (one,) = reasoner.problems(1)
    return one


def run(code, *, names=None, **more):
    lines = [f"{name} = {value!r}" for name, value in (names or {}).items()]
    script = "\n".join([*lines, textwrap.dedent(code)])
    done = subprocess.run([sys.executable, "-c", script], env=environment(**more), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("\n")[-1], done.stderr


def values(problem, stats, flash=True):
    return {"MODEL": str(reasoner.GGUF), "PROMPT": problem.prompt, "TOKENS": TOKENS, "STATS": str(stats), "FLASH": flash}


@pytest.mark.parametrize("code", [LLAMA_CPP, XLLAMACPP], ids=["llama-cpp-python", "xllamacpp"])
def test_decodes_sparsely(code, problem, tmp_path):
    stats = tmp_path / "stats.json"
    out, log = run(code, names=values(problem, stats))
    assert json.loads(out) == problem.solution[:TOKENS]
    assert "lessismore: engaged: 128 tokens of 844 attended outside layers [2 9]" in log
    found = json.loads(stats.read_text())
    assert found["state"] == "active" and found["total"]["rows_sparse"] == TOKENS - 1


def test_says_that_flash_attention_is_off(problem, tmp_path):
    stats = tmp_path / "stats.json"
    out, log = run(LLAMA_CPP, names=values(problem, stats, flash=False))
    assert json.loads(out) == problem.solution[:TOKENS]
    assert "flash attention is off in this host" in log and "llama-cpp-python flash_attn=True" in log
    assert json.loads(stats.read_text())["total"]["rows"] == 0


def test_arguments_win_over_the_environment_and_leave_it_alone():
    out, log = run(
        """
        import os, lessismore.llama_cpp as host
        host.enable(budget=64)
        print(os.environ["LESSISMORE_BUDGET"], "LESSISMORE_LAYERS" in os.environ)
        """,
        LESSISMORE_BUDGET="99",
        LESSISMORE_RECENCY="0.5",
    )
    assert out == "99 False"
    assert "budget 64 tokens" in log


def test_numbers_of_steps_are_that_many():
    """Also where the library could take 1 for on."""
    out, _ = run("""
        import json, lessismore.llama_cpp as host
        from lessismore.engine import HostEngine
        host.enable(trace=1, guard=1, profile=b"off")
        config = HostEngine().report()["config"]
        print(config["trace"], config["guard"])
    """)
    assert out == "1 1"


def test_a_process_has_one_configuration():
    out, log = run("""
        import lessismore, lessismore.llama_cpp as host, lessismore.xllamacpp as other
        for call in (host.enable, other.enable):  # the same again is nothing to do, for another host too
            call(budget=64)
            call(budget=64)
        for call in (host.enable, other.enable):
            try:
                call(budget=65)
            except lessismore.Error as e:
                print(e, end=";")
    """)
    assert log.count(" loaded into ggml ") == 2  # one line for each host, whose ggml are two
    assert out.count("already enabled with {'LESSISMORE_BUDGET': '64'}: a process has one configuration;") == 2


@pytest.mark.parametrize(
    "arguments, text",
    [
        ("budget=0", "budget 0"),
        ("budget='a'", "budget = 'a'"),
        ("layers=[9, 2]", "2 follows 9"),
        ("layers=[]", "layers = []"),
        ("recency=2", "recency 2"),
        ("policy='best'", "policy = 'best'"),
        ("log='loud'", "log = 'loud'"),
        ("trace=True", "trace = True is not a whole number"),
        ("recency=True", "recency = True is not a number"),
        ("profile='/'", 'profile = "/" is a folder'),
        ("stats='/'", "stats = '/' is a folder"),
    ],
)
def test_wrong_arguments(arguments, text):
    out, log = run(f"""
        import lessismore, lessismore.llama_cpp as host
        try:
            host.enable({arguments})
        except (lessismore.ArgumentError, TypeError) as e:
            print(e)
        host.enable()
    """)
    assert text in out
    assert "loaded into ggml" in log  # a refused call has changed nothing


def test_a_missing_library_is_named(tmp_path):
    out, _ = run(
        """
        import lessismore, lessismore.llama_cpp as host
        try:
            host.enable()
        except lessismore.LibraryError as e:
            print(e)
        """,
        LESSISMORE_LIBRARY=str(tmp_path / "none.so"),
    )
    assert str(tmp_path / "none.so") in out
