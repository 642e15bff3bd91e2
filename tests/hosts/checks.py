"""What the tests demand of a run, in one place."""

from __future__ import annotations

from hostlib import Result

BUDGET = 128
SPARSE = {"LESSISMORE_BUDGET": BUDGET, "LESSISMORE_LAYERS": "2,9"}
WRONG_LAYERS = {"LESSISMORE_BUDGET": BUDGET, "LESSISMORE_LAYERS": "2,6"}
ROOMY = {"LESSISMORE_BUDGET": 1 << 20, "LESSISMORE_LAYERS": "2,9"}
NGRAMS = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "4", "--spec-ngram-simple-size-m", "8"]  # llama-server's
HOSTS = ("node", "llama-cpp-python", "llama-server", "xllamacpp")
LAYERS = list(range(12))  # of the reasoner


def solved_all(result: Result, problems) -> None:
    wrong = []
    for i, p in enumerate(problems):
        got = result.tokens.get(i, [])
        if got != p.solution:
            at = next((k for k, (a, b) in enumerate(zip(got, p.solution)) if a != b), len(got))
            wrong.append(f"problem {i}: first wrong token at {at} of {len(p.solution)}, got {len(got)}")
    assert not wrong, "\n".join(wrong) + f"\nstats: {result.stats and result.stats['total']}\nlog:\n{result.log[-1500:]}"


def active(result: Result) -> dict:
    """The library took part; returns the totals of its stats."""
    assert result.stats is not None, f"no stats were written; log:\n{result.log[-2000:]}"
    assert result.stats["state"] == "active", (result.stats["state"], result.stats["reason"])
    total = result.stats["total"]
    assert total["rows"] > 0, total
    assert total["rows_sparse"] + total["rows_full"] == total["rows"], total
    for context in result.stats["contexts"]:
        assert sum(context["declined"].values()) >= 0
    return total


def inert(result: Result) -> None:
    assert result.stats is not None, f"no stats were written; log:\n{result.log[-2000:]}"
    assert result.stats["state"] == "inert", result.stats["state"]
    assert result.stats["reason"], "inert without a reason"
    assert result.stats["total"]["rows"] == 0, result.stats["total"]


def full_only(result: Result) -> None:
    total = active(result)
    assert total["rows_sparse"] == 0, total


def sparse_only(result: Result, budget: int = BUDGET) -> None:
    """Every row taken had more tokens than the budget and was decoded sparsely."""
    total = active(result)
    assert total["rows_full"] == 0, total
    saved(total)
    if result.rows:
        assert total["rows"] == len(result.rows), (total, len(result.rows))
        assert total["rows_sparse"] == result.visible_beyond(budget)


def saved(total: dict, share: float = 0.25) -> None:
    attended, visible = total["sparse_layer_tokens_attended"], total["sparse_layer_tokens_visible"]
    assert 0 < attended < share * visible, (attended, visible)


def log_lines(result: Result) -> list[str]:
    """The library's own lines of the host's log. Others may name a folder that is called like it."""
    return [line for line in result.log.splitlines() if "lessismore: " in line]
