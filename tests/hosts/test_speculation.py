"""Speculative decoding in real hosts: what is drafted is decoded sparsely, and the text stays that of plain sparse decoding."""

from __future__ import annotations

import hostlib
import make_perturbed
import pytest
from checks import BUDGET, NGRAMS, SPARSE, active, log_lines, saved, solved_all

SPECULATING = {**SPARSE, "LESSISMORE_SPECULATION": "on"}
MODEL = str(hostlib.REASONER)


def drafting(model: str) -> list[str]:
    return ["-md", model, "--spec-type", "draft-simple", "--spec-draft-n-max", "5"]


@pytest.fixture(scope="module")
def plain(library, problems):
    """What plain sparse decoding of the server makes of the problems."""
    return hostlib.run("llama-server", library=library, settings=SPARSE, problems=problems[:4], slots=4, threads=2).tokens


@pytest.fixture
def perturbed(tmp_path):
    return str(make_perturbed.make(tmp_path / "perturbed.gguf"))


def accepted(result) -> tuple[int, int]:
    """Tokens that the server accepted, and drafted."""
    timings = [line["timings"] for line in result.lines if "timings" in line]
    return sum(t.get("draft_n_accepted", 0) for t in timings), sum(t.get("draft_n", 0) for t in timings)


def drafted_sparsely(result, rows: int):
    """Rows of drafts were decoded, all of them sparsely; no draft was left to the host. A draft model has a context of its own,
    whose host feeds it what was accepted as a prompt."""
    active(result)
    model = next(c for c in result.contexts() if c["draft_rows"] > 0)
    assert "draft" not in model["declined"], model
    assert model["rows_full"] == 0 and model["cell_order"] == 0 and model["untold_rows"] == 0, model
    assert model["rows_sparse"] >= rows
    saved(model)


@pytest.mark.parametrize("draft", ["itself", "perturbed"])
def test_draft_model(draft, library, problems, plain, perturbed):
    length = 400
    model = MODEL if draft == "itself" else perturbed
    result = hostlib.run(
        "llama-server", library=library, settings=SPECULATING, problems=problems[:1], lengths=[length], threads=2, arguments=drafting(model)
    )
    assert result.tokens[0] == plain[0][:length] == problems[0].solution[:length]
    right, all_of_them = accepted(result)
    assert right == all_of_them > 300 if draft == "itself" else 0 < right < all_of_them, (right, all_of_them)
    drafted_sparsely(result, length - 1)


@pytest.mark.parametrize("unified", [True, False])
def test_ngrams_in_four_slots(unified, library, problems, plain):
    some = problems[:4]
    result = hostlib.run(
        "llama-server", library=library, settings=SPECULATING, problems=some, slots=4, threads=2, unified=unified, arguments=NGRAMS
    )
    solved_all(result, some)
    assert result.tokens == plain
    right, all_of_them = accepted(result)
    assert 0 < right < all_of_them
    total = active(result)
    assert total["draft_rows"] > 0 and "draft" not in total["declined"], total
    # A prompt's first token may come along as a row, with a cache per slot.
    assert total["cell_order"] == 0 and total["rows_full"] <= (0 if unified else BUDGET), total
    assert total["rows_sparse"] >= sum(len(p.solution) - 1 for p in some)
    saved(total)


def test_prompt_lookup_of_llama_cpp_python(library, problems):
    """All of a prompt's logits are wanted there: it is long, and stays dense all the same."""
    some = problems[:1]
    alone = hostlib.run("llama-cpp-python", library=library, settings=SPARSE, problems=some)
    result = hostlib.run("llama-cpp-python", library=library, settings=SPECULATING, problems=some, lookup=8)
    solved_all(result, some)
    assert result.tokens == alone.tokens
    total = active(result)
    assert total["draft_rows"] > 0 and "draft" not in total["declined"] and total["cell_order"] == 0, total
    assert total["declined"]["prompt"] > 0
    assert total["prompt_rows"] <= 9, "the rows that follow the prompt"
    assert total["rows_sparse"] >= len(some[0].solution) - 10
    saved(total)


def test_evaluation_stays_dense(native, problems):
    """Texts whose logits are all wanted, in batches that no draft has: the whole of them, and what is left over at the end."""
    some = problems[:1]
    tokens = some[0].prompt + some[0].solution
    result = native("evaluate", some, SPECULATING, lengths=[200], tokens=tokens, chunk=96)
    total = active(result)
    assert total["declined"]["prompt"] > 0 and "draft" not in total["declined"]
    assert total["rows"] == len(tokens) % 96 == 9 and total["rows_sparse"] == 0 and total["prompt_rows"] == total["rows"], total


def test_off_by_default(library, problems):
    """Dense, counted, and one line says what would help."""
    some = problems[:1]
    result = hostlib.run(
        "llama-server", library=library, settings=SPARSE, problems=some, lengths=[300], threads=2, arguments=drafting(MODEL)
    )
    assert result.exact(some) == [True]
    total = active(result)
    assert total["draft_rows"] == 0 and total["declined"]["draft"] > 0, total
    assert sum("calls so far that check a draft" in line for line in log_lines(result)) == 1


def test_a_wrong_value_is_named(library, problems):
    result = hostlib.run(
        "llama-server", library=library, settings={"LESSISMORE_SPECULATION": "perhaps"}, problems=problems[:1], lengths=[5]
    )
    assert result.stats["state"] == "inert"
    assert 'LESSISMORE_SPECULATION="perhaps": must be on or off' in result.stats["reason"]
