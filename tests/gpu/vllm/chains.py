#!/usr/bin/env python3
"""Long chains of thought (tests/data/chains) in vLLM: exact answers, the first wrong step and the tokens, by attention and budget.

    chains.py MODEL CASE [COUNT [SEED]]     MODEL: merge.py's folder; CASE: full, or BUDGET, BUDGET-quality, BUDGET-LAYER,LAYER…
    chains.py compare                       the cases' figures side by side, from the files that they left in RESULTS

Each case is an engine of its own; all draw the same problems from the seed. Where no layers are named, they are found from nothing by
the first decoded tokens of a few longest problems, before any is counted. LIMIT: how many seconds a process may take, start and all. What it
has then is counted up to the first problem without an answer: problems that take long would else be missing. TURN: a file; no problem is
asked before it is there, so that an engine may start while another one has the GPU.
"""

import concurrent.futures
import json
import os
import pathlib
import random
import statistics
import sys
import time

from engine import BEGIN, ROOT, Served, keep, say, short

sys.path.insert(0, str(ROOT / "tests" / "data" / "chains"))
import problems  # noqa: E402

LENGTHS = [int(n) for n in os.environ.get("LENGTHS", "4096,7168").split(",")]  # tokens of a problem, question and chain
ROWS = int(os.environ.get("ROWS", 384))
STORE = float(os.environ.get("STORE_GIB", 14))  # of K/V
LIMIT = float(os.environ.get("LIMIT", 3600))  # seconds
SKIP = int(os.environ.get("SKIP", 0))  # problems that an earlier call has answered
TURN = os.environ.get("TURN")
SAVE = 20  # seconds between two looks at what there is
GRAPHS = sorted(
    {1, 2, 4, 8, *range(16, ROWS, 32), ROWS}
)  # rows for which a step's graph is captured: few, since each costs time at the start
PLACES = 16, 300  # that find the layers: rows, and tokens each
DRAWS = 2000  # of a bootstrap


def prompt(tokenizer, problem):
    return tokenizer.encode(problem.prompt, add_special_tokens=False).ids


def drawn(tokenizer, length, count, seed):
    """Problems with their prompts' tokens and how many their chains have; as many of each family."""
    rng, found = random.Random(f"{seed} {length}"), []
    families = list(problems.FAMILIES)
    while len(found) < count:
        problem = problems.draw(rng, length - 40, families[len(found) % len(families)])
        ids = prompt(tokenizer, problem)
        tokens = len(tokenizer.encode(problem.chain, add_special_tokens=False).ids) + 1
        if len(ids) + tokens < 8000:
            found.append((problem, ids, tokens))
    return found


def all_drawn(model, count, seed):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(pathlib.Path(model) / "tokenizer.json"))
    return {length: drawn(tokenizer, length, SKIP + count, seed)[SKIP:] for length in LENGTHS}


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


class Answers:
    """What an engine answers: no more problems at once than its K/V store holds, so that no row is computed again."""

    def __init__(self, served):
        self.served, self.room = served, (served.blocks - ROWS) * served.block

    def ask(self, name, ids, most, ends=True):
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0, max_tokens=most, stop_token_ids=[problems.END_ID] if ends else None, ignore_eos=not ends, detokenize=False
        )
        self.served.engine.add_request(name, {"prompt_token_ids": ids}, params)

    def all(self, wanted, until, tell):
        """Each problem's tokens, of those that were answered in time. tell() is given what there is so far, now and then."""
        engine, given, waiting, held = self.served.engine, {}, list(enumerate(wanted))[::-1], {}
        told = time.time()
        while held or waiting:
            while waiting and len(held) < ROWS:
                i, (_, ids, tokens) = waiting[-1]
                # A chain that went astray may go on for a while: that is counted.
                most = min(tokens + tokens // 8, 8191 - len(ids))
                if held and sum(held.values()) + len(ids) + most > self.room:
                    break
                waiting.pop()
                held[i] = len(ids) + most
                self.ask(f"{len(ids)}_{i}", ids, most)
            for out in engine.step():
                if out.finished:
                    i = int(out.request_id.split("-")[0].split("_")[1])
                    given[i] = list(out.outputs[0].token_ids)
                    del held[i]
            if time.time() > until:
                break
            if time.time() > told + SAVE:
                tell(given)
                told = time.time()
        return given


def find_layers(answers, tokenizer, seed):
    """Layers are found at the contexts that will be seen, by steps that answer nothing which is counted."""
    rng, (rows, tokens) = random.Random(f"{seed} layers"), PLACES
    for i, family in zip(range(rows), list(problems.FAMILIES) * rows):
        problem = problems.draw(rng, max(LENGTHS) - 40, family)
        ids = prompt(tokenizer, problem) + tokenizer.encode(problem.chain, add_special_tokens=False).ids
        answers.ask(f"layers_{i}", ids[: max(LENGTHS) - 2 * tokens], tokens, ends=False)
    while answers.served.engine.has_unfinished_requests():
        answers.served.engine.step()


def judge(tokenizer, wanted, given, rows):
    """Goes on with a row for each problem, up to the first without an answer."""
    while len(rows) in given:
        i = len(rows)
        problem, ids, tokens = wanted[i]
        said = given[i][:-1] if given[i][-1] == problems.END_ID else given[i]
        text = tokenizer.decode(said, skip_special_tokens=False)
        wrong, answer = problems.first_wrong(problem, text), text.rsplit("\n", 1)[-1] == problem.answer
        rows.append(dict(family=problem.family, first_wrong=wrong, answer=answer, tokens=len(given[i]), wanted=tokens, prompt=len(ids)))


def run(model, case, count, seed):
    from tokenizers import Tokenizer

    beside = concurrent.futures.ProcessPoolExecutor(1)  # begins before CUDA does
    drawing = beside.submit(all_drawn, model, count, seed)
    tokenizer = Tokenizer.from_file(str(pathlib.Path(model) / "tokenizer.json"))
    served = Served(model, settings_of(case), dtype="float16", max_model_len=8192, max_num_seqs=ROWS, max_num_batched_tokens=16384,
                    gpu_memory_utilization=0.1, kv_cache_memory_bytes=int(STORE * 2**30), enable_prefix_caching=False,
                    compilation_config={"cudagraph_capture_sizes": GRAPHS})  # fmt: skip
    preempted = []
    preempt = served.core.scheduler._preempt_request
    served.core.scheduler._preempt_request = lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1]
    answers, found, before = Answers(served), {}, {}
    if case != "full" and "layers" not in settings_of(case):
        find_layers(answers, tokenizer, seed)
        say(f"layers: {short(served.report())}")
        before = counts(served)
    asked = drawing.result()
    beside.shutdown()
    while TURN and not os.path.exists(TURN):
        time.sleep(0.2)
    for length in LENGTHS:
        wanted, rows, begin, steps = asked[length], [], time.time(), len(served.steps)

        def tell(given):
            library = counts(served)
            counted = {k: v - before.get(k, 0) for k, v in library.items()}
            share = counted["tokens_attended"] / counted["tokens_visible"] if counted.get("tokens_visible") else 1.0
            judge(tokenizer, wanted, given, rows)
            found[length] = dict(rows=rows, seconds=time.time() - begin, attended=share, library=counted, preempted=len(preempted))
            report = served.report()
            keep(f"chains-{case}-{SKIP}", case=case, seed=seed, skip=SKIP, settings=settings_of(case), lengths=found,
                 layers=report and report["layers"], source=report and report["source"], reason=report and report["reason"])  # fmt: skip
            return library

        given = answers.all(wanted, BEGIN + LIMIT, tell)
        before = tell(given)
        seconds, tokens = time.time() - begin, sum(map(len, given.values()))
        exact = sum(r["first_wrong"] is None for r in rows)
        say(f"chains {case}, {length}: exact {exact} of {len(rows)} ({len(given)} ended), answers {sum(r['answer'] for r in rows)},",
            f"{found[length]['attended']:.1%} attended, {len(served.steps) - steps} steps, {tokens / seconds:,.0f} tokens/s,",
            f"{seconds:.0f} s, preempted {len(preempted)}")  # fmt: skip
        if time.time() > BEGIN + LIMIT:
            break
    report = served.report()
    if report:
        say(f"    {short(report)}")
        say(f"    layers {report['layers']} ({report['source']}), reason {report['reason']}")
    return True


def counts(served):
    return {k: v for k, v in ((served.report() or {}).get("library") or {}).items() if isinstance(v, int)}


def interval(values, rng):
    """The mean, and where 95 % of the means of redrawn samples lie."""
    n = len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(DRAWS))
    return sum(values) / n, means[len(means) // 40], means[-len(means) // 40 - 1]


def together(folder):
    """Each case's rows by length and a problem's number; a case's calls are joined."""
    found = {}
    for file in sorted(folder.glob("chains-*.json")):
        case = json.loads(file.read_text())
        for length, told in case.get("lengths", {}).items():
            one = found.setdefault((int(length), case["seed"], case["case"]), dict(rows={}, attended=[0, 0], layers=case["layers"]))
            one["rows"].update({case["skip"] + i: row for i, row in enumerate(told["rows"])})
            for i, name in enumerate(("tokens_attended", "tokens_visible")):
                one["attended"][i] += told["library"].get(name, 0)
    return found


def compare():
    rng, table, folder = random.Random(1), [], pathlib.Path(os.environ["RESULTS"])
    found = together(folder)
    for (length, seed, case), one in sorted(found.items(), key=str):
        if not one["rows"]:
            continue
        rows = one["rows"].values()
        exact = [float(r["first_wrong"] is None) for r in rows]
        attended, visible = one["attended"]
        line = dict(length=length, case=case, seed=seed, layers=one["layers"], attended=attended / visible if visible else 1.0, problems=len(rows),
                    exact=interval(exact, rng), answers=interval([float(r["answer"]) for r in rows], rng),
                    tokens=interval([r["tokens"] for r in rows], rng),
                    first_wrong=statistics.median([r["first_wrong"] for r in rows if r["first_wrong"]] or [0]),
                    families={f: statistics.mean([e for r, e in zip(rows, exact) if r["family"] == f] or [0]) for f in problems.FAMILIES})  # fmt: skip
        full = found.get((length, seed, "full"))
        if full and case != "full":
            pairs = [(r, full["rows"][i]) for i, r in one["rows"].items() if i in full["rows"]]
            if pairs:
                right = [[float(r["first_wrong"] is None) for r in pair] for pair in pairs]
                line["pairs"] = len(pairs)
                line["difference"] = interval([ours - theirs for ours, theirs in right], rng)
                line["tokens_difference"] = interval([r["tokens"] - f["tokens"] for r, f in pairs], rng)
        table.append(line)
        say(json.dumps(line))
    (folder / "chains.json").write_text(json.dumps({"table": table}))
    return bool(table)


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        good = compare()
    else:
        good = run(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 400, int(sys.argv[4]) if len(sys.argv) > 4 else 1)
    sys.stdout.flush()
    os._exit(0 if good else 1)
