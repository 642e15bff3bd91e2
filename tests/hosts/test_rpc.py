"""Beyond one machine: llama.cpp's RPC engine, with two rpc-server processes in network namespaces of their own and the model's layers
split between them. The library is loaded in each, and in nothing else.

Each server's backend serves one client after another: one of these tests' is that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hostlib
import numpy as np
import pytest
import to_gguf
from checks import BUDGET, SPARSE, WRONG_LAYERS
from hostlib import Problem

LAYERS = 12  # of the reasoner; the output counts as one more when they are split
PORT = 50052
STEPS = 16
CURRENT = 3  # seconds until a server's statistics are written again


def lacking() -> str:
    """What network namespaces need and this machine has not; "" if it has everything."""
    if os.geteuid() != 0:
        return "root"
    if not shutil.which("ip"):
        return "the command ip"
    name = f"lessismore-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"leave to make network namespaces ({tried.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", name])
    return ""


@dataclass
class Namespace:
    """A network of its own, with a cable to this one."""

    name: str
    address: str

    @classmethod
    def make(cls, number: int) -> Namespace:
        name, net = f"lessismore-{os.getpid()}-{number}", f"10.214.{os.getpid() % 200}"
        here, there = (f"lim{os.getpid() % 100000}{end}{number}" for end in "ht")
        made = cls(name, f"{net}.{4 * number + 2}")
        try:
            for command in (
                f"netns add {name}",
                f"link add {here} type veth peer name {there}",
                f"link set {there} netns {name}",
                f"addr add {net}.{4 * number + 1}/30 dev {here}",
                f"link set {here} up",
                f"-n {name} addr add {made.address}/30 dev {there}",
                f"-n {name} link set {there} up",
            ):
                subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
        except BaseException:
            made.remove()
            raise
        return made

    def remove(self):
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)  # the cable goes with its end


class Servers:
    """Two rpc-servers, and what their libraries say."""

    def __init__(self, networks, folder: Path, library: Path | None, settings: dict):
        self.networks, self.folder, self.processes = networks, folder, []
        program = hostlib.installed("llama-server-rpc") / "bin" / "ggml-rpc-server"
        for i, network in enumerate(networks):
            env = hostlib.environment("llama-server", library, settings, self.stats(i) if library else None)
            env |= {"XDG_CACHE_HOME": str(folder / f"cache-{i}"), "OMP_WAIT_POLICY": "passive"}
            command = ["ip", "netns", "exec", network.name, program, "-H", network.address, "-p", str(PORT), "-t", "1"]
            with (folder / f"log-{i}").open("w") as log:
                self.processes.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        deadline = time.monotonic() + 30
        while not all(f":{PORT}" in self.listens(n) for n in networks):
            if time.monotonic() > deadline or any(p.poll() is not None for p in self.processes):
                self.end()
                raise RuntimeError(self.log(0) + self.log(1))
            time.sleep(0.05)

    @staticmethod
    def listens(network) -> str:
        return subprocess.run(["ip", "netns", "exec", network.name, "cat", "/proc/net/tcp"], capture_output=True, text=True).stdout.replace(
            f":{PORT:04X}", f":{PORT}"
        )

    def stats(self, i: int) -> Path:
        return self.folder / f"stats-{i}.json"

    def log(self, i: int) -> str:
        return (self.folder / f"log-{i}").read_text(errors="replace")

    def counted(self, i: int) -> dict:
        """The statistics of a server, once they are current."""
        time.sleep(CURRENT)
        return json.loads(self.stats(i).read_text())["total"]

    def run(self, problems, *arguments, split="6,7", **job):
        """A client, which has no library: its layers are the servers'."""
        endpoints = ",".join(f"{n.address}:{PORT}" for n in self.networks)
        arguments = ["--rpc", endpoints, "-ngl", "all", "-sm", "layer", "-ts", split, *arguments]
        return hostlib.run("llama-server-rpc", problems=problems, flash="on", arguments=arguments, **job)

    def end(self):
        for p in self.processes:
            p.terminate()
            with suppress(subprocess.TimeoutExpired):
                p.wait(timeout=10)
            p.kill()
            p.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


@pytest.fixture(scope="module")
def networks():
    if lacks := lacking():
        pytest.skip(f"two network namespaces need {lacks}")
    made = []
    try:
        for number in range(2):
            made.append(Namespace.make(number))
        yield made
    finally:
        for network in made:
            network.remove()


@pytest.fixture(scope="module")
def some():
    return [Problem.make(seed, STEPS) for seed in range(1, 5)]


def exact(result, problems):
    assert result.exact(problems) == [True] * len(problems), result.log[-2000:]


def mirrored(folder: Path) -> Path:
    """The reasoner with other weights: with both signs changed, those of queries and of keys, it computes the same."""
    read = to_gguf.read_tensors

    def changed(file):
        out = read(file)
        for name, (shape, raw) in out.items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                out[name] = (shape, (np.frombuffer(raw, np.uint16) ^ 0x8000).tobytes())
        return out

    path = folder / "mirrored.gguf"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(to_gguf, "read_tensors", changed)
        path.write_bytes(to_gguf.convert())
    return path


def rows(problems):
    return sum(len(p.solution) - 1 for p in problems)


def test_without_the_library(networks, some, tmp_path):
    """The hosts alone: without this, a failure below would say nothing."""
    with Servers(networks, tmp_path, None, {}) as servers:
        exact(servers.run(some[:1]), some[:1])


def test_layers_split_between_two_servers(networks, library, some, tmp_path):
    """Each process sees its own layers, chooses among them, and is sparse. Clients come one after another: with another split, other
    types of K/V, and several slots."""
    with Servers(networks, tmp_path, library, SPARSE) as servers:
        exact(servers.run(some[:1]), some[:1])
        before = [servers.counted(0), servers.counted(1)]
        for i, (layers, choose) in enumerate([(6, [2]), (6, [0, 3])]):  # layer 9 is the second one's fourth, and its first one chooses
            assert before[i]["layers"] == layers and before[i]["selection_layers"] == choose, before[i]
            assert before[i]["rows_sparse"] >= 0.99 * rows(some[:1]), before[i]
            assert before[i]["sparse_layer_tokens_attended"] < 0.6 * before[i]["sparse_layer_tokens_visible"]
        assert "this device computes layers 0 to 5 of the model" in servers.log(0)
        assert "this device computes layers 6 to 11 of the model" in servers.log(1)
        clients = [
            {"split": "4,9"},
            {"arguments": ["-ctk", "q8_0", "-ctv", "q8_0"]},
            {"slots": 4, "unified": True},
            {"slots": 4, "unified": False},
        ]
        done = rows(some[:1])
        for client in clients:
            mine = some[:3] if "slots" in client else some[:1]
            exact(servers.run(mine, *client.pop("arguments", []), **client), mine)
            done += rows(mine)
        for i in range(2):
            total = servers.counted(i)
            assert total["rows_sparse"] >= 0.9 * done and total["cell_order"] == 0, total
            assert "inert" not in servers.log(i), servers.log(i)


def test_wrong_layers_fail(networks, library, some, tmp_path):
    """Control: with another selection layer in the second process the same checks must not pass."""
    with Servers(networks, tmp_path, library, {**WRONG_LAYERS, "LESSISMORE_LAYERS": "2,11"}) as servers:
        assert servers.run(some[:2]).exact(some[:2]) == [False, False]


def test_layers_found_by_each_process(networks, library, tmp_path):
    """auto: each process measures its own layers, keeps what it found, and the next process has it from its first step on."""
    problems = [Problem.make(seed, 30) for seed in (1, 2)]
    settings = {"LESSISMORE_BUDGET": BUDGET}
    with Servers(networks, tmp_path, library, settings) as servers:
        exact(servers.run(problems), problems)
        found = [servers.counted(i) for i in range(2)]
        for total in found:
            assert total["layers_from"] == "measured" and total["rows_sparse"] > 0.5 * rows(problems), total
        assert 3 in found[1]["selection_layers"], found[1]  # layer 9
        # The next client's model has the same layers, in the same places of memory, and is another one.
        exact(servers.run(problems[:1], model=str(mirrored(tmp_path))), problems[:1])
        for i in range(2):
            servers.counted(i)
            models = json.loads(servers.stats(i).read_text())["models"]
            assert len({m["model"]["weights"] for m in models}) == 2 and not any("unknown" in m["model"]["weights"] for m in models)
    with Servers(networks, tmp_path, library, settings) as servers:
        exact(servers.run(problems[:1]), problems[:1])
        for i in range(2):
            total = servers.counted(i)
            assert total["layers_from"] == "profile" and total["selection_layers"] == found[i]["selection_layers"], total
            # Sparse from the first step on; what was not measured in a text of this length yet is measured now.
            assert total["rows_full"] <= total["measured_steps"] + 2 and total["measured_steps"] < found[i]["measured_steps"], total
