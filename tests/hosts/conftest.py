"""Fixtures of the host tests. Nothing here skips: what is missing fails, and says how
to get it.

    <cache>/venv/bin/python -m pytest tests/hosts [--long]
"""

from __future__ import annotations

import functools

import hostlib
import pytest
from hostlib import Problem

SEEDS = range(1, 9)


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="also what takes long: ten seeds of test_soak.py, a newer llama.cpp in a newer Debian"
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("long")])
        items[:] = [i for i in items if not i.get_closest_marker("long")]


def pytest_configure(config):
    config.addinivalue_line("markers", "long: only with --long")


@pytest.fixture(scope="session")
def library():
    path = hostlib.library_path()
    if not path.exists():
        pytest.fail(f"no library at {path}: build it first, or point LESSISMORE_LIBRARY at it", pytrace=False)
    return path


@pytest.fixture(scope="session")
def problems():
    """Eight problems of 59 steps: 843 tokens of prompt and 1,182 of solution each."""
    return [Problem.make(seed) for seed in SEEDS]


@pytest.fixture(scope="session")
def short_problems():
    """Problems whose decode begins below a budget of 128 and ends beyond it."""
    return [Problem.make(seed, steps=7) for seed in SEEDS]


@pytest.fixture(scope="session")
def stock():
    """A host without the library: stock(host, *problems' indices) is computed once."""

    @functools.cache
    def run(host, *seeds):
        return hostlib.run(host, problems=[Problem.make(s) for s in seeds])

    return run


@pytest.fixture
def native(library):
    """Runs a scenario in llama-cpp-python with the library."""

    def run(scenario, problems, settings, **job):
        return hostlib.run("llama-cpp-python", library=library, scenario=scenario, problems=problems, settings=settings, **job)

    return run


def pytest_report_header():
    return f"library: {hostlib.library_path()}\nhosts: {hostlib.cache()}"
