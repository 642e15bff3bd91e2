"""The library on a GPU, through its C ABI and the Python package: decoders against float64, their token sets against the
CPU engine's, captured steps, two streams, arguments of every kind. Run with pytest, or as a script (see harness.py)."""

import contextlib
import ctypes
import os
import random
import sys

import device as D
import numpy as np
import torch
from harness import QUICK, SEED, main
from test_kernels import OUTPUT, TOLERANCE, error, random_problem

sys.path.insert(0, os.path.join(D.ROOT, "bindings", "python"))
import lessismore  # noqa: E402
from lessismore import _library  # noqa: E402

LAYERS, SELECTING = 5, [1, 3]
KINDS = {D.F16: "f16", D.BF16: "bf16", D.FP8: "fp8", D.Q8_0: "q8_0", D.Q4_0: "q4_0"}


def make_engine(budget, **more):
    return lessismore.Engine(LAYERS, layers=SELECTING, budget=budget, n_threads=min(16, os.cpu_count()), **more)


def on_gpu(engine, rows, capacity, heads, kv_heads, dim, dtype="f16", kv_tokens=0):
    return engine.decoder(rows, device=0, capacity=capacity, heads=heads, kv_heads=kv_heads, head_dim=dim, dtype=dtype, kv_tokens=kv_tokens)


def make_decoder(engine, p, rows=None, capacity=None, kv_tokens=0):
    return on_gpu(engine, rows or p.rows, capacity or p.capacity, p.heads, p.kv_heads, p.dim, KINDS[p.kv_type], kv_tokens)


def attend(decoder, p, layer, out=None, **more):
    """One layer of a Problem (test_kernels) through the Python package."""

    def store(x):
        return x if p.axes["token"] == 1 else x.transpose(1, 2)

    return decoder.attend(
        layer,
        p.query,
        store(p.key),
        store(p.value),
        lengths=p.lengths,
        out=p.output if out is None else out,
        table=p.table,
        sinks=p.sinks,
        scale=p.scale,
        softcap=p.softcap,
        value_scale=p.value_scale,
        **more,
    )


@contextlib.contextmanager
def recorded():
    """The calls that reach the library, as bytes."""
    lib, calls = _library.library(), []
    attend = lib.lim_decoder_attend
    lib.lim_decoder_attend = lambda handle, a: calls.append(bytes(a)) or attend(handle, a)
    try:
        yield calls
    finally:
        lib.lim_decoder_attend = attend


def check(p, out, want, where):
    limit = TOLERANCE[p.kv_type] + OUTPUT[p.output_type]
    for r in range(p.rows):
        if want[r].abs().max() == 0:
            assert out[r].abs().max() == 0, f"{where}: row {r}: {p.describe()}"
        else:
            assert error(out[r], want[r]) < limit, f"{where}: row {r} error {error(out[r], want[r]):.2e}: {p.describe()}"


def visible(p, sets):
    """[rows][capacity] bool of token sets; an empty one stands for all that the row sees."""
    seen = torch.arange(p.capacity, device="cuda")[None] < p.lengths[:, None]
    for r, chosen in enumerate(sets):
        if len(chosen):
            seen[r] = False
            seen[r, torch.from_numpy(chosen).cuda().long()] = True
    return seen


def test_a_step_against_float64():
    """Every type and layout: dense and selection layers see all, the others the set, which is as large as it should be."""
    rng = random.Random(SEED)
    for _ in range(6 if QUICK else 60):
        budget = rng.choice([1, 7, 16, 64, 128, 500])
        p = random_problem(rng, budget=budget)
        # Room for what all rows see together, to the token; or for one token less, and nothing is chosen.
        together = sum(n for n in p.lengths.tolist() if n > budget)
        kv_tokens = rng.choice([0, together, together - 1]) if together > 1 else 0
        overfull = 0 < kv_tokens < together
        with make_engine(budget) as engine, make_decoder(engine, p, kv_tokens=kv_tokens) as decoder:
            outs = [torch.full_like(p.output, float("nan")) for _ in range(LAYERS)]
            for layer, out in enumerate(outs):
                attend(decoder, p, layer, out)
            sets = [decoder.token_set(r) for r in range(p.rows)]
            for r, n in enumerate(p.lengths.tolist()):
                s = sets[r]
                assert len(s) == (budget if n > budget and not overfull else 0), p.describe()
                assert (np.diff(s) > 0).all() and (len(s) == 0 or s[-1] < n), p.describe()
            full, sparse = p.reference(), p.reference(visible(p, sets))
            for layer, out in enumerate(outs):
                check(p, out, sparse if layer in (2, 4) else full, f"layer {layer}")
            n = np.array(p.lengths.tolist())
            stats = decoder.stats()
            held = int(n.sum()) if overfull else int(np.minimum(n, budget).sum())
            if p.capacity > budget:
                assert stats["steps"] == 1 and stats["rows"] == p.rows and stats["rows_sparse"] == int((n > budget).sum())
                assert stats["tokens_visible"] == LAYERS * n.sum() and stats["tokens_attended"] == 3 * n.sum() + 2 * held
                assert stats["sparse_layer_tokens_visible"] == 2 * n.sum() and stats["sparse_layer_tokens_attended"] == 2 * held
                assert [stats[f"{k}_calls"] for k in ("dense", "select", "sparse", "no_set")] == (
                    [3, 2, 0, 2] if overfull else [1, 2, 2, 0]
                )


def test_sets_of_the_cpu_engine():
    """Integers whose sums are exact: both engines see the same logits, ties and all, and choose the same tokens."""
    rng, nrng = random.Random(SEED + 1), np.random.default_rng(SEED)
    for _ in range(4 if QUICK else 25):
        dim, kv_heads, group = rng.choice([64, 80, 96, 128, 192, 256]), rng.choice([1, 2, 8]), rng.choice([1, 3, 4, 7, 16])
        rows, budget = rng.choice([1, 3, 8]), rng.choice([1, 7, 13, 16, 128, 700])
        lengths = [rng.randint(1, 500 if QUICK else 4000) for _ in range(rows)]
        capacity = max(lengths) + rng.choice([0, 33])
        spread = rng.choice([2, 9])
        query = nrng.integers(-spread, spread + 1, (rows, group * kv_heads, dim)).astype(np.float16)
        key = nrng.integers(-spread, spread + 1, (rows, capacity, kv_heads, dim)).astype(np.float16)
        value = nrng.standard_normal((rows, capacity, kv_heads, dim)).astype(np.float16)
        setting = dict(recency=rng.choice([0.0, 0.25, 0.9]), sink_tokens=rng.choice([0, 4]))
        with make_engine(budget, **setting) as engine, on_gpu(engine, rows, capacity, group * kv_heads, kv_heads, dim) as decoder:
            q, k, v = (torch.from_numpy(x).cuda() for x in (query, key, value))
            n = torch.tensor(lengths, dtype=torch.int32, device="cuda")
            for layer in range(LAYERS):
                decoder.attend(layer, q, k, v, lengths=n, out=torch.empty_like(q), scale=0.125)
            for r in range(rows):
                with engine.decoder() as alone:
                    for layer in (0, 1, 2, 3):
                        alone.attend(layer, query[r], key[r, : lengths[r]], value[r, : lengths[r]], scale=0.125)
                    want = alone.token_set()
                got = decoder.token_set(r)
                assert np.array_equal(got, want), (dim, kv_heads, group, lengths[r], budget, setting)


def test_number_of_rows_may_change():
    """The work memory is left right for any other number of rows."""
    rng = random.Random(SEED + 2)
    for _ in range(2 if QUICK else 8):
        args = dict(kv_type=D.F16, dim=128, group=rng.choice([1, 4]), kv_heads=rng.choice([1, 8]), budget=64, output_type=D.F32)
        problems = [
            random_problem(rng, lengths=[rng.randint(1, 1500) for _ in range(rows)], capacity=1500, layout="strided", **args)
            for rows in rng.sample([1, 2, 5, 8, 31, 64], 4)
        ]
        with make_engine(64) as engine, make_decoder(engine, problems[0], rows=64, kv_tokens=rng.choice([0, 64 * 1500])) as decoder:
            for p in problems + problems[::-1]:
                for layer in range(LAYERS):
                    attend(decoder, p, layer)
                sets = [decoder.token_set(r) for r in range(p.rows)]
                check(p, p.output, p.reference(visible(p, sets)), "rows")


def test_a_captured_step_grows():
    """Captured once below the budget, replayed as the sequences grow past it; what is counted is what was replayed. With
    kv_tokens they grow past the room, too, and in the end fit again."""
    rng = random.Random(SEED + 3)
    for layout, kv_tokens in (("strided", 0), ("paged", 0), ("strided", 150), ("paged", 150)):
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
            output_type=D.F32,
        )
        outs = [torch.empty_like(p.output) for _ in range(LAYERS)]
        with make_engine(128) as engine, make_decoder(engine, p, kv_tokens=kv_tokens) as decoder:

            def step():
                for layer, out in enumerate(outs):
                    attend(decoder, p, layer, out)

            step()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                step()
            replays, steps, overfull = 6 if QUICK else 40, 1, 0
            for i in range(replays):
                p.lengths.add_(torch.tensor([1, 7, 20], dtype=torch.int32, device="cuda"))
                if i == replays - 1:
                    p.lengths.copy_(torch.tensor([50, 60, 140], dtype=torch.int32))
                if kv_tokens:  # right before it a step that has no room
                    lengths = p.lengths.clone()
                    p.lengths.fill_(p.capacity)
                    graph.replay()
                    p.lengths.copy_(lengths)
                    steps, overfull = steps + 1, overfull + 1
                graph.replay()
                torch.cuda.synchronize()
                n = p.lengths.tolist()
                fits = kv_tokens == 0 or sum(x for x in n if x > 128) <= kv_tokens
                steps, overfull = steps + 1, overfull + (not fits)
                sets = [decoder.token_set(r) for r in range(p.rows)]
                assert [len(s) for s in sets] == [128 if x > 128 and fits else 0 for x in n], (layout, kv_tokens, n)
                full, sparse = p.reference(), p.reference(visible(p, sets))
                for layer, out in enumerate(outs):
                    assert error(out, sparse if layer in (2, 4) else full) < 1e-3, (layout, kv_tokens, layer)
            stats = decoder.stats()
            assert stats["steps"] == steps and stats["rows"] == 3 * steps, stats
            assert stats["no_set_calls"] == 2 * overfull and stats["sparse_calls"] == 2 * (steps - overfull), stats


def test_two_streams():
    rng = random.Random(SEED + 4)
    problems = [random_problem(rng, kv_type=D.F16, lengths=[600, 333], budget=100, capacity=700, output_type=None) for _ in range(2)]
    with make_engine(100) as engine:
        decoders = [make_decoder(engine, p) for p in problems]
        alone = []
        for decoder, p in zip(decoders, problems):
            for layer in range(LAYERS):
                attend(decoder, p, layer)
            alone.append(p.output.clone())
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in problems]
        for _ in range(3 if QUICK else 50):
            for decoder, p, stream in zip(decoders, problems, streams):
                with torch.cuda.stream(stream):
                    for layer in range(LAYERS):
                        attend(decoder, p, layer)
        torch.cuda.synchronize()
        for decoder, p, want in zip(decoders, problems, alone):
            assert torch.equal(want.view(torch.uint8), p.output.view(torch.uint8))
            decoder.close()


def test_any_arguments():
    """What is wrong is refused by name, whatever else is wrong with it; the device is left as it was."""
    rng = random.Random(SEED + 5)
    p = random_problem(
        rng,
        kv_type=D.F16,
        dim=128,
        group=4,
        kv_heads=2,
        lengths=[100, 90],
        capacity=100,
        layout="strided",
        budget=32,
        output_type=D.F16,
        query_type=D.F16,
        sinks=True,
        softcap=0.0,
    )
    lib = _library.library()
    host = ctypes.create_string_buffer(1 << 16)
    with make_engine(32) as engine, make_decoder(engine, p) as decoder:
        with recorded() as calls:
            attend(decoder, p, 1)
        want = p.output.clone()
        good = calls[0]
        bad = {
            "layer": [-1, LAYERS, 1 << 30],
            "n_rows": [0, -1, 3, 1 << 30],
            "query_dtype": [-1, 3, 4, 5, 99],
            "output_dtype": [3, 99],
            "query": [0, 1, p.query.data_ptr() + 2, ctypes.addressof(host) & ~255, 1 << 62, (1 << 64) - 256],
            "output": [0, p.query.data_ptr(), ctypes.addressof(host) & ~255, 1 << 63],
            "key": [0, 8, p.key.data_ptr() + 8, ctypes.addressof(host) & ~255, 1 << 63],
            "value": [0, p.value.data_ptr() + 1, 4096],
            "lengths": [0, 2, p.lengths.data_ptr() + 1, ctypes.addressof(host) & ~255],
            "sinks": [1, 4096, p.sinks.data_ptr() + 2],
            "query_row_stride": [0, -256, 1 << 62, 6],
            "query_head_stride": [0, 1 << 62, -(1 << 63)],
            "output_row_stride": [-8, 1 << 62],
            "output_head_stride": [2, 1 << 62],
            "key_token_stride": [0, 24, -512, 1 << 61],
            "key_head_stride": [8, 1 << 61],
            "key_page_stride": [0, 1 << 61],
            "value_token_stride": [1 << 62],
            "value_head_stride": [-16],
            "value_page_stride": [40],
            "scale": [float("nan"), float("inf")],
            "softcap": [-1.0, float("nan"), float("inf")],
            "key_scale": [float("nan")],
            "value_scale": [float("inf")],
            "reserved": [1, -1],
            "struct_size": [0, 8, 1 << 40],
        }
        refused = 0
        for i in range(300 if QUICK else 5000):
            a = _library.Attention.from_buffer_copy(good)
            for field in rng.sample(sorted(bad), rng.choice([1, 1, 1, 2, 5])):
                setattr(a, field, rng.choice(bad[field]))
            try:
                lib.lim_decoder_attend(decoder._use(), a)
                raise AssertionError(f"taken: {[(f, getattr(a, f)) for f, *_ in a._fields_]}")
            except (lessismore.ArgumentError, lessismore.UnsupportedError) as e:
                assert "=" in str(e), e
                refused += 1
        assert refused == (300 if QUICK else 5000)
        p.output.zero_()
        attend(decoder, p, 1)
        assert torch.equal(p.output, want)
        for text, call in (
            ("max_rows = 0", (0, 9, 4, 2, 64)),
            ("head_dim = 80", (1, 9, 4, 2, 80)),
            ("capacity = ", (1, 1 << 22, 4, 2, 64)),
        ):
            try:
                on_gpu(engine, *call)
                raise AssertionError(text)
            except (lessismore.ArgumentError, lessismore.UnsupportedError) as e:
                assert text in str(e), e


if __name__ == "__main__":
    main(dict(globals()))
