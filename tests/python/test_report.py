"""`lessismore report`: a page made of a real run, opened in a real browser."""

import json
import random
import re

import matplotlib.image
import numpy as np
import pytest
import reasoner
from browser import Browser
from test_cli import cli, one_line

BUDGET, LAYERS, DECODED = 128, 12, 600
DESKTOP, PHONE = (1200, 900), (360, 740)
ODD = "<script>alert('x')</script> & co"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Statistics and the profile of a run that found its layers by itself."""
    folder = tmp_path_factory.mktemp("run")
    (problem,) = reasoner.problems(1)
    stats = folder / "stats.json"
    cli(
        "run", reasoner.GGUF, "-p", problem.prompt, "-n", DECODED + 1, "--threads", 1, "--budget", BUDGET, "--stats", stats,
        "--trace", 400, "--guard", 4, "--profile", folder / "profile.json",
    )  # fmt: skip
    return stats, folder / "profile.json"


def comparison(budgets=(64, 128, 256)):
    """Results as `lessismore compare` writes them, with numbers drawn afresh."""
    families = {"full": "reference", "lim": "lessismore", "lim-auto": "lessismore", "quest": "training-free",
                "kascade": "training-free", "seer": "stand-in", "window": "floor", "oracle": "ceiling"}  # fmt: skip
    results = []
    for key in families:
        for budget in [None] if key == "full" else budgets:
            exact = random.randint(0, 30)
            results.append({
                "method": key, "budget": budget, "problems": 30, "exact": exact,
                "exact_interval": [max(0, exact / 30 - 0.1), min(1, exact / 30 + 0.1)], "tokens_right": random.uniform(0.6, 1),
                "first_wrong": {"steps": [3] * (exact < 30), "tokens": [60] * (exact < 30)},
                "length": {"of": 2, "mean": 1182.0, "capped": 0}, "attended": random.random(), "read": random.random(),
                "loss": None if key == "lim-auto" else [random.random() for _ in range(LAYERS)],
            })  # fmt: skip
    return {
        "format": 1, "made": {"command": "lessismore compare x", "host": "a host", "cpu": "a CPU"}, "budgets": list(budgets),
        "task": {"name": ODD, "prompt_tokens": 843, "solution_tokens": 1182},
        "methods": [{"key": key, "name": f"the {key}", "family": family} for key, family in families.items()], "results": results,
    }  # fmt: skip


def check(contexts=(4096, 7168), budgets=(512, 1024, 2048)):
    """Results as `lessismore check` writes them, with numbers drawn afresh."""

    def row(name, budget, scale, attended):
        mean = scale * random.uniform(0.5, 1)
        nats = {"mean": mean, "interval": [0.8 * mean, 1.2 * mean], "median": mean / 2, "p99": 9 * mean, "most": 20 * mean, "same": 0.9}
        return {
            "name": name, "budget": budget, "perplexity": random.uniform(5, 20), "nats": nats, "facts": [random.random() < 0.5 for _ in "12345678"],
            "ms": random.uniform(5, 50), "faster": random.uniform(1, 5), "attended": attended, "engaged": True, "why": None,
            "selection_layers": [2, 17, 20],
        }  # fmt: skip

    rows = [[row("host", None, 0, 1), row("full", None, 0.005, 1), *(row("budget", b, 20 / b, 0.3) for b in budgets)] for _ in contexts]
    return {
        "format": 1, "made": {"version": "1", "host": "a host", "cpu": "a CPU", "threads": 2, "seconds": 9.0}, "model": ODD,
        "text": {"from": ODD, "sha256": "0" * 16}, "notes": ["a note & more"], "verdict": f"With 512 expect {ODD}.",
        "contexts": [{"context": c, "from": c + 64, "steps": 512, "baseline": "flash on", "results": r} for c, r in zip(contexts, rows)],
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "compare.json").write_text(json.dumps(comparison()))
    (folder / "check.json").write_text(json.dumps(check()))
    more = ["--check", folder / "check.json", "--compare", folder / "compare.json"]
    out, _ = cli("report", run[0], run[1], *more, "-o", folder / "report.html", "--title", ODD, "--json")
    found = json.loads(out)
    assert len(found["shown"]) == 5
    assert found["bytes"] == (folder / "report.html").stat().st_size < 2 << 20
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def test_nothing_comes_from_elsewhere(page):
    text = page.read_text()
    assert not re.search(r"(src|href)\s*=\s*(?![\"'](data:|#))", text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert ODD not in text, "text is escaped"


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_page_opens_without_a_complaint(page, browser, size, dark, tmp_path):
    browser.open(page, *size, dark=dark)
    assert browser.value("document.querySelector('h1').textContent") == ODD
    assert browser.value("document.documentElement.scrollWidth") <= size[0], "the page itself never scrolls sideways"
    small = browser.value(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => parseFloat(getComputedStyle(t).fontSize) *"
        " Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b)))"
    )
    assert small > 8, "text in charts can be read"
    assert browser.value("[...document.querySelectorAll('[role=img]')].every(s => s.getAttribute('aria-label').length > 40)")
    browser.screenshot(tmp_path / "page.png")
    pixels = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert pixels.shape[1] == size[0] and pixels.shape[0] > 3000
    corner = pixels[2, 2].mean()
    assert corner < 0.2 if dark else corner > 0.9
    colors = np.unique((pixels.reshape(-1, 3) * 15).astype(int), axis=0)
    assert len(colors) > 100
    assert browser.problems == []


def spans(text):
    return [tuple(map(int, (part.split("-") * 2)[:2])) for part in text.split()]


def test_step_picture_shows_the_sets(page, browser, run):
    """The image's pixels are what the statistics say, column by column."""
    (context,) = (c for c in json.loads(run[0].read_text())["contexts"] if c["rows"])
    steps = context["trace"]["steps"]
    assert 200 <= len(steps) <= 400 and {s["what"] for s in steps} == {"sparse", "measured"}
    most = steps[-1]["tokens"]
    browser.open(page, *DESKTOP)
    width, height, alpha = browser.value("""(async () => {
        const image = new Image();
        image.src = document.querySelector("svg.map image").getAttribute("href");
        await image.decode();
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.width, canvas.height, Array.from({length: data.length / 4}, (_, i) => data[4 * i + 3])];
    })()""")
    alpha = np.array(alpha).reshape(height, width)[::-1]  # the first position is at the bottom
    assert width == len(steps)
    per = -(-most // height)
    for x, s in enumerate(steps):
        alive = -(-s["tokens"] // per)
        assert alpha[:alive, x].all() and not alpha[alive:, x].any(), "what does not exist yet is empty"
        if s["what"] == "sparse":
            assert sum(b - a + 1 for a, b in spans(s["set"])) == BUDGET
            attended = {p // per for a, b in spans(s["set"]) for p in range(a, b + 1)}
            assert {int(y) for y in np.flatnonzero(alpha[:, x] > 50)} == attended


def test_step_picture_is_read_by_keyboard(page, browser, run):
    (context,) = (c for c in json.loads(run[0].read_text())["contexts"] if c["rows"])
    *_, last, final = context["trace"]["steps"]
    browser.open(page, *DESKTOP)
    browser.value("document.querySelector('svg.map').focus()")
    browser.key("ArrowLeft")
    text = browser.value("document.querySelector('.readout').textContent")
    newest = spans(last["set"])[-1][1]
    assert text.startswith(f"Step {last['step']}: {last['tokens']:,} tokens visible, {BUDGET} attended")
    assert text.endswith(f"position {final['tokens'] - 1:,}: does not exist yet"), text
    for _ in range(final["tokens"] - 1 - newest):
        browser.key("ArrowDown")
    assert browser.value("document.querySelector('.readout').textContent").endswith(f"position {newest:,}: attended")
    browser.value("document.querySelector('svg.map').blur()")
    assert browser.value("document.querySelectorAll('[tabindex=\"0\"]').length") >= 5
    assert browser.problems == []


def test_heat_map_and_audits_and_curves(page, browser, run):
    profile, compare = json.loads(run[1].read_text()), json.loads((page.parent / "compare.json").read_text())
    browser.open(page, *DESKTOP)
    titles = browser.value("[...document.querySelectorAll('svg title')].map(t => t.textContent)")
    for j in range(1, LAYERS):
        for i in range(j):
            assert f"layer {j} on the set of layer {i}: {profile['loss'][j - 1][i]:.4f}" in titles
    heat = "[...document.querySelectorAll('svg')].find(s => s.textContent.includes('token set of layer'))"
    framed = browser.value(f"[...{heat}.querySelectorAll('rect[stroke-width=\"2.4\"]')].length")
    assert framed == sum(j > profile["choice"][0] and j not in profile["choice"] for j in range(LAYERS))
    (context,) = (c for c in json.loads(run[0].read_text())["contexts"] if c["rows"])
    dots = browser.value("document.querySelectorAll('circle[fill-opacity]').length")
    assert dots == len(context["trace"]["audits"]) > 50
    lines = browser.value(
        "[...[...document.querySelectorAll('figure')].find(f => f.textContent.startsWith('Audited loss'))"
        ".querySelectorAll('.legend path')].map(p => getComputedStyle(p).stroke + ' ' + p.getAttribute('stroke-dasharray'))"
    )
    assert len(set(lines)) == len(lines) > len({a["layer"] for a in context["trace"]["audits"]}) > 5, "no two lines look the same"
    for r in compare["results"]:
        name = f"the {r['method']}" + ("" if r["budget"] is None else f" at {r['budget']} tokens")
        assert any(t.startswith(f"{name}: {r['exact']} of 30 solved") for t in titles), name
    cells = browser.value("[...document.querySelectorAll('table')].at(-1).rows.length")
    assert cells == 1 + len(compare["results"])


def test_what_it_costs(page, browser):
    checked = json.loads((page.parent / "check.json").read_text())
    browser.open(page, *DESKTOP)
    titles = browser.value("[...document.querySelectorAll('svg title')].map(t => t.textContent)")
    rows = [r for of in checked["contexts"] for r in of["results"]]
    for r in rows:
        told = f"{r['budget']:,} tokens: {r['nats']['mean']:.4f} nats, 90.0 % the same best token" if r["budget"] else None
        assert told is None or told in titles
    table = "[...document.querySelectorAll('.card')].find(c => c.textContent.includes('nats a token')).querySelector('table')"
    assert browser.value(f"{table}.rows.length") == 1 + len(rows)
    assert browser.value("document.querySelector('main strong').textContent") == checked["verdict"]


def test_what_there_is_not_is_left_out(run, browser, tmp_path):
    for arguments, shown in (([run[1]], 1), ([run[0]], 3)):
        out, _ = cli("report", *arguments, "-o", tmp_path / "r.html", "--json")
        assert len(json.loads(out)["shown"]) == shown
        browser.open(tmp_path / "r.html", *DESKTOP)
        assert browser.problems == []


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ("{}", "neither statistics"),
        ('{"choice": [], "loss": []}', "neither statistics"),
    ],
)
def test_files_that_are_something_else(text, says, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    _, log = cli("report", path, "-o", tmp_path / "r.html", code=1)
    assert says in one_line(log) and not (tmp_path / "r.html").exists()
    for kind in ("--compare", "--check"):
        _, log = cli("report", kind, path, "-o", tmp_path / "r.html", code=1)
        one_line(log)
    assert "there is nothing to show" in cli("report", code=1)[1]
