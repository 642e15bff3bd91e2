"""What transformers' decode steps on a GPU hand to the library, without a GPU: the tensors are the CPU's, and a decoder is
played by the words of the C header, in float64. The kernels themselves are tested on GPU machines (tests/gpu)."""

import ctypes

import numpy as np
import pytest
import torch

import lessismore
from lessismore import _cuda, _torch

TYPES = {0: torch.float32, 1: torch.float16, 2: torch.bfloat16}


def memory(address, count, dtype):
    size = count * torch.empty((), dtype=dtype).element_size()
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=dtype)


class Played:
    """A decoder by the header: every token that a row sees, in the order of its table."""

    def __init__(self, shape):
        self.shape, self.calls, self.closed = shape, 0, False

    def _use(self):
        assert not self.closed
        return self

    def close(self):
        self.closed = True

    def reset(self):
        self.resets = getattr(self, "resets", 0) + 1

    def attend(self, a):
        self.calls += 1
        s = self.shape
        assert 1 <= a.n_rows <= s.rows
        lengths = memory(a.lengths, a.n_rows, torch.int32).tolist()
        for r, n in enumerate(lengths):
            assert 0 <= n <= s.capacity
            if a.table:
                pages = memory(a.table + r * a.table_stride * 4, n, torch.int32).tolist()
                assert a.page_size == 1 and a.table_stride >= s.capacity
                places = [(page, 0) for page in pages]
            else:
                places = [(r, t) for t in range(n)]
            for h in range(s.heads):
                g = h // (s.heads // s.kv_heads)
                key = self.gather(a.key, a.key_page_stride, a.key_token_stride, a.key_head_stride, places, g)
                value = self.gather(a.value, a.value_page_stride, a.value_token_stride, a.value_head_stride, places, g)
                query = memory(a.query + r * a.query_row_stride + h * a.query_head_stride, s.head_dim, TYPES[a.query_dtype]).double()
                weights = torch.softmax(key @ query * (a.scale or s.head_dim**-0.5), 0)
                out = memory(a.output + r * a.output_row_stride + h * a.output_head_stride, s.head_dim, TYPES[a.output_dtype])
                out.copy_(weights @ value)

    def gather(self, base, page, token, head, places, g):
        at = torch.tensor([p * page + t * token + g * head for p, t in places]) // 2
        dim = self.shape.head_dim
        return memory(base, int(at.max()) + dim, self.shape.dtype)[at[:, None] + torch.arange(dim)].double()


@pytest.fixture
def decoder(monkeypatch):
    opened = []
    monkeypatch.setattr(_cuda, "_open", lambda engine, shape: opened.append(Played(shape)) or opened[-1])
    monkeypatch.setattr(_cuda, "_stream", lambda device: 0)
    monkeypatch.setattr(_cuda, "_capturing", lambda device: False)
    monkeypatch.setattr(_cuda, "_attend", lambda device, handle, call: handle.attend(call))
    with lessismore.Engine(4, layers=[2]) as engine:
        made = _cuda.CudaDecoder(engine)
        made.opened = opened
        yield made


@pytest.fixture
def cpu():
    with lessismore.Engine(4, layers=[2], n_threads=1) as engine:
        made = _torch.CpuDecoder(engine)
        yield made
        made._of(1).close()


def problem(rng, batch, slots, layout, dtype=torch.float16, heads=4, kv_heads=2, dim=64):
    def normal(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

    query = normal(batch, 1, heads, dim).transpose(1, 2)
    if layout == "heads":
        return query, normal(batch, kv_heads, slots, dim), normal(batch, kv_heads, slots, dim)
    return query, normal(batch, slots, kv_heads, dim).transpose(1, 2), normal(batch, slots, kv_heads, dim).transpose(1, 2)


def mask_of(kind, rng, batch, slots):
    at = torch.arange(slots)
    if kind == "none":
        return None
    start = torch.from_numpy(rng.integers(0, slots - 1, batch))
    start[0] = 0
    visible = at[None] >= start[:, None]
    if kind == "static":  # nothing on the left, an empty end
        visible = (at < slots - 3)[None].expand(batch, slots)
    if kind in ("padded static", "holes"):
        visible = visible & (at < slots - 2)
        visible[:, slots - 3] = True
    if kind == "holes":
        visible = visible & torch.from_numpy(rng.random((batch, slots)) < 0.6)
        visible[:, slots - 3] = True
    return visible[:, None, None]


@pytest.mark.parametrize("layout", ["heads", "tokens"])
@pytest.mark.parametrize("kind", ["none", "padded", "static", "padded static", "holes", "lengths"])
def test_as_on_the_cpu(decoder, cpu, kind, layout):
    rng = np.random.default_rng()
    for dtype in (torch.float16, torch.bfloat16):
        for _ in range(3):
            batch, slots = int(rng.integers(1, 5)), int(rng.integers(5, 40))
            mask = mask_of("static" if kind == "lengths" else kind, rng, batch, slots)
            if kind == "lengths":
                setattr(mask, _cuda.LENGTHS, torch.full((batch,), slots - 3, dtype=torch.int32))
            for layer in range(4):
                query, key, value = problem(rng, batch, slots, layout, dtype)
                ours = decoder.attend(layer, query, key, value, mask, 0.0, 0.0, None)
                theirs = cpu.attend(layer, query, key, value, mask, 0.0, 0.0, None)
                torch.testing.assert_close(ours, theirs, atol=4e-3 if dtype == torch.float16 else 3e-2, rtol=0)


def test_a_step_sees_once(decoder, monkeypatch):
    """Lengths and table are of one step: the layers of it get the same addresses, which the library goes by."""
    rng = np.random.default_rng()
    seen = []
    monkeypatch.setattr(_cuda, "_attend", lambda device, handle, call: seen.append((call.lengths, call.table)))
    mask = mask_of("padded", rng, 3, 20)
    for step in range(2):
        for layer in range(4):
            decoder.attend(layer, *problem(rng, 3, 20, "heads"), mask, 0.0, 0.0, None)
    assert len(set(seen[:4])) == 1 and len(set(seen[4:])) == 1


def test_a_prompt_ends_the_step(decoder):
    rng = np.random.default_rng()
    for layer in range(2):
        decoder.attend(layer, *problem(rng, 2, 9, "heads"), None, 0.0, 0.0, None)
    decoder.forget()
    assert decoder.opened[0].resets == 1
    decoder.attend(3, *problem(rng, 2, 9, "heads", heads=8), None, 0.0, 0.0, None)  # a new step, of whatever shape


def test_batches_are_kept_by_shape(decoder):
    rng = np.random.default_rng()
    for slots in (10, 11, 700, 12):
        decoder.attend(0, *problem(rng, 2, slots, "heads"), None, 0.0, 0.0, None)
    assert [b.shape.capacity for b in decoder.opened] == [1024]
    for batch in range(1, 40):
        decoder.attend(0, *problem(rng, batch, 3, "heads"), None, 0.0, 0.0, None)
    assert [b.shape.rows for b in decoder.opened] == [2, 1, 4, 8, 16, 32, 64]
    assert [b.closed for b in decoder.opened] == [True, True, True, False, False, False, False]


def test_what_was_captured_is_kept(decoder, monkeypatch):
    rng = np.random.default_rng()
    decoder.attend(0, *problem(rng, 2, 9, "heads"), None, 0.0, 0.0, None)
    with monkeypatch.context() as capture:
        capture.setattr(_cuda, "_capturing", lambda device: True)
        decoder.attend(0, *problem(rng, 2, 9, "heads"), None, 0.0, 0.0, None)
        with pytest.raises(lessismore.UnsupportedError, match="run one before the capture"):
            decoder.attend(0, *problem(rng, 5, 9, "heads"), None, 0.0, 0.0, None)
    for batch in (1, 3, 5, 9, 17, 33):
        decoder.attend(0, *problem(rng, batch, 3, "heads"), None, 0.0, 0.0, None)
    assert not decoder.opened[0].closed and decoder.opened[1].closed


def test_refusals(decoder):
    rng = np.random.default_rng()
    query, key, value = problem(rng, 2, 9, "heads")

    def refused(error, text, mask=None, **changed):
        tensors = {"query": query, "key": key, "value": value, **changed}
        with pytest.raises(error, match=text):
            decoder.attend(0, **tensors, mask=mask, scale=0.0, softcap=0.0, sinks=None)

    unsupported = lessismore.UnsupportedError
    refused(unsupported, "attention_mask is torch.float16", torch.zeros(2, 1, 1, 9, dtype=torch.float16))
    refused(unsupported, "attention_mask has shape", torch.ones(2, 4, 1, 9, dtype=torch.bool))
    refused(lessismore.ArgumentError, "but there are 9 keys", torch.ones(2, 1, 1, 8, dtype=torch.bool))
    refused(unsupported, "value is torch.bfloat16", value=value.bfloat16())
    refused(unsupported, "query has strides", query=query.transpose(1, 3).contiguous().transpose(1, 3))
    odd = torch.empty(2 * 1153, dtype=torch.float16).as_strided((2, 2, 9, 64), (1153, 576, 64, 1))
    refused(unsupported, "key has strides .* whole slots apart", torch.ones(2, 1, 1, 9, dtype=torch.bool), key=odd)
    decoder.attend(0, query, key, value, None, 0.0, 0.0, None)
    more = problem(rng, 2, 9, "heads", heads=8)
    with pytest.raises(unsupported, match="all layers are alike"):
        decoder.attend(1, *more, None, 0.0, 0.0, None)
