"""No layers given: the library finds them, keeps them, and watches them."""

import json
from pathlib import Path

import hostlib
import numpy as np
import pytest
from checks import BUDGET, active, log_lines, solved_all
from hostlib import Problem

AUTO = {"LESSISMORE_BUDGET": BUDGET}
WITH = [("llama-cpp-python", {"scenario": "solve"}), ("node", {})]
MEASURED_STEPS = 60


@pytest.fixture(scope="module")
def unseen():
    """Problems that no other test uses; the library's settings were not found on them either."""
    return [Problem.make(seed) for seed in range(300, 352)]


@pytest.fixture(scope="module")
def right(library, unseen, tmp_path_factory):
    """A profile of the reasoner, as a run leaves it behind."""
    path = tmp_path_factory.mktemp("profile") / "right.json"
    run("llama-cpp-python", {"scenario": "solve"}, library, unseen[:1], {"LESSISMORE_PROFILE": path})
    return path


def run(host, job, library, problems, settings, **more):
    return hostlib.run(host, library=library, settings={**AUTO, **settings}, problems=problems, **job, **more)


def by_hand(problems) -> int:
    """Tokens that layers 2,9 attend to over these problems: four full layers of twelve."""
    return sum(4 * n + 8 * min(n, BUDGET) for p in problems for n in range(len(p.prompt) + 1, len(p.prompt) + len(p.solution)))


def changed(path: Path, to: Path, **fields) -> Path:
    to.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return to


def events(result, what):
    """(index of the problem, event) of all contexts, one context a problem."""
    return [(i, e) for i, c in enumerate(result.contexts()) for e in c.get("events", []) if e["what"] == what]


@pytest.mark.parametrize("host, job", WITH)
def test_sixteen_unseen_problems_and_again(host, job, library, unseen, tmp_path):
    some, cache = unseen[:16], {"XDG_CACHE_HOME": tmp_path}
    result = run(host, job, library, some, cache)
    solved_all(result, some)
    total = active(result)
    assert total["selection_layers"] == [2, 9] and total["layers_from"] == "measured"
    assert total["alarms"] == 0
    assert total["measured_steps"] == 2 * MEASURED_STEPS  # beyond 4 budgets at first, then at 8
    assert total["tokens_attended"] <= 1.25 * by_hand(some), total
    assert total["rows_sparse"] == total["rows"] - 2 * MEASURED_STEPS
    (profile,) = (tmp_path / "lessismore" / "profiles").iterdir()
    kept = json.loads(profile.read_text())
    assert kept["choice"] == [2, 9] and profile.name == kept["fingerprint"] + ".json"
    assert result.stats["models"] == [kept]

    again = run(host, job, library, some, cache)
    solved_all(again, some)
    total = active(again)
    assert total["measured_steps"] == total["dense_steps"] == total["alarms"] == 0
    assert total["selection_layers"] == [2, 9] and total["layers_from"] == "profile"
    assert total["tokens_attended"] <= 1.05 * by_hand(some), total
    assert any(str(profile) in line for line in log_lines(again)), again.log[-2000:]


@pytest.mark.parametrize("host, job", WITH)
def test_a_target_from_nothing(host, job, library, unseen, tmp_path):
    """Real divergence knows what lost attention does not: layer 10 need not choose, and two layers suffice."""
    some, cache = unseen[16:20], {"XDG_CACHE_HOME": tmp_path, "LESSISMORE_QUALITY": 0.005}
    result = run(host, job, library, some, cache)
    solved_all(result, some)
    total = active(result)
    assert total["selection_layers"] == [2, 9] and total["layers_from"] == "measured"
    assert total["alarms"] == total["trials_refused"] == 0
    by_choice = 1 + 8 + 64  # twice the same first; one layer fails; two suffice
    assert by_choice <= total["trial_steps"] <= by_choice + total["rows"] / 16, total
    assert total["rows_sparse"] == total["rows"] - total["measured_steps"] - total["trial_steps"]
    assert any("[2 9]" in line and "for a quality of 0.005" in line for line in log_lines(result)), result.log[-2000:]
    (profile,) = (tmp_path / "lessismore" / "profiles").iterdir()
    kept = json.loads(profile.read_text())["tried"]
    tried = {tuple(c["layers"]): c for c in kept["candidates"]}
    assert tried[2, 9]["nats"] / tried[2, 9]["trials"] < 1e-3 < 0.1 < max(c["nats"] / c["trials"] for c in tried.values() if c["trials"])

    again = run(host, job, library, some, cache)
    solved_all(again, some)
    total = active(again)
    assert total["selection_layers"] == [2, 9] and total["layers_from"] == "profile" and total["measured_steps"] == 0
    more = {tuple(c["layers"]): c for c in json.loads(profile.read_text())["tried"]["candidates"]}
    assert more[2, 9]["trials"] > tried[2, 9]["trials"], "what is measured adds up"


@pytest.mark.parametrize("host, kv", [("llama-cpp-python", "f16"), ("node-libs", "q8_0")])
def test_a_step_that_is_computed_twice_leaves_no_trace(host, kv, library, unseen, tmp_path):
    """What the host gets is the dense result: each bit of its logits, then and in every later step, is full attention's."""
    p = unseen[22]
    job = {
        "scenario": "forced",
        "tokens": p.prompt + p.solution[:200],
        "prompt": len(p.prompt),
        "kv": kv,
        "output": str(tmp_path / "logits.npy"),
    }
    found = []
    for settings in ({"LESSISMORE_QUALITY": 1e-12, "LESSISMORE_GUARD": "off"}, {"LESSISMORE_BUDGET": 1 << 24}):
        result = hostlib.run(host, library=library, settings={**AUTO, "LESSISMORE_PROFILE": "off", **settings}, **job)
        found.append((np.load(tmp_path / "logits.npy"), result.stats["total"]))
    (twice, tried), (dense, plain) = found
    assert tried["trial_steps"] > 40 and tried["trials_refused"] == tried["rows_sparse"] == 0 and plain["trial_steps"] == 0
    assert twice.shape[0] == 201 and np.array_equal(twice.view(np.uint32), dense.view(np.uint32))


@pytest.mark.parametrize("host, job", WITH)
def test_short_prompt_whose_answer_crosses_the_budget(host, job, library, unseen, right, tmp_path):
    some = [Problem.make(seed, steps=7) for seed in range(9100, 9104)]
    assert all(len(p.prompt) < BUDGET < len(p.prompt) + len(p.solution) for p in some)
    result = run(host, job, library, some, {"XDG_CACHE_HOME": tmp_path})
    solved_all(result, some)  # below twice the budget nothing is measured: dense
    assert active(result)["rows_sparse"] == 0

    result = run(host, job, library, some, {"LESSISMORE_PROFILE": right})
    solved_all(result, some)  # with a profile: sparse from the budget on
    assert active(result)["rows_sparse"] > 0

    long = [Problem.make(seed, steps=45) for seed in range(9104, 9106)]
    budget = 700
    assert all(len(p.prompt) < budget and len(p.prompt) + len(p.solution) > 2 * budget + MEASURED_STEPS for p in long)
    result = run(host, job, library, long, {"LESSISMORE_BUDGET": budget, "XDG_CACHE_HOME": tmp_path})
    solved_all(result, long)
    total = active(result)
    assert total["selection_layers"] == [2, 9] and total["rows_sparse"] > 0 and total["dense_steps"] > 0


@pytest.mark.parametrize("lies", [False, True])
def test_wrong_profile_is_noticed(lies, library, unseen, right, tmp_path):
    loss = json.loads(right.read_text())["loss"]
    if lies:  # the measurements agree with the wrong choice
        for j in range(7, 12):
            loss[j - 1][6] = 0.15
    wrong = changed(right, tmp_path / "wrong.json", choice=[2, 6], loss=loss)
    some = unseen[:6]
    result = run("llama-cpp-python", {"scenario": "solve"}, library, some, {"LESSISMORE_PROFILE": wrong})
    ((noticed, alarm),), ((_, measured),) = events(result, "drift"), events(result, "measured")
    assert alarm["layers"][0] in (9, 10) and alarm["loss"] > alarm.get("expected", 0) + 0.1
    assert measured["layers"] == [2, 9]
    assert noticed < 3, "too late"
    exact = result.exact(some)
    assert not all(exact[: noticed + 1]), "a wrong profile does no harm: the test shows nothing"
    assert all(exact[noticed + 1 :]), exact
    assert result.stats["total"]["alarms"] == 1
    assert any("guard" in line for line in log_lines(result))
    assert json.loads(wrong.read_text())["choice"] == [2, 9], "the profile is mended"


def test_wrong_profile_without_a_guard(library, unseen, right, tmp_path):
    """Control: it is the guard that saves them."""
    wrong = changed(right, tmp_path / "wrong.json", choice=[2, 6])
    result = run("llama-cpp-python", {"scenario": "solve"}, library, unseen[:3], {"LESSISMORE_PROFILE": wrong, "LESSISMORE_GUARD": "off"})
    assert result.solved(unseen[:3]) == 0
    assert active(result)["audits"] == 0


def test_right_profile_raises_no_alarm(library, unseen, right):
    some = unseen[2:52]
    result = run("llama-cpp-python", {"scenario": "solve"}, library, some, {"LESSISMORE_PROFILE": right}, timeout=1200)
    solved_all(result, some)
    total = active(result)
    assert total["alarms"] == 0 and total["audits"] > 3000
    assert {a["layer"] for a in total["audited"]} == {3, 4, 5, 6, 7, 8, 10, 11}


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda p: p["model"].update(heads=16), "heads 16, here it is 8"),
        (lambda p: p["model"].update(weights="0123456789abcdef"), "weights 0123456789abcdef"),
        (lambda p: p["settings"].update(budget=64), "budget 64, here it is 128"),
        (lambda p: p.update(choice=[2, 12]), "0 .. 11"),
        (lambda p: p.update(format=2), "format is 2"),
    ],
)
def test_profile_that_does_not_fit(spoil, says, library, unseen, right, tmp_path):
    profile = json.loads(right.read_text())
    spoil(profile)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    result = run("llama-cpp-python", {"scenario": "solve"}, library, unseen[:1], {"LESSISMORE_PROFILE": path}, lengths=[80])
    assert any("is not used" in line and says in line for line in log_lines(result)), result.log[-2000:]
    assert result.exact(unseen[:1]) == [True]
    assert active(result)["measured_steps"] == MEASURED_STEPS
    assert json.loads(path.read_text()) == profile, "a file that the user named is left as it is"


def test_profiles_off(library, unseen, tmp_path):
    result = run(
        "llama-cpp-python",
        {"scenario": "solve"},
        library,
        unseen[:1],
        {"LESSISMORE_PROFILE": "off", "XDG_CACHE_HOME": tmp_path},
        lengths=[80],
    )
    assert active(result)["measured_steps"] == MEASURED_STEPS
    assert not list(tmp_path.iterdir())


def test_given_layers_are_not_audited(native, unseen, tmp_path):
    result = native("solve", unseen[:1], {**AUTO, "LESSISMORE_LAYERS": "2,9", "XDG_CACHE_HOME": str(tmp_path)}, lengths=[80])
    total = active(result)
    assert total["layers_from"] == "given" and total["audits"] == total["measured_steps"] == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layers", [{}, {"LESSISMORE_LAYERS": "2,9"}])
def test_interval_is_given_up_where_it_hurts(layers, library, unseen, right):
    some = unseen[:6]
    result = run(
        "llama-cpp-python", {"scenario": "solve"}, library, some, {"LESSISMORE_INTERVAL": 2, "LESSISMORE_PROFILE": right, **layers}
    )
    assert active(result)["reused_steps"] > 0
    ((noticed, alarm),) = events(result, "interval")
    assert alarm["layers"] == [9] and noticed < 3
    exact = result.exact(some)
    assert not all(exact[: noticed + 1]) and all(exact[noticed + 1 :]), exact


@pytest.mark.parametrize("unified", [True, False])
def test_four_sequences_in_one_batch(unified, library, unseen, tmp_path):
    some = unseen[:4]
    result = run("llama-cpp-python", {"scenario": "together"}, library, some, {"XDG_CACHE_HOME": tmp_path}, unified=unified, context=8192)
    solved_all(result, some)
    total = active(result)
    assert total["selection_layers"] == [2, 9] and total["alarms"] == 0 and total["measured_steps"] == 2 * MEASURED_STEPS
