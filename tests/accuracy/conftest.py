import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bindings" / "python"))  # the source tree's package, installed or not

FOLDER = ROOT / "tests" / "data" / "reasoner"


@pytest.fixture
def rng(request):
    """Fresh numbers in each run; the seed is printed when a test fails."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def task():
    from lessismore.compare import table

    return table.Task(FOLDER, None)


def compare(*arguments, code=0):
    """What `lessismore compare` writes, to both of its outputs."""
    path = os.pathsep.join(filter(None, [str(ROOT / "bindings" / "python"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "lessismore.cli", "compare", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr
