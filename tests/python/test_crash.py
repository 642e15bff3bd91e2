"""A host that crashes, with the library in it or in any case: one line says whose crash it is."""

import os

import pytest
import reasoner
from test_cli import SETTINGS, cli
from test_examples import ROOT

# Imported by each Python process at its start: in those that decode, the host's llama_decode() ends the process.
CRASH = """
import os, signal, sys

def decode(*arguments):
    with open("/proc/self/maps") as maps:
        if os.environ["CRASH"] == "always" or "liblessismore" in maps.read():
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    return real(*arguments)

if {"lessismore.cli._chat", "lessismore.cli._worker", "lessismore.compare._worker"} & set(sys.orig_argv):
    import llama_cpp.llama_cpp as host
    real, host.llama_decode = host.llama_decode, decode
"""
COMMANDS = {
    "run": ["run", reasoner.GGUF, "-p", ";qa:7;?qa>qa;", "-n", 3, *SETTINGS],
    "bench": ["bench", reasoner.GGUF, "--contexts", 256, "--rounds", 1, "--steps", 1, *SETTINGS],
    "check": [*"check --contexts 64 --budgets 32 --steps 1 --threads 1 --text".split(), reasoner.FOLDER / "README.md", reasoner.GGUF],
    "compare": ["compare", reasoner.FOLDER, "--methods", "lim-host", "--problems", 1, "--steps", 3, "--budgets", 64],
}


@pytest.fixture
def crashing(tmp_path):
    """Runs a command whose hosts crash."""
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "bindings" / "python")])

    def run(arguments, crash, signal="SIGSEGV"):
        out, log = cli(*arguments, code=1, PYTHONPATH=path, CRASH=crash, SIGNAL=signal)
        assert out.strip() == "" and "Traceback" not in log
        return log.splitlines()[-1], log

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_the_hosts_own_crash(command, crashing):
    line, _ = crashing(COMMANDS[command], "always")
    assert line.startswith("lessismore: the host crashes by itself here, without lessismore: SIGSEGV; what helps: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_crash_with_the_library_only(command, crashing):
    line, log = crashing(COMMANDS[command], "with the library")
    assert line.startswith("lessismore: the host crashed (SIGSEGV) with lessismore in it, and does not without: please report")
    assert log.count("[the host ended with SIGSEGV: trying it without lessismore]") == 1


def test_a_host_that_was_alone_is_not_tried_again(crashing):
    line, log = crashing([*COMMANDS["run"], "--stock"], "always", "SIGILL")
    assert "by itself here, without lessismore: SIGILL" in line and "trying" not in log


def test_a_process_that_was_killed_did_not_crash(crashing):
    assert crashing(COMMANDS["run"], "always", "SIGKILL")[0] == "lessismore: the host ended with SIGKILL"
