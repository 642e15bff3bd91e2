#!/usr/bin/env python3
"""The reasoner in an unmodified llama.cpp on a GPU: one solution is right, and one wrong token is seen.

    python3 correct.py OUT.json [PATTERN] [--jobs N]

Needs `llama-server-cuda` in the cache of tests/hosts/install.py (see pack.py) and a library with CUDA (LESSISMORE_LIBRARY, else build/).
Each run is a host from start to end; the JSON has what came of it, the exit status tells whether all is as it has to be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import hostlib  # noqa: E402
from hostlib import Problem  # noqa: E402

HAND = {"LESSISMORE_CUDA": "on", "LESSISMORE_BUDGET": 128, "LESSISMORE_LAYERS": "2,9"}
AUTO = {"LESSISMORE_CUDA": "on", "LESSISMORE_BUDGET": 128}
KEPT = {**AUTO, "XDG_CACHE_HOME": tempfile.mkdtemp(prefix="lessismore-")}
WRONG = {**HAND, "LESSISMORE_LAYERS": "2,6"}

# Name, host, settings (None: the host alone), the job, what is wanted: "exact", "wrong". "sparse": and every decode row
# beyond the budget that the host shows is sparse; "whole": none is; "measured", "profile": where the layers come from; "replayed":
# most steps are replays of a recording.
RUNS = [
    ("alone", "cuda", None, {"scenario": "solve"}, "exact"),
    ("one sequence", "cuda", HAND, {"scenario": "solve"}, "exact sparse replayed"),
    ("wrong layers", "cuda", WRONG, {"scenario": "solve"}, "wrong"),
    ("found by measuring", "cuda", AUTO, {"scenario": "solve"}, "exact"),
    ("measured and kept", "cuda", KEPT, {"scenario": "solve"}, "exact measured"),
    ("by the profile", "cuda", KEPT, {"scenario": "solve"}, "exact profile"),
    ("four in one stream", "cuda", HAND, {"scenario": "together", "times": 4}, "exact sparse replayed"),
    ("four streams", "cuda", HAND, {"scenario": "together", "times": 4, "unified": False}, "exact sparse replayed"),
    ("sixteen in one stream", "cuda", HAND, {"scenario": "together", "times": 16, "context": 16 * 2048}, "exact sparse"),
    ("sixteen streams", "cuda", HAND, {"scenario": "together", "times": 16, "context": 16 * 2048, "unified": False}, "exact sparse"),
    ("four, found by measuring", "cuda", AUTO, {"scenario": "together", "times": 4}, "exact"),
    ("copied in one stream", "cuda", HAND, {"scenario": "fork"}, "copies sparse"),
    ("copied streams", "cuda", HAND, {"scenario": "fork", "unified": False}, "copies sparse"),
    ("taken back", "cuda", HAND, {"scenario": "truncate"}, "exact sparse"),
    ("holes", "cuda", HAND, {"scenario": "holes"}, "exact sparse"),
    ("holes, moved", "cuda", HAND, {"scenario": "holes", "move": 37}, "exact sparse"),
    ("shifted", "cuda", HAND, {"scenario": "shift"}, "exact sparse"),
    ("restored", "cuda", HAND, {"scenario": "restore"}, "exact sparse"),
    ("restored beside", "cuda", HAND, {"scenario": "restore", "beside": True}, "exact sparse"),
    ("restored, holes before", "cuda", HAND, {"scenario": "restore", "beside": True, "ends": True}, "exact sparse"),
    ("restored afresh", "cuda", HAND, {"scenario": "restore", "fresh": True}, "exact"),
    ("several contexts", "cuda", HAND, {"scenario": "threads", "times": 2}, "exact sparse"),
    ("prompts beside", "cuda", HAND, {"scenario": "mixed"}, "exact"),
    ("asked between layers", "cuda", HAND, {"scenario": "solve", "ask": ["kqv_out"]}, "exact"),
    ("q8_0", "cuda", HAND, {"scenario": "solve", "kv": "q8_0"}, "exact sparse replayed"),
    ("bf16", "cuda", HAND, {"scenario": "solve", "kv": "bf16"}, "exact sparse"),
    *((f"{n} of 12 layers on the GPU", "cuda", HAND, {"scenario": "solve", "times": 1, "gpu_layers": n}, "exact") for n in range(1, 13)),
    *(
        (f"{n} of 12 layers on the GPU, found by measuring", "cuda", AUTO, {"scenario": "solve", "gpu_layers": n}, "exact")
        for n in (4, 7, 10)
    ),
    ("where it pays, which it does not here", "cuda", {**AUTO, "LESSISMORE_CUDA": "auto"}, {"scenario": "solve"}, "exact whole"),
    ("server, its defaults", "cuda-server", HAND, {"defaults": True, "times": 2, "arguments": ["-ngl", "99", "-c", "8192"]}, "exact"),
    ("server, 4 slots", "cuda-server", HAND, {"slots": 4, "times": 4, "arguments": ["-ngl", "99"]}, "exact"),
    ("server, 16 slots", "cuda-server", HAND, {"slots": 16, "times": 16, "arguments": ["-ngl", "99"]}, "exact"),
    ("server, 4 streams", "cuda-server", HAND, {"slots": 4, "times": 4, "unified": False, "arguments": ["-ngl", "99"]}, "exact"),
    ("server, 4 slots, found by measuring", "cuda-server", AUTO, {"slots": 4, "times": 4, "arguments": ["-ngl", "99"]}, "exact"),
]


def run(name: str, host: str, settings: dict | None, job: dict, wanted: str, problems: list[Problem]) -> dict:
    job = dict(job)
    some = problems[: job.pop("times", 2)]
    if job.get("scenario") in ("holes", "restore", "fork"):
        some = problems[:2]
    if host == "cuda":
        job.setdefault("gpu_layers", 99)
    start = time.perf_counter()
    try:
        r = hostlib.run(host, library=hostlib.library_path() if settings else None, settings=settings, problems=some, timeout=120, **job)
    except Exception as error:  # noqa: BLE001 (it is what came of the run)
        return {"name": name, "ok": False, "error": str(error)[-1500:]}
    if wanted.startswith("copies"):
        exact = [r.tokens[i] == some[0].solution for i in r.tokens]
    else:
        exact = [r.tokens[i] == some[i].solution for i in r.tokens]
    total = r.stats["total"] if r.stats else {}
    keep = ("steps", "rows", "rows_sparse", "rows_full", "position_order", "cell_order", "prompt_rows", "untold_rows", "replayed_steps",
            "measured_steps", "dense_steps", "audits", "alarms", "selection_layers", "layers_from", "declined", "tokens_visible", "tokens_attended")  # fmt: skip
    out = {
        "name": name,
        "exact": sum(exact),
        "of": len(exact),
        "seconds": round(time.perf_counter() - start, 1),
        **{k: total[k] for k in keep if k in total},
    }
    if total.get("tokens_visible"):
        out["attended"] = round(total["tokens_attended"] / total["tokens_visible"], 4)
    out["ok"] = bool(exact) and (not any(exact) if wanted == "wrong" else all(exact))
    if wanted == "wrong" or "sparse" in wanted:
        out["ok"] &= total.get("rows_sparse", 0) > 0 and total.get("cell_order", 1) == 0
    if "sparse" in wanted and r.rows:
        out["beyond"] = r.visible_beyond(128)
        out["ok"] &= total["rows_sparse"] == out["beyond"]
    elif settings:
        out["ok"] &= (total.get("rows_sparse", 0) > 0) == ("whole" not in wanted)
    if "replayed" in wanted:
        out["ok"] &= total.get("replayed_steps", 0) > total["steps"] / 2
    for source in ("measured", "profile"):
        out["ok"] &= source not in wanted or total.get("layers_from") == source
    if not out["ok"]:
        out["log"] = [line for line in r.log.splitlines() if "lessismore" in line][-12:]
    return out


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("pattern", nargs="?", default="")
    ap.add_argument("--seed", type=int, default=int(time.time()))
    ap.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 3), help="hosts side by side on the one card")
    args = ap.parse_args()
    print(f"seed {args.seed}")
    problems = [Problem.make(args.seed + i) for i in range(16)]
    results = []
    # Runs that leave something for the next one to find stay one after the other.
    wanted = [case for case in RUNS if re.search(args.pattern, case[0])]
    chains = [list(chain) for _, chain in groupby(wanted, lambda case: "kept" if case[2] is KEPT else case[0])]
    with ThreadPoolExecutor(args.jobs) as pool:
        for chain in as_completed([pool.submit(lambda chain: [run(*case, problems) for case in chain], chain) for chain in chains]):
            for result in chain.result():
                results.append(result)
                r = dict(result)
                print("ok    " if r.pop("ok") else "FAILED", json.dumps(r), flush=True)
            args.out.write_text(json.dumps({"seed": args.seed, "runs": results}, indent=1) + "\n")
    bad = [r["name"] for r in results if not r["ok"]]
    print(f"{len(results) - len(bad)} of {len(results)} as they have to be" + (f"; not: {', '.join(bad)}" if bad else ""))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
