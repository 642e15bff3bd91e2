"""Every CUDA kernel against float64 and the literal algorithm, on random shapes. Plain functions: run with
pytest, or as a script (see harness.py)."""

import os
import random

import device as D
import numpy as np
import torch
from harness import QUICK, SEED, main

KERNELS = None


def kernels():
    global KERNELS
    KERNELS = KERNELS or D.Kernels()
    return KERNELS


class Problem:
    """A random batch in a random layout, and its float64 twin."""

    def __init__(
        self,
        rng,
        kv_type,
        dim,
        group,
        kv_heads,
        lengths,
        layout,
        query_type=None,
        output_type=None,
        softcap=0.0,
        sinks=False,
        budget=0,
        policy=D.UNION,
        capacity=None,
        spread=1.0,
        recency=0.25,
        set_sinks=4,
        page_shift=None,
        hnd=None,
    ):
        gen = torch.Generator("cuda").manual_seed(rng.randrange(1 << 31))
        rows, heads = len(lengths), group * kv_heads
        capacity = capacity or max(max(lengths), 1)
        self.rows, self.heads, self.kv_heads, self.group, self.dim, self.kv_type = rows, heads, kv_heads, group, dim, kv_type
        self.capacity, self.layout, self.softcap, self.budget = capacity, layout, softcap, budget
        base = D.F16 if kv_type in (*D.PACKED, D.FP8) else kv_type
        self.query_type = base if query_type is None else query_type
        self.output_type = D.F32 if output_type is None else output_type

        def normal(*shape):
            return torch.randn(*shape, generator=gen, device="cuda", dtype=torch.float32)

        self.query = (normal(rows, heads, dim) * spread).to(D.TORCH[self.query_type])
        # The kernels multiply in the store's type, as the host's own do.
        self.query64 = self.query.to(D.TORCH[base]).double()
        self.scale = dim**-0.5
        self.value_scale = 1.0
        self.page_shift = 0
        self.table = None
        if layout == "paged":
            self.page_shift = rng.choice([0, 3, 4, 4, 5, 6, 7]) if page_shift is None else page_shift
            page = 1 << self.page_shift
            each = -(-capacity // page)
            pages = rows * each + rng.randrange(3)
            hnd = rng.random() < 0.5 if hnd is None else hnd
            joint = kv_type not in D.PACKED and rng.random() < 0.5  # K beside V, as vLLM has them
            shape = (pages, kv_heads, page, dim) if hnd else (pages, page, kv_heads, dim)
            k, v = normal(*shape), normal(*shape)
            order = torch.randperm(pages, generator=gen, device="cuda")[: rows * each]
            self.table = order.reshape(rows, each).to(torch.int32).contiguous()

            def gather(x):  # [rows][kv_heads][capacity][dim]
                x = x if not hnd else x.transpose(1, 2)
                x = x[self.table.long()].reshape(rows, each * page, kv_heads, dim)[:, :capacity]
                return x.transpose(1, 2)

            axes = {"page": 0, "token": 2 if hnd else 1, "head": 1 if hnd else 2}
        else:
            joint = False
            shape = {"contiguous": (rows, kv_heads, capacity, dim), "strided": (rows, capacity, kv_heads, dim)}[layout]
            k, v = normal(*shape), normal(*shape)

            def gather(x):
                return x if layout == "contiguous" else x.transpose(1, 2)

            axes = {"page": 0, "token": 2 if layout == "contiguous" else 1, "head": 1 if layout == "contiguous" else 2}
        v[..., 0] += 3  # no output is near zero by cancelling
        if kv_type in D.PACKED:
            self.key, k64 = D.PACKED[kv_type](k)
            self.value, v64 = D.PACKED[kv_type](v)
        else:
            self.key, self.value = k.to(D.TORCH[kv_type]), v.to(D.TORCH[kv_type])
            if joint:
                store = torch.cat([self.key.view(torch.uint8), self.value.view(torch.uint8)], -1).view(D.TORCH[kv_type])
                self.key, self.value = store[..., :dim], store[..., dim:]
            k64, v64 = self.key.double(), self.value.double()
        self.key64, self.value64 = gather(k64), gather(v64)
        if kv_type == D.FP8:
            self.scale *= 0.75
            self.value_scale = 1.5
        self.axes = axes
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device="cuda")
        self.output = torch.full((rows, heads, dim), float("nan"), device="cuda").to(D.TORCH[self.output_type])
        self.sinks = normal(heads) * 2 if sinks else None
        self.set_stride = max(budget, 1) + rng.randrange(4)
        self.set = torch.full((rows, self.set_stride), -1, dtype=torch.int32, device="cuda")
        self.positions = torch.full((rows, self.set_stride), -1, dtype=torch.int32, device="cuda")

        c = D.Call()
        c.query = self.view(self.query, self.query_type)
        c.output = self.view(self.output, self.output_type)
        c.key, c.value = self.store(self.key), self.store(self.value)
        c.lengths, c.set, c.set_stride, c.positions = (
            self.lengths.data_ptr(),
            self.set.data_ptr(),
            self.set_stride,
            self.positions.data_ptr(),
        )
        if self.table is not None:
            c.table, c.table_stride, c.page_shift = self.table.data_ptr(), self.table.stride(0), self.page_shift
        c.sinks = self.sinks.data_ptr() if sinks else 0
        c.n_rows, c.heads, c.kv_heads, c.dim, c.kv_type, c.capacity = rows, heads, kv_heads, dim, kv_type, capacity
        c.scale, c.softcap, c.value_scale, c.policy = self.scale, softcap, self.value_scale, policy
        c.budget = budget
        if budget:
            c.sink_tokens, c.top_k, c.recent = D.split(budget, recency, set_sinks)
        self.work = torch.zeros(kernels().work_size(c), dtype=torch.uint8, device="cuda")
        c.work = self.work.data_ptr()
        self.call = c

    def by_row(self, x):
        """The store as [pages or rows][token][kv_heads][dim]."""
        return x if self.axes["token"] == 1 else x.transpose(1, 2)

    def set_key(self, key):
        """Other keys, [rows][kv_heads][capacity][dim]."""
        self.key64.copy_(key)
        if self.table is None:
            self.by_row(self.key).copy_(key.transpose(1, 2))
            return
        page = 1 << self.page_shift
        padded = torch.zeros(self.rows, self.table.shape[1] * page, self.kv_heads, self.dim, device="cuda", dtype=torch.float64)
        padded[:, : self.capacity] = key.transpose(1, 2)
        self.by_row(self.key)[self.table.long()] = padded.view(self.rows, -1, page, self.kv_heads, self.dim).to(self.key.dtype)

    def spoil_unseen(self):
        """NaN in all that no row sees: pages of nobody, and the rest of a row's last one."""
        page = 1 << self.page_shift
        at = torch.arange(self.table.shape[1] * page, device="cuda")
        seen = torch.zeros(self.key.shape[0], page, dtype=torch.bool, device="cuda")
        seen[self.table.long()] = (at[None] < self.lengths[:, None]).view(self.rows, -1, page)
        for x in (self.key, self.value):
            self.by_row(x)[~seen] = float("nan")

    def view(self, x, kind):
        return D.Rows(x.data_ptr(), x.stride(0) * x.element_size(), x.stride(1) * x.element_size(), kind, 0)

    def store(self, x):
        e = x.element_size()
        return D.Store(x.data_ptr(), x.stride(self.axes["token"]) * e, x.stride(self.axes["head"]) * e, x.stride(self.axes["page"]) * e)

    def plan(self, mode):
        self.call.mode = mode
        if os.environ.get("LIM_VERBOSE"):  # for a run that does not come back
            torch.cuda.synchronize()
            print("mode", mode, self.describe(), flush=True)
        return kernels().plan(self.call)

    def logits64(self):
        """[rows][heads][capacity]"""
        k = self.key64.repeat_interleave(self.group, 1)
        x = torch.einsum("rhd,rhtd->rht", self.query64, k) * self.scale
        return self.softcap * torch.tanh(x / self.softcap) if self.softcap > 0 else x

    def reference(self, visible=None):
        """visible: [rows][capacity] bool; None: by length."""
        at = torch.arange(self.capacity, device="cuda")
        if visible is None:
            visible = at[None] < self.lengths[:, None]
        x = self.logits64().masked_fill(~visible[:, None], float("-inf"))
        if self.sinks is not None:
            x = torch.cat([x, self.sinks.double()[None, :, None].expand(self.rows, -1, 1)], -1)
        p = torch.softmax(x, -1)[..., : self.capacity]
        out = torch.einsum("rht,rhtd->rhd", p, self.value64.repeat_interleave(self.group, 1)) * self.value_scale
        return torch.where(visible.any(-1)[:, None, None], out, torch.zeros_like(out))

    def kernel_logits(self, plan):
        a = plan.args
        if a.survivors:  # once more, all of them: the same bits
            keep = [t.clone() for t in (self.output, self.set, self.positions)]
            plan = kernels().plan(self.call, all_logits=True)
            plan.run()
            for t, was in zip((self.output, self.set, self.positions), keep):
                t.copy_(was)
            a = plan.args
        offset = a.logits - self.work.data_ptr()
        count = self.rows * self.heads * a.room_stride
        x = self.work[offset : offset + 4 * count].view(torch.float32).reshape(self.rows, self.kv_heads, -1)
        # 16 tokens of one of the KV head's query heads after 16 of another (LogitAt in order.h).
        x = x[..., : self.group * a.logit_stride].reshape(self.rows, self.kv_heads, a.logit_stride // 16, self.group, 16).transpose(2, 3)
        return x.reshape(self.rows, self.heads, a.logit_stride)[..., : self.capacity]

    def describe(self):
        return (
            f"{D.NAMES[self.kv_type]} dim {self.dim} heads {self.heads}/{self.kv_heads} {self.layout} page {1 << self.page_shift} "
            f"q {D.NAMES[self.query_type]} out {D.NAMES[self.output_type]} cap {self.capacity} lengths {self.lengths.tolist()[:6]} "
            f"softcap {self.softcap} sinks {self.sinks is not None} budget {self.budget} seed {SEED}"
        )


# Weights are rounded to the store's type before the second product, outputs to theirs.
TOLERANCE = {D.F16: 6e-4, D.BF16: 4e-3, D.FP8: 6e-4, D.Q8_0: 8e-4, D.Q4_0: 8e-4}
OUTPUT = {D.F32: 0, D.F16: 5e-4, D.BF16: 4e-3}


def error(got, want):
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-30)).item()


def check_output(p, want, where):
    limit = TOLERANCE[p.kv_type] + OUTPUT[p.output_type]
    for r in range(p.rows):
        if want[r].abs().max() == 0:
            assert p.output[r].abs().max() == 0, f"{where}: row {r} should be zeros: {p.describe()}"
            continue
        e = error(p.output[r], want[r])
        assert e < limit, f"{where}: row {r} error {e:.2e} over {limit:.0e}: {p.describe()}"


def literal_union(logits, n, sink_tokens, top_k, recent):
    """The text: rank the candidates per head, merge rank by rank. logits [heads][n] as numpy float32."""
    heads = len(logits)
    x = logits[:, sink_tokens : n - recent].astype(np.float32)
    key = np.where(np.isnan(x), -np.inf, x).astype(np.float64)
    nan = np.isnan(x)
    chosen, order = set(), []
    for h in range(heads):
        order.append(np.lexsort((np.arange(x.shape[1]), -key[h], nan[h]))[:top_k])
    line = np.stack(order, 1).reshape(-1) if top_k else np.zeros(0, np.int64)  # rank 0 of every head, rank 1, ...
    for token in line.tolist():
        if len(chosen) == top_k:
            break
        chosen.add(token + sink_tokens)
    return sorted(set(range(sink_tokens)) | chosen | set(range(n - recent, n)))


def random_problem(rng, **fixed):
    kv_type = fixed.get("kv_type", rng.choice([D.F16, D.F16, D.BF16, D.FP8, D.Q8_0, D.Q4_0]))
    dims = [64, 128, 128, 256]
    if kv_type in (D.F16, D.BF16):
        dims += [80, 96, 112, 192, rng.choice(D.PADDED_DIMS)]
    rows = rng.choice([1, 1, 2, 3, 5, 8, 33])
    longest = rng.choice([1, 7, 64, 200, 1000, 3000]) if rows > 8 else rng.choice([1, 17, 64, 65, 500, 2000, 5000, 20000])
    if QUICK:
        rows, longest = min(rows, 3), min(longest, 700)
    lengths = [rng.choice([rng.randint(0, longest), longest]) for _ in range(rows)]
    args = dict(
        kv_type=kv_type,
        dim=rng.choice(dims),
        group=rng.choice([1, 2, 3, 4, 4, 5, 7, 8, 9, 12, 16]),
        kv_heads=rng.choice([1, 2, 4, 8]),
        lengths=lengths,
        layout=rng.choice(["contiguous", "strided", "paged"]),
        query_type=rng.choice([None, D.F32, D.F16, D.BF16]),
        output_type=rng.choice([None, D.F16, D.BF16]),
        softcap=rng.choice([0.0, 0.0, 30.0]),
        sinks=rng.random() < 0.3,
        capacity=max(longest, 1) + rng.choice([0, 0, 5, 1000]),
        spread=rng.choice([0.3, 1.0, 4.0]),
    )
    args.update(fixed)
    return Problem(rng, **args)


def test_full_attention():
    rng = random.Random(SEED)
    for _ in range(12 if QUICK else 150):
        p = random_problem(rng)
        plan = p.plan(D.FULL)
        plan.run()
        check_output(p, p.reference(), "full")
        again = p.output.clone()
        plan.run()
        assert torch.equal(again.view(torch.uint8), p.output.view(torch.uint8)), f"not deterministic: {p.describe()}"


def test_every_kernel():
    """No entry point is left out by chance."""
    rng = random.Random(SEED + 1)
    names = set()
    for kv_type in (D.F16, D.BF16, D.FP8, D.Q8_0, D.Q4_0):
        for dim in (64, 128, 256, *(D.PADDED_DIMS if kv_type in (D.F16, D.BF16) else ())):
            for group in (4, 12):
                for layout in ("contiguous", "paged"):
                    for capacity in (300, 9000):  # short work has kernels of its own
                        p = random_problem(
                            rng, kv_type=kv_type, dim=dim, group=group, kv_heads=2, layout=layout, lengths=[300, 0, 77], capacity=capacity
                        )
                        plan = p.plan(D.FULL)
                        names.add(plan.launches[0].name.decode())
                        plan.run()
                        check_output(p, p.reference(), "every")
    kinds = {name.split("_", 2)[2] for name in names if name.startswith("lim_short")}
    assert len(kinds) == (kernels().device.capability == 90) * 2 * 12, sorted(kinds)


def test_blocks_between_words():
    """96 elements in blocks are no whole number of words: every other head begins between two."""
    rng = random.Random(SEED + 14)
    for i in range(6 if QUICK else 60):
        budget = rng.choice([16, 100, 600])
        p = random_problem(
            rng,
            kv_type=rng.choice(list(D.PACKED)),
            dim=96,
            group=rng.randint(1, 8),
            kv_heads=rng.choice([2, 4, 32]),
            layout=rng.choice(["strided", "paged"]),
            hnd=False,
            budget=budget,
        )
        for mode in (D.FULL, D.SELECT):
            plan = p.plan(mode)
            plan.run()
            check_output(p, p.reference(), "between")
        check_sets(p, plan)
        visible = torch.zeros(p.rows, p.capacity, dtype=torch.bool, device="cuda")
        for r, n in enumerate(p.lengths.tolist()):
            visible[r, p.positions[r, : min(n, budget)].long()] = True
        p.plan(D.SPARSE).run()
        check_output(p, p.reference(visible), "between, list")


def test_pages():
    """Pages of whole tiles are read by TMA where it can, whatever the table and the strides; nothing that no row sees is."""
    rng = random.Random(SEED + 13)
    names = set()
    for page_shift in (4, 5, 6, 7) * (1 if QUICK else 6):
        longest = rng.randint(1, 700) if QUICK else rng.choice([40, 3000, 20000])
        rows = 3 if QUICK else rng.choice([3, 8, 40]) if longest <= 3000 else 8
        p = random_problem(
            rng,
            kv_type=rng.choice([D.F16, D.BF16]),
            layout="paged",
            page_shift=page_shift,
            dim=rng.choice([64, 128]),
            group=rng.randint(1, 8),
            lengths=[longest, 0, *(rng.randint(1, longest) for _ in range(rows - 2))],
            capacity=max(longest, 5000),
            budget=rng.choice([16, 64, 500]),
            sinks=rng.random() < 0.3,
        )
        p.spoil_unseen()
        for mode in (D.FULL, D.SELECT):
            plan = p.plan(mode)
            names.add(plan.launches[0].name.decode().split("_8_")[1])
            for _ in range(2):
                p.output.fill_(float("nan"))
                p.positions.fill_(-1)
                plan.run()
                check_output(p, p.reference(), "pages")
            if mode == D.SELECT:
                check_sets(p, plan)
        del p, plan
        torch.cuda.empty_cache()
    assert kernels().device.capability != 90 or "tma_paged" in names, names


def test_list_attention():
    rng = random.Random(SEED + 2)
    for _ in range(12 if QUICK else 100):
        budget = rng.choice([1, 5, 16, 64, 100, 512, 2048])
        p = random_problem(rng, budget=budget)
        visible = torch.zeros(p.rows, p.capacity, dtype=torch.bool, device="cuda")
        for r, n in enumerate(p.lengths.tolist()):
            chosen = sorted(rng.sample(range(n), min(n, budget)))
            visible[r, chosen] = True
            t = torch.tensor(chosen, dtype=torch.int64, device="cuda")
            slots = t
            if p.table is not None:
                slots = p.table[r].long()[t >> p.page_shift] << p.page_shift | t & (1 << p.page_shift) - 1
            p.set[r, : len(chosen)] = slots.int()
        p.plan(D.SPARSE).run()
        check_output(p, p.reference(visible), "list")


def test_selection_from_attention():
    """SELECT: the output is exact, the logits are right, the set is the text's for those logits."""
    rng = random.Random(SEED + 3)
    for i in range(8 if QUICK else 60):
        budget = rng.choice([1, 7, 13, 16, 64, 128, 600, 2048])
        p = random_problem(rng, budget=budget, recency=rng.choice([0.0, 0.25, 0.25, 0.9, 1.0]), set_sinks=rng.choice([0, 4, 4, 9]))
        plan = p.plan(D.SELECT)
        for _ in range(2):  # the second one finds the work memory as the first left it
            p.set.fill_(-1)
            p.positions.fill_(-1)
            p.output.fill_(float("nan"))
            plan.run()
            check_output(p, p.reference(), "select")
            check_sets(p, plan)


def check_sets(p, plan):
    c = p.call
    got_logits = p.kernel_logits(plan)
    want64 = p.logits64()
    for r, n in enumerate(p.lengths.tolist()):
        k = min(n, c.budget)
        got = p.positions[r, :k].tolist()
        assert (p.positions[r, k:] == -1).all(), f"wrote past the set: {p.describe()}"
        slots = p.set[r, :k].long()
        t = torch.tensor(got, dtype=torch.int64, device="cuda")
        expect = t if p.table is None else (p.table[r].long()[t >> p.page_shift] << p.page_shift | t & (1 << p.page_shift) - 1)
        assert torch.equal(slots, expect), f"slots are not the positions': {p.describe()}"
        if n <= c.budget:
            assert got == list(range(n)), p.describe()
            continue
        x, w = got_logits[r, :, :n].double(), want64[r, :, :n]
        assert (x - w).abs().max() <= 1e-5 * (1 + w.abs().max()) * (2 if p.softcap else 1), f"logits {(x - w).abs().max()}: {p.describe()}"
        if c.policy == D.UNION:
            want = literal_union(got_logits[r, :, :n].cpu().numpy(), n, c.sink_tokens, c.top_k, c.recent)
            assert got == want, f"row {r} n {n} set differs: {p.describe()}"
        else:
            check_mass(got_logits[r, :, :n].double(), p.sinks, n, c, got, p.describe())


def check_mass(x, sinks, n, c, got, where):
    if sinks is not None:
        total = torch.logsumexp(torch.cat([x, sinks.double()[:, None]], -1), -1, keepdim=True)
    else:
        total = torch.logsumexp(x, -1, keepdim=True)
    mass = torch.exp(x - total).sum(0)
    chosen = torch.zeros(n, dtype=torch.bool, device="cuda")
    chosen[torch.tensor(got, device="cuda", dtype=torch.int64)] = True
    assert len(got) == c.budget and got == sorted(set(got)), where
    assert chosen[: c.sink_tokens].all() and chosen[n - c.recent :].all(), where
    middle, taken = mass[c.sink_tokens : n - c.recent], chosen[c.sink_tokens : n - c.recent]
    assert int(taken.sum()) == c.top_k, where
    if 0 < c.top_k < len(middle):
        assert middle[taken].min() >= middle[~taken].max() * (1 - 1e-4), f"mass: {where}"


def test_mass():
    rng = random.Random(SEED + 4)
    for _ in range(5 if QUICK else 30):
        p = random_problem(rng, budget=rng.choice([3, 64, 500, 2048]), policy=D.MASS)
        plan = p.plan(D.SELECT)
        for _ in range(2):
            p.positions.fill_(-1)
            plan.run()
            check_sets(p, plan)


def select_alone(logits, lengths, budget, recency, sinks, policy=D.UNION, sums=None):
    rows, heads, stride = logits.shape
    c = D.Call()
    n = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    out = torch.full((rows, budget), -1, dtype=torch.int32, device="cuda")
    c.lengths, c.set, c.set_stride, c.n_rows, c.heads, c.kv_heads, c.dim = n.data_ptr(), out.data_ptr(), budget, rows, heads, heads, 64
    c.capacity, c.policy, c.budget, c.mode = stride, policy, budget, D.SELECT
    c.sink_tokens, c.top_k, c.recent = D.split(budget, recency, sinks)
    work = torch.zeros(kernels().work_size(c), dtype=torch.uint8, device="cuda")
    c.work = work.data_ptr()
    text = kernels().refuse_select(c)
    assert not text, text
    plan = kernels().plan_select(c, logits.data_ptr(), stride, sums.data_ptr() if sums is not None else 0)
    plan.run()
    first = out.clone()
    plan.run()
    assert torch.equal(out, first)
    return c, out


def test_selection_of_anything():
    """Ties, signed zeros, infinities, NaN, constants, outliers; sizes around the candidates' room."""
    rng = random.Random(SEED + 5)
    nrng = np.random.default_rng(SEED)
    for _ in range(8 if QUICK else 60):
        heads = rng.choice([1, 2, 5, 8, 32, 40])
        rows = rng.choice([1, 2, 4])
        longest = rng.choice([40, 500, 4000]) if QUICK else rng.choice([40, 400, 4000, 9000, 40000])
        stride = -(-longest // 32) * 32
        kind = rng.randrange(7)
        x = nrng.standard_normal((rows, heads, stride)).astype(np.float32) * 4
        if kind == 0:
            x = nrng.integers(-3, 4, x.shape).astype(np.float32)
        elif kind == 1:
            x[:] = nrng.standard_normal((rows, heads, 1))
        elif kind == 2:
            x *= 1e-20 * (nrng.random(x.shape) > 0.3)
        elif kind == 3:
            x = x[:, :1] + x * 0.05
        elif kind == 4:
            x[nrng.random(x.shape) < 0.001] = 1e30
        elif kind == 5:
            rate = rng.choice([0.02, 0.5, 0.98])
            odd = nrng.choice(np.array([np.inf, -np.inf, np.nan, -np.nan, 0, -0.0, 3.4e38, -3.4e38, 1e-45], np.float32), x.shape)
            x = np.where(nrng.random(x.shape) < rate, odd, x).astype(np.float32)
        x[(x == 0) & (nrng.random(x.shape) < 0.5)] = -0.0
        lengths = [rng.choice([longest, rng.randint(1, longest)]) for _ in range(rows)]
        budget = rng.choice([1, 13, 100, max(1, longest // 8), max(1, longest // 2), longest + 5])
        budget = min(budget, 16384)
        logits = torch.from_numpy(np.ascontiguousarray(x)).cuda()
        c, out = select_alone(logits, lengths, budget, rng.choice([0.0, 0.25, 0.9, 1.0]), rng.choice([0, 4, 9]))
        for r, n in enumerate(lengths):
            k = min(n, budget)
            want = list(range(n)) if n <= budget else literal_union(x[r, :, :n], n, c.sink_tokens, c.top_k, c.recent)
            assert out[r, :k].tolist() == want, f"kind {kind} heads {heads} n {n} budget {budget} seed {SEED}"


def test_graph_replays_while_n_grows():
    """Captured once below the budget, replayed as the sequences grow past it."""
    rng = random.Random(SEED + 6)
    for layout in ("strided", "paged"):
        p = random_problem(
            rng,
            kv_type=D.F16,
            dim=128,
            group=4,
            kv_heads=2,
            lengths=[50, 60, 70],
            capacity=900,
            layout=layout,
            budget=128,
            sinks=False,
            softcap=0.0,
            output_type=None,
        )
        dense, select, sparse = p.plan(D.FULL), p.plan(D.SELECT), p.plan(D.SPARSE)
        outputs = [p.output, torch.empty_like(p.output), torch.empty_like(p.output)]
        for plan, out in zip((dense, select, sparse), outputs):
            plan.args.call.output.data = out.data_ptr()
        stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for plan in (dense, select, sparse):
                plan.run(torch.cuda.current_stream())
        for step in range(6 if QUICK else 40):
            p.lengths.add_(torch.tensor([1, 7, 20], dtype=torch.int32, device="cuda"))
            p.positions.fill_(-1)
            graph.replay()
            torch.cuda.synchronize()
            check_sets(p, select)
            full = p.reference()
            for out in outputs[:2]:
                assert error(out, full) < 1e-3
            visible = torch.zeros(p.rows, p.capacity, dtype=torch.bool, device="cuda")
            for r, n in enumerate(p.lengths.tolist()):
                visible[r, p.positions[r, : min(n, p.budget)].long()] = True
            assert error(outputs[2], p.reference(visible)) < 1e-3, (layout, step)


def test_two_streams():
    rng = random.Random(SEED + 7)
    problems = [random_problem(rng, kv_type=D.F16, lengths=[600, 333], budget=100, capacity=700, output_type=None) for _ in range(2)]
    plans = [[p.plan(m) for m in (D.FULL, D.SELECT, D.SPARSE)] for p in problems]
    for p, three in zip(problems, plans):
        for plan in three:
            plan.run()
        p.alone = p.output.clone()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    for _ in range(3 if QUICK else 50):
        for s, three in zip(streams, plans):
            for plan in three:
                plan.run(s)
    torch.cuda.synchronize()
    for p in problems:
        assert torch.equal(p.output.view(torch.uint8), p.alone.view(torch.uint8))


def test_refusals():
    """Bad arguments are refused with a text that names them; nothing is launched."""
    rng = random.Random(SEED + 8)
    p = random_problem(rng, kv_type=D.F16, dim=128, lengths=[100, 100], capacity=100, budget=32, layout="strided", group=4, kv_heads=2)
    p.call.mode = D.SELECT
    assert kernels().check(p.call)[0] == 0
    for field, value in [
        ("dim", 72),
        ("dim", 272),
        ("kv_type", 0),
        ("kv_type", 6),
        ("heads", 0),
        ("kv_heads", 7),
        ("mode", 9),
        ("policy", 2),
        ("n_rows", 0),
        ("capacity", 0),
        ("scale", float("nan")),
        ("softcap", -1.0),
        ("budget", 31),
        ("lengths", 0),
        ("work", 12),
        ("set", 3),
        ("set_stride", 1),
    ]:
        bad = D.Call.from_buffer_copy(p.call)
        setattr(bad, field, value)
        refused, text = kernels().check(bad)
        assert refused and field.split("_")[0] in text, (field, text)
    for store in ("key", "value"):
        bad = D.Call.from_buffer_copy(p.call)
        getattr(bad, store).data += 2
        assert kernels().check(bad)[0] and store in kernels().check(bad)[1]


if __name__ == "__main__":
    main(dict(globals()))
