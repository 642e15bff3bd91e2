"""Each method's token sets: by hand where they are small, against one query at a time, in plain loops, where not."""

import math

import numpy as np
import pytest

from lessismore.compare import kascade, methods
from lessismore.compare.methods import Rows

KV_HEADS, GROUP, DIM = 2, 2, 8


def rows(rng, layer, first, m, scale=3.0):
    query = scale * rng.standard_normal((KV_HEADS, GROUP, m, DIM)).astype(np.float32)
    key = rng.standard_normal((KV_HEADS, first + m, DIM)).astype(np.float32)
    return Rows(layer, query, key, first)


def one(line):
    """A query and keys of one channel each: logits are what line says, times sqrt(1)."""
    key = np.array(line, np.float32).reshape(1, -1, 1)
    return Rows(2, np.ones((1, 1, 1, 1), np.float32), key, len(line) - 1)


def chosen(mask, rows):
    """{(kv_head, head of the group, query): positions}"""
    full = np.broadcast_to(mask, (*rows.query.shape[:3], rows.n))
    return {at: np.flatnonzero(full[at]).tolist() for at in np.ndindex(*full.shape[:3])}


def logits(rows, g, h, i):
    """Of one query, in float64, over what it sees."""
    q = rows.query[g, h, i].astype(float)
    return [float(q @ rows.key[g, t].astype(float)) / math.sqrt(DIM) for t in range(rows.first + i + 1)]


def softmax(x):
    e = [math.exp(v - max(x)) for v in x]
    return [v / sum(e) for v in e]


def four_bits(key):
    """A key whose channels are the nearest of 16 values between its least and its largest."""
    step = (key.max() - key.min()) / 15
    return np.array([key.min() + round((x - key.min()) / step) * step for x in key])


def best(got, scores, count):
    """Whether got are the `count` best, as far as float32 can tell. scores: a list, or {what: score}."""
    scores = dict(enumerate(scores)) if isinstance(scores, list) else scores
    kept, left = [scores[t] for t in got], [s for t, s in scores.items() if t not in got]
    return len(set(got)) == len(got) == min(count, len(scores)) and min(kept, default=np.inf) >= max(left, default=-np.inf) - 1e-5


def parts(got, size, last):
    """Pages or blocks that a set is made of; each is whole, as far as the query sees."""
    found = sorted({t // size for t in got})
    assert got == [t for b in found for t in range(size * b, min(size * (b + 1), last + 1))]
    return found


# ---- by hand ----


def test_best():
    assert methods.best(np.array([[3.0, 1, 2, 2, -np.inf]]), 2).tolist() == [[True, False, True, False, False]]
    assert methods.best(np.array([[1.0, 1, 1, -np.inf, -np.inf]]), 4).tolist() == [[True, True, True, False, False]]
    assert methods.best(np.array([[1.0, 2]]), 5).tolist() == [[True, True]]


def test_window_by_hand():
    r = one([0] * 10)
    assert chosen(methods.Window(6).choose(r), r) == {(0, 0, 0): [0, 1, 2, 3, 8, 9]}
    assert chosen(methods.Window(12).choose(r), r) == {(0, 0, 0): list(range(10))}


def test_quest_by_hand():
    # Pages of 16: the one with a single large key beats the one that is large on average; a query of the other sign
    # goes by the least value.
    line = [1.0] * 16 + [0.0] * 15 + [5.0] + [-9.0] * 16 + [2.0] * 16 + [0.0] * 3
    r = one(line)
    (got,) = chosen(methods.Quest(48).choose(r), r).values()
    assert got == [*range(16, 32), *range(48, 64), 64, 65, 66]
    r = Rows(2, -np.ones((1, 1, 1, 1), np.float32), r.key, r.first)
    (got,) = chosen(methods.Quest(48).choose(r), r).values()
    assert got == [*range(16, 32), *range(32, 48), 64, 65, 66]
    assert methods.Quest(48).choose(Rows(1, r.query, r.key, r.first)) is None


def test_seer_by_hand():
    line = [0.0] * 64 + [1.0] * 64 + [0.0] * 63 + [9.0] + [0.0] * 10
    r = one(line)
    (got,) = chosen(methods.Seer(192).choose(r), r).values()
    assert got == [*range(64), *range(128, 202)]  # the one strong token outweighs 64 better than average
    (got,) = chosen(methods.Seer(128).choose(r), r).values()
    assert got == [*range(64), *range(192, 202)]
    (got,) = chosen(methods.Seer(64).choose(r), r).values()
    assert got == list(range(192, 202))


def test_tidal_by_hand():
    tidal = methods.TidalDecode(2, (2, 4))
    a, b = one([0.0, 5, 1, 4, 2]), one([9.0, 0, 8, 0, 0])
    assert tidal.choose(Rows(1, a.query, a.key, a.first)) is None
    assert tidal.choose(a) is None  # it chooses, and attends to everything
    after = Rows(3, b.query, b.key, b.first)
    assert chosen(tidal.choose(after), after) == {(0, 0, 0): [1, 3]}
    assert tidal.choose(Rows(4, b.query, b.key, b.first)) is None
    assert chosen(tidal.choose(Rows(5, a.query, a.key, a.first)), a) == {(0, 0, 0): [0, 2]}


def test_delta_by_hand():
    # Five pages of 16 and one token; of four pages two are the newest, whatever they weigh.
    line = [0.0] * 16 + [0.0] * 15 + [9.0] + [1.0] * 16 + [0.0] * 32 + [0.0]
    r, delta = one(line), methods.Delta(64, (2, 4))
    assert delta.choose(Rows(1, r.query, r.key, r.first)) is None
    assert delta.choose(r) is None  # it chooses, and attends to everything
    (got,) = chosen(delta.choose(Rows(3, r.query, r.key, r.first)), r).values()
    assert got == [*range(16, 48), *range(64, 81)]
    assert delta.choose(Rows(4, r.query, r.key, r.first)) is None
    loud = np.array([[[[1.0]], [[-1.0]]]], np.float32)  # two heads: the one that is surer of a token counts
    r = Rows(2, loud, np.array([-8.0] + [0.0] * 15 + [4.0] + [0.0] * 47, np.float32).reshape(1, -1, 1), 63)
    delta = methods.Delta(32, (2,))
    delta.choose(r)
    (got,) = set(map(tuple, chosen(delta.choose(Rows(3, r.query, r.key, r.first)), r).values()))
    assert got == (*range(16), *range(48, 64))


def test_quest_by_mean_and_deviation_by_hand():
    # One large key among 16 of the other kind is seldom what its page is about; the first page is there all the same.
    line = [0.0] * 16 + [-3.0] * 15 + [5.0] + [2.0] * 16 + [1.0, 3.0] * 8 + [0.0] * 3
    r = one(line)
    (got,) = chosen(methods.QuestSpread(48).choose(r), r).values()
    assert got == [*range(16), *range(48, 67)]  # 2 + 1 is more than 2 + 0
    (got,) = chosen(methods.Quest(48).choose(r), r).values()
    assert got == [*range(16, 32), *range(48, 67)]


def test_twilight_by_hand():
    r = one(np.log([0.5, 0.05, 0.3, 0.15]))
    for p, want in ((0.45, [0]), (0.75, [0, 2]), (0.9, [0, 2, 3]), (0.9999, [0, 1, 2, 3])):
        assert np.flatnonzero(methods.fewest(methods.softmax(r.logits), p)).tolist() == want
    # Keys of one channel are their own offset: nothing is rounded.
    assert chosen(methods.Twilight(2, 0.75).choose(r), r) == {(0, 0, 0): [0, 2]}
    assert methods.Twilight(2, 0.75).choose(Rows(1, r.query, r.key, r.first)) is None


def test_kascade_by_hand():
    # Two KV heads of one query head; layer 2 takes the sets of the other head.
    plan = kascade.Plan((0, 1), ((0, 1), (0, 1), (1, 0)))
    k = methods.Kascade(2, plan)
    key = np.array([[0.0, 3, 2, 0], [1, 0, 0, 4]], np.float32)[:, :, None]
    query = np.ones((2, 1, 1, 1), np.float32)
    assert k.choose(Rows(0, query, key, 3)) is None
    first = Rows(1, query, key, 3)
    assert chosen(k.choose(first), first) == {(0, 0, 0): [1, 2], (1, 0, 0): [0, 3]}
    second = Rows(2, query, key, 3)
    assert chosen(k.choose(second), second) == {(0, 0, 0): [0, 3], (1, 0, 0): [1, 2]}


# ---- against loops ----

SHAPES = [(0, 1), (0, 40), (37, 1), (63, 30), (64, 64), (130, 45)]
BUDGETS = [1, 16, 64, 128]


@pytest.mark.parametrize("first, m", SHAPES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_against_loops(rng, first, m, budget):
    share = float(rng.uniform(0.3, 0.99))
    delta = methods.Delta(budget, (2,))
    anchors = kascade.Plan((0, 2), ((0, 1), (0, 1), (0, 1), (1, 1)))
    r = {layer: rows(rng, layer, first, m) for layer in (2, 3)}
    tidal, kas = methods.TidalDecode(budget, (2,)), methods.Kascade(budget, anchors)
    tidal.choose(r[2])
    delta.choose(r[2])
    got = {
        "window": methods.Window(budget).choose(r[3]),
        "oracle": methods.Oracle(budget).choose(r[3]),
        "tidal": tidal.choose(r[3]),
        "quest": methods.Quest(budget).choose(r[3]),
        "spread": methods.QuestSpread(budget).choose(r[3]),
        "delta": delta.choose(r[3]),
        "twilight": methods.Twilight(budget, share).choose(r[3]),
        "seer": methods.Seer(budget).choose(r[3]),
        "anchor": kas.choose(r[2]),
        "kascade": kas.choose(r[3]),
    }
    got = {name: chosen(mask, r[3]) for name, mask in got.items()}
    rough = [[four_bits(k.astype(float)) for k in r[3].key[g]] for g in range(KV_HEADS)]
    for g, h, i in np.ndindex(KV_HEADS, GROUP, m):
        n, at = first + i + 1, (g, h, i)
        x = logits(r[3], g, h, i)
        assert got["window"][at] == [t for t in range(n) if t < min(4, budget) or t >= n - (budget - 4)]
        assert best(got["oracle"][at], x, budget)
        assert best(got["tidal"][at], logits(r[2], g, h, i), budget)

        q, bounds, current = r[3].query[g, h, i].astype(float), {}, (n - 1) // 16
        for p in range(current):
            k = r[3].key[g, 16 * p : 16 * p + 16].astype(float)
            bounds[p] = sum(max(q[d] * k[:, d].min(), q[d] * k[:, d].max()) for d in range(DIM))
        pages = parts(got["quest"][at], 16, n - 1)
        assert pages[-1] == current and best(pages[:-1], bounds, max(3, budget // 16) - 1)

        spreads, allowed = {}, max(3, budget // 16) - 1
        for p in range(current):
            k = r[3].key[g, 16 * p : 16 * p + 16].astype(float)
            mean = [sum(k[:, d]) / 16 for d in range(DIM)]
            deviation = [math.sqrt(sum((x - mean[d]) ** 2 for x in k[:, d]) / 16) for d in range(DIM)]
            spreads[p] = sum(q[d] * mean[d] + abs(q[d]) * deviation[d] for d in range(DIM))
        always = {0, *(current - back for back in range(1, min(16, allowed // 4)))} & set(spreads)
        pages = parts(got["spread"][at], 16, n - 1)
        assert pages[-1] == current and always <= set(pages)
        rest = {p: s for p, s in spreads.items() if p not in always}
        assert best([p for p in pages[:-1] if p not in always], rest, max(0, allowed - len(always)))

        all_heads = [softmax(logits(r[2], kv, j, i)) for kv in range(KV_HEADS) for j in range(GROUP)]
        weight = [max(p[t] for p in all_heads) for t in range(n)]
        sums = {p: sum(weight[16 * p : 16 * p + 16]) for p in range(current + 1)}
        allowed = max(1, budget // 16)
        newest = {p for p in sums if p > current - max(1, min(8, allowed // 2))}
        pages = parts(got["delta"][at], 16, n - 1)
        assert newest <= set(pages) and len(pages) == min(allowed, current + 1)
        rest = {p: s for p, s in sums.items() if p not in newest}
        assert best([p for p in pages if p not in newest], rest, allowed - len(newest))

        p = softmax([float(q @ rough[g][t]) / math.sqrt(DIM) for t in range(n)])
        kept = [p[t] for t in got["twilight"][at]]
        left = sorted(set(p) - set(kept))
        assert sum(kept) >= share - 1e-4 and (sum(kept) - min(kept) < share + 1e-4 or len(kept) == n)
        assert min(kept) >= max(left, default=0) - 1e-6

        heads = [softmax(logits(r[3], g, j, i)) for j in range(GROUP)]
        last, allowed = (n - 1) // 64, max(1, budget // 64)
        mass = {b: sum(p[t] for p in heads for t in range(n) if t // 64 == b) for b in range(last + 1)}
        forced = {last} | ({0} if allowed > 1 else set())
        blocks = parts(got["seer"][at], 64, n - 1)
        assert forced <= set(blocks)
        rest = {b: m for b, m in mass.items() if b not in forced}
        assert best([b for b in blocks if b not in forced], rest, allowed - len(forced))

        def pooled(kv_head):
            heads = [softmax(logits(r[2], kv_head, j, i)) for j in range(GROUP)]
            return [sum(p) / GROUP for p in zip(*heads)]

        assert best(got["anchor"][at], pooled(g), budget)
        assert best(got["kascade"][at], pooled(1), budget)


@pytest.mark.parametrize("first, m", SHAPES)
def test_attention(rng, first, m):
    r = rows(rng, 3, first, m)
    value = rng.standard_normal((KV_HEADS, first + m, 5)).astype(np.float32)
    for mask in (None, methods.Oracle(7).choose(r)):
        out = methods.attention(r, value, mask)
        for g, h, i in np.ndindex(KV_HEADS, GROUP, m):
            seen = list(range(first + i + 1)) if mask is None else np.flatnonzero(mask[g, h, i]).tolist()
            x = logits(r, g, h, i)
            p = softmax([x[t] for t in seen])
            want = sum(w * value[g, t].astype(float) for w, t in zip(p, seen))
            np.testing.assert_allclose(out[g, h, i], want, rtol=2e-5, atol=2e-6)
