#!/usr/bin/env python3
"""Long chains of thought (tests/data/chains) in vLLM: exact answers, the first wrong step and the tokens, by attention and budget.

    chains.py MODEL CASE [COUNT [SEED]]     MODEL: merge.py's folder; CASE: full, or BUDGET, BUDGET-quality, BUDGET-LAYER,LAYER…
    chains.py compare                       the cases' figures side by side, from the files that they left in RESULTS

Each case is an engine of its own; all draw the same problems from the seed. Selection layers are found from nothing where none are named.
"""

import json
import os
import pathlib
import random
import statistics
import sys
import time

from engine import ROOT, Served, keep, say, short

sys.path.insert(0, str(ROOT / "tests" / "data" / "chains"))
import problems  # noqa: E402

LENGTHS = 4096, 7168  # tokens of a problem, question and chain
END = 2  # <|im_end|>
ROWS = int(os.environ.get("ROWS", 128))
STORE = int(os.environ.get("STORE_GIB", 14))  # of K/V
DRAWS = 2000  # of a bootstrap


def drawn(tokenizer, length, count, seed):
    """Problems with their prompts' tokens and how many their chains have; as many of each family."""
    rng, found = random.Random(f"{seed} {length}"), []
    families = list(problems.FAMILIES)
    while len(found) < count:
        problem = problems.draw(rng, length - 40, families[len(found) % len(families)])
        prompt = f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        tokens = len(tokenizer.encode(problem.chain, add_special_tokens=False).ids) + 1
        if len(ids) + tokens < 8000:
            found.append((problem, ids, tokens))
    return found


def settings_of(case):
    """What a case switches on; None: vLLM alone."""
    if case == "full":
        return None
    budget, _, how = case.partition("-")
    own = {"budget": int(budget), "profile": "off"}
    if how.startswith("quality"):
        own["quality"] = float(how.removeprefix("quality") or 0.02)
    elif how:
        own["layers"] = [int(n) for n in how.split(",")]
    return own


def run(model, case, count, seed):
    from tokenizers import Tokenizer
    from vllm import SamplingParams

    tokenizer = Tokenizer.from_file(str(pathlib.Path(model) / "tokenizer.json"))
    served = Served(model, settings_of(case), dtype="float16", max_model_len=8192, max_num_seqs=ROWS, max_num_batched_tokens=16384,
                    gpu_memory_utilization=0.1, kv_cache_memory_bytes=STORE << 30, enable_prefix_caching=False)  # fmt: skip
    found, before = {}, {}
    for length in LENGTHS:
        wanted, given, begin = drawn(tokenizer, length, count, seed), {}, time.time()
        for i, (_, ids, tokens) in enumerate(wanted):
            # A chain that went astray may go on for a while: that is counted.
            most = min(tokens + tokens // 4, 8191 - len(ids))
            params = SamplingParams(temperature=0, max_tokens=most, stop_token_ids=[END], detokenize=False)
            served.engine.add_request(f"{length}_{i}", {"prompt_token_ids": ids}, params)
        while served.engine.has_unfinished_requests():
            for out in served.engine.step():
                if out.finished:
                    given[int(out.request_id.split("-")[0].split("_")[1])] = list(out.outputs[0].token_ids)
        rows = []
        for i, (problem, ids, tokens) in enumerate(wanted):
            said = given[i][:-1] if given[i][-1] == END else given[i]
            wrong = problems.first_wrong(problem, tokenizer.decode(said, skip_special_tokens=False))
            answer = tokenizer.decode(said, skip_special_tokens=False).rsplit("\n", 1)[-1] == problem.answer
            rows.append(dict(family=problem.family, first_wrong=wrong, answer=answer, tokens=len(given[i]), wanted=tokens, prompt=len(ids)))
        seconds = time.time() - begin
        report = served.report()
        library = {k: v for k, v in ((report and report["library"]) or {}).items() if isinstance(v, int)}
        counted = {k: v - before.get(k, 0) for k, v in library.items()}
        before = library
        share = counted["tokens_attended"] / counted["tokens_visible"] if counted else 1.0
        found[length] = dict(rows=rows, seconds=seconds, attended=share, library=counted)
        exact = sum(r["first_wrong"] is None for r in rows)
        tokens = sum(r["tokens"] for r in rows)
        say(f"chains {case}, {length}: exact {exact} of {len(rows)}, answers {sum(r['answer'] for r in rows)}, {tokens / len(rows):.0f} tokens a problem,",
            f"{share:.1%} attended, {tokens / seconds:,.0f} tokens/s, {seconds:.0f} s")  # fmt: skip
        keep(f"chains-{case}", case=case, seed=seed, settings=settings_of(case), lengths=found, layers=report and report["layers"],
             source=report and report["source"], reason=report and report["reason"])  # fmt: skip
    if report:
        say(f"    {short(report)}")
        say(f"    layers {report['layers']} ({report['source']}), reason {report['reason']}")
    return True


def interval(values, rng):
    """The mean, and where 95 % of the means of redrawn samples lie."""
    n = len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(DRAWS))
    return sum(values) / n, means[len(means) // 40], means[-len(means) // 40 - 1]


def compare():
    folder, rng, found = pathlib.Path(os.environ["RESULTS"]), random.Random(1), {}
    for file in sorted(folder.glob("chains-*.json")):
        if (case := json.loads(file.read_text())).get("lengths"):
            found[case["case"]] = case
    full = found.get("full")
    table = []
    for length in map(str, LENGTHS):
        for name, case in found.items():
            if length not in case["lengths"]:
                continue
            rows = case["lengths"][length]["rows"]
            exact = [float(r["first_wrong"] is None) for r in rows]
            line = dict(length=length, case=name, layers=case["layers"], attended=case["lengths"][length]["attended"], problems=len(rows),
                        exact=interval(exact, rng), tokens=interval([r["tokens"] for r in rows], rng),
                        first_wrong=statistics.median([r["first_wrong"] for r in rows if r["first_wrong"]] or [0]),
                        families={f: statistics.mean(e for r, e in zip(rows, exact) if r["family"] == f) for f in problems.FAMILIES})  # fmt: skip
            if full and name != "full" and full["seed"] == case["seed"]:
                reference = full["lengths"][length]["rows"]
                pairs = list(zip(exact, reference))
                line["difference"] = interval([e - (r["first_wrong"] is None) for e, r in pairs], rng)
                line["tokens_difference"] = interval([r["tokens"] - f["tokens"] for r, f in zip(rows, reference)], rng)
            table.append(line)
            say(json.dumps(line))
    keep("chains", table=table)
    return bool(table)


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        good = compare()
    else:
        good = run(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 400, int(sys.argv[4]) if len(sys.argv) > 4 else 1)
    sys.stdout.flush()
    os._exit(0 if good else 1)
