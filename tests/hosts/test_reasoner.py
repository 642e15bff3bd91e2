"""The GGUF file that is made from the reasoner's safetensors."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import gguf
import hostlib
import numpy as np
import pytest
import to_gguf

# Of the file that this project's figures were measured with.
SHA256 = "0fc3d9f681babf20b886c99261e01261df2e0eded914c18ef4e164b8fdd15816"


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(to_gguf, "OUTPUT", tmp_path / "new" / "reasoner.gguf")
    return to_gguf.OUTPUT


def test_the_file_is_the_one_that_was_measured():
    assert hashlib.sha256(hostlib.REASONER.read_bytes()).hexdigest() == SHA256


def test_a_reader_of_others_finds_every_weight():
    weights = to_gguf.read_tensors(to_gguf.FOLDER / "model.safetensors")
    ours = dict(to_gguf.names(12))
    found = gguf.GGUFReader(hostlib.REASONER).tensors
    assert sorted(t.name for t in found) == sorted(ours) and sorted(ours.values()) == sorted(weights)
    for tensor in found:
        shape, raw = weights[ours[tensor.name]]
        assert np.array_equal(tensor.data, np.frombuffer(raw, np.float16).reshape(shape)), tensor.name


def test_made_once_and_again_when_a_source_is_newer(output):
    with ThreadPoolExecutor() as pool:
        assert {future.result() for future in [pool.submit(to_gguf.path) for _ in range(4)]} == {output}
    assert list(output.parent.iterdir()) == [output] and output.read_bytes() == hostlib.REASONER.read_bytes()
    before = output.stat().st_ino
    assert to_gguf.path().stat().st_ino == before
    os.utime(output, (1, 1))
    assert to_gguf.path().stat().st_ino != before


def test_nothing_is_left_of_a_file_that_cannot_be_made(output, monkeypatch):
    def fails():
        raise ValueError("no tensors")

    monkeypatch.setattr(to_gguf, "convert", fails)
    with pytest.raises(ValueError, match="no tensors"):
        to_gguf.path()
    assert list(output.parent.iterdir()) == []
