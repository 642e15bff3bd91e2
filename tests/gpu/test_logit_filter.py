"""Selection layers that keep only the best logits (kernels/cuda/logit_filter.h): the sets are those of all logits, whatever the
samples say, for few rows and many, on cards of every size."""

import contextlib
import random

import device as D
import torch
from harness import QUICK, SEED, main
from test_kernels import check_output, check_sets, kernels, random_problem


@contextlib.contextmanager
def card_of(multiprocessors):
    """Plans for a card with fewer multiprocessors than there are: fewer blocks, and longer splits of shorter rows."""
    device, there = kernels().device, kernels().device.multiprocessors
    device.multiprocessors = min(multiprocessors, there)
    try:
        yield
    finally:
        device.multiprocessors = there


def lists_of(p, plan):
    """What the attention left of each row and head: [rows][heads][32] of begin, count, bits of the bound, lists (logit_filter.h)."""
    at = plan.args.survivors - p.work.data_ptr()
    return p.work[at : at + p.rows * p.heads * 32 * 16].view(torch.int32).reshape(p.rows, p.heads, 32, 4).clone()


def known(p, plan):
    """[rows][heads]: how many candidates are sure to be a head's best, by the bounds."""
    lists, logits = lists_of(p, plan), p.kernel_logits(plan)
    there = torch.arange(32, device="cuda") < lists[..., :1, 3]
    bound = lists[..., 2].contiguous().view(torch.float32).masked_fill(~there, float("-inf")).amax(-1)
    count = torch.zeros(p.rows, p.heads, dtype=torch.int64)
    for r, n in enumerate(p.lengths.tolist()):
        x = logits[r, :, p.call.sink_tokens : max(n - p.call.recent, 0)]
        count[r] = (x >= bound[r][:, None]).sum(-1)
    return count


def sampled_tiles(group):
    """FilterTiles: of each of a block's four warps."""
    return 12 if group <= 4 else 6


LONG = [0, 1, 3]  # the rows of a filtered problem that are


def filtered_problem(rng, kind):
    """Rows that are long enough to be filtered, and one that is not. Where samples mislead, sums are of small integers, so
    that a logit is the same number however it is computed."""
    budget = 1024 if kind in ("misleading", "alike") else rng.choice([64, 300, 1024])
    group = rng.choice([4, 5, 8] if QUICK else [2, 4, 5, 8] if budget == 1024 else [1, 2, 4, 5, 8])
    if QUICK and kind == "equal":  # racecheck is slow where all count in one place
        budget, group = 64, 1
    n = rng.randint(9300, 10000) if QUICK else rng.randint(36000, 42000)
    p = random_problem(
        rng,
        kv_type=rng.choice([D.F16, D.BF16]),
        dim=rng.choice([64, 128]),
        group=group,
        kv_heads=4 if QUICK else 8,
        lengths=[n, n - rng.randrange(100), budget + 50, n],
        layout=rng.choice(["contiguous", "strided", "paged"]),
        page_shift=rng.randint(4, 7),
        budget=budget,
        recency=0.25,
        set_sinks=4,
        capacity=n + rng.choice([0, 5]),
        sinks=False,
        softcap=0.0,
        spread=1.0,
    )
    if kind == "random":
        return p
    plan = p.plan(D.SELECT)
    plan.run()
    begins = lists_of(p, plan)[:, :, [0, 2], 0].long()  # of the first two splits of each head
    key = torch.randint(-2, 3, p.key64.shape, device="cuda").double()
    query = torch.randint(-2, 3, p.query64.shape, device="cuda").double()
    if kind == "equal":
        key[:] = key[:, :, :1]
    elif kind == "nan":
        key[:, ::2, ::3] = float("nan")
    elif kind == "alike":  # heads that do not differ, and nearly all of their best in one split
        query[:] = query[:, :1]
        key[:] = key[:, :1]
        for r in LONG:
            at, to = begins[r, 0].tolist()
            key[r, :, :at] = key[r, :, to:] = 0
    elif kind == "misleading":  # better than all others are 240 tokens of one split, all of them among its samples
        query[..., 0] = 2
        key[..., 0] = 0
        for r in LONG:
            for h in range(p.kv_heads):
                at, to = begins[r, h * p.group].tolist()
                step = (to - at) // 64 // sampled_tiles(p.group)
                i = torch.arange(240, device="cuda")
                key[r, h, at + i // 16 % 4 * 16 + i // 64 * step * 64 + i % 16, 0] = 200
    p.query64.copy_(query)
    p.query.copy_(query)
    p.set_key(key)
    return p


def run_apart(p, plan):
    """Attention, then the selection once the query is gone: a host may have other things in its place by then."""
    query = p.query.clone()
    plan.run(only=0)
    p.query.fill_(float("nan"))
    plan.run(only=1)
    p.query.copy_(query)


def test_filtered_selection():
    """Rows whose logits are not all stored: the same sets, whatever the samples say."""
    rng = random.Random(SEED + 9)
    ways = {}
    with card_of(18 if QUICK else kernels().device.multiprocessors):
        for kind in ("random", "equal", "misleading", "alike", "nan") * (1 if QUICK else 4):
            p = filtered_problem(rng, kind)
            plan = p.plan(D.SELECT)
            assert plan.args.survivors and plan.launches[1].name == b"lim_select_filtered", p.describe()
            for _ in range(1 if QUICK else 2):
                p.set.fill_(-1)
                p.positions.fill_(-1)
                run_apart(p, plan)
                if kind == "nan":
                    chosen = p.positions.clone()
                    kernels().plan(p.call, all_logits=True).run()
                    assert torch.equal(chosen, p.positions), f"set differs: {p.describe()}"
                else:
                    check_output(p, p.reference(), "filtered")
                    check_sets(p, plan)
            plan.run()
            lists = lists_of(p, plan)[:, :, 0, 3]
            assert (lists[LONG] > 0).all() and (lists[2] == 0).all(), (lists, p.describe())
            least = known(p, plan)[LONG].min().item()
            way = "too few known" if least < plan.args.need else "fewer than wanted" if least < p.call.top_k else "enough"
            ways.setdefault(kind, set()).add(way)
            torch.cuda.empty_cache()
    print("      ", ways)
    assert ways["random"] == {"enough"} and ways["misleading"] == {"too few known"}


def least_stretch(group, need):
    """FilterLeast."""
    return max(8 * need, 4 * 64 * sampled_tiles(group))


def test_filters_of_any_size():
    """One head to many, a set of one token to thousands, one row to more than a block's lanes, one block a work tile to sixteen."""
    rng = random.Random(SEED + 10)
    for rows, kv_heads, group, budget in [
        (1, 1, 1, 7),
        (1, 2, 4, 1000),
        (1, 8, 4, 9000),
        (3, 8, 8, 2048),
        (40, 2, 3, 200),
        (33, 1, 8, 600),
        *((rng.choice([1, 2, 5, 34]), rng.choice([1, 2, 8]), rng.randint(1, 8), rng.randint(1, 4000)) for _ in range(0 if QUICK else 20)),
    ]:
        work_tiles, heads, top_k = rows * kv_heads, kv_heads * group, D.split(budget)[1]
        if top_k == 0:
            continue
        need = (top_k + 1) // 2 if heads >= 16 else top_k
        least = least_stretch(group, need)
        if work_tiles * least * 128 * group > (100_000_000 if QUICK else 1_000_000_000):
            continue
        room = (80_000_000 if QUICK else 600_000_000) // (
            work_tiles * least * 128 * group
        )  # blocks for a work tile, by the reference's memory
        fewest = 2 if work_tiles == 1 else 1  # a card has two blocks
        each = rng.randint(fewest, max(fewest, min(16, room, kernels().device.multiprocessors * 2 // work_tiles)))
        n = max(int(least * each * rng.uniform(1.1, 1.4)), budget + 100)
        with card_of(max(1, work_tiles * each // 2)):
            p = random_problem(
                rng,
                kv_type=rng.choice([D.F16, D.BF16]),
                dim=rng.choice([64, 128]),
                group=group,
                kv_heads=kv_heads,
                lengths=[n - rng.randrange(16) for _ in range(rows)],
                layout=rng.choice(["contiguous", "strided", "paged"]),
                page_shift=rng.randint(4, 7),
                budget=budget,
                capacity=n,
            )
            plan = p.plan(D.SELECT)
            assert plan.args.survivors, p.describe()
            for _ in range(2):
                p.set.fill_(-1)
                p.positions.fill_(-1)
                plan.run()
                check_output(p, p.reference(), "filter")
                check_sets(p, plan)
            assert (lists_of(p, plan)[:, :, 0, 3] > 0).all(), p.describe()
        del p, plan
        torch.cuda.empty_cache()


def test_graph_replays_into_the_filter():
    """Captured once; replayed with rows within the budget, past it, and long enough to be filtered, and back."""
    for layout in ("strided", "paged"):
        check_replays(random.Random(SEED + 11), layout)


def check_replays(rng, layout):
    budget, n = 256, 9000
    with card_of(8):
        p = random_problem(
            rng,
            kv_type=D.F16,
            dim=64,
            group=4,
            kv_heads=4,
            lengths=[n, n],
            capacity=n,
            layout=layout,
            page_shift=4,
            budget=budget,
            sinks=False,
            softcap=0.0,
            output_type=None,
        )
        select = p.plan(D.SELECT)
        assert select.args.survivors, p.describe()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=stream):
            select.run(torch.cuda.current_stream())
        filtered = set()
        for lengths in [
            (10, 20),
            (budget, budget + 1),
            (budget + 1, 2000),
            (2500, n),
            (n, n),
            (n - 1, 100),
            (0, n),
            (3000, 3100),
            (5, 7),
            (n, n),
        ]:
            p.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
            p.set.fill_(-1)
            p.positions.fill_(-1)
            graph.replay()
            torch.cuda.synchronize()
            longer = torch.tensor([x > budget for x in lengths])
            filtered |= set((lists_of(p, select)[:, 0, 0, 3].cpu() > 0)[longer].tolist())
            check_output(p, p.reference(), f"graph {lengths}")
            check_sets(p, select)
        assert filtered == {True, False}, filtered


def test_one_work_memory_for_all():
    """Calls of every mode, policy and number of rows, one after the other in one work memory: each has the bits that it has alone."""
    rng = random.Random(SEED + 12)
    rows, n, budget = 5, 9000, 128
    with card_of(5):
        p = random_problem(
            rng,
            kv_type=D.F16,
            dim=64,
            group=4,
            kv_heads=2,
            lengths=[n] * rows,
            capacity=n,
            layout="contiguous",
            budget=budget,
            sinks=False,
            softcap=0.0,
            output_type=None,
        )
        seen = set()

        def plan_of(mode, policy, n_rows, all_logits):
            p.call.mode, p.call.policy, p.call.n_rows = mode, policy, n_rows
            p.lengths.copy_(torch.tensor([rng.choice([rng.randint(0, n), n]) for _ in range(rows)]))
            plan = kernels().plan(p.call, all_logits=all_logits)
            seen.add(plan.launches[-1].name)
            return plan

        def run(plan):
            p.output.fill_(float("nan"))
            p.positions.fill_(-1)
            if plan.args.call.mode == D.SPARSE:
                p.set.copy_(torch.arange(p.set_stride, device="cuda").expand_as(p.set))
            else:
                p.set.fill_(-1)
            plan.run()
            return [t.view(torch.uint8).clone() for t in (p.output, p.set, p.positions)]

        calls = [(D.SELECT, D.UNION, rows, False), (D.SELECT, D.UNION, rows, True), (D.SELECT, D.MASS, rows, False)]
        for _ in range(12 if QUICK else 60):
            calls.append(
                (
                    rng.choice([D.FULL, D.SELECT, D.SELECT, D.SPARSE]),
                    rng.choice([D.UNION, D.MASS]),
                    rng.randint(1, rows),
                    rng.random() < 0.3,
                )
            )
        rng.shuffle(calls)
        for call in calls:
            plan = plan_of(*call)
            got = run(plan)
            used = p.work.clone()
            p.work.zero_()
            alone = run(plan)
            p.work.copy_(used)
            assert all(torch.equal(a, b) for a, b in zip(got, alone)), (
                f"mode {plan.args.call.mode} rows {plan.args.call.n_rows}: {p.describe()}"
            )
        assert {b"lim_select_union", b"lim_select_filtered", b"lim_select_mass"} <= seen, seen


if __name__ == "__main__":
    if kernels().device.capability == 90:
        main(dict(globals()))
    print("only Hopper's kernels filter: nothing to test")
