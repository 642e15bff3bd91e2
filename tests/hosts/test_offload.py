"""Part of a model's layers on a GPU, in an unmodified llama-server: its scheduler has the GPU compute the CPU's layers of each long prompt, and what lies
where is told on both devices. There is no GPU: the host's CUDA backend is card/cuda.cc, the driver is the stand-in.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import hostlib
import pytest
from checks import SPARSE, WRONG_LAYERS, solved_all
from hostlib import Problem

TOKENS = 300  # of a solution


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Path:
    """A folder with the backend, which llama-server looks for where it is started, and the driver."""
    folder = tmp_path_factory.mktemp("card")
    ggml = hostlib.installed("sdist") / "source" / "vendor" / "llama.cpp" / "ggml"
    here, standin = hostlib.HERE, hostlib.ROOT / "tests" / "gpu" / "standin" / "standin.c"
    shared = ["-O2", "-shared", "-fPIC", "-o"]
    includes = [f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"]
    subprocess.run(
        [os.environ.get("CXX", "c++"), "-std=c++17", *shared, folder / "libggml-cuda.so", here / "card" / "cuda.cc", *includes], check=True
    )
    subprocess.run([os.environ.get("CC", "cc"), *shared, folder / "libcuda.so.1", standin, "-lpthread"], check=True)
    return folder


def run(card: Path, problems: list[Problem], cuda: str, *arguments: str, **settings):
    r = hostlib.run(
        "llama-server",
        library=hostlib.library_path(),
        settings={
            **SPARSE,
            "LESSISMORE_CUDA": cuda,
            "LESSISMORE_LIBCUDA": card / "libcuda.so.1",
            "LIM_STANDIN_ATTEND": "sets",
            **settings,
        },
        problems=problems,
        slots=len(problems),
        flash="on",
        folder=str(card),
        arguments=["-nr", *arguments],
    )
    if "has no CUDA" in r.log or "CUDA0" not in r.log:
        pytest.skip("this build of the library has no CUDA")
    assert "CUDA0: hooked" in r.log, r.log[-3000:]
    return r


@pytest.fixture
def some(problems) -> list[Problem]:
    """The beginnings of two problems that the host solves by itself, as it does not each that there is."""
    which = random.sample(range(len(problems)), 2)
    print(f"problems {which}")
    return [Problem(problems[i].prompt, problems[i].solution[:TOKENS]) for i in which]


def of(result, on_gpu: bool) -> dict:
    """The statistics of the CPU's part, or of the GPU's."""
    (part,) = [c for c in result.contexts() if ("device" in c) == on_gpu]
    return part


# Sparse from the first step behind the prompts on, but for the first pass: the CPU's part knows the positions of the prompts' tokens from the GPU, also
# where that takes no step itself.
@pytest.mark.parametrize("cuda", ["auto", "on"])
def test_prompts_of_the_cpus_layers(card, some, cuda):
    r = run(card, some, cuda, "-ngl", "7")
    solved_all(r, some)
    cpu = of(r, False)
    assert cpu["layers_offloaded"] == [0, 1, 2, 3, 4, 5] and cpu["layers"] == 12, "one set of roles"
    assert cpu["cell_order"] == 0 and cpu["rows_sparse"] > len(some) * (TOKENS - 8), cpu
    assert sum(c["declined"].get("no_cache", 0) for c in r.stats["contexts"]) > 0, "the CPU's layers of the prompts were not the GPU's"
    if cuda == "on":
        gpu = of(r, True)
        assert gpu["cell_order"] == 0 and gpu["unhanded_steps"] <= 2 and gpu["handed_steps"] > 0.9 * gpu["steps"], gpu
    assert "nothing is offloaded in this context" not in r.log


# A wrong layer is seen.
def test_prompts_of_the_cpus_layers_with_wrong_layers(card, some):
    r = run(card, some, "on", "-ngl", "7", **WRONG_LAYERS)
    assert not all(r.exact(some))
    assert of(r, False)["cell_order"] == 0


# All layers are the CPU's, and what computes the prompts takes no step.
def test_no_layers_on_the_gpu(card, some):
    r = run(card, some, "on", "-ngl", "0")
    solved_all(r, some)
    cpu = of(r, False)
    assert cpu["cell_order"] == 0 and cpu["rows_sparse"] > len(some) * (TOKENS - 8), cpu


# Keys that are rotated on one device and kept on another one in every step, either way.
@pytest.mark.parametrize(
    "arguments, on_gpu",
    [
        (["-ngl", "99", "-ot", r"blk\.[0-5]\.attn_[qkv].*=CPU"], True),  # weights of the GPU's first layers are on the CPU
        (["-ngl", "7", "-nkvo"], False),  # keys of the GPU's layers, too
    ],
)
def test_weights_elsewhere_than_keys(card, some, arguments, on_gpu):
    r = run(card, some, "on", *arguments)
    solved_all(r, some)
    part = of(r, on_gpu)
    assert part["cell_order"] == 0 and part["rows_sparse"] > len(some) * (TOKENS - 8), part
