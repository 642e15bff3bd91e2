"""The examples, as they stand, on the reasoner."""

import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import reasoner

import lessismore

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "bindings" / "python" / "examples"
TOKENS = 200
LINES = {"with_transformers.py": 15, "with_llama_cpp.py": 10, "with_ctypes.py": 27}


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LESSISMORE") or k in ("LESSISMORE_LIBRARY", "LESSISMORE_CACHE")}
    return {**kept, "PYTHONPATH": str(ROOT / "bindings" / "python"), "OMP_WAIT_POLICY": "passive", **more}


def example(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def problem():
    (one,) = reasoner.problems(1)
    return one


def test_numpy():
    out, _ = example("with_numpy.py")
    assert out == "4 steps, 56.2% of the tokens attended\n"


def test_ctypes():
    assert example("with_ctypes.py", str(lessismore.library_path()))[0] == "1.0\n"


def test_transformers(problem):
    out, _ = example("with_transformers.py", str(reasoner.FOLDER), f"<bos>{problem.prompt}", "2,9")
    text, stats = out.strip().split("\n")
    assert text.replace(" ", "").endswith(problem.solution[:TOKENS])
    assert f"'rows_sparse': {TOKENS - 1}" in stats


def test_llama_cpp(problem):
    out, log = example("with_llama_cpp.py", str(reasoner.GGUF), problem.prompt)
    assert out == problem.solution[:TOKENS] + "\n"
    assert "lessismore: engaged: 128 tokens of 844 attended outside layers [2 9]" in log


def test_openai_client_and_server(problem, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "lessismore.llama_cpp", "--model", str(reasoner.GGUF), "--n_ctx", "2048"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_threads", "1"]
    with open(tmp_path / "log", "w+") as log:
        server = subprocess.Popen(command, env=environment(LESSISMORE_BUDGET="128", LESSISMORE_LAYERS="2,9"), stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/v1"
            deadline = time.monotonic() + 120
            while True:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                try:
                    urllib.request.urlopen(f"{url}/models", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            out, _ = example("with_openai.py", url, problem.prompt)
        finally:
            server.terminate()
            server.wait(timeout=60)
    said = (tmp_path / "log").read_text()
    assert out == problem.solution[:TOKENS] + "\n", said
    assert "lessismore: engaged: 128 tokens of 844 attended outside layers [2 9]" in said


@pytest.mark.parametrize("name", LINES)
def test_examples_are_short(name):
    text = (EXAMPLES / name).read_text().split('"""', 2)[2]
    assert len([line for line in text.splitlines() if line.strip()]) <= LINES[name]
