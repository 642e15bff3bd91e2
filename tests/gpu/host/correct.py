#!/usr/bin/env python3
"""The reasoner in an unmodified llama.cpp on a GPU: one solution is right, and one wrong token is seen.

    python3 correct.py OUT.json [PATTERN] [--jobs N] [--left EARLIER.json]

Needs `llama-server-cuda` in the cache of tests/hosts/install.py (see pack.py) and a library with CUDA (LESSISMORE_LIBRARY, else build/).
Each run is a host from start to end; the JSON has what came of it, the exit status tells whether all is as it has to be.
Hosts side by side take turns on the card, a time slice each: with more than a few, or with a sanitizer beside them, each waits most of the
time. Runs on two GPUs are made where CUDA_VISIBLE_DEVICES leaves two; all others take the first one alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import hostlib  # noqa: E402
import make_perturbed  # noqa: E402
from checks import NGRAMS  # noqa: E402
from hostlib import Problem  # noqa: E402

HAND = {"LESSISMORE_CUDA": "on", "LESSISMORE_BUDGET": 128, "LESSISMORE_LAYERS": "2,9"}
AUTO = {"LESSISMORE_CUDA": "on", "LESSISMORE_BUDGET": 128}
KEPT = {**AUTO, "XDG_CACHE_HOME": tempfile.mkdtemp(prefix="lessismore-")}
LAYERS_WRONG = {"LESSISMORE_LAYERS": "2,6"}
WRONG = {**HAND, **LAYERS_WRONG}
SPECULATION = {"LESSISMORE_SPECULATION": "on"}
DRAFTS = {**HAND, **SPECULATION}
ARRIVE = [0, 60, 150, 300]  # tokens of the first request, when others come
PIECES = ["-b", "128", "-ub", "128"]
Q8 = ["-ctk", "q8_0", "-ctv", "q8_0"]
PERTURBED = Path(KEPT["XDG_CACHE_HOME"]) / "perturbed.gguf"
TWO = "two GPUs"  # the names of runs on two begin so


def drafting(model: Path) -> list[str]:
    return ["-md", str(model), "-ngld", "99", "--spec-type", "draft-simple", "--spec-draft-n-max", "5"]


def server(*arguments: str, **job) -> dict:
    return {"flash": "on", **job, "arguments": ["-ngl", "99", *arguments]}


# Name, host, settings (None: the host alone), the job, what is wanted: "exact", "wrong". "sparse": and every decode row
# beyond the budget that the host shows is sparse; "whole": none is; "any": some may be or not; "measured", "profile": where the layers come from; "replayed":
# most steps are replays of a recording; "known": no row's order was unknown; "handed": token sets go from device to device, and only the layers that are given choose.
# "mixed": batches of decode rows and a prompt's were taken apart, every one; "drafts": rows of drafts are
# sparse, each one.
RUNS = [
    ("alone", "cuda", None, {"scenario": "solve"}, "exact"),
    ("one sequence", "cuda", HAND, {"scenario": "solve"}, "exact sparse replayed"),
    ("wrong layers", "cuda", WRONG, {"scenario": "solve"}, "wrong"),
    ("found by measuring", "cuda", AUTO, {"scenario": "solve"}, "exact"),
    ("sixteen, found by measuring", "cuda", AUTO, {"scenario": "solve", "times": 16}, "exact"),
    ("sixteen", "cuda", HAND, {"scenario": "solve", "times": 16}, "exact sparse replayed"),
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
    ("prompts beside", "cuda", HAND, {"scenario": "mixed"}, "exact mixed"),
    ("prompts beside, larger ones", "cuda", HAND, {"scenario": "mixed", "chunk": 300}, "exact mixed"),
    ("prompts beside, found by measuring", "cuda", AUTO, {"scenario": "mixed"}, "exact"),
    ("prompts beside, q8_0", "cuda", HAND, {"scenario": "mixed", "kv": "q8_0"}, "exact mixed"),
    ("prompts beside, wrong layers", "cuda", WRONG, {"scenario": "mixed"}, "wrong"),
    ("prompts beside, where it pays", "cuda", {**HAND, "LESSISMORE_CUDA": "auto"}, {"scenario": "mixed"}, "exact whole"),
    ("asked between layers", "cuda", HAND, {"scenario": "solve", "ask": ["kqv_out"]}, "exact"),
    ("q8_0", "cuda", HAND, {"scenario": "solve", "kv": "q8_0"}, "exact sparse replayed"),
    ("bf16", "cuda", HAND, {"scenario": "solve", "kv": "bf16"}, "exact sparse"),
    (
        "q8_0, sixteen in one stream",
        "cuda",
        HAND,
        {"scenario": "together", "times": 16, "context": 16 * 2048, "kv": "q8_0"},
        "exact sparse",
    ),
    ("q8_0, shifted", "cuda", HAND, {"scenario": "shift", "kv": "q8_0"}, "exact sparse"),
    ("q8_0, holes", "cuda", HAND, {"scenario": "holes", "kv": "q8_0"}, "exact sparse"),
    ("q8_0, restored", "cuda", HAND, {"scenario": "restore", "kv": "q8_0"}, "exact sparse"),
    ("holes, found by measuring", "cuda", AUTO, {"scenario": "holes"}, "exact"),
    ("shifted, found by measuring", "cuda", AUTO, {"scenario": "shift"}, "exact"),
    ("prompts beside, in streams", "cuda", HAND, {"scenario": "mixed", "unified": False}, "exact"),
    *(  # handed over where layer 2 is on the CPU, and the GPU's first layer does not choose itself
        (
            f"{n} of 12 layers on the GPU",
            "cuda",
            HAND,
            {"scenario": "solve", "times": 1, "gpu_layers": n},
            "exact known" + " handed" * (1 < n < 11 and n != 4),
        )
        for n in range(1, 13)
    ),
    (
        "7 of 12 layers on the GPU, 16 in one stream",
        "cuda",
        HAND,
        {"scenario": "together", "times": 16, "context": 16 * 2048, "gpu_layers": 7},
        "exact handed",
    ),
    (
        "7 of 12 layers on the GPU, four streams",
        "cuda",
        HAND,
        {"scenario": "together", "times": 4, "unified": False, "gpu_layers": 7},
        "exact handed",
    ),
    ("7 of 12 layers on the GPU, holes", "cuda", HAND, {"scenario": "holes", "gpu_layers": 7}, "exact handed"),
    ("7 of 12 layers on the GPU, shifted", "cuda", HAND, {"scenario": "shift", "gpu_layers": 7}, "exact handed"),
    ("7 of 12 layers on the GPU, wrong layers", "cuda", WRONG, {"scenario": "solve", "gpu_layers": 7}, "wrong"),
    *(
        (f"{n} of 12 layers on the GPU, found by measuring", "cuda", AUTO, {"scenario": "solve", "gpu_layers": n}, "exact")
        for n in (4, 7, 10)
    ),
    ("where it pays, which it does not here", "cuda", {**AUTO, "LESSISMORE_CUDA": "auto"}, {"scenario": "solve"}, "exact whole"),
    ("server, its defaults", "cuda-server", HAND, {"defaults": True, "times": 2, "arguments": ["-ngl", "99", "-c", "8192"]}, "exact"),
    ("server, 4 slots", "cuda-server", HAND, {"slots": 4, "times": 4, "arguments": ["-ngl", "99"]}, "exact"),
    ("server, 16 slots", "cuda-server", HAND, {"slots": 16, "times": 16, "arguments": ["-ngl", "99"]}, "exact"),
    ("server, 4 streams", "cuda-server", HAND, {"slots": 4, "times": 4, "unified": False, "arguments": ["-ngl", "99"]}, "exact"),
    ("server, 16 streams", "cuda-server", HAND, {"slots": 16, "times": 16, "unified": False, "arguments": ["-ngl", "99"]}, "exact"),
    ("server, slots that come in", "cuda-server", HAND, server(slots=4, times=4, after=ARRIVE), "exact mixed"),
    ("server, streams that come in", "cuda-server", HAND, server(slots=4, times=4, after=ARRIVE, unified=False), "exact"),
    ("server, slots that come in, pieces of 128", "cuda-server", HAND, server(*PIECES, slots=4, times=4, after=ARRIVE), "exact mixed"),
    ("server, slots that come in, q8_0", "cuda-server", HAND, server(*PIECES, *Q8, slots=4, times=4, after=ARRIVE), "exact mixed"),
    ("server, slots that come in, found by measuring", "cuda-server", AUTO, server(slots=4, times=4, after=ARRIVE), "exact"),
    ("server, slots that come in, wrong layers", "cuda-server", WRONG, server(slots=4, times=4, after=ARRIVE), "wrong"),
    ("server, a draft model, itself", "cuda-server", DRAFTS, server(*drafting(hostlib.REASONER)), "exact drafts"),
    ("server, a draft model, perturbed", "cuda-server", DRAFTS, server(*drafting(PERTURBED)), "exact drafts"),
    ("server, a draft model, wrong layers", "cuda-server", {**DRAFTS, **LAYERS_WRONG}, server(*drafting(hostlib.REASONER)), "wrong"),
    ("server, a draft model, drafts left dense", "cuda-server", HAND, server(*drafting(hostlib.REASONER)), "exact any"),
    ("server, a draft model, 4 slots", "cuda-server", DRAFTS, server(*drafting(PERTURBED), slots=4, times=4), "exact drafts"),
    (
        "server, a draft model, 4 streams",
        "cuda-server",
        DRAFTS,
        server(*drafting(PERTURBED), slots=4, times=4, unified=False),
        "exact drafts",
    ),
    ("server, a draft model, found by measuring", "cuda-server", {**AUTO, **SPECULATION}, server(*drafting(PERTURBED)), "exact"),
    (
        "server, a draft model, where it pays",
        "cuda-server",
        {**DRAFTS, "LESSISMORE_CUDA": "auto"},
        server(*drafting(PERTURBED)),
        "exact whole",
    ),
    ("server, drafts from the text, 4 slots", "cuda-server", DRAFTS, server(*NGRAMS, slots=4, times=4), "exact drafts"),
    ("server, drafts from the text, 4 streams", "cuda-server", DRAFTS, server(*NGRAMS, slots=4, times=4, unified=False), "exact drafts"),
    (
        "server, drafts beside prompts",
        "cuda-server",
        DRAFTS,
        server(*NGRAMS, *PIECES, slots=4, times=4, after=ARRIVE),
        "exact mixed drafts",
    ),
    ("server, weights of half the layers on the CPU", "cuda-server", HAND, server("-ot", r"blk\.([6-9]|1[01])\.=CPU"), "exact"),
    ("server, one layer's feed-forward on the CPU", "cuda-server", HAND, server("-ot", r"blk\.5\.ffn_.*=CPU"), "exact"),
    ("server, K/V on the CPU", "cuda-server", HAND, server("-nkvo"), "exact any"),
    (f"{TWO}, by layer", "cuda-server", HAND, server("-sm", "layer"), "exact handed"),
    (f"{TWO}, by layer, 16 problems", "cuda-server", HAND, server("-sm", "layer", slots=16, times=16), "exact handed"),
    (f"{TWO}, by layer, uneven", "cuda-server", HAND, server("-sm", "layer", "-ts", "3,10", slots=4, times=4), "exact handed"),
    (f"{TWO}, by layer, uneven the other way", "cuda-server", HAND, server("-sm", "layer", "-ts", "8,5", slots=4, times=4), "exact handed"),
    (f"{TWO}, by layer, streams", "cuda-server", HAND, server("-sm", "layer", slots=4, times=4, unified=False), "exact handed"),
    (f"{TWO}, by layer, q8_0", "cuda-server", HAND, server("-sm", "layer", "-ctk", "q8_0", "-ctv", "q8_0"), "exact handed"),
    (f"{TWO}, by layer, found by measuring", "cuda-server", AUTO, server("-sm", "layer", slots=4, times=4), "exact"),
    (f"{TWO}, by layer, wrong layers", "cuda-server", WRONG, server("-sm", "layer", "-ts", "3,10"), "wrong"),
    (f"{TWO} and the CPU", "cuda-server", HAND, server("-sm", "layer", "-ngl", "9"), "exact handed"),
    (f"{TWO}, by heads", "cuda-server", HAND, server("-sm", "tensor"), "exact whole"),
    (f"{TWO}, by heads, alone", "cuda-server", None, server("-sm", "tensor"), "exact"),
    (
        f"{TWO}, weights of layers on the other",
        "cuda-server",
        HAND,
        server("-sm", "layer", "-ts", "1,0", "-ot", r"blk\.[6-8]\.=CUDA1"),
        "exact",
    ),
    (f"{TWO}, the second", "cuda-server", HAND, server("-sm", "none", "-mg", "1"), "exact"),
    ("server, 4 slots, found by measuring", "cuda-server", AUTO, {"slots": 4, "times": 4, "arguments": ["-ngl", "99"]}, "exact"),
    ("server, 16 slots, found by measuring", "cuda-server", AUTO, {"slots": 16, "times": 16, "arguments": ["-ngl", "99"]}, "exact"),
]


def visible() -> list[str]:
    """The GPUs that may be used."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return named.split(",")
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(i) for i in range(listed.count("UUID") - listed.count("MIG "))] or ["0"]


def handed(contexts: list[dict]) -> bool:
    """Whether each later device got most of its token sets from the one before, and chose none by itself where it did.

    Until the parts of a model have found each other a device is by itself, with layers numbered from its first: that one chooses, and each that
    is given. These steps are neither handed over nor unhanded.
    """
    later = [c for c in contexts if c["handed_steps"] + c["unhanded_steps"]]
    for c in later:
        taken = c["handed_steps"] + c["unhanded_steps"]
        alone = c["steps"] - taken
        before = {n for other in contexts if other.get("device", "") < c.get("device", "") for n in other["layers_offloaded"]}
        own = len(set(c["selection_layers"] or ()) & (set(c["layers_offloaded"]) - before))
        most = own * taken + c["unhanded_steps"] + (own + 1) * alone
        if taken < 0.8 * c["steps"] or c["handed_steps"] < 0.8 * taken or c["select_calls"] > most:
            return False
    return bool(later) and len({tuple(c["selection_layers"] or ()) for c in contexts}) == 1


def run(name: str, host: str, settings: dict | None, job: dict, wanted: str, problems: list[Problem], patience: float) -> dict:
    job = dict(job)
    times = job.pop("times", 2)
    some = problems[:times]
    if job.get("scenario") == "solve":
        patience *= max(1, times / 2)  # one after the other
    if job.get("scenario") in ("holes", "restore", "fork"):
        some = problems[:2]
    if host == "cuda":
        job.setdefault("gpu_layers", 99)
    start = time.perf_counter()
    gpus = ",".join(visible() if name.startswith(TWO) else visible()[:1])
    library = hostlib.library_path() if settings else None
    try:
        r = hostlib.run(
            host, library=library, settings={**(settings or {}), "CUDA_VISIBLE_DEVICES": gpus}, problems=some, timeout=patience, **job
        )
    except Exception as error:  # noqa: BLE001 (it is what came of the run)
        return {"name": name, "ok": False, "error": str(error)[:400] + " … " + str(error)[-1100:]}
    if wanted.startswith("copies"):
        exact = [r.tokens[i] == some[0].solution for i in r.tokens]
    else:
        exact = [r.tokens[i] == some[i].solution for i in r.tokens]
    total = r.stats["total"] if r.stats else {}
    keep = ("steps", "rows", "rows_sparse", "rows_full", "position_order", "cell_order", "prompt_rows", "untold_rows", "replayed_steps", "draft_rows",
            "mixed_steps", "measured_steps", "dense_steps", "audits", "alarms", "selection_layers", "layers_from", "declined", "tokens_visible", "tokens_attended")  # fmt: skip
    out = {
        "name": name,
        "exact": sum(exact),
        "of": len(exact),
        "seconds": round(time.perf_counter() - start, 1),
        **{k: total[k] for k in keep if k in total},
    }
    if r.stats and len(used := r.contexts()) > 1:
        fields = ("device", "layers", "selection_layers", "rows", "rows_sparse", "replayed_steps", "handed_steps", "unhanded_steps", "select_calls", "layers_offloaded", "declined")  # fmt: skip
        out["contexts"] = [{k: c[k] for k in fields if k in c} for c in used][:8]
        if "handed" in wanted:
            out["ok"] = handed(used)
    if total.get("tokens_visible"):
        out["attended"] = round(total["tokens_attended"] / total["tokens_visible"], 4)
    out["ok"] = out.get("ok", "handed" not in wanted) and bool(exact) and (not any(exact) if wanted == "wrong" else all(exact))
    if wanted == "wrong" or "sparse" in wanted:
        out["ok"] &= total.get("rows_sparse", 0) > 0 and total.get("cell_order", 1) == 0
    if "sparse" in wanted and r.rows:
        out["beyond"] = r.visible_beyond(128)
        out["ok"] &= total["rows_sparse"] == out["beyond"]
    elif settings and "any" not in wanted:
        out["ok"] &= (total.get("rows_sparse", 0) > 0) == ("whole" not in wanted)
    if "replayed" in wanted:
        out["ok"] &= total.get("replayed_steps", 0) > total["steps"] / 2
    if "known" in wanted:
        out["ok"] &= total.get("cell_order", 1) == 0
    if "mixed" in wanted:
        out["ok"] &= total.get("mixed_steps", 0) > 0 and "mixed" not in total["declined"] and "unknown_rows" not in total["declined"]
    if "drafts" in wanted:
        model = next((c for c in r.contexts() if c["draft_rows"] > 0), None)
        out["ok"] &= (
            bool(model)
            and "draft" not in model["declined"]
            and model["cell_order"] == 0
            and model["rows_sparse"] > model["draft_rows"] // 2
        )
        out["model"] = model and {
            k: model[k] for k in ("rows", "rows_sparse", "rows_full", "draft_rows", "mixed_steps", "prompt_rows", "declined")
        }
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
    ap.add_argument("--left", type=Path, help="an earlier OUT.json: runs that were as they have to be there are left out")
    ap.add_argument("--patience", type=float, default=600, help="seconds for a run; of more than two problems in turn, for each two")
    args = ap.parse_args()
    print(f"seed {args.seed}")
    problems = [Problem.make(args.seed + i) for i in range(16)]
    results = []
    # Runs that leave something for the next one to find stay one after the other.
    wanted = [case for case in RUNS if re.search(args.pattern, case[0]) and (len(visible()) > 1 or not case[0].startswith(TWO))]
    if any(str(PERTURBED) in case[3].get("arguments", []) for case in wanted):
        make_perturbed.make(PERTURBED)
    if args.left:
        done = {r["name"] for r in json.loads(args.left.read_text())["runs"] if r["ok"]}
        whole = {case[0] for case in wanted if case[2] is KEPT} <= done  # these go together
        wanted = [case for case in wanted if case[0] not in done or (case[2] is KEPT and not whole)]
    chains = [list(chain) for _, chain in groupby(wanted, lambda case: "kept" if case[2] is KEPT else case[0])]
    with ThreadPoolExecutor(args.jobs) as pool:
        for chain in as_completed(
            [pool.submit(lambda chain: [run(*case, problems, args.patience) for case in chain], chain) for chain in chains]
        ):
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
