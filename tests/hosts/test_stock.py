"""The hosts alone: without these, a failure elsewhere would say nothing."""

import hostlib
import pytest
import task
from checks import HOSTS, solved_all

TEXT = ";qa:7;ef+gh=cd;?qa>zz;"


@pytest.mark.parametrize("host", HOSTS)
def test_solves_without_library(host, stock, problems):
    result = stock(host, 1, 2)
    solved_all(result, problems[:2])
    assert result.stats is None


@pytest.mark.parametrize("host, job", [("node", {}), ("llama-cpp-python", {"scenario": "tokenize"}), ("llama-server", {})])
def test_one_token_per_character(host, job):
    assert hostlib.run(host, text=TEXT, **job).value("tokens") == [task.BOS] + task.encode(TEXT)


@pytest.mark.parametrize("flash", [True, False])
def test_libraries_of_node_without_node(flash, problems):
    """The binding that the demo uses: node-llama-cpp's libraries through ctypes."""
    solved_all(hostlib.run("node-libs", scenario="solve", problems=problems[:1], flash=flash), problems[:1])
