"""What all Python drivers share: a JSON job on stdin, JSON lines on stdout.

Whatever the host itself prints goes to stderr, so stdout stays parseable.
"""

import json
import os
import sys
import threading
import time

_out, _lock = None, threading.Lock()


def job() -> dict:
    global _out
    _out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return json.loads(sys.stdin.readline())


def emit(**fields) -> None:
    line = json.dumps(fields) + "\n"
    with _lock:
        _out.write(line)
        _out.flush()


def commands():
    """Further JSON lines from stdin, for drivers that are told what to do in turn."""
    for line in sys.stdin:
        if line.strip():
            yield json.loads(line)


def turns(fill, steps, batches=None, threads=None, shorten=None) -> None:
    """One host that holds a long context and decodes in turn with others: it is filled once, then each command is answered.

    fill(progress) returns the context's end, steps(end, count) milliseconds and best tokens, batches(end, rows, prompt) fields.
    Each leaves the context as it was, so that all measure the same length. threads(count) and shorten(tokens), which returns the
    new end, change what is measured.
    """
    start = time.perf_counter()
    end = fill(lambda tokens: emit(event="filling", tokens=tokens))
    steps(end, 2)  # the first decode moves the keys to their positions
    emit(event="filled", tokens=end, seconds=time.perf_counter() - start)
    for command in commands():
        if "rows" in command:
            emit(**batches(end, command["rows"], command["prompt"]))
        elif "threads" in command or "context" in command:
            if "context" in command:
                end = shorten(command["context"])
            if "threads" in command:
                threads(command["threads"])
            emit(tokens=end)
        elif "steps" in command:
            ms, tokens = steps(end, command["steps"])
            emit(ms=ms, tokens=tokens)
        else:
            break
