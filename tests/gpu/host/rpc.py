#!/usr/bin/env python3
"""llama.cpp's RPC engine with a server on a GPU: the library in the server, the reasoner's client without it.

    python3 rpc.py OUT.json

Needs what correct.py needs, and of tests/hosts/install.py's llama-server-rpc the two files ggml-rpc-server and libggml-rpc.so, in the folder
RPC_FILES, built from the same source.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
sys.path.insert(0, str(ROOT / "tests" / "hosts" / "drivers"))
import correct  # noqa: E402
import hostlib  # noqa: E402
import server as driver  # noqa: E402

FILES = ("ggml-rpc-server", "libggml-rpc.so")
# A server that a signal ends writes no statistics once it has used a GPU: what a card has counted is waited for.
ENGAGED = re.compile(r"engaged on .*: at most \d+ tokens of up to \d+ attended")


def wait(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"ggml-rpc-server did not come up: {log.read_text()[-2000:]}")


def run(name: str, settings: dict | None, problems, wanted: str, **job) -> dict:
    with tempfile.TemporaryDirectory(prefix="lessismore-rpc-") as tmp:
        folder, port = Path(tmp), driver.free_port()
        env = hostlib.environment("cuda-server", hostlib.library_path() if settings else None, settings or {}, None)
        env |= {"CUDA_VISIBLE_DEVICES": correct.visible()[0], "XDG_CACHE_HOME": tmp, "LD_PRELOAD": "libstdc++.so.6"}
        log = folder / "log"
        with log.open("w") as out:
            command = [hostlib.cuda_libs() / "ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port)]
            served = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            wait(served, port, log)
            arguments = ["--rpc", f"127.0.0.1:{port}", "-ngl", "all", *job.pop("arguments", [])]
            client = {"CUDA_VISIBLE_DEVICES": ""}
            r = hostlib.run("cuda-server", problems=problems, settings=client, flash="on", arguments=arguments, timeout=100, **job)
            exact = [r.tokens.get(i) == p.solution for i, p in enumerate(problems)]
        finally:
            served.terminate()
            served.wait(timeout=20)
        said = [line for line in log.read_text(errors="replace").splitlines() if "lessismore" in line]
        report = {"name": name, "exact": sum(exact), "of": len(exact), "log": said[:20]}
        sparse = any(ENGAGED.search(line) for line in said)
        report["ok"] = (not any(exact) if wanted == "wrong" else all(exact)) and sparse == bool(settings)
        return report


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("--seed", type=int, default=int(time.time()))
    args = ap.parse_args()
    for name in FILES:
        if not (hostlib.cuda_libs() / name).exists():
            shutil.copy2(Path(os.environ["RPC_FILES"]) / name, hostlib.cuda_libs() / name)
    problems = [hostlib.Problem.make(args.seed + i) for i in range(4)]
    results = []
    for name, settings, some, wanted, job in (
        ("the host alone", None, problems[:1], "exact", {}),
        ("by hand", correct.HAND, problems[:2], "exact", {}),
        ("by hand, 4 slots", correct.HAND, problems, "exact", {"slots": 4}),
        ("found by measuring", correct.AUTO, problems[:2], "exact", {}),
        ("wrong layers", correct.WRONG, problems[:1], "wrong", {}),
    ):
        try:
            results.append(run(name, settings, some, wanted, **job))
        except Exception as error:  # noqa: BLE001 (it is what came of the run)
            results.append({"name": name, "ok": False, "error": str(error)[-1500:]})
        print(json.dumps(results[-1]), flush=True)
        args.out.write_text(json.dumps({"seed": args.seed, "runs": results}, indent=1) + "\n")
    sys.exit(not all(r["ok"] for r in results))


if __name__ == "__main__":
    main()
