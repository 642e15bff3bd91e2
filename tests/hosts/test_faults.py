"""What can go wrong around a host that decodes: its files, its streams, a signal, the library given back. Tokens stay right, nothing crashes.

Calls of the library's own that fail are in tests/ggml/faults.sh; `--long` has them fail in a real host, too.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import hostlib
import pytest
from checks import BUDGET, HOSTS, SPARSE, log_lines
from test_process import python

AUTO = {"LESSISMORE_BUDGET": BUDGET}


def decode(library, settings, problem, steps=700):
    return hostlib.run("node", library=library, settings=settings, problems=[problem], lengths=[steps])


@pytest.mark.parametrize(
    "what",
    ["no home", "a cache that cannot be written", "a full disk", "a read-only file system", "a statistics file that cannot be written"],
)
def test_files_that_cannot_be_written(what, library, problems, tmp_path):
    """The layers are measured, and what was found is not kept: one line, and the tokens are the solution's."""
    settings, says, mounted = dict(AUTO), "", None
    if what == "no home":
        settings |= {"HOME": "", "XDG_CACHE_HOME": ""}
    elif what == "a cache that cannot be written":
        (tmp_path / "lessismore").write_text("a file where a folder should be")
        settings |= {"XDG_CACHE_HOME": str(tmp_path)}
        says = "profile is not saved: "
    elif what == "a full disk":
        mounted = tmp_path / "full"
        mounted.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mounted], check=True)
        (mounted / "lessismore" / "profiles").mkdir(parents=True)
        with (mounted / "filler").open("wb", buffering=0) as f, pytest.raises(OSError, match="No space left"):
            while True:
                f.write(bytes(4096))
        settings |= {"XDG_CACHE_HOME": str(mounted)}
        says = "profile is not saved: "
    elif what == "a read-only file system":
        mounted = tmp_path / "read-only"
        mounted.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", mounted], check=True)
        settings |= {"XDG_CACHE_HOME": str(mounted)}
        says = "profile is not saved: "
    else:
        settings |= {"XDG_CACHE_HOME": str(tmp_path), "LESSISMORE_STATS": str(tmp_path / "none" / "stats.json")}
        says = "LESSISMORE_STATS: "
    try:
        env = {k: v for k, v in settings.items() if k != "LESSISMORE_STATS"}
        result = run_with(library, {**env, **settings}, problems[0])
    finally:
        if mounted:
            subprocess.run(["umount", mounted], check=True)
    tokens, log = result
    assert tokens == problems[0].solution[: len(tokens)] and len(tokens) == 700
    assert "selection layers [2 9]: measured" in log, log[-2000:]
    assert says in log if says else "is not saved" not in log, log[-2000:]
    # One line for each try to save a profile, and one for all to write statistics.
    assert not says or log.count(says) <= (1 if "STATS" in says else 3), log[-2000:]


def run_with(library, settings, problem, **more):
    """The tokens and the log of a run whose statistics go where the settings say."""
    import json

    env = hostlib.environment("node", library, settings, None)
    job = {"model": str(hostlib.REASONER), "prompts": [problem.prompt], "lengths": [700], "flash": True}
    run = subprocess.run(
        hostlib.command("node", False), input=json.dumps(job) + "\n", env=env, capture_output=True, text=True, timeout=300, **more
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return next(json.loads(line)["tokens"] for line in run.stdout.splitlines() if '"tokens"' in line), run.stderr


def test_two_processes_write_one_profile(library, problems, tmp_path):
    """Both measure and save; what a third one reads is whole."""
    settings = {**AUTO, "XDG_CACHE_HOME": str(tmp_path)}
    code = "import sys; sys.path.insert(0, {!r}); import test_faults as t; from hostlib import Problem; from pathlib import Path\n"
    code += "tokens, log = t.run_with(Path({!r}), {!r}, Problem.make({}))\nassert tokens == Problem.make({}).solution[:700], log"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(str(hostlib.HERE), str(library), settings, seed, seed)], stderr=subprocess.PIPE, text=True
        )
        for seed in (1, 2)
    ]
    for child in children:
        assert child.wait(300) == 0, child.stderr.read()[-2000:]
    tokens, log = run_with(library, settings, problems[0])
    assert tokens == problems[0].solution[:700]
    assert "from a profile" in log or "profile" in log and "measured in" not in log, log[-2000:]
    assert not list(tmp_path.rglob("*.tmp*")), list(tmp_path.rglob("*"))


def test_closed_streams(library):
    """No standard error at all: what the library would say goes nowhere, and into no file that took its number."""
    run = python(
        library,
        """
        os.close(2)
        spare = os.open("/dev/null", os.O_RDONLY)
        assert spare == 2
        decode(steps=150)
        print("lives")
        """,
        stderr=None,
        stdout=subprocess.PIPE,
        capture_output=False,
    )
    assert run.returncode == 0 and run.stdout.strip() == "lives", run.returncode


def test_interrupt_in_mid_decode(library):
    """Ctrl-C as Python hosts see it: an exception between two tokens, and the next text is right."""
    run = python(
        library,
        """
        import threading
        import llama_cpp
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        def interrupt():
            while signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # one in a callback of the host's log is lost
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            decode(contexts=1000, steps=150)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print("interrupted")
        decode(steps=150)
        print("lives")
        """,
    )
    assert run.returncode == 0 and run.stdout.split() == ["interrupted", "lives"], run.stderr[-2000:]
    assert run.stderr.count("inert") == 0, run.stderr[-2000:]


def test_killed_by_an_interrupt(library):
    """The default action: the process ends by the signal, not by a crash on the way out."""
    run = python(
        library,
        """
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 2)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        decode(contexts=1000, steps=150)
        """,
    )
    assert run.returncode == -signal.SIGINT, (run.returncode, run.stderr[-2000:])


def test_unloaded_in_mid_decode(library):
    """The host gives the library back while a context decodes: its code stays, and so does what it does."""
    run = python(
        library,
        """
        import llama_cpp, llama_cpp.llama_cpp as C
        load, unload = C._lib.ggml_backend_load, C._lib.ggml_backend_unload
        load.restype, unload.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        registry = load(LIBRARY)
        llm = llama_cpp.Llama(os.environ["MODEL"], n_ctx=2048, flash_attn=True, n_threads=1, n_threads_batch=1, verbose=False)
        for n, token in enumerate(llm.generate([1] + [5, 6, 7, 8] * 60, temp=0.0, top_k=1)):
            if n == 20:
                unload(registry)
            if n == 150:
                break
        llm.close()
        decode(steps=150)
        print("lives")
        """,
    )
    assert run.returncode == 0 and run.stdout.strip() == "lives", (run.returncode, run.stderr[-2000:])


@pytest.mark.long
@pytest.mark.parametrize("host", HOSTS)
def test_calls_that_fail_in_a_real_host(host, problems, tmp_path):
    """Each of the library's own calls fails once: right tokens, at most one line that it is inert."""
    subprocess.run([hostlib.ROOT / "tests" / "ggml" / "faults.sh", "build"], check=True)
    faulty, count = hostlib.ROOT / "build" / "faults" / "liblessismore.so", tmp_path / "count"
    result = hostlib.run(host, library=faulty, settings={**SPARSE, "LIM_FAULT_COUNT": str(count)}, problems=problems[:1], lengths=[40])
    calls = dict(line.split() for line in count.read_text().splitlines())
    assert int(calls["new"]) > 20, calls
    for kind, n in calls.items():
        for at in range(1, int(n) + 1) if kind != "failed" else ():
            settings = {**SPARSE, "LIM_FAULT": f"{kind}:{at}"}
            result = hostlib.run(host, library=faulty, settings=settings, problems=problems[:1], lengths=[40], may_refuse=True)
            assert result.tokens[0] == problems[0].solution[:40], (kind, at)
            assert sum("inert: " in line for line in log_lines(result)) <= 1, (kind, at, log_lines(result))
