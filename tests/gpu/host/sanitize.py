#!/usr/bin/env python3
"""compute-sanitizer on a hooked llama.cpp: 200 steps of the reasoner, each of them sparse, under memcheck and racecheck.

    python3 sanitize.py OUT.json [memcheck | racecheck …] [--steps 200]

Needs what correct.py needs, and compute-sanitizer. memcheck looks at all kernels of the process, racecheck at the library's: the host's
own take it minutes. Errors of driver calls are no finding: the library asks the driver about addresses that may be the host's.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import correct  # noqa: E402
import hostlib  # noqa: E402

TOOLS = {"memcheck": [], "racecheck": ["--kernel-name", "kns=lim_"]}
DEPTH = 300  # tokens before the first step; the budget is 128


def run(tool: str, kv: str, steps: int, limit: float) -> dict:
    with tempfile.TemporaryDirectory() as tmp:
        stats = Path(tmp) / "stats.json"
        settings = {**correct.HAND, "CUDA_VISIBLE_DEVICES": correct.visible()[0], "XDG_CACHE_HOME": tmp, "LD_PRELOAD": "libstdc++.so.6"}
        env = hostlib.environment("cuda-server", hostlib.library_path(), settings, stats)
        bench = f"-p 0 -n {steps} -d {DEPTH} -r 1 -fa 1 -ngl 99 -t 1 -ctk {kv} -ctv {kv}".split()
        tool_options = f"--error-exitcode 9 --tool {tool} --report-api-errors no".split()
        program = [hostlib.cuda_libs() / "llama-bench", "-m", hostlib.REASONER]
        command = ["compute-sanitizer", *tool_options, *TOOLS[tool], *program, *bench]
        start = time.perf_counter()
        try:
            child = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, errors="replace", timeout=limit)
        except subprocess.TimeoutExpired as error:
            return {"tool": tool, "kv": kv, "ok": False, "error": f"not done in {limit} s: {(error.stdout or b'')[-800:]!r}"}
        output = child.stdout + child.stderr
        total = json.loads(stats.read_text())["total"] if stats.exists() else {}
        out = {"tool": tool, "kv": kv, "code": child.returncode, "said": re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY.*$", output, re.M)}
        out |= {k: total.get(k) for k in ("steps", "rows_sparse", "replayed_steps")} | {"seconds": round(time.perf_counter() - start, 1)}
        clean = any(re.search(r"SUMMARY: 0 (errors|hazards)", line) for line in out["said"])
        out["ok"] = child.returncode == 0 and clean and total.get("rows_sparse", 0) >= steps - 1
        if not out["ok"]:
            out["log"] = output[-3000:]
        return out


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("tools", nargs="*", metavar="tool")
    ap.add_argument("--steps", type=int, default=200)
    ap.add_argument("--limit", type=float, default=600, help="seconds for each tool")
    ap.add_argument("--kv", default="f16")
    args = ap.parse_args()
    results = []
    for tool in args.tools or TOOLS:
        results.append(run(tool, args.kv, args.steps, args.limit))
        print(json.dumps(results[-1]), flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(not all(r["ok"] for r in results))


if __name__ == "__main__":
    main()
