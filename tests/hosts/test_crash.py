"""Hosts that crash: AMX code that a compiler broke, and what a run says of a crash."""

from __future__ import annotations

import subprocess

import hostlib
import pytest
from hostlib import HostError, Problem
from make_model import Shape, make

ITS_OWN = "the host crashes by itself here, without lessismore: SIGSEGV; what helps: "
OURS = r"the host crashed \(SIGSEGV\) with lessismore in it, and does not without"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("type", ["q4_0", "f16"])
@pytest.mark.parametrize("host", ["llama-cpp-python", "node-libs"])
def test_prompts_with_quantised_weights(host, type, threads, tmp_path):
    """On a CPU with AMX llama-cpp-python ends here by SIGSEGV unless it is built without (install.py)."""
    model = str(make(tmp_path / f"{type}.gguf", Shape(type=type, layers=1)))
    prompts = [[3 + i for i in range(n)] for n in (40, 60)]
    result = hostlib.run(host, scenario="together", model=model, prompts=prompts, lengths=[3, 3], threads=threads)
    assert [len(result.tokens[i]) for i in range(2)] == [3, 3]


@pytest.fixture(scope="module")
def crash(tmp_path_factory):
    """A library that ends the process which loads it."""
    path = tmp_path_factory.mktemp("crash") / "crash.so"
    source = "#include <signal.h>\n__attribute__((constructor)) static void crash(void) { raise(SIGSEGV); }\n"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=source, text=True, check=True)
    return path


@pytest.mark.parametrize("host", ["llama-cpp-python", "llama-server", "xllamacpp"])  # Node.js tries its binary first
def test_whose_crash_it_is(host, crash):
    job = {"problems": [Problem.make(1, steps=2)], "lengths": [2]}
    with pytest.raises(HostError, match=OURS):
        hostlib.run(host, library=crash, **job)
    with pytest.raises(HostError, match=ITS_OWN):
        hostlib.run(host, library=crash, settings={"LD_PRELOAD": str(crash)}, **job)


def test_whose_crash_it_is_in_a_benchmark(crash, monkeypatch):
    job = {"model": str(hostlib.REASONER), "context": 128, "threads": 1}
    with pytest.raises(HostError, match=OURS):
        hostlib.Worker("llama-cpp-python", "library", library=crash, **job)
    monkeypatch.setenv("LD_PRELOAD", str(crash))
    with pytest.raises(HostError, match=ITS_OWN):
        hostlib.Worker("llama-cpp-python", "library", library=crash, **job)
