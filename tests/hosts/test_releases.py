"""llama.cpp of other months than this one's, as packages carry it, and hosts that were tampered with: engaged by proof, or inert with one line.

CI runs the newest releases (the other files) and an old one; `--long` all of them. llama-cpp-python is built from source, so its older
releases are not among them; node-llama-cpp and xllamacpp carry the same llama.cpp.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import hostlib
import install
import pytest
from checks import SPARSE, inert, log_lines, solved_all, sparse_only

SERVED = [p.name for p in install.OLD if p.name != "node-3.10.0"]
TOO_OLD = {"node-3.10.0": "this host's ggml has no operation SET_ROWS"}  # it came in July 2025


def provide(host: str) -> None:
    if not install.PARTS[host].stamp(hostlib.cache()):
        subprocess.run([sys.executable, install.__file__, host], check=True)


def job(host: str) -> dict:
    return {"flash": True} if hostlib.kind(host) == "node" else {}  # a default of newer releases


@pytest.mark.parametrize("host", [install.ONE_OLD, *(pytest.param(h, marks=pytest.mark.long) for h in SERVED if h != install.ONE_OLD)])
def test_release_is_served(host, library, problems):
    provide(host)
    result = hostlib.run(host, library=library, settings=SPARSE, problems=problems[:1], **job(host))
    solved_all(result, problems[:1])
    sparse_only(result)
    said = log_lines(result)
    assert sum("loaded into ggml" in line for line in said) == 1, said


@pytest.mark.long
@pytest.mark.parametrize("host", TOO_OLD)
def test_release_is_left_alone(host, library, problems):
    provide(host)
    result = hostlib.run(host, library=library, settings=SPARSE, problems=problems[:1], **job(host))
    solved_all(result, problems[:1])
    inert(result)
    assert [line.split("lessismore: ")[1] for line in log_lines(result)] == [f"inert: {TOO_OLD[host]}"]


def exchange(data: bytes, a: bytes, b: bytes) -> bytes:
    """Two names of the host's tables, of one length, in each other's place: as if they had been renumbered."""
    assert len(a) == len(b) and data.count(b"\0" + a + b"\0") and data.count(b"\0" + b + b"\0")
    for one, other in ((a, b"\1" * len(a)), (b, a), (b"\1" * len(a), b)):
        data = data.replace(b"\0" + one + b"\0", b"\0" + other + b"\0")
    return data


# What is exchanged in the host's libggml-base, and what the library says.
DOCTORED = {
    "writes are numbered otherwise": (b"SET_ROWS", b"GET_ROWS", "this host's tensors are laid out in an unknown way: op"),
    "custom nodes are numbered otherwise": (b"CUSTOM", b"REPEAT", "this host's tensors are laid out in an unknown way: op"),
    "attention is numbered otherwise": (b"FLASH_ATTN_EXT", b"FLASH_ATTN_OLD", "this host's ggml has no operation FLASH_ATTN_EXT"),
    "types are numbered otherwise": (b"q8_0", b"q8_1", "this host numbers the element type q8_0 otherwise"),
}


@pytest.mark.parametrize("what", DOCTORED)
def test_tampered_host_is_left_alone(what, library, problems, tmp_path, monkeypatch):
    a, b, says = DOCTORED[what]
    root = shutil.copytree(hostlib.installed("node"), tmp_path / "node", symlinks=True)
    base = root / "libs" / "libggml-base.so"
    data = base.read_bytes()
    if b"\0" + b + b"\0" in data:
        base.write_bytes(exchange(data, a, b))
    else:
        base.write_bytes(data.replace(b"\0" + a + b"\0", b"\0" + b + b"\0"))
    assert base.read_bytes() != data
    monkeypatch.setattr(hostlib, "installed", lambda part: root)
    result = hostlib.run("node", library=library, settings=SPARSE, problems=problems[:1], lengths=[100])
    assert result.tokens[0] == problems[0].solution[:100]
    inert(result)
    said = [line for line in log_lines(result) if "context freed" not in line]
    assert len(said) == 1 and f"lessismore: inert: {says}" in said[0], said
