"""Lengths and slots from masks (kernels/cuda/visible.h) against torch, on random masks; run like test_kernels.py."""

import ctypes as C
import random

import device as D
import test_kernels as T
import torch
from test_kernels import QUICK, SEED, kernels

SPARE = -7  # what is not to be written


class Visibility(C.Structure):
    _fields_ = [
        ("mask", D.u64),
        ("token_stride", D.i64),
        ("stream_stride", D.i64),
        ("lengths", D.u64),
        ("table", D.u64),
        ("table_stride", D.i64),
        ("odd", D.u64),
        ("n_rows", D.i32),
        ("n_slots", D.i32),
        ("slots_apart", D.i32),
        ("tokens", D.i32),
        ("first", D.i32),
        ("reserved", D.i32),
    ]


class Look:
    def __init__(self, shown, apart, spare, parts=None, tokens=1, first=0):
        """shown: bool [rows][n_slots], of rows first ... of a batch of so many tokens to each stream, `spare` values behind each row and
        eight more behind each stream; parts: blocks of a row, else as many as the library takes."""
        rows, n = shown.shape
        self.shown, self.apart, self.tokens, self.first = shown, apart, tokens, first
        streams = (first + rows - 1) // tokens + 1
        self.mask = torch.full((streams, tokens * (n + spare) + 8), 3.0, dtype=torch.float16, device="cuda")
        for row in range(rows):
            self.row(row)[:] = torch.where(shown[row], 0.0, -torch.inf)
        self.lengths = torch.full((rows + 1,), SPARE, dtype=torch.int32, device="cuda")
        self.table = torch.full((rows + 1, n + 5), SPARE, dtype=torch.int32, device="cuda")
        self.odd = torch.zeros(1, dtype=torch.int32, device="cuda")
        visibility = Visibility(
            self.mask.data_ptr(),
            (n + spare) * 2,
            self.mask.stride(0) * 2,
            self.lengths.data_ptr(),
            self.table.data_ptr(),
            n + 5,
            self.odd.data_ptr(),
            rows,
            n,
            apart,
            tokens,
            first,
            0,
        )
        launch = D.Launch(b"lim_visible", (rows, parts or max(1, min(8, (n + 16383) // 16384)), 1), 1024, 0)
        self.plan = D.Plan(kernels(), visibility, [launch])

    def row(self, row):
        """A row's mask."""
        stream, token = divmod(self.first + row, self.tokens)
        n = self.shown.shape[1]
        at = token * ((self.mask.shape[1] - 8) // self.tokens)
        return self.mask[stream, at : at + n]

    def check(self):
        rows = self.shown.shape[0]
        for row in range(rows):
            want = torch.nonzero(self.shown[row]).flatten().int() + (self.first + row) // self.tokens * self.apart
            n = int(self.lengths[row])
            assert n == len(want), (row, n, len(want))
            assert torch.equal(self.table[row, :n], want), row
            assert (self.table[row, n:] == SPARE).all(), "written behind a row's slots"
        assert self.lengths[rows] == SPARE and (self.table[rows] == SPARE).all()


def random_mask(rng, rows, n):
    kind, past = rng.randrange(4), torch.tensor([[rng.randrange(n + 1)] for _ in range(rows)], device="cuda")
    slots = torch.arange(n, device="cuda").expand(rows, n)
    if kind == 0:
        return slots < past
    if kind == 1:
        return torch.rand(rows, n, device="cuda") < rng.choice([0.01, 0.5, 0.99])
    if kind == 2:  # holes of whole groups, as removed sequences leave them
        return (slots < past) & (slots // rng.choice([8, 256, 300]) % 3 != 1)
    return (slots < past) & (torch.rand(rows, n, device="cuda") < 0.999)


def test_slots():
    rng = random.Random(SEED)
    for _ in range(20 if QUICK else 200):
        rows, n = rng.choice([1, 1, 2, 7, 33]), 8 * rng.choice([1, 31, 32, 33, 512, rng.randrange(1, 4000), 16384])
        tokens, parts = rng.choice([1, 1, rows, rng.randrange(1, 8)]), rng.choice([None, 1, 2, 3, 8])
        look = Look(random_mask(rng, rows, n), rng.choice([0, n, 131072]), rng.choice([0, 8, 24]), parts, tokens, rng.randrange(3))
        look.plan.run()
        look.check()
        assert int(look.odd) == 0
        look.mask[look.mask == 0] = -0.0  # a zero as well
        look.plan.run()
        look.check()
        assert int(look.odd) == 0


def test_odd_values_are_told():
    rng = random.Random(SEED + 1)
    for value in [1.0, -1.0, float("nan"), float("inf"), -65504.0, 6e-8]:
        n = 8 * rng.randrange(1, 3000)
        look = Look(random_mask(rng, 3, n), 0, 8)
        at = rng.randrange(n)
        look.shown[1, at] = True
        look.row(1)[at] = value
        look.plan.run()
        look.check()
        assert int(look.odd) == 1, value


def test_captured():
    """A captured step looks at what the mask is when it is replayed; an all-hidden row has no slots."""
    look = Look(torch.zeros(2, 4096, dtype=torch.bool, device="cuda"), 4096, 0)
    look.plan.run()
    torch.cuda.synchronize()
    look.check()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        look.plan.run()
    for n in (1, 255, 256, 257, 4096):
        look.shown[:, :n] = True
        for row in range(2):
            look.row(row)[:n] = 0
        look.table.fill_(SPARE)
        graph.replay()
        look.check()


def test_time():
    """Printed, not judged: one row of 128K slots, 30 rows of 32K."""
    for rows, n in ((1, 4096), (1, 32768), (1, 131072), (30, 32768)):
        look = Look(torch.arange(n, device="cuda").expand(rows, n) < n - 100, n, 0)
        graph = torch.cuda.CUDAGraph()
        look.plan.run()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for _ in range(100):
                look.plan.run()
        graph.replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        print(f"      {rows} x {n}: {begin.elapsed_time(end) * 10:.1f} us")


if __name__ == "__main__":
    T.main(globals())
