"""The library inside a process that does what hosts do: fork, lose its log, get signals."""

from __future__ import annotations

import os
import subprocess
import textwrap

import hostlib
from checks import SPARSE

DECODE = """
    import ctypes, os, signal, sys, time
    LIBRARY = os.environ["LIBRARY"].encode()

    def decode(contexts=1, steps=4):
        import llama_cpp, llama_cpp.llama_cpp as C
        assert C._lib.ggml_backend_load(LIBRARY) or os.environ.get("REFUSED")
        global quiet  # the host keeps the address
        quiet = C.llama_log_callback(lambda level, text, user: None)
        C.llama_log_set(quiet, None)
        for _ in range(contexts):
            llm = llama_cpp.Llama(os.environ["MODEL"], n_ctx=2048, flash_attn=True, n_threads=1, n_threads_batch=1,
                                  verbose=False)
            for n, token in enumerate(llm.generate([1] + [5, 6, 7, 8] * 60, temp=0.0, top_k=1)):
                if n == steps:
                    break
            llm.close()
"""


def python(library, program: str, *, timeout: float = 120, **more) -> subprocess.CompletedProcess:
    env = {
        **os.environ,
        **{k: str(v) for k, v in SPARSE.items()},
        "LIBRARY": str(library),
        "MODEL": str(hostlib.REASONER),
        "OMP_WAIT_POLICY": "passive",
    }
    source = textwrap.dedent(DECODE) + textwrap.dedent(program)
    return subprocess.run(
        [hostlib.python("llama-cpp-python"), "-c", source], env=env, timeout=timeout, text=True, **{"capture_output": True, **more}
    )


def test_child_of_a_process_that_loaded_the_library(library):
    """Go's runtime does not survive fork(): in the child the host works by itself, for as long as it likes."""
    run = python(
        library,
        """
        ctypes.CDLL(LIBRARY.decode()).lim_version_number()
        child = os.fork()
        if child == 0:
            os.environ["REFUSED"] = "1"
            decode(contexts=30)
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
    """,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_child_of_a_process_that_decodes(library):
    run = python(
        library,
        """
        decode()
        child = os.fork()
        if child == 0:
            os.environ["REFUSED"] = "1"
            decode(contexts=3)
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        decode()
    """,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_log_that_nobody_reads(library):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = python(
            library,
            """
            decode()
            print("lives")
        """,
            capture_output=False,
            stdout=subprocess.PIPE,
            stderr=writer,
        )
    finally:
        os.close(writer)
    assert run.returncode == 0 and run.stdout.strip() == "lives", run.returncode


def test_signals_while_it_decodes(library):
    """A handler without SA_ONSTACK, as llama-server's, installed after the library is loaded."""
    run = python(
        library,
        """
        class Action(ctypes.Structure):
            _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int),
                        ("restorer", ctypes.c_void_p)]
        libc = ctypes.CDLL(None, use_errno=True)
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: None)
        count = ctypes.CDLL(None).abs  # a C function that does nothing with a signal's number
        import llama_cpp.llama_cpp as C
        assert C._lib.ggml_backend_load(LIBRARY)
        action = Action(ctypes.cast(count, ctypes.c_void_p).value, (ctypes.c_uint64 * 16)(), 0, None)
        assert libc.sigaction(signal.SIGALRM, ctypes.byref(action), None) == 0
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        decode(contexts=3, steps=150)
        signal.setitimer(signal.ITIMER_REAL, 0)
        after = Action()
        assert libc.sigaction(signal.SIGALRM, None, ctypes.byref(after)) == 0
        assert after.flags & 0x08000000, hex(after.flags)
    """,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_programs_that_children_become_in_mid_decode(library):
    """fork() and exec() between two tokens: of another program, and of a host that loads the library again. Both hosts' texts are the same."""
    run = python(
        library,
        """
        def tokens(between=lambda n: None):
            import llama_cpp, llama_cpp.llama_cpp as C
            assert C._lib.ggml_backend_load(LIBRARY)
            llm = llama_cpp.Llama(os.environ["MODEL"], n_ctx=2048, flash_attn=True, n_threads=1, n_threads_batch=1, verbose=False)
            made = []
            for n, token in enumerate(llm.generate([1] + [5, 6, 7, 8] * 60, temp=0.0, top_k=1)):
                made.append(token)
                between(n)
                if n == 150:
                    break
            llm.close()
            return made

        if len(sys.argv) > 1:  # what a child has become
            print(tokens())
            sys.exit()

        def become(n):
            if n % 10 == 5:
                child = os.fork()
                if child == 0:
                    os.execv("/bin/true", ["true"])
                assert os.waitpid(child, 0)[1] == 0
            if n == 70:
                read, write = os.pipe()
                child = os.fork()
                if child == 0:
                    os.dup2(write, 1)
                    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "host"])
                os.close(write)
                with os.fdopen(read) as f:
                    children.append(f.read().strip())
                assert os.waitpid(child, 0)[1] == 0

        children = []
        alone = tokens()
        assert tokens(become) == alone and children == [str(alone)], (alone, children)
        print("lives")
        """,
    )
    assert run.returncode == 0 and run.stdout.strip() == "lives", run.stderr[-2000:]
    assert run.stderr.count("loaded into ggml") == 2 and "inert" not in run.stderr, run.stderr[-2000:]
