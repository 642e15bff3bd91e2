"""A check's table, and what it comes to in one sentence."""

from __future__ import annotations

from typing import Any, Sequence

FLOORS = 2.0  # noise floors that count as nothing …
LEAST = 0.001  # … and so many nats a token, a thousandth of the perplexity, in any case
HEAD = (
    "context", "attention", "perplexity", "nats a token", "median", "99 %", "same token", "facts", "ms", "faster", "attended", "layers"
)  # fmt: skip


def rows(report: dict[str, Any]) -> list[list[str]]:
    """The table's cells. Nats are against the host."""
    out = []
    for of in report["contexts"]:
        for r in of["results"]:
            nats, host = r["nats"], r["name"] == "host"
            half = (nats["interval"][1] - nats["interval"][0]) / 2
            out.append([
                f"{of['context']:,}",
                called(r),
                f"{r['perplexity']:.3f}",
                "" if host else f"{nats['mean']:.4f} ± {half:.4f}",
                "" if host else f"{nats['median']:.4f}",
                "" if host else f"{nats['p99']:.3f}",
                "" if host else f"{100 * nats['same']:.1f}%",
                _facts(r),
                f"{r['ms']:.1f}",
                "" if host else f"{r['faster']:.2f}x",
                "" if r["attended"] is None else f"{100 * r['attended']:.1f}%",
                r.get("why") or ",".join(map(str, r.get("selection_layers") or [])),
            ])  # fmt: skip
    return out


def called(result: dict[str, Any]) -> str:
    """A row's name."""
    return {"host": "host", "full": "ours, everything"}.get(result["name"]) or f"{result['budget']:,} tokens"


def clear(of: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether a budget loses nothing that can be told from noise at a context, and no fact that full attention knows."""
    floor = next(r for r in of["results"] if r["name"] == "full")
    if result["nats"]["mean"] > max(LEAST, FLOORS * floor["nats"]["mean"]):
        return False
    full = [r["facts"] for r in of["results"] if r["name"] in ("host", "full")]
    return all(known or not all(others) for known, *others in zip(result["facts"], *full))


def _facts(result: dict[str, Any]) -> str:
    return f"{sum(result['facts'])} of {len(result['facts'])}" if result["facts"] else ""


def sentence(report: dict[str, Any]) -> str:
    """What it comes to, for each budget: up to where nothing measurable is lost, and what to expect beyond."""
    budgets = [r["budget"] for r in report["contexts"][0]["results"] if r["budget"]]
    if idle := [r["why"] for of in report["contexts"] for r in of["results"] if r["budget"] and not r["engaged"]]:
        return f"The library took no part: {idle[0]}."
    fine: dict[int, list[int]] = {}  # up to this context: budgets
    worse, dense = [], []
    for budget in reversed(budgets):
        of = [(c, r) for c in report["contexts"] for r in c["results"] if r["budget"] == budget]
        if all(r["attended"] == 1 for _, r in of):
            dense.append(budget)
            continue
        good = _leading(of)
        if good:
            fine.setdefault(good[-1][0]["context"], []).append(budget)
        if len(good) < len(of):
            worse.append(_expected(budget, of[len(good) :], bool(good)))
    parts = []
    for context in sorted(fine, reverse=True):
        parts.append(f"with {_list(fine[context])} tokens nothing measurable is lost up to {context:,}")
    parts += worse
    if dense:
        parts.append(f"with {_list(dense)} tokens these contexts are too short to leave anything out")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _leading(of: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The contexts, from the shortest on, at which nothing is lost."""
    out = []
    for context, result in of:
        if not clear(context, result):
            break
        out.append((context, result))
    return out


def _expected(budget: int, of: list[tuple[dict[str, Any], dict[str, Any]]], some: bool) -> str:
    context, result = max(of, key=lambda pair: pair[1]["nats"]["mean"])
    host = next(r for r in context["results"] if r["name"] == "host")
    floor = next(r for r in context["results"] if r["name"] == "full")["nats"]["mean"]
    told = (
        f"with {budget:,} {'beyond that ' if some else ''}expect {result['nats']['mean']:.3f} nats a token at {context['context']:,} "
        f"(noise {floor:.3f}), {100 * (1 - result['nats']['same']):.1f} % other best tokens, perplexity "
        f"{result['perplexity']:.2f} instead of {host['perplexity']:.2f}"
    )
    if result["facts"]:
        told += f", {_facts(result)} facts (the host: {sum(host['facts'])})"
    return told


def _list(budgets: Sequence[int]) -> str:
    names = [f"{b:,}" for b in sorted(budgets)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
