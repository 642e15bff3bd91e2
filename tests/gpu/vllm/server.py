#!/usr/bin/env python3
"""`vllm serve` as a person starts it, with the reasoner in it: problems over HTTP, /metrics, the statistics file.

server.py FOLDER [ENGINES]      logs go there; ENGINES: data parallel, a GPU for each
"""

import concurrent.futures
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import engine  # noqa: F401  the environment and entry point that a server would have
from engine import ROOT, say

DATA = ROOT / "tests" / "data" / "reasoner"
sys.path.insert(0, str(DATA))
import task  # noqa: E402

PROBLEMS = 8
SETTINGS = {"budget": 128, "layers": [2, 9], "stats_interval": 0.5}
START = int(os.environ.get("LIMIT_EACH", 240)) - 60  # seconds, at most


def ask(url, body=None):
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def solve(base, i):
    prompt, solution = task.problem(random.Random(970000 + i), task.steps_for(2048))
    wanted = task.encode(solution)
    body = dict(model="reasoner", prompt=[task.BOS] + task.encode(prompt), max_tokens=len(wanted), temperature=0, ignore_eos=True,
                return_token_ids=True, detokenize=False)  # fmt: skip
    answer = json.loads(ask(f"{base}/v1/completions", body))
    return answer["choices"][0]["token_ids"] == wanted


def metrics(text):
    found = {}
    for name, labels, value in re.findall(r"^(lessismore_\w+)\{(.*?)\} (\S+)$", text, re.MULTILINE):
        found[(name, *sorted(re.findall(r'(\w+)="(.*?)"', labels)))] = float(value)
    return found


def main(folder, engines=1):
    stats, problems = folder / "server-stats.json", PROBLEMS * engines
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(DATA), "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", "reasoner", "--skip-tokenizer-init", "--attention-backend", "CUSTOM", "--dtype", "float16", "--max-model-len", "2048",
        "--max-num-seqs", "8", "--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(1 << 30),
        *(["--data-parallel-size", str(engines)] if engines > 1 else []),  # and as many processes that answer
        "--additional-config", json.dumps({"lessismore": {**SETTINGS, "stats": str(stats)}}),
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(folder / "server-output.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(START):
            try:
                ask(f"{base}/health")
                break
            except OSError:
                if server.poll() is not None:
                    break
                time.sleep(1)
        output = (folder / "server-output.log").read_text()
        if server.poll() is not None or "lessismore" not in output:
            say("server: did not start:", output[-3000:])
            return False
        say("server:", next(line for line in output.splitlines() if "layers take part" in line))
        ask(f"{base}/metrics")  # asks for what is counted: the next reading is for it
        with concurrent.futures.ThreadPoolExecutor(problems) as pool:
            solved = list(pool.map(lambda i: solve(base, i), range(problems)))
        time.sleep(1)
        with concurrent.futures.ThreadPoolExecutor(2 * engines) as pool:  # steps, so that the counts are read
            solved += list(pool.map(lambda i: solve(base, i), range(problems, problems + 2 * engines)))
        page = ask(f"{base}/metrics")
        found = metrics(page)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
    for line in page.splitlines():
        if line.startswith("lessismore_"):
            say("   ", line)
    saved = [json.loads(pathlib.Path(f"{stats}.{rank}" if rank else stats).read_text())["vllm"] for rank in range(engines)]
    checks = {"answers": all(solved), "vLLM's own metrics": "vllm:num_requests_running" in page}
    for rank in range(engines):
        checks.update({f"{what}, rank {rank}": right for what, right in judged(found, rank, saved[rank]).items()})
    bad = [what for what, good in checks.items() if not good]
    say(f"server, {engines} engines: {sum(solved)} of {len(solved)} solved; {'FAILED: ' + ', '.join(bad) if bad else 'ok'}")
    return not bad


def judged(found, rank, saved):
    """A rank's metrics, and its statistics file."""

    def of(name, **labels):
        return found.get((name, *sorted({"rank": str(rank), **labels}.items())), 0)

    return {
        "active": of("lessismore_active", reason="") == 1,
        "sparse rows": of("lessismore_rows_total", kind="sparse") > 1000,
        "tokens": 0 < of("lessismore_layer_tokens_total", kind="attended") < 0.6 * of("lessismore_layer_tokens_total", kind="visible"),
        "steps": of("lessismore_steps_total", kind="decode") > 1000 and of("lessismore_steps_total", kind="split") + of("lessismore_steps_total", kind="left") > 0,
        "alarms": of("lessismore_audits_total", kind="alarm") == 0 and of("lessismore_layer_calls_total", kind="no_set") == 0,
        "statistics file": saved["rank"] == rank and saved["counts"]["decode_steps"] > 1000 and saved["library"]["rows_sparse"] > 1000,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(0 if main(pathlib.Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:3])) else 1)
