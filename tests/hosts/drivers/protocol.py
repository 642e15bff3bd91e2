"""What all Python drivers share: a JSON job on stdin, JSON lines on stdout.

Whatever the host itself prints goes to stderr, so stdout stays parseable.
"""

import json
import os
import sys
import threading

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
