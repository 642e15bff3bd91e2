"""The pictures of a report: statistics, profiles and comparisons as charts."""

from __future__ import annotations

import math
from typing import Any, Optional

from . import _page, _verdict
from ._page import Axes, Page, escape, legend, marker, number, ticks

TRACES = 2  # contexts that are shown at once; a few more can be opened
MORE = 6
HEIGHT = 560  # pixels of a step picture at most
LINES = 8  # layers that have a colour of their own in a chart
COLORS = [f"var(--c{i})" for i in range(LINES)]
DASHES = ("", "6 3", "2 3")
ALARM = "7 3"  # a layer's line may be as red

# Palette of step pictures: nothing, visible, shares attended, dense, measured. The page shows through.
VISIBLE, SHARES, DENSE, MEASURED = 1, 2, 102, 103
PALETTE = [
    (0, 0, 0, 0),
    (128, 140, 160, 46),
    *((59, 130, 246, 70 + round(1.85 * i)) for i in range(1, 101)),
    (217, 119, 6, 130),
    (147, 51, 234, 150),
]


def _swatch(color: tuple[int, int, int, int]) -> str:
    r, g, b, a = color
    return f'<i style="background:rgba({r},{g},{b},{a / 255:.2f})"></i>'


def _active(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for c in run["contexts"] if c["rows"]]


def _layers(numbers: Any) -> str:
    return ", ".join(map(str, numbers)) or "none"


def facts(page: Page, name: str, run: dict[str, Any]) -> None:
    """A run in a few numbers."""
    total, config = run["total"], run["config"]
    visible = total["tokens_visible"]
    choices = sorted({tuple(c["selection_layers"]) for c in _active(run)})
    cards = [
        (f"{100 * total['tokens_attended'] / visible:.1f} %" if visible else "none", "of the tokens attended"),
        (number(total["rows"]), f"tokens decoded, {number(total['rows_sparse'])} of them sparsely"),
        (number(config["budget"]), "tokens that a sparse layer attends to"),
        (" or ".join(_layers(c) for c in choices) or "none", f"selection layers ({total.get('layers_from') or 'unknown'})"),
        (number(total["measured_steps"]), "steps measured"),
        (f"{number(total['alarms'])} of {number(total['audits'])}", "alarms of the guard, of its audits"),
    ]
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(text)}</span></li>" for value, text in cards)
    kernels = f" ({escape(run['target'])})" if "cpu" in run["engine"] else ""
    state = "" if run["state"] == "active" else f" The library was inert: {escape(run['reason'])}."
    page.head.append(
        f'<p class="soft"><code>{escape(name)}</code>: version {escape(run["version"])} on {escape(run["engine"])}{kernels}, '
        f"policy {escape(config['policy'])}, {len(_active(run))} context{'' if len(_active(run)) == 1 else 's'}.{state}</p>"
        f'<ul class="facts">{items}</ul>'
    )


def spans(text: str) -> list[tuple[int, int]]:
    """The ranges of a set as the statistics have it: "0-3 17"."""
    out = []
    for part in text.split():
        low, _, high = part.partition("-")
        out.append((int(low), int(high or low)))
    return out


# ---- Which tokens each step attended ----


def steps(page: Page, runs: list[tuple[str, dict[str, Any]]]) -> None:
    traced = []
    for name, run in runs:
        for i, context in enumerate(_active(run)):
            if context.get("trace") and context["trace"]["steps"]:
                traced.append((name, i, run, context))
    if not traced:
        return
    page.section(
        "Which tokens each step attended to",
        "One column is one decode step, from left to right; one row is a position of the text, the first token at the bottom. "
        "Blue tokens were in the set of the last selection layer, which the sparse layers after it attend to; grey ones "
        "were visible and left out. Point at a picture, or move through it with the arrow keys, to read it.",
    )
    for name, i, run, context in traced[:TRACES]:
        _map(page, name, i, run, context)
    if more := traced[TRACES : TRACES + MORE]:
        page.add(f"<details><summary>{len(more)} more context{'s' * (len(more) > 1)}</summary>")
        for name, i, run, context in more:
            _map(page, name, i, run, context)
        page.add("</details>")
    if left := len(traced) - TRACES - MORE:
        if left > 0:
            page.add(f'<p class="soft">{left} further contexts are in the statistics and not shown.</p>')


def _map(page: Page, name: str, index: int, run: dict[str, Any], context: dict[str, Any]) -> None:
    shown: list[dict[str, Any]] = context["trace"]["steps"]
    most = max(s["tokens"] for s in shown)
    first, last = shown[0], shown[-1]
    frame = Axes((0, len(shown)), (0, most), size=(900, 460))
    frame.grid(
        [((t[0]), number(shown[min(int(t[0]), len(shown) - 1)]["step"])) for t in ticks(0, len(shown), 8)],
        ticks(0, most, 6), "decode step of the context", "position in the text (tokens)",
    )  # fmt: skip
    smooth = "auto" if len(shown) > 400 else "pixelated"
    frame.parts.append(
        f'<image x="{frame.left}" y="{frame.top}" width="{frame.width}" height="{frame.height}" preserveAspectRatio="none" '
        f'style="image-rendering:{smooth}" href="{_image(shown, most)}"/>'
        f'<line class="cross" y1="{frame.top}" y2="{frame.top + frame.height}"/>'
        f'<line class="cross" x1="{frame.left}" x2="{frame.left + frame.width}"/>'
    )
    sparse = [s for s in shown if s["what"] == "sparse"]
    share = sum(b - a + 1 for s in sparse for a, b in spans(s["set"])) / max(sum(s["tokens"] for s in sparse), 1)
    kinds = {kind: sum(s["what"] == kind for s in shown) for kind in ("sparse", "dense", "measured", "ablation")}
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    label = (
        f"Steps {first['step']} to {last['step']} of a context of {most} tokens: {told}. "
        f"Sparse steps attend to {100 * share:.1f} % of the visible tokens outside the layers that choose."
    )
    every = context["trace"]["every"]
    layer = next((s["layer"] for s in reversed(shown) if s["layer"] >= 0), None)
    data = page.data([[s["step"], s["tokens"], s["what"], s["set"]] for s in shown])
    readout = page.id()
    attributes = (
        f'class="map" tabindex="0" data-steps="{data}" data-readout="{readout}" '
        f'data-frame="{frame.left} {frame.top} {frame.width} {frame.height} {most}"'
    )
    entries = [(_swatch(PALETTE[SHARES + 99]), "attended"), (_swatch(PALETTE[VISIBLE]), "visible, left out")]
    if kinds["dense"] or kinds["ablation"]:
        entries.append((_swatch(PALETTE[DENSE]), "dense step: everything is attended to"))
    if kinds["measured"]:
        entries.append((_swatch(PALETTE[MEASURED]), "measured step: dense, and sets are compared"))
    page.figure(
        f"Context {index + 1} of {name}",
        frame.svg(label, attributes),
        f"{escape(label)} {'Every step is shown' if every == 1 else f'One of {every} steps is shown'}"
        + ("." if layer is None else f"; the sets are those of layer {layer}."),
        legend(entries),
        f'<p class="readout" id="{readout}" aria-live="polite">&nbsp;</p>',
    )


def _image(shown: list[dict[str, Any]], most: int) -> str:
    per = math.ceil(most / HEIGHT)  # positions of a pixel
    height = math.ceil(most / per)
    columns = []
    for s in shown:
        tokens = s["tokens"]
        alive = -(-tokens // per)
        if s["what"] != "sparse":
            kind = MEASURED if s["what"] == "measured" else DENSE
            columns.append(bytes([kind] * alive + [0] * (height - alive)))
            continue
        counts = [0] * height
        for low, high in spans(s["set"]):
            for pixel in range(low // per, high // per + 1):
                counts[pixel] += min(high, pixel * per + per - 1) - max(low, pixel * per) + 1
        columns.append(
            bytes(
                (SHARES + max(0, round(100 * counts[i] / min(per, most - i * per)) - 1) if counts[i] else VISIBLE) if i < alive else 0
                for i in range(height)
            )
        )
    return _page.png([bytes(column[y] for column in columns) for y in reversed(range(height))], PALETTE)


# ---- What the audits found ----


def audits(page: Page, runs: list[tuple[str, dict[str, Any]]]) -> None:
    for name, run in runs:
        series: dict[int, list[tuple[float, float, float]]] = {}  # layer: (step, this loss, mean loss)
        events: list[tuple[float, dict[str, Any]]] = []
        expected: dict[int, float] = {}
        counts: dict[int, int] = {}
        before = 0
        for context in _active(run):
            trace = (context.get("trace") or {}).get("audits") or []
            for a in trace:
                series.setdefault(a["layer"], []).append((before + a["step"], a["loss"], a["mean"]))
            for a in context.get("audited") or []:
                expected[a["layer"]] = a["expected"]
                counts[a["layer"]] = counts.get(a["layer"], 0) + a["audits"]
                if not trace:  # kept without a trace: one number per context
                    series.setdefault(a["layer"], []).append((before + context["steps"], a["loss"], a["loss"]))
            for e in context.get("events") or []:
                events.append((before + e["step"], e))
            before += context["steps"]
        if series:
            _audited(page, name, run, series, events, expected, counts, before)


def _audited(
    page: Page, name: str, run: dict[str, Any], series: dict[int, list[tuple[float, float, float]]],
    events: list[tuple[float, dict[str, Any]]], expected: dict[int, float], counts: dict[int, int], end: int,
) -> None:  # fmt: skip
    total = run["total"]
    if "What the guard found" not in page.shown:
        page.section(
            "What the guard found",
            "Now and then one sparse layer attends to everything, and what its token set would have lost is compared: the "
            "share of its attention that the worst head loses against the layer's own best set. Dots are single audits, "
            "lines the running mean that is held against the profile, dashes what the profile lets expect.",
        )
    top = max([loss for of in series.values() for _, loss, _ in of] + list(expected.values()) + [0.2])
    axes = Axes((0, end), (0, min(1.0, 1.08 * top)), size=(900, 380))
    axes.grid(
        ticks(0, end, 8),
        ticks(0, min(1.0, 1.08 * top), 5),
        "decode step, contexts one after the other",
        "attention lost, worst head (share)",
    )
    worst = sorted(series, key=lambda layer: max(m for _, _, m in series[layer]) - expected.get(layer, 0), reverse=True)
    colored = {layer: COLORS[i] for i, layer in enumerate(sorted(worst[:LINES]))}
    for at, e in events:
        x, alarm = axes.x(at), e["what"] != "measured"
        color = "var(--alarm)" if alarm else "var(--ink)"
        told = f"{_event(e['what'])} at step {number(at)}, layers {_layers(e['layers'])}, loss {e['loss']:.2f}"
        axes.parts.append(
            f'<line x1="{_page.n(x)}" x2="{_page.n(x)}" y1="{axes.top}" y2="{axes.top + axes.height}" stroke="{color}" '
            f'stroke-width="1.5" stroke-dasharray="{ALARM if alarm else "2 4"}"><title>{escape(told)}</title></line>'
        )
    for layer in sorted(series, key=lambda layer: layer in colored):
        of, color = series[layer], colored.get(layer, "var(--rest)")
        for at, loss, _ in of:
            axes.parts.append(
                f'<circle cx="{_page.n(axes.x(at))}" cy="{_page.n(axes.y(min(max(loss, 0), axes._y[1])))}" r="1.9" '
                f'fill="{color}" fill-opacity=".55"/>'
            )
        axes.line([(at, mean) for at, _, mean in of], color)
        if layer in colored and layer in expected:
            axes.line([(of[0][0], expected[layer]), (end, expected[layer])], color, width=1.3, dash="5 4", opacity=0.7)
    entries = [(_line(color), f"layer {layer}") for layer, color in colored.items()]
    if len(series) > len(colored):
        entries.append((_line("var(--rest)"), f"{len(series) - len(colored)} other layers"))
    if any(e["what"] != "measured" for _, e in events):
        entries.append((_line("var(--alarm)", ALARM), "alarm"))
    if any(e["what"] == "measured" for _, e in events):
        entries.append((_line("var(--ink)", "2 4"), "measured"))
    rows = [
        (
            "",
            [
                f"layer {layer}",
                number(counts.get(layer, len(series[layer]))),
                f"{series[layer][-1][2]:.3f}",
                f"{expected.get(layer, 0):.3f}",
            ],
        )
        for layer in sorted(series)
    ]
    label = (
        f"{number(total['audits'])} audits of {len(series)} layers over {number(end)} steps; {number(total['alarms'])} alarms. "
        f"The largest mean loss at the end is {max(of[-1][2] for of in series.values()):.2f}."
    )
    page.figure(
        f"Audited loss per layer, {name}",
        axes.svg(label),
        escape(label),
        legend(entries),
        "<details><summary>The numbers</summary>"
        + _page.table(["", "audits", "mean loss at the end", "expected"], rows, "Audits per layer")
        + "</details>",
    )
    if events:
        _happened(page, events)


def _event(what: str) -> str:
    return {"drift": "alarm", "interval": "interval given up"}.get(what, what)


def _happened(page: Page, events: list[tuple[float, dict[str, Any]]]) -> None:
    rows = [
        ("", [number(at), _event(e["what"]), _layers(e["layers"]), f"{e['loss']:.2f}", f"{e['expected']:.2f}" if "expected" in e else "",
              number(e["tokens"])])
        for at, e in events
    ]  # fmt: skip
    head = ["step", "what", "layers", "loss", "expected", "tokens visible"]
    page.add('<div class="card"><h3>What happened, and when</h3>' + _page.table(head, rows, "Events") + "</div>")


def _line(color: str, dash: str = "", shape: str = "") -> str:
    point = marker(shape, 16, 7, color) if shape else ""
    return (
        f'<svg viewBox="0 0 32 14" aria-hidden="true"><path d="M1 7H31" stroke="{color}" stroke-width="2.4" '
        f'stroke-dasharray="{dash}" fill="none"/>{point}</svg>'
    )


# ---- What was measured of a model ----


def measured(page: Page, profiles: list[dict[str, Any]]) -> None:
    if not profiles:
        return
    page.section(
        "What was measured, and the layers that choose",
        "A cell says what a layer (row) loses with the token set of an earlier layer (column) instead of its own. Framed "
        "columns are the layers that choose; framed cells are what each sparse layer has with that choice.",
    )
    for profile in profiles:
        choice = profile["choice"]
        about = profile["measured"]
        title = f"Layers {_layers(choice)} choose ({profile['model']['layers']} layers, budget {number(profile['settings']['budget'])})"
        calibrated = profile.get("calibrated")
        if calibrated:
            page.add('<div class="pair">')
        worst = max((profile["loss"][j - 1][i] for j, i in _force(profile["model"]["layers"], choice)), default=0)
        _heat(
            page, title, profile["loss"], choice, "attention lost, worst head (share)", 2,
            f"Attention that the worst head loses, mean of {about['steps']} measured steps at {number(about['tokens'])} tokens, "
            f"sets of {number(about['probe_budget'])} tokens. The largest loss under the choice is {worst:.2f}.",
        )  # fmt: skip
        if calibrated:
            _heat(
                page, f"By ablation: layers {_layers(choice)}", calibrated["nats"], choice, "divergence (nats)", 2,
                f"How far the next token's probabilities move when one layer alone attends to the set: mean of "
                f"{calibrated['positions']} positions, up to {number(calibrated['tokens'])} tokens. This is the truth that "
                f"the loss stands for.",
            )  # fmt: skip
            page.add("</div>")


def _force(layers: int, choice: list[int]) -> list[tuple[int, int]]:
    """(layer, the layer whose set it uses) of the sparse layers."""
    return [(j, max(i for i in choice if i < j)) for j in range(choice[0] + 1, layers) if j not in choice]


def _heat(page: Page, title: str, triangle: list[list[float]], choice: list[int], unit: str, digits: int, caption: str) -> None:
    layers = len(triangle) + 1
    top = max(0.01, max(x for row in triangle for x in row))
    cell = max(11, min(34, 520 // layers))
    left, above = 52, 10
    size = cell * layers
    width, height = left + size + 84, above + size + 48
    text = cell >= 24
    parts = []
    for j in range(1, layers):
        y = above + j * cell
        for i, x in enumerate(triangle[j - 1]):
            if x < 0 and unit.startswith("div"):  # not tried
                continue
            share = max(0.0, x) / top
            place = f'x="{left + i * cell}" y="{y}" width="{cell}" height="{cell}"'
            told = f"layer {j} on the set of layer {i}: {x:.4f}"
            parts.append(
                f'<g><title>{told}</title><rect {place} fill="var(--grid)" fill-opacity=".35"/>'
                f'<rect {place} fill="var(--accent)" fill-opacity="{share:.3f}" stroke="var(--card)" stroke-width="1"/>'
            )
            if text:
                ink = "var(--card)" if share > 0.55 else "var(--ink)"
                short = f"{x:.{digits}f}"[1:] if 0 <= x < 0.995 else f"{x:.1f}"
                parts.append(
                    f'<text x="{left + i * cell + cell / 2}" y="{y + cell / 2 + 3.5}" text-anchor="middle" '
                    f'style="font-size:10px;fill:{ink}">{short}</text>'
                )
            parts.append("</g>")
    for i in choice:
        parts.append(
            f'<rect x="{left + i * cell}" y="{above + (i + 1) * cell}" width="{cell}" height="{(layers - i - 1) * cell}" '
            f'fill="none" stroke="var(--warm)" stroke-width="1.6" stroke-dasharray="4 3"/>'
        )
    for j, i in _force(layers, choice):
        parts.append(
            f'<rect x="{left + i * cell + 1}" y="{above + j * cell + 1}" width="{cell - 2}" height="{cell - 2}" fill="none" '
            f'stroke="var(--warm)" stroke-width="2.4"/>'
        )
    step = 1 if cell >= 16 else 4
    for k in range(0, layers, step):
        bold = ' style="font-weight:700;fill:var(--warm)"' if k in choice else ""
        parts.append(
            f'<text class="soft" x="{left - 6}" y="{above + k * cell + cell / 2 + 4}" text-anchor="end"{bold}>{k}</text>'
            f'<text class="soft" x="{left + k * cell + cell / 2}" y="{above + size + 15}" text-anchor="middle"{bold}>{k}</text>'
        )
    middle = above + size / 2
    parts.append(
        f'<text x="{left + size / 2}" y="{height - 8}" text-anchor="middle">token set of layer</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">layer that loses</text>'
    )
    bar, bars = left + size + 18, 24
    for k in range(bars):
        parts.append(
            f'<rect x="{bar}" y="{above + size * (bars - 1 - k) / bars:.1f}" width="13" height="{size / bars + 0.5:.1f}" '
            f'fill="var(--accent)" fill-opacity="{(k + 0.5) / bars:.3f}"/>'
        )
    parts.append(
        f'<text class="soft" x="{bar + 18}" y="{above + 9}">{number(round(top, 2))}</text>'
        f'<text class="soft" x="{bar + 18}" y="{above + size}">0</text>'
        f'<text class="soft" x="{bar + 52}" y="{middle}" text-anchor="middle" transform="rotate(-90 {bar + 52} {middle})">{escape(unit)}</text>'
    )
    label = f"{caption} Layers {_layers(choice)} choose."
    chart = (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{max(width, 480)}px;min-width:{0.85 * width:.0f}px" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
    page.figure(title, chart, escape(caption))


# ---- What it costs ----


def checked(page: Page, report: dict[str, Any]) -> None:
    """A check of a model on a text."""
    made, text = report["made"], report["text"]
    page.section(
        "What it costs",
        f"<strong>{escape(report['verdict'])}</strong> {escape(report['model'])} on {escape(text['from'])}, in {escape(made['host'])}: "
        f"a context, then {number(report['contexts'][0]['steps'])} tokens of the text, one at a time, in each setting. Nats are the "
        f"divergence of a token's probabilities from the host's own full attention; the dashed line is what the library differs by "
        f"while it attends to everything, the noise floor.",
    )
    for note in report["notes"]:
        page.add(f'<p class="soft">{escape(note[0].upper() + note[1:])}.</p>')
    budgets = sorted({r["budget"] for of in report["contexts"] for r in of["results"] if r["budget"]})
    top = max(r["nats"]["interval"][1] for of in report["contexts"] for r in of["results"])
    top = max(1.1 * top, 0.002)
    page.add('<div class="pair">')
    for of in report["contexts"]:
        axes = Axes((budgets[0] / 1.3, budgets[-1] * 1.3), (0, top), log_x=True, size=(620, 340))
        axes.grid([(b, number(b)) for b in budgets], ticks(0, top), "budget (tokens per sparse layer)", "nats a token")
        floor = next(r for r in of["results"] if r["name"] == "full")["nats"]["mean"]
        axes.line([(budgets[0] / 1.3, floor), (budgets[-1] * 1.3, floor)], "var(--rest)", dash=DASHES[1], width=1.6)
        ours = [r for r in of["results"] if r["budget"]]
        axes.line([(r["budget"], r["nats"]["mean"]) for r in ours], COLORS[0])
        for r in ours:
            x, (low, high) = axes.x(r["budget"]), r["nats"]["interval"]
            axes.parts.append(
                f'<line x1="{_page.n(x)}" x2="{_page.n(x)}" y1="{_page.n(axes.y(low))}" y2="{_page.n(axes.y(high))}" '
                f'stroke="{COLORS[0]}" stroke-opacity=".45"/>'
            )
            told = f"{number(r['budget'])} tokens: {r['nats']['mean']:.4f} nats, {_percent(r['nats']['same'])} the same best token"
            axes.parts.append(marker("circle", x, axes.y(r["nats"]["mean"]), COLORS[0], told))
        label = f"Divergence from the host by budget, behind {number(of['context'])} tokens; the noise floor is {floor:.4f} nats."
        page.figure(
            f"Behind {number(of['context'])} tokens",
            axes.svg(label),
            "Lower is better. Whiskers are 95 % intervals (bootstrap over runs of steps).",
            legend([(_line(COLORS[0], "", "circle"), "lessismore"), (_line("var(--rest)", DASHES[1]), "noise floor")]),
        )
    page.add("</div>")
    rows = [("ours" if cells[1].endswith("tokens") else "", cells) for cells in _verdict.rows(report)]
    page.add('<div class="card"><h3>The table</h3>' + _page.table(_verdict.HEAD, rows, "What it costs") + "</div>")


# ---- The comparison ----


def compared(page: Page, found: dict[str, Any]) -> None:
    methods = {m["key"]: m for m in found["methods"]}
    by: dict[str, dict[Optional[int], dict[str, Any]]] = {}
    found = {**found, "results": [r for r in found["results"] if "equal" not in r]}  # a budget's own; equal bytes are the table's
    for r in found["results"]:
        by.setdefault(r["method"], {})[r["budget"]] = r
    keys = [key for key in methods if key in by]
    budgets = sorted({b for of in by.values() for b in of if b is not None})
    if not keys or not budgets:
        return
    task = found["task"]
    problems = max(r["problems"] for r in found["results"])
    page.section(
        "Against other methods",
        f"{problems} problems of {escape(str(task.get('name', 'a task')))} with one right answer each: {number(task['prompt_tokens'])} "
        f"tokens of prompt, {number(task['solution_tokens'])} of solution. Solved means right to the last token. Whiskers are "
        f"95 % intervals (Wilson).",
    )
    style = _styles(methods, keys)
    low, high = budgets[0] / 1.3, budgets[-1] * 1.3
    lines = [key for key in keys if None not in by[key]]

    def by_budget(value: Any, interval: Any, shares: list[tuple[float, str]], name: str) -> Axes:
        span = shares[-1][0] - shares[0][0]
        axes = Axes((low, high), (shares[0][0] - 0.02 * span, shares[-1][0] + 0.03 * span), log_x=True, size=(620, 400))
        axes.grid([(b, number(b)) for b in budgets], shares, "budget (tokens per sparse layer)", name)
        for key in keys:
            color, dash, _ = style[key]
            if None in by[key]:
                axes.line([(low, value(by[key][None])), (high, value(by[key][None]))], color, dash=dash, width=1.4)
        for i, key in enumerate(lines):
            color, dash, shape = style[key]
            nudge = 2 ** ((i - (len(lines) - 1) / 2) * 0.02)  # so that equal ones are not on top of each other
            points = [(b * nudge, r) for b, r in sorted((b, r) for b, r in by[key].items() if b is not None)]
            axes.line([(b, value(r)) for b, r in points], color, dash=dash)
            for b, r in points:
                x = axes.x(b)
                if interval is not None:
                    least, most = interval(r)
                    axes.parts.append(
                        f'<line x1="{_page.n(x)}" x2="{_page.n(x)}" y1="{_page.n(axes.y(least))}" y2="{_page.n(axes.y(most))}" '
                        f'stroke="{color}" stroke-opacity=".35"/>'
                    )
                axes.parts.append(marker(shape, x, axes.y(value(r)), color, _told(methods[key], r)))
        return axes

    shares = [(k / 5, f"{20 * k} %") for k in range(6)]
    solved = by_budget(lambda r: r["exact"] / r["problems"], lambda r: r["exact_interval"], shares, "problems solved")
    least = min(r["tokens_right"] for r in found["results"])
    right = by_budget(lambda r: r["tokens_right"], None, _percents(least), "tokens right")
    entries = [(_line(*style[key][:2], style[key][2] if key in lines else ""), methods[key]["name"]) for key in keys]
    reading = Axes((0, 1), (-0.02, 1.03), size=(620, 400))
    reading.grid(shares, shares, "K/V bytes read, the choice included (share of full attention)", "problems solved")
    for key in keys:
        color, dash, shape = style[key]
        path = [r for _, r in sorted(by[key].items(), key=lambda item: item[0] or 0) if r["read"] is not None]
        reading.line([(r["read"], r["exact"] / r["problems"]) for r in path], color, dash=dash, width=1.4, opacity=0.7)
        for r in path:
            reading.parts.append(marker(shape, reading.x(r["read"]), reading.y(r["exact"] / r["problems"]), color, _told(methods[key], r)))
    best = {b: max((by[key][b]["exact"] / by[key][b]["problems"], methods[key]["name"]) for key in lines if b in by[key]) for b in budgets}
    label = "Share of problems solved by budget. " + " ".join(
        f"At {b} tokens {name} solves {100 * share:.0f} %." for b, (share, name) in best.items()
    )
    page.add('<div class="card">' + legend(entries) + '</div><div class="pair">')
    page.figure("Problems solved, by budget", solved.svg(label), "Higher is better. Lines without points do not depend on the budget.")
    page.figure(
        "Problems solved, by what is read",
        reading.svg("Share of problems solved against the share of K/V bytes read, one line per method over its budgets."),
        "Up and to the left is better. One line is one method, over its budgets.",
    )
    page.figure(
        "Tokens right, by budget",
        right.svg("Share of the next tokens that are right, each behind the right text, by budget."),
        "Each prediction is made behind the right text: how often a method goes wrong, where one wrong token spoils an answer.",
    )
    _losses(page, by, methods, style, budgets, task.get("layers"))
    page.add("</div>")
    _table(page, found.get("made") or {}, by, methods, keys)


def _table(
    page: Page, made: dict[str, Any], by: dict[str, dict[Optional[int], dict[str, Any]]], methods: dict[str, Any], keys: list[str]
) -> None:
    rows = []
    for key in keys:
        for b, r in sorted(by[key].items(), key=lambda item: item[0] or 0):
            loss = None if not r["loss"] else max(r["loss"])
            wrong = r["first_wrong"]["tokens"]
            least, most = r["exact_interval"]
            rows.append((
                "ours" if methods[key]["family"] == "lessismore" else "",
                [methods[key]["name"], "" if b is None else number(b), f"{r['exact']} of {r['problems']}",
                 f"{100 * least:.0f} to {100 * most:.0f} %", _percent(r["tokens_right"]), number(sorted(wrong)[len(wrong) // 2]) if wrong else "",
                 _percent(r["attended"]), _percent(r["read"]), "" if loss is None else f"{loss:.2f}",
                 number(r["length"]["mean"], 0) if r.get("length") else ""],
            ))  # fmt: skip
    head = [
        "method", "budget", "solved", "95 % interval", "tokens right", "first wrong token (median)", "attended", "read", "loss, worst layer",
        "tokens generated",
    ]  # fmt: skip
    page.add('<div class="card"><h3>The table</h3>' + _page.table(head, rows, "Comparison") + "</div>")
    if made.get("command"):
        page.add(
            f'<p class="soft">Made by <code>{escape(made["command"])}</code>, {escape(str(made.get("host", "")))}, {escape(str(made.get("cpu", "")))}.</p>'
        )


def _losses(
    page: Page, by: dict[str, dict[Optional[int], dict[str, Any]]], methods: dict[str, Any],
    style: dict[str, tuple[str, str, str]], budgets: list[int], layers: Optional[int],
) -> None:  # fmt: skip
    """What each layer loses, at the budget in the middle."""
    budget = budgets[len(budgets) // 2]
    of = {key: by[key][budget]["loss"] for key in by if budget in by[key] and by[key][budget]["loss"]}
    if not of:
        return
    layers = layers or max(map(len, of.values()))
    top = max(0.05, max(max(loss) for loss in of.values()))
    axes = Axes((-0.3, layers - 0.7), (0, 1.05 * top), size=(620, 400))
    axes.grid([(k, str(k)) for k in range(0, layers, max(1, layers // 12))], ticks(0, 1.05 * top), "layer", "attention lost (share)")
    for key, loss in of.items():
        color, dash, shape = style[key]
        axes.line(list(enumerate(loss)), color, dash=dash, width=1.5)
        for k, x in enumerate(loss):
            axes.parts.append(marker(shape, axes.x(k), axes.y(x), color, f"{methods[key]['name']}, layer {k}: {x:.3f}", 3))
    page.figure(
        f"Loss per layer, budget {number(budget)}",
        axes.svg(f"Attention lost per layer at a budget of {budget} tokens, one line per method."),
        "The share of its attention that the worst head of a layer loses against its own best set of the same size.",
    )


def _percents(least: float) -> list[tuple[float, str]]:
    """Ticks from below a share up to 1."""
    low = 1 - math.ceil(max(1 - least, 0.01) * 20) / 20
    return [(low + (1 - low) * k / 5, f"{100 * (low + (1 - low) * k / 5):.0f} %") for k in range(6)]


def _percent(x: Optional[float]) -> str:
    return "" if x is None else f"{100 * x:.1f} %"


def _told(method: dict[str, Any], r: dict[str, Any]) -> str:
    budget = "" if r["budget"] is None else f" at {r['budget']} tokens"
    read = "" if r["read"] is None else f", reads {100 * r['read']:.0f} %"
    return f"{method['name']}{budget}: {r['exact']} of {r['problems']} solved{read}"


def _styles(methods: dict[str, Any], keys: list[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, dash and shape of each method: ours blue, references and bounds grey, every other a colour of its own."""
    out, ours, grey, others = {}, 0, 0, 0
    for key in keys:
        family = methods[key]["family"]
        if family == "lessismore":
            color, dash = ("var(--c0)", "var(--c4)", "var(--c7)")[ours // 3 % 3], DASHES[ours % 3]
            shape = _page.SHAPES[ours % 5]
            ours += 1
        elif family in ("reference", "floor", "ceiling"):
            color, dash, shape = "var(--rest)", DASHES[(grey + 1) % 3], _page.SHAPES[(grey + 2) % 5]
            grey += 1
        else:
            color = ("var(--c1)", "var(--c2)", "var(--c5)", "var(--c3)", "var(--c6)")[others % 5]
            dash, shape = DASHES[others // 5 % 3], _page.SHAPES[others % 5]
            others += 1
        out[key] = (color, dash, shape)
    return out
