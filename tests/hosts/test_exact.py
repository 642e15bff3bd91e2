"""Greedy decoding with the library must give the one right solution, in every host."""

import hostlib
import numpy as np
import pytest
from checks import BUDGET, HOSTS, LAYERS, NGRAMS, ROOMY, SPARSE, WRONG_LAYERS, active, full_only, saved, solved_all, sparse_only


@pytest.mark.parametrize("host", HOSTS)
def test_budget_beyond_context_is_the_host(host, library, stock, problems):
    result = hostlib.run(host, library=library, settings=ROOMY, problems=problems[:2])
    full_only(result)
    assert result.tokens == stock(host, 1, 2).tokens
    total = active(result)
    assert total["tokens_attended"] == total["tokens_visible"]


def test_default_settings_are_dense_at_this_length(library, problems):
    """The default budget is longer than these texts: the same as above."""
    result = hostlib.run("node", library=library, problems=problems[:1])
    full_only(result)
    solved_all(result, problems[:1])


@pytest.mark.parametrize("host, job", [("node", {}), ("llama-cpp-python", {"scenario": "solve"}), ("node-libs", {"scenario": "solve"})])
def test_eight_of_eight(host, job, library, problems):
    some = problems if host != "node-libs" else problems[:2]
    result = hostlib.run(host, library=library, settings=SPARSE, problems=some, **job)
    solved_all(result, some)
    sparse_only(result)
    stats = result.stats
    assert stats["config"]["budget"] == BUDGET and stats["config"]["layers"] == [2, 9]
    assert len(result.contexts()) == len(some)
    for context in result.contexts():
        assert context["layers"] == len(LAYERS)
        assert context["selection_layers"] == [2, 9]
        assert context["layers_offloaded"] == LAYERS
    total = stats["total"]
    assert total["select_calls"] == 2 * total["rows"]
    assert total["dense_calls"] == 2 * total["rows"]
    assert total["sparse_calls"] == 8 * total["rows"]
    assert total["sparse_layer_tokens_attended"] == 8 * BUDGET * total["rows"]


@pytest.mark.parametrize("host", ["llama-cpp-python", "xllamacpp"])
def test_through_the_hosts_own_interface(host, library, problems):
    result = hostlib.run(host, library=library, settings=SPARSE, problems=problems[:2])
    solved_all(result, problems[:2])
    sparse_only(result)


@pytest.mark.parametrize("host, job", [("node", {}), ("llama-cpp-python", {"scenario": "solve"})])
def test_wrong_layers_fail(host, job, library, problems):
    """Control: with a wrong reselection layer the same check must not pass."""
    result = hostlib.run(host, library=library, settings=WRONG_LAYERS, problems=problems[:3], **job)
    active(result)
    assert result.solved(problems[:3]) == 0


def test_mass_policy_runs(native, problems):
    result = native("solve", problems[:1], {**SPARSE, "LESSISMORE_POLICY": "mass"})
    assert result.stats["config"]["policy"] == "mass"
    sparse_only(result)
    solved_all(result, problems[:1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads, native, problems):
    result = native("solve", problems[:1], SPARSE, threads=threads)
    solved_all(result, problems[:1])
    sparse_only(result)


def test_rows_become_sparse_beyond_the_budget(native, short_problems):
    some = short_problems[:4]
    result = native("solve", some, SPARSE)
    total = active(result)
    assert min(result.rows) <= BUDGET < max(result.rows), "the problems do not straddle the budget"
    assert total["rows"] == len(result.rows)
    assert total["rows_sparse"] == result.visible_beyond(BUDGET)
    solved_all(result, some)


@pytest.mark.parametrize("unified", [True, False])
def test_four_server_slots(unified, library, problems):
    some = problems[:4]
    result = hostlib.run("llama-server", library=library, settings=SPARSE, problems=some, slots=4, threads=2, unified=unified)
    solved_all(result, some)
    total = active(result)
    saved(total)
    # Rows that came in one batch with a later slot's prompt were left to the host, and
    # with a cache per slot the host sends first tokens of prompts along as single rows.
    assert total["rows_sparse"] >= 0.9 * sum(len(p.solution) - 1 for p in some)
    assert total["rows_full"] <= (0 if unified else BUDGET)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("count", [2, 5])
def test_sequences_in_one_batch(unified, count, native, problems):
    some = problems[:count]
    result = native("together", some, SPARSE, unified=unified, threads=2, context=2048 * count)
    solved_all(result, some)
    sparse_only(result)


@pytest.mark.parametrize("unified", [True, False])
def test_copied_sequences(unified, native, problems):
    result = native("fork", problems[:1], SPARSE, unified=unified, threads=2)
    solved_all(result, problems[:1] * 3)
    sparse_only(result)


@pytest.mark.parametrize("unified", [True, False])
def test_mixed_batches(unified, native, problems):
    """The decode row of a batch is sparse; the host computes the prompt's rows of the same node."""
    some = problems[:2]
    result = native("mixed", some, SPARSE, unified=unified)
    solved_all(result, some)
    assert result.value("verified") == result.value("expected")
    total, batches = active(result), result.value("mixed_batches")
    saved(total)
    assert total["declined"]["prompt"] > 0 and total["declined"]["draft"] == len(LAYERS)
    assert "mixed" not in total["declined"]
    assert total["rows_sparse"] == len(result.rows) + batches
    # With a cache per sequence the host takes such batches apart itself, but for their first tokens.
    assert total["mixed_steps"] == (batches if unified else 0)


@pytest.mark.parametrize("settings", [{}, {"LESSISMORE_SPECULATION": "on"}])
@pytest.mark.parametrize("unified", [True, False])
def test_requests_arrive_while_others_decode(unified, settings, library, problems):
    """A server of four slots, whose prompts are computed along with the tokens of the others, in pieces of 128."""
    some = problems[:4]
    arguments = ["-b", "128", "-ub", "128"] + (NGRAMS if settings else [])
    result = hostlib.run(
        "llama-server", library=library, settings={**SPARSE, **settings}, problems=some, slots=4, threads=2, unified=unified,
        after=[0, 100, 250, 400], arguments=arguments,
    )  # fmt: skip
    solved_all(result, some)
    total = active(result)
    saved(total)
    assert "mixed" not in total["declined"] and "draft" not in total["declined"] and total["cell_order"] == 0, total
    assert total["rows_sparse"] >= sum(len(p.solution) - 1 for p in some)
    assert (total["draft_rows"] > 0) == bool(settings)
    if unified:
        assert total["mixed_steps"] >= 3 * (len(some[0].prompt) // 128), total
        assert total["rows_full"] == 0, total


def test_adjacent_prompts_in_a_mixed_batch_with_quantised_cache(library, problems):
    """Two prompts at once beside two decoding slots; the host converts the cache its own way in its part of the rows."""
    some = problems[:4]
    result = hostlib.run(
        "llama-server", library=library, settings=SPARSE, problems=some, slots=4, threads=2, after=[0, 0, 150, 150],
        arguments=["-ctk", "q8_0", "-ctv", "q8_0", "-b", "256", "-ub", "256"],
    )  # fmt: skip
    solved_all(result, some)
    total = active(result)
    assert total["mixed_steps"] >= 3 and "mixed" not in total["declined"], total
    assert total["rows_sparse"] >= sum(len(p.solution) - 1 for p in some)


def test_prompts_are_left_to_the_host(native, problems):
    result = native("solve", problems[:1], SPARSE)
    assert active(result)["declined"]["prompt"] > 0


def test_prompts_token_by_token(native, problems):
    """What tells a prompt's token from a decoded one is that its logits are not wanted."""
    result = native("solve", problems[:1], SPARSE, n_ubatch=1, lengths=[200])
    assert result.exact(problems[:1]) == [True]
    total, length = active(result), len(problems[0].prompt)
    assert total["declined"]["prompt"] >= (length - 3) * len(LAYERS)
    assert total["prompt_rows"] == 1, "the prompt's last token, whose logits are wanted"
    assert total["rows_sparse"] == len(result.rows) and total["untold_rows"] == 0


def test_a_prompt_that_leaves_one_token_over(native, problems):
    result = native("solve", problems[:1], SPARSE, n_batch=len(problems[0].prompt) - 1, lengths=[200])
    assert result.exact(problems[:1]) == [True]
    total = active(result)
    assert total["prompt_rows"] == 1
    assert total["rows_sparse"] == len(result.rows)


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_declined_is_the_host(host, library, short_problems):
    """Without flash attention nothing is offloaded: the same text, whatever the budget."""
    job = {"problems": short_problems[:1], "flash": "off" if host == "llama-server" else False}
    result = hostlib.run(host, library=library, settings=SPARSE, **job)
    assert result.stats["state"] == "active" and result.stats["total"]["rows"] == 0
    assert result.tokens == hostlib.run(host, **job).tokens and result.exact(short_problems[:1]) == [True]


@pytest.mark.parametrize(
    "host, declined", [("llama-cpp-python", {"kv": "f32"}), ("llama-cpp-python", {"kv": "q5_1"}), ("node-libs", {"flash": False})]
)
def test_what_is_declined_is_the_host_to_the_bit(host, declined, library, short_problems, tmp_path):
    """Logits of a prompt and of every step behind it, each bit of them."""
    p = short_problems[0]
    job = {"scenario": "forced", "tokens": p.prompt + p.solution[:60], "prompt": len(p.prompt), **declined}
    logits = []
    for what in (library, None):
        result = hostlib.run(host, library=what, settings=SPARSE if what else {}, output=str(tmp_path / "logits.npy"), **job)
        assert not what or result.stats["total"]["rows"] == 0, result.stats["total"]
        logits.append(np.load(tmp_path / "logits.npy"))
    assert logits[0].shape[0] == 61 and np.array_equal(logits[0].view(np.uint32), logits[1].view(np.uint32))


def test_prompts_are_the_host_to_the_bit(library, short_problems, tmp_path):
    """Prompts are left to the host: the logits behind one are its own."""
    p = short_problems[0]
    job = {"scenario": "forced", "tokens": p.prompt, "prompt": len(p.prompt), "output": str(tmp_path / "logits.npy")}
    logits = []
    for what in (library, None):
        hostlib.run("llama-cpp-python", library=what, settings=SPARSE if what else {}, **job)
        logits.append(np.load(tmp_path / "logits.npy"))
    assert np.array_equal(logits[0].view(np.uint32), logits[1].view(np.uint32))
