import pathlib
import random
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
