"""llama-server and each thing that it does to its slots: answers are exact, and rows sparse. By chance, and all together: test_soak.py."""

import hostlib
import make_swap
import pytest
import task
from checks import BUDGET, SPARSE, active
from hostlib import Problem

STEPS = 12  # of a problem: 173 tokens of prompt and 242 of solution, so that all of it is beyond the budget


@pytest.fixture(scope="module")
def texts():
    return [Problem.make(seed, STEPS) for seed in range(1, 17)]


def ask(problem, start=0, count=None, **options):
    """A part of a problem's solution, behind the text so far."""
    end = len(problem.solution) if count is None else min(start + count, len(problem.solution))
    body = {"prompt": problem.prompt + problem.solution[:start], "n_predict": end - start, "temperature": 0.0, "top_k": 1}
    return {"path": "/completion", "body": body | {"return_tokens": True, "ignore_eos": True, **options}}


def serve(library, steps, *arguments, runs=None, settings=SPARSE, **job):
    result = hostlib.run(
        "llama-server",
        library=library,
        settings=settings,
        scenario="script",
        runs=runs or [steps],
        flash="on",
        arguments=list(arguments),
        **job,
    )
    return result, {(line["run"], line["step"], line["request"]): line["answer"] for line in result.lines if "step" in line}


def exact(answer, problem, start=0, count=None):
    want = problem.solution[start : None if count is None else start + count]
    got = answer.get("tokens")
    assert got == want, (answer.get("error"), got and next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), len(got)))


def sparse(result, share=0.99):
    """Nearly every row was sparse, and the order of none was unknown: what is not is a prompt's last token."""
    total = active(result)
    assert total["cell_order"] == 0 and total["rows_sparse"] >= share * total["rows"], total
    return total


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_slots(slots, unified, kv, library, texts):
    step = [ask(p, count=60) for p in texts]  # more than there are slots: some wait
    result, answers = serve(library, [step], "-ctk", kv, "-ctv", kv, slots=slots, unified=unified, context=512)
    for i, p in enumerate(texts):
        exact(answers[0, 0, i], p, 0, 60)
    total = sparse(result, 0.8)  # with streams the host sends first tokens of prompts along as single rows
    assert total["rows_sparse"] >= 59 * len(texts) and "mixed" not in total["declined"], "also beside prompts"


def test_conversations_come_back_from_memory(library, texts):
    """One slot, three conversations in turn: each comes back from the server's RAM cache, in cells that another one had."""
    some, steps = texts[:3], []
    for start in range(0, 200, 40):
        steps += [[ask(p, start, 40)] for p in some]
    result, answers = serve(library, steps, slots=1, context=1024)
    for k in range(len(steps)):
        exact(answers[0, k, 0], some[k % 3], k // 3 * 40, 40)
        assert k < 3 or answers[0, k, 0]["timings"]["cache_n"] >= len(some[k % 3].prompt), "it did not come from the cache"
    sparse(result)


def test_slots_saved_to_files(library, texts):
    """Saved, and restored into another slot while the conversation goes on, and into a server that never saw it."""
    p, q = texts[:2]
    save = [{"path": "/slots/0?action=save", "body": {"filename": "p"}}]
    restore = [{"path": "/slots/1?action=restore", "body": {"filename": "p"}}]
    first = [[ask(p, 0, 60, id_slot=0)], save, [ask(p, 60, 60, id_slot=0), ask(q, 0, 60, id_slot=1)], restore, [ask(p, 60, 100, id_slot=1)]]
    again = [restore, [ask(p, 60, 150, id_slot=1)]]
    result, answers = serve(library, None, "--slot-save-path", "{folder}", "-cram", "0", runs=[first, again], slots=2, context=1024)
    for run, step, start, count in (0, 0, 0, 60), (0, 2, 60, 60), (0, 4, 60, 100), (1, 1, 60, 150):
        exact(answers[run, step, 0], p, start, count)
    exact(answers[0, 2, 1], q, 0, 60)
    assert answers[0, 4, 0]["timings"]["cache_n"] >= len(p.prompt) + 58 and answers[1, 1, 0]["timings"]["cache_n"] >= len(p.prompt) + 58
    total = active(result)  # of the second server: the newest quarter of the budget has to be new first
    assert total["cell_order"] <= BUDGET // 4 and total["rows_sparse"] >= 150 - BUDGET // 4 - 1, total


@pytest.mark.parametrize("unified", [True, False])
def test_readers_who_go_away(unified, library, texts):
    """Some readers leave in the middle of their answers, others go on beside them; then those come back for the rest."""
    p, q, r = texts[:3]
    leave = {"leave after": 10}
    steps = [[ask(p) | leave, ask(q, 0, 80), ask(r) | leave], [ask(p, 5, 60), ask(r, 0, 60)], [ask(p) | leave, ask(q, 80, 80)], [ask(p)]]
    result, answers = serve(library, steps, slots=3, unified=unified, context=512)
    exact(answers[0, 0, 1], q, 0, 80)
    exact(answers[0, 1, 0], p, 5, 60)
    exact(answers[0, 1, 1], r, 0, 60)
    exact(answers[0, 2, 1], q, 80, 80)
    exact(answers[0, 3, 0], p)
    sparse(result, 0.95)


@pytest.mark.parametrize("pooling", ["mean", "rank"])
def test_embeddings_in_between(pooling, library, texts):
    """Vectors are the host's to the bit: prompts are left to it. Answers in between are exact."""
    some = texts[:2]
    if pooling == "rank":
        other, arguments = {"path": "/rerank", "body": {"query": "?ab>cd;", "documents": ["ab:1;", "cd:1;ef:2;"]}}, ["--reranking"]
    else:
        other, arguments = {"path": "/embedding", "body": {"content": some[0].prompt}}, ["--embeddings", "--pooling", "mean"]
    steps = [[ask(some[0], 0, 60)], [other], [ask(some[0], 60, 60), ask(some[1], 0, 60)], [other], [ask(some[1], 60, 60)]]
    result, answers = serve(library, steps, *arguments, slots=2, context=512)
    for (step, request), p, start in ((0, 0), some[0], 0), ((2, 0), some[0], 60), ((2, 1), some[1], 0), ((4, 0), some[1], 60):
        exact(answers[0, step, request], p, start, 60)
    sparse(result, 0.95)
    _, alone = serve(None, steps[:2], *arguments, slots=2, context=512)  # where its tokens come to lie matters in the last bits
    assert answers[0, 1, 0] == alone[0, 1, 0] and "error" not in alone[0, 1, 0]


def test_adapters_by_request(library, texts, tmp_path):
    """Each request has its adapter, and only with it its answer."""
    names, p = list(make_swap.PAIRS), texts[0]
    job = make_swap.job(tmp_path)

    def under(name, reads=None, **options):
        lora = [{"id": i, "scale": float(n == (reads or name))} for i, n in enumerate(names)]
        asked = ask(p, lora=lora, **options)
        return asked | {"body": asked["body"] | {"prompt": make_swap.exchanged(name, p.prompt) if name else p.prompt}}

    order = [None, "next", "nines", "next", None]
    steps = [[under(name)] for name in order] + [[under(name) for name in order[:3]], [under("next", "nines")]]
    arguments = ["--lora", ",".join(job["adapters"].values()), "--lora-init-without-apply"]
    result, answers = serve(library, steps, *arguments, model=job["model"], slots=3, context=512)
    for step in range(len(order) + 1):
        for request, name in enumerate([order[step]] if step < len(order) else order[:3]):
            want = make_swap.exchanged(name, p.solution) if name else p.solution
            assert answers[0, step, request]["tokens"] == want, (step, name)
    assert answers[0, len(order) + 1, 0]["tokens"] != make_swap.exchanged("next", p.solution), "control: another adapter"
    total = sparse(result, 0.95)
    assert total["rows_sparse"] >= 0.9 * 8 * (len(p.solution) - 1), "an adapter's first steps show its layers, and no more"


def test_pieces_of_a_prompt_used_again(library, texts):
    """Definitions that nothing needs are taken out of a prompt: the server moves what it has computed behind them."""
    p = texts[0]
    chaff = Problem(p.prompt[:1] + make_chaff(p, 12) + p.prompt[1:], p.solution)
    steps = [[ask(chaff, 0, 20)], [ask(p, 20, 100, n_cache_reuse=16)]]
    result, answers = serve(library, steps, slots=1, context=1024)
    exact(answers[0, 0, 0], chaff, 0, 20)
    exact(answers[0, 1, 0], p, 20, 100)
    assert answers[0, 1, 0]["timings"]["cache_n"] >= len(p.prompt), "nothing was moved"
    sparse(result)


def make_chaff(problem, count):
    text = task.decode(problem.prompt)
    names = [n for n in task.NAMES if n not in text][:count]
    return task.encode("".join(f";{n}:{i % 10}" for i, n in enumerate(names)))


def test_several_answers_to_one_prompt(library, texts):
    """The server copies what it has computed of a prompt to further slots."""
    p = texts[0]
    result, answers = serve(library, [[ask(p, n_cmpl=3)], [ask(p, 100, n_cmpl=4)]], slots=4, context=512)
    for step, start in (0, 0), (1, 100):
        for answer in answers[0, step, 0]:
            exact(answer, p, start)
    sparse(result)
