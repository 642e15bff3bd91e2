"""The environment: what it sets, what it refuses, and that it says so."""

import hostlib
import pytest
from checks import BUDGET, HOSTS, SPARSE, active, inert, log_lines, solved_all, sparse_only

SHORT = 48  # tokens are enough to see that the host goes on as ever

WRONG = [
    ("LESSISMORE", "maybe"),
    ("LESSISMORE_BUDGET", "lots"),
    ("LESSISMORE_BUDGET", "0"),
    ("LESSISMORE_BUDGET", "-128"),
    ("LESSISMORE_BUDGET", "128x"),
    ("LESSISMORE_BUDGET", "99999999999999999999"),
    ("LESSISMORE_LAYERS", "2,x"),
    ("LESSISMORE_LAYERS", "9,2"),
    ("LESSISMORE_LAYERS", "2,,9"),
    ("LESSISMORE_LAYERS", "-1"),
    ("LESSISMORE_SELECTIONS", "-1"),
    ("LESSISMORE_GUARD", "perhaps"),
    ("LESSISMORE_INTERVAL", "0"),
    ("LESSISMORE_INTERVAL", "65"),
    ("LESSISMORE_HUGE_PAGES", "auto"),
    ("LESSISMORE_RECENCY", "1.5"),
    ("LESSISMORE_RECENCY", "-0.1"),
    ("LESSISMORE_RECENCY", "nan"),
    ("LESSISMORE_SINK_TOKENS", "-1"),
    ("LESSISMORE_SINK_TOKENS", "four"),
    ("LESSISMORE_POLICY", "best"),
    ("LESSISMORE_LOG", "loud"),
]


def short(problems):
    return {"lengths": [SHORT], "log_level": 2}, problems[0].solution[:SHORT]


@pytest.mark.parametrize("variable, value", WRONG)
def test_wrong_value(variable, value, native, problems):
    job, expected = short(problems)
    result = native("solve", problems[:1], {**SPARSE, variable: value}, **job)
    assert result.tokens[0] == expected
    inert(result)
    assert any(variable in line and value in line for line in log_lines(result)), result.log[-2000:]
    assert variable in result.stats["reason"]


@pytest.mark.parametrize("host", HOSTS)
def test_wrong_value_in_every_host(host, library, problems):
    result = hostlib.run(host, library=library, settings={"LESSISMORE_BUDGET": "lots"}, problems=problems[:1], lengths=[SHORT])
    assert result.tokens[0] == problems[0].solution[:SHORT]
    inert(result)
    assert any("LESSISMORE_BUDGET" in line and "lots" in line for line in log_lines(result)), result.log[-2000:]


def test_layer_that_the_model_lacks(native, problems):
    job, expected = short(problems)
    result = native("solve", problems[:1], {**SPARSE, "LESSISMORE_LAYERS": "2,99"}, **job)
    assert result.tokens[0] == expected
    assert result.stats["total"]["rows_sparse"] == 0
    assert any("LESSISMORE_LAYERS" in line and "99" in line for line in log_lines(result)), result.log[-2000:]


def test_stats_path_that_cannot_be_written(native, problems, tmp_path):
    job, expected = short(problems)
    path = tmp_path / "no such folder" / "stats.json"
    result = native("solve", problems[:1], SPARSE, environ={"LESSISMORE_STATS": str(path)}, **job)
    assert result.tokens[0] == expected
    assert any("LESSISMORE_STATS" in line and path.parent.name in line for line in log_lines(result)), result.log[-2000:]


def test_switched_off(native, problems):
    job, expected = short(problems)
    result = native("solve", problems[:1], {**SPARSE, "LESSISMORE": "off"}, **job)
    assert result.tokens[0] == expected
    inert(result)


def test_log_off_is_silent(native, problems):
    job, expected = short(problems)
    result = native("solve", problems[:1], {**SPARSE, "LESSISMORE_LOG": "off"}, **job)
    assert result.tokens[0] == expected
    active(result)
    assert not log_lines(result), log_lines(result)


def test_engaged_is_visible(native, problems):
    """What a user sees: one glance at the log says that it is on, and how."""
    job, _ = short(problems)
    result = native("solve", problems[:1], SPARSE, **job)
    own = "\n".join(log_lines(result))
    assert "engaged" in own and str(BUDGET) in own, result.log[-2000:]


def test_flash_attention_off(native, problems):
    job, expected = short(problems)
    result = native("solve", problems[:1], SPARSE, flash=False, **job)
    assert result.tokens[0] == expected
    assert result.stats["total"]["rows"] == 0
    assert any("flash" in line.lower() for line in log_lines(result)), result.log[-2000:]


def test_environment_set_inside_python(native, problems):
    inside = {k: str(v) for k, v in SPARSE.items()}
    result = native("solve", problems[:1], {}, environ=inside, lengths=[SHORT])
    assert result.stats["config"]["budget"] == BUDGET
    assert result.stats["config"]["layers"] == [2, 9]
    sparse_only(result)
    assert result.tokens[0] == problems[0].solution[:SHORT]


def test_stats_of_a_recency_and_sinks(native, problems):
    result = native("solve", problems[:1], {**SPARSE, "LESSISMORE_RECENCY": "0.5", "LESSISMORE_SINK_TOKENS": "8"})
    config = result.stats["config"]
    assert config["recency"] == 0.5 and config["sink_tokens"] == 8
    sparse_only(result)
    assert result.solved(problems[:1]) in (0, 1)  # fewer chosen tokens: not promised at this budget


@pytest.mark.parametrize("kv", ["bf16", "q8_0", "q4_0"])
def test_other_cache_types(kv, native, problems):
    result = native("solve", problems[:1], SPARSE, kv=kv)
    solved_all(result, problems[:1])
    sparse_only(result)


@pytest.mark.parametrize("kv, says", [("f32", "no_cache: "), ("q5_1", "type: K/V type q5_1; ")])
def test_cache_type_that_is_not_taken(kv, says, native, problems):
    """One line names the type and what would be taken. (The host converts an f32 cache afresh for every step.)"""
    job, expected = short(problems)
    result = native("solve", problems[:1], SPARSE, kv=kv, **job)
    assert result.tokens[0] == expected
    assert result.stats["total"]["rows"] == 0
    assert sum(result.stats["total"]["declined"].values()) > 0
    (line,) = (line for line in log_lines(result) if "nothing is offloaded in this context" in line)
    assert says in line and kv in line and "f16, bf16, q8_0 and q4_0 are supported" in line, line
