"""What all Python drivers share: a JSON job on stdin, JSON lines on stdout.

Whatever the host itself prints goes to stderr, so stdout stays parseable.
"""

import json
import os
import sys

_out = None


def job() -> dict:
    global _out
    _out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return json.loads(sys.stdin.readline())


def emit(**fields) -> None:
    _out.write(json.dumps(fields) + "\n")
    _out.flush()


def commands():
    """Further JSON lines from stdin, for drivers that are told what to do in turn."""
    for line in sys.stdin:
        if line.strip():
            yield json.loads(line)
