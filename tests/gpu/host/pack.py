#!/usr/bin/env python3
"""Brings llama.cpp to a GPU machine without network, and what was built there back.

    python3 pack.py source OUT.tar.xz      here: the source of llama.cpp (7 MB), out of llama-cpp-python's source distribution
    python3 pack.py host OUT_FOLDER        there, after `install.py --source OUT.tar.xz llama-server-cuda`: the host, in parts of 15 MiB
    python3 pack.py unpack FOLDER          there, the next time: the host out of these parts

The host's place is the cache folder of tests/hosts/install.py, which takes it for its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import install  # noqa: E402

PART = 15 << 20
HOST = "llama-server-cuda"
# Of the source, what a CUDA backend and the tools do without.
WITHOUT = [
    "models",
    "docs",
    "media",
    "tests",
    "benches",
    "examples",
    *(f"ggml/src/ggml-{b}" for b in "cann sycl vulkan opencl hexagon metal webgpu openvino et".split()),
]


def source(out: Path) -> None:
    tree = install.cache_dir() / "sdist" / "source" / "vendor" / "llama.cpp"
    if not tree.is_dir():
        raise SystemExit(f"{tree} is not there: run  python3 {ROOT / 'tests/hosts/install.py'} sdist")
    out.parent.mkdir(parents=True, exist_ok=True)
    without = [f"--exclude=./{name}" for name in WITHOUT]
    subprocess.run(["tar", "-C", tree, *without, "-I", "xz -T0 -6", "-cf", out, "."], check=True)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def host(out: Path) -> None:
    if not install.PARTS[HOST].stamp(install.cache_dir()):
        raise SystemExit(f"{HOST} is not installed in {install.cache_dir()}")
    out.mkdir(parents=True, exist_ok=True)
    archive = out / "all"
    subprocess.run(["tar", "-C", install.cache_dir(), "-I", "xz -T0 -6", "-cf", archive, HOST], check=True)
    with archive.open("rb") as whole:
        for i in range(100):
            if not (data := whole.read(PART)):
                break
            (out / f"host.{i:02}").write_bytes(data)
    archive.unlink()
    print(f"{out}: {sum(p.stat().st_size for p in out.glob('host.*')) / 1e6:.1f} MB in {len(list(out.glob('host.*')))} parts")


def unpack(folder: Path) -> None:
    parts = sorted(folder.glob("host.*"))
    if not parts:
        raise SystemExit(f"{folder} has no host.00")
    cache = install.cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    tar = subprocess.Popen(["tar", "-C", cache, "-xJf", "-"], stdin=subprocess.PIPE)
    for part in parts:
        tar.stdin.write(part.read_bytes())
    tar.stdin.close()
    if tar.wait():
        raise SystemExit(f"the parts in {folder} are no archive")
    if not install.PARTS[HOST].stamp(cache):
        raise SystemExit(f"the host in {folder} was built by another recipe or for another machine: build it again")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="See the top of the file.")
    ap.add_argument("what", choices=["source", "host", "unpack"])
    ap.add_argument("where", type=Path)
    args = ap.parse_args()
    {"source": source, "host": host, "unpack": unpack}[args.what](args.where)


if __name__ == "__main__":
    main()
