"""Outputs and token sets against NumPy, over shapes, types, layouts and orders."""

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import lessismore

FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
TOLERANCE = {"f32": 2e-5, "f16": 2e-3, "bf16": 1.6e-2}


def stored(x, dtype, layout, rng):
    """x [slots, kv_heads, dim] in a host's type and memory order; None or the dtype to state."""
    y = x.astype(FLOATS[dtype]) if dtype in FLOATS else reference.quantise(x, dtype)
    if layout == "head-major":
        y = np.ascontiguousarray(y.transpose(1, 0, 2)).transpose(1, 0, 2)
    elif layout == "padded":
        wide = np.zeros((y.shape[0] + 3, y.shape[1] + 1, y.shape[2] * 2), y.dtype)
        wide[2 : 2 + y.shape[0], : y.shape[1], : y.shape[2]] = y
        y = wide[2 : 2 + y.shape[0], : y.shape[1], : y.shape[2]]
    return y, (None if dtype in FLOATS else dtype)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_matches_numpy(data):
    draw = lambda s: data.draw(s)  # noqa: E731
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    heads = kv_heads * group
    key_type, value_type = (
        draw(st.sampled_from(["f32", "f16", "bf16", "q8_0", "q4_0"])),
        draw(st.sampled_from(["f32", "f16", "bf16", "q8_0", "q4_0"])),
    )
    query_type, out_type = draw(st.sampled_from(sorted(FLOATS))), draw(st.sampled_from(sorted(FLOATS)))
    unit = 16 if key_type in FLOATS else 32
    dim = unit * draw(st.integers(1, 128 // unit))
    value_dim = 32 * draw(st.integers(1, 4))
    slots, budget = draw(st.integers(1, 150)), draw(st.integers(1, 60))
    recency, sink_tokens = draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])), draw(st.integers(0, 6))
    layout = draw(st.sampled_from(["plain", "head-major", "padded"]))
    softcap = draw(st.sampled_from([0.0, 0.0, 5.0]))
    order = rng.permutation(slots) if draw(st.booleans()) else None
    sinks = rng.integers(-4, 4, heads).astype(np.float32) if draw(st.booleans()) else None
    hidden = draw(st.booleans())
    # Values that every type holds, and logits that sum without rounding: sets are then exact.
    grid = lambda *shape: rng.integers(-8, 8, shape) / 4  # noqa: E731

    with lessismore.Engine(6, budget=budget, layers=[1, 3], recency=recency, sink_tokens=sink_tokens, n_threads=2) as engine:
        with engine.decoder() as decoder:
            chosen = None
            mask = np.zeros(slots, np.float16)
            if hidden:
                mask[rng.random(slots) < 0.2] = -np.inf
            visible = np.flatnonzero(np.isfinite(mask))
            if order is not None:  # slot order[i] holds position i
                place = np.empty(slots, np.int32)
                place[order] = np.arange(slots)
                visible = np.array([s for s in order if np.isfinite(mask[s])], int)
            if not visible.size:
                return
            for layer in range(6):
                q, k, v = grid(heads, dim), grid(slots, kv_heads, dim), grid(slots, kv_heads, value_dim)
                key, key_dtype = stored(k, key_type, layout, rng)
                value, value_dtype = stored(v, value_type, layout, rng)
                out = np.full((heads, value_dim), 99, FLOATS[out_type])
                result = decoder.attend(
                    layer, q.astype(FLOATS[query_type]), key, value, out=out, scale=0.125, softcap=softcap,
                    key_dtype=key_dtype, value_dtype=value_dtype, sinks=sinks, mask=mask if hidden else None,
                    **({} if order is None else {"positions": place, "query_positions": slots - 1}),
                )  # fmt: skip
                assert result is out
                x = reference.logits(q, k[visible], 0.125, softcap)
                seen = visible
                if len(visible) > budget:
                    if layer in (1, 3):
                        chosen = decoder.token_set()
                        assert len(chosen) == budget
                        if not softcap:
                            want = visible[reference.select(x, budget, recency, sink_tokens)]
                            assert sorted(want) == chosen.tolist()
                    elif layer > 1:
                        seen = chosen
                want = reference.attend(reference.logits(q, k[seen], 0.125, softcap), v[seen], sinks)
                np.testing.assert_allclose(out.astype(np.float64), want, atol=TOLERANCE[out_type], rtol=0)


def test_bfloat16_as_bits_is_the_same():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in [(4, 64), (50, 2, 64), (50, 2, 64)])
    with lessismore.Engine(1) as engine, engine.decoder() as decoder:
        a = decoder.attend(0, q, k, v)
        b = decoder.attend(0, q.view(np.uint16), k.view(np.uint16), v.view(np.uint16))
    assert a.dtype == ml_dtypes.bfloat16 and b.dtype == np.uint16
    np.testing.assert_array_equal(a.view(np.uint16), b)


def test_alibi():
    rng = np.random.default_rng(2)
    q, k, v = rng.standard_normal((4, 32)), rng.standard_normal((40, 2, 32)), rng.standard_normal((40, 2, 32))
    mask, slopes = -np.arange(39, -1, -1).astype(np.float16), np.float32([1, 0.5, 0.25, 0.125])
    with lessismore.Engine(1) as engine, engine.decoder() as decoder:
        got = decoder.attend(0, *(x.astype(np.float32) for x in (q, k, v)), mask=mask, alibi_slopes=slopes)
    x = reference.logits(q, k, bias=slopes[:, None] * mask[None].astype(float))
    np.testing.assert_allclose(got, reference.attend(x, v), atol=2e-5)


def test_later_tokens_are_not_seen():
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in [(2, 32), (30, 1, 32), (30, 1, 32)])
    with lessismore.Engine(1) as engine, engine.decoder() as decoder:
        got = decoder.attend(0, q, k, v, query_positions=9)
        np.testing.assert_array_equal(got, decoder.attend(0, q, k[:10], v[:10]))


@pytest.mark.parametrize("policy", ["union", "mass"])
def test_stats_and_report(policy):
    rng = np.random.default_rng(4)
    q, k = rng.standard_normal((4, 32)).astype(np.float32), rng.standard_normal((50, 2, 32)).astype(np.float32)
    lines = []
    with lessismore.Engine(5, budget=20, layers=[2], policy=policy, n_threads=1, logger=lambda *a: lines.append(a)) as engine:
        with engine.decoder() as decoder:
            for n in (48, 49, 50):
                for layer in range(5):
                    decoder.attend(layer, q, k[:n], k[:n])
            stats = decoder.stats()
            assert (stats["steps"], stats["dense_calls"], stats["select_calls"], stats["sparse_calls"]) == (3, 6, 3, 6)
            assert stats["sparse_layer_tokens_attended"] == 6 * 20 and stats["no_set_calls"] == 0
            decoder.reset()
            assert decoder.token_set().size == 0
            decoder.attend(4, q, k, k)
            assert decoder.stats()["no_set_calls"] == 1
        assert engine.stats()["steps"] == 4
        report = engine.report()
    assert report["version"] == lessismore.__version__
    assert report["config"]["policy"] == policy and report["total"]["steps"] == 4
    assert lines and lines[0][0] == 2 and "budget 20" in lines[0][1]


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_rows_side_by_side(shared, placed):
    """Several rows in one call give what each gives alone: of one store or each with its own; by length, or placed and masked."""
    rng = np.random.default_rng()
    rows, slots, heads, kv_heads, dim = 3, 90, 4, 2, 32
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float16)  # noqa: E731
    query, stores = normal(4, rows, heads, dim), normal(2, 1 if shared else rows, slots, kv_heads, dim)
    lengths = np.array([slots, 10, 77], np.int32)
    if placed:
        places = np.stack([rng.permutation(slots) for _ in range(rows)]).astype(np.int32)
        mask = np.where(rng.random((rows, slots)) < 0.1, -np.inf, 0).astype(np.float16)
        seen = {"query_positions": lengths - 1, "positions": places, "mask": mask}
    else:
        seen = {"lengths": lengths}
    with lessismore.Engine(4, budget=16, layers=[1], n_threads=1) as engine, engine.decoder(rows) as together:
        outs = [together.attend(layer, query[layer], *stores, **seen) for layer in range(4)]
        assert outs[0].shape == (rows, heads, dim)
        for row in range(rows):
            key, value = (store[0 if shared else row] for store in stores)
            own = {name: x[row] if x.ndim == 2 else x[row : row + 1] for name, x in seen.items()}
            with engine.decoder() as alone:
                for layer in range(4):
                    assert np.array_equal(alone.attend(layer, query[layer, row], key, value, **own), outs[layer][row])
                assert np.array_equal(alone.token_set(), together.token_set(row))
        assert together.stats()["steps"] == 1 and together.stats()["rows"] == rows


def test_positions_and_mask_of_all_rows():
    """[1, slots] stands for all rows, of which there may be one."""
    rng = np.random.default_rng(7)
    key, value = (rng.standard_normal((1, 40, 2, 16)).astype(np.float32) for _ in range(2))
    query = rng.standard_normal((3, 4, 16)).astype(np.float32)
    positions = rng.permutation(40).astype(np.int32)
    mask = np.where(rng.random(40) < 0.2, -np.inf, 0).astype(np.float16)
    with lessismore.Engine(2, budget=8, layers=[0]) as engine:
        for rows in (1, 3):
            for with_rows in (lambda x: x, lambda x: x[None]):
                with engine.decoder(rows) as decoder:
                    at = np.full(rows, 39, np.int32)
                    out = decoder.attend(
                        0, query[:rows], key, value, query_positions=at, positions=with_rows(positions), mask=with_rows(mask)
                    )
                alone = engine.decoder()
                for row in range(rows):
                    want = alone.attend(0, query[row], key[0], value[0], query_positions=39, positions=positions, mask=mask)
                    assert np.array_equal(out[row], want)
                alone.close()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pages(data):
    """Rows of several sequences in pages: what the same tokens give in one piece, bit for bit, and what NumPy gives."""
    draw = lambda s: data.draw(s)  # noqa: E731
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, kv_heads, group, dim = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4)), 32
    page_size, most = 1 << draw(st.integers(0, 8)), draw(st.integers(1, 150))
    key_type, value_type = (draw(st.sampled_from(["f32", "f16", "bf16", "q8_0", "q4_0"])) for _ in range(2))
    lengths = rng.integers(1, most + 1, rows).astype(np.int32)
    width = -(-int(lengths.max()) // page_size) + draw(st.integers(0, 2))
    pages = draw(st.integers(1, rows * width + 3))
    table = rng.integers(0, pages, (rows, width)).astype(np.int32)  # rows share pages as they like, their own as well
    for row, n in enumerate(lengths):
        table[row, -(-int(n) // page_size) :] = draw(st.sampled_from([-1, pages, 2**31 - 1]))
    grid = lambda *shape: rng.integers(-8, 8, shape) / 4  # noqa: E731
    slots = width * page_size
    gather = np.clip(table, 0, pages - 1)
    with lessismore.Engine(4, budget=draw(st.integers(1, 40)), layers=[1], n_threads=2) as engine:
        with engine.decoder(rows) as decoder, engine.decoder(rows) as plain:
            for layer in range(4):
                q = grid(rows, kv_heads * group, dim).astype(np.float32)
                k, v = grid(pages, page_size, kv_heads, dim), grid(pages, page_size, kv_heads, 64)
                stores, names = [], {}
                for name, x, dtype in (("key_dtype", k, key_type), ("value_dtype", v, value_type)):
                    flat = x.reshape(-1, kv_heads, x.shape[-1])
                    stored_as, names[name] = stored(flat, dtype, "plain", rng)
                    y = stored_as.reshape(pages, page_size, *stored_as.shape[1:])
                    if draw(st.booleans()):  # heads before tokens, as some servers have them
                        y = np.ascontiguousarray(y.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
                    stores.append(y)
                one_piece = [y[gather].reshape(rows, slots, kv_heads, -1) for y in stores]
                args = {"lengths": lengths, "scale": 0.125, **names}
                out = decoder.attend(layer, q, *stores, table=table, **args)
                np.testing.assert_array_equal(out, plain.attend(layer, q, *one_piece, **args))
                for row, n in enumerate(lengths):
                    chosen = decoder.token_set(row)
                    np.testing.assert_array_equal(chosen, plain.token_set(row))
                    at = chosen if layer > 1 and chosen.size else np.arange(n)
                    k_row, v_row = (x[gather[row]].reshape(slots, kv_heads, -1)[at] for x in (k, v))
                    want = reference.attend(reference.logits(q[row], k_row, 0.125), v_row)
                    np.testing.assert_allclose(out[row], want, atol=2e-5, rtol=0)


def test_pages_of_one_row_placed_and_masked():
    """Positions and mask go along the table; pages in which nothing is seen are not read."""
    rng = np.random.default_rng()
    query, key = rng.standard_normal((4, 32)).astype(np.float32), rng.standard_normal((9, 16, 2, 32)).astype(np.float32)
    table = np.array([7, -1, 2, 5], np.int32)
    positions = rng.permutation(64).astype(np.int32)
    positions[16:32] = -1
    mask = np.where(rng.random(64) < 0.2, -np.inf, 0).astype(np.float16)
    args = {"positions": positions, "mask": mask, "query_positions": 70}
    piece = key[[7, 0, 2, 5]].reshape(64, 2, 32)
    with lessismore.Engine(2, budget=8, layers=[0]) as engine, engine.decoder() as paged, engine.decoder() as plain:
        for layer in range(2):
            got = paged.attend(layer, query, key, key, table=table, **args)
            np.testing.assert_array_equal(got, plain.attend(layer, query, piece, piece, **args))


def test_sequences_tell_texts_apart():
    """With an interval, a step goes on with the sets of the one before for the same texts only."""
    rng = np.random.default_rng()
    query, key = rng.standard_normal((2, 4, 32)).astype(np.float32), rng.standard_normal((2, 60, 2, 32)).astype(np.float32)
    with lessismore.Engine(2, budget=8, layers=[0], interval=4, guard=0) as engine, engine.decoder(2) as decoder:

        def step(n, *texts):
            before = decoder.stats()["reused_steps"]
            for layer in range(2):
                sequences = np.array(texts, np.uint64) if texts else None
                decoder.attend(layer, query, key, key, lengths=np.array([n, n], np.int32), sequences=sequences)
            return decoder.stats()["reused_steps"] - before

        assert [step(40, 1, 2), step(41, 1, 2), step(42, 1, 3), step(43, 1, 3), step(44, 3, 1)] == [0, 1, 0, 1, 0]
        assert [step(45, 3, 1), step(46), step(47), step(48, 3, 1)] == [1, 0, 1, 0]
