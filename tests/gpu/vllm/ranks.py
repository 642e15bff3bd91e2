#!/usr/bin/env python3
"""vLLM over several GPUs, its own executor: the reasoner, or decode steps of Qwen3-8B's shape.

ranks.py reasoner TP PP [wrong|auto|again] [ray]     16 problems, 6 rows; wrong: layers that cannot do it; auto: measured while serving;
                                    again: what auto kept; ray: vLLM's executor for Ray
ranks.py decode TP [CASES]          milliseconds a step, at the engine's output: FlashAttention's and ours, in one engine
"""

import glob
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

import engine
import numpy as np
import random_model
from bench import arguments
from engine import ROOT, keep, say

DATA = ROOT / "tests" / "data" / "reasoner"
sys.path.insert(0, str(DATA))
import task  # noqa: E402

os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")  # a machine may have no network
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
os.environ.setdefault("VLLM_ALLREDUCE_USE_SYMM_MEM", "0")  # NCCL sums, on both sides
RIGHT, WRONG = [2, 9], [2, 6]
CONTROL = 64  # tokens of each answer that the control gets: its first ones are wrong
CASES = "8x32768,32x32768,64x8192,fitx32768"
GRAPHS = [8, 16, 24, 32, 40, 48, 56, 64]
started = []


def start(model, settings, **more):
    from vllm import LLM

    begin = time.time()
    llm = LLM(**engine.arguments(model, settings, disable_custom_all_reduce=True, **more))
    served = llm.llm_engine
    started.append(served)
    say(f"engine in {time.time() - begin:.1f} s, {served.vllm_config.parallel_config.world_size} ranks")
    return served


def add(served, name, ids, tokens):
    from vllm import SamplingParams

    served.add_request(name, {"prompt_token_ids": ids}, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False))


def cluster(ranks):
    """A Ray of this machine alone."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    import ray

    ray.init(num_gpus=ranks, num_cpus=4, include_dashboard=False, object_store_memory=1 << 28, log_to_driver=True)


def reasoner(tensor, pipeline, kind, executor=None):
    layers = {"wrong": WRONG, "right": RIGHT}.get(kind)
    if executor == "ray":
        cluster(tensor * pipeline)
    stats = os.path.join(tempfile.mkdtemp(), "stats")
    served = start(
        DATA, {"budget": 128, **({"layers": layers} if layers else {}), "stats": stats, "stats_interval": 0.5}, dtype="float16", max_model_len=2048, max_num_seqs=6,
        gpu_memory_utilization=0.1, kv_cache_memory_bytes=1 << 30, tensor_parallel_size=tensor, pipeline_parallel_size=pipeline,
        **({"distributed_executor_backend": executor} if executor else {}),
    )  # fmt: skip
    core = getattr(served.engine_core, "engine_core", None)  # in this process
    say(f"executor {type(getattr(core, 'model_executor', None)).__name__}")
    wanted, given, begin = [], {}, time.time()
    for i in range(16):
        prompt, solution = task.problem(random.Random(960000 + i), task.steps_for(2048))
        tokens = min(len(solution), 2047 - len(prompt))
        wanted.append(task.encode(solution)[: CONTROL if kind == "wrong" else tokens])
        add(served, str(i), [task.BOS] + task.encode(prompt), len(wanted[-1]))
    while served.has_unfinished_requests():
        for out in served.step():
            given[int(out.request_id.split("-")[0])] = list(out.outputs[0].token_ids)
    exact = sum(given[i] == w for i, w in enumerate(wanted))
    say(
        f"reasoner, tensor parallel {tensor}, pipeline parallel {pipeline}, layers {layers or kind}: exact {exact} of 16 in {time.time() - begin:.1f} s"
    )
    reports = [json.loads(pathlib.Path(path).read_text())["vllm"] for path in sorted(glob.glob(f"{stats}.*"))]
    for r in reports:
        library = r["library"]
        say(f"    rank {r['rank']}: {r['reason'] or 'on'}, layers {r['layers']} of {r['taking_part']}, {r['counts']},",
            f"{library['tokens_attended'] / max(library['tokens_visible'], 1):.1%} attended, {library['rows_sparse']} rows sparse, no_set {library['no_set_calls']}")  # fmt: skip
    name = "-".join([f"ranks-tensor{tensor}-pipeline{pipeline}", *([] if kind == "right" else [kind]), *([executor] if executor else [])])
    keep(name, exact=exact, layers=layers or kind, ranks=reports)
    least = {"right": 10000, "wrong": 0}.get(kind, 1000)
    sparse = len(reports) == tensor * pipeline and all(
        r["library"]["rows_sparse"] > least and not r["library"]["no_set_calls"] for r in reports
    )
    source = all(
        (r["library"]["measured_steps"] > 0) == (kind == "auto") and (kind != "again" or r["source"].startswith("profile")) for r in reports
    )
    same = kind != "again" or len({str(r["layers"]) for r in reports}) == 1
    return sparse and source and same and exact == (0 if kind == "wrong" else 16)


def randomize(worker):
    random_model.randomize(worker.model_runner.model)


def attend(worker, on):
    """One attention or the other, in a rank's process."""
    from lessismore.vllm import context

    engine.switch(worker.model_runner, context.of(worker.vllm_config), on)


def decode(tensor, cases):
    served = start(random_model.folder(), {"budget": 2048, "layers": [2, 12]}, tensor_parallel_size=tensor, **arguments(33792, 64, GRAPHS))
    served.collective_rpc(randomize)
    tokens = served.vllm_config.cache_config.num_gpu_blocks * served.vllm_config.cache_config.block_size
    cases = cases.replace("fit", str(min(GRAPHS[-1], tokens // (33792 + 16))))
    found = {}
    for mode in ("on", "off"):
        if mode == "off":
            served.collective_rpc(attend, args=(False,))
        for case in cases.split(","):
            found.setdefault(case, {})[mode] = time_case(served, case, mode)
            keep(f"ranks-decode{tensor}", ranks=tensor, kv_tokens=tokens, cases=found)
    for case, by in found.items():
        on, off = (by[mode]["step_ms"] for mode in ("on", "off"))
        say(
            f"decode, tensor parallel {tensor}, K/V of {tokens} tokens: {case}: FlashAttention {off:.2f} ms, lessismore {on:.2f} ms a step: {off / on:.2f}x"
        )
    return True


def time_case(served, case, mode):
    rows, context = (int(x) for x in case.split("x"))
    rng = np.random.default_rng(3)
    for i in range(rows):
        add(served, f"{case}{mode}n{i}", rng.integers(10, 150000, context).tolist(), 56)
    stamps = []
    while served.has_unfinished_requests():
        out = served.step()
        if out:
            stamps.append((time.perf_counter(), len(out)))
    full = [y[0] - x[0] for x, y in zip(stamps, stamps[1:]) if x[1] == rows and y[1] == rows][6:-2]
    step = statistics.median(full) * 1e3
    say(f"{case}, {mode}: {step:.2f} ms a step (median of {len(full)}), {rows / step * 1e3:.0f} tokens a second")
    return dict(step_ms=round(step, 3), n=len(full))


def main(what, *rest):
    if what == "reasoner":
        good = reasoner(
            int(rest[0]),
            int(rest[1]),
            next((k for k in ("wrong", "auto", "again") if k in rest), "right"),
            "ray" if "ray" in rest else None,
        )
    else:
        good = decode(int(rest[0]), rest[1] if len(rest) > 1 else CASES)
    say(f"ranks {what} {' '.join(rest)}: {'ok' if good else 'FAILED'}")
    sys.stdout.flush()
    for served in started:
        served.engine_core.shutdown()  # its ranks give their memory back before another part begins
    os._exit(0 if good else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
