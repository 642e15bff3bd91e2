#!/usr/bin/env python3
"""Other models on a GPU, with random weights: what is sparse there gives what the CPU engine gives, what is not is refused by name.

    python3 shapes.py OUT.json [PATTERN] [--jobs N]

Needs what correct.py needs, and the package gguf. Each case decodes one text on the GPU and on the CPU, without the library and twice with
it: once each row attends to a token set that was chosen, once to the newest tokens alone (LESSISMORE_RECENCY=1), where nothing is chosen
and nothing but rounding may differ. Errors are medians of differences of logits, in units of the logits' spread.

The newest tokens alone have to be as close as the two hosts alone are, give or take what averaging over fewer values does to rounding;
chosen sets follow the logits, which rounding moves as well, and have to be much closer to each other than sparse is to dense.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import correct  # noqa: E402
import hostlib  # noqa: E402
import make_mixed  # noqa: E402
import make_model  # noqa: E402
import numpy as np  # noqa: E402

PROMPT, TOKENS, BUDGET = 300, 420, 64
ROUNDING = 0.01  # of f16
FEWER = (PROMPT + TOKENS) / 2 / BUDGET  # times fewer values that a row's rounding is averaged over
MARGIN = 1.5 * FEWER**0.5  # of the newest tokens alone
APART = 3  # times as far from dense attention …
BITS4 = 1.2  # … with q4_0


@dataclass(frozen=True)
class Case:
    name: str
    model: object  # writes the model to a path
    layers: str  # that select, of those that can take part
    kv: str = "f16"
    refused: str = ""  # what the log says; "": it is sparse
    says: str = ""  # what the log says besides
    reference: bool = True  # the CPU engine takes it, too, layer by layer
    apart: float = APART


def shaped(preset: str = "odd", **change):
    return partial(make_model.make, shape=replace(make_model.PRESETS[preset], **change))


def attention(head_dim: int, heads: int = 8, kv_heads: int = 2):
    return shaped(layers=5, heads=heads, kv_heads=kv_heads, head_dim=head_dim, width=256, ff=352, vocab=333)


CASES = [
    *(Case(f"head_dim {dim}, {kv}", attention(dim), "1,3", kv) for dim in (80, 96, 112) for kv in ("f16", "bf16")),
    *(Case(f"head_dim {dim}, {kv}", attention(dim), "1,3", kv) for dim in (64, 128, 256) for kv in ("f16", "bf16", "q8_0")),
    Case("head_dim 96, q8_0", attention(96), "1,3", "q8_0"),
    # Each host rounds to 4 bits by itself: alone they are a third as far apart as sparse is from dense.
    *(Case(f"head_dim {dim}, q4_0", attention(dim), "1,3", "q4_0", apart=BITS4) for dim in (64, 96, 128, 256)),
    # No kernel of the host's GPU backend takes it: the scheduler copies the cache to the CPU at every step.
    Case("head_dim 192", attention(192), "1,3", refused="on another device than its K/V cache"),
    *(Case(f"{heads} heads over {kv}", attention(128, heads, kv), "1,3") for heads, kv in ((16, 1), (4, 4), (10, 2), (32, 4))),
    Case("4 heads over 4, head_dim 80", attention(80, 4, 4), "1,3"),
    Case("16 heads over 1, q4_0", attention(128, 16, 1), "1,3", "q4_0", apart=BITS4),
    Case("ALiBi", shaped("bloom", head_dim=64, width=512), "1", refused="ALiBi"),
    # With a head_dim of 64 and a soft-cap the host's own kernel for short rows traps: it has 128 and 256 alone, as Gemma 2 models do.
    Case("soft-cap, sliding windows (gemma2)", shaped("gemma2", head_dim=256), "1"),
    Case("soft-cap, q8_0", shaped("gemma2", head_dim=128), "1", "q8_0"),
    Case("sliding windows (gemma3)", shaped("gemma3"), "0"),
    Case("sinks, experts, sliding windows (gpt-oss)", shaped("gpt-oss"), "1"),
    # Rounding to 8 bits sends some tokens to other experts: the hosts alone are further apart than in any other case.
    Case("sinks, q8_0", shaped("gpt-oss"), "1", "q8_0", apart=1.2),
    Case("layers without attention (lfm2)", make_mixed.lfm2, "0,2"),
    # The CPU engine takes the layers of other heads as well, so it is no reference.
    Case("heads that differ by layer (deci)", make_mixed.deci, "0,2", says="other heads than the first layer's", reference=False),
    Case("head_dim 512 and 256 (gemma4)", make_mixed.gemma4, "0", refused="head_dim 512"),
]


def agree(case: Case, out: dict, decoded, apart, ours, alone, rows: int) -> bool:
    """Whether GPU and CPU agree; notes by how much."""
    newest = {"LESSISMORE_RECENCY": 1}
    theirs, on_cpu = decoded(False, True)
    cpu_alone, _ = decoded(False, False)
    ours_newest, theirs_newest = (decoded(gpu, True, **newest)[0] for gpu in (True, False))
    out |= {
        "hosts_apart": apart(cpu_alone, alone),
        "newest_apart": apart(theirs_newest, ours_newest),
        "newest_to_dense": apart(alone, ours_newest),
        "to_cpu": apart(theirs, ours),
        "cpu_rows_sparse": on_cpu.stats["total"]["rows_sparse"],
        "best_agree": round(float((ours.argmax(1) == theirs.argmax(1)).mean()), 3),
    }
    return bool(
        out["cpu_rows_sparse"] >= rows
        and out["newest_apart"] <= max(ROUNDING, MARGIN * out["hosts_apart"])
        and out["newest_to_dense"] >= case.apart * out["newest_apart"]
        and out["to_dense"] >= case.apart * out["to_cpu"]
    )


def run(case: Case, folder: Path) -> dict:
    start = time.perf_counter()
    path = folder / f"{re.sub('[^a-z0-9]+', '-', case.name)}.gguf"
    rng = random.Random(3)
    tokens = [rng.randrange(3, 300) for _ in range(TOKENS)]
    settings = {"LESSISMORE_CUDA": "on", "LESSISMORE_BUDGET": BUDGET, "LESSISMORE_LAYERS": case.layers}
    job = {"scenario": "forced", "tokens": tokens, "prompt": PROMPT, "kv": case.kv, "timeout": 100}

    def decoded(gpu: bool, library: bool, **more):
        out = folder / f"{path.stem}-{gpu}-{library}-{len(more)}.npy"
        where = {"CUDA_VISIBLE_DEVICES": correct.visible()[0] if gpu else ""}
        r = hostlib.run(
            "cuda", library=hostlib.library_path() if library else None, settings={**settings, **more, **where} if library else where,
            model=str(path), output=str(out), gpu_layers=99 * gpu, **job,
        )  # fmt: skip
        return np.load(out), r

    def apart(a, b):
        return round(float(np.median(np.abs(a - b)) / a.std()), 5)

    out = {"name": case.name, "ok": False}
    try:
        case.model(path)
        ours, r = decoded(True, True)
        alone, _ = decoded(True, False)
        total = r.stats["total"]
        out |= {k: total[k] for k in ("rows", "rows_sparse", "replayed_steps", "cell_order", "declined", "selection_layers") if k in total}
        out["log"] = [line for line in r.log.splitlines() if "lessismore" in line][-6:]
        out["to_dense"] = apart(alone, ours)
        if case.refused:
            out["ok"] = total["rows_sparse"] == 0 and out["to_dense"] == 0 and case.refused in r.log
        else:
            out["ok"] = np.isfinite(ours).all() and len(r.rows) - 1 <= total["rows_sparse"] == total["rows"] and case.says in r.log
        if not case.refused and case.reference:
            out["ok"] &= agree(case, out, decoded, apart, ours, alone, len(r.rows) - 1)
    except Exception as error:  # noqa: BLE001 (it is what came of the case)
        out["error"] = str(error)[:600] + " … " + str(error)[-600:]
    return {**out, "ok": bool(out["ok"]), "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("pattern", nargs="?", default="")
    ap.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 3))
    args = ap.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="lessismore-shapes-") as folder, ThreadPoolExecutor(args.jobs) as pool:
        for r in pool.map(lambda case: run(case, Path(folder)), [c for c in CASES if re.search(args.pattern, c.name)]):
            results.append(r)
            print("ok    " if r["ok"] else "FAILED", json.dumps({k: v for k, v in r.items() if k != "log" or not r["ok"]}), flush=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    bad = [r["name"] for r in results if not r["ok"]]
    print(f"{len(results) - len(bad)} of {len(results)} as they have to be" + (f"; not: {', '.join(bad)}" if bad else ""))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
