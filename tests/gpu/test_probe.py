"""What a probe measures (kernels/cuda/probe.h) against float64, on random shapes; run like test_kernels.py."""

import random

import device as D
import test_kernels as T
import torch
from test_kernels import QUICK, SEED, kernels

CLOSE = 2e-5  # of a share, which is at most 1


class Store:
    """Where a probe's results go, and what should be in them."""

    def __init__(self, sets, heads):
        self.kept = torch.full((sets + 1, heads), 7.0, device="cuda")
        self.count = torch.zeros(max(sets, 1), dtype=torch.int32, device="cuda")
        self.sum = torch.zeros(max(sets, 1), heads, device="cuda")
        self.square = torch.zeros(max(sets, 1), heads, device="cuda")
        self.stamps = torch.zeros(sets + 1, dtype=torch.int32, device="cuda")


def softmax64(p, row):
    """[heads][n], the attention sink in the denominator."""
    x = p.logits64()[row, :, : p.lengths[row]]
    if p.sinks is not None:
        x = torch.cat([x, p.sinks.double()[:, None]], -1)
    return torch.softmax(x, -1)[:, : p.lengths[row]]


def probe_of(p, row, sets, set_budget, own, store, stamp=None, least=0, sums=True):
    q = D.Probe()
    q.own, q.row, q.n_sets, q.set_budget, q.least = own.data_ptr(), row, len(sets), set_budget, least
    q.sets, q.set_stride = (sets.data_ptr(), sets.stride(0)) if len(sets) else (0, 0)
    q.kept = store.kept.data_ptr()
    if sums:
        q.count, q.sum, q.square = store.count.data_ptr(), store.sum.data_ptr(), store.square.data_ptr()
    if stamp is not None:
        q.stamps, q.stamp = store.stamps.data_ptr(), stamp
    return q


def random_sets(rng, count, n, budget, spare):
    sets = torch.full((count, budget + spare), 1 << 30, dtype=torch.int32, device="cuda")
    for s in sets:
        k = min(n, budget)
        s[:k] = torch.tensor(rng.sample(range(n), k), dtype=torch.int32)  # in any order
    return sets


def test_shares():
    """One row of a batch: output exact, own set the product's, shares and sums against float64, other sets untouched."""
    rng = random.Random(SEED)
    for _ in range(10 if QUICK else 100):
        budget = rng.choice([1, 7, 16, 64, 128, 600, 2048])
        p = T.random_problem(
            rng,
            budget=budget,
            policy=rng.choice([D.UNION, D.UNION, D.MASS]),
            recency=rng.choice([0.0, 0.25, 0.25, 0.9]),
            set_sinks=rng.choice([0, 4, 9]),
        )
        row = rng.choice([rng.randrange(p.rows), int(p.lengths.argmax())])
        n = int(p.lengths[row])
        p.plan(D.SELECT).run()
        p.call.mode = D.SELECT
        expect_own = p.positions[row, : min(n, budget)].clone()
        before = p.set.clone(), p.positions.clone()
        count, set_budget = rng.choice([0, 1, 3, 17]), rng.choice([1, 31, 512, 5000])
        sets = random_sets(rng, count, n, set_budget, rng.randrange(3))
        own = torch.full((budget + 1,), -1, dtype=torch.int32, device="cuda")
        store = Store(count, p.heads)
        plan = kernels().plan_probe(p.call, probe_of(p, row, sets, set_budget, own, store))
        p.output.fill_(float("nan"))
        for _ in range(2):
            plan.run()
        T.check_output(p, p.reference(), "probe")
        assert torch.equal(own[: len(expect_own)], expect_own) and (own[len(expect_own) :] == -1).all(), f"own: {p.describe()}"
        assert torch.equal(p.set, before[0]) and torch.equal(p.positions, before[1]), f"the batch's sets changed: {p.describe()}"
        if n <= budget:  # nothing to choose
            assert (store.kept == -1).all() and (store.count == 0).all() and (store.sum == 0).all()
            continue
        soft = softmax64(p, row)
        own_share = soft[:, expect_own.long()].sum(-1)
        want = torch.stack([soft[:, s[: min(n, set_budget)].long()].sum(-1) for s in sets] + [own_share])
        worst = (store.kept.double() - want).abs().max()
        # An error of a logit is one of the shares: with q8_0 and large scores they are the kernel's, not the probe's.
        close = CLOSE * (1 + p.logits64().abs().max().item())
        assert worst < close, f"shares {worst}: {p.describe()}"
        if count == 0:
            continue
        lost = store.kept[-1] - store.kept[:-1]
        assert (store.count == 2).all()
        assert torch.allclose(store.sum, 2 * lost, atol=1e-6) and torch.allclose(store.square, 2 * lost * lost, atol=1e-6)


def test_stamps_and_least():
    """Sets of an older step, and rows that see too little, take no part."""
    rng = random.Random(SEED + 1)
    for _ in range(4 if QUICK else 20):
        p = T.random_problem(rng, budget=64, lengths=[rng.randint(65, 900) for _ in range(3)], capacity=900)
        p.call.mode = D.SELECT
        row, count = rng.randrange(3), 9
        n = int(p.lengths[row])
        sets = random_sets(rng, count, n, 64, 0)
        own = torch.zeros(64, dtype=torch.int32, device="cuda")
        store = Store(count, p.heads)
        live = torch.tensor([rng.random() < 0.5 for _ in range(count)], device="cuda")
        store.stamps[:count] = torch.where(live, 5, 4)
        plan = kernels().plan_probe(p.call, probe_of(p, row, sets, 64, own, store, stamp=5, least=n))
        plan.run()
        assert torch.equal(store.count, live.int()) and int(store.stamps[-1]) == 5
        assert torch.equal(store.kept[:-1] == -1, ~live[:, None].expand(count, p.heads)) and (store.kept[-1] >= 0).all()
        assert (store.sum[~live] == 0).all() and (store.square[~live] == 0).all()
        store.stamps[-1] = 0
        before = store.count.clone(), store.sum.clone()
        kernels().plan_probe(p.call, probe_of(p, row, sets, 64, own, store, stamp=5, least=n + 1)).run()
        assert (store.kept == -1).all() and int(store.stamps[-1]) == 0
        assert torch.equal(before[0], store.count) and torch.equal(before[1], store.sum)


def test_odd_logits():
    """NaN and infinite logits: shares are numbers between 0 and 1, whatever comes in."""
    rng = random.Random(SEED + 2)
    for what in (float("nan"), float("inf"), float("-inf")):
        p = T.random_problem(rng, kv_type=D.F16, budget=16, lengths=[300, 200], capacity=300, layout="contiguous", softcap=0.0)
        p.call.mode = D.SELECT
        p.key[1, :, 7] = what
        sets = random_sets(rng, 3, 200, 32, 0)
        own = torch.zeros(16, dtype=torch.int32, device="cuda")
        store = Store(3, p.heads)
        kernels().plan_probe(p.call, probe_of(p, 1, sets, 32, own, store)).run()
        assert ((store.kept >= 0) & (store.kept <= 1 + CLOSE)).all(), (what, store.kept)
        assert store.sum.isfinite().all() and store.square.isfinite().all()
        kernels().plan_probe(p.call, probe_of(p, 0, sets, 32, own, store)).run()  # another row is not harmed
        assert (store.kept > 0).any()


def test_measured_steps():
    """A measurement as the engine makes it, captured once and replayed: layers that choose one after another for one
    row, each compared with those before it, over steps in which the row grows. Bits repeat."""
    rng = random.Random(SEED + 3)
    layers, budget, steps = 5, 100, 3 if QUICK else 8
    problems = [
        T.random_problem(
            rng,
            kv_type=D.F16,
            dim=128,
            group=4,
            kv_heads=2,
            lengths=[900, 1200],
            capacity=1300,
            layout="paged",
            budget=budget,
            sinks=i % 2 == 1,
            softcap=0.0,
            output_type=None,
            spread=2.0,
        )
        for i in range(layers)
    ]
    heads, lengths = problems[0].heads, problems[0].lengths
    for p in problems:
        p.lengths = lengths
        p.call.lengths, p.call.mode = lengths.data_ptr(), D.SELECT
    pair = lambda i, j: j * (j - 1) // 2 + i
    sets = torch.zeros(layers, budget, dtype=torch.int32, device="cuda")
    results = []
    for turn in range(2):
        lengths.copy_(torch.tensor([900, 1200]))
        store = Store(pair(0, layers), heads)
        plans = []
        for j, p in enumerate(problems):
            q = probe_of(p, 1, sets[:j], budget, sets[j], store, stamp=3)
            q.sets, q.set_stride, q.kept = sets.data_ptr(), budget, 0  # the first one leaves its set and nothing else
            q.count, q.sum, q.square = (x[pair(0, j) :].data_ptr() if j else 0 for x in (store.count, store.sum, store.square))
            plans.append(kernels().plan_probe(p.call, q))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for plan in plans:
                plan.run(torch.cuda.current_stream())
        want = torch.zeros(pair(0, layers), heads, dtype=torch.float64, device="cuda")
        square = want.clone()
        for _ in range(steps):
            lengths.add_(torch.tensor([3, 11], dtype=torch.int32, device="cuda"))
            graph.replay()
            torch.cuda.synchronize()
            chosen = sets.clone().long()
            for j, p in enumerate(problems):
                soft = softmax64(p, 1)
                for i in range(j):
                    lost = soft[:, chosen[j]].sum(-1) - soft[:, chosen[i]].sum(-1)
                    want[pair(i, j)] += lost
                    square[pair(i, j)] += lost * lost
        assert (store.count == steps).all()
        close = steps * CLOSE * 10
        assert (store.sum - want).abs().max() < close and (store.square - square).abs().max() < close
        results.append((store.sum.clone(), store.square.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*results)), "not deterministic"


def test_refusals():
    rng = random.Random(SEED + 4)
    p = T.random_problem(rng, kv_type=D.F16, lengths=[100, 100], budget=32, capacity=100)
    p.call.mode = D.SELECT
    sets, own, store = random_sets(rng, 2, 100, 32, 0), torch.zeros(32, dtype=torch.int32, device="cuda"), Store(2, p.heads)
    good = probe_of(p, 0, sets, 32, own, store)
    assert kernels().check_probe(p.call, good)[0] == 0
    for field, value in [
        ("row", -1),
        ("row", 2),
        ("n_sets", -1),
        ("n_sets", 5000),
        ("own", 0),
        ("own", 2),
        ("sets", 0),
        ("sets", 6),
        ("stamps", 1),
        ("kept", 3),
        ("count", 2),
        ("sum", 0),
        ("square", 0),
        ("set_budget", 0),
        ("set_stride", 31),
    ]:
        bad = D.Probe.from_buffer_copy(good)
        setattr(bad, field, value)
        refused, text = kernels().check_probe(p.call, bad)
        assert refused == 1 and field in text, (field, value, text)
    p.call.mode = D.FULL
    refused, text = kernels().check_probe(p.call, good)
    assert refused == 1 and "mode = 0" in text


if __name__ == "__main__":
    T.main(globals())
