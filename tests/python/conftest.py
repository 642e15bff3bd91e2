import pathlib
import sys

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bindings" / "python"
sys.path.insert(0, str(PACKAGE))  # the source tree's package, installed or not

# Failing examples are printed; nothing is kept between runs.
hypothesis.settings.register_profile("lessismore", database=None, print_blob=True)
hypothesis.settings.load_profile("lessismore")


@pytest.fixture(scope="session")
def root():
    return ROOT
