"""Where and when the library is loaded: before the host's backends, again, and into a llama.cpp newer than this machine."""

import json
import os
import shutil
import subprocess
import sys

import hostlib
import install
import pytest
from checks import SPARSE, log_lines, solved_all, sparse_only
from hostlib import Problem


@pytest.mark.parametrize("early, loads", [(1, 1), (3, 2), (0, 3)])
def test_loads_in_any_order(early, loads, library, problems):
    """Loaded before the host's CPU backend, and with it, and again: engaged, and said once."""
    result = hostlib.run(
        "node-libs", library=library, settings=SPARSE, scenario="solve", problems=problems[:1], lengths=[60], early=early, loads=loads
    )
    assert result.tokens[0] == problems[0].solution[:60]
    sparse_only(result)
    said = [line for line in log_lines(result) if line.startswith("lessismore: ")]
    assert sum("loaded into" in line for line in said) == 1, said
    assert sum("waiting: this host has no CPU device" in line for line in said) == (early > 0), said
    assert not any("inert" in line for line in said), said


@pytest.mark.long
def test_newer_host_in_a_newer_debian(library):
    """ggml 0.27 in a folder that nothing is mounted in, not even /proc."""
    if not install.PARTS["debian"].stamp(hostlib.cache()):
        subprocess.run([sys.executable, install.__file__, "debian"], check=True)
    root = hostlib.installed("debian") / "root"
    trial = root / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    shutil.copytree(hostlib.DRIVERS, trial / "drivers")
    for file in (library, hostlib.REASONER):
        shutil.copy(file, trial)
    some = [Problem.make(seed) for seed in range(1, 5)]
    job = {
        "host": "/host/llama_cpp_py_sync",
        "library": f"/trial/{library.name}",
        "model": f"/trial/{hostlib.REASONER.name}",
        "scenario": "solve",
        "prompts": [p.prompt for p in some],
        "lengths": [len(p.solution) for p in some],
    }
    env = {
        "PATH": os.environ["PATH"],
        "LESSISMORE_STATS": "/trial/stats.json",
        "OMP_WAIT_POLICY": "passive",
        **{k: str(v) for k, v in SPARSE.items()},
    }
    run = subprocess.run(
        ["chroot", root, "python3", "/trial/drivers/native.py"],
        input=json.dumps(job) + "\n",
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    result = hostlib.Result(lines, run.stderr, json.loads((trial / "stats.json").read_text()))
    solved_all(result, some)
    sparse_only(result)
    assert "loaded into ggml 0.27.0, API 3" in run.stderr
